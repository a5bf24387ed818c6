// transcode_impl.hpp for processors with AVX-512 and VBMI2, which packs bytes.
#include "transcode_isa.hpp"

#if GPTFAST_X86
#include <immintrin.h>

#include <cstring>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512vbmi2,popcnt")
#endif
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in the compiler's own header
#endif
#include "transcode_impl.hpp"

namespace gptfast {
namespace {

struct Avx512 {
    static constexpr std::size_t kNarrow = 32, kEncode = 16;

    static __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
    static __m512i set(std::uint32_t c) { return _mm512_set1_epi32(static_cast<int>(c)); }

    static bool narrow(const std::uint8_t* p, std::uint8_t* out) {
        const __m256i v = load(p);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), v);
        return _mm256_movepi8_mask(v) == 0;
    }
    static bool narrow(const std::uint16_t* p, std::uint8_t* out) {
        const __m512i v = _mm512_loadu_si512(p);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm512_cvtepi16_epi8(v));
        return _mm512_test_epi32_mask(v, set(0xFF80FF80)) == 0;
    }
    static bool narrow(const std::uint32_t* p, std::uint8_t* out) {
        const __m512i a = _mm512_loadu_si512(p), b = _mm512_loadu_si512(p + 16);
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(a));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out + 16), _mm512_cvtepi32_epi8(b));
        return _mm512_test_epi32_mask(_mm512_or_si512(a, b), set(0xFFFFFF80)) == 0;
    }

    static __m512i widen(const std::uint8_t* p) {
        return _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static __m512i widen(const std::uint16_t* p) { return _mm512_cvtepu16_epi32(load(p)); }
    static __m512i widen(const std::uint32_t* p) { return _mm512_loadu_si512(p); }

    template <class Unit>
    static std::size_t encode(const Unit* p, std::uint8_t* out) {
        const __m512i c = widen(p);
        if (sizeof(Unit) > 1 && _mm512_cmpeq_epi32_mask(_mm512_and_si512(c, set(0xFFFFF800)), set(0xD800)))
            return kSurrogate;
        const __mmask16 wide = _mm512_cmpgt_epu32_mask(c, set(0x7F)), more = _mm512_cmpgt_epu32_mask(c, set(0x7FF)),
                        most = _mm512_cmpgt_epu32_mask(c, set(0xFFFF));
        // Six bits a byte, the last byte highest.
        const __m512i last = _mm512_slli_epi32(c, 24);
        const __m512i low = _mm512_or_si512(last, _mm512_slli_epi32(_mm512_and_si512(c, set(0xFC0)), 10));
        const __m512i high =
            _mm512_or_si512(_mm512_srli_epi32(_mm512_and_si512(c, set(0x3F000)), 4), _mm512_srli_epi32(c, 18));
        const __m512i spread = _mm512_and_si512(_mm512_or_si512(low, high), set(0x3F3F3F3F));
        const __m512i mark =
            _mm512_mask_mov_epi32(_mm512_mask_mov_epi32(set(kMark2), more, set(kMark3)), most, set(kMark4));
        const __m512i bytes = _mm512_mask_or_epi32(last, wide, spread, mark);
        // The bytes that count are the last of each code point and those with the high bit.
        const __mmask64 counted = _mm512_movepi8_mask(bytes) | 0x8888888888888888;
        _mm512_storeu_si512(out, _mm512_maskz_compress_epi8(counted, bytes));
        return static_cast<std::size_t>(__builtin_popcountll(counted));
    }
};

}  // namespace

std::size_t to_utf8_avx512(int kind, const void* text, std::size_t length, std::uint8_t* out) {
    return to_utf8_of<Avx512>(kind, text, length, out);
}

}  // namespace gptfast
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
