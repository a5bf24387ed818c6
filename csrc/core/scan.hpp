// The end of one pre-token, one character at a time: the patterns of tiktoken's encodings, by hand.
//
// These scanners are the definition; blocks.cpp finds the same ends 64 ASCII bytes at a time. All read [p, end) only,
// whatever the bytes are; on text that is not UTF-8 their result is some split, never an error.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pattern.hpp"
#include "unicode.hpp"

namespace gptfast {

struct Char {
    CharClass kind;
    std::uint8_t length;  // bytes
};

// The character at p < end. A sequence that is cut off by `end`, or a stray byte, counts as one character.
inline Char char_at(const std::uint8_t* p, const std::uint8_t* end) {
    const std::uint32_t b = *p;
    if (b < 0x80) return {char_class(b), 1};
    const std::ptrdiff_t left = end - p;
    if (b < 0xE0) {
        if (b < 0xC0 || left < 2) return {CharClass::kOther, 1};
        return {char_class((b & 0x1F) << 6 | (p[1] & 0x3Fu)), 2};
    }
    if (b < 0xF0) {
        if (left < 3) return {CharClass::kOther, static_cast<std::uint8_t>(left)};
        return {char_class((b & 0x0F) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu)), 3};
    }
    if (left < 4) return {CharClass::kOther, static_cast<std::uint8_t>(left)};
    return {char_class((b & 0x07) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu)), 4};
}

inline bool is_letter(CharClass c) {
    return c == CharClass::kLower || c == CharClass::kUpper || c == CharClass::kLetter;
}
inline bool is_white(CharClass c) { return c == CharClass::kSpace || c == CharClass::kNewline; }
inline bool is_other(CharClass c) { return c == CharClass::kOther || c == CharClass::kMark; }  // [^\s\p{L}\p{N}]
inline bool is_number(CharClass c) { return c == CharClass::kNumber; }

// The end of the run of characters from p on whose class satisfies `member`.
template <class Member>
const std::uint8_t* run_end(const std::uint8_t* p, const std::uint8_t* end, Member member) {
    while (p != end) {
        const Char c = char_at(p, end);
        if (!member(c.kind)) break;
        p += c.length;
    }
    return p;
}

// The bytes of a contraction at p: '(?:[sdmt]|ll|ve|re), 0 where there is none. Without case, s is also U+017F (its
// simple case folding).
template <bool kIgnoreCase>
std::size_t contraction(const std::uint8_t* p, const std::uint8_t* end) {
    if (end - p < 2 || *p != '\'') return 0;
    const std::uint8_t fold = kIgnoreCase ? 0x20 : 0;
    const std::uint8_t a = p[1] | fold;
    if (a == 's' || a == 'd' || a == 'm' || a == 't') return 2;
    if (end - p < 3) return 0;
    if (kIgnoreCase && p[1] == 0xC5 && p[2] == 0xBF) return 3;
    const std::uint8_t b = p[2] | fold;
    return ((a == 'l' && b == 'l') || (a == 'v' && b == 'e') || (a == 'r' && b == 'e')) ? 3 : 0;
}

struct WhiteRun {
    const std::uint8_t* end;
    const std::uint8_t* last;         // where the run's last character starts
    const std::uint8_t* newline_end;  // after the run's last CR or LF; nullptr where there is none
};

inline WhiteRun white_run(const std::uint8_t* p, const std::uint8_t* end) {
    WhiteRun run{p, p, nullptr};
    while (run.end != end) {
        const Char c = char_at(run.end, end);
        if (!is_white(c.kind)) break;
        run.last = run.end;
        run.end += c.length;
        if (c.kind == CharClass::kNewline) run.newline_end = run.end;
    }
    return run;
}

// \s+(?!\S)|\s at the start of a run that does not reach the end of the text: all but its last character, if that
// leaves any.
inline const std::uint8_t* white_end(const std::uint8_t* p, const WhiteRun& run) {
    return run.last != p ? run.last : run.end;
}

template <Pattern>
const std::uint8_t* scan(const std::uint8_t* p, const std::uint8_t* end);

// '(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s
template <>
inline const std::uint8_t* scan<Pattern::kGpt2>(const std::uint8_t* p, const std::uint8_t* end) {
    if (const std::size_t n = contraction<false>(p, end)) return p + n;
    const std::uint8_t* q = p + (*p == ' ');
    if (q != end) {
        const CharClass kind = char_at(q, end).kind;
        if (is_letter(kind)) return run_end(q, end, is_letter);
        if (is_number(kind)) return run_end(q, end, is_number);
        if (is_other(kind)) return run_end(q, end, is_other);
    }
    const WhiteRun run = white_run(p, end);
    return run.end == end ? end : white_end(p, run);
}

// \p{N}{1,3}
inline const std::uint8_t* number_end(const std::uint8_t* p, const std::uint8_t* end) {
    for (int digits = 0; digits < 3 && p != end; ++digits) {
        const Char c = char_at(p, end);
        if (!is_number(c.kind)) break;
        p += c.length;
    }
    return p;
}

// '(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]|\s+(?!\S)|\s
template <>
inline const std::uint8_t* scan<Pattern::kCl100k>(const std::uint8_t* p, const std::uint8_t* end) {
    if (const std::size_t n = contraction<true>(p, end)) return p + n;
    const Char first = char_at(p, end);
    if (is_letter(first.kind)) return run_end(p, end, is_letter);
    if (is_number(first.kind)) return number_end(p, end);
    const std::uint8_t* next = p + first.length;
    if (first.kind != CharClass::kNewline && next != end && is_letter(char_at(next, end).kind))
        return run_end(next, end, is_letter);
    const std::uint8_t* q = p + (*p == ' ');
    if (q != end && is_other(char_at(q, end).kind)) {
        q = run_end(q, end, is_other);
        while (q != end && (*q == '\r' || *q == '\n')) ++q;
        return q;
    }
    const WhiteRun run = white_run(p, end);
    if (run.end == end) return end;
    return run.newline_end ? run.newline_end : white_end(p, run);
}

// The two word alternatives of o200k at q, where the optional prefix was taken or not; nullptr where they do not match.
// U = [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}], L = [\p{Ll}\p{Lm}\p{Lo}\p{M}]. U*L+ takes the longest run of U; where no
// lower-case letter follows it, the engine gives characters back until one is in L too, so the word ends after the last
// such.
template <bool kNeedsLower>
const std::uint8_t* o200k_word(const std::uint8_t* q, const std::uint8_t* end) {
    const std::uint8_t* p = q;
    const std::uint8_t* after_shared = nullptr;  // after the last character that is in both U and L
    Char c{CharClass::kOther, 0};
    while (p != end) {
        c = char_at(p, end);
        const bool shared = c.kind == CharClass::kLetter || c.kind == CharClass::kMark;
        if (!shared && c.kind != CharClass::kUpper) break;
        p += c.length;
        if (shared) after_shared = p;
    }
    if (kNeedsLower) {
        if (p != end && c.kind == CharClass::kLower) {
            p = run_end(p, end, [](CharClass k) {
                return k == CharClass::kLower || k == CharClass::kLetter || k == CharClass::kMark;
            });
        } else if (after_shared) {
            p = after_shared;
        } else {
            return nullptr;
        }
    } else if (p == q) {
        return nullptr;  // U+L*: only reached where no character of the run is in L, so U+ is all of it
    }
    return p + contraction<true>(p, end);
}

// [^\r\n\p{L}\p{N}]?U*L+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?U+L*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}
// | ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+
template <>
inline const std::uint8_t* scan<Pattern::kO200k>(const std::uint8_t* p, const std::uint8_t* end) {
    const Char first = char_at(p, end);
    if (is_number(first.kind)) return number_end(p, end);
    if (first.kind != CharClass::kNewline) {
        const bool letter = is_letter(first.kind);
        const bool in_word = letter || first.kind == CharClass::kMark;  // a mark can be the prefix or part of the word
        const std::uint8_t* next = p + first.length;
        const std::uint8_t* found = nullptr;
        if (!letter) found = o200k_word<true>(next, end);
        if (!found && in_word) found = o200k_word<true>(p, end);
        if (!found && !letter) found = o200k_word<false>(next, end);
        if (!found && in_word) found = o200k_word<false>(p, end);
        if (found) return found;
    }
    const std::uint8_t* q = p + (*p == ' ');
    if (q != end && is_other(char_at(q, end).kind)) {
        q = run_end(q, end, is_other);
        while (q != end && (*q == '\r' || *q == '\n' || *q == '/')) ++q;
        return q;
    }
    const WhiteRun run = white_run(p, end);
    if (run.newline_end) return run.newline_end;
    return run.end == end ? end : white_end(p, run);
}

}  // namespace gptfast
