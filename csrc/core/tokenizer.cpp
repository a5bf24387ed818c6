#include "tokenizer.hpp"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "parallel.hpp"
#include "scan.hpp"

namespace gptfast {
namespace {

constexpr std::size_t kChunk = std::size_t{1} << 18;  // bytes that are worth a thread's attention

const std::uint8_t* bytes_of(std::string_view text) { return reinterpret_cast<const std::uint8_t*>(text.data()); }

// Joins the parts, each thread copying some.
Tokens join(std::vector<Tokens>& parts, std::size_t threads) {
    if (parts.size() == 1) return std::move(parts[0]);
    std::vector<std::size_t> starts{0};
    for (const Tokens& part : parts) starts.push_back(starts.back() + part.size());
    Tokens all;
    all.reserve(starts.back());
    std::uint32_t* const begin = all.end();
    parallel_for(
        parts.size(), threads, [] { return 0; },
        [&](int, std::size_t i) {
            std::memcpy(begin + starts[i], parts[i].data(), parts[i].size() * sizeof *begin);
            parts[i] = Tokens();
        });
    all.extend(starts.back());
    return all;
}

}  // namespace

SpecialSet::SpecialSet(std::vector<Special> specials) : specials_(std::move(specials)) {
    std::stable_sort(specials_.begin(), specials_.end(),
                     [](const Special& a, const Special& b) { return a.text.size() > b.text.size(); });
    if (specials_.empty()) return;
    prefix_ = specials_.back().text;
    for (const Special& special : specials_) {
        std::size_t same = 0;
        while (same < prefix_.size() && special.text[same] == prefix_[same]) ++same;
        prefix_.resize(same);
    }
}

SpecialSet::Match SpecialSet::find(std::string_view text, std::size_t from) const {
    if (specials_.empty()) return {npos, npos, 0};
    for (;; ++from) {
        if (!prefix_.empty()) from = text.find(prefix_, from);
        if (from >= text.size()) return {npos, npos, 0};
        const std::string_view rest = text.substr(from);
        for (const Special& special : specials_)
            if (rest.compare(0, special.text.size(), special.text) == 0)
                return {from, from + special.text.size(), special.id};
    }
}

std::size_t safe_cut(std::string_view text, std::size_t from) {
    const std::uint8_t* const begin = bytes_of(text);
    const std::uint8_t* const end = begin + text.size();
    const std::uint8_t* p = begin + std::min(from, text.size());
    while (p != end && (*p & 0xC0) == 0x80) ++p;
    bool letter = false;
    while (p != end) {
        const Char c = char_at(p, end);
        if (letter && (is_white(c.kind) || (c.kind == CharClass::kOther && *p != '\'')))
            return static_cast<std::size_t>(p - begin);
        letter = is_letter(c.kind);
        p += c.length;
    }
    return text.size();
}

// An encoder for one thread, given back at the end: the words it has seen stay known.
class Tokenizer::Lease {
  public:
    explicit Lease(const Tokenizer& owner) : owner_(owner) {
        {
            const std::lock_guard<std::mutex> lock(owner.mutex_);
            if (!owner.idle_.empty()) {
                encoder_ = std::move(owner.idle_.back());
                owner.idle_.pop_back();
            }
        }
        if (!encoder_) encoder_ = std::make_unique<Encoder>(owner.vocabulary_);
    }
    ~Lease() {
        const std::lock_guard<std::mutex> lock(owner_.mutex_);
        if (owner_.idle_.size() < std::max(1u, std::thread::hardware_concurrency()))
            owner_.idle_.push_back(std::move(encoder_));
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    Encoder& operator*() { return *encoder_; }
    Encoder* operator->() { return encoder_.get(); }

  private:
    const Tokenizer& owner_;
    std::unique_ptr<Encoder> encoder_;
};

Tokenizer::Tokenizer(Vocabulary vocabulary, Pattern pattern) : vocabulary_(std::move(vocabulary)), pattern_(pattern) {
    idle_.reserve(std::max(1u, std::thread::hardware_concurrency()));
    idle_.push_back(std::make_unique<Encoder>(vocabulary_));
}

Tokenizer::~Tokenizer() = default;

void Tokenizer::encode_range(Encoder& encoder, std::string_view text, const SpecialSet& specials, Tokens& out) const {
    std::size_t at = 0;
    while (at < text.size()) {
        const SpecialSet::Match match = specials.find(text, at);
        const std::string_view ordinary = text.substr(at, match.begin - at);
        encoder.encode(pattern_, bytes_of(ordinary), ordinary.size(), out);
        if (match.begin == SpecialSet::npos) return;
        out.push(match.id);
        at = match.end;
    }
}

Tokens Tokenizer::encode(std::string_view text, const SpecialSet& specials, std::size_t threads) const {
    if (threads == 1 || text.size() < 2 * kChunk || pattern_ == Pattern::kNone) {
        Tokens out;
        out.reserve(text.size() / 2);
        encode_range(*Lease(*this), text, specials, out);
        return out;
    }
    // Special tokens first, since a cut must not fall into one; then what lies between them, where the ids allow it.
    struct Segment {
        std::string_view ordinary;
        bool special;  // whether the special token `id` follows
        std::uint32_t id;
    };
    const std::size_t step = std::max(kChunk, text.size() / (8 * threads));
    std::vector<Segment> segments;
    std::vector<std::size_t> groups{0};  // segments of about `step` bytes
    std::size_t grouped = 0;
    SpecialSet::Match match = specials.find(text, 0);
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t stop = std::min(match.begin, text.size());
        std::size_t cut = stop;
        if (stop - at > 2 * step) cut = at + safe_cut(text.substr(at, stop - at), step);
        const bool special = cut == stop && match.begin != SpecialSet::npos;
        segments.push_back({text.substr(at, cut - at), special, match.id});
        grouped += cut - at;
        at = special ? match.end : cut;
        if (special) match = specials.find(text, at);
        if (grouped >= step) {
            groups.push_back(segments.size());
            grouped = 0;
        }
    }
    if (groups.back() != segments.size()) groups.push_back(segments.size());
    std::vector<Tokens> parts(groups.size() - 1);
    parallel_for(
        parts.size(), threads, [&] { return std::make_unique<Lease>(*this); },
        [&](const std::unique_ptr<Lease>& lease, std::size_t group) {
            Tokens& out = parts[group];
            out.reserve(step / 2);
            for (std::size_t i = groups[group]; i < groups[group + 1]; ++i) {
                const Segment& segment = segments[i];
                (*lease)->encode(pattern_, bytes_of(segment.ordinary), segment.ordinary.size(), out);
                if (segment.special) out.push(segment.id);
            }
        });
    return join(parts, threads);
}

Tokens Tokenizer::encode_batch(const std::vector<std::string_view>& texts, const SpecialSet& specials,
                               std::size_t threads, std::vector<std::int64_t>& ends) const {
    ends.assign(texts.size(), 0);
    std::vector<std::pair<std::size_t, std::size_t>> groups;  // texts [first, second)
    std::size_t bytes = 0, begin = 0;
    for (std::size_t i = 0; i < texts.size(); ++i) {
        bytes += texts[i].size();
        if (bytes >= kChunk || i + 1 == texts.size()) {
            groups.emplace_back(begin, i + 1);
            begin = i + 1;
            bytes = 0;
        }
    }
    std::vector<Tokens> parts(groups.size());
    parallel_for(
        groups.size(), threads, [&] { return std::make_unique<Lease>(*this); },
        [&](const std::unique_ptr<Lease>& lease, std::size_t g) {
            for (std::size_t i = groups[g].first; i < groups[g].second; ++i) {
                encode_range(**lease, texts[i], specials, parts[g]);
                ends[i] = static_cast<std::int64_t>(parts[g].size());
            }
        });
    std::int64_t before = 0;
    for (std::size_t g = 0; g < groups.size(); ++g) {
        for (std::size_t i = groups[g].first; i < groups[g].second; ++i) ends[i] += before;
        before += static_cast<std::int64_t>(parts[g].size());
    }
    return parts.empty() ? Tokens() : join(parts, threads);
}

Tokens Tokenizer::encode_pieces(std::string_view data, const std::int64_t* ends, std::size_t count) const {
    Tokens out;
    Lease lease(*this);
    std::size_t begin = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const auto end = static_cast<std::size_t>(ends[i]);
        if (ends[i] < 0 || end < begin || end > data.size())
            throw std::invalid_argument("piece " + std::to_string(i) + " ends at " + std::to_string(ends[i]) +
                                        ", outside " + std::to_string(begin) + ".." + std::to_string(data.size()));
        lease->encode_piece(bytes_of(data) + begin, end - begin, out);
        begin = end;
    }
    return out;
}

std::size_t Tokenizer::count(std::string_view text, std::size_t threads) const {
    return encode(text, SpecialSet(), threads).size();
}

std::size_t Tokenizer::caches_memory() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::size_t total = 0;
    for (const auto& encoder : idle_) total += encoder->memory();
    return total;
}

}  // namespace gptfast
