// Vocabularies: what is refused, which pair makes a token, which tokens stand side by side; .tiktoken files.
#include <functional>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "check.hpp"
#include "core/tiktoken_file.hpp"
#include "naive.hpp"

using namespace gptfast;

namespace {

// The message of the std::invalid_argument that `f` throws.
std::string refused(const std::function<void()>& f) {
    try {
        f();
    } catch (const std::invalid_argument& error) {
        return error.what();
    }
    return "nothing was thrown";
}

bool contains(const std::string& text, const char* part) {
    if (text.find(part) != std::string::npos) return true;
    std::fprintf(stderr, "\"%s\" does not say \"%s\"\n", text.c_str(), part);
    return false;
}

void what_is_refused() {
    const auto message = [](const std::function<void(Naive&, std::vector<Special>&)>& spoil) {
        Naive model = single_bytes();
        model.add("ab");
        std::vector<Special> specials = {{"<|end|>", 1000}};
        spoil(model, specials);
        return refused([&] { model.vocabulary(specials); });
    };
    CHECK(message([](Naive&, auto&) {}) == "nothing was thrown");
    CHECK(contains(message([](Naive& m, auto&) { m.ids.pop_back(); }), "one id for each token"));
    CHECK(contains(message([](Naive& m, auto&) { m.tokens[256] = "a"; }), "b'a' stands twice, as 97 and 256"));
    CHECK(contains(message([](Naive& m, auto&) { m.tokens[256] = ""; }), "token 256 is empty"));
    CHECK(contains(message([](Naive& m, auto&) { m.tokens[0xFE] = "cd"; }), "single byte b'\\xfe'"));
    CHECK(contains(message([](Naive& m, auto&) { m.ids[256] = 98; }), "id 98 stands twice, for b'b' and b'ab'"));
    CHECK(contains(message([](Naive& m, auto&) { m.ids[5] = m.ids[256] = 4000000000; }), "id 4000000000 stands twice"));
    CHECK(contains(message([](Naive&, auto& s) { s.push_back({"", 7}); }), "special token is empty"));
    CHECK(contains(message([](Naive& m, auto&) {
                       m.tokens.assign(PairTable::kMaxTokens, "x");
                       m.ids.assign(m.tokens.size(), 0);
                   }),
                   "at most 2097150"));
    CHECK(contains(refused([] { Vocabulary({}, {}, {}); }), "no token for the single byte"));
}

void pairs_are_found() {
    Random random(1);
    for (const std::uint32_t largest : {20u, 2000u, PairTable::kMaxTokens - 1}) {
        for (const std::size_t n : {0u, 1u, 100u, 3000u, 100000u}) {
            PairTable table(n);
            std::map<std::pair<std::uint32_t, std::uint32_t>, std::uint32_t> expected;
            const auto token = [&] { return static_cast<std::uint32_t>(random() % (largest + 1)); };
            for (std::size_t i = 0; i < n; ++i) {
                const auto left = token(), right = token();
                if (expected.emplace(std::make_pair(left, right), token()).second)
                    table.insert(left, right, expected[{left, right}]);
            }
            for (const auto& [pair, merged] : expected) CHECK(table.find(pair.first, pair.second) == merged);
            for (int i = 0; i < 10000; ++i) {
                const auto left = token(), right = token();
                const auto found = expected.find({left, right});
                CHECK(table.find(left, right) == (found == expected.end() ? kNoToken : found->second));
            }
            CHECK(table.find(PairTable::kMaxTokens, 0) == kNoToken);
            CHECK(table.find(0, PairTable::kMaxTokens) == kNoToken);
        }
    }
}

std::string joined(const Naive& model, std::uint32_t left, std::uint32_t right) {
    return model.tokens[left] + model.tokens[right];
}

// Which two tokens a merge makes each of; and whether all are made of lower ones.
void parts_of(const Naive& model) {
    const Vocabulary vocabulary = model.vocabulary();
    bool regular = true;
    for (std::uint32_t rank = 0; rank < model.tokens.size(); ++rank) {
        const std::string& token = model.tokens[rank];
        const auto [left, right] = vocabulary.parts(rank);
        CHECK(vocabulary.bytes(rank) == token);
        CHECK(vocabulary.id(rank) == model.ids[rank]);
        CHECK(vocabulary.find(token) == rank);
        if (token.size() == 1) {
            CHECK(left == kNoToken && right == kNoToken);
            CHECK(vocabulary.byte_rank(static_cast<std::uint8_t>(token[0])) == rank);
            continue;
        }
        const Ids last = model.merge(token, false);
        if (last.size() != 2) {  // no merge makes it
            CHECK(left == kNoToken && right == kNoToken);
            regular = false;
            continue;
        }
        CHECK(left == last[0] && right == last[1]);
        CHECK(vocabulary.merge(left, right) == rank);
        for (const std::uint32_t part : last) regular = regular && (part < rank || model.tokens[part].size() == 1);
    }
    CHECK(vocabulary.regular() == regular);
    for (const char* absent : {"", "absent", "ab\xFF"}) CHECK(vocabulary.find(absent) == model.find(absent));
}

void parts_are_found() {
    Random random(2);
    int irregular = 0;
    for (int round = 0; round < 300; ++round) {
        const auto& letters = alphabets()[random() % alphabets().size()];
        const Naive model = random_model(random, letters, round % 2 == 0);
        parts_of(model);
        const bool regular = model.vocabulary().regular();
        CHECK(regular || round % 2 != 0);
        irregular += !regular;
    }
    CHECK(irregular > 50);
    // Tokens longer than what is merged on the stack, made by merges and not, of lower ranks and not.
    Naive model = single_bytes();
    for (std::size_t size = 2; size <= 512; size *= 2) model.add(std::string(size, 'a'));
    parts_of(model);
    model.add(std::string(200, 'b'));
    parts_of(model);
    std::swap(model.tokens[256], model.tokens[264]);
    Naive swapped;
    for (const std::string& token : model.tokens) swapped.add(token);
    parts_of(swapped);
}

// Parts given back are believed where all are right; whatever else is given, the same parts are found.
void parts_are_given() {
    Random random(6);
    std::size_t other_splits = 0;
    for (int round = 0; round < 60; ++round) {
        const auto& letters = alphabets()[random() % alphabets().size()];
        const Naive model = random_model(random, letters, round % 3 != 0);
        const Vocabulary found = model.vocabulary();
        Vocabulary::Parts right;
        for (std::uint32_t rank = 0; rank < found.size(); ++rank) right.push_back(found.parts(rank));
        const auto check = [&](const Vocabulary::Parts& parts) {
            const Vocabulary given({model.tokens.begin(), model.tokens.end()}, model.ids, {}, parts);
            CHECK(given.regular() == found.regular());
            for (std::uint32_t rank = 0; rank < found.size(); ++rank) {
                const auto [left, end] = right[rank];
                CHECK(given.parts(rank) == right[rank]);
                if (left == kNoToken) continue;
                CHECK(given.merge(left, end) == rank);
                if (model.tokens[rank].size() != 2) continue;
                const auto* two = reinterpret_cast<const std::uint8_t*>(model.tokens[rank].data());
                CHECK(given.merge_bytes(two[0], two[1]) == rank);
            }
        };
        check(right);
        check({right.begin(), right.end() - 1});
        const auto n = static_cast<std::uint32_t>(right.size());
        for (int i = 0; i < 10; ++i) {
            Vocabulary::Parts wrong = right;
            const auto any = [&] { return random() % 8 ? static_cast<std::uint32_t>(random() % (n + 1)) : kNoToken; };
            wrong[random() % n] = {any(), any()};
            check(wrong);
        }
        for (std::uint32_t rank = 0; rank < n; ++rank)  // parts that join to the right bytes
            for (std::size_t i = 1; i < model.tokens[rank].size() && other_splits < 300; ++i) {
                Vocabulary::Parts wrong = right;
                wrong[rank] = {model.find(model.tokens[rank].substr(0, i)), model.find(model.tokens[rank].substr(i))};
                if (wrong[rank].first >= rank || wrong[rank].second >= rank || wrong[rank] == right[rank]) continue;
                ++other_splits;
                check(wrong);
            }
    }
    CHECK(other_splits > 100);
}

// compatible() against merging the two tokens' bytes, for every pair of tokens over the alphabet.
void neighbours_are_compatible() {
    Random random(3);
    std::size_t kinds[2] = {0, 0};
    for (int round = 0; round < 150; ++round) {
        const auto& letters = alphabets()[random() % alphabets().size()];
        const Naive model = random_model(random, letters, true);
        const Vocabulary vocabulary = model.vocabulary();
        CHECK(vocabulary.regular());
        std::set<char> used;
        for (const std::string& letter : letters) used.insert(letter.begin(), letter.end());
        Ids some;
        for (std::uint32_t rank = 0; rank < model.tokens.size(); ++rank)
            if (model.tokens[rank].size() > 1 || used.count(model.tokens[rank][0])) some.push_back(rank);
        for (const std::uint32_t left : some)
            for (const std::uint32_t right : some) {
                const bool expected = model.merge(joined(model, left, right)) == Ids{left, right};
                CHECK(vocabulary.compatible(left, right) == expected);
                ++kinds[expected];
            }
    }
    CHECK(kinds[0] > 1000 && kinds[1] > 1000);
}

// Of all ways to write a text as tokens, all neighbours are compatible in the one that merging leaves, and in no other.
void compatible_means_merged() {
    Random random(4);
    for (int round = 0; round < 100; ++round) {
        const auto& letters = alphabets()[random() % alphabets().size()];
        const Naive model = random_model(random, letters, true);
        const Vocabulary vocabulary = model.vocabulary();
        const auto all_compatible = [&](const Ids& tokens) {
            for (std::size_t i = 1; i < tokens.size(); ++i)
                if (!vocabulary.compatible(tokens[i - 1], tokens[i])) return false;
            return true;
        };
        const std::string text = random_text(random, letters, 1 + random() % 30);
        const Ids expected = model.merge(text);
        CHECK(all_compatible(expected));
        for (int other = 0; other < 30; ++other) {
            Ids tokens;
            for (std::size_t at = 0; at < text.size(); at += model.tokens[tokens.back()].size()) {
                std::uint32_t found = kNoToken;
                for (std::size_t size = 1 + random() % 8; found == kNoToken; --size)
                    found = model.find(std::string_view(text).substr(at, size));
                tokens.push_back(found);
            }
            CHECK(all_compatible(tokens) == (tokens == expected));
        }
    }
}

std::string base64(const std::string& bytes) {
    static const char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    std::string text;
    for (std::size_t i = 0; i < bytes.size(); i += 3) {
        std::uint32_t word = 0;
        for (std::size_t j = i; j < i + 3; ++j)
            word = word << 8 | (j < bytes.size() ? static_cast<std::uint8_t>(bytes[j]) : 0);
        for (std::size_t j = 0; j < 4; ++j) text += i + j > bytes.size() ? '=' : kDigits[word >> (18 - 6 * j) & 63];
    }
    return text;
}

void tiktoken_files() {
    const std::map<std::uint32_t, std::string> tokens = {
        {0, "a"}, {1, std::string("\0\xFF\x80", 3)}, {7, "light w"}, {4294967294, "light work."}};
    const auto check = [&](const TiktokenFile& file) {
        CHECK(file.tokens.size() == tokens.size() && file.ranks.size() == tokens.size());
        std::size_t i = 0;
        for (const auto& [rank, token] : tokens) {
            CHECK(file.ranks[i] == rank);
            CHECK(file.tokens[i++] == token);
        }
    };
    for (const std::string end : {"\n", "\r\n", "\n\n\r\n"}) {
        std::string upwards, downwards;
        for (const auto& [rank, token] : tokens) {
            const std::string line = base64(token) + " " + std::to_string(rank) + end;
            upwards += line;
            downwards = line + downwards;
        }
        check(parse_tiktoken(upwards));
        check(parse_tiktoken(downwards));
        check(parse_tiktoken(upwards.substr(0, upwards.size() - end.size())));  // the last line may be open
    }
    CHECK(parse_tiktoken("YQ== 5\n").tokens[0] == "a");

    const auto message = [](const std::string& data) { return refused([&] { parse_tiktoken(data); }); };
    CHECK(contains(message(""), "no token"));
    CHECK(contains(message("\n\r\n\n"), "no token"));
    const std::string good = "YQ== 0\nYg== 1\n\n";
    CHECK(contains(message(good + "Yw==\n"), "line 4 has no space"));
    for (const char* text : {" 2", "Y 2", "YQ 2", "YQ=== 2", "==== 2", "A=== 2", "Y=Q= 2", "YQ==YQ== 2", "Y*== 2",
                             "YQ\xC3\xA9 2", "YQ=\xFF 2"})
        CHECK(contains(message(good + text), "line 4 holds no base64"));
    for (const char* text : {"YQ== ", "YQ== x", "YQ== -1", "YQ==  2", "YQ== 2 ", "YQ== 2.0", "YQ== +2", "YQ== 0x2",
                             "YQ== 12345678901", "YQ== 2\r\r"})
        CHECK(contains(message(good + text), "line 4 has no rank"));
    for (const char* text : {"YQ== 4294967295", "YQ== 9999999999"})
        CHECK(contains(message(good + text), "line 4 has too large a rank"));
}

}  // namespace

int main() {
    what_is_refused();
    pairs_are_found();
    parts_are_found();
    parts_are_given();
    neighbours_are_compatible();
    compatible_means_merged();
    tiktoken_files();
    return failures() != 0;
}
