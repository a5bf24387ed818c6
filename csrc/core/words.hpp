// What a pre-token encodes to, for every token of the vocabulary and for pre-tokens seen before: one look-up for most
// of a text.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "prefetch.hpp"
#include "vocabulary.hpp"

namespace gptfast {

// A growing array of tokens, with room to write a few past the end.
class Tokens {
  public:
    static constexpr std::size_t kSlack = 4;

    Tokens() = default;
    ~Tokens();
    Tokens(Tokens&& other) noexcept : data_(other.data_), size_(other.size_), capacity_(other.capacity_) {
        other.forget();
    }
    Tokens& operator=(Tokens&& other) noexcept;
    Tokens(const Tokens&) = delete;
    Tokens& operator=(const Tokens&) = delete;

    // Makes room for `more` tokens beyond the end, and kSlack after them. Throws std::bad_alloc.
    void reserve(std::size_t more) {
        if (capacity_ - size_ < more + kSlack) grow(more);
    }
    std::uint32_t* begin() { return data_; }
    std::uint32_t* end() { return data_ + size_; }
    void extend(std::size_t n) { size_ += n; }  // after writing at end()
    void push(std::uint32_t token) {
        reserve(1);
        data_[size_++] = token;
    }
    void truncate(std::size_t size) { size_ = size; }
    void shrink();  // gives back what is not used

    const std::uint32_t* data() const { return data_; }
    std::size_t size() const { return size_; }
    std::uint32_t* release();  // the caller frees it with std::free

  private:
    void grow(std::size_t more);
    void forget() {
        data_ = nullptr;
        size_ = capacity_ = 0;
    }

    std::uint32_t* data_ = nullptr;
    std::size_t size_ = 0, capacity_ = 0;
};

// A pre-token of at most 15 bytes: the bytes, zeros, and in the last byte the length, as two little-endian words.
struct Word {
    static constexpr std::size_t kMaxBytes = 15;
    std::uint64_t low, high;
};

class WordTable {
  public:
    static constexpr std::size_t kReserve = 64 * Word::kMaxBytes;

    explicit WordTable(const Vocabulary& vocabulary);

    // `readable` bytes can be read at `piece`; where they are 16 or more, none of them is copied one by one.
    static Word word(const std::uint8_t* piece, std::size_t size, std::size_t readable) {
        std::uint64_t low = 0, high = 0;
        if (readable >= 16) {
            std::memcpy(&low, piece, 8);
            std::memcpy(&high, piece + 8, 8);
            low &= kMask[size][0];
            high &= kMask[size][1];
        } else {
            std::memcpy(&low, piece, size < 8 ? size : 8);
            if (size > 8) std::memcpy(&high, piece + 8, size - 8);
        }
        return {low, high | std::uint64_t{size} << 56};
    }

    std::size_t slot(const Word& word) const {
        return (word.low * 0x9E3779B97F4A7C15 + word.high * 0xC2B2AE3D27D4EB4F) >> shift_;
    }
    void prefetch(std::size_t slot) const { gptfast::prefetch(&entries_[slot]); }

    // Appends the tokens of a short pre-token whose slot is known; kReserve were reserved, and are again.
    void encode(const Word& word, std::size_t slot, Tokens& out) {
        const Entry* entry = &entries_[slot];
        for (std::size_t probes = 0; entry->low != word.low || entry->high != word.high; ++probes) {
            if (entry->count == 0 || probes == most_probes_) return encode_new(word, out);
            entry = entry == last_ ? entries_ : entry + 1;
        }
        std::uint32_t* end = out.end();
        std::memcpy(end, entry->tokens, sizeof entry->tokens);
        if (entry->count > kInline) std::memcpy(end, &overflow_[entry->tokens[0]], Word::kMaxBytes * sizeof *end);
        out.extend(entry->count);
    }

    // Appends the tokens of any longer pre-token, given its long_hash.
    void encode_long(const std::uint8_t* piece, std::size_t size, std::uint64_t hash, Tokens& out);

    // Turned by half: the last multiplication carries upwards, and the table is indexed by the lower bits.
    static std::uint64_t long_hash(const std::uint8_t* piece, std::size_t size) {
        const std::uint64_t hash = size > kMaxLongBytes ? 0 : hash_bytes(piece, size);
        return hash >> 32 | hash << 32;
    }
    void prefetch_long(std::uint64_t hash) const { gptfast::prefetch(&long_entries_[hash % kLongSlots]); }
    void prefetch_long_tokens(std::uint64_t hash) const {
        gptfast::prefetch(&arena_[long_entries_[hash % kLongSlots].place]);
    }

    std::size_t memory() const;

  private:
    static constexpr std::uint32_t kInline = 3;  // tokens that an entry holds itself
    static constexpr std::size_t kMaxProbes =
        24;  // a word farther from its slot is not remembered: no text makes look-ups slow
    static constexpr std::size_t kOverflow = std::size_t{1} << 20;  // tokens
    static constexpr std::size_t kMaxLongBytes = 1024;              // longer pre-tokens are not remembered
    static constexpr std::size_t kArena = std::size_t{1} << 21;     // words of 4 bytes
    static constexpr std::size_t kLongSlots = std::size_t{1} << 17;
    static const std::uint64_t kMask[Word::kMaxBytes + 1][2];

    struct Entry {
        std::uint64_t low, high;
        std::uint32_t tokens[kInline];  // more of them: where they are in overflow_
        std::uint32_t count;            // 0: the slot is free
    };
    struct LongEntry {
        std::uint64_t hash;
        std::uint32_t place;  // in arena_: count tokens, then the bytes
        std::uint16_t size, count;
    };
    struct Free {
        void operator()(void* p) const;
    };

    void reset();
    void reset_long();
    std::size_t free_slot(const Word& word, std::size_t& probes) const;
    void insert(std::size_t slot, const Word& word, const std::uint32_t* tokens, std::size_t count);
    void insert_long(std::uint64_t hash, const std::uint8_t* piece, std::size_t size, const std::uint32_t* tokens,
                     std::size_t count);
    void encode_new(const Word& word, Tokens& out);
    void merge(const std::uint8_t* piece, std::size_t size, Tokens& out);

    const Vocabulary& vocabulary_;
    std::unique_ptr<void, Free> memory_;
    Entry *entries_, *last_;
    std::size_t slots_, used_ = 0, limit_, most_probes_ = 0;
    int shift_;
    std::unique_ptr<std::uint32_t[], Free> overflow_, arena_;
    std::unique_ptr<LongEntry[], Free> long_entries_;
    std::size_t overflow_used_ = 0, long_used_ = 0, arena_used_ = 0;
};

}  // namespace gptfast
