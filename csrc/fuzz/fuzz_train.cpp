// Any documents: words are counted alike however the work is shared, and training makes the merges of its definition.
#include <algorithm>
#include <cstdlib>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "core/train.hpp"
#include "core/word_counts.hpp"
#include "tests/naive.hpp"

using namespace gptfast;

namespace {

using Words = std::map<std::string, std::uint64_t>;
using Merges = std::vector<std::pair<std::uint32_t, std::uint32_t>>;

constexpr std::size_t kMerges = 60;

void require(bool condition) {
    if (!condition) std::abort();
}

Words words_of(WordCounts& counts) {
    Words words;
    counts.words().each([&](const std::uint8_t* bytes, std::size_t size, std::uint64_t count) {
        require(words.emplace(std::string(reinterpret_cast<const char*>(bytes), size), count).second);
    });
    return words;
}

// Join the most frequent pair everywhere, the one with the smallest ids of several, and count again.
Merges by_definition(const Words& words) {
    std::map<std::uint8_t, std::uint32_t> id_of;
    for (const std::uint8_t byte : byte_order()) id_of.emplace(byte, static_cast<std::uint32_t>(id_of.size()));
    std::vector<std::pair<Ids, std::uint64_t>> sequences;
    for (const auto& [word, count] : words) {
        sequences.push_back({{}, count});
        for (const char c : word) sequences.back().first.push_back(id_of.at(static_cast<std::uint8_t>(c)));
    }
    Merges merges;
    while (merges.size() < kMerges) {
        std::map<std::pair<std::uint32_t, std::uint32_t>, std::uint64_t> pairs;
        for (const auto& [ids, count] : sequences)
            for (std::size_t i = 1; i < ids.size(); ++i) pairs[{ids[i - 1], ids[i]}] += count;
        if (pairs.empty()) break;
        const auto less = [](const auto& a, const auto& b) { return a.second < b.second; };
        const auto best = std::max_element(pairs.begin(), pairs.end(), less)->first;  // the first of equals
        for (auto& [ids, count] : sequences) {
            Ids joined;
            for (const std::uint32_t id : ids) {
                const bool join = !joined.empty() && joined.back() == best.first && id == best.second;
                if (join) joined.pop_back();
                joined.push_back(join ? static_cast<std::uint32_t>(256 + merges.size()) : id);
            }
            ids = std::move(joined);
        }
        merges.push_back(best);
    }
    return merges;
}

void check_merges(const Words& words, const CountTable& table) {
    Merges merges;
    const std::vector<Merge> trained = train_bpe(table, kMerges);
    for (const Merge& merge : trained) merges.push_back({merge.left, merge.right});
    require(merges == by_definition(words));

    // A vocabulary in which each merge makes what it made in training.
    Naive model;
    const std::vector<std::string> tokens = token_bytes(trained);
    for (const std::string& token : tokens) model.add(token);
    require(model.tokens.size() == tokens.size());
    const Vocabulary vocabulary = model.vocabulary();
    require(vocabulary.regular());
    for (std::size_t i = 0; i < merges.size(); ++i)
        require(vocabulary.parts(static_cast<std::uint32_t>(256 + i)) == merges[i]);
}

}  // namespace

// The first byte chooses how; '\xFF' ends a document.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    if (size == 0) return 0;
    const std::uint8_t how = *data;
    const std::string_view text(reinterpret_cast<const char*>(data + 1), size - 1);
    std::vector<std::string_view> documents;
    for (std::size_t at = 0; at <= text.size();) {
        const std::size_t end = std::min(text.find('\xFF', at), text.size());
        documents.push_back(text.substr(at, end - at));
        at = end + 1;
    }

    const Pattern pattern = static_cast<Pattern>(how & 3);
    const SpecialSet specials(how & 4 ? std::vector<Special>{{"<|", 0}, {"a b", 1}} : std::vector<Special>{});
    const std::size_t most = how & 8 ? 2000 : std::size_t{1} << 30;
    WordCounts one(pattern, most, specials, 3), many(pattern, most, specials, 3);
    const auto invalid = one.add(documents, 1), invalid_too = many.add(documents, 2);
    require(invalid.has_value() == invalid_too.has_value());
    if (invalid) {
        require(invalid->document == invalid_too->document && invalid->offset == invalid_too->offset);
        require(invalid->document < documents.size() && invalid->offset < documents[invalid->document].size());
    } else {
        const Words words = words_of(one);
        require(words_of(many) == words && many.total() == one.total() && one.words().cost() <= most);
        std::uint64_t total = 0;
        for (const auto& [word, count] : words) total += count;
        require(one.pruned() ? total < one.total() : total == one.total());
        check_merges(words, one.words());
    }

    WordCounts pieces(Pattern::kNone, most, SpecialSet(), 0);  // any bytes as words
    Words expected;
    std::vector<std::int64_t> ends;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t end = std::min(at + 1 + static_cast<std::uint8_t>(text[at]) % 20, text.size());
        ++expected[std::string(text.substr(at, end - at))];
        ends.push_back(static_cast<std::int64_t>(at = end));
    }
    pieces.add_pieces(text, ends.data(), ends.size());
    const Words words = words_of(pieces);
    require(pieces.pruned() || words == expected);
    check_merges(words, pieces.words());
    return 0;
}
