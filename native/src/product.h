// A matrix that is being trained: its product with rows, and both gradients of it, as whole numbers.
//
// Every product is one of rows in three (or two) signed bytes a number (see Kernels::slice), summed
// exactly, so that no result hangs on the number of threads. What scales the terms of a sum one by one goes into
// one of its sides before that is sliced.
//
// Legend: T rows, I inputs, O outputs; y = x W' + b with W (O, I).
#pragma once

#include <functional>

#include "linear.h"

namespace enrobe {

// What runs `work` for 0 to count - 1, in any order, in so many threads.
using Each = std::function<void(size_t count, const std::function<void(size_t)>& work)>;

// How finely numbers are sliced.
struct Slices {
  size_t parts;  // bytes of a number: 3, or 2
  decltype(Kernels::slice) slice;
  decltype(Kernels::dot_sliced) dot;
};

// Rows of numbers in some signed bytes each: [rows][parts][K], a stride apart.
struct Sliced {
  size_t stride = 0;
  Block<int8_t> bytes;
  Block<float> scale;
  Sliced(size_t rows, size_t k, size_t parts);
};

// Some rows of W with their biases: values (count, I), bias (count).
struct Matrix {
  const float *values, *bias;
  size_t count;
};

// y = x W' + b, and what its gradients need of x and W. The kernels must have all that slices.
class Product {
 public:
  const size_t rows, inputs, outputs;

  // W's rows come in matrices. Of W nothing is kept unless x's gradient will be wanted. `activated`
  // is GELU(y), or null.
  Product(const Kernels& kernels, const float* x, size_t rows, size_t inputs,
          const std::vector<Matrix>& matrices, float* y, float* activated, size_t parts, bool for_x,
          const Each& each);

  bool has_x() const { return static_cast<bool>(along_outputs_); }
  // Of y's gradient (T, O) those of x (T, I), of W (O, I) and of b (O); x's may be null, and W's with
  // b's. With y, the gradient is that of GELU(y).
  void backward(const float* y_grad, const float* y, float* x_grad, float* grad, float* bias_grad,
                const Each& each) const;

 private:
  Block<int8_t> pack(const std::vector<Matrix>& matrices, bool for_x, const Each& each);

  const Kernels& kernels_;
  const Slices how_;
  Sliced x_;
  Block<float> scale_, ones_;  // of W's rows
  Block<int8_t> along_outputs_;
};

}  // namespace enrobe
