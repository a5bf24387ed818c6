#include "utf8.hpp"

#include <cstring>
#include <initializer_list>

#include "utf8_isa.hpp"
#if defined(__aarch64__)
#include <arm_neon.h>

#include "utf8_impl.hpp"
#endif

namespace gptfast {
namespace {

#if defined(__aarch64__)
struct Neon {
    using Vector = uint8x16_t;
    static constexpr int kBytes = 16;
    static Vector load(const std::uint8_t* p) { return vld1q_u8(p); }
    static Vector table(const std::uint8_t* p) { return vld1q_u8(p); }
    static Vector set(int b) { return vdupq_n_u8(static_cast<std::uint8_t>(b)); }
    static Vector look_up(Vector table, Vector index) { return vqtbl1q_u8(table, index); }
    static Vector high_half(Vector v) { return vshrq_n_u8(v, 4); }
    template <int kCount>
    static Vector shift(Vector before, Vector v) {
        return vextq_u8(before, v, 16 - kCount);
    }
    static Vector less(Vector v, int b) { return vqsubq_u8(v, set(b)); }
    static Vector both(Vector a, Vector b) { return vandq_u8(a, b); }
    static Vector either(Vector a, Vector b) { return vorrq_u8(a, b); }
    static Vector differ(Vector a, Vector b) { return veorq_u8(a, b); }
    static bool any(Vector v) { return vmaxvq_u8(v) != 0; }
};
#endif

struct Lead {
    int missing;  // continuation bytes that must follow; 0 for a byte that cannot start a multi-byte sequence
    std::uint8_t low, high;
};

// The table of well-formed sequences (Unicode 15, table 3-7). The bounds of the second byte alone exclude
// overlong forms (E0, F0), surrogates (ED) and code points past U+10FFFF (F4).
Lead lead(std::uint8_t byte) {
    if (byte < 0xC2) return {0, 0, 0};
    if (byte < 0xE0) return {1, 0x80, 0xBF};
    if (byte < 0xF0)
        return {2, byte == 0xE0 ? std::uint8_t{0xA0} : std::uint8_t{0x80},
                byte == 0xED ? std::uint8_t{0x9F} : std::uint8_t{0xBF}};
    if (byte < 0xF5)
        return {3, byte == 0xF0 ? std::uint8_t{0x90} : std::uint8_t{0x80},
                byte == 0xF4 ? std::uint8_t{0x8F} : std::uint8_t{0xBF}};
    return {0, 0, 0};
}

// The first byte in [p, end) that is not ASCII, or end. Thirty-two bytes a step: four words whose high bits are tested
// together, which compilers turn into vector instructions.
const std::uint8_t* skip_ascii(const std::uint8_t* p, const std::uint8_t* end) {
    constexpr std::uint64_t kHighBits = 0x8080808080808080;
    while (end - p >= 32) {
        std::uint64_t word[4];
        std::memcpy(word, p, sizeof word);
        if ((word[0] | word[1] | word[2] | word[3]) & kHighBits) break;
        p += 32;
    }
    while (p != end && *p < 0x80) ++p;
    return p;
}

}  // namespace

WellFormedFunction well_formed_function(const char* instructions) {
    [[maybe_unused]] const auto named = [instructions](const char* name) {
        return std::strcmp(instructions, name) == 0;
    };
#if GPTFAST_X86
    if (named("avx2") && __builtin_cpu_supports("avx2")) return well_formed_avx2;
    if (named("avx512") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return well_formed_avx512;
#elif defined(__aarch64__)
    if (named("neon")) return well_formed<Neon>;
#endif
    return nullptr;
}

WellFormedFunction well_formed_function() {
    static const WellFormedFunction function = [] {
        for (const char* name : {"avx512", "avx2", "neon"})
            if (const WellFormedFunction found = well_formed_function(name)) return found;
        return WellFormedFunction{nullptr};
    }();
    return function;
}

std::int64_t Utf8Validator::feed(const std::uint8_t* data, std::size_t size) {
    if (invalid_ != kValid) return invalid_;
    const WellFormedFunction well_formed = well_formed_function();
    const std::uint8_t* p = data;
    const std::uint8_t* const end = data + size;
    while (p != end) {
        if (missing_ == 0) {
            if (well_formed && end - p >= kWellFormedStep) p = well_formed(p, end);
            p = skip_ascii(p, end);
            if (p == end) break;
            start_ = seen_ + (p - data);
            const Lead found = lead(*p++);
            if (found.missing == 0) return invalid_ = start_;
            missing_ = found.missing;
            low_ = found.low;
            high_ = found.high;
        } else {
            if (*p < low_ || *p > high_) return invalid_ = start_;
            ++p;
            --missing_;
            low_ = 0x80;
            high_ = 0xBF;
        }
    }
    seen_ += static_cast<std::int64_t>(size);
    return kValid;
}

std::int64_t Utf8Validator::finish() {
    if (invalid_ == kValid && missing_ > 0) invalid_ = start_;
    return invalid_;
}

}  // namespace gptfast
