// What utf8*.cpp share: each includes it once, compiled for its own instruction set, hence the unnamed namespace.
//
// John Keiser and Daniel Lemire, "Validating UTF-8 In Less Than One Instruction Per Byte", Software: Practice and
// Experience 51 (2021), arXiv:2010.03090. All that can be wrong in two adjacent bytes depends on three half bytes: both
// of the first and the high one of the second. Each looks up the errors it permits, one bit an error; a bit that all
// three permit is an error. What is left is whether bytes 3 and 4 of a sequence are continuation bytes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gptfast {
namespace {

// An error: the sets of half bytes that make it, bit i for value i.
struct PairError {
    std::uint16_t high1, low1, high2;
};

constexpr std::uint16_t kAny = 0xFFFF, kContinuation = 0x0F00;  // continuation bytes are 8x to Bx
constexpr PairError kPairErrors[8] = {
    {0x00FF, kAny, kContinuation},            // ASCII, then a continuation byte
    {0xF000, kAny, 0xFFFF & ~kContinuation},  // a lead byte, then none
    {1 << 0xC, 0x0003, kContinuation},        // C0, C1: overlong
    {1 << 0xE, 1 << 0x0, 0x0300},             // E0 80 to E0 9F: overlong
    {1 << 0xE, 1 << 0xD, 0x0C00},             // ED A0 to ED BF: surrogates
    {1 << 0xF, 0xFFF0, 0x0E00},               // F4 90 and up: past U+10FFFF
    {1 << 0xF, 0xFFE1, 0x0100},               // F0 80 to F0 8F: overlong; F5 80 and up: past U+10FFFF
    {kContinuation, kAny, kContinuation},     // two continuation bytes: an error unless a third byte is due
};

struct PairTables {
    std::uint8_t high1[16], low1[16], high2[16];
};

constexpr PairTables pair_tables() {
    PairTables tables{};
    for (int value = 0; value < 16; ++value) {
        for (int error = 0; error < 8; ++error) {
            const int bit = 1 << error;
            if (kPairErrors[error].high1 >> value & 1) tables.high1[value] |= static_cast<std::uint8_t>(bit);
            if (kPairErrors[error].low1 >> value & 1) tables.low1[value] |= static_cast<std::uint8_t>(bit);
            if (kPairErrors[error].high2 >> value & 1) tables.high2[value] |= static_cast<std::uint8_t>(bit);
        }
    }
    return tables;
}

// alignas: the tables are loaded as vectors
alignas(16) constexpr PairTables kPairTables = pair_tables();

// `V` gives: load of kBytes bytes; table, 16 bytes repeated, and look_up in it by half bytes; high_half of each byte;
// shift<n>, the vector moved up by n bytes behind the last n of the vector before it; less, which stops at 0; both
// (and), either (or), differ (xor); and whether any bit is set.
template <class V>
const std::uint8_t* well_formed(const std::uint8_t* p, const std::uint8_t* end) {
    using Vector = typename V::Vector;
    const Vector high1 = V::table(kPairTables.high1), low1 = V::table(kPairTables.low1),
                 high2 = V::table(kPairTables.high2);
    const std::uint8_t* const begin = p;
    Vector before = V::set(0);
    for (; end - p >= V::kBytes; p += V::kBytes) {
        const Vector bytes = V::load(p);
        const Vector first = V::template shift<1>(before, bytes);
        const Vector pairs =
            V::both(V::both(V::look_up(high1, V::high_half(first)), V::look_up(low1, V::both(first, V::set(0x0F)))),
                    V::look_up(high2, V::high_half(bytes)));
        // Bit 7: the byte two before is E0 or above, or the one three before F0 or above.
        const Vector due = V::either(V::less(V::template shift<2>(before, bytes), 0xE0 - 0x80),
                                     V::less(V::template shift<3>(before, bytes), 0xF0 - 0x80));
        if (V::any(V::differ(V::both(due, V::set(0x80)), pairs))) break;
        before = bytes;
    }
    if (p == begin) return p;
    // Back to the start of a sequence that may be cut off here.
    if (p[-1] >= 0xC0) return p - 1;
    if (p[-2] >= 0xE0) return p - 2;
    if (p[-3] >= 0xF0) return p - 3;
    return p;
}

}  // namespace
}  // namespace gptfast
