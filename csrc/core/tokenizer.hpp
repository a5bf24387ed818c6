// The tokenizer as its users see it: text to ids and back, special tokens, many threads. One object serves all threads.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "encoder.hpp"
#include "pattern.hpp"
#include "vocabulary.hpp"

namespace gptfast {

// The special tokens to recognise in one call: at each position the longest, as the leftmost match.
class SpecialSet {
  public:
    SpecialSet() = default;
    explicit SpecialSet(std::vector<Special> specials);

    struct Match {
        std::size_t begin, end;  // begin is npos where there is none
        std::uint32_t id;
    };
    static constexpr std::size_t npos = ~std::size_t{0};
    Match find(std::string_view text, std::size_t from) const;
    bool empty() const { return specials_.empty(); }

  private:
    std::vector<Special> specials_;  // longest first
    std::string prefix_;             // what all of them start with
};

// Text as Python stores it: `length` code points of `kind` bytes each, 1 (Latin-1), 2 (UCS-2) or 4 (UCS-4).
struct Units {
    int kind;
    const void* data;
    std::size_t length;
};

class Tokenizer {
  public:
    Tokenizer(Vocabulary vocabulary, Pattern pattern);
    ~Tokenizer();

    const Vocabulary& vocabulary() const { return vocabulary_; }
    Pattern pattern() const { return pattern_; }

    // The ids of `text`, which must be UTF-8. `threads` >= 1; the ids do not depend on it.
    Tokens encode(std::string_view text, const SpecialSet& specials, std::size_t threads) const;

    // The ids of ordinary text as Python stores it, converted slice by slice, so that each stays in the cache. False
    // where it holds a surrogate.
    bool encode(const Units& text, std::size_t threads, Tokens& ids) const;

    // The ids of each text, one after the other; `ends[i]` is where those of texts[i] end.
    Tokens encode_batch(const std::vector<std::string_view>& texts, const SpecialSet& specials, std::size_t threads,
                        std::vector<std::int64_t>& ends) const;

    // The ids of pieces that the caller split: piece i is data[ends[i - 1]:ends[i]]. Throws std::invalid_argument where
    // the ends decrease or pass the data.
    Tokens encode_pieces(std::string_view data, const std::int64_t* ends, std::size_t count) const;

    // The number of ids of ordinary text.
    std::size_t count(std::string_view text, std::size_t threads) const;

    std::size_t caches_memory() const;

  private:
    class Lease;
    class Buffer;
    struct Worker;

    void encode_range(Encoder& encoder, std::string_view text, const SpecialSet& specials, Tokens& out) const;

    Vocabulary vocabulary_;
    Pattern pattern_;
    std::size_t places_;  // one a core: more encoders than that are not kept
    std::unique_ptr<std::atomic<Encoder*>[]> idle_;
};

// Where `text` may be cut near `from` without changing its ids: between a letter and a character that is no letter,
// mark, number or apostrophe. No pattern matches across that, and no pattern looks across it. text.size() where there
// is none.
std::size_t safe_cut(std::string_view text, std::size_t from);

}  // namespace gptfast
