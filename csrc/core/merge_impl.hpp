// What merge_*.cpp share: each includes it once, compiled for its own instruction set, hence the unnamed namespace.
//
// Key of a token: rank of its merge with the next one << kPositionBits | its position, so that the smallest key is the
// merge of lowest rank, leftmost first; kNoToken where there is no merge.
#pragma once

#include <cstring>

#include "bits.hpp"
#include "merge.hpp"

namespace gptfast {
namespace {

constexpr int kPositionBits = 6;

inline std::uint32_t key_of(std::uint32_t merged, int position) {
    const std::uint32_t key = merged << kPositionBits | static_cast<std::uint32_t>(position);
    return merged == kNoToken ? kNoToken : key;
}

// Up to Keys::kSize - 2 tokens: all keys are in `Keys`, a few vector registers, and the positions still there are bits
// of a word. At both ends stands a token that merges with nothing: nearly nothing branches but the end of the loop.
template <class Keys>
std::size_t merge_in_registers(const Vocabulary& vocabulary, std::uint32_t* tokens, std::size_t count,
                               const std::uint8_t* bytes) {
    alignas(64) std::uint32_t initial[Keys::kSize];
    std::uint32_t part[Keys::kSize];
    part[0] = part[count + 1] = PairTable::kMaxTokens;
    for (std::size_t i = 0; i < count; ++i) part[i + 1] = tokens[i];
    initial[0] = kNoToken;
    for (std::size_t i = 1; i < count; ++i) {
        const std::uint32_t merged =
            bytes ? vocabulary.merge_bytes(bytes[i - 1], bytes[i]) : vocabulary.merge(part[i], part[i + 1]);
        initial[i] = key_of(merged, static_cast<int>(i));
        if (bytes) {  // what is looked up if this merge is done: a new word seldom finds it in the cache
            vocabulary.prefetch_merge(merged, part[i + 2]);
            vocabulary.prefetch_merge(part[i - 1], merged);
        }
    }
    for (std::size_t i = count; i < Keys::kSize; ++i) initial[i] = kNoToken;
    Keys keys(initial);
    std::uint64_t alive = ~std::uint64_t{0} >> (62 - count);
    std::uint32_t best;
    while ((best = keys.smallest()) != kNoToken) {
        const int at = best & ((1 << kPositionBits) - 1);
        const std::uint32_t merged = best >> kPositionBits;
        part[at] = merged;
        const std::uint64_t above = ~std::uint64_t{1} << at;
        const int gone = lowest_bit(alive & above);
        alive &= ~(std::uint64_t{1} << gone);
        const int next = lowest_bit(alive & above);
        const int previous = highest_bit(alive & ~above & ~(std::uint64_t{1} << at));
        keys.set(gone, kNoToken);
        keys.set(at, key_of(vocabulary.merge(merged, part[next]), at));
        keys.set(previous, key_of(vocabulary.merge(part[previous], merged), previous));
    }
    std::size_t left = 0;
    alive &= ~std::uint64_t{1};
    for (; alive & (alive - 1); alive &= alive - 1) tokens[left++] = part[lowest_bit(alive)];
    return left;
}

// Up to kMaxInRegisters tokens, at least one. `bytes`: what they are, where all are single bytes; else nullptr.
template <template <std::size_t> class Keys>
std::size_t merge_with(const Vocabulary& vocabulary, std::uint32_t* tokens, std::size_t count,
                       const std::uint8_t* bytes) {
    if (count <= 14) return merge_in_registers<Keys<16>>(vocabulary, tokens, count, bytes);
    if (count <= 30) return merge_in_registers<Keys<32>>(vocabulary, tokens, count, bytes);
    return merge_in_registers<Keys<64>>(vocabulary, tokens, count, bytes);
}

}  // namespace
}  // namespace gptfast
