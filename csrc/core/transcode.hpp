// The storage of Python's str to UTF-8.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gptfast {

constexpr std::size_t kSurrogate = ~std::size_t{0};

// Bytes that to_utf8 may write to, for `length` code points.
std::size_t utf8_capacity(int kind, std::size_t length);

// Writes the UTF-8 of `length` code points to `out`, which has room for utf8_capacity bytes, and returns its size; all
// after it in `out` is left undefined. `kind` is the bytes a code point takes: 1 (Latin-1), 2 (UCS-2) or 4 (UCS-4),
// each aligned to its size. Returns kSurrogate if there is a surrogate, which UTF-8 cannot hold. No state is kept
// between calls, so a text can be written in parts, each small enough to stay in the cache.
std::size_t to_utf8(int kind, const void* text, std::size_t length, std::uint8_t* out);

using TranscodeFunction = std::size_t (*)(int kind, const void* text, std::size_t length, std::uint8_t* out);

// to_utf8 of one instruction set ("avx512", "avx2", "sse2", "neon", "portable"), for tests; nullptr where it is not to
// be had.
TranscodeFunction transcode_function(const char* instructions);

}  // namespace gptfast
