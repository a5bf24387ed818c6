// Any bytes as text, through every pattern, against the definition of byte-pair encoding.
#include <cstdlib>
#include <iterator>
#include <memory>
#include <string>
#include <vector>

#include "core/decode.hpp"
#include "core/scan.hpp"
#include "core/tokenizer.hpp"
#include "core/utf8.hpp"
#include "tests/naive.hpp"

using namespace gptfast;

namespace {

const std::vector<std::string> kLetters = {"a", "s",      "L",      "l",      " ",          " ",      "\n", "'", "1",
                                           ".", "\u00e9", "\u4e2d", "\u0301", "\U0001f642", "\u00a0", "/",  "E"};

const std::vector<Special> kSpecials = {{"<|", 500000}, {"<|a|>", 4294967295}, {"<|a|><|b|>", 70000}, {"<", 70001}};

struct Subject {
    Naive model;
    std::unique_ptr<Tokenizer> tokenizer;
};

// For each pattern a vocabulary that training could have made, and one that it could not. They stay, and so do their
// caches: what was seen before must not matter.
std::vector<Subject> make_subjects() {
    std::vector<Subject> subjects;
    Random random(1);
    for (const Pattern pattern : {Pattern::kGpt2, Pattern::kCl100k, Pattern::kO200k, Pattern::kNone})
        for (const bool regular : {true, false}) {
            Naive model = single_bytes();
            add_merges(model, random, kLetters, 250);
            if (pattern == Pattern::kCl100k) model = with_bytes_anywhere(model, random);
            if (!regular) model = made_irregular(std::move(model), random, kLetters);
            if (pattern != Pattern::kGpt2) renumber(model, random);
            auto tokenizer = std::make_unique<Tokenizer>(model.vocabulary(kSpecials), pattern);
            subjects.push_back({std::move(model), std::move(tokenizer)});
        }
    return subjects;
}

void add_ordinary(const Subject& subject, std::string_view text, Ids& ids) {
    const auto* begin = reinterpret_cast<const std::uint8_t*>(text.data());
    const auto* const end = begin + text.size();
    while (begin != end) {
        const std::uint8_t* stop = end;
        switch (subject.tokenizer->pattern()) {
            case Pattern::kGpt2:
                stop = scan<Pattern::kGpt2>(begin, end);
                break;
            case Pattern::kCl100k:
                stop = scan<Pattern::kCl100k>(begin, end);
                break;
            case Pattern::kO200k:
                stop = scan<Pattern::kO200k>(begin, end);
                break;
            case Pattern::kNone:
                break;
        }
        const auto size = static_cast<std::size_t>(stop - begin);
        for (const std::uint32_t id : subject.model.encode({reinterpret_cast<const char*>(begin), size}))
            ids.push_back(id);
        begin = stop;
    }
}

// At each place from the left, the longest special token that stands there.
Ids expected_ids(const Subject& subject, std::string_view text, const std::vector<Special>& specials) {
    Ids ids;
    std::size_t begin = 0, at = 0;
    while (at < text.size()) {
        const Special* longest = nullptr;
        for (const Special& special : specials)
            if (text.substr(at, special.text.size()) == special.text &&
                (!longest || special.text.size() > longest->text.size()))
                longest = &special;
        if (!longest) {
            ++at;
            continue;
        }
        add_ordinary(subject, text.substr(begin, at - begin), ids);
        ids.push_back(longest->id);
        begin = at += longest->text.size();
    }
    add_ordinary(subject, text.substr(begin), ids);
    return ids;
}

void require(bool condition) {
    if (!condition) std::abort();
}

void check(const Subject& subject, std::string_view text) {
    const Tokenizer& tokenizer = *subject.tokenizer;
    static const SpecialSet kSet(kSpecials);
    const Tokens ordinary = tokenizer.encode(text, SpecialSet(), 1), ids = tokenizer.encode(text, kSet, 1);
    require(Ids(ordinary.data(), ordinary.data() + ordinary.size()) == expected_ids(subject, text, {}));
    require(Ids(ids.data(), ids.data() + ids.size()) == expected_ids(subject, text, kSpecials));
    require(tokenizer.count(text, 1) == ordinary.size());

    std::size_t size = 0;
    require(decoded_size(tokenizer.vocabulary(), ids.data(), ids.size(), size) == kAllKnown && size == text.size());
    const std::unique_ptr<char[]> decoded(new char[size]);
    decode(tokenizer.vocabulary(), ids.data(), ids.size(), decoded.get(), size);
    require(std::string_view(decoded.get(), size) == text);
}

// The same bytes as text: U+FFFD for each that begins no character.
std::string repaired(std::string_view text) {
    std::string good;
    while (!text.empty()) {
        Utf8Validator validator;
        std::int64_t invalid = validator.feed(reinterpret_cast<const std::uint8_t*>(text.data()), text.size());
        if (invalid == Utf8Validator::kValid) invalid = validator.finish();
        if (invalid == Utf8Validator::kValid) return good.append(text);
        good.append(text.substr(0, static_cast<std::size_t>(invalid))).append("\uFFFD");
        text.remove_prefix(static_cast<std::size_t>(invalid) + 1);
    }
    return good;
}

// Each byte names a piece of text, among them all that the patterns tell apart.
std::string spelled(std::string_view bytes) {
    static const char* const kPieces[] = {
        "a",  "a",      "s",      "t",      "L",      "the",    " the",   "ll",     "'s",     "'LL",          "'re",
        "'",  " ",      "  ",     "\n",     "\r\n",   "\t",     "1",      "12",     ".",      "!?",           "/",
        "<|", "<|a|>",  "<|b|>",  "E",      "\u00e9", "\u00c9", "\u01c5", "\u02b0", "\u4e2d", "\u4e2d\u6587", "\u0301",
        "(",  "\u00a0", "\u3000", "\u2028", "\u0085", "\u00b2", "\u0663", "\u017f", "\u212a", "\U0001f642"};
    std::string text;
    for (const char c : bytes) text += kPieces[static_cast<std::uint8_t>(c) % std::size(kPieces)];
    return text;
}

}  // namespace

// The first byte chooses the pattern and the vocabulary; the others are a text, in three ways.
extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const std::vector<Subject> kSubjects = make_subjects();
    if (size == 0) return 0;
    const Subject& subject = kSubjects[*data % kSubjects.size()];
    const std::string_view bytes(reinterpret_cast<const char*>(data + 1), size - 1);
    for (const std::string& text : {std::string(bytes), repaired(bytes), spelled(bytes)})
        check(subject, Exact(text).view());
    return 0;
}
