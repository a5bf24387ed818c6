#include "count_table.hpp"

#include <map>
#include <utility>

namespace gptfast {

CountTable::CountTable() : slots_(std::size_t{1} << 14), long_slots_(std::size_t{1} << 8) {
    for (std::size_t n = 1; n < slots_.size(); n *= 2) --shift_;
}

void CountTable::flush() {
    reserve_short(n_short_ + n_pending_);
    for (std::size_t i = 0; i < n_pending_; ++i) add_short(pending_[i].key, pending_[i].hash, 1);
    n_pending_ = 0;
}

// There must be room: reserve_short was called.
void CountTable::add_short(const Word& key, std::uint64_t hashed, std::uint64_t count) {
    Slot* const slots = slots_.data();
    const std::size_t mask = slots_.size() - 1;
    for (std::size_t i = static_cast<std::size_t>(hashed >> shift_);; i = (i + 1) & mask) {
        if (slots[i].key.low == key.low && slots[i].key.high == key.high) {
            slots[i].count += count;
            return;
        }
        if (slots[i].count == 0) {
            slots[i] = {key, count};
            ++n_short_;
            return;
        }
    }
}

void CountTable::add_long(const std::uint8_t* word, std::size_t size, std::uint64_t hashed, std::uint64_t count) {
    reserve_long(n_long_ + 1);
    const std::size_t mask = long_slots_.size() - 1;
    for (std::size_t i = static_cast<std::size_t>(hashed) & mask;; i = (i + 1) & mask) {
        LongSlot& slot = long_slots_[i];
        if (slot.count == 0) {
            slot = {hashed, arena_.size(), size, count};
            arena_.insert(arena_.end(), word, word + size);
            ++n_long_;
            return;
        }
        if (slot.hash == hashed && slot.size == size && std::memcmp(arena_.data() + slot.begin, word, size) == 0) {
            slot.count += count;
            return;
        }
    }
}

std::uint64_t CountTable::hash(const std::uint8_t* word, std::size_t size) {
    std::uint64_t h = size, part = 0;
    for (; size >= 8; size -= 8, word += 8) {
        std::memcpy(&part, word, 8);
        h = (h ^ part) * 0x9E3779B97F4A7C15;
        h ^= h >> 29;
    }
    part = 0;
    std::memcpy(&part, word, size);
    h = (h ^ part) * 0xC2B2AE3D27D4EB4F;
    return h ^ h >> 32;
}

void CountTable::reserve_short(std::size_t words) {
    std::size_t size = slots_.size();
    for (; words * 3 > size * 2; size *= 2) --shift_;
    if (size == slots_.size()) return;
    std::vector<Slot> old(size);
    old.swap(slots_);
    n_short_ = 0;
    for (const Slot& slot : old)
        if (slot.count) add_short(slot.key, hash(slot.key), slot.count);
}

void CountTable::reserve_long(std::size_t words) {
    std::size_t size = long_slots_.size();
    while (words * 3 > size * 2) size *= 2;
    if (size == long_slots_.size()) return;
    std::vector<LongSlot> old(size);
    old.swap(long_slots_);
    for (const LongSlot& slot : old) {
        if (slot.count == 0) continue;
        std::size_t i = static_cast<std::size_t>(slot.hash) & (size - 1);
        while (long_slots_[i].count) i = (i + 1) & (size - 1);
        long_slots_[i] = slot;
    }
}

// Adds other's words whose count is greater than `above`. They come in the order of their hashes: in a table that had
// to grow on the way they would all lie in its first part, in one long cluster. So there must be room for all.
void CountTable::take(const CountTable& other, std::uint64_t above) {
    for (const Slot& slot : other.slots_)
        if (slot.count > above) add_short(slot.key, hash(slot.key), slot.count);
    for (const LongSlot& slot : other.long_slots_)
        if (slot.count > above) add_long(other.arena_.data() + slot.begin, slot.size, slot.hash, slot.count);
}

void CountTable::merge(CountTable& other) {
    flush();
    other.flush();
    if (other.unique() > unique()) std::swap(*this, other);
    reserve_short(n_short_ + other.n_short_);
    reserve_long(n_long_ + other.n_long_);
    take(other, 0);
    other = CountTable();
}

std::size_t CountTable::prune(std::size_t most_bytes) {
    std::map<std::uint64_t, std::size_t> cost_of;  // count -> what all words with it cost
    each([&](const std::uint8_t*, std::size_t size, std::uint64_t count) {
        cost_of[count] += kWordCost + (size > Word::kMaxBytes ? size : 0);
    });
    std::size_t left = cost();
    std::uint64_t most = 0;  // words with at most this count go
    for (const auto& [count, bytes] : cost_of) {
        if (left <= most_bytes) break;
        left -= bytes;
        most = count;
    }
    std::size_t n_short = 0, n_long = 0;  // that stay
    each([&](const std::uint8_t*, std::size_t size, std::uint64_t count) {
        if (count > most) ++(size > Word::kMaxBytes ? n_long : n_short);
    });
    const std::size_t before = unique();
    CountTable kept;
    kept.reserve_short(n_short);
    kept.reserve_long(n_long);
    kept.take(*this, most);
    *this = std::move(kept);
    return before - unique();
}

}  // namespace gptfast
