// One tokenizer, used by many threads at once: each gets what it would get alone. To see races:
// make test-cpp SANITIZE=thread
#include <atomic>
#include <string>
#include <thread>
#include <vector>

#include "check.hpp"
#include "core/decode.hpp"
#include "core/tokenizer.hpp"
#include "naive.hpp"

using namespace gptfast;

namespace {

const std::vector<std::string> kParts = {"a",  "b", "the",    " the", " a", "'s",           " ",       "\n",
                                         "12", ".", "\u00e9", "E",    "(",  "\u4e2d\u6587", "<|end|>", "\U0001f642"};

std::string decoded(const Vocabulary& vocabulary, const Ids& ids) {
    std::size_t size = 0;
    if (decoded_size(vocabulary, ids.data(), ids.size(), size) != kAllKnown) return "";
    std::string text(size, '\0');
    decode(vocabulary, ids.data(), ids.size(), &text[0], size);
    return text;
}

}  // namespace

int main() {
    Random random(1);
    Naive model = single_bytes();
    add_merges(model, random, kParts, 200);
    const std::vector<Special> specials = {{"<|end|>", 9999}};
    const SpecialSet set(specials), none;

    // Short texts, with more words than the caches hold; and one that is worth several threads.
    std::vector<std::string> texts;
    for (int i = 0; i < 300; ++i) texts.push_back(random_text(random, kParts, 1 + random() % 300));
    texts.push_back(random_text(random, kParts, 400000));
    CHECK(texts.back().size() > 1 << 19);
    const std::vector<std::string_view> views(texts.begin(), texts.end());

    std::vector<Ids> expected, ordinary;
    Ids batch;
    std::vector<std::int64_t> batch_ends;
    {
        const Tokenizer alone(model.vocabulary(specials), Pattern::kO200k);
        for (const std::string& text : texts) {
            expected.push_back(ids_of(alone.encode(text, set, 1)));
            ordinary.push_back(ids_of(alone.encode(text, none, 1)));
        }
        batch = ids_of(alone.encode_batch(views, set, 1, batch_ends));
    }

    const Tokenizer tokenizer(model.vocabulary(specials), Pattern::kO200k);
    std::atomic<int> wrong{0};
    const auto work = [&](unsigned seed) {
        Random choose(seed);
        for (int i = 0; i < 200; ++i) {
            const std::size_t which = choose() % texts.size();
            const std::size_t threads = 1 + choose() % 3;
            bool right = true;
            switch (i % 50 ? choose() % 5 : 5) {
                case 0:
                    right = ids_of(tokenizer.encode(texts[which], set, threads)) == expected[which];
                    break;
                case 1:
                    right = tokenizer.count(texts[which], threads) == ordinary[which].size();
                    break;
                case 2:
                    right = decoded(tokenizer.vocabulary(), expected[which]) == texts[which];
                    break;
                case 3: {
                    const auto end = static_cast<std::int64_t>(texts[which].size());
                    Ids ids = model.encode(std::string_view(texts[which]).substr(0, 40));
                    const std::int64_t ends[] = {std::min<std::int64_t>(end, 40)};
                    right = ids_of(tokenizer.encode_pieces(texts[which], ends, 1)) == ids;
                    break;
                }
                case 4:
                    right = tokenizer.caches_memory() <= std::size_t{1} << 40;
                    break;
                case 5: {
                    std::vector<std::int64_t> ends;
                    right = ids_of(tokenizer.encode_batch(views, set, threads, ends)) == batch && ends == batch_ends;
                    right = right && ids_of(tokenizer.encode(texts.back(), set, threads)) == expected.back();
                    break;
                }
            }
            wrong += !right;
        }
    };
    std::vector<std::thread> users;
    for (unsigned seed = 0; seed < 4; ++seed) users.emplace_back(work, seed);
    for (std::thread& user : users) user.join();
    CHECK(wrong == 0);

    // Encoders kept for later: no more than the machine has threads.
    const std::size_t one = Tokenizer(model.vocabulary(), Pattern::kGpt2).caches_memory();
    CHECK(tokenizer.caches_memory() <= one * std::max(1u, std::thread::hardware_concurrency()));
    return failures() != 0;
}
