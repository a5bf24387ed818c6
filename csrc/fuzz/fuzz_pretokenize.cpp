// Any text: the block functions of every instruction set find the ends that the scanners find.
#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "core/pretokenize.hpp"

using namespace gptfast;

namespace {

void require(bool condition) {
    if (!condition) std::abort();
}

template <Pattern kPattern>
void check(const std::uint8_t* const text, std::size_t size) {
    const std::uint8_t* const end = text + size;
    std::vector<const std::uint8_t*> ends;
    for (const std::uint8_t* p = text; p != end;) {
        const std::uint8_t* q = scan<kPattern>(p, end);
        require(q > p && q <= end);
        ends.push_back(p = q);
    }
    std::size_t i = 0;
    pretokenize(kPattern, text, size, [&](const std::uint8_t* begin, const std::uint8_t* stop) {
        require(begin == (i == 0 ? text : ends[i - 1]) && stop == ends[i]);
        ++i;
    });
    require(i == ends.size());
    for (const char* name : {"portable", "sse2", "avx2", "avx512", "neon"}) {
        const BlockFunction block = block_function(kPattern, name);
        if (!block) continue;
        const std::uint8_t* p = text;
        for (i = 0; i < ends.size() && end - p >= 64; p = ends[i++]) {
            std::size_t j = i;
            for (std::uint64_t starts = block(p).starts; starts; starts &= starts - 1)
                require(p + lowest_bit(starts) == ends[j++]);
        }
    }
}

void check_all(std::string_view text) {
    const std::unique_ptr<std::uint8_t[]> exact(new std::uint8_t[text.size()]);  // a sanitizer sees reads past its end
    std::copy(text.begin(), text.end(), exact.get());
    check<Pattern::kGpt2>(exact.get(), text.size());
    check<Pattern::kCl100k>(exact.get(), text.size());
    check<Pattern::kO200k>(exact.get(), text.size());
}

}  // namespace

// The bytes are a text; and each names a piece of one, among them all that the patterns tell apart.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const char* const kPieces[] = {
        "a",      "b",      "Q",      "ABC",    "s",      "t",      "ll",     "re",        "the",    "'s",
        "'T",     "'ll",    "'LL",    "'Ve",    "'",      "''",     " ",      "  ",        "\t",     "\n",
        "\r",     "\r\n",   "\v",     "1",      "12",     "1234",   ".",      "!?",        "/",      "//",
        "(",      "_",      "\x1f",   "\u00e9", "\u00c9", "\u01c5", "\u02b0", "\u4e2d",    "\u0301", "\u00a0",
        "\u3000", "\u2028", "\u0085", "\u00b2", "\u0663", "\u017f", "\u212a", "\U0001f642"};
    check_all({reinterpret_cast<const char*>(data), size});
    std::string text;
    for (std::size_t i = 0; i < size; ++i) text += kPieces[data[i] % std::size(kPieces)];
    check_all(text);
    return 0;
}
