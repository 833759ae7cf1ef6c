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

struct Kernels {
  const char* name;
  size_t rows, float_rows;  // of a block

  // Once a thread before and after its products.
  void (*begin)();
  void (*end)();

  // sums[rows][64] = a[rows][K] (0 to 255) times a panel [K/4][64][4] of int8, exact.
  void (*dot)(const uint8_t* a, size_t stride, size_t rows, const int8_t* panel, size_t k,
              int32_t* sums);

  // The same in float32, by a panel that was packed; stride in floats. Null: see dot_sliced.
  void (*pack_float)(const float* panel_KN, size_t k, float* packed);  // [K][64] as it comes
  void (*dot_float)(const float* a, size_t stride, size_t rows, const float* panel, size_t k,
                    float* sums);

  // A row's numbers of 0 to 255 and its scale, as docs/small.md has it; smooth may be null.
  void (*quantize)(const float* x, const float* smooth, size_t k, int zero, uint8_t* numbers,
                   float* scale);
  void (*finish)(const void* block, size_t rows, const Finish& how, float* out, size_t stride);
  // LayerNorm of a row of n numbers, in rows as wide as padded(n).
  void (*norm)(const float* x, size_t n, const float* weight, const float* bias, float eps,
               float* out);
  // out[n] += row[n] * scale
  void (*add_int8)(const int8_t* row, float scale, size_t n, float* out);
  // Attention of one head of one text; q, k, v and out have d columns. Scratch: attend_scratch().
  void (*attend)(const float* q, size_t q_stride, size_t queries, const float* k, const float* v,
                 size_t stride, size_t keys, size_t d, float* out, size_t out_stride,
                 float* scratch);

  // Products in float32 as whole numbers, where that is quicker. A row becomes three signed bytes a
  // number, [3][K], and a scale: x = (first + second / 256 + third / 65536) * scale. A panel is made
  // of such rows: [4][K/64][3][16][16][4].
  void (*slice)(const float* x, size_t k, int8_t* slices, float* scale) = nullptr;
  void (*dot_sliced)(const int8_t* a, size_t stride, size_t rows, const int8_t* panel, size_t k,
                     const float* row_scale, const float* scale, float* sums) = nullptr;
};

size_t attend_scratch(size_t keys, size_t d);

// Null where this processor, or this build, has not got it.
const Kernels* kernels_plain();
const Kernels* kernels_avx2();
const Kernels* kernels_avx_vnni();
const Kernels* kernels_avx512();
const Kernels* kernels_amx();
const Kernels* kernels_arm();

}  // namespace enrobe
