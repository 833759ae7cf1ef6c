// One matrix, packed for a table of kernels, and products with it.
#pragma once

#include <cstdlib>
#include <memory>
#include <mutex>
#include <vector>

#include "kernels.h"

namespace enrobe {

// Memory at a cache line's start, not initialised.
struct Free {
  void operator()(void* p) const { std::free(p); }
};
template <typename T>
using Block = std::unique_ptr<T[], Free>;
template <typename T>
Block<T> allocate(size_t count) {
  // A multiple of the alignment, as aligned_alloc wants it.
  const size_t bytes = (count * sizeof(T) + 64 + 63) / 64 * 64;
  void* p = std::aligned_alloc(64, bytes);
  if (!p) throw std::bad_alloc();
  return Block<T>(static_cast<T*>(p));
}

// Memory for weights, as long as it is there: side by side in large pages where the system has such, as
// reading weights is most of what a short text takes.
class Arena {
 public:
  // Not initialised, at a cache line's start.
  template <typename T>
  T* take(size_t count) {
    return static_cast<T*>(take_bytes(count * sizeof(T)));
  }

 private:
  void* take_bytes(size_t bytes);

  std::mutex taking_;
  std::vector<std::unique_ptr<void, Free>> chunks_;
  char* next_ = nullptr;
  size_t left_ = 0;
};

// Inputs of a product: rows of floats, a stride apart, and room for what a matrix prepares of them.
struct Rows {
  const float* floats;
  size_t stride;
  uint8_t* bytes;
  float* scale;
};

// Bytes of a prepared row of so many inputs, each in so many.
inline size_t row_bytes(size_t inputs, size_t parts) {
  // An odd number of cache lines, or else all rows would want the same few places of the cache.
  const size_t lines = padded(inputs) / 64 * parts;
  return 64 * (lines + 1 + lines % 2);
}

class Linear {
 public:
  size_t outputs = 0, inputs = 0;

  // As docs/small.md has it, the matrix in memory of the arena's. Shapes: values (N, K), scale (N), smooth
  // (K) or null, bias (N) or null.
  static Linear of_int8(const Kernels& kernels, Arena& arena, const int8_t* values, size_t n,
                        size_t k, const float* scale, const float* smooth, int zero,
                        const float* bias);
  static Linear of_float(const Kernels& kernels, Arena& arena, const float* values, size_t n,
                         size_t k, const float* bias);

  size_t panels() const { return padded(outputs) / kPanel; }
  // Whether it multiplies bytes, which `prepare` makes of a row, and how many a row.
  bool takes_bytes() const { return kind_ != Kind::floats; }
  bool is_int8() const { return kind_ == Kind::int8; }
  size_t bytes() const { return row_bytes(inputs, kind_ == Kind::sliced ? 3 : 1); }
  // Whether rows that were prepared for one are right for the other.
  bool same_inputs(const Linear& other) const;
  void prepare(const Rows& x, size_t row) const;
  // Of out[rows][64 * panels] one panel, all rows. `ahead`, which may be null, is the panel that the thread
  // takes next.
  void multiply(const Rows& x, size_t rows, size_t panel, Activation activation,
                const float* residual, size_t residual_stride, float* out, size_t stride,
                const void* ahead) const;
  // Where a panel begins.
  const void* weights(size_t panel) const;

 private:
  void pack_slices(Arena& arena, const float* values);

  enum class Kind { floats, sliced, int8 };
  const Kernels* kernels_ = nullptr;
  Kind kind_ = Kind::floats;
  int zero_ = 128;
  int8_t* numbers_ = nullptr;
  float* floats_ = nullptr;
  Block<float> bias_, scale_, smooth_;
  Block<int32_t> offset_;
};

}  // namespace enrobe
