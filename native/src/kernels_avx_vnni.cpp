// AVX2 with VNNI (client processors from 2021 on): four products of bytes at once, exact.
#define ENROBE_AVX_VNNI
namespace {
constexpr int kRows = 6, kVectors = 1;
}  // namespace
#include "kernels.inl"

#include <cpuid.h>

namespace {

// 6 rows x 16 columns.
template <int R>
inline __attribute__((always_inline)) void dot_block(const uint8_t* a, size_t stride,
                                                     const int8_t* panel, size_t k,
                                                     int32_t* sums) {
  __m256i total[R][2];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r) total[r][0] = total[r][1] = _mm256_setzero_si256();
  for (size_t p = 0; p < k; p += 4) {
    __m256i b[2];
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j)
      b[j] = _mm256_loadu_si256((const __m256i*)(panel + p * kPanel + 32 * j));
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      int32_t four;
      __builtin_memcpy(&four, a + r * stride + p, 4);
      const __m256i x = _mm256_set1_epi32(four);
#pragma GCC unroll 2
      for (int j = 0; j < 2; ++j)
        __asm__("%{vex%} vpdpbusd %2, %1, %0" : "+x"(total[r][j]) : "x"(x), "x"(b[j]));
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j)
      _mm256_storeu_si256((__m256i*)(sums + r * kPanel + 8 * j), total[r][j]);
}

void dot(const uint8_t* a, size_t stride, size_t rows, const int8_t* panel, size_t k,
         const int8_t*, int32_t* sums) {
  for (size_t n = 0; n < kPanel; n += 16) {
    size_t r = 0;
    for (; r + 6 <= rows; r += 6)
      dot_block<6>(a + r * stride, stride, panel + 4 * n, k, sums + r * kPanel + n);
    for (; r < rows; ++r)
      dot_block<1>(a + r * stride, stride, panel + 4 * n, k, sums + r * kPanel + n);
  }
}

bool has_vnni() {
  unsigned a, b, c, d;
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
         __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a >> 4 & 1);
}

}  // namespace

const enrobe::Kernels* enrobe::kernels_avx_vnni() {
  static const Kernels table = {"avx_vnni", 24, 96, 16 * kVectors, nothing, nothing, dot,
                                pack_float, dot_float, quantize, finish, norm, add_int8, attend,
                                attend_scratch, attend_int16, attend_int16_scratch,
                                attend_train, attend_train_back, gelu_rows, gelu_back, add_norm,
                                add_norm_back, adamw, sum_of_squares, transpose};
  static const bool has = has_vnni();
  return has ? &table : nullptr;
}
