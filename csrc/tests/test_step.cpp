// A decoding step against GPT-2 written down as sums in fp64: every instruction set, both types of weights, sizes that
// fill no vector, rows of different lengths, windows, several threads. To see races: make test-cpp SANITIZE=thread
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "check.hpp"
#include "gpt/step.hpp"

using namespace gptfast;

namespace {

struct Shape {
    std::int64_t vocab, context, layers, heads, width, window;
    bool biases, exact_gelu;
};

// A tensor of fp32 or bf16 numbers, and the same numbers in fp64.
struct Tensor {
    std::vector<float> wide;
    std::vector<std::uint16_t> narrow;
    std::vector<double> exact;

    const void* data() const {
        if (exact.empty()) return nullptr;
        return narrow.empty() ? static_cast<const void*>(wide.data()) : narrow.data();
    }
};

std::uint16_t upper_half(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return static_cast<std::uint16_t>(bits >> 16);
}

float from_upper_half(std::uint16_t half) {
    const std::uint32_t bits = std::uint32_t{half} << 16;
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}

struct Model {
    Shape shape;
    bool bfloat16;
    std::mt19937 random{7};
    std::vector<std::unique_ptr<Tensor>> tensors;
    GptWeights weights{};

    Tensor* tensor(std::int64_t size, double mean, double deviation) {
        std::normal_distribution<double> normal(mean, deviation);
        auto made = std::make_unique<Tensor>();
        for (std::int64_t i = 0; i < size; ++i) {
            const float x = static_cast<float>(normal(random));
            if (bfloat16)
                made->narrow.push_back(upper_half(x));
            else
                made->wide.push_back(x);
            made->exact.push_back(bfloat16 ? from_upper_half(made->narrow.back()) : x);
        }
        tensors.push_back(std::move(made));
        return tensors.back().get();
    }
    const void* matrix(std::int64_t out, std::int64_t in) { return tensor(out * in, 0, 0.15)->data(); }
    const void* bias(std::int64_t out) { return tensor(shape.biases ? out : 0, 0, 0.3)->data(); }
    NormWeights norm() {
        const void* weight = tensor(shape.width, 1, 0.2)->data();
        return {weight, bias(shape.width)};
    }
    LinearWeights linear(std::int64_t out, std::int64_t in) {
        const void* weight = matrix(out, in);
        return {weight, bias(out)};
    }

    Model(const Shape& s, bool narrow) : shape(s), bfloat16(narrow) {
        const std::int64_t C = s.width;
        weights.bfloat16 = narrow;
        weights.exact_gelu = s.exact_gelu;
        weights.eps = 1e-5f;
        weights.vocab = s.vocab, weights.context = s.context, weights.heads = s.heads, weights.width = C;
        weights.hidden = 4 * C;
        weights.wte = tensor(s.vocab * C, 0, 1)->data();
        weights.wpe = tensor(s.context * C, 0, 1)->data();
        for (std::int64_t l = 0; l < s.layers; ++l) {
            BlockWeights block{};
            block.ln_1 = norm(), block.c_attn = linear(3 * C, C), block.attn_proj = linear(C, C);
            block.ln_2 = norm(), block.c_fc = linear(4 * C, C), block.mlp_proj = linear(C, 4 * C);
            block.window = l % 2 ? s.window : 0;
            weights.blocks.push_back(block);
        }
        weights.ln_f = norm();
        weights.head = matrix(s.vocab, C);
    }

    const std::vector<double>& exact(const void* data) const {
        static const std::vector<double> none;
        for (const auto& t : tensors)
            if (data && t->data() == data) return t->exact;
        return none;
    }
};

using Vector = std::vector<double>;

Vector product(const Model& m, const LinearWeights& w, const Vector& x) {
    const std::vector<double>&weight = m.exact(w.weight), &bias = m.exact(w.bias);
    Vector y(weight.size() / x.size());
    for (std::size_t r = 0; r < y.size(); ++r) {
        y[r] = bias.empty() ? 0 : bias[r];
        for (std::size_t k = 0; k < x.size(); ++k) y[r] += weight[r * x.size() + k] * x[k];
    }
    return y;
}

Vector normalised(const Model& m, const NormWeights& w, const Vector& x) {
    const std::vector<double>&weight = m.exact(w.weight), &bias = m.exact(w.bias);
    double mean = 0, variance = 0;
    for (const double v : x) mean += v / static_cast<double>(x.size());
    for (const double v : x) variance += (v - mean) * (v - mean) / static_cast<double>(x.size());
    Vector y(x.size());
    for (std::size_t i = 0; i < x.size(); ++i)
        y[i] = (x[i] - mean) / std::sqrt(variance + 1e-5) * weight[i] + (bias.empty() ? 0 : bias[i]);
    return y;
}

// The logits after each token of a text, with the keys and values of all positions kept per layer.
std::vector<Vector> reference(const Model& m, const std::vector<std::int64_t>& tokens) {
    const std::size_t C = static_cast<std::size_t>(m.shape.width), H = static_cast<std::size_t>(m.shape.heads),
                      D = C / H;
    const std::vector<double>&wte = m.exact(m.weights.wte), &wpe = m.exact(m.weights.wpe);
    std::vector<std::vector<Vector>> cache(m.weights.blocks.size());  // [layer][position] -> q, k, v
    std::vector<Vector> logits;
    for (std::size_t t = 0; t < tokens.size(); ++t) {
        Vector x(C);
        for (std::size_t i = 0; i < C; ++i) x[i] = wte[static_cast<std::size_t>(tokens[t]) * C + i] + wpe[t * C + i];
        for (std::size_t l = 0; l < m.weights.blocks.size(); ++l) {
            const BlockWeights& b = m.weights.blocks[l];
            cache[l].push_back(product(m, b.c_attn, normalised(m, b.ln_1, x)));
            const std::size_t window = static_cast<std::size_t>(b.window);
            Vector y(C);
            for (std::size_t h = 0; h < H; ++h) {
                Vector p(t + 1);
                double total = 0;
                for (std::size_t j = 0; j <= t; ++j) {
                    double score = 0;
                    for (std::size_t i = h * D; i < (h + 1) * D; ++i) score += cache[l][t][i] * cache[l][j][C + i];
                    p[j] = window && t - j >= window ? 0 : std::exp(score / std::sqrt(static_cast<double>(D)));
                    total += p[j];
                }
                for (std::size_t j = 0; j <= t; ++j)
                    for (std::size_t i = h * D; i < (h + 1) * D; ++i) y[i] += p[j] / total * cache[l][j][2 * C + i];
            }
            const Vector attended = product(m, b.attn_proj, y);
            for (std::size_t i = 0; i < C; ++i) x[i] += attended[i];
            Vector hidden = product(m, b.c_fc, normalised(m, b.ln_2, x));
            for (double& v : hidden)
                v *= m.shape.exact_gelu
                         ? 0.5 * (1 + std::erf(v / std::sqrt(2.0)))
                         : 0.5 * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (v + 0.044715 * v * v * v)));
            const Vector out = product(m, b.mlp_proj, hidden);
            for (std::size_t i = 0; i < C; ++i) x[i] += out[i];
        }
        logits.push_back(product(m, {m.weights.head, nullptr}, normalised(m, m.weights.ln_f, x)));
    }
    return logits;
}

void compare(const Shape& shape, bool bfloat16, const char* instructions, int threads) {
    const StepKernels* const kernels = step_kernels(instructions, bfloat16);
    if (!kernels) return;  // the processor has not got them
    Model model(shape, bfloat16);
    // Row r of the cache is text r, which begins at step r: rows differ in length, and join one by one.
    constexpr std::int64_t kRows = 7;
    std::vector<std::vector<std::int64_t>> texts(kRows);
    std::vector<std::vector<Vector>> expected;
    for (auto& text : texts) {
        for (std::int64_t t = 0; t < shape.context; ++t)
            text.push_back(static_cast<std::int64_t>(model.random() % static_cast<unsigned>(shape.vocab)));
        expected.push_back(reference(model, text));
    }
    const std::size_t cache = static_cast<std::size_t>(shape.layers * kRows * shape.context * shape.width);
    const float nan = std::nanf("");  // what is not written yet must not be read
    std::vector<float> keys(cache, nan), values(cache, nan);
    double worst = 0;
    for (std::int64_t step = 0; step < shape.context + kRows; ++step) {
        std::vector<std::int64_t> tokens, rows, positions;
        for (std::int64_t row = kRows - 1; row >= 0; --row)
            if (step >= row && step - row < shape.context) {
                rows.push_back(row), positions.push_back(step - row);
                tokens.push_back(texts[static_cast<std::size_t>(row)][static_cast<std::size_t>(step - row)]);
            }
        const std::size_t n = rows.size(), V = static_cast<std::size_t>(shape.vocab);
        std::vector<float> logits(n * V + 1, 12345);
        gpt_step(model.weights, *kernels, threads, keys.data(), values.data(), kRows,
                 {tokens.data(), rows.data(), positions.data(), static_cast<std::int64_t>(n)}, logits.data());
        CHECK(logits.back() == 12345);
        for (std::size_t i = 0; i < n; ++i)
            for (std::size_t v = 0; v < V; ++v) {
                const Vector& want =
                    expected[static_cast<std::size_t>(rows[i])][static_cast<std::size_t>(positions[i])];
                const double error = std::fabs(logits[i * V + v] - want[v]);
                worst = error > worst || std::isnan(error) ? error : worst;
            }
    }
    // Logits are of the order of 1. fp32 rounds to 6e-8, a few hundred times in a row. With bf16 keys and values are
    // rounded to 2^-9 of themselves, and the logits follow: 0.037 at most here; what is wrong is wrong by 1.
    const double bound = bfloat16 ? 0.1 : 5e-5;
    if (!(worst < bound))
        std::fprintf(stderr, "%s bf16 %d width %d: %g\n", instructions, bfloat16, static_cast<int>(shape.width), worst);
    CHECK(worst < bound);
}

}  // namespace

int main() {
    const Shape shapes[] = {
        {61, 9, 2, 3, 48, 4, true, false},    // D = 16
        {130, 6, 2, 1, 37, 0, true, true},    // nothing fills a vector
        {33, 5, 3, 5, 40, 2, false, false},   // no biases; D = 8
        {257, 12, 1, 2, 144, 0, true, false}  // two full steps of four AVX-512 vectors, and 16 more
    };
    for (const Shape& shape : shapes)
        for (const bool bfloat16 : {false, true})
            for (const char* instructions : {"portable", "avx2", "avx512"})
                for (const int threads : {1, 3}) compare(shape, bfloat16, instructions, threads);
    CHECK(step_kernels("mmx", false) == nullptr);
    CHECK(step_kernels("", true) != nullptr);
    return failures();
}
