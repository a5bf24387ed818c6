// What a step is made of, for one instruction set and one type of weights.
#pragma once

#include <cstdint>

#include "core/blocks_isa.hpp"

namespace gptfast {

struct StepKernels {
    // Rows [first, last) of y = weight x + bias, for `count` vectors x: weight [out, K], x [count, K], y [count, out].
    // With `add` it is added to y.
    void (*linear)(const void* weight, const void* bias, const float* x, std::int64_t count, std::int64_t K,
                   std::int64_t out, std::int64_t first, std::int64_t last, bool add, float* y);
    // LayerNorm of x [C]; bias may be null.
    void (*norm)(const void* weight, const void* bias, float eps, const float* x, std::int64_t C, float* y);
    // y [C] = row a of `left` + row b of `right`.
    void (*embed)(const void* left, std::int64_t a, const void* right, std::int64_t b, std::int64_t C, float* y);
    // x [n] into element `at` and the following ones of `to`, rounded to its type.
    void (*store)(const float* x, std::int64_t n, void* to, std::int64_t at);
    // Attention of q [D] to keys and values [first, last), which start at element `at` and lie `stride` elements apart;
    // scores [last] is scratch memory, y [D] the result.
    void (*attend)(const float* q, const void* keys, const void* values, std::int64_t at, std::int64_t stride,
                   std::int64_t first, std::int64_t last, std::int64_t D, float* scores, float* y);
    // GELU of x [n] in place, in its form with tanh.
    void (*gelu)(float* x, std::int64_t n);
};

const StepKernels& step_kernels_portable(bool bfloat16);
#if GPTFAST_X86
const StepKernels& step_kernels_avx2(bool bfloat16);
const StepKernels& step_kernels_avx512(bool bfloat16);
#endif

}  // namespace gptfast
