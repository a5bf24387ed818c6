// The block functions of every compiler's baseline, and which one a processor gets.
#include "blocks.hpp"

#include <cstring>
#include <initializer_list>

#include "blocks_isa.hpp"

#if GPTFAST_X86
#include <emmintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif
#include "blocks_impl.hpp"

namespace gptfast {
namespace {

struct Portable {
    using Vector = std::uint8_t;
    static Vector load(const std::uint8_t* p) { return *p; }
    static Vector lower(Vector v) { return v | 0x20; }
    static bool between(Vector v, std::uint8_t low, std::uint8_t high) { return v >= low && v <= high; }
    static bool equal(Vector v, std::uint8_t b) { return v == b; }
    static bool high(Vector v) { return v >= 0x80; }
};

#if GPTFAST_X86
struct Sse2 {
    using Vector = __m128i;
    static GPTFAST_INLINE Vector load(const std::uint8_t* p) {
        return _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    }
    static GPTFAST_INLINE Vector set(int b) { return _mm_set1_epi8(static_cast<char>(b)); }
    static GPTFAST_INLINE std::uint16_t mask(Vector v) { return static_cast<std::uint16_t>(_mm_movemask_epi8(v)); }
    static GPTFAST_INLINE Vector lower(Vector v) { return _mm_or_si128(v, set(0x20)); }
    static GPTFAST_INLINE std::uint16_t between(Vector v, int low, int high) {
        const Vector moved = _mm_sub_epi8(v, set(low));
        return mask(_mm_cmpeq_epi8(_mm_min_epu8(moved, set(high - low)), moved));
    }
    static GPTFAST_INLINE std::uint16_t equal(Vector v, int b) { return mask(_mm_cmpeq_epi8(v, set(b))); }
    static GPTFAST_INLINE std::uint16_t high(Vector v) { return mask(v); }
};
#elif defined(__aarch64__)
struct Neon {
    using Vector = uint8x16_t;
    static GPTFAST_INLINE Vector load(const std::uint8_t* p) { return vld1q_u8(p); }
    static GPTFAST_INLINE Vector set(int b) { return vdupq_n_u8(static_cast<std::uint8_t>(b)); }
    static GPTFAST_INLINE std::uint16_t mask(Vector v) {
        const uint8x16_t bits = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
        const uint8x16_t kept = vandq_u8(v, bits);
        return static_cast<std::uint16_t>(vaddv_u8(vget_low_u8(kept)) | vaddv_u8(vget_high_u8(kept)) << 8);
    }
    static GPTFAST_INLINE Vector lower(Vector v) { return vorrq_u8(v, set(0x20)); }
    static GPTFAST_INLINE std::uint16_t between(Vector v, int low, int high) {
        return mask(vcleq_u8(vsubq_u8(v, set(low)), set(high - low)));
    }
    static GPTFAST_INLINE std::uint16_t equal(Vector v, int b) { return mask(vceqq_u8(v, set(b))); }
    static GPTFAST_INLINE std::uint16_t high(Vector v) { return mask(vcgeq_u8(v, set(0x80))); }
};
#endif

BlockFunction fastest(Pattern pattern) {
    for (const char* name : {"avx512", "avx2", "sse2", "neon"})
        if (const BlockFunction found = block_function(pattern, name)) return found;
    return block_function(pattern, "portable");
}

}  // namespace

BlockFunction block_function(Pattern pattern, const char* instructions) {
    const auto named = [instructions](const char* name) { return std::strcmp(instructions, name) == 0; };
    if (named("portable")) return pick<Portable, 1>(pattern);
#if GPTFAST_X86
    if (named("sse2")) return pick<Sse2, 16>(pattern);
    const bool bmi2 = __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    if (named("avx2") && bmi2 && __builtin_cpu_supports("avx2")) return block_function_avx2(pattern);
    if (named("avx512") && bmi2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return block_function_avx512(pattern);
#elif defined(__aarch64__)
    if (named("neon")) return pick<Neon, 16>(pattern);
#endif
    return nullptr;
}

BlockFunction block_function(Pattern pattern) {
    static const BlockFunction functions[] = {fastest(Pattern::kGpt2), fastest(Pattern::kCl100k),
                                              fastest(Pattern::kO200k), nullptr};
    return functions[static_cast<int>(pattern)];
}

}  // namespace gptfast
