// utf8_impl.hpp for processors with AVX2.
#include "utf8_isa.hpp"

#if GPTFAST_X86
#include <immintrin.h>

#include <cstddef>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC target("avx2")
#endif
#include "utf8_impl.hpp"

namespace gptfast {
namespace {

struct Avx2 {
    using Vector = __m256i;
    static constexpr int kBytes = 32;
    static Vector load(const std::uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
    static Vector table(const std::uint8_t* p) {
        return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static Vector set(int b) { return _mm256_set1_epi8(static_cast<char>(b)); }
    static Vector look_up(Vector table, Vector index) { return _mm256_shuffle_epi8(table, index); }
    static Vector high_half(Vector v) { return _mm256_and_si256(_mm256_srli_epi16(v, 4), set(0x0F)); }
    template <int kCount>
    static Vector shift(Vector before, Vector v) {
        return _mm256_alignr_epi8(v, _mm256_permute2x128_si256(before, v, 0x21), 16 - kCount);
    }
    static Vector less(Vector v, int b) { return _mm256_subs_epu8(v, set(b)); }
    static Vector both(Vector a, Vector b) { return _mm256_and_si256(a, b); }
    static Vector either(Vector a, Vector b) { return _mm256_or_si256(a, b); }
    static Vector differ(Vector a, Vector b) { return _mm256_xor_si256(a, b); }
    static bool any(Vector v) { return !_mm256_testz_si256(v, v); }
};

}  // namespace

const std::uint8_t* well_formed_avx2(const std::uint8_t* p, const std::uint8_t* end) {
    return well_formed<Avx2>(p, end);
}

}  // namespace gptfast
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
