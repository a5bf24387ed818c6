// Byte-pair merging: of all adjacent pairs that are a token together, merge the one of lowest rank, leftmost first,
// until none is left (Sennrich et al. 2016, arXiv:1508.07909; the order is tiktoken's).
#pragma once

#include <cstddef>
#include <cstdint>

#include "vocabulary.hpp"

namespace gptfast {

// Merges `count` tokens in place; returns how many are left. n log n in the worst case, without recursion.
std::size_t merge_tokens(const Vocabulary& vocabulary, std::uint32_t* tokens, std::size_t count);

// Writes the tokens of `piece` to `out`, which has room for `size` of them; returns how many.
std::size_t byte_pair_merge(const Vocabulary& vocabulary, const std::uint8_t* piece, std::size_t size,
                            std::uint32_t* out);

}  // namespace gptfast
