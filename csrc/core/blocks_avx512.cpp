// blocks.cpp for processors with AVX-512.
#include "blocks_isa.hpp"

#if GPTFAST_X86
#include <immintrin.h>

#include <cstdint>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,bmi,bmi2")
#endif
#include "blocks_impl.hpp"

namespace gptfast {
namespace {

struct Avx512 {
    using Vector = __m512i;
    static GPTFAST_INLINE Vector load(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
    static GPTFAST_INLINE Vector set(int b) { return _mm512_set1_epi8(static_cast<char>(b)); }
    static GPTFAST_INLINE Vector lower(Vector v) { return _mm512_or_si512(v, set(0x20)); }
    static GPTFAST_INLINE Mask between(Vector v, int low, int high) {
        return _mm512_cmple_epu8_mask(_mm512_sub_epi8(v, set(low)), set(high - low));
    }
    static GPTFAST_INLINE Mask equal(Vector v, int b) { return _mm512_cmpeq_epi8_mask(v, set(b)); }
    static GPTFAST_INLINE Mask high(Vector v) { return _mm512_movepi8_mask(v); }
};

}  // namespace

BlockFunction block_function_avx512(Pattern pattern) { return pick<Avx512, 64>(pattern); }

}  // namespace gptfast
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
