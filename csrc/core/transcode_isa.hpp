// The instruction sets that to_utf8 is written for beyond the compiler's own baseline.
#pragma once

#include "blocks_isa.hpp"
#include "transcode.hpp"

namespace gptfast {

#if GPTFAST_X86
std::size_t to_utf8_avx2(int kind, const void* text, std::size_t length, std::uint8_t* out);
std::size_t to_utf8_avx512(int kind, const void* text, std::size_t length, std::uint8_t* out);
#endif

}  // namespace gptfast
