#include "tokenizer.hpp"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "parallel.hpp"
#include "scan.hpp"
#include "transcode.hpp"

namespace gptfast {
namespace {

constexpr std::size_t kChunk = std::size_t{1} << 18;  // bytes that are worth a thread's attention

const std::uint8_t* bytes_of(std::string_view text) { return reinterpret_cast<const std::uint8_t*>(text.data()); }

// Puts parts that several threads finish in any order behind each other. Most come in order, and are copied out of a
// buffer that their thread goes on with, so that only the whole takes fresh memory.
class InOrder {
  public:
    InOrder(std::size_t parts, std::size_t expected) : waiting_(parts), arrived_(parts) { all_.reserve(expected); }

    void add(std::size_t part, Tokens& tokens) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (part != next_) {
            waiting_[part] = std::move(tokens);
            arrived_[part] = true;
            tokens = Tokens();
            return;
        }
        append(tokens);
        tokens.truncate(0);
        for (++next_; next_ < waiting_.size() && arrived_[next_]; ++next_) {
            append(waiting_[next_]);
            waiting_[next_] = Tokens();
        }
    }

    Tokens take() { return std::move(all_); }

  private:
    void append(const Tokens& tokens) {
        all_.reserve(tokens.size());
        if (tokens.size()) std::memcpy(all_.end(), tokens.data(), tokens.size() * sizeof *tokens.data());
        all_.extend(tokens.size());
    }

    std::mutex mutex_;
    Tokens all_;
    std::vector<Tokens> waiting_;
    std::vector<bool> arrived_;
    std::size_t next_ = 0;
};

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

namespace {

// Whether text may be cut between two characters of these classes, the second of which is `next`. No pattern matches
// across, and none looks across.
bool may_cut(CharClass before, CharClass after, std::uint32_t next) {
    return is_letter(before) && (is_white(after) || (after == CharClass::kOther && next != '\''));
}

template <class Unit>
std::size_t safe_cut_units(const Unit* text, std::size_t length, std::size_t from) {
    for (std::size_t i = from; i < length; ++i)
        if (may_cut(char_class(text[i - 1]), char_class(text[i]), text[i])) return i;
    return length;
}

std::size_t safe_cut_units(const Units& text, std::size_t from) {
    if (text.kind == 1) return safe_cut_units(static_cast<const std::uint8_t*>(text.data), text.length, from);
    if (text.kind == 2) return safe_cut_units(static_cast<const std::uint16_t*>(text.data), text.length, from);
    return safe_cut_units(static_cast<const std::uint32_t*>(text.data), text.length, from);
}

}  // namespace

std::size_t safe_cut(std::string_view text, std::size_t from) {
    const std::uint8_t* const begin = bytes_of(text);
    const std::uint8_t* const end = begin + text.size();
    const std::uint8_t* p = begin + std::min(from, text.size());
    while (p != end && (*p & 0xC0) == 0x80) ++p;
    CharClass before = CharClass::kOther;
    while (p != end) {
        const Char c = char_at(p, end);
        if (may_cut(before, c.kind, *p)) return static_cast<std::size_t>(p - begin);
        before = c.kind;
        p += c.length;
    }
    return text.size();
}

// An encoder for one thread, given back at the end: the words it has seen stay known. No lock, since a thread that is
// holding one while another forks would leave it locked in the child for ever.
class Tokenizer::Lease {
  public:
    explicit Lease(const Tokenizer& owner) : owner_(owner) {
        for (std::size_t i = 0; i < owner.places_ && !encoder_; ++i) encoder_.reset(owner.idle_[i].exchange(nullptr));
        if (!encoder_) encoder_ = std::make_unique<Encoder>(owner.vocabulary_);
    }
    ~Lease() {
        for (std::size_t i = 0; i < owner_.places_ && encoder_; ++i) {
            Encoder* none = nullptr;
            if (owner_.idle_[i].compare_exchange_strong(none, encoder_.get())) encoder_.release();
        }
    }
    Lease(const Lease&) = delete;
    Lease& operator=(const Lease&) = delete;
    Encoder& operator*() { return *encoder_; }
    Encoder* operator->() { return encoder_.get(); }

  private:
    const Tokenizer& owner_;
    std::unique_ptr<Encoder> encoder_;
};

// Memory for a slice of text, which grows without keeping what it held.
class Tokenizer::Buffer {
  public:
    void reserve(std::size_t size) {
        if (size <= size_) return;
        data_.reset(new std::uint8_t[size]);
        size_ = size;
    }
    std::uint8_t* data() { return data_.get(); }

  private:
    std::unique_ptr<std::uint8_t[]> data_;
    std::size_t size_ = 0;
};

// What one thread works with.
struct Tokenizer::Worker {
    Worker(const Tokenizer& owner, std::size_t expected) : lease(std::make_unique<Lease>(owner)) {
        out.reserve(expected);
    }
    std::unique_ptr<Lease> lease;
    Buffer utf8;
    Tokens out;
};

Tokenizer::Tokenizer(Vocabulary vocabulary, Pattern pattern)
    : vocabulary_(std::move(vocabulary)),
      pattern_(pattern),
      places_(core_count()),
      idle_(new std::atomic<Encoder*>[places_]()) {
    idle_[0] = new Encoder(vocabulary_);
}

Tokenizer::~Tokenizer() {
    for (std::size_t i = 0; i < places_; ++i) delete idle_[i].load();
}

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
    InOrder all(groups.size() - 1, text.size() / 4);
    parallel_for(
        groups.size() - 1, threads, [&] { return Worker(*this, step / 2); },
        [&](Worker& worker, std::size_t group) {
            for (std::size_t i = groups[group]; i < groups[group + 1]; ++i) {
                const Segment& segment = segments[i];
                (*worker.lease)->encode(pattern_, bytes_of(segment.ordinary), segment.ordinary.size(), worker.out);
                if (segment.special) worker.out.push(segment.id);
            }
            all.add(group, worker.out);
        });
    return all.take();
}

bool Tokenizer::encode(const Units& text, std::size_t threads, Tokens& ids) const {
    constexpr std::size_t kSlice = std::size_t{1} << 16;
    std::vector<std::size_t> cuts{0};
    while (cuts.back() < text.length) {
        const bool rest = pattern_ == Pattern::kNone || text.length - cuts.back() < 2 * kSlice;
        cuts.push_back(rest ? text.length : safe_cut_units(text, cuts.back() + kSlice));
    }
    const std::size_t slices = cuts.size() - 1;
    const auto encode_slice = [&](Encoder& encoder, Buffer& utf8, std::size_t i, Tokens& out) {
        const std::size_t length = cuts[i + 1] - cuts[i];
        utf8.reserve(utf8_capacity(text.kind, length));
        const auto* data = static_cast<const char*>(text.data) + cuts[i] * static_cast<std::size_t>(text.kind);
        const std::size_t size = to_utf8(text.kind, data, length, utf8.data());
        if (size != kSurrogate) encoder.encode(pattern_, utf8.data(), size, out);
        return size != kSurrogate;
    };
    const std::size_t expected = text.length / (text.kind == 1 ? 3 : 2);
    if (threads == 1 || slices < 4) {
        Lease lease(*this);
        Buffer utf8;
        ids.reserve(expected);
        for (std::size_t i = 0; i < slices; ++i)
            if (!encode_slice(*lease, utf8, i, ids)) return false;
        return true;
    }
    InOrder all(slices, expected);
    std::atomic<bool> good{true};
    parallel_for(
        slices, threads, [&] { return Worker(*this, kSlice / 2); },
        [&](Worker& worker, std::size_t i) {
            if (!encode_slice(**worker.lease, worker.utf8, i, worker.out)) good = false;
            all.add(i, worker.out);
        });
    ids = all.take();
    return good;
}

Tokens Tokenizer::encode_batch(const std::vector<std::string_view>& texts, const SpecialSet& specials,
                               std::size_t threads, std::vector<std::int64_t>& ends) const {
    ends.assign(texts.size(), 0);
    std::vector<std::pair<std::size_t, std::size_t>> groups;  // texts [first, second)
    std::size_t bytes = 0, begin = 0, total = 0;
    for (std::size_t i = 0; i < texts.size(); ++i) {
        bytes += texts[i].size();
        total += texts[i].size();
        if (bytes >= kChunk || i + 1 == texts.size()) {
            groups.emplace_back(begin, i + 1);
            begin = i + 1;
            bytes = 0;
        }
    }
    InOrder all(groups.size(), total / 4);
    std::vector<std::int64_t> sizes(groups.size());
    parallel_for(
        groups.size(), threads, [&] { return Worker(*this, kChunk / 2); },
        [&](Worker& worker, std::size_t g) {
            for (std::size_t i = groups[g].first; i < groups[g].second; ++i) {
                encode_range(**worker.lease, texts[i], specials, worker.out);
                ends[i] = static_cast<std::int64_t>(worker.out.size());
            }
            sizes[g] = static_cast<std::int64_t>(worker.out.size());
            all.add(g, worker.out);
        });
    std::int64_t before = 0;
    for (std::size_t g = 0; g < groups.size(); ++g) {
        for (std::size_t i = groups[g].first; i < groups[g].second; ++i) ends[i] += before;
        before += sizes[g];
    }
    return all.take();
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
    std::size_t total = 0;
    std::vector<std::unique_ptr<Lease>> leases;  // all that are idle now, and none twice
    for (std::size_t i = 0; i < places_; ++i) {
        if (!idle_[i].load()) continue;
        leases.push_back(std::make_unique<Lease>(*this));
        total += (*leases.back())->memory();
    }
    return total;
}

}  // namespace gptfast
