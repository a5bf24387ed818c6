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

class Keys {
  public:
    explicit Keys(const std::uint32_t* keys)
        : low_(_mm256_load_si256(reinterpret_cast<const __m256i*>(keys))),
          high_(_mm256_load_si256(reinterpret_cast<const __m256i*>(keys + 8))) {}
    std::uint32_t smallest() const {
        const __m256i eight = _mm256_min_epu32(low_, high_);
        __m128i four = _mm_min_epu32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
        four = _mm_min_epu32(four, _mm_shuffle_epi32(four, 0x4E));
        four = _mm_min_epu32(four, _mm_shuffle_epi32(four, 0xB1));
        return static_cast<std::uint32_t>(_mm_cvtsi128_si32(four));
    }
    void set(int at, std::uint32_t key) {
        const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        const __m256i value = _mm256_set1_epi32(static_cast<int>(key)), wanted = _mm256_set1_epi32(at);
        low_ = _mm256_blendv_epi8(low_, value, _mm256_cmpeq_epi32(lanes, wanted));
        high_ =
            _mm256_blendv_epi8(high_, value, _mm256_cmpeq_epi32(_mm256_add_epi32(lanes, _mm256_set1_epi32(8)), wanted));
    }

  private:
    __m256i low_, high_;
};

}  // namespace

std::size_t merge_avx2(const Vocabulary& vocabulary, const std::uint8_t* piece, std::size_t size, std::uint32_t* out) {
    return merge_with<Keys>(vocabulary, piece, size, out);
}

}  // namespace gptfast
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
