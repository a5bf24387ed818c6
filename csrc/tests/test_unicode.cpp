#include <cstdint>
#include <initializer_list>

#include "check.hpp"
#include "core/unicode.hpp"

using gptfast::char_class;
using gptfast::CharClass;

namespace {

// ASCII as the C locale's <cctype> has it, spelled out.
CharClass ascii_class(std::uint32_t c) {
    if (c == '\n' || c == '\r') return CharClass::kNewline;
    if (c == ' ' || (c >= 0x09 && c <= 0x0D)) return CharClass::kSpace;
    if (c >= '0' && c <= '9') return CharClass::kNumber;
    if (c >= 'A' && c <= 'Z') return CharClass::kUpper;
    if (c >= 'a' && c <= 'z') return CharClass::kLower;
    return CharClass::kOther;
}

void expect(CharClass expected, std::initializer_list<std::uint32_t> code_points) {
    for (std::uint32_t c : code_points) {
        CHECK(char_class(c) == expected);
        if (char_class(c) != expected) std::fprintf(stderr, "    U+%04X\n", static_cast<unsigned>(c));
    }
}

}  // namespace

int main() {
    for (std::uint32_t c = 0; c < 0x80; ++c) expect(ascii_class(c), {c});

    expect(CharClass::kSpace, {0x85, 0xA0, 0x1680, 0x2000, 0x200A, 0x2028, 0x2029, 0x202F, 0x205F, 0x3000});
    expect(CharClass::kOther, {0x1C, 0x1F, 0x180E, 0x200B, 0x2060, 0xFEFF});  // called spaces elsewhere
    expect(CharClass::kNumber, {0xB2, 0xBD, 0x0660, 0x2160, 0x2188, 0x3007, 0x10D40, 0x1FBF9});
    expect(CharClass::kUpper, {0xC0, 0x0130, 0x01C5, 0x1FFC, 0x1E9E, 0xA7DC, 0x1D400});
    expect(CharClass::kLower, {0xB5, 0xDF, 0x017F, 0x0295, 0x1E922, 0x1D7CB});  // U+0295 is Lo since Unicode 17
    expect(CharClass::kLetter, {0xAA, 0xBA, 0x02B0, 0x05D0, 0x3005, 0x4E00, 0x9FFF, 0xAC00, 0xD7A3, 0x20000, 0x323AF});
    expect(CharClass::kMark, {0x0300, 0x0903, 0x20DD, 0xFE0F, 0x0897, 0xE0100, 0xE01EF});
    expect(CharClass::kOther, {0x0378, 0x20AC, 0x1F600, 0x1F3FB, 0xE000, 0xFFFD, 0xFFFE, 0xFFFF});

    // The ends of blocks, of planes and of the table; then everything that is no code point.
    expect(CharClass::kOther, {0xA48D, 0xD7A4, 0xD800, 0xDBFF, 0xDC00, 0xDFFF, 0x2A6E0, 0x323B0, 0xE00FF, 0xE01F0});
    expect(CharClass::kOther, {0xE01FF, 0xE0200, 0xF0000, 0x10FFFF, 0x110000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF});
    for (std::uint64_t c = 0xE01F0; c <= 0xFFFFFFFF; c += c / 1024 + 1) {
        CHECK(char_class(static_cast<std::uint32_t>(c)) == CharClass::kOther);
    }
    for (std::uint32_t c = 0; c <= 0x10FFFF; ++c) CHECK(char_class(c) <= CharClass::kMark);

    return failures() == 0 ? 0 : 1;
}
