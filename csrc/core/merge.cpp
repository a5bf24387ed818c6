#include "merge.hpp"

#include <algorithm>
#include <vector>

#include "merge_impl.hpp"
#include "merge_isa.hpp"

namespace gptfast {
namespace {

class PortableKeys {
  public:
    explicit PortableKeys(const std::uint32_t* keys) { std::memcpy(keys_, keys, sizeof keys_); }
    std::uint32_t smallest() const {
        std::uint32_t found = kNoToken;
        for (const std::uint32_t key : keys_) found = key < found ? key : found;
        return found;
    }
    void set(int at, std::uint32_t key) { keys_[at] = key; }

  private:
    std::uint32_t keys_[kShort];
};

MergeFunction fastest() {
#if GPTFAST_X86
    const bool bmi2 = __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    if (bmi2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")) return merge_avx512;
    if (bmi2 && __builtin_cpu_supports("avx2")) return merge_avx2;
#endif
    return merge_with<PortableKeys>;
}

// Pieces of any length: a heap of candidate merges over a doubly linked list of parts. A candidate is stale when its
// left part no longer starts a merge of that rank.
std::size_t merge_long(const Vocabulary& vocabulary, const std::uint8_t* piece, std::size_t size, std::uint32_t* out) {
    struct Part {
        std::size_t previous, next;
        std::uint32_t token, merged;  // merged: what it and the next part make, or kNoToken
    };
    struct Candidate {
        std::uint32_t rank;
        std::size_t at;
    };
    const auto later = [](const Candidate& a, const Candidate& b) {
        return a.rank != b.rank ? a.rank > b.rank : a.at > b.at;
    };
    std::vector<Part> parts(size);
    std::vector<Candidate> heap;
    heap.reserve(size);
    for (std::size_t i = 0; i < size; ++i) {
        parts[i] = {i - 1, i + 1, vocabulary.byte_rank(piece[i]), kNoToken};
        if (i + 1 == size) break;
        parts[i].merged = vocabulary.merge_bytes(piece[i], piece[i + 1]);
        if (parts[i].merged != kNoToken) heap.push_back({parts[i].merged, i});
    }
    std::make_heap(heap.begin(), heap.end(), later);
    const auto update = [&](std::size_t at) {
        Part& part = parts[at];
        part.merged = part.next < size ? vocabulary.merge(part.token, parts[part.next].token) : kNoToken;
        if (part.merged == kNoToken) return;
        heap.push_back({part.merged, at});
        std::push_heap(heap.begin(), heap.end(), later);
    };
    while (!heap.empty()) {
        const Candidate best = heap.front();
        std::pop_heap(heap.begin(), heap.end(), later);
        heap.pop_back();
        Part& part = parts[best.at];
        if (part.merged != best.rank) continue;
        const std::size_t gone = part.next;
        part.token = best.rank;
        part.next = parts[gone].next;
        parts[gone].merged = kNoToken;
        if (part.next < size) parts[part.next].previous = best.at;
        update(best.at);
        if (best.at > 0) update(part.previous);
    }
    std::size_t count = 0;
    for (std::size_t i = 0; i < size; i = parts[i].next) out[count++] = parts[i].token;
    return count;
}

}  // namespace

std::size_t byte_pair_merge(const Vocabulary& vocabulary, const std::uint8_t* piece, std::size_t size,
                            std::uint32_t* out) {
    static const MergeFunction merge = fastest();
    return size <= kMiddle ? merge(vocabulary, piece, size, out) : merge_long(vocabulary, piece, size, out);
}

}  // namespace gptfast
