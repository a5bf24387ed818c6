// Streaming UTF-8 validation, and what its first byte says about a character.
#pragma once

#include <cstddef>
#include <cstdint>

namespace gptfast {

// The length in bytes of the character that starts with this byte (which is no continuation byte).
inline std::size_t utf8_length(std::uint8_t first) {
    return first < 0x80 ? 1 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
}

inline bool is_continuation(std::uint8_t byte) { return (byte & 0xC0) == 0x80; }

// Checks that bytes arriving in chunks of any size are UTF-8 as RFC 3629 defines it: no overlong forms, no surrogates,
// nothing past U+10FFFF. Offsets count bytes from the first byte ever fed and name the start of the first ill-formed
// sequence, the same byte that Python's strict decoder reports in UnicodeDecodeError.start.
class Utf8Validator {
  public:
    static constexpr std::int64_t kValid = -1;

    // Reads the next `size` bytes. Returns kValid, or the offset of the first ill-formed sequence; once one was found
    // every later call returns it again. A sequence cut off by the end of the chunk is no error yet.
    std::int64_t feed(const std::uint8_t* data, std::size_t size);

    // Says that no more bytes follow, which makes an unfinished sequence an error. Returns the same as feed.
    std::int64_t finish();

  private:
    std::int64_t seen_ = 0;   // bytes fed before this chunk
    std::int64_t start_ = 0;  // offset of the sequence that is open while missing_ > 0
    std::int64_t invalid_ = kValid;
    int missing_ = 0;          // continuation bytes the open sequence still needs
    std::uint8_t low_ = 0x80;  // bounds of the next continuation byte; narrower than 80..BF only for the second byte
    std::uint8_t high_ = 0xBF;
};

}  // namespace gptfast
