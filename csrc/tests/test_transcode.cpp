// to_utf8 of every instruction set against one code point at a time, on text that mixes the lengths of UTF-8.
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check.hpp"
#include "core/transcode.hpp"

using namespace gptfast;

namespace {

using Text = std::vector<std::uint32_t>;

const char* const kSets[] = {"portable", "sse2", "neon", "avx2", "avx512"};

bool surrogate(std::uint32_t c) { return c >= 0xD800 && c <= 0xDFFF; }

// By division, unlike the code under test.
std::string encoded(const Text& text) {
    std::string out;
    for (const std::uint32_t c : text) {
        const auto byte = [&out](std::uint32_t b) { out += static_cast<char>(b); };
        if (c < 0x80) {
            byte(c);
        } else if (c < 0x800) {
            byte(192 + c / 64), byte(128 + c % 64);
        } else if (c < 0x10000) {
            byte(224 + c / 4096), byte(128 + c / 64 % 64), byte(128 + c % 64);
        } else {
            byte(240 + c / 262144), byte(128 + c / 4096 % 64), byte(128 + c / 64 % 64), byte(128 + c % 64);
        }
    }
    return out;
}

// Input and output are allocations of exactly their sizes, so that the address sanitizer sees any access past them.
template <class Unit>
void check_as(const Text& text, const std::string& expected, bool valid) {
    const std::unique_ptr<Unit[]> units(new Unit[text.size()]);
    for (std::size_t i = 0; i < text.size(); ++i) units[i] = static_cast<Unit>(text[i]);
    const int kind = sizeof(Unit);
    const std::size_t capacity = utf8_capacity(kind, text.size());
    const auto check = [&](TranscodeFunction function, const char* name) {
        const std::unique_ptr<std::uint8_t[]> out(new std::uint8_t[capacity]);
        const std::size_t size = function(kind, units.get(), text.size(), out.get());
        const bool right =
            valid ? size == expected.size() && std::memcmp(out.get(), expected.data(), size) == 0 : size == kSurrogate;
        if (!right) std::fprintf(stderr, "%s, kind %d, %zu code points\n", name, kind, text.size());
        CHECK(right);
    };
    for (const char* name : kSets)
        if (const TranscodeFunction function = transcode_function(name)) check(function, name);
    check(to_utf8, "to_utf8");
}

void check(const Text& text) {
    std::uint32_t highest = 0;
    bool valid = true;
    for (const std::uint32_t c : text) {
        highest = c > highest ? c : highest;
        valid = valid && !surrogate(c);
    }
    const std::string expected = valid ? encoded(text) : "";
    check_as<std::uint32_t>(text, expected, valid);
    if (highest <= 0xFFFF) check_as<std::uint16_t>(text, expected, valid);
    if (highest <= 0xFF) check_as<std::uint8_t>(text, expected, valid);
}

std::uint32_t random_of(std::mt19937_64& random, std::uint32_t low, std::uint32_t high) {
    return low + static_cast<std::uint32_t>(random() % (high - low + 1));
}

// A code point of `bytes` bytes in UTF-8, at the ends of the range now and then; never a surrogate.
std::uint32_t random_code_point(std::mt19937_64& random, int bytes, std::uint32_t limit) {
    static constexpr std::uint32_t kLow[] = {0, 0, 0x80, 0x800, 0x10000};
    static constexpr std::uint32_t kHigh[] = {0, 0x7F, 0x7FF, 0xFFFF, 0x10FFFF};
    const std::uint32_t low = kLow[bytes], high = kHigh[bytes] < limit ? kHigh[bytes] : limit;
    const auto choice = random() % 8;
    const std::uint32_t c = choice == 0 ? low : choice == 1 ? high : random_of(random, low, high);
    return surrogate(c) ? 0xE000 : c;
}

// Runs of one length of UTF-8 each; `bits` says which lengths occur.
Text random_text(std::mt19937_64& random, std::size_t length, unsigned bits, std::uint32_t limit) {
    Text text;
    while (text.size() < length) {
        const int bytes = 1 + static_cast<int>(random() % 4);
        if (!(bits >> bytes & 1)) continue;
        for (std::uint64_t run = random() % 3 ? random() % 4 : random() % 100; run && text.size() < length; --run)
            text.push_back(random_code_point(random, bytes, limit));
    }
    return text;
}

void every_code_point() {
    for (std::uint32_t first = 0; first < 0x110000; first += 0x400) {
        if (surrogate(first)) continue;
        Text text;
        for (std::uint32_t c = first; c < first + 0x400; ++c) text.push_back(c);
        check(text);
    }
}

void every_length() {
    std::mt19937_64 random(1);
    for (std::size_t length = 0; length <= 200; ++length) {
        for (unsigned bits = 2; bits < 8; bits += 2) check(random_text(random, length, bits, 0xFF));  // of each kind
        for (unsigned bits = 2; bits < 16; bits += 2) check(random_text(random, length, bits, 0xFFFF));
        for (unsigned bits = 2; bits < 32; bits += 2) check(random_text(random, length, bits, 0x10FFFF));
    }
}

void long_texts() {
    std::mt19937_64 random(2);
    for (int i = 0; i < 300; ++i) {
        const std::size_t length = random() % 5000;
        check(random_text(random, length, 0b110, 0xFF));
        check(random_text(random, length, 0b1110, 0xFFFF));
        check(random_text(random, length, 0b11110, 0x10FFFF));
    }
}

// Alone among ASCII and among three-byte characters, at every place of texts longer than two steps.
void surrogates() {
    for (const std::uint32_t c : {0xD800u, 0xDBFFu, 0xDC00u, 0xDFFFu}) {
        for (const std::uint32_t around : {0x61u, 0xE9u, 0x4E2Du}) {
            for (const std::size_t length : {1u, 31u, 97u}) {
                for (std::size_t at = 0; at < length; ++at) {
                    Text text(length, around);
                    text[at] = c;
                    check(text);
                }
            }
        }
    }
    for (const std::uint32_t c : {0xD7FFu, 0xE000u, 0x1D800u, 0x10D800u}) check(Text(70, c));  // none of them is one
}

// A single bit above ASCII among ASCII, at every place.
void single_bits() {
    for (int bit = 7; bit <= 20; ++bit) {
        for (std::size_t at = 0; at < 67; ++at) {
            Text text(67, 'a');
            text[at] = std::uint32_t{1} << bit;
            check(text);
        }
    }
}

}  // namespace

int main() {
    every_code_point();
    every_length();
    long_texts();
    surrogates();
    single_bits();
    return failures() == 0 ? 0 : 1;
}
