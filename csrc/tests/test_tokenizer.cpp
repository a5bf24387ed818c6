// Text to ids against the definition: pieces, patterns, special tokens, caches that fill up, threads.
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

Ids ids_of(const Tokens& tokens) { return {tokens.data(), tokens.data() + tokens.size()}; }

// A copy of `text` that a sanitizer sees being read past either end.
struct Exact {
    explicit Exact(std::string_view text) : bytes(new char[text.size()]), size(text.size()) {
        std::memcpy(bytes.get(), text.data(), size);
    }
    std::string_view view() const { return {bytes.get(), size}; }
    std::unique_ptr<char[]> bytes;
    std::size_t size;
};

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

Naive model_of_texts(Random& random, bool regular) {
    Naive model = single_bytes();
    add_merges(model, random, parts_of_text(), 300);
    if (random() % 2) model = with_bytes_anywhere(model, random);
    if (!regular) model = made_irregular(std::move(model), random, parts_of_text());
    if (random() % 2) renumber(model, random);
    return model;
}

Ids encode_pieces(const Tokenizer& tokenizer, const std::vector<std::string>& pieces) {
    std::string data;
    std::vector<std::int64_t> ends;
    for (const std::string& piece : pieces) {
        data += piece;
        ends.push_back(static_cast<std::int64_t>(data.size()));
    }
    return ids_of(tokenizer.encode_pieces(Exact(data).view(), ends.data(), ends.size()));
}

// The pieces' ids twice: as they are found, and as they are remembered.
void check_pieces(const Naive& model, const Tokenizer& tokenizer, const std::vector<std::string>& pieces) {
    Ids expected;
    for (const std::string& piece : pieces)
        if (!piece.empty())
            for (const std::uint32_t id : model.encode(piece)) expected.push_back(id);
    CHECK(encode_pieces(tokenizer, pieces) == expected);
    CHECK(encode_pieces(tokenizer, pieces) == expected);
}

void pieces_of_all_sizes() {
    Random random(1);
    for (int round = 0; round < 60; ++round) {
        const auto& letters = alphabets()[random() % alphabets().size()];
        const Naive model = random_model(random, letters, random() % 3 != 0);
        const Tokenizer tokenizer(model.vocabulary(), Pattern::kNone);
        std::vector<std::string> pieces = model.tokens;
        for (const std::size_t size :
             {1u, 2u, 3u, 5u, 8u, 14u, 15u, 16u, 17u, 31u, 32u, 48u, 62u, 63u, 100u, 300u, 1023u, 1024u, 1025u})
            for (auto n = size < 100 ? 20 : 1; n > 0; --n) {
                pieces.push_back(random_text(random, letters, size).substr(0, size));
                if (random() % 4 == 0) pieces.back()[random() % size] = static_cast<char>(random());  // no UTF-8
            }
        std::shuffle(pieces.begin(), pieces.end(), random);
        for (const std::string& last : {letters[0], std::string()}) {  // fewer than 16 bytes to read at the end
            pieces.push_back(last);
            check_pieces(model, tokenizer, pieces);
        }
    }
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

// More different words than the caches hold. No merge joins digits, so that a word has as many tokens as bytes.
std::vector<std::string> numbers(std::size_t n, std::size_t size) {
    std::vector<std::string> words;
    for (std::size_t i = 0; i < n; ++i) {
        words.push_back(std::to_string(i));
        words.back().insert(0, size - words.back().size(), '.');
    }
    return words;
}

void check_numbers(const Tokenizer& tokenizer, const std::vector<std::string>& words) {
    Ids expected;
    for (const std::string& word : words) expected.insert(expected.end(), word.begin(), word.end());
    for (int pass = 0; pass < 2; ++pass) CHECK(encode_pieces(tokenizer, words) == expected);
}

void caches_fill_up() {
    Random random(4);
    Naive model = single_bytes();
    add_merges(model, random, {"a", "b", "\u00e9", "\u4e2d"}, 100);
    const Tokenizer tokenizer(model.vocabulary(), Pattern::kNone);
    const std::size_t memory = tokenizer.caches_memory();
    std::vector<std::string>
        words;  // with the tokens of each character looked up, in a table that may be emptied meanwhile
    for (int i = 0; i < 30000; ++i)
        words.push_back(random_text(random, {"a", "b", "\u00e9", "\u4e2d", "\u4e2e"}, 1 + random() % 5));
    for (int i = 0; i < 3; ++i) check_pieces(model, tokenizer, words);
    check_numbers(tokenizer, numbers(30000, 8));    // as many words as a small table has slots
    check_numbers(tokenizer, numbers(70000, 16));   // as many long ones
    check_numbers(tokenizer, numbers(2000, 1024));  // as many bytes of long ones
    check_numbers(tokenizer, numbers(2000, 1023));
    check_pieces(model, tokenizer, words);
    CHECK(tokenizer.caches_memory() == memory);

    // A large vocabulary has a table whose words' tokens fill the room for those of more than three.
    Naive large = single_bytes();
    for (int i = 0; i < 60 * 60; ++i)
        for (int j = 0; j < 12; ++j)
            large.add({static_cast<char>('A' + i / 60), static_cast<char>('A' + i % 60), static_cast<char>('A' + j)});
    const Tokenizer roomy(large.vocabulary(), Pattern::kNone);
    CHECK(large.tokens.size() > 1 << 15);
    check_numbers(roomy, numbers(90000, 15));
    check_numbers(roomy, numbers(150000, 12));
}

// Words that all want the same slot.
void words_collide() {
    Random random(5);
    Naive model = single_bytes();
    add_merges(model, random, {"0", "1", "2", "3"}, 20);
    const Vocabulary vocabulary = model.vocabulary();
    const WordTable table(vocabulary);
    std::vector<std::string> words;
    for (std::uint32_t i = 0; words.size() < 80; ++i) {
        const std::string word = std::to_string(10000000 + i);
        const auto* bytes = reinterpret_cast<const std::uint8_t*>(word.data());
        if (table.slot(WordTable::word(bytes, word.size(), word.size())) > 16368) words.push_back(word);
    }
    const Tokenizer tokenizer(model.vocabulary(), Pattern::kNone);
    for (int pass = 0; pass < 3; ++pass) {
        check_pieces(model, tokenizer, words);
        std::shuffle(words.begin(), words.end(), random);
    }
}

// The ids do not depend on the number of threads; and those of one thread are right (`by_definition`: where no piece is
// too long for that).
void check_threads(const Naive& model, Pattern pattern, const std::string& text, const std::vector<Special>& specials,
                   bool by_definition = true) {
    const Tokenizer tokenizer(model.vocabulary(), pattern);
    const SpecialSet set(specials);
    const Ids expected = ids_of(tokenizer.encode(text, set, 1));
    if (by_definition) CHECK(Expected(model, pattern)(text, specials) == expected);
    for (std::size_t threads = 2; threads <= 8; ++threads)
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
    for (const Pattern pattern : kPatterns) {
        check_threads(model, pattern, mixed, {});
        check_threads(model, pattern, mixed, specials);
    }
    check_threads(model, Pattern::kGpt2, words, specials);
    check_threads(model, Pattern::kGpt2, words, {{"e a", 7}, {"a the a", 8}});  // cuts would fall into them
    for (const std::size_t at : {std::size_t{0}, std::size_t{1000}, kChunk, kChunk + 7, words.size()})
        check_threads(model, Pattern::kCl100k, std::string(words).insert(at, "<|end|>"), specials);
    for (const std::string part :  // most of them without a safe cut
         {"<|end|>", "<|end|><|text|>", "1", "1 ", "b", "b'", "'s", "\n", "\u00e9\u0301", "a<|end|>", "a\u4e2d"})
        check_threads(model, Pattern::kO200k, repeated(part, 2 * kChunk + 1), specials, false);
    for (const std::size_t size : {2 * kChunk - 1, 2 * kChunk, 2 * kChunk + 1, 9 * kChunk})
        check_threads(model, Pattern::kGpt2, repeated(" the", size).substr(0, size), {});
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

void wrong_ends() {
    const Tokenizer tokenizer(single_bytes().vocabulary(), Pattern::kNone);
    const auto message = [&](const std::vector<std::int64_t>& ends) -> std::string {
        try {
            return std::to_string(tokenizer.encode_pieces("abcdef", ends.data(), ends.size()).size());
        } catch (const std::invalid_argument& error) {
            return error.what();
        }
    };
    CHECK(message({}) == "0");
    CHECK(message({0, 0, 3, 3, 6, 6}) == "6");
    CHECK(message({2}) == "2");
    CHECK(message({7}) == "piece 0 ends at 7, outside 0..6");
    CHECK(message({3, 2}) == "piece 1 ends at 2, outside 3..6");
    CHECK(message({3, -1}) == "piece 1 ends at -1, outside 3..6");
    CHECK(message({std::int64_t{1} << 62}) == "piece 0 ends at 4611686018427387904, outside 0..6");
}

void long_pieces() {
    Naive model = single_bytes();
    for (const std::string letter : {"a", " ", "\U0001f642", "\u0301"}) {
        for (std::size_t size = 2; size <= letter.size(); ++size) model.add(letter.substr(0, size));
        for (std::size_t n = 2; n <= 64; n *= 2) {
            std::string token;
            while (token.size() < n * letter.size()) token += letter;
            model.add(token);
        }
    }
    const Tokenizer tokenizer(model.vocabulary(), Pattern::kGpt2);
    for (const std::string letter : {"a", " ", "\U0001f642", "\u0301"}) {
        const std::size_t n = 64 * ((1 << 20) / letter.size() / 64) + 7;  // 64s, then 4 + 2 + 1
        std::string text;
        for (std::size_t i = 0; i < n; ++i) text += letter;
        Ids expected(n / 64, model.find(text.substr(0, 64 * letter.size())));
        for (const std::size_t rest : {4u, 2u, 1u})
            expected.push_back(model.find(text.substr(0, rest * letter.size())));
        CHECK(ids_of(tokenizer.encode(text, SpecialSet(), 1)) == expected);
        CHECK(ids_of(tokenizer.encode(text, SpecialSet(), 4)) == expected);
    }
}

void tokens_grow() {
    Tokens tokens;
    Ids expected;
    Random random(8);
    for (int i = 0; i < 2000; ++i) {
        const auto token = static_cast<std::uint32_t>(random());
        const std::size_t n = random() % 8 ? 1 : random() % 3000;
        if (n == 1) {
            tokens.push(token);
        } else {
            tokens.reserve(n);
            std::fill(tokens.end(), tokens.end() + n + Tokens::kSlack, token);
            tokens.extend(n);
        }
        expected.insert(expected.end(), n, token);
        if (random() % 50 == 0) {
            expected.resize(random() % (expected.size() + 1));
            tokens.truncate(expected.size());
        }
        if (random() % 50 == 0) tokens.shrink();
        if (random() % 50 == 0) {
            Tokens moved(std::move(tokens));
            tokens = std::move(moved);
        }
    }
    CHECK(ids_of(tokens) == expected);
    const std::unique_ptr<std::uint32_t, void (*)(void*)> data(tokens.release(), std::free);
    CHECK(Ids(data.get(), data.get() + expected.size()) == expected);
    CHECK(tokens.size() == 0 && tokens.data() == nullptr);
    tokens.shrink();
    tokens.push(5);
    CHECK(ids_of(tokens) == Ids{5});
}

}  // namespace

int main() {
    tokens_grow();
    pieces_of_all_sizes();
    texts_of_all_patterns();
    special_tokens_are_found();
    cuts_are_safe();
    caches_fill_up();
    words_collide();
    any_number_of_threads();
    batches();
    wrong_ends();
    long_pieces();
    return failures() != 0;
}
