// Pre-token boundaries in 64 ASCII bytes at once.
#pragma once

#include <cstdint>

#include "pattern.hpp"

namespace gptfast {

struct Block {
    std::uint64_t
        starts;  // bit i: a pre-token starts at byte i, for 1 <= i; bit 0 is clear (it is the start asked from)
    bool ascii;  // no byte of the 64 is above 0x7F
};

// Reads 64 bytes at p, where a pre-token starts. Only starts that no byte past the 64, and no byte that is not ASCII,
// could change are reported: each pre-token between two of them is whole, and the one after the last is left to the
// caller.
using BlockFunction = Block (*)(const std::uint8_t* p);

// The fastest one for this processor.
BlockFunction block_function(Pattern pattern);

// Of one instruction set ("avx512", "avx2", "sse2", "neon", "portable"), for tests; nullptr where it is not to be had.
BlockFunction block_function(Pattern pattern, const char* instructions);

}  // namespace gptfast
