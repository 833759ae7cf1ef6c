// Arm with the dot-product instructions (ARMv8.2 on). They multiply signed bytes by signed ones:
// inputs are moved by 128, and the sums moved back.
namespace {
constexpr int kRows = 6, kVectors = 1;
}  // namespace
#include "kernels.inl"

#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif

namespace {

// 4 rows x 16 columns.
template <int R>
inline __attribute__((always_inline)) void dot_block(const uint8_t* a, size_t stride,
                                                     const int8_t* panel, size_t k,
                                                     int32_t* sums) {
  const int8x16_t ones = vdupq_n_s8(1);
  int32x4_t total[R][4], columns[4];
  for (int j = 0; j < 4; ++j) {
    columns[j] = vdupq_n_s32(0);
    for (int r = 0; r < R; ++r) total[r][j] = vdupq_n_s32(0);
  }
  for (size_t p = 0; p < k; p += 4) {
    int8x16_t b[4];
    for (int j = 0; j < 4; ++j) {
      b[j] = vld1q_s8(panel + p * kPanel + 16 * j);
      columns[j] = vdotq_s32(columns[j], b[j], ones);
    }
    for (int r = 0; r < R; ++r) {
      uint32_t four;
      __builtin_memcpy(&four, a + r * stride + p, 4);
      const int8x16_t x = vreinterpretq_s8_u32(vdupq_n_u32(four ^ 0x80808080u));
      for (int j = 0; j < 4; ++j) total[r][j] = vdotq_s32(total[r][j], b[j], x);
    }
  }
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < 4; ++j)
      vst1q_s32(sums + r * kPanel + 4 * j, vmlaq_n_s32(total[r][j], columns[j], 128));
}

void dot(const uint8_t* a, size_t stride, size_t rows, const int8_t* panel, size_t k,
         const int8_t*, int32_t* sums) {
  for (size_t n = 0; n < kPanel; n += 16) {
    size_t r = 0;
    for (; r + 4 <= rows; r += 4)
      dot_block<4>(a + r * stride, stride, panel + 4 * n, k, sums + r * kPanel + n);
    for (; r < rows; ++r)
      dot_block<1>(a + r * stride, stride, panel + 4 * n, k, sums + r * kPanel + n);
  }
}

bool has_dot() {
#if defined(__linux__)
  return getauxval(AT_HWCAP) >> 20 & 1;  // HWCAP_ASIMDDP
#else
  return true;  // every processor of Apple's that runs 64-bit Python has it
#endif
}

}  // namespace

const enrobe::Kernels* enrobe::kernels_arm() {
  static const Kernels table = {"arm", 24, 96, 16 * kVectors, nothing, nothing, dot,
                                pack_float, dot_float, quantize, finish, norm, add_int8, attend,
                                attend_scratch, attend_int16, attend_int16_scratch,
                                attend_train, attend_train_back, gelu_rows, gelu_back, add_norm,
                                add_norm_back, adamw, sum_of_squares, transpose};
  return has_dot() ? &table : nullptr;
}
