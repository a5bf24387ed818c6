// Any bytes as a vocabulary file: it is refused, or makes a tokenizer that agrees with the definition.
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/decode.hpp"
#include "core/tiktoken_file.hpp"
#include "core/tokenizer.hpp"
#include "tests/naive.hpp"

using namespace gptfast;

namespace {

void require(bool condition) {
    if (!condition) std::abort();
}

void check(const Naive& model, const Tokenizer& tokenizer, std::string_view piece) {
    if (piece.empty()) return;
    const auto end = static_cast<std::int64_t>(piece.size());
    const Tokens ids = tokenizer.encode_pieces(piece, &end, 1);
    require(Ids(ids.data(), ids.data() + ids.size()) == model.encode(piece));
    std::size_t size = 0;
    require(decoded_size(tokenizer.vocabulary(), ids.data(), ids.size(), size) == kAllKnown);
    std::string text(size, '\0');
    decode(tokenizer.vocabulary(), ids.data(), ids.size(), &text[0], size);
    require(text == piece);
}

// Parts that are given, one of them wrong, change nothing.
void check_parts(const std::vector<std::string_view>& tokens, const Ids& ids, const Vocabulary& found,
                 std::string_view text) {
    if (text.size() < 4) return;
    const auto byte = [&](std::size_t i) {
        return std::uint32_t{static_cast<std::uint8_t>(text[text.size() - 1 - i])};
    };
    Vocabulary::Parts parts;
    for (std::uint32_t rank = 0; rank < tokens.size(); ++rank) parts.push_back(found.parts(rank));
    const std::size_t last = tokens.size() - 1;
    parts[last - byte(0) % tokens.size()] = {byte(1) + (byte(2) & 1) * 256, last - byte(3) % tokens.size()};
    const Vocabulary given(tokens, ids, {}, parts);
    require(given.regular() == found.regular());
    for (std::uint32_t rank = 0; rank < tokens.size(); ++rank) require(given.parts(rank) == found.parts(rank));
}

void use(const std::vector<std::string_view>& tokens, const Ids& ids, std::string_view text) {
    try {
        const Tokenizer tokenizer(Vocabulary(tokens, ids, {{"<|end|>", 100}}), Pattern::kNone);
        Naive model;
        for (const std::string_view token : tokens) model.add(std::string(token));
        model.ids = ids;
        check_parts(tokens, ids, tokenizer.vocabulary(), text);
        for (const std::size_t most : {7u, 40u, 300u}) {
            check(model, tokenizer, text.substr(0, most));
            for (std::size_t at = 0; at < text.size(); at += most) check(model, tokenizer, text.substr(at, most));
        }
        for (const std::string_view token : tokens)
            if (token.size() < 100) check(model, tokenizer, std::string(token) + std::string(token));
    } catch (const std::invalid_argument&) {
    }
}

void parse(std::string_view file) {
    try {
        const TiktokenFile parsed = parse_tiktoken(file);
        require(parsed.tokens.size() == parsed.ranks.size() && !parsed.tokens.empty());
        require(std::is_sorted(parsed.ranks.begin(), parsed.ranks.end()));
        use(parsed.tokens, parsed.ranks, file);
    } catch (const std::invalid_argument&) {
    }
}

}  // namespace

// The bytes are a file; the rest of one that has the single bytes; and, cut up, the tokens of a vocabulary: the lowest
// four bits of a byte say how long the token after it is, the next say where it goes, the highest whether ids jump.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const std::string kSingleBytes = [] {
        static const char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        std::string lines;
        for (std::size_t byte = 0; byte < 256; ++byte)
            lines += std::string{kDigits[byte >> 2], kDigits[(byte & 3) << 4]} + "== " + std::to_string(byte) + "\n";
        return lines;
    }();
    const std::string_view bytes(reinterpret_cast<const char*>(data), size);
    parse(bytes);
    parse(kSingleBytes + std::string(bytes));

    const Naive single = single_bytes();
    std::vector<std::string_view> tokens(single.tokens.begin(), single.tokens.end());
    Ids ids;
    std::uint32_t jumps = 0;
    for (std::size_t at = 0; at < size;) {
        const std::uint8_t how = data[at++];
        const std::string_view token = bytes.substr(at, 1 + (how & 15));
        at += token.size();
        const std::size_t place = how & 16 ? tokens.size() : (how >> 5 & 3) * tokens.size() / 4;
        if (!token.empty()) tokens.insert(tokens.begin() + static_cast<std::ptrdiff_t>(place), token);
        jumps = jumps << 1 | how >> 7;
    }
    for (std::uint32_t rank = 0; rank < tokens.size(); ++rank) ids.push_back(rank ^ (jumps & 0xFFFFF));
    use(tokens, ids, bytes);
    return 0;
}
