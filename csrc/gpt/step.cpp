#include "step.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>

#include "team.hpp"

namespace gptfast {
namespace {

struct Range {
    std::int64_t first, last;
};

// A member's part of `count` rows of weights, in whole tiles of 4.
Range part(std::int64_t count, const Member& member) {
    const std::int64_t tiles = (count + 3) / 4, i = member.index, n = member.count;
    return {std::min(count, tiles * i / n * 4), std::min(count, tiles * (i + 1) / n * 4)};
}

void exact_gelu(float* x, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) x[i] *= 0.5f * (1 + std::erf(x[i] * 0.70710678f));
}

// What one step needs beside the model. x: the residual stream.
struct Step {
    const GptWeights& model;
    const StepKernels& kernels;
    void *keys, *values;
    std::int64_t cache_rows;
    const StepRows& rows;
    float* logits;
    std::vector<float> x, qkv, y, hidden;  // [count, C], [count, 3C], [count, C], [count, 4C]
    std::vector<float> own;                // [members, count * C + context]

    void run(const Member& member) {
        const std::int64_t C = model.width, n = rows.count;
        float* const normed = own.data() + member.index * (n * C + model.context);  // [count, C]
        float* const scores = normed + n * C;                                       // [context]
        const auto norm = [&](const NormWeights& w) {  // every member for itself: cheaper than to meet
            for (std::int64_t i = 0; i < n; ++i)
                kernels.norm(w.weight, w.bias, model.eps, x.data() + i * C, C, normed + i * C);
        };
        const auto linear = [&](const LinearWeights& w, const float* in, std::int64_t K, std::int64_t out, bool add,
                                float* to) {
            const Range mine = part(out, member);
            kernels.linear(w.weight, w.bias, in, n, K, out, mine.first, mine.last, add, to);
            return mine;
        };
        for (std::size_t layer = 0; layer < model.blocks.size(); ++layer) {
            const BlockWeights& block = model.blocks[layer];
            norm(block.ln_1);
            linear(block.c_attn, normed, C, 3 * C, false, qkv.data());
            member.meet();
            attention(static_cast<std::int64_t>(layer), block.window, member, scores);
            member.meet();
            linear(block.attn_proj, y.data(), C, C, true, x.data());
            member.meet();
            norm(block.ln_2);
            const Range mine = linear(block.c_fc, normed, C, model.hidden, false, hidden.data());
            const auto gelu = model.exact_gelu ? exact_gelu : kernels.gelu;
            for (std::int64_t i = 0; i < n; ++i)
                gelu(hidden.data() + i * model.hidden + mine.first, mine.last - mine.first);
            member.meet();
            linear(block.mlp_proj, hidden.data(), model.hidden, C, true, x.data());
            member.meet();
        }
        norm(model.ln_f);
        linear({model.head, nullptr}, normed, C, model.vocab, false, logits);
    }

    // A member's heads of all rows: their keys and values into the cache, then y.
    void attention(std::int64_t layer, std::int64_t window, const Member& member, float* scores) {
        const std::int64_t C = model.width, H = model.heads, D = C / H, units = rows.count * H;
        const std::int64_t end = units * (member.index + 1) / member.count;
        for (std::int64_t unit = units * member.index / member.count; unit < end; ++unit) {
            const std::int64_t i = unit / H, h = unit % H, position = rows.position[i];
            const float* const q = qkv.data() + i * 3 * C + h * D;
            const std::int64_t at = (layer * cache_rows + rows.row[i]) * model.context * C + h * D;
            kernels.store(q + C, D, keys, at + position * C);
            kernels.store(q + 2 * C, D, values, at + position * C);
            const std::int64_t first = window ? std::max<std::int64_t>(0, position + 1 - window) : 0;
            kernels.attend(q, keys, values, at, C, first, position + 1, D, scores, y.data() + i * C + h * D);
        }
    }
};

}  // namespace

const StepKernels* step_kernels(const char* instructions, bool bfloat16) {
    const std::string name = instructions;
#if GPTFAST_X86
    if (name.empty() || name == "avx512")
        if (__builtin_cpu_supports("avx512f")) return &step_kernels_avx512(bfloat16);
    if (name.empty() || name == "avx2")
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &step_kernels_avx2(bfloat16);
#endif
    return name.empty() || name == "portable" ? &step_kernels_portable(bfloat16) : nullptr;
}

void gpt_step(const GptWeights& model, const StepKernels& kernels, int threads, void* keys, void* values,
              std::int64_t cache_rows, const StepRows& rows, float* logits) {
    const std::int64_t C = model.width, n = rows.count;
    Step step{model, kernels, keys, values, cache_rows, rows, logits, {}, {}, {}, {}, {}};
    // All memory before the members begin: they must not throw.
    step.x.resize(static_cast<std::size_t>(n * C));
    step.qkv.resize(static_cast<std::size_t>(n * 3 * C));
    step.y.resize(static_cast<std::size_t>(n * C));
    step.hidden.resize(static_cast<std::size_t>(n * model.hidden));
    step.own.resize(static_cast<std::size_t>(std::max(threads, 1) * (n * C + model.context)));
    for (std::int64_t i = 0; i < n; ++i)
        kernels.embed(model.wte, rows.token[i], model.wpe, rows.position[i], C, step.x.data() + i * C);
    run_team(threads, [&](const Member& member) { step.run(member); });
}

}  // namespace gptfast
