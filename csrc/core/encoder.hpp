// One thread's encoder: pre-tokens in batches, so that their look-ups' memory accesses overlap.
#pragma once

#include <cstddef>
#include <cstdint>

#include "pattern.hpp"
#include "words.hpp"

namespace gptfast {

class Encoder {
  public:
    explicit Encoder(const Vocabulary& vocabulary) : vocabulary_(vocabulary), words_(vocabulary) {}

    // Appends the ids of `text` (UTF-8), special tokens in it taken as plain text.
    void encode(Pattern pattern, const std::uint8_t* text, std::size_t size, Tokens& out);

    // Appends the ids of one pre-token (any bytes).
    void encode_piece(const std::uint8_t* piece, std::size_t size, Tokens& out);

    std::size_t memory() const { return words_.memory(); }

  private:
    static constexpr std::size_t kBatch = 64;

    struct Pending {
        Word word;           // a long pre-token: its address, and kLong + its size
        std::uint64_t slot;  // in the table; a long pre-token: its hash
    };
    static constexpr std::uint64_t kLong = std::uint64_t{1} << 63;

    void flush(bool any_long, Tokens& out);

    const Vocabulary& vocabulary_;
    WordTable words_;
    std::size_t pending_ = 0;
    Pending batch_[kBatch];
};

}  // namespace gptfast
