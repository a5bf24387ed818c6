// Block functions of every instruction set against the scanners, on random text that mixes what they tell apart.
#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "check.hpp"
#include "core/pretokenize.hpp"

using namespace gptfast;

namespace {

std::string random_text(std::mt19937_64& random, std::size_t pieces) {
    static const std::vector<std::string> kParts = {"a",      "b",       "the",    "A",
                                                    "Q",      "ABC",     "s",      "t",
                                                    "ll",     "re",      "ve",     "'s",
                                                    "'T",     "'ll",     "'LL",    "'re",
                                                    "'Ve",    "'",       "''",     "'m",
                                                    "'d",     "'x",      " ",      " ",
                                                    " ",      "  ",      "   ",    "\t",
                                                    "\n",     "\r\n",    "\n\n",   "\r",
                                                    "\v",     "\f",      "1",      "12",
                                                    "123",    "1234567", ".",      "!",
                                                    "/",      "//",      "/*",     "(",
                                                    "\"",     "_",       "-",      std::string("\0", 1),
                                                    "\x1f",   "\x7f",    "é",      "É",
                                                    "ǅ",      "ʰ",       "中",     "の",
                                                    "\u0301", "\u00a0",  "\u3000", "\u2028",
                                                    "²",      "Ⅷ",       "٣",      "🙂",
                                                    "ſ",      "K",       "\u0085", "\xF3\xA0\x80\x81"};
    // A few of them only, so that they meet in every order; mostly ASCII, so that blocks fill, and now and then of
    // anything.
    std::vector<std::string> parts;
    for (std::size_t n = 3 + random() % 6; n; --n) parts.push_back(kParts[random() % kParts.size()]);
    std::string text;
    while (pieces) {
        const bool any = random() % 4 == 0;
        for (std::size_t n = 1 + random() % 40; n && pieces; --n, --pieces) {
            const std::string& part = parts[random() % parts.size()];
            if (!any && static_cast<unsigned char>(part[0]) >= 0x80 && random() % 8) continue;
            const std::size_t repeat = random() % 16 == 0 ? random() % 70 : 1;
            for (std::size_t i = 0; i < repeat; ++i) text += part;
        }
    }
    return text;
}

template <Pattern kPattern>
void check_blocks(const std::string& text) {
    const auto* begin = reinterpret_cast<const std::uint8_t*>(text.data());
    const auto* end = begin + text.size();
    std::vector<const std::uint8_t*> expected;
    for (const auto* p = begin; p != end;) expected.push_back(p = scan<kPattern>(p, end));
    for (const char* name : {"portable", "sse2", "avx2", "avx512", "neon"}) {
        const BlockFunction block = block_function(kPattern, name);
        if (!block) continue;
        const std::uint8_t* p = begin;
        for (std::size_t i = 0; i < expected.size() && end - p >= 64; p = expected[i++]) {
            Block found = block(p);
            std::size_t j = i;
            for (; found.starts; found.starts &= found.starts - 1, ++j) {
                const std::uint8_t* q = p + lowest_bit(found.starts);
                if (q != expected[j]) {
                    std::fprintf(stderr, "%s pattern %d: a start at %td, expected %td of\n%s\n", name,
                                 static_cast<int>(kPattern), q - p, expected[j] - p,
                                 std::string(reinterpret_cast<const char*>(p), 64).c_str());
                    CHECK(q == expected[j]);
                    return;
                }
            }
        }
    }
    std::size_t i = 0;
    pretokenize(kPattern, begin, text.size(), [&](const std::uint8_t*, const std::uint8_t* q) {
        CHECK(q == expected[i]);
        ++i;
    });
    CHECK(i == expected.size());
}

}  // namespace

int main() {
    std::mt19937_64 random(1);
    for (int round = 0; round < 6000; ++round) {
        const std::string text = random_text(random, 1 + random() % 300);
        check_blocks<Pattern::kGpt2>(text);
        check_blocks<Pattern::kCl100k>(text);
        check_blocks<Pattern::kO200k>(text);
        if (failures()) break;
    }
    return failures();
}
