#include "characters.hpp"

#include <algorithm>
#include <cstring>

#include "merge.hpp"
#include "merge_isa.hpp"
#include "utf8.hpp"
#include "vocabulary.hpp"

namespace gptfast {
namespace {

// BPE of one character of two to four bytes: mostly one or two merges.
std::size_t merge_character(const Vocabulary& vocabulary, const std::uint8_t* bytes, std::size_t length,
                            std::uint32_t* out) {
    for (std::size_t i = 0; i < length; ++i) out[i] = vocabulary.byte_rank(bytes[i]);
    if (length > 3) return merge_tokens(vocabulary, out, length);
    if (length == 3) {
        const std::uint32_t start = vocabulary.merge_bytes(bytes[0], bytes[1]);
        const std::uint32_t end = vocabulary.merge_bytes(bytes[1], bytes[2]);
        if (start == kNoToken && end == kNoToken) return 3;
        if (start <= end) {
            out[0] = start;
            out[1] = out[2];
        } else {
            out[1] = end;
        }
    }
    const std::uint32_t whole =
        length == 2 ? vocabulary.merge_bytes(bytes[0], bytes[1]) : vocabulary.merge(out[0], out[1]);
    if (whole == kNoToken) return 2;
    out[0] = whole;
    return 1;
}

}  // namespace

// A character's bytes may be merged before all else, unless some merge takes part of it away before it is whole. That
// merge meets the character at its start or its end, makes a token that begins or ends inside a character (r50k has 63
// of them, cl100k 250, o200k 794), and has a lower rank than the one that makes the character whole: until then, one of
// the character's own merges is always there to be done. So only a character with a lower least_across() on one of its
// sides is left as bytes; everything else is BPE in its usual order.
std::size_t merge_characters(const Vocabulary& vocabulary, const std::uint8_t* piece, std::size_t size,
                             std::uint32_t* out) {
    struct Character {
        std::uint32_t whole;       // the rank of the merge that makes it one token; kNoToken where none does
        std::uint16_t at, tokens;  // where it starts in the piece, and in `out`
        bool loose;                // left as bytes
    };
    if (size > 4 * kMaxInRegisters) return 0;
    Character characters[kMaxInRegisters + 1];
    std::size_t count = 0, tokens = 0;
    for (std::size_t at = 0; at < size; ++count) {
        const std::size_t length = utf8_length(piece[at]);
        if (count == kMaxInRegisters || length > size - at || is_continuation(piece[at])) return 0;
        Character& character = characters[count];
        character = {0, static_cast<std::uint16_t>(at), static_cast<std::uint16_t>(tokens), false};
        if (length == 1) {
            out[tokens++] = vocabulary.byte_rank(piece[at]);
        } else {
            for (std::size_t i = 1; i < length; ++i)
                if (!is_continuation(piece[at + i])) return 0;
            const std::size_t made = merge_character(vocabulary, piece + at, length, out + tokens);
            character.whole = made == 1 ? out[tokens] : kNoToken;
            tokens += made;
        }
        if (at > 0) vocabulary.prefetch_merge(out[character.tokens - 1], out[character.tokens]);
        at += length;
    }
    characters[count].at = static_cast<std::uint16_t>(size);
    characters[count].tokens = static_cast<std::uint16_t>(tokens);
    bool any_loose = false;
    for (std::size_t i = 1; i < count; ++i) {
        Character &left = characters[i - 1], &right = characters[i];
        const std::uint32_t least = vocabulary.least_across(piece[right.at - 1], piece[right.at]);
        left.loose = left.loose || least < left.whole;
        right.loose = least < right.whole;
        any_loose = any_loose || left.loose || right.loose;
    }
    if (any_loose) {
        std::uint32_t parts[4 * kMaxInRegisters];
        std::size_t used = 0;
        for (const Character* c = characters; c != characters + count; ++c) {
            if (c->loose)
                for (std::size_t at = c->at; at < c[1].at; ++at) parts[used++] = vocabulary.byte_rank(piece[at]);
            else
                for (std::size_t at = c->tokens; at < c[1].tokens; ++at) parts[used++] = out[at];
        }
        std::memcpy(out, parts, used * sizeof parts[0]);
        tokens = used;
    }
    return tokens > kMaxInRegisters ? 0 : merge_tokens(vocabulary, out, tokens);
}

}  // namespace gptfast
