#include <algorithm>
#include <cstdint>
#include <string>

#include "check.hpp"
#include "core/utf8.hpp"

using gptfast::Utf8Validator;

namespace {

constexpr std::int64_t kValid = Utf8Validator::kValid;

// The verdict on `text` fed in chunks of `step` bytes. Each chunk is a copy of its own, so that the address sanitizer
// sees any read past its end.
std::int64_t verdict(const std::string& text, std::size_t step) {
    Utf8Validator validator;
    for (std::size_t i = 0; i < text.size(); i += step) {
        const std::string chunk = text.substr(i, step);
        validator.feed(reinterpret_cast<const std::uint8_t*>(chunk.data()), chunk.size());
    }
    return validator.finish();
}

// Every chunk size gives `expected`, also behind a run of ASCII long enough for the fast path.
void expect(const std::string& text, std::int64_t expected) {
    for (std::size_t ascii : {0, 1, 31, 32, 33, 100}) {
        const std::string padded = std::string(ascii, 'a') + text;
        const std::int64_t shifted = expected == kValid ? kValid : expected + static_cast<std::int64_t>(ascii);
        for (std::size_t step = 1; step <= std::max<std::size_t>(padded.size(), 1); ++step) {
            CHECK(verdict(padded, step) == shifted);
        }
    }
}

// The two halves of the definition, side by side: what a decoder would make of one code point, by arithmetic.
std::string encode(std::uint32_t c, int length) {
    std::string bytes;
    if (length == 1) bytes += static_cast<char>(c);
    if (length == 2) bytes += static_cast<char>(0xC0 | c >> 6);
    if (length == 3) bytes += static_cast<char>(0xE0 | c >> 12);
    if (length == 4) bytes += static_cast<char>(0xF0 | c >> 18);
    for (int i = length - 2; i >= 0; --i) bytes += static_cast<char>(0x80 | ((c >> 6 * i) & 0x3F));
    return bytes;
}

int shortest(std::uint32_t c) { return c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4; }

void every_code_point_in_every_length() {
    const std::uint32_t limit[] = {0, 0x80, 0x800, 0x10000, 0x200000};
    for (int length = 1; length <= 4; ++length) {
        for (std::uint32_t c = 0; c < limit[length]; ++c) {
            const bool scalar = c <= 0x10FFFF && !(c >= 0xD800 && c <= 0xDFFF);
            const std::string bytes = encode(c, length);
            CHECK(verdict(bytes, 4) == (scalar && length == shortest(c) ? kValid : 0));
        }
    }
}

}  // namespace

int main() {
    every_code_point_in_every_length();

    expect("", kValid);
    expect("plain text, long enough to take more than one step of the fast path", kValid);
    expect("gr\xC3\xBC\xC3\x9F \xE2\x82\xAC \xF0\x9F\x98\x80!", kValid);

    expect("ab\x80", 2);               // a continuation byte without a lead
    expect("ab\xFF", 2);               // a byte that never occurs
    expect("ab\xC3", 2);               // cut off after 1 of 2
    expect("ab\xE2\x82", 2);           // 2 of 3
    expect("ab\xF0\x9F\x98", 2);       // 3 of 4
    expect("\xE2\x82(abc", 0);         // interrupted: the sequence's start is named, not the interrupting byte
    expect("\xC3\xC3\xBC", 0);         // a lead where a continuation byte should be
    expect("ok \xED\xA0\x80", 3);      // a surrogate
    expect("ok \xC0\xAF", 3);          // overlong
    expect("ok \xF4\x90\x80\x80", 3);  // past U+10FFFF

    Utf8Validator validator;  // the first error stays
    const std::uint8_t bad[] = {'a', 0xFF}, good[] = {'b'};
    CHECK(validator.feed(bad, 2) == 1);
    CHECK(validator.feed(good, 1) == 1);
    CHECK(validator.finish() == 1);

    return failures() == 0 ? 0 : 1;
}
