// Merging of text beyond ASCII from whole characters instead of from bytes.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gptfast {

class Vocabulary;

// BPE of `piece` (any bytes, at least one), for a regular() vocabulary. Writes at most `size` ranks and returns how
// many are left; 0, and anything in `out`, where the piece has to be merged from its bytes: it is not UTF-8, or long.
std::size_t merge_characters(const Vocabulary& vocabulary, const std::uint8_t* piece, std::size_t size,
                             std::uint32_t* out);

}  // namespace gptfast
