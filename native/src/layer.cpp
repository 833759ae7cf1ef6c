#include "layer.h"

#include <algorithm>

namespace enrobe {

Product::Shape TrainedLayer::product_shape(const Shape& of, size_t inputs, size_t outputs,
                                           bool for_x) {
  return {of.rows, inputs, outputs, of.parts, for_x};
}

TrainedLayer::Places TrainedLayer::places(const Kernels& kernels, const Shape& of) {
  Places at{};
  size_t end = 0;
  const auto take = [&](size_t bytes) {
    const size_t start = end;
    end += (bytes + 63) / 64 * 64;
    return start;
  };
  const auto product = [&](size_t inputs, size_t outputs, bool for_x) {
    return take(Product::memory(kernels, product_shape(of, inputs, outputs, for_x)));
  };
  const auto floats = [&](size_t rows, size_t columns) {
    return take(rows * columns * sizeof(float));
  };
  const size_t rows = of.rows, hidden = of.hidden;
  at.projected = product(hidden, 3 * hidden, of.for_x);
  at.output = product(hidden, hidden, true);
  at.up = product(hidden, of.wide, true);
  at.down = product(of.wide, hidden, true);
  at.qkv = floats(rows, 3 * hidden);
  at.mixed = floats(rows, hidden);
  at.log_sums = floats(of.heads, rows);
  at.attention_total = floats(rows, hidden);
  at.attention_found = floats(rows, 2);
  at.before_gelu = floats(rows, of.wide);
  at.total = floats(rows, hidden);
  at.found = floats(rows, 2);
  at.end = end;
  return at;
}

size_t TrainedLayer::memory(const Kernels& kernels, const Shape& of) {
  return places(kernels, of).end;
}

size_t TrainedLayer::weights(const Shape& of) {
  return (4 * of.hidden + 2 * of.wide) * of.hidden + 9 * of.hidden + of.wide;
}

TrainedLayer::TrainedLayer(const Kernels& kernels, const Shape& shape, uint8_t* memory)
    : kernels_(kernels), shape_(shape), at_(places(kernels, shape)), memory_(memory) {}

Product TrainedLayer::product(size_t inputs, size_t outputs, bool for_x, size_t at) const {
  return Product(kernels_, product_shape(shape_, inputs, outputs, for_x), memory_ + at);
}

Heads TrainedLayer::heads() const {
  const size_t hidden = shape_.hidden;
  Heads all{};
  all.queries = all.keys = shape_.rows;
  all.d = hidden / shape_.heads;
  all.q = floats(at_.qkv);
  all.k = all.q + hidden;
  all.v = all.k + hidden;
  all.q_stride = all.k_stride = all.v_stride = 3 * hidden;
  all.out = floats(at_.mixed);
  all.out_stride = hidden;
  all.log_sums = floats(at_.log_sums);
  return all;
}

AddNorm TrainedLayer::norm(const NormOf<const float>& of, const LayerCall& call,
                           uint64_t seed) const {
  return {shape_.hidden, of.weight, of.bias, call.eps, dropping(call.hidden_share), hash(seed, 0)};
}

void TrainedLayer::forward(const float* x, const LayerWeights& weights, const LayerCall& call,
                           float* out, const Each& each) const {
  const size_t rows = shape_.rows, hidden = shape_.hidden, wide = shape_.wide;
  product(hidden, 3 * hidden, shape_.for_x, at_.projected)
      .forward(x, {weights.query, weights.key, weights.value}, floats(at_.qkv), nullptr, each);
  attend_texts(kernels_, call.texts, heads(), each);
  const Block<float> change = allocate<float>(rows * hidden), middle = allocate<float>(rows * hidden);
  product(hidden, hidden, true, at_.output)
      .forward(floats(at_.mixed), {weights.output}, change.get(), nullptr, each);
  add_norm_rows(kernels_, norm(weights.attention_norm, call, call.attention_norm_seed), rows,
                change.get(), x, floats(at_.attention_total), middle.get(),
                floats(at_.attention_found), each);
  const Block<float> activated = allocate<float>(rows * wide);
  product(hidden, wide, true, at_.up)
      .forward(middle.get(), {weights.up}, floats(at_.before_gelu), activated.get(), each);
  product(wide, hidden, true, at_.down)
      .forward(activated.get(), {weights.down}, change.get(), nullptr, each);
  add_norm_rows(kernels_, norm(weights.norm, call, call.norm_seed), rows, change.get(), middle.get(),
                floats(at_.total), out, floats(at_.found), each);
}

void TrainedLayer::backward(const LayerWeights& weights, const LayerCall& call,
                            const float* out_grad, float* x_grad, float* grads,
                            const Each& each) const {
  const size_t rows = shape_.rows, hidden = shape_.hidden, wide = shape_.wide, n = rows * hidden;
  const auto take = [&](size_t count) {
    float* const own = grads;
    if (grads) grads += count;
    return own;
  };
  float *const projected = take(3 * hidden * hidden), *const projected_bias = take(3 * hidden);
  float *const output = take(hidden * hidden), *const output_bias = take(hidden);
  NormOf<float> attention_norm{take(hidden), take(hidden)};
  float *const up = take(wide * hidden), *const up_bias = take(wide);
  float *const down = take(hidden * wide), *const down_bias = take(hidden);
  NormOf<float> last_norm{take(hidden), take(hidden)};
  const Block<float> unused = allocate<float>(2 * hidden);
  if (!grads) attention_norm = last_norm = {unused.get(), unused.get() + hidden};

  // Where nothing is dropped, what is added has the gradient of what it is added to.
  const bool same = call.hidden_share == 0;
  const Block<float> kept = allocate<float>(n), own = allocate<float>(same ? 1 : n);
  float *const of_sum = kept.get(), *const of_change = same ? of_sum : own.get();
  add_norm_rows_back(kernels_, norm(weights.norm, call, call.norm_seed), rows, floats(at_.total),
                     floats(at_.found), out_grad, of_sum, of_change, last_norm.weight,
                     last_norm.bias, each);
  const Block<float> of_activated = allocate<float>(rows * wide), more = allocate<float>(n);
  product(wide, hidden, true, at_.down)
      .backward(of_change, nullptr, of_activated.get(), down, down_bias, each);
  product(hidden, wide, true, at_.up)
      .backward(of_activated.get(), floats(at_.before_gelu), more.get(), up, up_bias, each);
  const auto add = [&](float* to, const float* x) {
    each(rows, [&](size_t row) {
      for (size_t i = row * hidden; i < (row + 1) * hidden; ++i) to[i] += x[i];
    });
  };
  add(more.get(), of_sum);
  add_norm_rows_back(kernels_, norm(weights.attention_norm, call, call.attention_norm_seed), rows,
                     floats(at_.attention_total), floats(at_.attention_found), more.get(), of_sum,
                     of_change, attention_norm.weight, attention_norm.bias, each);
  product(hidden, hidden, true, at_.output)
      .backward(of_change, nullptr, more.get(), output, output_bias, each);
  const Block<float> of_qkv = allocate<float>(3 * n);
  Heads all = heads();
  all.out_grad = more.get();
  all.q_grad = of_qkv.get();
  all.k_grad = all.q_grad + hidden;
  all.v_grad = all.k_grad + hidden;
  all.q_grad_stride = all.k_grad_stride = all.v_grad_stride = 3 * hidden;
  attend_texts_back(kernels_, call.texts, all, each);
  product(hidden, 3 * hidden, shape_.for_x, at_.projected)
      .backward(of_qkv.get(), nullptr, x_grad, projected, projected_bias, each);
  if (x_grad) add(x_grad, of_sum);
}

}  // namespace enrobe
