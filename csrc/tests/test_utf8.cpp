#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "check.hpp"
#include "core/utf8.hpp"
#include "core/utf8_isa.hpp"

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
    for (std::size_t ascii : {0u, 1u, 31u, 32u, 33u, 100u}) {
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

// Runs of well-formed sequences of one length each; `damaged`: then a few bytes changed, inserted or taken out.
std::string random_text(std::mt19937_64& random, bool damaged) {
    static constexpr std::uint32_t kLow[] = {0, 0, 0x80, 0x800, 0x10000}, kHigh[] = {0, 0x80, 0x800, 0xD800, 0x110000};
    std::string text;
    for (std::size_t runs = random() % 20; runs; --runs) {
        const int length = 1 + static_cast<int>(random() % 4);
        for (std::uint64_t run = random() % 3 ? random() % 4 : random() % 100; run; --run)
            text +=
                encode(kLow[length] + static_cast<std::uint32_t>(random() % (kHigh[length] - kLow[length])), length);
    }
    for (std::uint64_t n = damaged && !text.empty() ? 1 + random() % 3 : 0; n; --n) {
        static constexpr unsigned char kBytes[] = {0x00, 0x7F, 0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF, 0xC0, 0xC1, 0xC2,
                                                   0xDF, 0xE0, 0xED, 0xEF, 0xF0, 0xF1, 0xF4, 0xF5, 0xF8, 0xFF};
        const std::size_t at = random() % text.size();
        const char byte = static_cast<char>(kBytes[random() % sizeof kBytes]);
        const auto choice = random() % 4;
        if (choice < 2) text[at] = byte;
        if (choice == 2) text.insert(at, 1, byte);
        if (choice == 3 && text.size() > 1) text.erase(at, 1);
    }
    return text;
}

// Chunks of one byte are read by the state machine alone. What it says, every chunk size must say, and every
// instruction set must come close to the end or the error, and stop where a sequence starts.
void random_texts_of_every_instruction_set() {
    std::mt19937_64 random(1);
    for (int i = 0; i < 10000; ++i) {
        const std::string text = random_text(random, i % 4 != 0);
        const std::int64_t expected = verdict(text, 1);
        const std::size_t whole = std::max<std::size_t>(text.size(), 1);
        for (const std::size_t step : {whole, std::size_t{1} + random() % whole, std::size_t{64} + random() % 200})
            CHECK(verdict(text, step) == expected);
        const std::vector<std::uint8_t> copy(text.begin(), text.end());
        const std::uint8_t* const begin = copy.data();
        const std::int64_t goal = expected == kValid ? static_cast<std::int64_t>(copy.size()) : expected;
        for (const char* name : {"avx2", "avx512", "neon"}) {
            const gptfast::WellFormedFunction well_formed = gptfast::well_formed_function(name);
            if (!well_formed) continue;
            const std::int64_t reached = well_formed(begin, begin + copy.size()) - begin;
            CHECK(reached <= goal && goal - reached < 64 + 4);
            CHECK(verdict(text.substr(0, static_cast<std::size_t>(reached)), 1) == kValid);
        }
    }
}

// Two adjacent bytes of any value (the first from 70 on) at the seams of vectors of every size, with and without the
// rest of the sequence that they start.
void every_pair_in_vectors() {
    for (const std::size_t at : {15u, 31u, 63u}) {
        for (unsigned first = 0x70; first < 0x100; ++first) {
            for (unsigned second = 0; second < 0x100; ++second) {
                std::string text(128, 'a');
                text[at] = static_cast<char>(first);
                text[at + 1] = static_cast<char>(second);
                const std::size_t tail = first >= 0xF0 ? 2 : first >= 0xE0 ? 1 : 0;
                text.replace(at + 2, tail, tail, '\xBF');
                CHECK(verdict(text, text.size()) == verdict(text, 1));
                text[at + 1 + tail] = 'a';
                CHECK(verdict(text, text.size()) == verdict(text, 1));
            }
        }
    }
}

}  // namespace

int main() {
    every_code_point_in_every_length();
    random_texts_of_every_instruction_set();
    every_pair_in_vectors();

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
