// kernels_impl.hpp for processors with AVX-512.
#include "kernels.hpp"

#if GPTFAST_X86
#if defined(__GNUC__) && !defined(__clang__)  // in the compiler's own header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f"))), apply_to = function)
#else
#pragma GCC target("avx512f")
#endif
#include "kernels_impl.hpp"

namespace gptfast {
namespace {

struct Avx512 {
    using Vector = __m512;
    static constexpr std::int64_t kWidth = 16;
    static Vector zero() { return _mm512_setzero_ps(); }
    static Vector set(float x) { return _mm512_set1_ps(x); }
    static Vector load(const float* p) { return _mm512_loadu_ps(p); }
    static Vector load(const Bfloat16* p) {
        const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
    static void store(float* p, Vector v) { _mm512_storeu_ps(p, v); }
    static Vector add(Vector a, Vector b) { return _mm512_add_ps(a, b); }
    static Vector fma(Vector a, Vector b, Vector c) { return _mm512_fmadd_ps(a, b, c); }
    static float sum(Vector v) { return _mm512_reduce_add_ps(v); }
};

}  // namespace

const StepKernels& step_kernels_avx512(bool bfloat16) { return kernels_of<Avx512>(bfloat16); }

}  // namespace gptfast
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
