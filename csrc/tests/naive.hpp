// Byte-pair encoding by its definition, slowly, for tests and fuzzers to compare with; and random vocabularies.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/vocabulary.hpp"
#include "core/words.hpp"

namespace gptfast {

using Random = std::mt19937_64;
using Ids = std::vector<std::uint32_t>;

// Tokens by rank. Encodes as tiktoken does: by looking up bytes, of the whole piece first, then of each two neighbours.
struct Naive {
    std::vector<std::string> tokens;
    Ids ids;
    std::unordered_map<std::string, std::uint32_t> ranks;
    std::size_t longest = 0;

    void add(std::string token) {
        const auto rank = static_cast<std::uint32_t>(tokens.size());
        if (!ranks.emplace(token, rank).second) return;
        longest = std::max(longest, token.size());
        tokens.push_back(std::move(token));
        ids.push_back(rank);
    }

    std::uint32_t find(std::string_view bytes) const {
        const auto found = bytes.size() > longest ? ranks.end() : ranks.find(std::string(bytes));
        return found == ranks.end() ? kNoToken : found->second;
    }

    // The ranks that merging leaves; where `whole` is false, the last merge, which would make the piece one token, is
    // not done.
    Ids merge(std::string_view piece, bool whole = true) const {
        std::vector<std::size_t> starts(piece.size() + 1);
        std::iota(starts.begin(), starts.end(), std::size_t{0});
        const auto rank = [&](std::size_t i, std::size_t j) {
            const std::string_view bytes = piece.substr(starts[i], starts[j] - starts[i]);
            return bytes.size() == piece.size() && !whole ? kNoToken : find(bytes);
        };
        Ids pairs;  // what parts i and i + 1 make together
        for (std::size_t i = 0; i + 2 < starts.size(); ++i) pairs.push_back(rank(i, i + 2));
        for (;;) {
            const auto least = std::min_element(pairs.begin(), pairs.end());  // the first of equals
            if (least == pairs.end() || *least == kNoToken) break;
            const auto i = static_cast<std::size_t>(least - pairs.begin());
            starts.erase(starts.begin() + static_cast<std::ptrdiff_t>(i) + 1);
            pairs.erase(least);
            if (i < pairs.size()) pairs[i] = rank(i, i + 2);
            if (i > 0) pairs[i - 1] = rank(i - 1, i + 1);
        }
        Ids made;
        for (std::size_t i = 0; i + 1 < starts.size(); ++i)
            made.push_back(find(piece.substr(starts[i], starts[i + 1] - starts[i])));
        return made;
    }

    Ids encode(std::string_view piece) const {
        const std::uint32_t whole = find(piece);
        Ids made = whole != kNoToken ? Ids{whole} : merge(piece);
        for (std::uint32_t& token : made) token = ids[token];
        return made;
    }

    Vocabulary vocabulary(std::vector<Special> specials = {}, const Vocabulary::Parts& parts = {}) const {
        return Vocabulary({tokens.begin(), tokens.end()}, ids, std::move(specials), parts);
    }
};

inline Ids ids_of(const Tokens& tokens) { return {tokens.data(), tokens.data() + tokens.size()}; }

// A copy of `text` in memory of exactly its size, so that a sanitizer sees it being read past either end.
struct Exact {
    explicit Exact(std::string_view text) : bytes(new char[text.size()]), size(text.size()) {
        text.copy(bytes.get(), size);
    }
    std::string_view view() const { return {bytes.get(), size}; }
    std::unique_ptr<char[]> bytes;
    std::size_t size;
};

inline Naive single_bytes() {
    Naive model;
    for (int byte = 0; byte < 256; ++byte) model.add(std::string(1, static_cast<char>(byte)));
    return model;
}

inline std::string random_text(Random& random, const std::vector<std::string>& letters, std::size_t length) {
    std::string text;
    for (; length > 0; --length) text += letters[random() % letters.size()];
    return text;
}

// Adds up to `n` tokens as training does: each joins two neighbours of some text.
inline void add_merges(Naive& model, Random& random, const std::vector<std::string>& letters, std::size_t n) {
    for (; n > 0; --n) {
        const Ids text = model.merge(random_text(random, letters, 2 + random() % 20));
        if (text.size() < 2) continue;
        const std::size_t i = random() % (text.size() - 1);
        model.add(model.tokens[text[i]] + model.tokens[text[i + 1]]);
    }
}

// The same tokens, the single bytes at random ranks, between the others or after them.
inline Naive with_bytes_anywhere(const Naive& model, Random& random) {
    std::vector<std::string> bytes, merges;
    for (const std::string& token : model.tokens) (token.size() == 1 ? bytes : merges).push_back(token);
    std::shuffle(bytes.begin(), bytes.end(), random);
    Naive made;
    for (auto byte = bytes.begin(), merge = merges.begin(); byte != bytes.end() || merge != merges.end();) {
        const bool next = merge == merges.end() || (byte != bytes.end() && random() % 2);
        made.add(next ? *byte++ : *merge++);
    }
    return made;
}

// Tokens that no training would make: random texts (which merges seldom make), in random order.
inline Naive made_irregular(Naive model, Random& random, const std::vector<std::string>& letters) {
    for (auto n = 1 + random() % 20; n > 0; --n) model.add(random_text(random, letters, 1 + random() % 8));
    if (random() % 2) std::shuffle(model.tokens.begin(), model.tokens.end(), random);
    Naive made;
    for (std::string& token : model.tokens) made.add(std::move(token));
    return made;
}

// Ids in any order, with gaps; in some models a few of them are large.
inline void renumber(Naive& model, Random& random) {
    const bool large = random() % 4 == 0;
    std::set<std::uint32_t> used;
    for (std::uint32_t& id : model.ids) {
        const std::uint64_t bound = !large || random() % 8 ? 4 * model.ids.size() : random() % 2 ? 1u << 23 : kNoToken;
        do id = static_cast<std::uint32_t>(random() % bound);
        while (!used.insert(id).second);
    }
}

// Letters of one to four bytes, so that merges join parts of characters, characters, and ends of one with starts of the
// next; some are parts of characters.
inline const std::vector<std::vector<std::string>>& alphabets() {
    static const std::vector<std::vector<std::string>> kAlphabets = {
        {"a"},
        {"a", "b"},
        {"a", "b", "c", "d", " "},
        {"\u00e9", "\u00e8", "\u00e0"},
        {"a", "\u00e9", "\u4e2d", "\u4e01"},
        {"\u4e2d", "\u4e2e", "\u6e2d"},
        {"\U0001f642", "\U0001f643", "\u00e9", "b"},
        {"\xA9", "\xC3", "\u00e9", "a"},
        {"\x80", "\x81"},
        {std::string(1, '\0'), "a", "\xFF"},
    };
    return kAlphabets;
}

// One of many kinds of vocabularies over these letters.
inline Naive random_model(Random& random, const std::vector<std::string>& letters, bool regular) {
    Naive model = single_bytes();
    add_merges(model, random, letters, random() % 60);
    if (random() % 2) model = with_bytes_anywhere(model, random);
    if (!regular) model = made_irregular(std::move(model), random, letters);
    if (random() % 2) renumber(model, random);
    return model;
}

}  // namespace gptfast
