#include "linear.h"

#include <sys/mman.h>

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

void* Arena::take_bytes(size_t bytes) {
  constexpr size_t page = size_t(2) << 20, chunk = 16 * page;
  std::lock_guard<std::mutex> lock(taking_);
  bytes = (bytes + 63) / 64 * 64;
  if (bytes > left_) {
    // What is not written to takes no memory.
    const size_t size = std::max(chunk, (bytes + page - 1) / page * page);
    std::unique_ptr<void, Free> made(std::aligned_alloc(page, size));
    if (!made) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
    madvise(made.get(), size, MADV_HUGEPAGE);
#endif
    chunks_.push_back(std::move(made));
    next_ = static_cast<char*>(chunks_.back().get());
    left_ = size;
  }
  left_ -= bytes;
  next_ += bytes;
  return next_ - bytes;
}

Linear Linear::of_int8(const Kernels& kernels, Arena& arena, const int8_t* values, size_t n,
                       size_t k, const float* scale, const float* smooth, int zero,
                       const float* bias) {
  Linear made;
  const size_t wide = padded(k), tall = padded(n);
  made.kernels_ = &kernels;
  made.kind_ = Kind::int8;
  made.outputs = n, made.inputs = k;
  made.zero_ = zero;
  made.numbers_ = arena.take<int8_t>(tall * wide);
  made.scale_ = filled_up(scale, n);
  made.bias_ = filled_up(bias, n);
  if (smooth) made.smooth_ = filled_up(smooth, k);
  made.offset_ = allocate<int32_t>(tall);
  for (size_t row = 0; row < tall; ++row) {
    int8_t* out = made.numbers_ + row / kPanel * kPanel * wide + row % kPanel * 4;
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

Linear Linear::of_float(const Kernels& kernels, Arena& arena, const float* values, size_t n,
                        size_t k, const float* bias) {
  Linear made;
  const size_t wide = padded(k);
  made.kernels_ = &kernels;
  made.outputs = n, made.inputs = k;
  made.bias_ = filled_up(bias, n);
  if (kernels.slice) {
    made.pack_slices(arena, values);
    return made;
  }
  made.floats_ = arena.take<float>(made.panels() * kPanel * wide);
  Block<float> panel = allocate<float>(wide * kPanel);
  for (size_t start = 0; start < n; start += kPanel) {
    std::fill(panel.get(), panel.get() + wide * kPanel, 0.0f);
    for (size_t row = start; row < std::min(n, start + kPanel); ++row)
      for (size_t p = 0; p < k; ++p) panel[p * kPanel + row - start] = values[row * k + p];
    kernels.pack_float(panel.get(), wide, made.floats_ + start * wide);
  }
  return made;
}

void Linear::pack_slices(Arena& arena, const float* values) {
  const size_t wide = padded(inputs), tall = padded(outputs);
  kind_ = Kind::sliced;
  numbers_ = arena.take<int8_t>(3 * tall * wide);
  scale_ = filled_up(nullptr, outputs);
  // Sixteen rows at a time, which is a tile's columns.
  Block<float> row = allocate<float>(wide);
  Block<int8_t> slices = allocate<int8_t>(16 * 3 * wide);
  std::fill(row.get(), row.get() + wide, 0.0f);
  for (size_t first = 0; first < tall; first += 16) {
    std::memset(slices.get(), 0, 16 * 3 * wide);
    for (size_t n = first; n < std::min(first + 16, outputs); ++n) {
      std::copy(values + n * inputs, values + (n + 1) * inputs, row.get());
      kernels_->slice(row.get(), nullptr, wide, slices.get() + (n - first) * 3 * wide,
                      scale_.get() + n);
    }
    int8_t* out = numbers_ + first * 3 * wide;
    for (size_t start = 0; start < wide; start += 64)
      for (size_t slice = 0; slice < 3; ++slice, out += 1024)
        kernels_->pack_columns(slices.get() + slice * wide + start, 3 * wide, out);
  }
}

bool Linear::same_inputs(const Linear& other) const {
  if (kind_ != other.kind_ || inputs != other.inputs) return false;
  if (kind_ != Kind::int8) return true;
  if (zero_ != other.zero_ || !smooth_ != !other.smooth_) return false;
  return !smooth_ || std::equal(smooth_.get(), smooth_.get() + inputs, other.smooth_.get());
}

void Linear::prepare(const Rows& x, size_t row) const {
  const float* floats = x.floats + row * x.stride;
  uint8_t* out = x.bytes + row * bytes();
  if (kind_ == Kind::int8)
    kernels_->quantize(floats, smooth_.get(), padded(inputs), zero_, out, x.scale + row);
  else if (kind_ == Kind::sliced)
    kernels_->slice(floats, nullptr, padded(inputs), reinterpret_cast<int8_t*>(out),
                    x.scale + row);
}

const void* Linear::weights(size_t panel) const {
  const size_t at = panel * kPanel * padded(inputs);
  if (kind_ == Kind::floats) return floats_ + at;
  return numbers_ + (kind_ == Kind::sliced ? 3 : 1) * at;
}

void Linear::multiply(const Rows& x, size_t rows, size_t panel, Activation activation,
                      const float* residual, size_t residual_stride, float* out, size_t stride,
                      const void* ahead) const {
  union alignas(64) {
    int32_t numbers[kMostRows * kPanel];
    float floats[kMostRows * kPanel];
  } sums;
  const size_t wide = padded(inputs), stride_in = bytes();
  const size_t most = kind_ == Kind::int8 ? kernels_->rows : kernels_->float_rows;
  const size_t column = panel * kPanel;
  const void* own = weights(panel);
  // With fewer rows reading is all there is to do, and the processor does that ahead by itself.
  if (rows < kMostRows) ahead = nullptr;
  for (size_t start = 0; start < rows; start += most) {
    const size_t count = std::min(most, rows - start);
    Finish how{};
    how.bias = bias_.get() + column;
    how.activation = activation;
    if (residual) {
      how.residual = residual + start * residual_stride + column;
      how.residual_stride = residual_stride;
    }
    if (kind_ == Kind::int8) {
      how.scale = scale_.get() + column;
      how.offset = offset_.get() + column;
      how.row_scale = x.scale + start;
      // Each block fetches its part.
      const int8_t* next = ahead && start < kMostRows
                               ? static_cast<const int8_t*>(ahead) + start * kPanel / kMostRows * wide
                               : nullptr;
      kernels_->dot(x.bytes + start * stride_in, stride_in, count, static_cast<const int8_t*>(own),
                    wide, next, sums.numbers);
    } else if (kind_ == Kind::sliced) {
      const uint8_t* rows_in = x.bytes + start * stride_in;
      kernels_->dot_sliced(reinterpret_cast<const int8_t*>(rows_in), stride_in, count,
                           static_cast<const int8_t*>(own), wide, x.scale + start,
                           scale_.get() + column, nullptr, sums.floats, kPanel);
    } else {
      kernels_->dot_float(x.floats + start * x.stride, x.stride, count,
                          static_cast<const float*>(own), wide, static_cast<const float*>(ahead),
                          sums.floats);
    }
    kernels_->finish(&sums, count, how, out + start * stride + column, stride);
  }
}

}  // namespace enrobe
