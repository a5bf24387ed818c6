// Merging of up to kMaxInRegisters tokens with the vector instructions of one processor family.
#pragma once

#include "blocks_isa.hpp"
#include "merge.hpp"

namespace gptfast {

constexpr std::size_t kMaxInRegisters = 62;

using MergeFunction = std::size_t (*)(const Vocabulary&, std::uint32_t*, std::size_t);

// Of one instruction set ("avx512", "avx2", "portable"), for tests; nullptr where it is not to be had.
MergeFunction merge_function(const char* instructions);

#if GPTFAST_X86
std::size_t merge_avx2(const Vocabulary& vocabulary, std::uint32_t* tokens, std::size_t count);
std::size_t merge_avx512(const Vocabulary& vocabulary, std::uint32_t* tokens, std::size_t count);
#endif

}  // namespace gptfast
