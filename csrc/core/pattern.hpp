// The pre-token patterns that are written by hand.
#pragma once

#include <cstdint>

namespace gptfast {

// kNone: the caller splits (any other pattern, through a regular expression engine).
enum class Pattern : std::uint8_t { kGpt2, kCl100k, kO200k, kNone };

}  // namespace gptfast
