// Any ids back to bytes: unknown ones are named, and nothing is written past the end.
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "core/decode.hpp"
#include "tests/naive.hpp"

using namespace gptfast;

namespace {

struct Subject {
    Vocabulary vocabulary;
    std::map<std::uint32_t, std::string> tokens;
};

// Ids with gaps, some of them large, tokens shorter and longer than decode() copies at once, special tokens.
Subject make_subject() {
    Random random(1);
    Naive model = single_bytes();
    add_merges(model, random, {"a", "b", "\u4e2d"}, 200);
    for (const std::size_t size : {15u, 16u, 17u, 31u, 200u}) model.add(std::string(size, 'x'));
    for (std::uint32_t rank = 0; rank < model.ids.size(); ++rank) model.ids[rank] = rank + rank / 3;
    model.ids[300] = 1u << 30;
    model.ids[301] = 4294967294;
    const std::vector<Special> specials = {
        {"<|a long special token|>", 1000}, {"<|b|>", 4294967295}, {"<|c|>", 1u << 22}};
    std::map<std::uint32_t, std::string> tokens;
    for (const Special& special : specials) tokens[special.id] = special.text;
    for (std::size_t i = 0; i < model.ids.size(); ++i) tokens[model.ids[i]] = model.tokens[i];
    return {model.vocabulary(specials), std::move(tokens)};
}

void require(bool condition) {
    if (!condition) std::abort();
}

void check(const Subject& subject, const Ids& ids) {
    std::string expected;
    std::size_t known = 0, size = 0;
    for (; known < ids.size(); ++known) {
        const auto found = subject.tokens.find(ids[known]);
        if (found == subject.tokens.end()) break;
        expected += found->second;
    }
    require(decoded_size(subject.vocabulary, ids.data(), ids.size(), size) == (known < ids.size() ? known : kAllKnown));
    require(decoded_size(subject.vocabulary, ids.data(), known, size) == kAllKnown && size == expected.size());
    const std::unique_ptr<char[]> out(new char[size]);
    decode(subject.vocabulary, ids.data(), known, out.get(), size);
    require(std::string_view(out.get(), size) == expected);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    static const Subject kSubject = make_subject();
    static const std::vector<std::pair<std::uint32_t, std::string>> kTokens(kSubject.tokens.begin(),
                                                                            kSubject.tokens.end());
    Ids ids(size / 4), known;
    if (!ids.empty()) std::memcpy(ids.data(), data, 4 * ids.size());
    check(kSubject, ids);
    for (std::size_t i = 0; i + 2 <= size; i += 2)
        known.push_back(kTokens[(data[i] + 256u * data[i + 1]) % kTokens.size()].first);
    check(kSubject, known);
    known.insert(known.end(), ids.begin(), ids.end());
    check(kSubject, known);
    return 0;
}
