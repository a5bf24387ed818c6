#include "vocabulary.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "merge.hpp"
#include "utf8.hpp"

namespace gptfast {
namespace {

constexpr std::size_t kPadding = 16;
constexpr std::size_t kDenseIds = std::size_t{1} << 22;
constexpr std::size_t kAhead = 8;  // tables larger than the cache are filled this many entries after a prefetch

int shift_for(std::size_t slots) {
    int bits = 0;
    while (std::size_t{1} << bits < slots) ++bits;
    return 64 - bits;
}

std::size_t power_of_two(std::size_t least) {
    std::size_t n = 64;
    while (n < least) n *= 2;
    return n;
}

std::string shown(std::string_view token) {
    std::string text;
    for (const char c : token.substr(0, 32)) {
        const auto byte = static_cast<unsigned char>(c);
        if (byte >= 0x20 && byte < 0x7F) {
            text += c;
        } else {
            text += "\\x";
            text += "0123456789abcdef"[byte >> 4];
            text += "0123456789abcdef"[byte & 15];
        }
    }
    return "b'" + text + (token.size() > 32 ? "...'" : "'");
}

std::uint8_t byte_at(std::string_view token, std::size_t i) { return static_cast<std::uint8_t>(token[i]); }

bool ends_inside_character(std::string_view token) {
    std::size_t start = token.size() - 1;
    while (start > 0 && is_continuation(byte_at(token, start))) --start;
    return token.size() - start < utf8_length(byte_at(token, start));
}

}  // namespace

std::uint64_t hash_bytes(const void* data, std::size_t size) {
    const auto* p = static_cast<const char*>(data);
    std::uint64_t h = size * 0xD6E8FEB86659FD93;
    std::uint64_t word;
    for (; size >= 8; p += 8, size -= 8) {
        std::memcpy(&word, p, 8);
        h = (h ^ word) * 0x9E3779B97F4A7C15;
        h ^= h >> 32;
    }
    if (size) {
        word = 0;
        std::memcpy(&word, p, size);
        h = (h ^ word) * 0x9E3779B97F4A7C15;
        h ^= h >> 32;
    }
    return h * 0xD6E8FEB86659FD93;
}

PairTable::PairTable(std::size_t tokens)
    : buckets_(power_of_two(tokens / 2 + tokens / 8)) {  // at most 1.6 entries in four
    mask_ = buckets_.size() - 1;
    shift_ = shift_for(buckets_.size());
}

void PairTable::insert(std::uint32_t left, std::uint32_t right, std::uint32_t merged) {
    const std::uint64_t key = std::uint64_t{left} << kTokenBits | right;
    for (std::size_t i = key * kHash >> shift_;; i = (i + 1) & mask_) {
        for (std::uint64_t& entry : buckets_[i].entries) {
            if ((entry & ~kOverflowed) != kEmpty) continue;
            entry = key << kKeyShift | std::uint64_t{merged} << 1;
            return;
        }
        buckets_[i].entries[0] |= kOverflowed;
    }
}

Vocabulary::Vocabulary(const std::vector<std::string_view>& tokens, const std::vector<std::uint32_t>& ids,
                       std::vector<Special> specials, const Parts& parts)
    : ids_(ids), pairs_(0), specials_(std::move(specials)) {
    const std::size_t n = tokens.size();
    if (n != ids.size()) throw std::invalid_argument("there must be one id for each token");
    if (n >= PairTable::kMaxTokens)
        throw std::invalid_argument("the vocabulary has " + std::to_string(n) +
                                    " tokens; at most 2097150 are possible");
    std::size_t total = 0;
    for (const std::string_view token : tokens) total += token.size();
    if (total > 0x7FFFFFFF) throw std::invalid_argument("the vocabulary's tokens have more than 2 GB");
    blob_.reserve(total + kPadding);
    offsets_.reserve(n + 1);
    offsets_.push_back(0);
    for (const std::string_view token : tokens) {
        blob_ += token;
        offsets_.push_back(static_cast<std::uint32_t>(blob_.size()));
    }
    blob_.append(kPadding, '\0');

    std::fill(std::begin(byte_ranks_), std::end(byte_ranks_), kNoToken);
    index_.assign(power_of_two(2 * n), 0);
    const std::size_t mask = index_.size() - 1;
    const int shift = shift_for(index_.size());
    for (std::uint32_t rank = 0; rank < n; ++rank) {
        const std::string_view token = bytes(rank);
        if (token.empty()) throw std::invalid_argument("token " + std::to_string(ids[rank]) + " is empty");
        if (token.size() == 1) byte_ranks_[static_cast<std::uint8_t>(token[0])] = rank;
        if (const std::size_t next = rank + kAhead; next < n)
            prefetch(&index_[hash_bytes(tokens[next].data(), tokens[next].size()) >> shift]);
        std::size_t i = hash_bytes(token.data(), token.size()) >> shift;
        for (; index_[i]; i = (i + 1) & mask)
            if (bytes(index_[i] - 1) == token)
                throw std::invalid_argument("the token " + shown(token) + " stands twice, as " +
                                            std::to_string(ids[index_[i] - 1]) + " and " + std::to_string(ids[rank]));
        index_[i] = rank + 1;
    }
    for (int byte = 0; byte < 256; ++byte)
        if (byte_ranks_[byte] == kNoToken) {
            const char one = static_cast<char>(byte);
            throw std::invalid_argument("no token for the single byte " + shown({&one, 1}) +
                                        "; a byte-level vocabulary needs all 256");
        }

    // Decoding: ids of tokens and of special tokens, which must not collide.
    decoded_ = blob_.substr(0, total);
    std::uint32_t largest = 0;
    for (const std::uint32_t id : ids) largest = std::max(largest, id);
    for (const Special& special : specials_) largest = std::max(largest, special.id);
    dense_.resize(std::min<std::size_t>(std::size_t{largest} + 1, kDenseIds));
    const auto place = [&](std::uint32_t id, std::uint32_t offset, std::size_t length) {
        const Place where{offset, static_cast<std::uint32_t>(length)};
        if (id >= dense_.size()) {
            sparse_.emplace_back(id, where);
            return true;
        }
        if (dense_[id].length) return false;
        dense_[id] = where;
        return true;
    };
    for (std::uint32_t rank = 0; rank < n; ++rank)
        if (!place(ids[rank], offsets_[rank], bytes(rank).size()))
            throw std::invalid_argument("the id " + std::to_string(ids[rank]) + " stands twice, for " +
                                        shown(decode(ids[rank])) + " and " + shown(bytes(rank)));
    for (const Special& special : specials_) {
        if (special.text.empty()) throw std::invalid_argument("a special token is empty");
        place(special.id, static_cast<std::uint32_t>(decoded_.size()),
              special.text.size());  // a token's bytes come first
        decoded_ += special.text;
    }
    decoded_.append(kPadding, '\0');
    std::stable_sort(sparse_.begin(), sparse_.end(), [](const auto& a, const auto& b) { return a.first < b.first; });
    for (std::size_t i = 1; i < sparse_.size(); ++i)
        if (sparse_[i].first == sparse_[i - 1].first && sparse_[i].second.offset < total)
            throw std::invalid_argument("the id " + std::to_string(sparse_[i].first) + " stands twice");

    for (std::uint32_t rank = 0; rank < n; ++rank) ids_are_ranks_ = ids_are_ranks_ && ids[rank] == rank;
    if (take_parts(parts)) return;
    clear_parts();
    for (std::uint32_t rank = 0; rank < n; ++rank) find_parts(rank);
}

// Whether `parts` are what find_parts would find, in a regular vocabulary. Parts that join to the token's bytes may
// still be the wrong ones; if BPE with the merges of lower rank leaves them side by side, they are its last two.
bool Vocabulary::take_parts(const Parts& parts) {
    if (parts.size() != size()) return false;
    clear_parts();
    for (std::uint32_t rank = 0; rank < size(); ++rank) {
        const std::string_view token = bytes(rank);
        const auto [left, right] = parts[rank];
        if (rank + kAhead < size()) pairs_.prefetch_pair(parts[rank + kAhead].first, parts[rank + kAhead].second);
        if (token.size() == 1) {
            if (left != kNoToken || right != kNoToken) return false;
            continue;
        }
        if (!comes_before(left, rank) || !comes_before(right, rank)) return false;
        const std::string_view start = bytes(left), end = bytes(right);
        if (start.size() + end.size() != token.size() || token.substr(0, start.size()) != start ||
            token.substr(start.size()) != end || !compatible(left, right))
            return false;
        set_parts(rank, left, right);
    }
    return true;
}

void Vocabulary::clear_parts() {
    byte_pairs_.assign(65536, kNoToken);
    across_.assign(65536, kNoToken);
    parts_.assign(size(), {kNoToken, kNoToken});
    pairs_ = PairTable(size());
}

void Vocabulary::set_parts(std::uint32_t rank, std::uint32_t left, std::uint32_t right) {
    parts_[rank] = {left, right};
    pairs_.insert(left, right, rank);
    const std::string_view token = bytes(rank);
    const std::size_t middle = bytes(left).size();
    const std::size_t meeting = std::size_t{byte_at(token, middle - 1)} << 8 | byte_at(token, middle);
    if (token.size() == 2) byte_pairs_[meeting] = rank;
    if (!is_continuation(byte_at(token, middle)) &&
        (is_continuation(byte_at(token, 0)) || ends_inside_character(token)))
        across_[meeting] = std::min(across_[meeting], rank);
}

// A token is only ever made by one merge: the last one of its own bytes, since until then no merge crosses its ends,
// wherever it stands. Merging with what has a lower rank leaves exactly those two parts, unless some part has a higher
// rank than the whole; such a vocabulary takes the slow way.
void Vocabulary::find_parts(std::uint32_t rank) {
    const std::string_view token = bytes(rank);
    if (token.size() == 1) return;
    std::uint32_t few[64];
    std::vector<std::uint32_t> many;
    std::uint32_t* out = few;
    if (token.size() > 64) {
        many.resize(token.size());
        out = many.data();
    }
    const std::size_t count =
        byte_pair_merge(*this, reinterpret_cast<const std::uint8_t*>(token.data()), token.size(), out);
    const auto [left, right] = count == 2 ? std::make_pair(out[0], out[1]) : last_merge(token);
    regular_ = regular_ && comes_before(left, rank) && comes_before(right, rank);
    if (left != kNoToken) set_parts(rank, left, right);
}

// The first merge across the boundary, if there is one, joins a token that ends the left side at some time with one
// that starts the right side at that time. In a regular vocabulary merges happen in order of rank, so the pairs that
// meet are found by undoing the two tokens' merges from the last on. A pair merges if its rank is lower than that of
// the merge which takes its left token away (at equal rank that merge is further left, so it comes first), and not
// higher than that of the one which takes its right token away.
bool Vocabulary::compatible(std::uint32_t left, std::uint32_t right) const {
    std::uint32_t left_gone = kNoToken, right_gone = kNoToken;
    for (;;) {
        const std::uint32_t merged = pairs_.find(left, right);
        if (merged < left_gone && merged <= right_gone && merged != kNoToken) return false;
        const bool left_byte = parts_[left].first == kNoToken, right_byte = parts_[right].first == kNoToken;
        if (left_byte && right_byte) return true;
        if (right_byte || (!left_byte && left > right)) {
            left_gone = left;
            left = parts_[left].second;
        } else {
            right_gone = right;
            right = parts_[right].first;
        }
    }
}

// Merges as tiktoken does, by looking up bytes, in quadratic time: the last merge, if the token is made at all.
std::pair<std::uint32_t, std::uint32_t> Vocabulary::last_merge(std::string_view token) const {
    std::vector<std::size_t> starts;
    for (std::size_t i = 0; i <= token.size(); ++i) starts.push_back(i);
    while (starts.size() > 2) {
        std::uint32_t best = kNoToken;
        std::size_t at = 0;
        for (std::size_t i = 0; i + 2 < starts.size(); ++i) {
            const std::uint32_t rank = find(token.substr(starts[i], starts[i + 2] - starts[i]));
            if (rank < best) {
                best = rank;
                at = i;
            }
        }
        if (best == kNoToken) return {kNoToken, kNoToken};
        if (starts.size() == 3) return {find(token.substr(0, starts[1])), find(token.substr(starts[1]))};
        starts.erase(starts.begin() + static_cast<std::ptrdiff_t>(at) + 1);
    }
    return {kNoToken, kNoToken};
}

std::uint32_t Vocabulary::find(std::string_view token) const {
    const std::size_t mask = index_.size() - 1;
    for (std::size_t i = hash_bytes(token.data(), token.size()) >> shift_for(index_.size()); index_[i];
         i = (i + 1) & mask)
        if (bytes(index_[i] - 1) == token) return index_[i] - 1;
    return kNoToken;
}

std::string_view Vocabulary::decode_sparse(std::uint32_t id) const {
    const auto found = std::lower_bound(sparse_.begin(), sparse_.end(), id,
                                        [](const auto& a, std::uint32_t b) { return a.first < b; });
    if (found == sparse_.end() || found->first != id) return {};
    return {decoded_.data() + found->second.offset, found->second.length};
}

std::size_t Vocabulary::memory() const {
    return blob_.capacity() + decoded_.capacity() +
           4 * (offsets_.size() + ids_.size() + index_.size() + byte_pairs_.size() + across_.size()) +
           8 * parts_.size() + sizeof(Place) * dense_.size() + pairs_.bytes();
}

}  // namespace gptfast
