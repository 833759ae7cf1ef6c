#include "training.h"

#include <algorithm>
#include <cmath>

namespace enrobe {

namespace {

// one(what is theirs, the key of the random bits, scratch) of each head of each text
template <typename One>
void each_head(const Texts& texts, const Heads& all, const Each& each, One one) {
  each(texts.count * texts.heads, [&](size_t part) {
    const size_t text = part / texts.heads, head = part % texts.heads;
    const size_t query = texts.queries[text], key = texts.keys[text], at = head * all.d;
    Heads of = all;
    of.queries = texts.queries[text + 1] - query;
    of.keys = texts.keys[text + 1] - key;
    of.q += query * of.q_stride + at;
    of.k += key * of.k_stride + at;
    of.v += key * of.v_stride + at;
    of.out += query * of.out_stride + at;
    of.log_sums += head * all.queries + query;
    if (all.out_grad) {
      of.out_grad += query * of.out_stride + at;
      of.q_grad += query * of.q_grad_stride + at;
      of.k_grad += key * of.k_grad_stride + at;
      of.v_grad += key * of.v_grad_stride + at;
    }
    const Block<float> scratch = allocate<float>(attend_train_scratch(of.queries, of.keys, of.d));
    one(of, hash(texts.seed, part), scratch.get());
  });
}

// Of rows, parts of which there are few: each has weight's gradient of its own.
size_t rows_of_a_part(size_t rows) { return std::max<size_t>(16, (rows + 63) / 64); }

// one(part, row, the number of its first element)
template <typename One>
void each_row(size_t rows, size_t n, const Each& each, One one) {
  const size_t most = rows_of_a_part(rows);
  each((rows + most - 1) / most, [&](size_t part) {
    for (size_t row = part * most; row < std::min(rows, (part + 1) * most); ++row)
      one(part, row, static_cast<uint32_t>(row * n));
  });
}

}  // namespace

Dropping dropping(double share) {
  const double dropped = std::floor(share * 4294967296.0);
  return {static_cast<int32_t>(dropped - 2147483648.0),
          static_cast<float>(1 / (1 - dropped / 4294967296.0))};
}

// splitmix64 (Steele, Lea and Flood 2014)
uint32_t hash(uint64_t seed, uint64_t part) {
  uint64_t bits = seed + (part + 1) * 0x9E3779B97F4A7C15u;
  bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9u;
  bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EBu;
  return static_cast<uint32_t>(bits ^ (bits >> 31));
}

void attend_texts(const Kernels& kernels, const Texts& texts, const Heads& all, const Each& each) {
  each_head(texts, all, each, [&](const Heads& of, uint32_t key, float* scratch) {
    if (of.queries) kernels.attend_train(of, texts.how, key, scratch);
  });
}

void attend_texts_back(const Kernels& kernels, const Texts& texts, const Heads& all,
                       const Each& each) {
  each_head(texts, all, each, [&](const Heads& of, uint32_t key, float* scratch) {
    // Where nobody asks, the gradients of keys and values are zeros.
    kernels.attend_train_back(of, texts.how, key, scratch);
  });
}

void add_norm_rows(const Kernels& kernels, const AddNorm& of, size_t rows, const float* x,
                   const float* residual, float* total, float* out, float* found, const Each& each) {
  const size_t n = of.n;
  each_row(rows, n, each, [&](size_t, size_t row, uint32_t number) {
    kernels.add_norm(of, number, x + row * n, residual + row * n, total + row * n, out + row * n,
                     found + row * 2);
  });
}

void add_norm_rows_back(const Kernels& kernels, const AddNorm& of, size_t rows, const float* total,
                        const float* found, const float* out_grad, float* residual_grad,
                        float* x_grad, float* weight_grad, float* bias_grad, const Each& each) {
  const size_t n = of.n, most = rows_of_a_part(rows), parts = (rows + most - 1) / most;
  std::vector<float> of_parts(parts * 2 * n, 0.0f);
  each_row(rows, n, each, [&](size_t part, size_t row, uint32_t number) {
    float* own = of_parts.data() + part * 2 * n;
    kernels.add_norm_back(of, number, total + row * n, found + row * 2, out_grad + row * n,
                          residual_grad + row * n, x_grad + row * n, own, own + n);
  });
  std::fill_n(weight_grad, n, 0.0f);
  std::fill_n(bias_grad, n, 0.0f);
  for (size_t part = 0; part < parts; ++part)
    for (size_t i = 0; i < n; ++i) {
      weight_grad[i] += of_parts[part * 2 * n + i];
      bias_grad[i] += of_parts[(part * 2 + 1) * n + i];
    }
}

}  // namespace enrobe
