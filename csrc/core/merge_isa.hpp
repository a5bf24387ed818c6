// Merging of up to kMaxInRegisters tokens with the vector instructions of one processor family.
#pragma once

#include "blocks_isa.hpp"
#include "merge.hpp"

namespace gptfast {

constexpr std::size_t kMaxInRegisters = 62;

// `bytes`: what the tokens are, where all are single bytes; else nullptr.
using MergeFunction = std::size_t (*)(const Vocabulary& vocabulary, std::uint32_t* tokens, std::size_t count,
                                      const std::uint8_t* bytes);

// Of one instruction set ("avx512", "avx2", "portable"), for tests; nullptr where it is not to be had.
MergeFunction merge_function(const char* instructions);

#if GPTFAST_X86
std::size_t merge_avx2(const Vocabulary& vocabulary, std::uint32_t* tokens, std::size_t count,
                       const std::uint8_t* bytes);
std::size_t merge_avx512(const Vocabulary& vocabulary, std::uint32_t* tokens, std::size_t count,
                         const std::uint8_t* bytes);
#endif

}  // namespace gptfast
