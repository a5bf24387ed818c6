#include "merge.hpp"

#include <algorithm>
#include <vector>

#include "merge_impl.hpp"
#include "merge_isa.hpp"

namespace gptfast {
namespace {

template <std::size_t kLanes>
class PortableKeys {
  public:
    static constexpr std::size_t kSize = kLanes;

    explicit PortableKeys(const std::uint32_t* keys) { std::memcpy(keys_, keys, sizeof keys_); }
    std::uint32_t smallest() const {
        std::uint32_t least = kNoToken;
        for (const std::uint32_t key : keys_) least = key < least ? key : least;
        return least;
    }
    void set(int at, std::uint32_t key) { keys_[at] = key; }

  private:
    std::uint32_t keys_[kLanes];
};

MergeFunction fastest() {
#if GPTFAST_X86
    const bool bmi2 = __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    if (bmi2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) return merge_avx512;
    if (bmi2 && __builtin_cpu_supports("avx2")) return merge_avx2;
#endif
    return merge_with<PortableKeys>;
}

// Any number of tokens: a heap of candidate merges over a doubly linked list. A candidate is stale when its left token
// no longer starts a merge of that rank.
std::size_t merge_many(const Vocabulary& vocabulary, std::uint32_t* tokens, std::size_t count) {
    struct Link {
        std::size_t previous, next;
        std::uint32_t merged;  // what it and the next token make, or kNoToken
    };
    struct Candidate {
        std::uint32_t rank;
        std::size_t at;
    };
    const auto later = [](const Candidate& a, const Candidate& b) {
        return a.rank != b.rank ? a.rank > b.rank : a.at > b.at;
    };
    std::vector<Link> links(count);
    std::vector<Candidate> heap;
    heap.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
        links[i] = {i - 1, i + 1, i + 1 < count ? vocabulary.merge(tokens[i], tokens[i + 1]) : kNoToken};
        if (links[i].merged != kNoToken) heap.push_back({links[i].merged, i});
    }
    std::make_heap(heap.begin(), heap.end(), later);
    const auto update = [&](std::size_t at) {
        Link& link = links[at];
        link.merged = link.next < count ? vocabulary.merge(tokens[at], tokens[link.next]) : kNoToken;
        if (link.merged == kNoToken) return;
        heap.push_back({link.merged, at});
        std::push_heap(heap.begin(), heap.end(), later);
    };
    while (!heap.empty()) {
        const Candidate best = heap.front();
        std::pop_heap(heap.begin(), heap.end(), later);
        heap.pop_back();
        Link& link = links[best.at];
        if (link.merged != best.rank) continue;
        const std::size_t gone = link.next;
        tokens[best.at] = best.rank;
        link.next = links[gone].next;
        links[gone].merged = kNoToken;
        if (link.next < count) links[link.next].previous = best.at;
        update(best.at);
        if (best.at > 0) update(link.previous);
    }
    std::size_t left = 0;
    for (std::size_t i = 0; i < count; i = links[i].next) tokens[left++] = tokens[i];
    return left;
}

}  // namespace

std::size_t merge_tokens(const Vocabulary& vocabulary, std::uint32_t* tokens, std::size_t count) {
    static const MergeFunction merge = fastest();
    if (count <= 1) return count;
    return count <= kMaxInRegisters ? merge(vocabulary, tokens, count) : merge_many(vocabulary, tokens, count);
}

std::size_t byte_pair_merge(const Vocabulary& vocabulary, const std::uint8_t* piece, std::size_t size,
                            std::uint32_t* out) {
    for (std::size_t i = 0; i < size; ++i) out[i] = vocabulary.byte_rank(piece[i]);
    return merge_tokens(vocabulary, out, size);
}

}  // namespace gptfast
