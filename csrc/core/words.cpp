#include "words.hpp"

#include <algorithm>
#include <cstdlib>
#include <new>

#include "characters.hpp"
#include "memory.hpp"
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
    void* grown = data_ ? std::realloc(data_, wanted * sizeof *data_) : allocate_large(wanted * sizeof *data_);
    if (!grown) throw std::bad_alloc();
    data_ = static_cast<std::uint32_t*>(grown);
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
    memory_.reset(allocate_large(slots_ * sizeof(Entry)));
    // Zeroed when first touched, so that what is never used costs nothing. Copies of kMaxBytes may read past the last
    // word.
    long_entries_.reset(static_cast<LongEntry*>(std::calloc(kLongSlots, sizeof(LongEntry))));
    arena_.reset(static_cast<std::uint32_t*>(std::malloc(kArena * sizeof(std::uint32_t))));
    overflow_.reset(static_cast<std::uint32_t*>(std::malloc((kOverflow + Word::kMaxBytes) * sizeof(std::uint32_t))));
    if (!memory_ || !long_entries_ || !arena_ || !overflow_) throw std::bad_alloc();
    entries_ = static_cast<Entry*>(memory_.get());
    last_ = entries_ + slots_ - 1;
    reset();
}

void WordTable::reset() {
    std::memset(static_cast<void*>(entries_), 0, slots_ * sizeof(Entry));
    used_ = 0;
    most_probes_ = kMaxProbes;
    overflow_used_ = 0;
    for (std::uint32_t rank = 0; rank < vocabulary_.size(); ++rank) {
        const std::string_view token = vocabulary_.bytes(rank);
        if (token.size() > Word::kMaxBytes) continue;
        const Word found =
            word(reinterpret_cast<const std::uint8_t*>(token.data()), token.size(), 16);  // bytes() are padded
        std::size_t probes;
        insert(free_slot(found, probes), found, &rank, 1);
        most_probes_ = std::max(most_probes_, probes);
    }
}

std::size_t WordTable::free_slot(const Word& word, std::size_t& probes) const {
    std::size_t i = slot(word);
    for (probes = 0; entries_[i].count; ++probes) i = i + 1 == slots_ ? 0 : i + 1;
    return i;
}

void WordTable::insert(std::size_t slot, const Word& word, const std::uint32_t* tokens, std::size_t count) {
    Entry& entry = entries_[slot];
    entry.low = word.low;
    entry.high = word.high;
    entry.count = static_cast<std::uint32_t>(count);
    if (count <= kInline) {
        std::memcpy(entry.tokens, tokens, count * sizeof *tokens);
    } else {
        entry.tokens[0] = static_cast<std::uint32_t>(overflow_used_);
        std::memcpy(overflow_.get() + overflow_used_, tokens, count * sizeof *tokens);
        overflow_used_ += count;
    }
    ++used_;
}

void WordTable::encode_new(const Word& word, Tokens& out) {
    const std::size_t size = word.high >> 56;
    std::uint8_t piece[16];
    std::memcpy(piece, &word.low, 8);
    std::memcpy(piece + 8, &word.high, 8);
    const std::size_t first = out.size();
    merge(piece, size, out);
    if (used_ >= limit_ || overflow_used_ + Word::kMaxBytes > kOverflow) reset();
    std::size_t probes;
    const std::size_t slot = free_slot(word, probes);
    if (probes <= most_probes_) insert(slot, word, out.begin() + first, out.size() - first);
    out.reserve(kReserve);
}

void WordTable::reset_long() {
    std::memset(static_cast<void*>(long_entries_.get()), 0, kLongSlots * sizeof(LongEntry));
    long_used_ = arena_used_ = 0;
}

void WordTable::insert_long(std::uint64_t hash, const std::uint8_t* piece, std::size_t size,
                            const std::uint32_t* tokens, std::size_t count) {
    std::size_t probes = 0;
    while (long_entries_[(hash + probes) % kLongSlots].size)
        if (++probes > kMaxProbes) return;
    long_entries_[(hash + probes) % kLongSlots] = {hash, static_cast<std::uint32_t>(arena_used_),
                                                   static_cast<std::uint16_t>(size), static_cast<std::uint16_t>(count)};
    ++long_used_;
    std::memcpy(arena_.get() + arena_used_, tokens, count * sizeof *tokens);
    std::memcpy(arena_.get() + arena_used_ + count, piece, size);
    arena_used_ += count + (size + 3) / 4;
}

void WordTable::encode_long(const std::uint8_t* piece, std::size_t size, std::uint64_t hash, Tokens& out) {
    if (size > kMaxLongBytes) return merge(piece, size, out);
    for (std::size_t probes = 0; probes <= kMaxProbes; ++probes) {
        const LongEntry& entry = long_entries_[(hash + probes) % kLongSlots];
        if (entry.size == 0) break;
        const std::uint32_t* tokens = arena_.get() + entry.place;
        if (entry.hash != hash || entry.size != size || std::memcmp(tokens + entry.count, piece, size) != 0) continue;
        out.reserve(entry.count + kReserve);
        std::memcpy(out.end(), tokens, entry.count * sizeof *tokens);
        return out.extend(entry.count);
    }
    const std::size_t begin = out.size();
    merge(piece, size, out);
    if (long_used_ > kLongSlots / 2 || arena_used_ + out.size() - begin + size > kArena) reset_long();
    insert_long(hash, piece, size, out.begin() + begin, out.size() - begin);
}

void WordTable::merge(const std::uint8_t* piece, std::size_t size, Tokens& out) {
    out.reserve(size + kReserve);
    std::size_t count = 0;
    if (!vocabulary_.regular()) {  // a token that no merges make still stands for the piece that equals it
        const std::uint32_t whole = vocabulary_.find({reinterpret_cast<const char*>(piece), size});
        if (whole != kNoToken) return out.push(whole);
    } else if (std::any_of(piece, piece + size, [](std::uint8_t byte) { return byte >= 0x80; })) {
        count = merge_characters(vocabulary_, piece, size, out.end());
    }
    if (count == 0) count = byte_pair_merge(vocabulary_, piece, size, out.end());
    out.extend(count);
}

std::size_t WordTable::memory() const {
    return slots_ * sizeof(Entry) + kLongSlots * sizeof(LongEntry) + 4 * (kOverflow + kArena);
}

}  // namespace gptfast
