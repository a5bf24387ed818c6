// Training against the definition: count all pairs, join the first of the most frequent ones, start again.
#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "check.hpp"
#include "core/train.hpp"
#include "core/word_counts.hpp"

using namespace gptfast;

namespace {

using Words = std::map<std::string, std::uint64_t>;
using Merges = std::vector<std::pair<std::uint32_t, std::uint32_t>>;

Merges by_definition(const Words& words, std::size_t n_merges) {
    std::map<std::uint8_t, std::uint32_t> id_of;
    for (const std::uint8_t byte : byte_order()) id_of.emplace(byte, static_cast<std::uint32_t>(id_of.size()));
    std::vector<std::pair<std::vector<std::uint32_t>, std::uint64_t>> sequences;
    for (const auto& [word, count] : words) {
        sequences.push_back({{}, count});
        for (const char c : word) sequences.back().first.push_back(id_of.at(static_cast<std::uint8_t>(c)));
    }
    Merges merges;
    while (merges.size() < n_merges) {
        std::map<std::pair<std::uint32_t, std::uint32_t>, std::uint64_t> counts;
        for (const auto& [ids, count] : sequences)
            for (std::size_t i = 1; i < ids.size(); ++i) counts[{ids[i - 1], ids[i]}] += count;
        if (counts.empty()) break;
        const auto best = std::max_element(counts.begin(), counts.end(),  // the first of equals, in order of the ids
                                           [](const auto& a, const auto& b) { return a.second < b.second; })
                              ->first;
        for (auto& [ids, count] : sequences) {
            std::vector<std::uint32_t> joined;
            for (const std::uint32_t id : ids) {
                joined.push_back(id);
                const std::size_t n = joined.size();
                if (n < 2 || joined[n - 2] != best.first || joined[n - 1] != best.second) continue;
                joined.pop_back();
                joined.back() = static_cast<std::uint32_t>(256 + merges.size());
            }
            ids = joined;
        }
        merges.push_back(best);
    }
    return merges;
}

Words words_of(WordCounts& counts) {
    Words words;
    counts.words().each([&](const std::uint8_t* bytes, std::size_t size, std::uint64_t count) {
        CHECK(words.emplace(std::string(reinterpret_cast<const char*>(bytes), size), count).second);
    });
    return words;
}

WordCounts counter(std::size_t max_bytes = std::size_t{1} << 30, std::vector<Special> specials = {}) {
    std::size_t longest = 0;
    for (const Special& special : specials) longest = std::max(longest, special.text.size());
    return WordCounts(Pattern::kGpt2, max_bytes, SpecialSet(std::move(specials)), longest);
}

void add_word(WordCounts& counts, const std::string& word) {
    const auto end = static_cast<std::int64_t>(word.size());
    counts.add_pieces(word, &end, 1);
}

Merges learn(const CountTable& table, std::size_t n_merges) {
    Merges merges;
    for (const Merge& merge : train_bpe(table, n_merges)) merges.push_back({merge.left, merge.right});
    return merges;
}

// Words over few letters: many ties, and pairs that overlap themselves and each other (aaa, abab).
void merges_as_defined() {
    std::mt19937 random(1);
    for (int round = 0; round < 300; ++round) {
        WordCounts counts = counter();
        const auto letters = 1 + random() % 4;
        const unsigned longest = random() % 8 ? 12 : 60;
        for (auto n = random() % 40; n > 0; --n) {
            std::string word;
            for (auto size = 1 + random() % longest; size > 0; --size)
                word += static_cast<char>("ab\xC3\x0A"[random() % letters]);
            for (auto times = 1 + random() % 5; times > 0; --times) add_word(counts, word);
        }
        const Merges expected = by_definition(words_of(counts), 200);
        CHECK(learn(counts.words(), 200) == expected);
        CHECK(
            learn(counts.words(), 7) ==
            Merges(expected.begin(), expected.begin() + std::min<std::ptrdiff_t>(7, std::ptrdiff_t(expected.size()))));
    }
}

void long_runs() {
    WordCounts counts = counter();
    add_word(counts, std::string(1 << 20, 'a'));
    const std::vector<Merge> merges = train_bpe(counts.words(), 1000);
    CHECK(merges.size() == 20);
    CHECK(token_bytes(merges).back() == std::string(1 << 20, 'a'));
}

// Counts that do not fit into 32 bits: a table merged with its own copy doubles all of its counts.
void large_counts() {
    WordCounts counts = counter();
    for (const char* word : {"abc", "abc", "abd", "abd", "abd"}) add_word(counts, word);
    CountTable table = counts.words();
    for (int i = 0; i < 33; ++i) {
        CountTable copy = table;
        table.merge(copy);
    }
    std::uint64_t total = 0;
    table.each([&](const std::uint8_t*, std::size_t, std::uint64_t count) { total += count; });
    CHECK(total == std::uint64_t{5} << 33);
    const std::vector<Merge> merges = train_bpe(table, 10);
    CHECK(merges.size() == 3);
    CHECK(token_bytes(merges)[257] == "abd");
}

std::string random_text(std::mt19937& random, std::size_t size) {
    static const char* const kPieces[] = {" ",
                                          " ",
                                          " ",
                                          " the",
                                          "a",
                                          "x",
                                          "\n",
                                          "don't",
                                          "12345",
                                          "\xE4\xB8\xAD",
                                          "<|end|>",
                                          "...",
                                          " pneumonoultramicroscopic"};
    std::string text;
    while (text.size() < size) {
        text += kPieces[random() % std::size(kPieces)];
        for (auto n = random() % 4; n > 0; --n) text += static_cast<char>('a' + random() % 26);
    }
    return text;
}

// `text` is counted alike by any number of threads, and document by document.
void count_alike(const std::string& text) {
    const std::vector<Special> specials = {{"<|end|>", 0}, {"<|end|>a", 1}, {"the a", 2}};
    WordCounts one = counter(std::size_t{1} << 30, specials);
    CHECK(!one.add({text}, 1));
    const Words expected = words_of(one);
    std::uint64_t total = 0;
    for (const auto& [word, count] : expected) {
        total += count;
        for (const Special& special : specials) CHECK(word.find(special.text) == std::string::npos);
    }
    CHECK(one.total() == total);
    CHECK(one.pruned() == 0);
    for (std::size_t threads : {2, 5}) {
        WordCounts many = counter(std::size_t{1} << 30, specials);
        CHECK(!many.add({text}, threads));
        CHECK(words_of(many) == expected);
        CHECK(many.total() == total);
    }

    // The separators, by hand: no word crosses one, and the documents can as well be counted one by one.
    SpecialSet set(specials);
    std::vector<std::string_view> documents;
    const std::string_view view = text;
    for (std::size_t at = 0; at < view.size();) {
        const SpecialSet::Match match = set.find(view, at);
        documents.push_back(view.substr(at, match.begin - at));
        at = match.begin == SpecialSet::npos ? view.size() : match.end;
    }
    WordCounts apart = counter();
    CHECK(!apart.add(documents, 2));
    CHECK(words_of(apart) == expected);
}

void any_number_of_threads() {
    std::mt19937 random(2);
    count_alike(random_text(random, 3 << 20));
    std::string text;  // half of the places to cut lie inside a special token
    while (text.size() < 3 << 20) text += "the a ";
    count_alike(text);
}

void forgets_the_rarest() {
    std::mt19937 random(3);
    const std::string text = random_text(random, 20 << 20);
    constexpr std::size_t kMax = 100000 * CountTable::kWordCost;
    WordCounts all = counter();
    CHECK(!all.add({text}, 2));
    CHECK(all.words().cost() > kMax);
    Words expected;
    for (std::size_t threads : {1, 2, 3}) {
        WordCounts counts = counter(kMax);
        CHECK(!counts.add({text}, threads));
        CHECK(counts.pruned() > 0);
        CHECK(counts.words().cost() <= kMax);
        CHECK(counts.total() == all.total());
        if (expected.empty()) expected = words_of(counts);
        CHECK(words_of(counts) == expected);
    }

    CountTable table = all.words();
    const std::size_t unique = table.unique(), went = table.prune(kMax / 2);
    CHECK(table.unique() == unique - went);
    CHECK(table.cost() <= kMax / 2);
    std::uint64_t least = ~std::uint64_t{0};
    table.each([&](const std::uint8_t*, std::size_t, std::uint64_t count) { least = std::min(least, count); });
    std::size_t rarer = 0, kept = 0;
    all.words().each([&](const std::uint8_t*, std::size_t, std::uint64_t count) { ++(count < least ? rarer : kept); });
    CHECK(rarer == went);
    CHECK(kept == table.unique());
}

void names_what_is_not_utf8() {
    std::string text;
    while (text.size() < 2 << 20) text += "plain words ";
    for (std::size_t at : {std::size_t{0}, std::size_t{5}, text.size() / 2, text.size() - 1}) {
        std::string bad = text;
        bad[at] = '\xFF';
        if (at > 0) bad.back() = '\xC3';  // a later one does not count
        WordCounts counts = counter();
        const auto invalid = counts.add({"good", bad}, 2);
        CHECK(invalid && invalid->document == 1 && invalid->offset == at);
    }
}

void stops_when_told() {
    WordCounts counts = counter();
    std::mt19937 random(4);
    const std::string text = random_text(random, 1 << 20);
    std::size_t told = 0;
    CHECK(!counts.add({text}, 2, [&](std::size_t done) { return told = done, true; }));
    CHECK(told == text.size());
    CHECK(train_bpe(counts.words(), 2000, [](std::size_t) { return false; }).size() < 2000);
    CHECK(train_bpe(counts.words(), 2000, [](std::size_t) { return true; }).size() == 2000);
}

void bytes_in_gpt2_order() {
    const auto order = byte_order();
    CHECK(order[0] == '!' && order[93] == '~' && order[94] == 0xA1 && order[187] == 0xFF);
    CHECK(order[188] == 0 && order[220] == ' ' && order[255] == 0xAD);
    CHECK(token_bytes({{220, 83}, {256, 0}}) == [&] {
        std::vector<std::string> tokens;
        for (const std::uint8_t byte : order) tokens.emplace_back(1, static_cast<char>(byte));
        tokens.insert(tokens.end(), {" t", " t!"});
        return tokens;
    }());
}

}  // namespace

int main() {
    merges_as_defined();
    long_runs();
    large_counts();
    any_number_of_threads();
    forgets_the_rarest();
    names_what_is_not_utf8();
    stops_when_told();
    bytes_in_gpt2_order();
    return failures() == 0 ? 0 : 1;
}
