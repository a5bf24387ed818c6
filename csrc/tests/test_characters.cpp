// Merging from whole characters against the definition, where merges join parts of characters as well as characters.
#include <string>
#include <vector>

#include "check.hpp"
#include "core/characters.hpp"
#include "naive.hpp"

using namespace gptfast;

namespace {

// 0 ids where the function leaves the piece to others.
Ids merged(const Vocabulary& vocabulary, const std::string& piece) {
    Ids out(piece.size());  // room for exactly that many
    out.resize(
        merge_characters(vocabulary, reinterpret_cast<const std::uint8_t*>(piece.data()), piece.size(), out.data()));
    return out;
}

// Characters that share their first or last bytes, so that many merges meet at the same two bytes.
const std::vector<std::vector<std::string>>& letters_of_utf8() {
    static const std::vector<std::vector<std::string>> kLetters = {
        {"\u00e9", "\u00e8", "\u00e0", "\u0129"},
        {"a", "b", "\u00e9", "\u0169"},
        {" ", "\u043e", "\u043d", "\u0430", "\u0440", "\u0441"},
        {"a", "\u00e9", "\u4e2d", "\u4e01", "\U0001f642"},
        {"\u4e2d", "\u4e2e", "\u6e2d", "\u6eae"},
        {"\U0001f642", "\U0001f643", "\U0001f382", "\u00c2"},
    };
    return kLetters;
}

void as_the_definition() {
    Random random(1);
    for (int round = 0; round < 400; ++round) {
        const auto& letters = letters_of_utf8()[random() % letters_of_utf8().size()];
        const Naive model = random_model(random, letters, true);
        const Vocabulary vocabulary = model.vocabulary();
        CHECK(vocabulary.regular());
        for (std::size_t size : {1u, 2u, 2u, 3u, 3u, 4u, 5u, 6u, 8u, 11u, 15u, 20u, 30u, 62u}) {
            const std::string piece = random_text(random, letters, size);
            const Ids ids = merged(vocabulary, piece);
            CHECK(ids.empty() ? piece.size() > 62 : ids == model.merge(piece));
        }
    }
}

void left_to_others() {
    const Vocabulary vocabulary = single_bytes().vocabulary();
    for (const std::string piece :
         {"\xA9", "a\xA9", "\xC3", "\xC3\xA9\xA9", "\xC3\xA9\xC3", "\xC3z", "\xE4\xB8", "\xF0\x9F\x99z"})
        CHECK(merged(vocabulary, piece).empty());
    CHECK(merged(vocabulary, std::string(62, 'a')).size() == 62);
    CHECK(merged(vocabulary, std::string(63, 'a')).empty());
    std::string piece;
    while (piece.size() < 64) piece += "\u00e9";
    CHECK(merged(vocabulary, piece).empty());  // 32 characters, 64 tokens
}

}  // namespace

int main() {
    as_the_definition();
    left_to_others();
    return failures() != 0;
}
