// Plain C++: what every other table is compared with, and what any processor can do.
namespace {
constexpr int kRows = 4, kVectors = 1;
}  // namespace
#include "kernels.inl"

namespace {

void dot(const uint8_t* a, size_t stride, size_t rows, const int8_t* panel, size_t k,
         const int8_t*, int32_t* sums) {
  for (size_t r = 0; r < rows; ++r) {
    int32_t* row = sums + r * kPanel;
    for (size_t n = 0; n < kPanel; ++n) row[n] = 0;
    for (size_t p = 0; p < k; p += 4)
      for (size_t n = 0; n < kPanel; ++n)
        for (size_t i = 0; i < 4; ++i)
          row[n] += (int32_t)a[r * stride + p + i] * panel[p * kPanel + n * 4 + i];
  }
}

}  // namespace

const enrobe::Kernels* enrobe::kernels_plain() {
  static const Kernels table = {"plain", 8, 96, 16 * kVectors, nothing, nothing, dot,
                                pack_float, dot_float, quantize, finish, norm, add_int8, attend,
                                attend_scratch, attend_int16, attend_int16_scratch,
                                attend_train, attend_train_back, gelu_rows, gelu_back, add_norm,
                                add_norm_back, adamw, sum_of_squares, transpose};
  return &table;
}
