// AVX2. Products of bytes are widened to 16 bits first: the instruction that multiplies them as they
// are (vpmaddubsw) cuts off sums beyond 32,767.
namespace {
constexpr int kRows = 6, kVectors = 1;
}  // namespace
#include "kernels.inl"

namespace {

// 3 rows x 16 columns.
template <int R>
inline __attribute__((always_inline)) void dot_block(const uint8_t* a, size_t stride,
                                                     const int8_t* panel, size_t k,
                                                     int32_t* sums) {
  const __m256i low = _mm256_set1_epi16(0xff);
  __m256i total[R][2];
#pragma GCC unroll 3
  for (int r = 0; r < R; ++r) total[r][0] = total[r][1] = _mm256_setzero_si256();
  for (size_t p = 0; p < k; p += 4) {
    __m256i even[2], odd[2];
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      const __m256i b = _mm256_loadu_si256((const __m256i*)(panel + p * kPanel + 32 * j));
      even[j] = _mm256_srai_epi16(_mm256_slli_epi16(b, 8), 8);
      odd[j] = _mm256_srai_epi16(b, 8);
    }
#pragma GCC unroll 3
    for (int r = 0; r < R; ++r) {
      int32_t four;
      __builtin_memcpy(&four, a + r * stride + p, 4);
      const __m256i x = _mm256_set1_epi32(four);
      const __m256i x_even = _mm256_and_si256(x, low), x_odd = _mm256_srli_epi16(x, 8);
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j) {
        total[r][j] = _mm256_add_epi32(total[r][j], _mm256_madd_epi16(x_even, even[j]));
        total[r][j] = _mm256_add_epi32(total[r][j], _mm256_madd_epi16(x_odd, odd[j]));
      }
    }
  }
#pragma GCC unroll 3
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j)
      _mm256_storeu_si256((__m256i*)(sums + r * kPanel + 8 * j), total[r][j]);
}

void dot(const uint8_t* a, size_t stride, size_t rows, const int8_t* panel, size_t k,
         const int8_t*, int32_t* sums) {
  for (size_t n = 0; n < kPanel; n += 16) {
    size_t r = 0;
    for (; r + 3 <= rows; r += 3)
      dot_block<3>(a + r * stride, stride, panel + 4 * n, k, sums + r * kPanel + n);
    for (; r < rows; ++r)
      dot_block<1>(a + r * stride, stride, panel + 4 * n, k, sums + r * kPanel + n);
  }
}

}  // namespace

const enrobe::Kernels* enrobe::kernels_avx2() {
  static const Kernels table = {"avx2", 24, 96, 16 * kVectors, nothing, nothing, dot,
                                pack_float, dot_float, quantize, finish, norm, add_int8, attend,
                                attend_scratch, attend_int16, attend_int16_scratch,
                                attend_train, attend_train_back, gelu_rows, gelu_back, add_norm,
                                add_norm_back, adamw, sum_of_squares, transpose};
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &table : nullptr;
}
