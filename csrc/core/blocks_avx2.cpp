// blocks.cpp for processors with AVX2.
#include "blocks_isa.hpp"

#if GPTFAST_X86
#include <immintrin.h>

#include <cstdint>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,bmi,bmi2")
#endif
#include "blocks_impl.hpp"

namespace gptfast {
namespace {

struct Avx2 {
    using Vector = __m256i;
    static GPTFAST_INLINE Vector load(const std::uint8_t* p) {
        return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    }
    static GPTFAST_INLINE Vector set(int b) { return _mm256_set1_epi8(static_cast<char>(b)); }
    static GPTFAST_INLINE std::uint32_t mask(Vector v) { return static_cast<std::uint32_t>(_mm256_movemask_epi8(v)); }
    static GPTFAST_INLINE Vector lower(Vector v) { return _mm256_or_si256(v, set(0x20)); }
    static GPTFAST_INLINE std::uint32_t between(Vector v, int low, int high) {
        const Vector moved = _mm256_sub_epi8(v, set(low));
        return mask(_mm256_cmpeq_epi8(_mm256_min_epu8(moved, set(high - low)), moved));
    }
    static GPTFAST_INLINE std::uint32_t equal(Vector v, int b) { return mask(_mm256_cmpeq_epi8(v, set(b))); }
    static GPTFAST_INLINE std::uint32_t high(Vector v) { return mask(v); }
};

}  // namespace

BlockFunction block_function_avx2(Pattern pattern) { return pick<Avx2, 32>(pattern); }

}  // namespace gptfast
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
