// AVX-512 with VNNI (servers from 2019 on).
#include "avx512.inl"

namespace {

// 6 rows x 64 columns; of what is ahead, the part of six rows.
template <int R>
inline __attribute__((always_inline)) void dot_block(const uint8_t* a, size_t stride,
                                                     const int8_t* panel, size_t k,
                                                     const int8_t* ahead, int32_t* sums) {
  __m512i total[R][4];
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) total[r][j] = _mm512_setzero_si512();
  for (size_t p = 0; p < k; p += 4) {
    // A line now and then: all of them at once would keep loads waiting.
    if (ahead && p % 16 == 0) _mm_prefetch((const char*)ahead + 4 * p, _MM_HINT_T1);
    __m512i b[4];
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) b[j] = _mm512_loadu_si512(panel + p * kPanel + 64 * j);
#pragma GCC unroll 6
    for (int r = 0; r < R; ++r) {
      int32_t four;
      __builtin_memcpy(&four, a + r * stride + p, 4);
      const __m512i x = _mm512_set1_epi32(four);
#pragma GCC unroll 4
      for (int j = 0; j < 4; ++j)
        // Not the intrinsic: GCC 12 keeps its sums in memory, which halves the rate.
        __asm__("vpdpbusd %2, %1, %0" : "+v"(total[r][j]) : "v"(x), "v"(b[j]));
    }
  }
#pragma GCC unroll 6
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) _mm512_storeu_si512(sums + r * kPanel + 16 * j, total[r][j]);
}

// Up to R rows.
template <int R>
void dot_rest(const uint8_t* a, size_t stride, size_t rows, const int8_t* panel, size_t k,
              int32_t* sums) {
  if constexpr (R > 0) {
    if (rows == R)
      dot_block<R>(a, stride, panel, k, nullptr, sums);
    else
      dot_rest<R - 1>(a, stride, rows, panel, k, sums);
  }
}

void dot(const uint8_t* a, size_t stride, size_t rows, const int8_t* panel, size_t k,
         const int8_t* ahead, int32_t* sums) {
  constexpr size_t kLines = kPanel * 6 / enrobe::kMostRows;
  size_t r = 0;
  // One or two rows have too few sums to keep the processor busy: they come with four others.
  for (; rows - r >= 9 || rows - r == 6; r += 6)
    dot_block<6>(a + r * stride, stride, panel, k, ahead ? ahead + r / 6 * kLines * k : nullptr,
                 sums + r * kPanel);
  if (rows - r > 6) {
    dot_block<4>(a + r * stride, stride, panel, k, nullptr, sums + r * kPanel);
    r += 4;
  }
  dot_rest<5>(a + r * stride, stride, rows - r, panel, k, sums + r * kPanel);
}

}  // namespace

const enrobe::Kernels* enrobe::kernels_avx512() {
  static const Kernels table = {"avx512", 24, 96, 16 * kVectors, nothing, nothing, dot,
                                pack_float, dot_float, quantize, finish, norm, add_int8, attend,
                                attend_scratch, attend_int16, attend_int16_scratch,
                                attend_train, attend_train_back, gelu_rows, gelu_back, add_norm,
                                add_norm_back, adamw, sum_of_squares, transpose};
  return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")
             ? &table
             : nullptr;
}
