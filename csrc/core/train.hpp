// Training of byte-pair encodings.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "count_table.hpp"

namespace gptfast {

// The byte values in the order of their ids, which is GPT-2's: first the printable characters of Latin-1, then the
// rest. Hugging Face's trainer arrives at the same order (it sorts by the characters that stand for bytes), and ties
// between pairs are broken by ids: so the order is part of what makes the merges equal.
std::array<std::uint8_t, 256> byte_order();

struct Merge {
    std::uint32_t left, right;  // ids; the merge with index i makes the token 256 + i
};

// Learns up to `n_merges` merges from counted words, starting from single bytes. Each merge joins the adjacent pair
// that occurs most often in all words; of several the one with the smallest left id, then the smallest right id. That
// is the rule of Hugging Face's BpeTrainer. Fewer come back when every word has become one token.
//
// `progress` (may be empty) is called now and then with the number of merges done; training stops early when it returns
// false. The result depends on the counts only, not on the order of the words.
std::vector<Merge> train_bpe(const CountTable& words, std::size_t n_merges,
                             const std::function<bool(std::size_t)>& progress = {});

// The bytes of all tokens in the order of their ids: 256 single bytes, then one token a merge.
std::vector<std::string> token_bytes(const std::vector<Merge>& merges);

}  // namespace gptfast
