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
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in the compiler's own header
#endif
#include "merge_impl.hpp"

namespace gptfast {
namespace {

class Keys {
  public:
    explicit Keys(const std::uint32_t* keys) : v_(_mm512_load_si512(keys)) {}
    std::uint32_t smallest() const { return _mm512_reduce_min_epu32(v_); }
    void set(int at, std::uint32_t key) {
        v_ = _mm512_mask_set1_epi32(v_, static_cast<__mmask16>(1 << at), static_cast<int>(key));
    }

  private:
    __m512i v_;
};

}  // namespace

std::size_t merge_avx512(const Vocabulary& vocabulary, const std::uint8_t* piece, std::size_t size,
                         std::uint32_t* out) {
    return merge_with<Keys>(vocabulary, piece, size, out);
}

}  // namespace gptfast
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
