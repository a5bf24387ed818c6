#include "merge.hpp"

#include <algorithm>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <stdexcept>
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
    for (const char* name : {"avx512", "avx2"})
        if (const MergeFunction found = merge_function(name)) return found;
    return merge_function("portable");
}

// Any number of tokens: a heap of candidate merges (rank << 32 | position) over a doubly linked list. A candidate is
// stale when its left token no longer starts a merge of that rank.
std::size_t merge_many(const Vocabulary& vocabulary, std::uint32_t* tokens, std::size_t size) {
    if (size >= kNoToken) throw std::length_error("a piece of 4 GB that no pattern splits cannot be encoded");
    const auto count = static_cast<std::uint32_t>(size);
    struct Link {
        std::uint32_t previous, next;
        std::uint32_t merged;  // what it and the next token make, or kNoToken
    };
    std::vector<Link> links(count);
    std::vector<std::uint64_t> heap;
    heap.reserve(count);
    for (std::uint32_t i = 0; i < count; ++i) {
        links[i] = {i - 1, i + 1, i + 1 < count ? vocabulary.merge(tokens[i], tokens[i + 1]) : kNoToken};
        if (links[i].merged != kNoToken) heap.push_back(std::uint64_t{links[i].merged} << 32 | i);
    }
    const std::greater<std::uint64_t> later;
    std::make_heap(heap.begin(), heap.end(), later);
    const auto update = [&](std::uint32_t at) {
        Link& link = links[at];
        link.merged = link.next < count ? vocabulary.merge(tokens[at], tokens[link.next]) : kNoToken;
        if (link.merged == kNoToken) return;
        heap.push_back(std::uint64_t{link.merged} << 32 | at);
        std::push_heap(heap.begin(), heap.end(), later);
    };
    while (!heap.empty()) {
        const std::uint64_t best = heap.front();
        std::pop_heap(heap.begin(), heap.end(), later);
        heap.pop_back();
        const auto at = static_cast<std::uint32_t>(best);
        Link& link = links[at];
        if (link.merged != best >> 32) continue;
        const std::uint32_t gone = link.next;
        tokens[at] = link.merged;
        link.next = links[gone].next;
        links[gone].merged = kNoToken;
        if (link.next < count) links[link.next].previous = at;
        update(at);
        if (at > 0) update(link.previous);
    }
    std::size_t left = 0;
    for (std::uint32_t i = 0; i < count; i = links[i].next) tokens[left++] = tokens[i];
    return left;
}

std::size_t merge_any(const Vocabulary& vocabulary, std::uint32_t* tokens, std::size_t count,
                      const std::uint8_t* bytes) {
    static const MergeFunction merge = fastest();
    if (count <= 1) return count;
    return count <= kMaxInRegisters ? merge(vocabulary, tokens, count, bytes) : merge_many(vocabulary, tokens, count);
}

// A long piece is merged in windows that fit the registers, and what is wrong at their boundaries is put right: around
// boundary `begin`, between out[at - 1] and out[at], ever more bytes on both sides are merged anew until their
// neighbours are compatible. `out` has `count` tokens, up to byte `end`. Returns how many bytes it took on each side; 0
// where kMaxSpan did not do.
constexpr std::size_t kWindow = 32, kSpan = 24, kMaxSpan = 4096;

std::size_t repair_boundary(const Vocabulary& vocabulary, const std::uint8_t* piece, std::size_t begin, std::size_t end,
                            std::uint32_t* out, std::size_t at, std::size_t& count) {
    if (vocabulary.compatible(out[at - 1], out[at])) return 1;
    std::vector<std::uint32_t> tokens;
    for (std::size_t span = kSpan; span <= kMaxSpan; span *= 2) {
        std::size_t first = at, from = begin, last = at, to = begin;  // out[first:last] are the bytes from .. to
        while (first > 0 && begin - from < span) from -= vocabulary.bytes(out[--first]).size();
        while (last < count && to - begin < span) to += vocabulary.bytes(out[last++]).size();
        tokens.clear();
        for (std::size_t i = from; i < to; ++i) tokens.push_back(vocabulary.byte_rank(piece[i]));
        tokens.resize(merge_any(vocabulary, tokens.data(), tokens.size(), piece + from));
        if (first > 0 && !vocabulary.compatible(out[first - 1], tokens.front())) continue;
        if (to < end && !vocabulary.compatible(tokens.back(), out[last])) continue;
        // Never more tokens than bytes, so what moves up stays behind what is still to be written.
        std::memmove(out + first + tokens.size(), out + last, (count - last) * sizeof *out);
        std::copy(tokens.begin(), tokens.end(), out + first);
        count = first + tokens.size() + (count - last);
        return span;
    }
    return 0;
}

}  // namespace

MergeFunction merge_function(const char* instructions) {
    const auto named = [instructions](const char* name) { return std::strcmp(instructions, name) == 0; };
    if (named("portable")) return merge_with<PortableKeys>;
#if GPTFAST_X86
    const bool bmi2 = __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
    if (named("avx2") && bmi2 && __builtin_cpu_supports("avx2")) return merge_avx2;
    if (named("avx512") && bmi2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return merge_avx512;
#endif
    return nullptr;
}

std::size_t merge_tokens(const Vocabulary& vocabulary, std::uint32_t* tokens, std::size_t count) {
    return merge_any(vocabulary, tokens, count, nullptr);
}

std::size_t byte_pair_merge(const Vocabulary& vocabulary, const std::uint8_t* piece, std::size_t size,
                            std::uint32_t* out) {
    const auto merge = [&](std::size_t begin, std::size_t end, std::uint32_t* tokens) {
        for (std::size_t i = begin; i < end; ++i) tokens[i - begin] = vocabulary.byte_rank(piece[i]);
        return merge_any(vocabulary, tokens, end - begin, piece + begin);
    };
    if (size <= kMaxInRegisters || !vocabulary.regular()) return merge(0, size, out);
    std::size_t count = 0, window = kWindow;
    bool wider = false;
    for (std::size_t begin = 0, end; begin < size; begin = end) {
        end = std::min(begin + window, size);
        const std::size_t before = count;
        count += merge(begin, end, out + count);
        if (before == 0) continue;
        const std::size_t span = repair_boundary(vocabulary, piece, begin, end, out, before, count);
        if (span == 0) return merge(0, size, out);
        // Runs of one character: fewer boundaries pay, and at multiples of a power of two there is often nothing to
        // repair.
        wider = wider || span > kSpan;
        if (wider && window < kMaxSpan && end % (2 * window) == 0) {
            window *= 2;
            wider = false;
        }
    }
    return count;
}

}  // namespace gptfast
