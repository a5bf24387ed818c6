// What merge_*.cpp share: each includes it once, compiled for its own instruction set, hence the unnamed namespace.
//
// A part is known by its first byte's position. Key of a part: rank of its merge with the next part << kPositionBits |
// position, so that the smallest key is the merge of lowest rank, leftmost first; kNoToken where there is no merge.
#pragma once

#include <cstring>

#include "bits.hpp"
#include "merge.hpp"

namespace gptfast {
namespace {

constexpr int kPositionBits = 8;
constexpr std::size_t kShort = 16, kMiddle = 256;

inline std::uint32_t key_of(std::uint32_t rank, int position) {
    return rank == kNoToken ? kNoToken : rank << kPositionBits | static_cast<std::uint32_t>(position);
}

// Up to 16 bytes: all keys in one `Keys`, a vector register or two; the parts still there are bits of a word.
template <class Keys>
std::size_t merge_short(const Vocabulary& vocabulary, const std::uint8_t* piece, int size, std::uint32_t* out) {
    std::uint32_t part[kShort];
    alignas(64) std::uint32_t initial[kShort];
    for (std::uint32_t& key : initial) key = kNoToken;
    part[0] = vocabulary.byte_rank(piece[0]);
    for (int i = 0; i + 1 < size; ++i) {
        part[i + 1] = vocabulary.byte_rank(piece[i + 1]);
        initial[i] = key_of(vocabulary.merge_bytes(piece[i], piece[i + 1]), i);
    }
    Keys keys(initial);
    std::uint32_t alive = (std::uint32_t{1} << size) - 1;
    std::uint32_t best;
    while ((best = keys.smallest()) != kNoToken) {
        const int at = best & ((1 << kPositionBits) - 1);
        const std::uint32_t merged = best >> kPositionBits;
        part[at] = merged;
        const int gone = lowest_bit(alive & (~std::uint32_t{0} << at << 1));
        alive &= ~(std::uint32_t{1} << gone);
        const std::uint32_t after = alive & (~std::uint32_t{0} << at << 1),
                            before = alive & ((std::uint32_t{1} << at) - 1);
        keys.set(gone, kNoToken);
        keys.set(at, after ? key_of(vocabulary.merge(merged, part[lowest_bit(after)]), at) : kNoToken);
        if (before) {
            const int previous = highest_bit(before);
            keys.set(previous, key_of(vocabulary.merge(part[previous], merged), previous));
        }
    }
    std::size_t count = 0;
    for (; alive; alive &= alive - 1) out[count++] = part[lowest_bit(alive)];
    return count;
}

// Up to 256 bytes: keys in memory, with the smallest of each 16 beside them, so that a merge costs three such minima.
template <class Keys>
std::size_t merge_middle(const Vocabulary& vocabulary, const std::uint8_t* piece, int size, std::uint32_t* out) {
    alignas(64) std::uint32_t key[kMiddle], block_key[kShort];
    std::uint32_t part[kMiddle];
    std::uint8_t next[kMiddle], previous[kMiddle];
    const int blocks = (size + 15) / 16;
    for (std::uint32_t& smallest : block_key) smallest = kNoToken;
    for (int i = size - 1; i < blocks * 16; ++i) key[i] = kNoToken;
    for (int i = 0; i < size; ++i) {
        part[i] = vocabulary.byte_rank(piece[i]);
        next[i] = static_cast<std::uint8_t>(i + 1);
        previous[i] = static_cast<std::uint8_t>(i - 1);
        if (i + 1 < size) key[i] = key_of(vocabulary.merge_bytes(piece[i], piece[i + 1]), i);
    }
    for (int b = 0; b < blocks; ++b) block_key[b] = Keys(key + 16 * b).smallest();
    const auto update = [&](int at, std::uint32_t value) {
        key[at] = value;
        block_key[at / 16] = Keys(key + at / 16 * 16).smallest();
    };
    // `next` of the last part is `size`, or 0 where size is 256 and does not fit: both are told from a part by its
    // position.
    const auto is_part = [&](int at, int from) { return at > from && at < size; };
    std::uint32_t best;
    while ((best = Keys(block_key).smallest()) != kNoToken) {
        const int at = best & ((1 << kPositionBits) - 1);
        const std::uint32_t merged = best >> kPositionBits;
        part[at] = merged;
        const int gone = next[at], after = next[gone];
        next[at] = next[gone];
        update(gone, kNoToken);
        if (is_part(after, gone)) {
            previous[after] = static_cast<std::uint8_t>(at);
            update(at, key_of(vocabulary.merge(merged, part[after]), at));
        } else {
            update(at, kNoToken);
        }
        if (at > 0) update(previous[at], key_of(vocabulary.merge(part[previous[at]], merged), previous[at]));
    }
    std::size_t count = 0;
    int i = 0;
    do {
        out[count++] = part[i];
        const int after = next[i];
        if (!is_part(after, i)) break;
        i = after;
    } while (true);
    return count;
}

template <class Keys>
std::size_t merge_with(const Vocabulary& vocabulary, const std::uint8_t* piece, std::size_t size, std::uint32_t* out) {
    if (size <= kShort) return merge_short<Keys>(vocabulary, piece, static_cast<int>(size), out);
    return merge_middle<Keys>(vocabulary, piece, static_cast<int>(size), out);
}

}  // namespace
}  // namespace gptfast
