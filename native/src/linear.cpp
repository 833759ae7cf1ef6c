#include "linear.h"

#include <algorithm>
#include <cstring>

namespace enrobe {

namespace {

Block<float> filled_up(const float* values, size_t count) {
  Block<float> out = allocate<float>(padded(count));
  std::fill(out.get(), out.get() + padded(count), 0.0f);
  if (values) std::copy(values, values + count, out.get());
  return out;
}

}  // namespace

Linear Linear::of_int8(const Kernels& kernels, const int8_t* values, size_t n, size_t k,
                       const float* scale, const float* smooth, int zero, const float* bias) {
  Linear made;
  const size_t wide = padded(k), tall = padded(n);
  made.kernels_ = &kernels;
  made.int8_ = true;
  made.outputs = n, made.inputs = k;
  made.zero_ = zero;
  made.numbers_ = allocate<int8_t>(tall * wide);
  made.scale_ = filled_up(scale, n);
  made.bias_ = filled_up(bias, n);
  if (smooth) made.smooth_ = filled_up(smooth, k);
  made.offset_ = allocate<int32_t>(tall);
  for (size_t row = 0; row < tall; ++row) {
    int8_t* out = made.numbers_.get() + row / kPanel * kPanel * wide + row % kPanel * 4;
    const int8_t* from = values + row * k;
    int32_t sum = 0;
    for (size_t p = 0; p < wide; p += 4) {
      int8_t four[4] = {0, 0, 0, 0};
      if (row < n)
        for (size_t i = 0; i < 4 && p + i < k; ++i) sum += four[i] = from[p + i];
      std::memcpy(out + p * kPanel, four, 4);
    }
    made.offset_[row] = zero * sum;
  }
  return made;
}

Linear Linear::of_float(const Kernels& kernels, const float* values, size_t n, size_t k,
                        const float* bias) {
  Linear made;
  const size_t wide = padded(k);
  made.kernels_ = &kernels;
  made.outputs = n, made.inputs = k;
  made.floats_ = allocate<float>(made.panels() * kPanel * wide);
  made.bias_ = filled_up(bias, n);
  Block<float> panel = allocate<float>(wide * kPanel);
  for (size_t start = 0; start < n; start += kPanel) {
    std::fill(panel.get(), panel.get() + wide * kPanel, 0.0f);
    for (size_t row = start; row < std::min(n, start + kPanel); ++row)
      for (size_t p = 0; p < k; ++p) panel[p * kPanel + row - start] = values[row * k + p];
    kernels.pack_float(panel.get(), wide, made.floats_.get() + start * wide);
  }
  return made;
}

bool Linear::same_inputs(const Linear& other) const {
  if (int8_ != other.int8_ || inputs != other.inputs) return false;
  if (!int8_) return true;
  if (zero_ != other.zero_ || !smooth_ != !other.smooth_) return false;
  return !smooth_ || std::equal(smooth_.get(), smooth_.get() + inputs, other.smooth_.get());
}

void Linear::quantize(const float* x, uint8_t* bytes, float* scale) const {
  kernels_->quantize(x, smooth_.get(), padded(inputs), zero_, bytes, scale);
}

void Linear::multiply(const Rows& x, size_t rows, size_t first, size_t last, Activation activation,
                      const float* residual, size_t residual_stride, float* out,
                      size_t stride) const {
  union alignas(64) {
    int32_t numbers[kMostRows * kPanel];
    float floats[kMostRows * kPanel];
  } sums;
  const size_t wide = padded(inputs), most = int8_ ? kernels_->rows : kernels_->float_rows;
  for (size_t panel = first; panel < last; ++panel) {
    const size_t column = panel * kPanel;
    for (size_t start = 0; start < rows; start += most) {
      const size_t count = std::min(most, rows - start);
      Finish how{};
      how.bias = bias_.get() + column;
      how.activation = activation;
      if (residual) {
        how.residual = residual + start * residual_stride + column;
        how.residual_stride = residual_stride;
      }
      if (int8_) {
        how.scale = scale_.get() + column;
        how.offset = offset_.get() + column;
        how.row_scale = x.scale + start;
        kernels_->dot(x.bytes + start * x.bytes_stride, x.bytes_stride, count,
                      numbers_.get() + column * wide, wide, sums.numbers);
      } else {
        kernels_->dot_float(x.floats + start * x.stride, x.stride, count,
                            floats_.get() + column * wide, wide, sums.floats);
      }
      kernels_->finish(&sums, count, how, out + start * stride + column, stride);
    }
  }
}

}  // namespace enrobe
