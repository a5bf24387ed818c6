// merge.cpp for processors with AVX2.
#include "merge_isa.hpp"

#if GPTFAST_X86
#include <immintrin.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "vocabulary.hpp"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,bmi,bmi2")
#endif
#include "merge_impl.hpp"

namespace gptfast {
namespace {

template <std::size_t kLanes>
class Keys {
  public:
    static constexpr std::size_t kSize = kLanes;

    explicit Keys(const std::uint32_t* keys) {
        for (std::size_t i = 0; i < kVectors; ++i)
            v_[i] = _mm256_load_si256(reinterpret_cast<const __m256i*>(keys + 8 * i));
    }
    std::uint32_t smallest() const {
        __m256i least = v_[0];
        for (std::size_t i = 1; i < kVectors; ++i) least = _mm256_min_epu32(least, v_[i]);
        __m128i four = _mm_min_epu32(_mm256_castsi256_si128(least), _mm256_extracti128_si256(least, 1));
        four = _mm_min_epu32(four, _mm_shuffle_epi32(four, 0x4E));
        four = _mm_min_epu32(four, _mm_shuffle_epi32(four, 0xB1));
        return static_cast<std::uint32_t>(_mm_cvtsi128_si32(four));
    }
    void set(int at, std::uint32_t key) {
        const __m256i value = _mm256_set1_epi32(static_cast<int>(key));
        __m256i lane = _mm256_sub_epi32(_mm256_set1_epi32(at), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        for (std::size_t i = 0; i < kVectors; ++i) {
            v_[i] = _mm256_blendv_epi8(v_[i], value, _mm256_cmpeq_epi32(lane, _mm256_setzero_si256()));
            lane = _mm256_sub_epi32(lane, _mm256_set1_epi32(8));
        }
    }

  private:
    static constexpr std::size_t kVectors = kLanes / 8;
    __m256i v_[kVectors];
};

}  // namespace

std::size_t merge_avx2(const Vocabulary& vocabulary, std::uint32_t* tokens, std::size_t count,
                       const std::uint8_t* bytes) {
    return merge_with<Keys>(vocabulary, tokens, count, bytes);
}

}  // namespace gptfast
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
