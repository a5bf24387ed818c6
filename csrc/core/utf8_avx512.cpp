// utf8_impl.hpp for processors with AVX-512.
#include "utf8_isa.hpp"

#if GPTFAST_X86
#include <immintrin.h>

#include <cstddef>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl")
#endif
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in the compiler's own header
#endif
#include "utf8_impl.hpp"

namespace gptfast {
namespace {

struct Avx512 {
    using Vector = __m512i;
    static constexpr int kBytes = 64;
    static Vector load(const std::uint8_t* p) { return _mm512_loadu_si512(p); }
    static Vector table(const std::uint8_t* p) {
        return _mm512_maskz_broadcast_i32x4(0xFFFF, _mm_load_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static Vector set(int b) { return _mm512_set1_epi8(static_cast<char>(b)); }
    static Vector look_up(Vector table, Vector index) { return _mm512_shuffle_epi8(table, index); }
    static Vector high_half(Vector v) { return _mm512_and_si512(_mm512_srli_epi16(v, 4), set(0x0F)); }
    template <int kCount>
    static Vector shift(Vector before, Vector v) {
        return _mm512_alignr_epi8(v, _mm512_alignr_epi64(v, before, 6), 16 - kCount);
    }
    static Vector less(Vector v, int b) { return _mm512_subs_epu8(v, set(b)); }
    static Vector both(Vector a, Vector b) { return _mm512_and_si512(a, b); }
    static Vector either(Vector a, Vector b) { return _mm512_or_si512(a, b); }
    static Vector differ(Vector a, Vector b) { return _mm512_xor_si512(a, b); }
    static bool any(Vector v) { return _mm512_test_epi64_mask(v, v) != 0; }
};

}  // namespace

const std::uint8_t* well_formed_avx512(const std::uint8_t* p, const std::uint8_t* end) {
    return well_formed<Avx512>(p, end);
}

}  // namespace gptfast
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
