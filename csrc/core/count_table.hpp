// A hash table from words (byte strings, most of them short) to how often they were seen.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "prefetch.hpp"
#include "words.hpp"

namespace gptfast {

// A word of at most 15 bytes is its own key, in two registers; the bytes of longer ones lie in an arena. Both tables
// are open-addressed with linear probing, at most two thirds full.
class CountTable {
  public:
    static constexpr std::size_t kWordCost = 64;  // bytes that a word takes here, about: between 36 and 72

    CountTable();

    // Adds one to a word's count. Bytes up to `limit` may be read, which lies at or after the word's end. Words reach
    // the table at the latest with flush().
    void add(const std::uint8_t* word, std::size_t size, const std::uint8_t* limit) {
        if (size > Word::kMaxBytes) return add_long(word, size, hash(word, size), 1);
        const Word key = WordTable::word(word, size, static_cast<std::size_t>(limit - word));
        const std::uint64_t hashed = hash(key);
        prefetch(&slots_[static_cast<std::size_t>(hashed >> shift_)]);
        pending_[n_pending_] = {key, hashed};
        if (++n_pending_ == kPending) flush();
    }
    void flush();

    void merge(CountTable& other);              // adds all of other's counts, and empties it
    std::size_t prune(std::size_t most_bytes);  // as WordCounts describes; returns how many words went
    std::size_t unique() const { return n_short_ + n_long_; }
    std::size_t cost() const { return unique() * kWordCost + arena_.size(); }

    // Calls f(bytes, size, count) for every word, in no particular order.
    template <class F>
    void each(F&& f) const {
        for (const Slot& slot : slots_) {
            if (slot.count == 0) continue;
            std::uint8_t bytes[16];
            std::memcpy(bytes, &slot.key, 16);
            f(static_cast<const std::uint8_t*>(bytes), static_cast<std::size_t>(bytes[15]), slot.count);
        }
        for (const LongSlot& slot : long_slots_)
            if (slot.count) f(arena_.data() + slot.begin, static_cast<std::size_t>(slot.size), slot.count);
    }

  private:
    static constexpr std::size_t kPending = 64;  // words whose slots are on their way to the cache

    struct Slot {
        Word key;
        std::uint64_t count;  // 0: free
    };
    struct LongSlot {
        std::uint64_t hash, begin, size, count;  // count 0: free
    };
    struct Pending {
        Word key;
        std::uint64_t hash;
    };

    static std::uint64_t hash(const Word& key) {
        const std::uint64_t h = key.low * 0x9E3779B97F4A7C15 ^ (key.high * 0xC2B2AE3D27D4EB4F >> 1);
        return (h ^ h >> 32) * 0xD6E8FEB86659FD93;
    }
    static std::uint64_t hash(const std::uint8_t* word, std::size_t size);

    void add_short(const Word& key, std::uint64_t hashed, std::uint64_t count);
    void add_long(const std::uint8_t* word, std::size_t size, std::uint64_t hashed, std::uint64_t count);
    void take(const CountTable& other, std::uint64_t above);
    void reserve_short(std::size_t words);
    void reserve_long(std::size_t words);

    std::vector<Slot> slots_;
    std::vector<LongSlot> long_slots_;
    std::vector<std::uint8_t> arena_;
    std::size_t n_short_ = 0, n_long_ = 0;
    int shift_ = 64;  // 64 - log2(slots_.size())
    std::size_t n_pending_ = 0;
    Pending pending_[kPending];
};

}  // namespace gptfast
