// transcode_impl.hpp for processors with AVX2.
#include "transcode_isa.hpp"

#if GPTFAST_X86
#include <immintrin.h>

#include <cstring>
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,popcnt"))), apply_to = function)
#else
#pragma GCC target("avx2,popcnt")
#endif
#include "transcode_impl.hpp"

namespace gptfast {
namespace {

// Shuffles that move the last `n` bytes of each of four 32-bit lanes together, n - 1 being bit i of the index for lane
// i plus twice bit 4 + i.
struct Shuffles {
    std::uint8_t of[256][16];
    std::uint8_t size[256];
};

constexpr Shuffles make_shuffles() {
    Shuffles shuffles{};
    for (int index = 0; index < 256; ++index) {
        int at = 0;
        for (int lane = 0; lane < 4; ++lane) {
            const int extra = (index >> lane & 1) + 2 * (index >> (4 + lane) & 1);
            for (int byte = 3 - extra; byte < 4; ++byte)
                shuffles.of[index][at++] = static_cast<std::uint8_t>(4 * lane + byte);
        }
        shuffles.size[index] = static_cast<std::uint8_t>(at);
    }
    return shuffles;
}

alignas(64) constexpr Shuffles kShuffles = make_shuffles();

struct Avx2 {
    static constexpr std::size_t kNarrow = 32, kEncode = 8;

    static __m256i load(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
    static __m256i set(std::uint32_t c) { return _mm256_set1_epi32(static_cast<int>(c)); }
    static bool any(__m256i v, __m256i mask) { return !_mm256_testz_si256(v, mask); }

    static bool narrow(const std::uint8_t* p, std::uint8_t* out) {
        const __m256i v = load(p);
        if (_mm256_movemask_epi8(v)) return false;
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), v);
        return true;
    }
    static bool narrow(const std::uint16_t* p, std::uint8_t* out) {
        const __m256i a = load(p), b = load(p + 16);
        if (any(_mm256_or_si256(a, b), set(0xFF80FF80))) return false;
        const __m256i bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(a, b), 0xD8);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), bytes);
        return true;
    }
    static bool narrow(const std::uint32_t* p, std::uint8_t* out) {
        const __m256i a = load(p), b = load(p + 8), c = load(p + 16), d = load(p + 24);
        if (any(_mm256_or_si256(_mm256_or_si256(a, b), _mm256_or_si256(c, d)), set(0xFFFFFF80))) return false;
        const __m256i halves = _mm256_packus_epi16(_mm256_packus_epi32(a, b), _mm256_packus_epi32(c, d));
        const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), _mm256_permutevar8x32_epi32(halves, order));
        return true;
    }

    static __m256i widen(const std::uint8_t* p) {
        return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
    }
    static __m256i widen(const std::uint16_t* p) {
        return _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
    }
    static __m256i widen(const std::uint32_t* p) { return load(p); }
    static unsigned lanes(__m256i v) { return static_cast<unsigned>(_mm256_movemask_ps(_mm256_castsi256_ps(v))); }
    static std::size_t put_four(__m128i bytes, unsigned index, std::uint8_t* out) {
        const __m128i shuffle = _mm_load_si128(reinterpret_cast<const __m128i*>(kShuffles.of[index]));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(out), _mm_shuffle_epi8(bytes, shuffle));
        return kShuffles.size[index];
    }

    template <class Unit>
    static std::size_t encode(const Unit* p, std::uint8_t* out) {
        const __m256i c = widen(p);
        if (sizeof(Unit) > 1 && lanes(_mm256_cmpeq_epi32(_mm256_and_si256(c, set(0xFFFFF800)), set(0xD800))))
            return kSurrogate;
        const __m256i wide = _mm256_cmpgt_epi32(c, set(0x7F)), more = _mm256_cmpgt_epi32(c, set(0x7FF)),
                      most = _mm256_cmpgt_epi32(c, set(0xFFFF));
        // Six bits a byte, the last byte highest.
        const __m256i low =
            _mm256_or_si256(_mm256_slli_epi32(c, 24), _mm256_slli_epi32(_mm256_and_si256(c, set(0xFC0)), 10));
        const __m256i high =
            _mm256_or_si256(_mm256_srli_epi32(_mm256_and_si256(c, set(0x3F000)), 4), _mm256_srli_epi32(c, 18));
        const __m256i spread = _mm256_and_si256(_mm256_or_si256(low, high), set(0x3F3F3F3F));
        const __m256i mark = _mm256_xor_si256(
            _mm256_xor_si256(_mm256_and_si256(wide, set(kMark2)), _mm256_and_si256(more, set(kMark2 ^ kMark3))),
            _mm256_and_si256(most, set(kMark3 ^ kMark4)));
        const __m256i bytes = _mm256_blendv_epi8(_mm256_slli_epi32(c, 24), _mm256_or_si256(spread, mark), wide);
        // The bytes after the first in binary: 1 or 3, and 2 or 3.
        const unsigned odd = lanes(_mm256_xor_si256(_mm256_xor_si256(wide, more), most)), two = lanes(more);
        const std::size_t size = put_four(_mm256_castsi256_si128(bytes), (odd & 15) | (two & 15) << 4, out);
        return size + put_four(_mm256_extracti128_si256(bytes, 1), odd >> 4 | (two & 0xF0), out + size);
    }
};

}  // namespace

std::size_t to_utf8_avx2(int kind, const void* text, std::size_t length, std::uint8_t* out) {
    return to_utf8_of<Avx2>(kind, text, length, out);
}

}  // namespace gptfast
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
