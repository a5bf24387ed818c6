#include "encoder.hpp"

#include "pretokenize.hpp"

namespace gptfast {
namespace {

// Ranks from `begin` on become ids.
void to_ids(const Vocabulary& vocabulary, Tokens& out, std::size_t begin) {
    if (vocabulary.ids_are_ranks()) return;
    for (std::uint32_t* token = out.begin() + begin; token != out.end(); ++token) *token = vocabulary.id(*token);
}

}  // namespace

void Encoder::encode(Pattern pattern, const std::uint8_t* text, std::size_t size, Tokens& out) {
    const std::uint8_t* const end = text + size;
    const std::size_t first = out.size();
    bool any_long = false;
    pending_ = 0;
    pretokenize(pattern, text, size, [&](const std::uint8_t* begin, const std::uint8_t* piece_end) {
        const auto length = static_cast<std::size_t>(piece_end - begin);
        Pending& pending = batch_[pending_];
        if (length <= Word::kMaxBytes) {
            pending.word = WordTable::word(begin, length, static_cast<std::size_t>(end - begin));
            pending.slot = words_.slot(pending.word);
            words_.prefetch(pending.slot);
        } else {
            pending = {{reinterpret_cast<std::uintptr_t>(begin), length | kLong}, words_.long_hash(begin, length)};
            words_.prefetch_long(pending.slot);
            any_long = true;
        }
        if (++pending_ == kBatch) {
            flush(any_long, out);
            any_long = false;
        }
    });
    flush(any_long, out);
    to_ids(vocabulary_, out, first);
}

void Encoder::flush(bool any_long, Tokens& out) {
    out.reserve(WordTable::kReserve);
    if (any_long)
        for (std::size_t i = 0; i < pending_; ++i)
            if (batch_[i].word.high >= kLong) words_.prefetch_long_tokens(batch_[i].slot);
    for (std::size_t i = 0; i < pending_; ++i) {
        const Pending& pending = batch_[i];
        if (pending.word.high < kLong) {
            words_.encode(pending.word, pending.slot, out);
        } else {
            const auto* piece = reinterpret_cast<const std::uint8_t*>(pending.word.low);
            words_.encode_long(piece, pending.word.high - kLong, pending.slot, out);
        }
    }
    pending_ = 0;
}

void Encoder::encode_piece(const std::uint8_t* piece, std::size_t size, Tokens& out) {
    if (size == 0) return;
    const std::size_t first = out.size();
    if (size > Word::kMaxBytes) {
        words_.encode_long(piece, size, words_.long_hash(piece, size), out);
    } else {
        out.reserve(WordTable::kReserve);
        const Word word = WordTable::word(piece, size, size);
        words_.encode(word, words_.slot(word), out);
    }
    to_ids(vocabulary_, out, first);
}

}  // namespace gptfast
