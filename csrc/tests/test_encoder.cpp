// Pieces to ids against the definition: of all sizes, with caches that fill up and words that collide.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "check.hpp"
#include "core/tokenizer.hpp"
#include "naive.hpp"

using namespace gptfast;

namespace {

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
        words;  // each of whose characters is looked up too, in a table that may be emptied meanwhile
    for (int i = 0; i < 30000; ++i)
        words.push_back(random_text(random, {"a", "b", "\u00e9", "\u4e2d", "\u4e2e"}, 1 + random() % 5));
    for (int i = 0; i < 3; ++i) check_pieces(model, tokenizer, words);
    check_numbers(tokenizer, numbers(30000, 8));    // as many words as a small table has slots
    check_numbers(tokenizer, numbers(70000, 16));   // as many long ones
    check_numbers(tokenizer, numbers(2000, 1024));  // as many bytes of long ones
    check_numbers(tokenizer, numbers(2000, 1023));
    check_pieces(model, tokenizer, words);
    CHECK(tokenizer.caches_memory() == memory);

    // Bytes that look like the tokens of what takes their place in memory later.
    const std::string dots(".\0\0\0.\0\0\0.\0\0\0.\0\0\0", 16);
    const Tokenizer fresh(model.vocabulary(), Pattern::kNone);
    check_pieces(model, fresh, {dots});
    check_numbers(fresh, numbers(2000, 1024));
    check_pieces(model, fresh, {dots});

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

// A word is its bytes and nothing else, however much may be read after it.
void words_are_their_bytes() {
    Random random(9);
    for (std::size_t size = 0; size <= Word::kMaxBytes; ++size)
        for (int round = 0; round < 100; ++round) {
            std::uint8_t bytes[40];
            for (std::uint8_t& byte : bytes) byte = static_cast<std::uint8_t>(random() | 1);
            const std::unique_ptr<std::uint8_t[]> alone(new std::uint8_t[size]);
            std::copy_n(bytes, size, alone.get());
            const Word word = WordTable::word(alone.get(), size, size);
            std::uint8_t held[16];
            std::memcpy(held, &word.low, 8);
            std::memcpy(held + 8, &word.high, 8);
            CHECK(std::equal(held, held + size, bytes) && held[15] == size);
            CHECK(std::all_of(held + size, held + 15, [](std::uint8_t byte) { return byte == 0; }));
            for (const std::size_t readable : {15u, 16u, 40u}) {
                const Word same = WordTable::word(bytes, size, readable);
                CHECK(same.low == word.low && same.high == word.high);
            }
        }
}

// Words that all want the table's last slots: the places behind them are taken soon, so that few are remembered.
void words_collide() {
    Random random(5);
    Naive model = single_bytes();
    add_merges(model, random, {"0", "1", "2", "3"}, 20);
    const Vocabulary vocabulary = model.vocabulary();
    const WordTable table(vocabulary);
    const auto slot_of = [&](const std::string& word) {
        const auto* bytes = reinterpret_cast<const std::uint8_t*>(word.data());
        return table.slot(WordTable::word(bytes, 8, word.size()));
    };
    std::size_t last = 0;
    for (std::uint32_t i = 0; i < 200000; ++i) last = std::max(last, slot_of(std::to_string(10000000 + i)));
    std::vector<std::string> words;
    for (std::uint32_t i = 0; words.size() < 80; ++i)
        if (slot_of(std::to_string(10000000 + i)) + 16 > last) words.push_back(std::to_string(10000000 + i));
    const Tokenizer tokenizer(model.vocabulary(), Pattern::kNone);
    for (int pass = 0; pass < 3; ++pass) {
        check_pieces(model, tokenizer, words);
        std::shuffle(words.begin(), words.end(), random);
    }
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
    caches_fill_up();
    words_are_their_bytes();
    words_collide();
    long_pieces();
    wrong_ends();
    return failures() != 0;
}
