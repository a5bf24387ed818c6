// Splits UTF-8 text into pre-tokens as the patterns of tiktoken's encodings do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "bits.hpp"
#include "blocks.hpp"
#include "scan.hpp"

namespace gptfast {

// Whether any of the 16 bytes at p is not ASCII.
inline bool high_bytes(const std::uint8_t* p) {
    std::uint64_t word[2];
    std::memcpy(word, p, sizeof word);
    return ((word[0] | word[1]) & 0x8080808080808080) != 0;
}

template <Pattern kPattern, class Sink>
void pretokenize(const std::uint8_t* text, std::size_t size, Sink&& sink) {
    const std::uint8_t* p = text;
    const std::uint8_t* const end = text + size;
    const BlockFunction block = block_function(kPattern);
    while (end - p >= 64) {
        Block found = block(p);
        const std::uint8_t* const base = p;
        while (found.starts) {
            const std::uint8_t* q = base + lowest_bit(found.starts);
            found.starts &= found.starts - 1;
            sink(p, q);
            p = q;
        }
        if (p != base && found.ascii) continue;
        do {  // a pre-token longer than a block, or with other letters; and while those follow
            const std::uint8_t* q = scan<kPattern>(p, end);
            sink(p, q);
            p = q;
        } while (end - p >= 64 && high_bytes(p));
    }
    while (p != end) {
        const std::uint8_t* q = scan<kPattern>(p, end);
        sink(p, q);
        p = q;
    }
}

// Calls sink(begin, end) for each pre-token of `text` (UTF-8), in order; together they are the whole text.
template <class Sink>
void pretokenize(Pattern pattern, const std::uint8_t* text, std::size_t size, Sink&& sink) {
    switch (pattern) {
        case Pattern::kGpt2:
            return pretokenize<Pattern::kGpt2>(text, size, sink);
        case Pattern::kCl100k:
            return pretokenize<Pattern::kCl100k>(text, size, sink);
        case Pattern::kO200k:
            return pretokenize<Pattern::kO200k>(text, size, sink);
        case Pattern::kNone:
            if (size) sink(text, text + size);
    }
}

}  // namespace gptfast
