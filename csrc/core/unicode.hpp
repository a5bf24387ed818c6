// The classes of code points that the split patterns tell apart, of the Unicode version of tiktoken's regex engine.
#pragma once

#include <cstdint>

namespace gptfast {

enum class CharClass : std::uint8_t {
    kOther,    // everything else, unassigned code points and surrogates included
    kSpace,    // \s (White_Space) but CR and LF
    kNewline,  // CR, LF
    kNumber,   // \p{N}
    kUpper,    // \p{Lu}, \p{Lt}
    kLower,    // \p{Ll}
    kLetter,   // \p{Lm}, \p{Lo}: letters that o200k's pattern takes for upper and lower case alike
    kMark,     // \p{M}
};

namespace detail {

constexpr std::uint32_t kPageSize = 128;
constexpr std::uint32_t kPages = 7172;  // no code point past these has a class; most of the table would be zeros

// unicode_tables.cpp, made by csrc/tools/unicode_tables.py.
extern const std::uint8_t kPageOf[kPages];
extern const std::uint8_t kClassOf[][kPageSize];

}  // namespace detail

// The class of any 32-bit value; kOther past U+10FFFF.
inline CharClass char_class(std::uint32_t code_point) {
    const std::uint32_t page = code_point / detail::kPageSize;
    if (page >= detail::kPages) return CharClass::kOther;
    return static_cast<CharClass>(detail::kClassOf[detail::kPageOf[page]][code_point % detail::kPageSize]);
}

}  // namespace gptfast
