// What a processor has to offer: one table of functions for each instruction set.
//
// Rows of activations are as wide as the next multiple of 64, and filled up with zeros: no kernel
// has a case for what is left over. What a row comes to depends on nothing but the row: every sum
// has one order, however many rows are computed together.
//
// Legend: K inputs and N outputs of a product, both as multiples of 64; a panel is 64 outputs.
#pragma once

#include <cstddef>
#include <cstdint>

namespace enrobe {

constexpr size_t kPanel = 64;
constexpr size_t kMostRows = 96;  // of a block
constexpr size_t kKeys = 48;      // whose scores attention's gradient holds at a time; as many blocks of
                                  // any table's rows, and of 16

inline size_t padded(size_t n) { return (n + kPanel - 1) / kPanel * kPanel; }

enum class Activation { none, gelu, tanh, relu };

// From a block of a product to floats: (sum - offset) * scale * row's scale + bias, then the
// activation, then the residual. Pointers are to the first of the panel's 64.
struct Finish {
  const float* scale;       // null: the block is float32 already
  const int32_t* offset;
  const float* bias;
  const float* row_scale;   // of the block's first row
  const float* residual;    // or null
  size_t residual_stride;
  Activation activation;
};

// Which elements stay, and what they are multiplied by: those whose 32 random bits are not below
// `limit` as a signed number. INT32_MIN: all of them.
struct Dropping {
  int32_t limit;
  float factor;
};

// A row of LayerNorm(residual + dropout(x)) in training: n numbers, the first of which is `number` for
// the random bits.
struct AddNorm {
  size_t n;
  const float *weight, *bias;
  float eps;
  Dropping how;
  uint32_t key;
};

// One head of one text in training; all but log_sums are rows of d numbers, a stride apart.
struct Heads {
  size_t queries, keys, d;
  const float *q, *k, *v;
  size_t q_stride, k_stride, v_stride;
  float* out;
  size_t out_stride;
  float* log_sums;  // of each query's scores, after exp
  const float* out_grad = nullptr;
  float *q_grad = nullptr, *k_grad = nullptr, *v_grad = nullptr;
  size_t q_grad_stride = 0, k_grad_stride = 0, v_grad_stride = 0;
};

// A step: keep = 1 - rate * decay; rate and root with the bias corrections in them.
struct AdamW {
  float rate, keep, beta1, beta2, root, eps;
  float grad_scale;
};

struct Kernels {
  const char* name;
  size_t rows, float_rows;  // of a block
  size_t float_columns;     // of a strip of a packed panel of floats, [64 / columns][K][columns]

  // Once a thread before and after its products.
  void (*begin)();
  void (*end)();

  // sums[rows][64] = a[rows][K] (0 to 255) times a panel [K/4][64][4] of int8, exact. `ahead`, which may
  // be null, will be wanted next: so much of it as this panel times rows / kMostRows, which a table may
  // fetch meanwhile.
  void (*dot)(const uint8_t* a, size_t stride, size_t rows, const int8_t* panel, size_t k,
              const int8_t* ahead, int32_t* sums);

  // The same in float32, by a panel that was packed; stride in floats. Null: see dot_sliced. `ahead`: the
  // panel that comes next, or null.
  void (*pack_float)(const float* panel_KN, size_t k, float* packed);  // [K][64] as it comes
  void (*dot_float)(const float* a, size_t stride, size_t rows, const float* panel, size_t k,
                    const float* ahead, float* sums);

  // A row's numbers of 0 to 255 and its scale, as docs/small.md has it; smooth may be null.
  void (*quantize)(const float* x, const float* smooth, size_t k, int zero, uint8_t* numbers,
                   float* scale);
  void (*finish)(const void* block, size_t rows, const Finish& how, float* out, size_t stride);
  // LayerNorm of a row of n numbers, in rows as wide as padded(n).
  void (*norm)(const float* x, size_t n, const float* weight, const float* bias, float eps,
               float* out);
  // out[n] += row[n] * scale
  void (*add_int8)(const int8_t* row, float scale, size_t n, float* out);
  // Attention of one head of one text; q, k, v and out have d columns. Scratch: so many floats.
  void (*attend)(const float* q, size_t q_stride, size_t queries, const float* k, const float* v,
                 size_t stride, size_t keys, size_t d, float* out, size_t out_stride,
                 float* scratch);
  size_t (*attend_scratch)(size_t keys, size_t d);
  // The same in whole numbers of 16 bits, as docs/small.md has it.
  decltype(attend) attend_int16;
  decltype(attend_scratch) attend_int16_scratch;

  // Training. Scratch: attend_train_scratch(). `key` is of the head, for the random bits.
  void (*attend_train)(const Heads& of, const Dropping& how, uint32_t key, float* scratch);
  void (*attend_train_back)(const Heads& of, const Dropping& how, uint32_t key, float* scratch);
  void (*gelu)(const float* x, size_t n, float* out);
  void (*gelu_back)(const float* x, const float* out_grad, size_t n, float* grad);
  // `total` is the sum before the norm, `found` its mean and 1 / its deviation.
  void (*add_norm)(const AddNorm& of, uint32_t number, const float* x, const float* residual,
                   float* total, float* out, float* found);
  // weight_grad and bias_grad are added to.
  void (*add_norm_back)(const AddNorm& of, uint32_t number, const float* total, const float* found,
                        const float* out_grad, float* residual_grad, float* x_grad,
                        float* weight_grad, float* bias_grad);
  void (*adamw)(const AdamW& how, size_t n, const float* grad, float* x, float* mean, float* square);
  float (*sum_of_squares)(const float* x, size_t n);
  // 16 x 16 floats
  void (*transpose)(const float* x, size_t stride, float* out, size_t out_stride);

  // Products in float32 as whole numbers, where that is quicker. A row becomes three signed bytes a
  // number, [3][K], and a scale: x * by = (first + second / 256 + third / 65536) * scale; `by` may be
  // null. A panel is made of such rows: [4][K/64][3][16][16][4]. To each column `bias` is added, which
  // may be null.
  void (*slice)(const float* x, const float* by, size_t k, int8_t* slices, float* scale) = nullptr;
  void (*dot_sliced)(const int8_t* a, size_t stride, size_t rows, const int8_t* panel, size_t k,
                     const float* row_scale, const float* scale, const float* bias, float* out,
                     size_t out_stride) = nullptr;
  // The same without the products that are worth least, for training: as near as a float32 product is.
  decltype(dot_sliced) dot_sliced_short = nullptr;
  // Of rows in two bytes a number, which is 16 bits of a row's largest, and panels made of such.
  decltype(slice) slice_two = nullptr;
  decltype(dot_sliced) dot_two = nullptr;
  // One slice of 64 inputs of a panel's 16 outputs, [16][16][4], from [16][64] bytes and from [64][16].
  void (*pack_columns)(const int8_t* rows, size_t stride, int8_t* tile) = nullptr;
  void (*pack_rows)(const int8_t* rows, size_t stride, int8_t* tile) = nullptr;
};

inline size_t attend_train_scratch(size_t queries, size_t keys, size_t d) {
  return (5 * (queries + 16) + 4 * (keys + 16) + 64) * (d + 16) + 2 * (queries + 16) +
         4 * kKeys * (queries + keys + 32);
}

// Null where this processor, or this build, has not got it.
const Kernels* kernels_plain();
const Kernels* kernels_avx2();
const Kernels* kernels_avx_vnni();
const Kernels* kernels_avx512();
const Kernels* kernels_amx();
const Kernels* kernels_arm();

}  // namespace enrobe
