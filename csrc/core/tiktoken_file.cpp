#include "tiktoken_file.hpp"

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace gptfast {
namespace {

struct Base64 {
    std::int8_t value[256];
    constexpr Base64() : value() {
        for (int i = 0; i < 256; ++i) value[i] = -1;
        const char* digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        for (int i = 0; i < 64; ++i) value[static_cast<unsigned char>(digits[i])] = static_cast<std::int8_t>(i);
    }
};
constexpr Base64 kBase64;

// Appends the bytes; false where `text` is no base64.
bool decode_base64(std::string_view text, std::string& out) {
    if (text.empty() || text.size() % 4 != 0) return false;
    const std::size_t padding = text[text.size() - 1] != '=' ? 0 : text[text.size() - 2] != '=' ? 1 : 2;
    std::uint32_t word = 0;
    const std::size_t start = out.size();
    out.resize(start + text.size() / 4 * 3);
    char* to = out.data() + start;
    for (std::size_t i = 0; i < text.size(); ++i) {
        const int digit = i >= text.size() - padding ? 0 : kBase64.value[static_cast<unsigned char>(text[i])];
        if (digit < 0) return false;
        word = word << 6 | static_cast<std::uint32_t>(digit);
        if (i % 4 != 3) continue;
        *to++ = static_cast<char>(word >> 16);
        *to++ = static_cast<char>(word >> 8);
        *to++ = static_cast<char>(word);
    }
    out.resize(out.size() - padding);
    return true;
}

}  // namespace

TiktokenFile parse_tiktoken(std::string_view data) {
    TiktokenFile file;
    std::vector<std::size_t> ends{0};
    file.blob.reserve(data.size());
    ends.reserve(data.size() / 12);
    file.ranks.reserve(data.size() / 12);
    std::size_t number = 0;
    bool sorted = true;
    for (std::size_t at = 0; at < data.size();) {
        ++number;
        const std::size_t end = std::min(data.find('\n', at), data.size());
        std::string_view line = data.substr(at, end - at);
        at = end + 1;
        if (!line.empty() && line.back() == '\r') line.remove_suffix(1);
        if (line.empty()) continue;
        const auto fail = [&](const char* what) {
            throw std::invalid_argument("line " + std::to_string(number) + what +
                                        "; each must be a token in base64, a space, and its rank");
        };
        const std::size_t space = line.find(' ');
        if (space == std::string_view::npos) fail(" has no space");
        if (!decode_base64(line.substr(0, space), file.blob)) fail(" holds no base64");
        std::uint64_t rank = 0;
        const std::string_view digits = line.substr(space + 1);
        if (digits.empty() || digits.size() > 10) fail(" has no rank");
        for (const char c : digits) {
            if (c < '0' || c > '9') fail(" has no rank");
            rank = rank * 10 + static_cast<std::uint64_t>(c - '0');
        }
        if (rank >= 0xFFFFFFFF) fail(" has too large a rank");
        sorted = sorted && (file.ranks.empty() || file.ranks.back() < rank);
        file.ranks.push_back(static_cast<std::uint32_t>(rank));
        ends.push_back(file.blob.size());
    }
    if (file.ranks.empty()) throw std::invalid_argument("it holds no token");
    file.tokens.reserve(file.ranks.size());
    for (std::size_t i = 0; i < file.ranks.size(); ++i)
        file.tokens.push_back(std::string_view(file.blob).substr(ends[i], ends[i + 1] - ends[i]));
    if (!sorted) {
        std::vector<std::size_t> order(file.ranks.size());
        std::iota(order.begin(), order.end(), std::size_t{0});
        std::stable_sort(order.begin(), order.end(),
                         [&](std::size_t a, std::size_t b) { return file.ranks[a] < file.ranks[b]; });
        std::vector<std::string_view> tokens;
        std::vector<std::uint32_t> ranks;
        for (const std::size_t i : order) {
            tokens.push_back(file.tokens[i]);
            ranks.push_back(file.ranks[i]);
        }
        file.tokens = std::move(tokens);
        file.ranks = std::move(ranks);
    }
    return file;
}

}  // namespace gptfast
