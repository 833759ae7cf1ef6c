// A whole layer in training, one call for each direction: what its products, its attention and its
// norms do one by one, without a way back to Python between them.
//
// Legend: T rows (tokens), H hidden, F width of the feed-forward, N heads.
#pragma once

#include "product.h"
#include "training.h"

namespace enrobe {

// A norm's weight and bias (H,), or their gradients.
template <typename Float>
struct NormOf {
  Float *weight, *bias;
};

struct LayerWeights {
  Matrix query, key, value, output, up, down;
  NormOf<const float> attention_norm, norm;
};

// What differs between two calls of a layer.
struct LayerCall {
  Texts texts;
  double hidden_share;        // that is dropped after attention and after the feed-forward
  uint64_t attention_norm_seed, norm_seed;
  float eps;
};

// What the gradient needs is kept in memory of the caller's, at a cache line's start.
class TrainedLayer {
 public:
  struct Shape {
    size_t rows, hidden, wide, heads;
    size_t parts;  // see Product::Shape
    bool for_x;    // whether x's gradient will be wanted
  };
  static size_t memory(const Kernels& kernels, const Shape& shape);
  // How many numbers the gradients of all weights have.
  static size_t weights(const Shape& shape);

  TrainedLayer(const Kernels& kernels, const Shape& shape, uint8_t* memory);
  // x, out (T, H)
  void forward(const float* x, const LayerWeights& weights, const LayerCall& call, float* out,
               const Each& each) const;
  // Of out's gradient (T, H) those of x (T, H), or null, and of the weights, or null: query, key and
  // value's weights, their biases; output, attention_norm, up, down and norm, each weight and bias.
  void backward(const LayerWeights& weights, const LayerCall& call, const float* out_grad,
                float* x_grad, float* grads, const Each& each) const;

 private:
  Product product(size_t inputs, size_t outputs, bool for_x, size_t at) const;
  Heads heads() const;
  AddNorm norm(const NormOf<const float>& of, const LayerCall& call, uint64_t seed) const;
  float* floats(size_t at) const { return reinterpret_cast<float*>(memory_ + at); }

  // Where it is kept.
  struct Places {
    size_t projected, output, up, down;     // of products: query, key and value together
    size_t qkv, mixed, log_sums;            // (T, 3H), (T, H), (N, T)
    size_t attention_total, attention_found;  // (T, H), (T, 2)
    size_t before_gelu;                     // (T, F)
    size_t total, found;                    // (T, H), (T, 2)
    size_t end;
  };
  static Places places(const Kernels& kernels, const Shape& shape);
  static Product::Shape product_shape(const Shape& shape, size_t inputs, size_t outputs, bool for_x);

  const Kernels& kernels_;
  const Shape shape_;
  const Places at_;
  uint8_t* memory_;
};

}  // namespace enrobe
