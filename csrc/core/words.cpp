#include "words.hpp"

#include <algorithm>
#include <cstdlib>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "merge.hpp"

namespace gptfast {

Tokens::~Tokens() { std::free(data_); }

Tokens& Tokens::operator=(Tokens&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
    std::swap(capacity_, other.capacity_);
    return *this;
}

void Tokens::grow(std::size_t more) {
    const std::size_t wanted = std::max(size_ + more, capacity_ + capacity_ / 2) + kSlack;
    auto* grown = static_cast<std::uint32_t*>(std::realloc(data_, wanted * sizeof *data_));
    if (!grown) throw std::bad_alloc();
    data_ = grown;
    capacity_ = wanted;
}

void Tokens::shrink() {
    if (auto* less =
            static_cast<std::uint32_t*>(std::realloc(data_, std::max<std::size_t>(size_, 1) * sizeof *data_))) {
        data_ = less;
        capacity_ = std::max<std::size_t>(size_, 1);
    }
}

std::uint32_t* Tokens::release() {
    std::uint32_t* data = data_;
    forget();
    return data;
}

const std::uint64_t WordTable::kMask[Word::kMaxBytes + 1][2] = {
    {0, 0},
    {0xFF, 0},
    {0xFFFF, 0},
    {0xFFFFFF, 0},
    {0xFFFFFFFF, 0},
    {0xFFFFFFFFFF, 0},
    {0xFFFFFFFFFFFF, 0},
    {0xFFFFFFFFFFFFFF, 0},
    {0xFFFFFFFFFFFFFFFF, 0},
    {0xFFFFFFFFFFFFFFFF, 0xFF},
    {0xFFFFFFFFFFFFFFFF, 0xFFFF},
    {0xFFFFFFFFFFFFFFFF, 0xFFFFFF},
    {0xFFFFFFFFFFFFFFFF, 0xFFFFFFFF},
    {0xFFFFFFFFFFFFFFFF, 0xFFFFFFFFFF},
    {0xFFFFFFFFFFFFFFFF, 0xFFFFFFFFFFFF},
    {0xFFFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFF},
};

void WordTable::Free::operator()(void* p) const { std::free(p); }

// Twice as many slots again as the vocabulary needs to be half full: the rest is for pre-tokens of several tokens.
WordTable::WordTable(const Vocabulary& vocabulary)
    : vocabulary_(vocabulary), slots_(std::size_t{1} << 14), shift_(64 - 14) {
    while (slots_ < 4 * vocabulary.size()) {
        slots_ *= 2;
        --shift_;
    }
    limit_ = slots_ / 8 * 5;
    constexpr std::size_t kHugePage = std::size_t{1} << 21;
    const std::size_t bytes = slots_ * sizeof(Entry);
#if defined(__linux__)
    memory_.reset(std::aligned_alloc(std::min(kHugePage, bytes), bytes));
    // Random access over megabytes: with 4 KB pages most of it would miss the TLB too.
    if (memory_) madvise(memory_.get(), bytes, MADV_HUGEPAGE);
#else
    memory_.reset(std::malloc(bytes));
#endif
    if (!memory_) throw std::bad_alloc();
    entries_ = static_cast<Entry*>(memory_.get());
    last_ = entries_ + slots_ - 1;
    reset();
    reset_long();
}

void WordTable::reset() {
    std::memset(static_cast<void*>(entries_), 0, slots_ * sizeof(Entry));
    used_ = 0;
    most_probes_ = kMaxProbes;
    overflow_.clear();
    for (std::uint32_t rank = 0; rank < vocabulary_.size(); ++rank) {
        const std::string_view token = vocabulary_.bytes(rank);
        if (token.size() > Word::kMaxBytes) continue;
        const std::uint32_t id = vocabulary_.id(rank);
        const Word found =
            word(reinterpret_cast<const std::uint8_t*>(token.data()), token.size(), 16);  // bytes() are padded
        std::size_t probes;
        insert(free_slot(found, probes), found, &id, 1);
        most_probes_ = std::max(most_probes_, probes);
    }
}

std::size_t WordTable::free_slot(const Word& word, std::size_t& probes) const {
    std::size_t i = slot(word);
    for (probes = 0; entries_[i].count; ++probes) i = i + 1 == slots_ ? 0 : i + 1;
    return i;
}

void WordTable::insert(std::size_t slot, const Word& word, const std::uint32_t* ids, std::size_t count) {
    Entry& entry = entries_[slot];
    entry.low = word.low;
    entry.high = word.high;
    entry.count = static_cast<std::uint32_t>(count);
    if (count <= kInline) {
        std::memcpy(entry.ids, ids, count * sizeof *ids);
    } else {
        entry.ids[0] = static_cast<std::uint32_t>(overflow_.size());
        overflow_.insert(overflow_.end(), ids, ids + count);
        overflow_.resize(overflow_.size() + Word::kMaxBytes - count);  // so that copying may always copy kMaxBytes
    }
    ++used_;
}

void WordTable::encode_new(const Word& word, Tokens& out) {
    const std::size_t size = word.high >> 56;
    std::uint8_t piece[16];
    std::memcpy(piece, &word.low, 8);
    std::memcpy(piece + 8, &word.high, 8);
    std::uint32_t ids[Word::kMaxBytes + 1];
    const std::size_t count = byte_pair_merge(vocabulary_, piece, size, ids);
    for (std::size_t i = 0; i < count; ++i) ids[i] = vocabulary_.id(ids[i]);
    if (used_ >= limit_ || overflow_.size() > kMaxOverflow) reset();
    std::size_t probes;
    const std::size_t slot = free_slot(word, probes);
    if (probes <= most_probes_) insert(slot, word, ids, count);
    std::memcpy(out.end(), ids, count * sizeof *ids);
    out.extend(count);
}

void WordTable::reset_long() {
    long_entries_.assign(std::max<std::size_t>(std::size_t{1} << 16, slots_ / 4), LongEntry{0, 0, 0, 0});
    long_used_ = 0;
    arena_.clear();
}

void WordTable::insert_long(std::uint64_t hash, const std::uint8_t* piece, std::size_t size, const std::uint32_t* ids,
                            std::size_t count) {
    const std::size_t mask = long_entries_.size() - 1;
    std::size_t i = hash & mask;
    while (long_entries_[i].size) i = (i + 1) & mask;
    long_entries_[i] = {hash, static_cast<std::uint32_t>(arena_.size()), static_cast<std::uint16_t>(size),
                        static_cast<std::uint16_t>(count)};
    ++long_used_;
    const std::size_t place = arena_.size();
    arena_.resize(place + count + (size + 3) / 4);
    std::memcpy(arena_.data() + place, ids, count * sizeof *ids);
    std::memcpy(arena_.data() + place + count, piece, size);
}

void WordTable::encode_long(const std::uint8_t* piece, std::size_t size, Tokens& out) {
    const bool remembered = size <= kMaxLongBytes;
    std::uint64_t hash = 0;
    if (remembered) {
        hash = hash_bytes(piece, size);
        const std::size_t mask = long_entries_.size() - 1;
        for (std::size_t i = hash & mask; long_entries_[i].size; i = (i + 1) & mask) {
            const LongEntry& entry = long_entries_[i];
            const std::uint32_t* ids = arena_.data() + entry.place;
            if (entry.hash != hash || entry.size != size || std::memcmp(ids + entry.count, piece, size) != 0) continue;
            out.reserve(entry.count);
            std::memcpy(out.end(), ids, entry.count * sizeof *ids);
            return out.extend(entry.count);
        }
    }
    out.reserve(size);
    std::uint32_t* const ids = out.end();
    std::size_t count = 1;
    const std::uint32_t whole = vocabulary_.find({reinterpret_cast<const char*>(piece), size});
    if (whole != kNoToken) {
        ids[0] = vocabulary_.id(whole);
    } else {
        count = byte_pair_merge(vocabulary_, piece, size, ids);
        for (std::size_t i = 0; i < count; ++i) ids[i] = vocabulary_.id(ids[i]);
    }
    if (remembered) {
        if (long_used_ > long_entries_.size() / 2 || arena_.size() > kMaxArena) reset_long();
        insert_long(hash, piece, size, ids, count);
    }
    out.extend(count);
}

std::size_t WordTable::memory() const {
    return slots_ * sizeof(Entry) + 4 * (overflow_.capacity() + arena_.capacity()) +
           long_entries_.size() * sizeof(LongEntry);
}

}  // namespace gptfast
