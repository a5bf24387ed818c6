// A byte-pair vocabulary: tokens in order of merge rank, which pair of tokens makes each, and the ids the world knows
// them by.
//
// Inside the core a token is its rank, 0 .. size() - 1; outside it is its id. For tiktoken's vocabularies the two agree
// but for gaps; a tokenizer.json may number its tokens in any order.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "memory.hpp"
#include "prefetch.hpp"

namespace gptfast {

constexpr std::uint32_t kNoToken = 0xFFFFFFFF;

// Two tokens -> the token that they merge into. Merging waits for one look-up after the other, and whether one finds
// something is hard to predict: so all four entries of a bucket are compared without a branch, and the next bucket is
// read only where this one overflowed (2 in 100).
class PairTable {
  public:
    static constexpr std::uint32_t kTokenBits = 21;
    static constexpr std::uint32_t kMaxTokens = (1u << kTokenBits) - 1;  // also a token that merges with nothing

    explicit PairTable(std::size_t tokens);
    void insert(std::uint32_t left, std::uint32_t right, std::uint32_t merged);

    std::uint32_t find(std::uint32_t left, std::uint32_t right) const {
        const std::uint64_t key = std::uint64_t{left} << kTokenBits | right;
        for (std::size_t i = key * kHash >> shift_;; i = (i + 1) & mask_) {
            // Without the key, the entry that has it is the smallest, and too small for any other.
            const std::uint64_t* entry = buckets_[i].entries;
            const std::uint64_t without = key << kKeyShift;
            const std::uint64_t a = entry[0] ^ without, b = entry[1] ^ without, c = entry[2] ^ without,
                                d = entry[3] ^ without;
            const std::uint64_t low = a < b ? a : b, high = c < d ? c : d, least = low < high ? low : high;
            const std::uint32_t found = least >> kKeyShift ? kNoToken : static_cast<std::uint32_t>(least) >> 1;
            if (!(entry[0] & kOverflowed) || found != kNoToken) return found;
        }
    }

    void prefetch_pair(std::uint32_t left, std::uint32_t right) const {
        prefetch(&buckets_[(std::uint64_t{left} << kTokenBits | right) * kHash >> shift_]);
    }

    std::size_t bytes() const { return buckets_.size() * sizeof(Bucket); }

  private:
    // An entry: left and right, 21 bits each; merged, 21 bits; in a bucket's first entry, whether it overflowed.
    static constexpr int kKeyShift = kTokenBits + 1;
    static constexpr std::uint64_t kOverflowed = 1;
    static constexpr std::uint64_t kEmpty = ~std::uint64_t{0} << kKeyShift;
    static constexpr std::uint64_t kHash = 0x9E3779B97F4A7C15;

    struct alignas(32) Bucket {
        std::uint64_t entries[4] = {kEmpty, kEmpty, kEmpty, kEmpty};
    };

    std::vector<Bucket, LargeAllocator<Bucket>> buckets_;
    std::size_t mask_;
    int shift_;
};

struct Special {
    std::string text;
    std::uint32_t id;
};

class Vocabulary {
  public:
    using Parts = std::vector<std::pair<std::uint32_t, std::uint32_t>>;

    // `tokens` in order of merge rank (all different, all 256 single bytes among them) and their `ids` (all different).
    // Throws std::invalid_argument in one line where that does not hold.
    // `parts` may hold parts(rank) of every token, as an earlier Vocabulary found them: most of the time that making
    // one takes. They are checked, and found anew where one is wrong or the vocabulary is not regular().
    Vocabulary(const std::vector<std::string_view>& tokens, const std::vector<std::uint32_t>& ids,
               std::vector<Special> specials, const Parts& parts = {});

    std::size_t size() const { return ids_.size(); }
    std::string_view bytes(std::uint32_t rank) const {
        return {blob_.data() + offsets_[rank], offsets_[rank + 1] - offsets_[rank]};
    }
    std::uint32_t id(std::uint32_t rank) const { return ids_[rank]; }
    std::uint32_t byte_rank(std::uint8_t byte) const { return byte_ranks_[byte]; }
    std::uint32_t merge(std::uint32_t left, std::uint32_t right) const { return pairs_.find(left, right); }

    // The same for two single bytes: half of all look-ups, in the few cache lines of the letters that a text uses.
    std::uint32_t merge_bytes(std::uint8_t left, std::uint8_t right) const {
        return byte_pairs_[std::size_t{left} << 8 | right];
    }

    // The two tokens whose merge makes `rank`; {kNoToken, kNoToken} for a single byte, and for a token that no sequence
    // of merges makes: tiktoken still uses that one where a whole pre-token equals it.
    std::pair<std::uint32_t, std::uint32_t> parts(std::uint32_t rank) const { return parts_[rank]; }

    // Of all merges that meet where a character ends with the byte `left` and the next one begins with `right`, and
    // that make a token which begins or ends inside a character: the lowest rank, or kNoToken.
    std::uint32_t least_across(std::uint8_t left, std::uint8_t right) const {
        return across_[std::size_t{left} << 8 | right];
    }
    void prefetch_merge(std::uint32_t left, std::uint32_t right) const { pairs_.prefetch_pair(left, right); }

    // Whether BPE leaves the two tokens, side by side, as they are. Ids of a longer text are right if and only if this
    // holds for each neighbouring two. Only where regular().
    bool compatible(std::uint32_t left, std::uint32_t right) const;

    // Every token of several bytes is made by a merge, of two tokens of lower rank (or single bytes): true of any
    // vocabulary that BPE training made.
    bool regular() const { return regular_; }
    bool ids_are_ranks() const { return ids_are_ranks_; }

    std::uint32_t find(std::string_view token) const;  // the rank, or kNoToken
    const std::vector<Special>& specials() const { return specials_; }

    // The bytes of the token or special token with this id; an empty view where there is none. 16 bytes from its start
    // can be read whatever its length.
    std::string_view decode(std::uint32_t id) const {
        if (id >= dense_.size()) return decode_sparse(id);
        return {decoded_.data() + dense_[id].offset, dense_[id].length};
    }

    std::size_t memory() const;

  private:
    struct Place {
        std::uint32_t offset = 0, length = 0;
    };

    bool take_parts(const Parts& parts);
    void clear_parts();
    void find_parts(std::uint32_t rank);
    void set_parts(std::uint32_t rank, std::uint32_t left, std::uint32_t right);
    bool comes_before(std::uint32_t part, std::uint32_t rank) const {
        return part < rank || (part < size() && bytes(part).size() == 1);
    }
    std::pair<std::uint32_t, std::uint32_t> last_merge(std::string_view token) const;
    std::string_view decode_sparse(std::uint32_t id) const;

    std::string blob_;  // tokens, joined
    std::vector<std::uint32_t> offsets_, ids_;
    std::vector<std::uint32_t> index_;  // open addressing over tokens: rank + 1, 0 is empty
    Parts parts_;
    PairTable pairs_;
    std::vector<std::uint32_t> byte_pairs_;  // [65536]
    std::vector<std::uint32_t> across_;      // [65536]
    std::uint32_t byte_ranks_[256];
    bool regular_ = true, ids_are_ranks_ = true;
    std::vector<Special> specials_;
    std::string decoded_;                                  // blob_, the specials' text, 16 bytes of padding
    std::vector<Place> dense_;                             // by id
    std::vector<std::pair<std::uint32_t, Place>> sparse_;  // ids too large for that, sorted
};

// A quick hash of a few bytes to a few hundred.
std::uint64_t hash_bytes(const void* data, std::size_t size);

}  // namespace gptfast
