// What blocks_*.cpp share: each includes it once, compiled for its own instruction set, hence the unnamed namespace.
//
// Bit i of every mask is byte i of the block. The classes come from vector compares; the boundaries from a few dozen
// operations on 64-bit words.
#pragma once

#include "bits.hpp"
#include "blocks.hpp"

#if defined(__GNUC__) || defined(__clang__)
#define GPTFAST_INLINE inline __attribute__((always_inline))
#else
#define GPTFAST_INLINE inline
#endif

namespace gptfast {
namespace {

using Mask = std::uint64_t;

struct Classes {
    Mask letter, upper, number, white, space, newline, quote, slash, high;
};

// The fields of Classes from comparisons of one vector type; `V` gives load, ==, and lo <= x <= hi as bit masks.
template <class V>
GPTFAST_INLINE Classes classes_of(const std::uint8_t* p, int shift, Classes c) {
    const typename V::Vector v = V::load(p);
    c.letter |= Mask{V::between(V::lower(v), 'a', 'z')} << shift;
    c.upper |= Mask{V::between(v, 'A', 'Z')} << shift;
    c.number |= Mask{V::between(v, '0', '9')} << shift;
    c.space |= Mask{V::equal(v, ' ')} << shift;
    c.white |= Mask{V::between(v, '\t', '\r')} << shift;
    c.newline |= (Mask{V::equal(v, '\r')} | Mask{V::equal(v, '\n')}) << shift;
    c.quote |= Mask{V::equal(v, '\'')} << shift;
    c.slash |= Mask{V::equal(v, '/')} << shift;
    c.high |= Mask{V::high(v)} << shift;
    return c;
}

template <class V, int kBytes>
GPTFAST_INLINE Classes classify(const std::uint8_t* p) {
    Classes c{};
    for (int i = 0; i < 64; i += kBytes) c = classes_of<V>(p + i, i, c);
    c.white |= c.space;
    return c;
}

GPTFAST_INLINE Mask up_to(int bit) { return bit < 0 ? 0 : ~Mask{0} >> (63 - bit); }  // bits 0 .. bit

GPTFAST_INLINE int contraction_length(const std::uint8_t* p, std::uint8_t fold) {
    const std::uint8_t a = p[1] | fold, b = p[2] | fold;
    if (a == 's' || a == 'd' || a == 'm' || a == 't') return 2;
    return ((a == 'l' && b == 'l') || (a == 'v' && b == 'e') || (a == 'r' && b == 'e')) ? 3 : 0;
}

// Where \p{N}{1,3} starts: the first of each three from the start of a run.
GPTFAST_INLINE Mask number_starts(Mask number) {
    Mask starts = number & ~(number << 1), fresh = starts;
    const Mask third = number & (number << 1) & (number << 2) & (number << 3);
    while ((fresh = (fresh << 3) & third) != 0) starts |= fresh;
    return starts;
}

template <Pattern kPattern>
GPTFAST_INLINE Block boundaries(const std::uint8_t* p, const Classes& c) {
    const Mask letter = c.letter, number = c.number, white = c.white, newline = c.newline;
    const Mask other = ~(letter | number | white | c.high);
    // The last start that is certain. Bit 63 of a run of white space depends on the byte after it.
    int limit = c.high ? lowest_bit(c.high) - 2 : 62;
    Mask starts = 0;
    if constexpr (kPattern == Pattern::kGpt2) {
        // A run of one class is a pre-token, with the space before it. A run of white space ends before its last byte.
        const Mask after_space = c.space << 1;
        const Mask other_starts = other & ~(other << 1) & ~after_space;
        starts = (letter & ~(letter << 1) & ~after_space) | (number & ~(number << 1) & ~after_space) | other_starts |
                 (white & ~(white << 1)) | (white & ~(white >> 1));
        for (Mask quotes = c.quote & other_starts; quotes; quotes &= quotes - 1) {
            const int i = lowest_bit(quotes);
            if (i > 60) {
                limit = limit < i ? limit : i;
                break;
            }
            if (const int n = contraction_length(p + i, 0)) {
                starts &= ~(Mask{2} << i);
                starts |= (Mask{1} << (i + n)) & letter;
            }
        }
    } else {
        constexpr bool kO200k = kPattern == Pattern::kO200k;
        // Newlines (o200k: and slashes after them) that follow other characters belong to their pre-token: adding the
        // first bit of a run to the run clears the run from there on.
        const Mask tail_kind = kO200k ? newline | c.slash : newline;
        const Mask tail_from = (other << 1) & newline;
        const Mask tail = (tail_kind & ~(tail_kind + tail_from)) | tail_from;
        const Mask run_white = white & ~tail;
        const Mask blank = run_white & ~newline;  // white space that can be a prefix
        const Mask run_other = other & ~tail;

        // o200k: a contraction belongs to the word before it, and a quote that starts one starts no pre-token.
        Mask suffix = 0, suffix_end = 0, suffix_inside = 0;
        if constexpr (kO200k) {
            for (Mask quotes = c.quote & (letter << 1); quotes; quotes &= quotes - 1) {
                const int i = lowest_bit(quotes);
                if (i > 60) {
                    limit = limit < i - 1 ? limit : i - 1;
                    break;
                }
                const int n = contraction_length(p + i, 0x20);
                if (n == 0) continue;
                if (p[i + n] == '\'') {  // a second contraction is no suffix: leave it to the scanner
                    limit = limit < i - 1 ? limit : i - 1;
                    break;
                }
                suffix |= Mask{1} << i;
                suffix_inside |= (n == 2 ? Mask{2} : Mask{6}) << i;
                suffix_end |= Mask{1} << (i + n);
            }
        }
        const Mask other_starts = run_other & ~(run_other << 1) & ~(c.space << 1) & ~suffix;
        // Letters take one character before them that is neither a newline, a letter nor a number, where it starts a
        // pre-token: the last white space of a run always does.
        Mask letter_starts = letter & ~(letter << 1) & ~((white & ~newline) << 1) & ~(other_starts << 1);
        if constexpr (kO200k) {
            const Mask lower = letter & ~c.upper;
            letter_starts |= c.upper & (lower << 1);
            letter_starts = (letter_starts & ~suffix_inside) | (suffix_end & letter);
        } else {
            for (Mask quotes = c.quote & other_starts; quotes; quotes &= quotes - 1) {
                const int i = lowest_bit(quotes);
                if (i > 60) {
                    limit = limit < i ? limit : i;
                    break;
                }
                if (const int n = contraction_length(p + i, 0x20)) letter_starts |= (Mask{1} << (i + n)) & letter;
            }
        }
        // A run of white space splits after its last newline, and before its last character where that is no newline.
        const Mask last = blank & ~(white >> 1);
        Mask after_newline = blank & ((newline & run_white) << 1);
        const Mask blank_starts = blank & ~(blank << 1);
        const Mask blank_ends = (blank + blank_starts) & ~blank;  // the bit after each run of blanks
        for (Mask inner = blank_ends & newline; inner; inner &= inner - 1) {
            // Blanks between two newlines split nothing.
            after_newline &= ~(Mask{1} << highest_bit(blank_starts & up_to(lowest_bit(inner))));
        }
        // Blanks after a newline that reach the end of the block, or other white space perhaps: a newline may follow.
        const int known = c.high ? lowest_bit(c.high) : 64;
        if (known > 0 && (blank >> (known - 1) & 1)) {
            const int start = highest_bit(blank_starts & up_to(known - 1));
            if (after_newline >> start & 1) limit = limit < start - 1 ? limit : start - 1;
        }
        starts = letter_starts | number_starts(number) | other_starts | (run_white & ~(run_white << 1)) | last |
                 after_newline;
    }
    return {starts & up_to(limit) & ~Mask{1}, c.high == 0};
}

// The block function of one vector type.
template <class V, int kBytes, Pattern kPattern>
Block block_of(const std::uint8_t* p) {
    return boundaries<kPattern>(p, classify<V, kBytes>(p));
}

template <class V, int kBytes>
BlockFunction pick(Pattern pattern) {
    switch (pattern) {
        case Pattern::kGpt2:
            return block_of<V, kBytes, Pattern::kGpt2>;
        case Pattern::kCl100k:
            return block_of<V, kBytes, Pattern::kCl100k>;
        case Pattern::kO200k:
            return block_of<V, kBytes, Pattern::kO200k>;
        case Pattern::kNone:
            break;
    }
    return nullptr;
}

}  // namespace
}  // namespace gptfast
