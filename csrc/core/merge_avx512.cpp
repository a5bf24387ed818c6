// merge.cpp for processors with AVX-512.
#include "merge_isa.hpp"

#if GPTFAST_X86
#include <immintrin.h>

#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "vocabulary.hpp"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,bmi,bmi2")
#endif
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wuninitialized"  // both in the compiler's own header
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "merge_impl.hpp"

namespace gptfast {
namespace {

template <std::size_t kLanes>
class Keys {
  public:
    static constexpr std::size_t kSize = kLanes;

    explicit Keys(const std::uint32_t* keys) {
        for (std::size_t i = 0; i < kVectors; ++i) v_[i] = _mm512_load_si512(keys + 16 * i);
    }
    std::uint32_t smallest() const {
        __m512i least = v_[0];
        for (std::size_t i = 1; i < kVectors; ++i) least = _mm512_min_epu32(least, v_[i]);
        return _mm512_reduce_min_epu32(least);
    }
    void set(int at, std::uint32_t key) {
        const std::uint64_t lane = std::uint64_t{1} << at;
        for (std::size_t i = 0; i < kVectors; ++i)
            v_[i] = _mm512_mask_set1_epi32(v_[i], static_cast<__mmask16>(lane >> 16 * i), static_cast<int>(key));
    }

  private:
    static constexpr std::size_t kVectors = kLanes / 16;
    __m512i v_[kVectors];
};

}  // namespace

std::size_t merge_avx512(const Vocabulary& vocabulary, std::uint32_t* tokens, std::size_t count,
                         const std::uint8_t* bytes) {
    return merge_with<Keys>(vocabulary, tokens, count, bytes);
}

}  // namespace gptfast
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
