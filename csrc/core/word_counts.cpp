#include "word_counts.hpp"

#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <utility>

#include "parallel.hpp"
#include "pretokenize.hpp"
#include "utf8.hpp"

namespace gptfast {
namespace {

constexpr std::size_t kRound = std::size_t{16} << 20;      // bytes of text between two looks at the memory in use
constexpr std::size_t kRoundWords = std::size_t{1} << 21;  // the same for words that were split elsewhere
constexpr std::size_t kChunk = std::size_t{1} << 18;       // bytes that a thread takes at a time

const std::uint8_t* bytes_of(std::string_view text) { return reinterpret_cast<const std::uint8_t*>(text.data()); }

}  // namespace

WordCounts::WordCounts(Pattern pattern, std::size_t max_bytes, SpecialSet specials, std::size_t longest_special)
    : pattern_(pattern),
      max_bytes_(max_bytes),
      specials_(std::move(specials)),
      longest_special_(longest_special),
      tables_(1) {}

std::optional<WordCounts::Invalid> WordCounts::add(const std::vector<std::string_view>& documents, std::size_t threads,
                                                   const Progress& progress) {
    std::vector<Range> round;
    std::size_t in_round = 0, done = 0;
    for (std::size_t i = 0; i < documents.size(); ++i) {
        for (std::size_t at = 0; at < documents[i].size();) {
            const std::size_t end = cut(documents[i], at + kChunk);
            round.push_back({documents[i].substr(at, end - at), i, at});
            in_round += end - at;
            at = end;
            if (in_round < kRound) continue;
            if (const auto invalid = count_round(round, threads)) return invalid;
            done += in_round;
            if (progress && !progress(done)) return std::nullopt;
            in_round = 0;
            round.clear();
        }
    }
    const auto invalid = count_round(round, threads);
    if (!invalid && progress) progress(done + in_round);
    return invalid;
}

// The first place from `from` on where the text can be cut, which is outside special tokens.
std::size_t WordCounts::cut(std::string_view text, std::size_t from) const {
    while (from < text.size()) {
        from = safe_cut(text, from);
        const std::size_t begin = from - std::min(from, longest_special_);
        const std::string_view around = text.substr(begin, 2 * longest_special_);
        bool inside = false;
        for (std::size_t at = 0; !inside && at < from - begin;) {
            const SpecialSet::Match match = specials_.find(around, at);
            if (match.begin == SpecialSet::npos) break;
            inside = match.begin < from - begin && from - begin < match.end;
            at = match.begin + 1;
        }
        if (!inside) return from;
        ++from;
    }
    return text.size();
}

void WordCounts::add_pieces(std::string_view data, const std::int64_t* ends, std::size_t count) {
    std::size_t begin = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const auto end = static_cast<std::size_t>(ends[i]);
        if (ends[i] < 0 || end < begin || end > data.size())
            throw std::invalid_argument("piece " + std::to_string(i) + " ends at " + std::to_string(ends[i]) +
                                        ", outside " + std::to_string(begin) + ".." + std::to_string(data.size()));
        if (end > begin) {
            tables_[0].add(bytes_of(data) + begin, end - begin, bytes_of(data) + data.size());
            ++total_;
        }
        begin = end;
        if ((i + 1) % kRoundWords == 0 || i + 1 == count) end_round();
    }
}

std::optional<WordCounts::Invalid> WordCounts::count_round(const std::vector<Range>& ranges, std::size_t threads) {
    std::vector<std::size_t> groups{0};  // ranges of about kChunk bytes together
    std::size_t bytes = 0;
    for (std::size_t i = 0; i < ranges.size(); ++i) {
        bytes += ranges[i].text.size();
        if (bytes < kChunk && i + 1 < ranges.size()) continue;
        groups.push_back(i + 1);
        bytes = 0;
    }
    const std::size_t n_groups = groups.size() - 1;
    std::vector<std::uint64_t> totals(n_groups);
    std::vector<std::int64_t> invalid(ranges.size(), Utf8Validator::kValid);
    if (const std::size_t workers = std::min(threads, n_groups); tables_.size() < workers) tables_.resize(workers);
    std::atomic<std::size_t> next_table{0};
    parallel_for(
        n_groups, threads, [&] { return &tables_[next_table++]; },
        [&](CountTable* table, std::size_t group) {
            for (std::size_t i = groups[group]; i < groups[group + 1]; ++i) {
                Utf8Validator validator;
                validator.feed(bytes_of(ranges[i].text), ranges[i].text.size());
                invalid[i] = validator.finish();
                if (invalid[i] == Utf8Validator::kValid) totals[group] += count_range(ranges[i].text, *table);
            }
        });
    for (const std::uint64_t words : totals) total_ += words;
    end_round();
    for (std::size_t i = 0; i < ranges.size(); ++i)
        if (invalid[i] != Utf8Validator::kValid)
            return Invalid{ranges[i].document, ranges[i].offset + static_cast<std::size_t>(invalid[i])};
    return std::nullopt;
}

std::uint64_t WordCounts::count_range(std::string_view range, CountTable& table) const {
    const std::uint8_t* const limit = bytes_of(range) + range.size();
    std::uint64_t words = 0;
    for (std::size_t at = 0; at < range.size();) {
        const SpecialSet::Match match = specials_.find(range, at);
        const std::string_view document = range.substr(at, match.begin - at);
        pretokenize(pattern_, bytes_of(document), document.size(),
                    [&](const std::uint8_t* begin, const std::uint8_t* end) {
                        table.add(begin, static_cast<std::size_t>(end - begin), limit);
                        ++words;
                    });
        if (match.begin == SpecialSet::npos) break;
        at = match.end;
    }
    table.flush();  // before the text may go
    return words;
}

void WordCounts::end_round() {
    std::size_t cost = 0;
    for (CountTable& table : tables_) {
        table.flush();
        cost += table.cost();
    }
    // The tables of several threads have some words in common: only one table tells.
    if (cost > max_bytes_ && words().cost() > max_bytes_) pruned_ += tables_[0].prune(max_bytes_ / 2);
}

const CountTable& WordCounts::words() {
    for (std::size_t i = 1; i < tables_.size(); ++i) tables_[0].merge(tables_[i]);
    tables_.resize(1);
    tables_[0].flush();
    return tables_[0];
}

}  // namespace gptfast
