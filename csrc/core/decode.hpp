// Ids back to bytes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "vocabulary.hpp"

namespace gptfast {

constexpr std::size_t kAllKnown = ~std::size_t{0};

// Sets `size` to the bytes that `count` ids decode to. Returns kAllKnown, or the index of the first id that the
// vocabulary lacks.
std::size_t decoded_size(const Vocabulary& vocabulary, const std::uint32_t* ids, std::size_t count, std::size_t& size);

// Writes them to `out`, which has room for exactly that many.
void decode(const Vocabulary& vocabulary, const std::uint32_t* ids, std::size_t count, char* out, std::size_t size);

}  // namespace gptfast
