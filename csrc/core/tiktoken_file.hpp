// tiktoken's vocabulary files: a line a token, its bytes in base64, a space, its rank.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace gptfast {

struct TiktokenFile {
    std::string blob;                      // the tokens' bytes, joined
    std::vector<std::string_view> tokens;  // into blob, in order of rank
    std::vector<std::uint32_t> ranks;
};

// Throws std::invalid_argument that names the line.
TiktokenFile parse_tiktoken(std::string_view data);

}  // namespace gptfast
