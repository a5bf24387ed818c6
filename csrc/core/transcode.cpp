// to_utf8 of every compiler's baseline, and which one a processor gets.
#include "transcode.hpp"

#include <cstring>
#include <initializer_list>

#include "transcode_isa.hpp"

#if GPTFAST_X86
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#include "transcode_impl.hpp"

namespace gptfast {
namespace {

struct Portable {
    static constexpr std::size_t kNarrow = 32, kEncode = 32;

    template <class Unit>
    static bool narrow(const Unit* p, std::uint8_t* out) {
        Unit all = 0;
        for (std::size_t i = 0; i < kNarrow; ++i) all = static_cast<Unit>(all | p[i]);
        if (all > 0x7F) return false;
        for (std::size_t i = 0; i < kNarrow; ++i) out[i] = static_cast<std::uint8_t>(p[i]);
        return true;
    }
    template <class Unit>
    static std::size_t encode(const Unit* p, std::uint8_t* out) {
        const std::uint8_t* const begin = out;
        bool surrogate = false;
        for (std::size_t i = 0; i < kEncode; ++i) {
            surrogate |= is_surrogate(p[i]);
            out += put(p[i], out);
        }
        return surrogate ? kSurrogate : static_cast<std::size_t>(out - begin);
    }
};

// With vectors of 16 bytes. `V` gives load, store, either, any and pack: the even bytes of two vectors, where the odd
// ones are 0.
template <class V>
struct Vectors : Portable {
    template <class Unit>
    static bool narrow(const Unit* p, std::uint8_t* out) {
        constexpr std::size_t kCount = 2 * sizeof(Unit);
        typename V::Vector v[kCount];
        for (std::size_t i = 0; i < kCount; ++i) v[i] = V::load(reinterpret_cast<const std::uint8_t*>(p) + 16 * i);
        typename V::Vector all = v[0];
        for (std::size_t i = 1; i < kCount; ++i) all = V::either(all, v[i]);
        if (V::any(all, sizeof(Unit) == 1 ? 0x80808080 : sizeof(Unit) == 2 ? 0xFF80FF80 : 0xFFFFFF80)) return false;
        for (std::size_t count = kCount / 2; count > 1; count /= 2)
            for (std::size_t i = 0; i < count; ++i) v[i] = V::pack(v[2 * i], v[2 * i + 1]);
        V::store(out, v[0]);
        V::store(out + 16, v[1]);
        return true;
    }
};

#if GPTFAST_X86
struct Sse2 {
    using Vector = __m128i;
    static Vector load(const std::uint8_t* p) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)); }
    static void store(std::uint8_t* p, Vector v) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), v); }
    static Vector either(Vector a, Vector b) { return _mm_or_si128(a, b); }
    static bool any(Vector v, std::uint32_t mask) {
        const Vector kept = _mm_and_si128(v, _mm_set1_epi32(static_cast<int>(mask)));
        return _mm_movemask_epi8(_mm_cmpeq_epi8(kept, _mm_setzero_si128())) != 0xFFFF;
    }
    static Vector pack(Vector a, Vector b) { return _mm_packus_epi16(a, b); }
};
using Baseline = Vectors<Sse2>;
constexpr const char* kBaseline = "sse2";
#elif defined(__aarch64__)
struct Neon {
    using Vector = uint8x16_t;
    static Vector load(const std::uint8_t* p) { return vld1q_u8(p); }
    static void store(std::uint8_t* p, Vector v) { vst1q_u8(p, v); }
    static Vector either(Vector a, Vector b) { return vorrq_u8(a, b); }
    static bool any(Vector v, std::uint32_t mask) {
        return vmaxvq_u8(vandq_u8(v, vreinterpretq_u8_u32(vdupq_n_u32(mask)))) != 0;
    }
    static Vector pack(Vector a, Vector b) { return vuzp1q_u8(a, b); }
};
using Baseline = Vectors<Neon>;
constexpr const char* kBaseline = "neon";
#else
using Baseline = Portable;
constexpr const char* kBaseline = "portable";
#endif

TranscodeFunction fastest() {
    for (const char* name : {"avx512", "avx2"})
        if (const TranscodeFunction found = transcode_function(name)) return found;
    return to_utf8_of<Baseline>;
}

}  // namespace

TranscodeFunction transcode_function(const char* instructions) {
    const auto named = [instructions](const char* name) { return std::strcmp(instructions, name) == 0; };
    if (named("portable")) return to_utf8_of<Portable>;
    if (named(kBaseline)) return to_utf8_of<Baseline>;
#if GPTFAST_X86
    if (named("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("popcnt")) return to_utf8_avx2;
    if (named("avx512") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("popcnt"))
        return to_utf8_avx512;
#endif
    return nullptr;
}

std::size_t utf8_capacity(int kind, std::size_t length) {
    return length * (kind == 1 ? 2 : kind == 2 ? 3 : 4) + kSlack;
}

std::size_t to_utf8(int kind, const void* text, std::size_t length, std::uint8_t* out) {
    static const TranscodeFunction function = fastest();
    return function(kind, text, length, out);
}

}  // namespace gptfast
