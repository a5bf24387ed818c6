// The instruction sets that block functions are written for beyond the compiler's own baseline.
#pragma once

#include "blocks.hpp"

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define GPTFAST_X86 1
#endif

namespace gptfast {

#if GPTFAST_X86
BlockFunction block_function_avx2(Pattern pattern);
BlockFunction block_function_avx512(Pattern pattern);
#endif

}  // namespace gptfast
