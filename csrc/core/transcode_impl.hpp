// What transcode*.cpp share: each includes it once, compiled for its own instruction set, hence the unnamed namespace.
#pragma once

#include <cstddef>
#include <cstdint>

#include "transcode.hpp"

namespace gptfast {
namespace {

constexpr std::size_t kSlack = 64;  // how far past the text's end a vector may be written

// The lead byte's mark and the continuation bytes' of a code point of 2, 3 and 4 bytes, the last byte highest.
constexpr std::uint32_t kMark2 = 0x80C00000, kMark3 = 0x8080E000, kMark4 = 0x808080F0;

template <class Unit>
bool is_surrogate(Unit c) {
    return sizeof(Unit) > 1 && (c & 0xFFFFF800) == 0xD800;
}

// Writes one code point and returns its size. Plain branches measured faster than selects and table look-ups.
template <class Unit>
std::size_t put(Unit unit, std::uint8_t* out) {
    const std::uint32_t c = unit;
    const auto continuation = [c](int shift) { return static_cast<std::uint8_t>(0x80 | (c >> shift & 0x3F)); };
    if (c < 0x80) {
        out[0] = static_cast<std::uint8_t>(c);
        return 1;
    }
    if (c < 0x800) {
        out[0] = static_cast<std::uint8_t>(0xC0 | c >> 6);
        out[1] = continuation(0);
        return 2;
    }
    if (c < 0x10000) {
        out[0] = static_cast<std::uint8_t>(0xE0 | c >> 12);
        out[1] = continuation(6);
        out[2] = continuation(0);
        return 3;
    }
    out[0] = static_cast<std::uint8_t>(0xF0 | c >> 18);
    out[1] = continuation(12);
    out[2] = continuation(6);
    out[3] = continuation(0);
    return 4;
}

// `V` gives two steps. narrow(p, out) writes the low byte of each of kNarrow units and returns whether all are ASCII.
// encode(p, out) writes the UTF-8 of kEncode units and returns its size or kSurrogate. Both may write kSlack bytes.
template <class V, class Unit>
std::size_t to_utf8_with(const Unit* p, std::size_t length, std::uint8_t* out) {
    const Unit* const end = p + length;
    const std::uint8_t* const begin = out;
    while (p != end) {
        const auto left = static_cast<std::size_t>(end - p);
        if (left >= V::kNarrow && V::narrow(p, out)) {
            p += V::kNarrow;
            out += V::kNarrow;
        } else if (left >= V::kEncode) {
            const std::size_t size = V::encode(p, out);
            if (size == kSurrogate) return kSurrogate;
            p += V::kEncode;
            out += size;
        } else {
            if (is_surrogate(*p)) return kSurrogate;
            out += put(*p++, out);
        }
    }
    return static_cast<std::size_t>(out - begin);
}

template <class V>
std::size_t to_utf8_of(int kind, const void* text, std::size_t length, std::uint8_t* out) {
    if (kind == 1) return to_utf8_with<V>(static_cast<const std::uint8_t*>(text), length, out);
    if (kind == 2) return to_utf8_with<V>(static_cast<const std::uint16_t*>(text), length, out);
    return to_utf8_with<V>(static_cast<const std::uint32_t*>(text), length, out);
}

}  // namespace
}  // namespace gptfast
