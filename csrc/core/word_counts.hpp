// Counts the distinct pre-tokens ("words") of any amount of text in bounded memory, on several threads.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string_view>
#include <vector>

#include "count_table.hpp"
#include "pattern.hpp"
#include "tokenizer.hpp"

namespace gptfast {

// Text is counted in rounds of 16 MiB. A word costs CountTable::kWordCost bytes, and its length if that is above 15.
// When all words at the end of a round cost more than `max_bytes`, the rarest are forgotten: all with count 1, then all
// with count 2, and so on until the rest cost at most half of it. One that comes again then starts from zero. What is
// forgotten depends on the texts and on how they were handed over, never on the number of threads.
class WordCounts {
  public:
    struct Invalid {  // the first byte sequence that is not UTF-8
        std::size_t document, offset;
    };
    using Progress = std::function<bool(std::size_t)>;  // told the bytes counted so far; false stops

    // Special tokens separate documents wherever they stand in a text, and are not counted.
    WordCounts(Pattern pattern, std::size_t max_bytes, SpecialSet specials, std::size_t longest_special);

    // Counts the pre-tokens of documents. Where one is not UTF-8, which ones were counted is unspecified. Calls
    // `progress` (may be empty) after each round.
    std::optional<Invalid> add(const std::vector<std::string_view>& documents, std::size_t threads,
                               const Progress& progress = {});

    // Counts words as they are: word i is data[ends[i - 1]:ends[i]]. Throws std::invalid_argument where the ends
    // decrease or pass the data.
    void add_pieces(std::string_view data, const std::int64_t* ends, std::size_t count);

    const CountTable& words();                        // what all threads counted
    std::uint64_t total() const { return total_; }    // words counted, those forgotten since included
    std::uint64_t pruned() const { return pruned_; }  // distinct words forgotten

  private:
    struct Range {  // of a document, from one place where it can be cut to another
        std::string_view text;
        std::size_t document;
        std::size_t offset;
    };

    std::optional<Invalid> count_round(const std::vector<Range>& ranges, std::size_t threads);
    std::uint64_t count_range(std::string_view range, CountTable& table) const;
    std::size_t cut(std::string_view text, std::size_t from) const;
    void end_round();

    Pattern pattern_;
    std::size_t max_bytes_;
    SpecialSet specials_;
    std::size_t longest_special_;
    std::vector<CountTable> tables_;  // one a thread
    std::uint64_t total_ = 0, pruned_ = 0;
};

}  // namespace gptfast
