// The kernels of a step over vectors of floats V: included once for each instruction set.
//
// V has kWidth floats, zero(), set(x), load(p) of fp32 or bf16 at p, store(p, v), add(a, b),
// fma(a, b, c) = a b + c, and sum(v).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "core/prefetch.hpp"
#include "kernels.hpp"

namespace gptfast {
namespace {

struct Bfloat16 {
    std::uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(Bfloat16 x) {
    const std::uint32_t bits = std::uint32_t{x.bits} << 16;
    float y;
    std::memcpy(&y, &bits, sizeof y);
    return y;
}

inline void from_float(float x, float& y) { y = x; }
inline void from_float(float x, Bfloat16& y) {  // to the nearest, ties to even; a NaN stays one
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    if (std::isnan(x)) {
        y.bits = 0x7FC0;
        return;
    }
    y.bits = static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// e^x, and for x outside [-87, 88] that of the nearer end. Without a branch, so that a loop over it becomes vectors:
// the GELU of 32 rows took 0.62 ms a layer of width 384 with std::tanh, 0.03 so. Cody and Waite's reduction by ln 2 in
// two parts, and the polynomial of Cephes' expf: a relative error of 2^-23.
inline float exponential(float x) {
    const float bounded = x > -87 ? (x < 88 ? x : 88) : -87;
    const float n = (bounded * 1.44269504f + 12582912.0f) - 12582912.0f;  // rounds to a whole number
    const float r = bounded - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1;
    const std::int32_t bits = (static_cast<std::int32_t>(n) + 127) * (1 << 23);  // 2^n
    float power;
    std::memcpy(&power, &bits, sizeof power);
    return x == x ? p * power : x;  // NaN stays NaN
}

template <class V, class T>
struct Kernels {
    using Vector = typename V::Vector;
    static constexpr std::int64_t kWidth = V::kWidth;

    // The product of one row of weights with one vector. Rows are read as one stream, 8 KB ahead: that was fastest of
    // what docs/decisions.md compares.
    static float dot(const T* weight, const float* x, std::int64_t K) {
        constexpr std::int64_t kLine = 64 / sizeof(T), kAhead = 8192 / sizeof(T);
        Vector sums[4] = {V::zero(), V::zero(), V::zero(), V::zero()};  // an addition waits four cycles for the last
        std::int64_t k = 0;
        for (; k + 4 * kWidth <= K; k += 4 * kWidth) {
            for (std::int64_t i = 0; i < 4 * kWidth; i += kLine) prefetch(weight + k + i + kAhead);
            for (int i = 0; i < 4; ++i)
                sums[i] = V::fma(V::load(weight + k + i * kWidth), V::load(x + k + i * kWidth), sums[i]);
        }
        float sum = V::sum(V::add(V::add(sums[0], sums[1]), V::add(sums[2], sums[3])));
        for (; k < K; ++k) sum += to_float(weight[k]) * x[k];
        return sum;
    }

    // Four rows of weights with COUNT vectors: every weight that is loaded is used COUNT times, every x four times.
    template <int COUNT>
    static void tile(const T* weight, const float* x, std::int64_t K, std::int64_t out, float* y, bool add) {
        Vector sums[4][COUNT];
        for (int r = 0; r < 4; ++r)
            for (int c = 0; c < COUNT; ++c) sums[r][c] = V::zero();
        std::int64_t k = 0;
        for (; k + kWidth <= K; k += kWidth) {
            Vector xs[COUNT];
            for (int c = 0; c < COUNT; ++c) xs[c] = V::load(x + c * K + k);
            for (int r = 0; r < 4; ++r) {
                const T* const w = weight + r * K + k;
                prefetch(w + 4 * K);  // the next tile
                const Vector ws = V::load(w);
                for (int c = 0; c < COUNT; ++c) sums[r][c] = V::fma(ws, xs[c], sums[r][c]);
            }
        }
        for (int r = 0; r < 4; ++r)
            for (int c = 0; c < COUNT; ++c) {
                float sum = V::sum(sums[r][c]);
                for (std::int64_t i = k; i < K; ++i) sum += to_float(weight[r * K + i]) * x[c * K + i];
                y[c * out + r] = add ? y[c * out + r] + sum : sum;
            }
    }

    static void linear(const void* weight, const void* bias, const float* x, std::int64_t count, std::int64_t K,
                       std::int64_t out, std::int64_t first, std::int64_t last, bool add, float* y) {
        const T* const w = static_cast<const T*>(weight);
        std::int64_t r = first;
        if (count > 1)
            for (; r + 4 <= last; r += 4) {
                std::int64_t c = 0;
                for (; c + 4 <= count; c += 4) tile<4>(w + r * K, x + c * K, K, out, y + c * out + r, add);
                for (; c + 2 <= count; c += 2) tile<2>(w + r * K, x + c * K, K, out, y + c * out + r, add);
                for (; c < count; ++c) tile<1>(w + r * K, x + c * K, K, out, y + c * out + r, add);
            }
        for (; r < last; ++r)
            for (std::int64_t c = 0; c < count; ++c) {
                const float sum = dot(w + r * K, x + c * K, K);
                y[c * out + r] = add ? y[c * out + r] + sum : sum;
            }
        if (const T* const b = static_cast<const T*>(bias))
            for (std::int64_t c = 0; c < count; ++c)
                for (r = first; r < last; ++r) y[c * out + r] += to_float(b[r]);
    }

    static void norm(const void* weight, const void* bias, float eps, const float* x, std::int64_t C, float* y) {
        const T* const w = static_cast<const T*>(weight);
        const T* const b = static_cast<const T*>(bias);
        double sum = 0, squares = 0;
        for (std::int64_t i = 0; i < C; ++i) sum += x[i];
        const double mean = sum / static_cast<double>(C);
        for (std::int64_t i = 0; i < C; ++i) squares += (x[i] - mean) * (x[i] - mean);
        const float rstd = static_cast<float>(1 / std::sqrt(squares / static_cast<double>(C) + eps));
        const float centre = static_cast<float>(mean);
        for (std::int64_t i = 0; i < C; ++i)
            y[i] = (x[i] - centre) * rstd * to_float(w[i]) + (b ? to_float(b[i]) : 0.0f);
    }

    static void embed(const void* left, std::int64_t a, const void* right, std::int64_t b, std::int64_t C, float* y) {
        const T* const l = static_cast<const T*>(left) + a * C;
        const T* const r = static_cast<const T*>(right) + b * C;
        for (std::int64_t i = 0; i < C; ++i) y[i] = to_float(l[i]) + to_float(r[i]);
    }

    static void store(const float* x, std::int64_t n, void* to, std::int64_t at) {
        T* const y = static_cast<T*>(to) + at;
        for (std::int64_t i = 0; i < n; ++i) from_float(x[i], y[i]);
    }

    static void attend(const float* q, const void* keys, const void* values, std::int64_t at, std::int64_t stride,
                       std::int64_t first, std::int64_t last, std::int64_t D, float* scores, float* y) {
        const T* const k = static_cast<const T*>(keys) + at;
        const T* const v = static_cast<const T*>(values) + at;
        const float scale = 1 / std::sqrt(static_cast<float>(D));
        float most = -INFINITY;
        for (std::int64_t j = first; j < last; ++j) {
            Vector sums = V::zero();
            std::int64_t i = 0;
            for (; i + kWidth <= D; i += kWidth) sums = V::fma(V::load(k + j * stride + i), V::load(q + i), sums);
            float score = V::sum(sums);
            for (; i < D; ++i) score += to_float(k[j * stride + i]) * q[i];
            scores[j] = score * scale;
            most = scores[j] > most || std::isnan(scores[j]) ? scores[j] : most;
        }
        for (std::int64_t j = first; j < last; ++j) scores[j] = exponential(scores[j] - most);
        float total = 0;
        for (std::int64_t j = first; j < last; ++j) total += scores[j];
        for (std::int64_t i = 0; i < D; ++i) y[i] = 0;
        for (std::int64_t j = first; j < last; ++j) {
            const float p = scores[j] / total;
            const Vector ps = V::set(p);
            std::int64_t i = 0;
            for (; i + kWidth <= D; i += kWidth)
                V::store(y + i, V::fma(V::load(v + j * stride + i), ps, V::load(y + i)));
            for (; i < D; ++i) y[i] += to_float(v[j * stride + i]) * p;
        }
    }

    static void gelu(float* x, std::int64_t n) {  // x / 2 (1 + tanh(z)) = x / (1 + e^(-2z))
        for (std::int64_t i = 0; i < n; ++i)
            x[i] /= 1 + exponential(-1.59576912f * (x[i] + 0.044715f * x[i] * x[i] * x[i]));
    }

    static constexpr StepKernels kTable = {linear, norm, embed, store, attend, gelu};
};

template <class V>
const StepKernels& kernels_of(bool bfloat16) {
    return bfloat16 ? Kernels<V, Bfloat16>::kTable : Kernels<V, float>::kTable;
}

}  // namespace
}  // namespace gptfast
