// Byte-pair merging, with every instruction set's registers and with the heap, against the definition.
#include <string>
#include <vector>

#include "check.hpp"
#include "core/merge_isa.hpp"
#include "naive.hpp"

using namespace gptfast;

namespace {

const std::uint8_t* bytes_of(const std::string& text) { return reinterpret_cast<const std::uint8_t*>(text.data()); }

Ids byte_ranks(const Vocabulary& vocabulary, const std::string& piece) {
    Ids tokens;
    for (const char c : piece) tokens.push_back(vocabulary.byte_rank(static_cast<std::uint8_t>(c)));
    return tokens;
}

void check_piece(const Naive& model, const Vocabulary& vocabulary, const std::string& piece) {
    const Ids expected = model.merge(piece);
    if (!piece.empty() && piece.size() <= kMaxInRegisters)
        for (const char* name : {"portable", "avx2", "avx512"}) {
            const MergeFunction merge = merge_function(name);
            if (!merge) continue;
            Ids tokens = byte_ranks(vocabulary, piece);
            const Ids bytes = tokens;
            tokens.resize(merge(vocabulary, tokens.data(), tokens.size(), nullptr));
            if (tokens == expected) {
                tokens = bytes;
                tokens.resize(merge(vocabulary, tokens.data(), tokens.size(),
                                    reinterpret_cast<const std::uint8_t*>(piece.data())));
            }
            if (tokens != expected) std::fprintf(stderr, "%s, %zu bytes\n", name, piece.size());
            CHECK(tokens == expected);
        }
    Ids tokens = byte_ranks(vocabulary, piece);
    tokens.resize(merge_tokens(vocabulary, tokens.data(), tokens.size()));
    CHECK(tokens == expected);
    Ids out(piece.size());  // room for exactly that many
    out.resize(byte_pair_merge(vocabulary, bytes_of(piece), piece.size(), out.data()));
    CHECK(out == expected);
}

void any_vocabulary_any_length() {
    Random random(1);
    for (int round = 0; round < 250; ++round) {
        const auto& letters = alphabets()[random() % alphabets().size()];
        const Naive model = random_model(random, letters, random() % 3 != 0);
        const Vocabulary vocabulary = model.vocabulary();
        for (std::size_t size : {0u, 1u, 2u, 3u, 13u, 14u, 15u, 29u, 30u, 31u, 60u, 61u, 62u, 63u, 64u, 65u})
            check_piece(model, vocabulary, random_text(random, letters, size).substr(0, size));
        for (std::size_t size : {100u, 130u, 400u, 1500u})
            check_piece(model, vocabulary, random_text(random, letters, random() % size));
        for (const std::string& letter : letters) {  // runs: only ties
            std::string run;
            for (auto n = random() % 150; n > 0; --n) run += letter;
            check_piece(model, vocabulary, run);
        }
    }
}

// Merging may start from tokens, here from what merges of the lowest ranks leave.
void from_tokens() {
    Random random(2);
    for (int round = 0; round < 200; ++round) {
        const auto& letters = alphabets()[random() % alphabets().size()];
        Naive model = single_bytes();
        add_merges(model, random, letters, 10);
        const Naive first = model;
        add_merges(model, random, letters, 30);
        const Vocabulary vocabulary = model.vocabulary();
        for (std::size_t size : {10u, 40u, 200u}) {
            const std::string text = random_text(random, letters, size);
            Ids tokens = first.merge(text);
            tokens.resize(merge_tokens(vocabulary, tokens.data(), tokens.size()));
            CHECK(tokens == model.merge(text));
        }
    }
}

// Where merges happen in order of rank, each can be done everywhere at once: the definition for long pieces.
Ids one_rank_at_a_time(const Naive& model, const std::string& piece) {
    Ids tokens;
    for (const char c : piece) tokens.push_back(model.find({&c, 1}));
    for (std::uint32_t rank = 0; rank < model.tokens.size(); ++rank) {
        const std::string& token = model.tokens[rank];
        if (token.size() == 1) continue;
        std::size_t made = 0;
        for (std::size_t i = 0; i < tokens.size(); ++i, ++made) {
            tokens[made] = tokens[i];
            if (i + 1 == tokens.size()) continue;
            const std::string &left = model.tokens[tokens[i]], &right = model.tokens[tokens[i + 1]];
            if (left.size() + right.size() != token.size() || token.compare(0, left.size(), left) != 0 ||
                token.compare(left.size(), right.size(), right) != 0)
                continue;
            tokens[made] = rank;
            ++i;
        }
        tokens.resize(made);
    }
    return tokens;
}

void check_long(const Naive& model, const std::string& piece) {
    Ids out(piece.size());
    out.resize(byte_pair_merge(model.vocabulary(), bytes_of(piece), piece.size(), out.data()));
    CHECK(out == one_rank_at_a_time(model, piece));
}

void long_pieces() {
    Random random(3);
    for (const std::string letter : {"a", " ", "7", "\U0001f642", "\u0301", "\u4e2d"}) {
        Naive model = single_bytes();
        add_merges(model, random, {letter}, 60);  // a, aa, aaa, aaaaa: chosen at random
        std::string piece;
        while (piece.size() < 1 << 18) piece += letter;
        check_long(model, piece);
    }
    for (const auto& letters : alphabets()) {
        Naive model = single_bytes();
        add_merges(model, random, letters, 100);
        check_long(with_bytes_anywhere(model, random), random_text(random, letters, 20000));
    }
    // Each merge doubles: the whole piece is one token in the end.
    Naive model = single_bytes();
    for (std::size_t size = 2; size <= 1 << 16; size *= 2) model.add(std::string(size, 'a'));
    for (std::size_t size : {65535u, 65536u, 65537u, 1u << 20}) check_long(model, std::string(size, 'a'));
    // No merge at all, and only the last two bytes.
    check_long(model, std::string(100000, 'b'));
    check_long(model, std::string(100000, 'b') + "aa");
}

}  // namespace

int main() {
    any_vocabulary_any_length();
    from_tokens();
    long_pieces();
    return failures() != 0;
}
