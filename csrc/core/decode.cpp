#include "decode.hpp"

#include <cstring>

namespace gptfast {

std::size_t decoded_size(const Vocabulary& vocabulary, const std::uint32_t* ids, std::size_t count, std::size_t& size) {
    size = 0;
    for (std::size_t i = 0; i < count; ++i) {
        const std::size_t length = vocabulary.decode(ids[i]).size();
        if (length == 0) return i;
        size += length;
    }
    return kAllKnown;
}

void decode(const Vocabulary& vocabulary, const std::uint32_t* ids, std::size_t count, char* out, std::size_t size) {
    char* const end = out + size;
    for (std::size_t i = 0; i < count; ++i) {
        const std::string_view token = vocabulary.decode(ids[i]);
        // Nearly all tokens are shorter than 16 bytes: a copy of fixed size, of which the next token overwrites the
        // rest.
        if (token.size() <= 16 && end - out >= 16)
            std::memcpy(out, token.data(), 16);
        else
            std::memcpy(out, token.data(), token.size());
        out += token.size();
    }
}

}  // namespace gptfast
