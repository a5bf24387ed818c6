// Validation of many bytes of UTF-8 at once with the vector instructions of one processor family.
#pragma once

#include <cstdint>

#include "blocks_isa.hpp"

namespace gptfast {

// Reads from p, where a sequence starts, whole vectors until one shows an error or fewer bytes than one are left.
// Returns where the next sequence starts: p, or a place before which all is well-formed, at most 67 bytes before the
// first ill-formed sequence or `end`.
using WellFormedFunction = const std::uint8_t* (*)(const std::uint8_t* p, const std::uint8_t* end);

constexpr int kWellFormedStep = 64;  // less than this is not worth a call

// The fastest one for this processor, or nullptr: the state machine of utf8.cpp then reads all.
WellFormedFunction well_formed_function();

// Of one instruction set ("avx512", "avx2", "neon"), for tests; nullptr where it is not to be had.
WellFormedFunction well_formed_function(const char* instructions);

#if GPTFAST_X86
const std::uint8_t* well_formed_avx2(const std::uint8_t* p, const std::uint8_t* end);
const std::uint8_t* well_formed_avx512(const std::uint8_t* p, const std::uint8_t* end);
#endif

}  // namespace gptfast
