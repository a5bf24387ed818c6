// Text to ids against the definition: patterns, special tokens, cuts, threads, batches, Python's strings.
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "check.hpp"
#include "core/scan.hpp"
#include "core/tokenizer.hpp"
#include "naive.hpp"

using namespace gptfast;

namespace {

constexpr Pattern kPatterns[] = {Pattern::kGpt2, Pattern::kCl100k, Pattern::kO200k};
constexpr std::size_t kChunk = std::size_t{1} << 18;  // tokenizer.cpp's: texts of two chunks are cut

// What one character at a time finds; blocks.cpp is compared with that in test_pretokenize.
std::vector<std::string_view> pieces_of(Pattern pattern, std::string_view text) {
    std::vector<std::string_view> pieces;
    const auto* begin = reinterpret_cast<const std::uint8_t*>(text.data());
    const auto* const end = begin + text.size();
    while (begin != end) {
        const std::uint8_t* stop = end;
        if (pattern == Pattern::kGpt2) stop = scan<Pattern::kGpt2>(begin, end);
        if (pattern == Pattern::kCl100k) stop = scan<Pattern::kCl100k>(begin, end);
        if (pattern == Pattern::kO200k) stop = scan<Pattern::kO200k>(begin, end);
        pieces.push_back(
            text.substr(text.size() - static_cast<std::size_t>(end - begin), static_cast<std::size_t>(stop - begin)));
        begin = stop;
    }
    return pieces;
}

// The definition, with a memory: texts repeat their pieces.
class Expected {
  public:
    Expected(const Naive& model, Pattern pattern) : model_(model), pattern_(pattern) {}

    Ids ordinary(std::string_view text) {
        Ids ids;
        for (const std::string_view piece : pieces_of(pattern_, text)) {
            const auto [found, fresh] = known_.try_emplace(std::string(piece));
            if (fresh) found->second = model_.encode(piece);
            ids.insert(ids.end(), found->second.begin(), found->second.end());
        }
        return ids;
    }

    // At each place from the left, the longest special token that stands there.
    Ids operator()(std::string_view text, const std::vector<Special>& specials) {
        Ids ids;
        std::size_t begin = 0;
        const auto add = [&](std::string_view part) {
            for (const std::uint32_t id : ordinary(part)) ids.push_back(id);
        };
        for (std::size_t at = 0; at < text.size();) {
            const Special* longest = nullptr;
            for (const Special& special : specials)
                if (text.substr(at, special.text.size()) == special.text &&
                    (!longest || special.text.size() > longest->text.size()))
                    longest = &special;
            if (!longest) {
                ++at;
                continue;
            }
            add(text.substr(begin, at - begin));
            ids.push_back(longest->id);
            begin = at += longest->text.size();
        }
        add(text.substr(begin));
        return ids;
    }

  private:
    const Naive& model_;
    Pattern pattern_;
    std::unordered_map<std::string, Ids> known_;
};

// Letters, and what the patterns tell apart.
const std::vector<std::string>& parts_of_text() {
    static const std::vector<std::string> kParts = {"a",
                                                    "b",
                                                    "the",
                                                    "A",
                                                    "Q",
                                                    "ABC",
                                                    " the",
                                                    " a",
                                                    "'s",
                                                    "'LL",
                                                    "'re",
                                                    "'",
                                                    "''",
                                                    "'ve",
                                                    " ",
                                                    " ",
                                                    "  ",
                                                    "   ",
                                                    "\t",
                                                    "\n",
                                                    "\r\n",
                                                    "\n\n",
                                                    "1",
                                                    "12",
                                                    "1234",
                                                    ".",
                                                    "!",
                                                    "//",
                                                    "(",
                                                    "_",
                                                    "\u00e9",
                                                    "\u00c9",
                                                    "\u01c5",
                                                    "ll",
                                                    "re",
                                                    std::string(1, '\0'),
                                                    "\u02b0",
                                                    "\u4e2d",
                                                    "\u306e",
                                                    "\u0301",
                                                    "\u00a0",
                                                    "\u3000",
                                                    "\u00b2",
                                                    "\u0663",
                                                    "s",
                                                    "t",
                                                    "\x7f",
                                                    "\u017f",
                                                    "\u212a",
                                                    "\u0085",
                                                    "\U0001f642",
                                                    "\U000e0041",
                                                    "<|end|>",
                                                    "<|",
                                                    "<|end|><|text|>"};
    return kParts;
}

std::string text_of(Random& random, std::size_t parts) {
    std::string text;
    while (parts > 0) {
        const auto& all = parts_of_text();
        const std::string& part = all[random() % all.size()];
        const auto repeat = random() % 16 ? 1 : random() % 40;  // runs, too
        for (std::size_t i = 0; i < repeat; ++i) text += part;
        --parts;
    }
    return text;
}

void add_utf8(std::uint32_t c, std::string& text) {
    if (c < 0x80) {
        text += static_cast<char>(c);
        return;
    }
    const int more = c < 0x800 ? 1 : c < 0x10000 ? 2 : 3;
    text += static_cast<char>(more == 1 ? 0xC0 | c >> 6 : more == 2 ? 0xE0 | c >> 12 : 0xF0 | c >> 18);
    for (int i = more - 1; i >= 0; --i) text += static_cast<char>(0x80 | (c >> 6 * i & 0x3F));
}

Naive model_of_texts(Random& random, bool regular) {
    Naive model = single_bytes();
    add_merges(model, random, parts_of_text(), 300);
    if (random() % 2) model = with_bytes_anywhere(model, random);
    if (!regular) model = made_irregular(std::move(model), random, parts_of_text());
    if (random() % 2) renumber(model, random);
    return model;
}

void texts_of_all_patterns() {
    Random random(2);
    const std::vector<Special> specials = {
        {"<|end|>", 1u << 20}, {"<|end|><|text|>", 4294967295}, {"<|", 4000000000}, {"<|end", 4000000001}};
    for (int round = 0; round < 16; ++round) {
        const Naive model = model_of_texts(random, round % 2);
        for (const Pattern pattern : kPatterns) {
            const Tokenizer tokenizer(model.vocabulary(specials), pattern);
            Expected expected(model, pattern);
            for (int i = 0; i < 40; ++i) {
                const Exact text(text_of(random, random() % 100));
                const Ids ordinary = expected.ordinary(text.view());
                CHECK(ids_of(tokenizer.encode(text.view(), SpecialSet(), 1)) == ordinary);
                CHECK(tokenizer.count(text.view(), 1) == ordinary.size());
                const std::vector<Special> allowed(specials.begin() + static_cast<long>(random() % 4), specials.end());
                const Ids ids = expected(text.view(), allowed);
                CHECK(ids_of(tokenizer.encode(text.view(), SpecialSet(allowed), 1)) == ids);
            }
        }
    }
}

void special_tokens_are_found() {
    const auto found = [](std::vector<Special> specials, std::string_view text) {
        const SpecialSet set(std::move(specials));
        std::string shown;
        for (std::size_t at = 0;;) {
            const SpecialSet::Match match = set.find(text, at);
            if (match.begin == SpecialSet::npos) return shown;
            shown +=
                std::to_string(match.begin) + "-" + std::to_string(match.end) + "=" + std::to_string(match.id) + " ";
            at = match.end;
        }
    };
    CHECK(SpecialSet().empty() && !SpecialSet({{"x", 1}}).empty());
    CHECK(found({}, "text") == "");
    CHECK(found({{"<s>", 1}}, "<s><s> <s>") == "0-3=1 3-6=1 7-10=1 ");
    CHECK(found({{"<s>", 1}}, "<s <<s>") == "4-7=1 ");
    CHECK(found({{"<s>", 1}}, "<s") == "");
    CHECK(found({{"<s>", 1}, {"<s>>", 2}, {"<s>>>", 3}}, "<s>>>> <s>> <s>") == "0-5=3 7-11=2 12-15=1 ");
    CHECK(found({{"ab", 1}, {"bcd", 2}}, "abcd bcd") == "0-2=1 5-8=2 ");  // the leftmost before the longest
    CHECK(found({{"a", 1}, {"aa", 2}}, "aaaaa") == "0-2=2 2-4=2 4-5=1 ");
    CHECK(found({{"\u00e9", 1}, {"x", 2}}, "e\u00e9x") == "1-3=1 3-4=2 ");
}

// Ids of both sides of a cut are the ids of the whole, wherever the cut was asked for.
void cuts_are_safe() {
    Random random(3);
    std::size_t cuts = 0;
    for (int round = 0; round < 3000; ++round) {
        const std::string text = text_of(random, random() % 12);
        for (std::size_t from = 0; from <= text.size() + 1; ++from) {
            const std::size_t cut = safe_cut(text, from);
            CHECK(cut <= text.size() && cut >= std::min(from, text.size()));
            if (cut == text.size()) continue;
            ++cuts;
            for (const Pattern pattern : kPatterns) {
                const auto whole = pieces_of(pattern, text);
                auto parts = pieces_of(pattern, std::string_view(text).substr(0, cut));
                for (const auto piece : pieces_of(pattern, std::string_view(text).substr(cut))) parts.push_back(piece);
                CHECK(parts == whole);
            }
        }
    }
    CHECK(cuts > 10000);
}

// The ids do not depend on the number of threads; and those of one thread are right (`by_definition`: where no piece is
// too long for that).
void check_threads(const Naive& model, Pattern pattern, const std::string& text, const std::vector<Special>& specials,
                   bool by_definition = true) {
    const Tokenizer tokenizer(model.vocabulary(), pattern);
    const SpecialSet set(specials);
    const Ids expected = ids_of(tokenizer.encode(text, set, 1));
    if (by_definition) CHECK(Expected(model, pattern)(text, specials) == expected);
    for (std::size_t threads = 2; threads <= 8; threads += by_definition ? 1 : 3)
        CHECK(ids_of(tokenizer.encode(text, set, threads)) == expected);
    if (specials.empty()) CHECK(tokenizer.count(text, 3) == expected.size());
}

void any_number_of_threads() {
    Random random(6);
    const Naive model = model_of_texts(random, true);
    const std::vector<Special> specials = {{"<|end|>", 1000}, {"<|end|><|text|>", 4294967295}};
    const auto repeated = [](const std::string& part, std::size_t size) {
        std::string text;
        while (text.size() < size) text += part;
        return text;
    };
    std::string mixed;
    while (mixed.size() < 3 * kChunk) mixed += text_of(random, 100);
    const std::string words = repeated("the abc a", 2 * kChunk);
    for (const Pattern pattern : kPatterns) check_threads(model, pattern, mixed, specials);
    check_threads(model, Pattern::kCl100k, mixed, {});
    check_threads(model, Pattern::kGpt2, words, {{"e a", 7}, {"a the a", 8}});  // cuts would fall into them
    for (const std::size_t at : {std::size_t{0}, std::size_t{1000}, kChunk, kChunk + 7, words.size()})
        check_threads(model, Pattern::kCl100k, std::string(words).insert(at, "<|end|>"), specials, false);
    for (const std::string part :  // most of them without a safe cut
         {"<|end|>", "<|end|><|text|>", "1", "1 ", "b", "b'", "'s", "\n", "\u00e9\u0301", "a<|end|>", "a\u4e2d"})
        check_threads(model, Pattern::kO200k, repeated(part, 2 * kChunk + 1), specials, false);
    for (const std::size_t size : {2 * kChunk - 1, 2 * kChunk, 2 * kChunk + 1, 9 * kChunk})
        check_threads(model, Pattern::kGpt2, repeated(" the", size).substr(0, size), {}, false);
    check_threads(model, Pattern::kNone, repeated("ab ", 2 * kChunk), {}, false);
}

void batches() {
    Random random(7);
    const std::vector<Special> specials = {{"<|end|>", 1000}, {"<|", 1001}};
    const Naive model = model_of_texts(random, true);
    const Tokenizer tokenizer(model.vocabulary(specials), Pattern::kCl100k);
    Expected expected(model, Pattern::kCl100k);
    const SpecialSet set(specials);
    for (const std::size_t n : {0u, 1u, 2u, 50u, 500u}) {
        std::vector<std::string> texts(n);
        for (std::string& text : texts) text = text_of(random, random() % 10 ? random() % 30 : 4000);
        if (n > 1) texts[0] = texts[n - 1] = "";
        Ids ids;
        std::vector<std::int64_t> ends;
        for (const std::string& text : texts) {
            for (const std::uint32_t id : expected(text, specials)) ids.push_back(id);
            ends.push_back(static_cast<std::int64_t>(ids.size()));
        }
        for (const std::size_t threads : {1u, 2u, 3u, 8u}) {
            std::vector<std::int64_t> found(3, 5);
            CHECK(ids_of(tokenizer.encode_batch({texts.begin(), texts.end()}, set, threads, found)) == ids);
            CHECK(found == ends);
        }
    }
}

// Text as Python stores it has the ids of its UTF-8, also where it is long enough for slices and threads.
void python_strings() {
    Random random(8);
    const Naive model = model_of_texts(random, true);
    const auto check = [&](Pattern pattern, const std::vector<std::uint32_t>& points) {
        const Tokenizer tokenizer(model.vocabulary(), pattern);
        std::string text;
        for (const std::uint32_t c : points) add_utf8(c, text);
        const Ids expected = ids_of(tokenizer.encode(text, SpecialSet(), 1));
        const std::uint32_t largest = points.empty() ? 0 : *std::max_element(points.begin(), points.end());
        const auto check_kind = [&](auto unit) {
            using Unit = decltype(unit);
            const std::unique_ptr<Unit[]> units(new Unit[points.size()]);
            for (std::size_t i = 0; i < points.size(); ++i) units[i] = static_cast<Unit>(points[i]);
            for (const std::size_t threads : {1u, 3u}) {
                Tokens ids;
                CHECK(tokenizer.encode(Units{sizeof(Unit), units.get(), points.size()}, threads, ids));
                CHECK(ids_of(ids) == expected);
                if (sizeof(Unit) == 1 || points.empty()) continue;
                const Unit good = units[points.size() / 2];
                units[points.size() / 2] = static_cast<Unit>(0xD800);
                Tokens none;
                CHECK(!tokenizer.encode(Units{sizeof(Unit), units.get(), points.size()}, threads, none));
                units[points.size() / 2] = good;
            }
        };
        if (largest < 0x100) check_kind(std::uint8_t{});
        if (largest < 0x10000) check_kind(std::uint16_t{});
        check_kind(std::uint32_t{});
    };
    for (const std::uint32_t most : {0x80u, 0x100u, 0x3000u, 0x110000u})
        for (const std::size_t size : {0u, 1u, 100u, 131071u, 131072u, 300000u}) {
            std::vector<std::uint32_t> points;
            while (points.size() < size) {
                std::uint32_t c = static_cast<std::uint8_t>("abt hesl'\n. 1A"[random() % 15]);
                if (random() % 4 == 0) c = static_cast<std::uint32_t>(random() % most);
                if (c >= 0xD800 && c < 0xE000) c = '?';
                points.push_back(c);
            }
            check(kPatterns[random() % 3], points);
        }
    check(Pattern::kGpt2, std::vector<std::uint32_t>(300000, 'a'));  // no cut
    check(Pattern::kNone, std::vector<std::uint32_t>(300000, ' '));
}

}  // namespace

int main() {
    texts_of_all_patterns();
    special_tokens_are_found();
    cuts_are_safe();
    any_number_of_threads();
    batches();
    python_strings();
    return failures() != 0;
}
