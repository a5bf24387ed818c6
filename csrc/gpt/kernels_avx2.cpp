// kernels_impl.hpp for processors with AVX2 and FMA.
#include "kernels.hpp"

#if GPTFAST_X86
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif
#include "kernels_impl.hpp"

namespace gptfast {
namespace {

struct Avx2 {
    using Vector = __m256;
    static constexpr std::int64_t kWidth = 8;
    static Vector zero() { return _mm256_setzero_ps(); }
    static Vector set(float x) { return _mm256_set1_ps(x); }
    static Vector load(const float* p) { return _mm256_loadu_ps(p); }
    static Vector load(const Bfloat16* p) {
        const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
    }
    static void store(float* p, Vector v) { _mm256_storeu_ps(p, v); }
    static Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
    static Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
    static float sum(Vector v) {
        __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
        half = _mm_add_ps(half, _mm_movehl_ps(half, half));
        return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
    }
};

}  // namespace

const StepKernels& step_kernels_avx2(bool bfloat16) { return kernels_of<Avx2>(bfloat16); }

}  // namespace gptfast
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
