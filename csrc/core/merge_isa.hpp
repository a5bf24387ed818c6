// Merging of up to kMiddle bytes with the vector instructions of one processor family.
#pragma once

#include "blocks_isa.hpp"
#include "merge.hpp"

namespace gptfast {

using MergeFunction = std::size_t (*)(const Vocabulary&, const std::uint8_t*, std::size_t, std::uint32_t*);

#if GPTFAST_X86
std::size_t merge_avx2(const Vocabulary& vocabulary, const std::uint8_t* piece, std::size_t size, std::uint32_t* out);
std::size_t merge_avx512(const Vocabulary& vocabulary, const std::uint8_t* piece, std::size_t size, std::uint32_t* out);
#endif

}  // namespace gptfast
