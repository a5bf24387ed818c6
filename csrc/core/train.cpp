#include "train.hpp"

#include <algorithm>
#include <limits>
#include <stdexcept>

#include "prefetch.hpp"

namespace gptfast {
namespace {

using Id = std::uint32_t;

constexpr std::uint64_t kMaxWeight = std::numeric_limits<std::uint32_t>::max();
constexpr std::uint64_t kPhase = 4;  // see Trainer::next_phase
constexpr std::uint32_t kAhead = 8;  // places between a prefetch and its use

struct Pair {
    std::uint64_t count;  // in all words, always exact
    Id left, right;
    std::uint32_t places;   // how many there are, or (after overlaps, as in aaa) a few more
    std::uint32_t renamed;  // what it becomes beside the pair being merged; an old index: nothing yet
};

// A boundary between two adjacent symbols, and how often its word occurs.
struct Place {
    std::uint32_t at;
    std::uint32_t weight;
};

struct List {
    std::size_t begin;  // of places_
    std::uint32_t size;
};

struct Candidate {
    std::uint64_t count;  // of the pair when this was pushed; it may have fallen since
    std::uint64_t ids;    // left in the upper half, right in the lower: the smaller wins a tie
    std::uint32_t pair;
    std::uint32_t list;
    bool operator<(const Candidate& other) const {
        return count != other.count ? count < other.count : ids > other.ids;
    }
};

// All words lie end to end: place i of a word is the boundary before its byte i, and pair_at_ has there the index of
// the pair of symbols that meet at it. Boundaries inside a symbol and the one at a word's start have 0: no pair. A
// merge of (a, b) at place p thus finds its neighbours at p - length(a) and p + length(b), renames these two pairs, and
// clears p: a few steps without a search, however long the word.
class Trainer {
  public:
    explicit Trainer(const CountTable& words);
    std::vector<Merge> run(std::size_t n_merges, const std::function<bool(std::size_t)>& progress);

  private:
    struct Renamed {
        std::uint32_t pair;
        Place place;
    };
    struct Listed {
        std::uint32_t list;
        Place place;
    };

    void lay_out(const CountTable& words);
    bool next_phase();
    void merge(const Candidate& top, Id id);
    void list_new_pairs(std::uint32_t first_new);
    void push(std::uint32_t pair, std::uint32_t list);

    std::vector<std::uint32_t> pair_at_;
    std::vector<std::uint32_t> word_begin_;
    std::vector<std::uint32_t> word_weight_;
    std::vector<Pair> pairs_;
    std::vector<std::uint32_t> lengths_;  // of each symbol, in bytes

    std::uint64_t least_ = 0;       // the smallest count that matters in this phase
    std::vector<Candidate> queue_;  // a heap
    std::vector<List> lists_;       // from 1 on
    std::vector<Place> places_;
    std::vector<Renamed> renamed_;          // by the merge under way
    std::vector<std::uint32_t> new_lists_;  // of its new pairs; 0: too rare
};

Trainer::Trainer(const CountTable& words) : pairs_(1), lengths_(256, 1) {
    std::size_t n_places = 1, n_words = 0;
    words.each([&](const std::uint8_t*, std::size_t size, std::uint64_t count) {
        if (size < 2) return;
        const std::size_t copies = static_cast<std::size_t>((count - 1) / kMaxWeight) + 1;
        n_places += size * copies;
        n_words += copies;
    });
    if (n_places > std::numeric_limits<std::uint32_t>::max())
        throw std::length_error("the distinct words are longer than 4 GiB together; lower the limit on their memory");
    pair_at_.resize(n_places);
    word_begin_.reserve(n_words + 1);
    word_weight_.reserve(n_words);
    lay_out(words);
}

void Trainer::lay_out(const CountTable& words) {
    std::array<Id, 256> id_of{};
    const auto order = byte_order();
    for (Id id = 0; id < 256; ++id) id_of[order[id]] = id;

    std::vector<Pair> found(1 << 16);  // by left and right
    std::uint32_t at = 0;
    words.each([&](const std::uint8_t* bytes, std::size_t size, std::uint64_t count) {
        if (size < 2) return;
        while (count) {
            const std::uint64_t weight = std::min(count, kMaxWeight);
            count -= weight;
            word_begin_.push_back(at);
            word_weight_.push_back(static_cast<std::uint32_t>(weight));
            Id left = id_of[bytes[0]];
            for (std::size_t i = 1; i < size; ++i) {
                const Id right = id_of[bytes[i]];
                const std::uint32_t code = left << 8 | right;
                found[code].count += weight;
                ++found[code].places;
                pair_at_[at + i] = code;
                left = right;
            }
            at += static_cast<std::uint32_t>(size);
        }
    });
    word_begin_.push_back(at);

    std::vector<std::uint32_t> index(1 << 16);
    for (std::uint32_t code = 0; code < found.size(); ++code) {
        if (found[code].places == 0) continue;
        index[code] = static_cast<std::uint32_t>(pairs_.size());
        pairs_.push_back({found[code].count, code >> 8, code & 0xFF, found[code].places, 0});
    }
    for (std::size_t word = 0; word + 1 < word_begin_.size(); ++word)
        for (std::uint32_t i = word_begin_[word] + 1; i < word_begin_[word + 1]; ++i) pair_at_[i] = index[pair_at_[i]];
}

void Trainer::push(std::uint32_t pair, std::uint32_t list) {
    queue_.push_back({pairs_[pair].count, std::uint64_t{pairs_[pair].left} << 32 | pairs_[pair].right, pair, list});
    std::push_heap(queue_.begin(), queue_.end());
}

// Most pairs are too rare to be merged ever: places are listed, and candidates queued, only for those with a count of
// at least least_. When they have run out it is lowered, and one pass over all places lists the next ones. Returns
// false when there are none.
bool Trainer::next_phase() {
    std::uint64_t most = 0;
    for (const Pair& pair : pairs_) most = std::max(most, pair.count);
    if (most == 0) return false;
    least_ = std::max<std::uint64_t>(most / kPhase, 1);

    std::vector<std::uint32_t> list_of(pairs_.size());  // 0: none
    lists_.assign(1, {0, 0});
    std::size_t total = 0;
    for (std::uint32_t i = 0; i < pairs_.size(); ++i) {
        if (pairs_[i].count < least_) continue;
        list_of[i] = static_cast<std::uint32_t>(lists_.size());
        push(i, list_of[i]);
        lists_.push_back({total, 0});
        total += pairs_[i].places;
    }
    places_.resize(total);

    // First what is listed is gathered, without a branch that could be mispredicted, then it is put into the lists.
    std::array<Listed, 1024> listed;
    std::size_t n = 0;
    const auto flush = [&] {
        for (std::size_t i = 0; i < n; ++i) {
            List& list = lists_[listed[i].list];
            places_[list.begin + list.size++] = listed[i].place;
        }
        n = 0;
    };
    for (std::size_t word = 0; word + 1 < word_begin_.size(); ++word) {
        const std::uint32_t weight = word_weight_[word], end = word_begin_[word + 1];
        for (std::uint32_t i = word_begin_[word] + 1; i < end; ++i) {
            listed[n] = {list_of[pair_at_[i]], {i, weight}};
            n += listed[n].list != 0;
            if (n == listed.size()) flush();
        }
    }
    flush();
    return true;
}

// Joins the pair into the symbol `id` wherever it occurs.
void Trainer::merge(const Candidate& top, const Id id) {
    const Id b = pairs_[top.pair].right;
    const std::uint32_t length_a = lengths_[pairs_[top.pair].left], length_b = lengths_[b];
    const List list = lists_[top.list];
    const auto first_new = static_cast<std::uint32_t>(pairs_.size());
    std::uint32_t after_b = 0;  // what (b, a) becomes as a left neighbour; its Pair::renamed is for right neighbours

    // Place `at` has from now on a pair that this merge makes: pairs_[renamed] if that is one, else a new (left,
    // right). Returns its index.
    const auto rename = [&](std::uint32_t at, std::uint32_t weight, std::uint32_t renamed, Id left, Id right) {
        Pair& old = pairs_[pair_at_[at]];
        old.count -= weight;
        old.places -= pair_at_[at] < first_new;  // else it is a new pair itself, and renamed_ holds this place already
        if (renamed < first_new) {
            renamed = static_cast<std::uint32_t>(pairs_.size());
            pairs_.push_back({0, left, right, 0, 0});
        }
        pairs_[renamed].count += weight;
        ++pairs_[renamed].places;
        pair_at_[at] = renamed;
        renamed_.push_back({renamed, {at, weight}});
        return renamed;
    };

    renamed_.clear();
    for (std::size_t i = list.begin; i < list.begin + list.size; ++i) {
        if (i + kAhead < places_.size()) prefetch(&pair_at_[places_[i + kAhead].at]);
        const auto [at, weight] = places_[i];
        if (pair_at_[at] != top.pair) continue;  // a neighbour's merge was faster
        pair_at_[at] = 0;
        if (const std::uint32_t before = pair_at_[at - length_a]) {
            const Id left = pairs_[before].left;
            const std::uint32_t made =
                rename(at - length_a, weight, left == b ? after_b : pairs_[before].renamed, left, id);
            (left == b ? after_b : pairs_[before].renamed) = made;
        }
        if (const std::uint32_t after = pair_at_[at + length_b]) {
            const std::uint32_t made = rename(at + length_b, weight, pairs_[after].renamed, id, pairs_[after].right);
            pairs_[after].renamed = made;
        }
    }
    pairs_[top.pair].count = 0;
    list_new_pairs(first_new);
}

// Gives the pairs that a merge made their lists, and queues them.
void Trainer::list_new_pairs(const std::uint32_t first_new) {
    new_lists_.clear();
    std::size_t end = places_.size();
    for (std::uint32_t pair = first_new; pair < pairs_.size(); ++pair) {
        new_lists_.push_back(0);
        if (pairs_[pair].count < least_) continue;
        new_lists_.back() = static_cast<std::uint32_t>(lists_.size());
        push(pair, new_lists_.back());
        lists_.push_back({end, 0});
        end += pairs_[pair].places;
    }
    if (end == places_.size()) return;
    places_.resize(end);
    for (const Renamed& renamed : renamed_) {
        const std::uint32_t index = new_lists_[renamed.pair - first_new];
        if (index == 0) continue;
        List& list = lists_[index];
        places_[list.begin + list.size++] = renamed.place;
    }
}

std::vector<Merge> Trainer::run(std::size_t n_merges, const std::function<bool(std::size_t)>& progress) {
    std::vector<Merge> merges;
    while (merges.size() < n_merges) {
        if (queue_.empty()) {
            if (!next_phase()) break;
            continue;
        }
        std::pop_heap(queue_.begin(), queue_.end());
        const Candidate top = queue_.back();
        queue_.pop_back();
        const Pair& pair = pairs_[top.pair];
        if (top.count != pair.count) {
            if (pair.count >= least_) push(top.pair, top.list);
            continue;
        }
        const Id id = static_cast<Id>(256 + merges.size());
        merges.push_back({pair.left, pair.right});
        lengths_.push_back(lengths_[pair.left] + lengths_[pair.right]);
        merge(top, id);
        if (progress && merges.size() % 256 == 0 && !progress(merges.size())) break;
    }
    return merges;
}

}  // namespace

std::array<std::uint8_t, 256> byte_order() {
    const auto printable = [](int byte) { return (byte > ' ' && byte < 0x7F) || (byte > 0xA0 && byte != 0xAD); };
    std::array<std::uint8_t, 256> order{};
    std::size_t n = 0;
    for (const bool wanted : {true, false})
        for (int byte = 0; byte < 256; ++byte)
            if (printable(byte) == wanted) order[n++] = static_cast<std::uint8_t>(byte);
    return order;
}

std::vector<Merge> train_bpe(const CountTable& words, std::size_t n_merges,
                             const std::function<bool(std::size_t)>& progress) {
    return Trainer(words).run(n_merges, progress);
}

std::vector<std::string> token_bytes(const std::vector<Merge>& merges) {
    std::vector<std::string> tokens;
    tokens.reserve(256 + merges.size());
    for (const std::uint8_t byte : byte_order()) tokens.emplace_back(1, static_cast<char>(byte));
    for (const Merge& merge : merges) tokens.push_back(tokens[merge.left] + tokens[merge.right]);
    return tokens;
}

}  // namespace gptfast
