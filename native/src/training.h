// What a layer does in training beside its products, for all rows of a batch.
//
// Random bits follow from a seed and from which element they are for, so that a gradient draws the
// same ones again.
#pragma once

#include "linear.h"
#include "team.h"

namespace enrobe {

// Elements of which a share (0 up to 1) is dropped.
Dropping dropping(double share);
// A hash of 64 bits, the lower half.
uint32_t hash(uint64_t seed, uint64_t part);

// A batch of texts: where each one's queries and keys start, and the last of them end.
struct Texts {
  const int32_t *queries, *keys;
  size_t count, heads;
  Dropping how;
  uint64_t seed;
};

// Attention of each text to itself. `all` is of all texts and of their first head.
void attend_texts(const Kernels& kernels, const Texts& texts, const Heads& all, const Each& each);
void attend_texts_back(const Kernels& kernels, const Texts& texts, const Heads& all,
                       const Each& each);

// LayerNorm(residual + dropout(x)) of rows; see Kernels::add_norm.
void add_norm_rows(const Kernels& kernels, const AddNorm& of, size_t rows, const float* x,
                   const float* residual, float* total, float* out, float* found, const Each& each);
// x_grad is not written where nothing is dropped: it is residual_grad then.
void add_norm_rows_back(const Kernels& kernels, const AddNorm& of, size_t rows, const float* total,
                        const float* found, const float* out_grad, float* residual_grad,
                        float* x_grad, float* weight_grad, float* bias_grad, const Each& each);

}  // namespace enrobe
