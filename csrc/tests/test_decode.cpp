// Ids back to bytes, into memory of exactly the size they need.
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "check.hpp"
#include "core/decode.hpp"
#include "naive.hpp"

using namespace gptfast;

namespace {

std::string decoded(const Vocabulary& vocabulary, const Ids& ids) {
    std::size_t size = 0;
    CHECK(decoded_size(vocabulary, ids.data(), ids.size(), size) == kAllKnown);
    const std::unique_ptr<char[]> out(new char[size]);  // not a std::string: a sanitizer sees a write past the end
    decode(vocabulary, ids.data(), ids.size(), out.get(), size);
    return {out.get(), size};
}

void any_ids() {
    Random random(1);
    for (int round = 0; round < 200; ++round) {
        const auto& letters = alphabets()[random() % alphabets().size()];
        Naive model = random_model(random, letters, random() % 2);
        for (const std::size_t size : {15u, 16u, 17u, 40u})
            model.add(std::string(size, '-'));  // around the copies of 16
        std::map<std::uint32_t, std::string> known;
        std::vector<Special> specials = {
            {"<|end|>", 5000000}, {"<|end|><|of|><|text|>", 4294967295}, {"?", 70000}, {"taken", model.ids[0]}};
        for (const Special& special : specials) known[special.id] = special.text;
        for (std::size_t i = 0; i < model.ids.size(); ++i) known[model.ids[i]] = model.tokens[i];  // before specials
        if (known.size() != model.ids.size() + 3) continue;  // an id that a special has by chance
        const Vocabulary vocabulary = model.vocabulary(specials);

        Ids all;
        for (const auto& [id, token] : known) {
            all.push_back(id);
            CHECK(vocabulary.decode(id) == token);
        }
        for (const std::size_t n : {0u, 1u, 2u, 3u, 20u, 200u}) {
            Ids ids;
            std::string expected;
            for (std::size_t i = 0; i < n; ++i) {
                ids.push_back(all[random() % all.size()]);
                expected += known[ids.back()];
            }
            CHECK(decoded(vocabulary, ids) == expected);
        }

        // Ids that nothing has: between those that something has, and at random.
        for (int i = 0; i < 100; ++i) {
            const std::uint32_t near = all[random() % all.size()];
            const std::uint32_t id = random() % 2 ? near + 1 : static_cast<std::uint32_t>(random());
            if (known.count(id)) continue;
            CHECK(vocabulary.decode(id).empty());
            const std::size_t before = random() % 5;
            Ids ids(before, near);
            ids.insert(ids.end(), {id, near, id});
            std::size_t size;
            CHECK(decoded_size(vocabulary, ids.data(), ids.size(), size) == before);
        }
    }
}

void every_text_comes_back() {
    Random random(2);
    for (int round = 0; round < 100; ++round) {
        const auto& letters = alphabets()[random() % alphabets().size()];
        const Naive model = random_model(random, letters, random() % 2);
        const Vocabulary vocabulary = model.vocabulary();
        std::string text = random_text(random, letters, random() % 100);
        for (auto n = random() % 20; n > 0; --n) text += static_cast<char>(random());
        CHECK(decoded(vocabulary, model.encode(text)) == text);
    }
}

}  // namespace

int main() {
    any_ids();
    every_text_comes_back();
    return failures() != 0;
}
