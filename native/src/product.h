// A matrix that is being trained: its product with rows, and both gradients of it, as whole numbers.
//
// Every product is one of rows in three signed bytes a number (see Kernels::slice), summed exactly, so
// that no result hangs on the number of threads. What scales the terms of a sum one by one goes into
// one of its sides before that is sliced.
//
// Legend: T rows, I inputs, O outputs; y = x W' + b with W (O, I).
#pragma once

#include <functional>
#include <utility>

#include "linear.h"

namespace enrobe {

// What runs `work` for 0 to count - 1, in any order, in so many threads.
using Each = std::function<void(size_t count, const std::function<void(size_t)>& work)>;

// Rows of numbers in three signed bytes each: [rows][3][K], a stride apart.
struct Sliced {
  size_t stride = 0;
  Block<int8_t> bytes;
  Block<float> scale;
  Sliced() = default;
  Sliced(size_t rows, size_t k);
};

// y = x W' + b, and what its gradients need of x and W. The kernels must have all that slices.
class Product {
 public:
  const size_t rows, inputs, outputs;

  // W's rows come in matrices (some outputs, I). Of W nothing is kept unless x's gradient will be wanted.
  Product(const Kernels& kernels, const float* x, size_t rows, size_t inputs,
          const std::vector<std::pair<const float*, size_t>>& matrices, const float* bias, float* y,
          bool for_x, const Each& each);

  bool has_x() const { return static_cast<bool>(along_outputs_); }
  // Of y's gradient (T, O) those of x (T, I), of W (O, I) and of b (O); x's may be null, and W's with b's.
  void backward(const float* y_grad, float* x_grad, float* grad, float* bias_grad,
                const Each& each) const;

 private:
  Block<int8_t> pack(const std::vector<std::pair<const float*, size_t>>& matrices, bool for_x,
                     const Each& each);

  const Kernels& kernels_;
  Sliced x_;
  Block<float> scale_, ones_;  // of W's rows
  Block<int8_t> along_outputs_;
};

}  // namespace enrobe
