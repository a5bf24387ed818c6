// What merge_*.cpp share: each includes it once, compiled for its own instruction set, hence the unnamed namespace.
//
// A token is known by its first position. Key of a token: rank of its merge with the next one << kPositionBits |
// position, so that the smallest key is the merge of lowest rank, leftmost first; kNoToken where there is no merge.
#pragma once

#include <cstring>

#include "bits.hpp"
#include "merge.hpp"

namespace gptfast {
namespace {

constexpr int kPositionBits = 6;

inline std::uint32_t key_of(std::uint32_t rank, int position) {
    return rank == kNoToken ? kNoToken : rank << kPositionBits | static_cast<std::uint32_t>(position);
}

// Up to Keys::kSize tokens: all keys are in `Keys`, a few vector registers, and the positions still there are bits of a
// word.
template <class Keys>
std::size_t merge_in_registers(const Vocabulary& vocabulary, std::uint32_t* tokens, std::size_t count) {
    alignas(64) std::uint32_t initial[Keys::kSize];
    for (std::size_t i = 0; i + 1 < count; ++i)
        initial[i] = key_of(vocabulary.merge(tokens[i], tokens[i + 1]), static_cast<int>(i));
    for (std::size_t i = count - 1; i < Keys::kSize; ++i) initial[i] = kNoToken;
    Keys keys(initial);
    std::uint64_t alive = ~std::uint64_t{0} >> (64 - count);
    std::uint32_t best;
    while ((best = keys.smallest()) != kNoToken) {
        const int at = best & ((1 << kPositionBits) - 1);
        const std::uint32_t merged = best >> kPositionBits;
        tokens[at] = merged;
        const std::uint64_t above = ~std::uint64_t{1} << at;
        const int gone = lowest_bit(alive & above);
        alive &= ~(std::uint64_t{1} << gone);
        const std::uint64_t after = alive & above, before = alive & ~above & ~(std::uint64_t{1} << at);
        keys.set(gone, kNoToken);
        keys.set(at, after ? key_of(vocabulary.merge(merged, tokens[lowest_bit(after)]), at) : kNoToken);
        if (before) {
            const int previous = highest_bit(before);
            keys.set(previous, key_of(vocabulary.merge(tokens[previous], merged), previous));
        }
    }
    std::size_t left = 0;
    for (; alive; alive &= alive - 1) tokens[left++] = tokens[lowest_bit(alive)];
    return left;
}

// Up to kMaxInRegisters tokens, at least one.
template <template <std::size_t> class Keys>
std::size_t merge_with(const Vocabulary& vocabulary, std::uint32_t* tokens, std::size_t count) {
    if (count <= 16) return merge_in_registers<Keys<16>>(vocabulary, tokens, count);
    if (count <= 32) return merge_in_registers<Keys<32>>(vocabulary, tokens, count);
    return merge_in_registers<Keys<64>>(vocabulary, tokens, count);
}

}  // namespace
}  // namespace gptfast
