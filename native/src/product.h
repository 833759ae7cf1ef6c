// A matrix that is being trained: its product with rows, and both gradients of it.
//
// Where the kernels slice, every product is one of rows in three (or two) signed bytes a number (see
// Kernels::slice), summed exactly. What scales the terms of a sum one by one goes into one of its sides before
// that is sliced. Elsewhere it is one of floats, in one order. No result hangs on the number of threads.
//
// Legend: T rows, I inputs, O outputs; y = x W' + b with W (O, I).
#pragma once

#include "linear.h"
#include "team.h"

namespace enrobe {

// How finely numbers are sliced.
struct Slices {
  size_t parts;  // bytes of a number: 3, or 2
  decltype(Kernels::slice) slice;
  decltype(Kernels::dot_sliced) dot;
};

// Rows of numbers in some signed bytes each: [rows][parts][K], a stride apart. Their memory is at a
// cache line's start, and that of another where it is given.
class Sliced {
 public:
  const size_t stride;
  int8_t* bytes;
  float* scale;

  Sliced(size_t rows, size_t k, size_t parts, uint8_t* memory = nullptr);
  static size_t size(size_t rows, size_t k, size_t parts);

 private:
  Block<uint8_t> own_;
};

// Some rows of W with their biases: values (count, I), bias (count).
struct Matrix {
  const float *values, *bias;
  size_t count;
};

// y = x W' + b. What its gradients need of x and W is kept in memory of the caller's, at a cache line's
// start.
class Product {
 public:
  struct Shape {
    size_t rows, inputs, outputs;
    size_t parts;  // bytes of a number where it is sliced: 3, or 2
    bool for_x;    // whether x's gradient will be wanted; if not, nothing is kept of W
  };
  static size_t memory(const Kernels& kernels, const Shape& shape);

  Product(const Kernels& kernels, const Shape& shape, uint8_t* memory);
  // W's rows come in matrices. `activated` is GELU(y), or null.
  void forward(const float* x, const std::vector<Matrix>& matrices, float* y, float* activated,
               const Each& each);
  // Of y's gradient (T, O) those of x (T, I), of W (O, I) and of b (O); x's may be null, and W's with
  // b's. With y, the gradient is that of GELU(y).
  void backward(const float* y_grad, const float* y, float* x_grad, float* grad, float* bias_grad,
                const Each& each) const;

 private:
  Block<int8_t> pack(const std::vector<Matrix>& matrices, const Each& each);
  Block<float> pack_floats(const std::vector<Matrix>& matrices, const Each& each);
  void forward_floats(const float* x, const std::vector<Matrix>& matrices, const float* bias,
                      float* y, float* activated, const Each& each);
  void backward_floats(const float* y_grad, const float* y, float* x_grad, float* grad,
                       float* bias_grad, const Each& each) const;

  const Kernels& kernels_;
  const Shape shape_;
  const Slices how_;
  Sliced x_;
  float* scale_;           // of W's rows
  int8_t* along_outputs_;  // W as x's gradient wants it
  // Both where nothing is sliced.
  float *x_floats_, *panels_;
};

}  // namespace enrobe
