#include "product.h"

#include <algorithm>
#include <cstring>

namespace enrobe {

namespace {

constexpr size_t kStep = 64;           // of a sum
constexpr size_t kTile = 16 * kStep;   // bytes of 16 rows' (or columns') step
constexpr size_t kColumns = 16;

size_t ceiling(size_t n, size_t by) { return (n + by - 1) / by; }

// Where the tile of a panel starts: [N/16][K/64][parts][16][16][4].
size_t tile(size_t group, size_t step, size_t steps, size_t part, size_t parts) {
  return ((group * steps + step) * parts + part) * kTile;
}

Slices slices_of(const Kernels& kernels, size_t parts) {
  return parts == 2 ? Slices{2, kernels.slice_two, kernels.dot_two}
                    : Slices{3, kernels.slice, kernels.dot_sliced_short};
}

// out[rows][columns] from blocks of `most` rows by a panel, in parts that threads share:
// dot(first row, rows, first column, out, stride) makes one. `activated`, which may be null, is GELU(out).
// Threads part the larger of both sides: each of them has made what it now reads, if that was made in
// this order.
template <typename Dot>
void multiply(const Kernels& kernels, size_t rows, size_t columns, size_t most, float* out,
              float* activated, const Each& each, Dot dot) {
  const size_t blocks = ceiling(rows, most), panels = ceiling(columns, kPanel);
  each(panels * blocks, [&](size_t part) {
    const size_t first = (rows > columns ? part / panels : part % blocks) * most;
    const size_t column = (rows > columns ? part % panels : part / blocks) * kPanel;
    const size_t count = std::min(most, rows - first), wide = std::min(kPanel, columns - column);
    const size_t place = first * columns + column;
    const bool whole = wide == kPanel;
    alignas(64) float edge[kMostRows * kPanel];
    kernels.begin();
    dot(first, count, column, whole ? out + place : edge, whole ? columns : kPanel);
    kernels.end();
    for (size_t row = 0; row < count; ++row) {
      const size_t at = place + row * columns;
      if (!whole) std::memcpy(out + at, edge + row * kPanel, wide * sizeof(float));
      if (activated) kernels.gelu(out + at, wide, activated + at);
    }
  });
}

// Rows of bytes times panels. `scale` is that of each column; `bias` may be null.
void multiply(const Kernels& kernels, const Slices& how, const Sliced& a, size_t rows,
              const int8_t* panel, const float* scale, size_t k, size_t columns, const float* bias,
              float* out, float* activated, const Each& each) {
  multiply(kernels, rows, columns, kernels.float_rows, out, activated, each,
           [&](size_t first, size_t count, size_t column, float* to, size_t stride) {
             how.dot(a.bytes + first * a.stride, a.stride, count, panel + how.parts * column * k, k,
                     a.scale + first, scale + column, bias ? bias + column : nullptr, to, stride);
           });
}

// Rows of floats times panels of so many, of which `bias` has padded(columns).
void multiply(const Kernels& kernels, const float* a, size_t a_stride, size_t rows,
              const float* panels, size_t k, size_t columns, const float* bias, float* out,
              float* activated, const Each& each) {
  // Blocks of like size, in whole blocks of registers.
  constexpr size_t kRegisters = 12;
  const size_t blocks = ceiling(rows, kernels.float_rows);
  const size_t most = ceiling(ceiling(rows, blocks), kRegisters) * kRegisters;
  multiply(kernels, rows, columns, most, out, activated, each,
           [&](size_t first, size_t count, size_t column, float* to, size_t stride) {
             alignas(64) float sums[kMostRows * kPanel];
             const float* const panel = panels + column * k;
             kernels.dot_float(a + first * a_stride, a_stride, count, panel, k,
                               column + kPanel < columns ? panel + kPanel * k : nullptr, sums);
             Finish how{};
             how.bias = bias + column;
             kernels.finish(sums, count, how, to, stride);
           });
}

// Where column `column` of input 0 is in panels of k inputs; the next one's is float_columns further.
float* in_panels(const Kernels& kernels, float* panels, size_t k, size_t column) {
  const size_t strip = column / kernels.float_columns * kernels.float_columns;
  return panels + strip * k + (column - strip);
}

// Up to 16 columns of rows, from one on, side by side as rows of `long_` numbers; zeros behind them.
void turn_columns(const Kernels& kernels, const float* x, size_t stride, size_t rows, size_t count,
                  float* out, size_t long_) {
  const size_t whole = count == kColumns ? rows / kColumns * kColumns : 0;
  for (size_t row = 0; row < whole; row += kColumns)
    kernels.transpose(x + row * stride, stride, out + row, long_);
  for (size_t i = 0; i < count; ++i) {
    float* column = out + i * long_;
    for (size_t row = whole; row < rows; ++row) column[row] = x[row * stride + i];
    std::fill(column + rows, column + long_, 0.0f);
  }
}

// Up to 16 columns of rows summed.
void sum_columns(const float* x, size_t stride, size_t rows, size_t count, float* out) {
  for (size_t i = 0; i < count; ++i) out[i] = 0.0f;
  for (size_t row = 0; row < rows; ++row)
    for (size_t i = 0; i < count; ++i) out[i] += x[row * stride + i];
}

// Slices rows of n numbers, filled up with zeros. `by` has padded(n).
class Slicer {
 public:
  Slicer(const Slices& how, size_t n) : how_(how), n_(n) {
    if (n == padded(n)) return;
    row_ = allocate<float>(padded(n));
    std::fill(row_.get(), row_.get() + padded(n), 0.0f);
  }
  void operator()(const float* x, const float* by, int8_t* out, float* scale) {
    if (row_) {
      std::memcpy(row_.get(), x, n_ * sizeof(float));
      x = row_.get();
    }
    how_.slice(x, by, padded(n_), out, scale);
  }

 private:
  const Slices& how_;
  const size_t n_;
  Block<float> row_;
};

constexpr size_t kRowsAtOnce = 16;

std::vector<const float*> rows_of(const std::vector<Matrix>& matrices, size_t inputs) {
  std::vector<const float*> found;
  for (const Matrix& matrix : matrices)
    for (size_t row = 0; row < matrix.count; ++row) found.push_back(matrix.values + row * inputs);
  return found;
}

// A row of n numbers to where input `input` of k is in panels; zeros behind it.
void copy_into_panels(const Kernels& kernels, const float* row, size_t n, float* panels, size_t k,
                      size_t input) {
  const size_t apart = kernels.float_columns;
  for (size_t column = 0; column < padded(n); column += kColumns) {
    float* const to = in_panels(kernels, panels, k, column) + input * apart;
    const size_t count = column < n ? std::min(kColumns, n - column) : 0;
    if (count == kColumns) {
      std::memcpy(to, row + column, kColumns * sizeof(float));
      continue;
    }
    std::copy(row + column, row + column + count, to);
    std::fill(to + count, to + kColumns, 0.0f);
  }
}

}  // namespace

Sliced::Sliced(size_t rows, size_t k, size_t parts, uint8_t* memory)
    : stride(row_bytes(k, parts)) {
  if (!memory) own_ = allocate<uint8_t>(size(rows, k, parts));
  if (own_) memory = own_.get();
  bytes = reinterpret_cast<int8_t*>(memory);
  scale = reinterpret_cast<float*>(memory + rows * stride);
}

size_t Sliced::size(size_t rows, size_t k, size_t parts) {
  return rows * row_bytes(k, parts) + ceiling(rows, 16) * 64;
}

size_t Product::memory(const Kernels& kernels, const Shape& of) {
  const size_t tall = padded(of.outputs);
  if (!kernels.slice)
    return (padded(of.rows * of.inputs) + (of.for_x ? padded(of.inputs) * of.outputs : 0)) *
           sizeof(float);
  return Sliced::size(padded(of.rows), of.inputs, of.parts) + tall * sizeof(float) +
         (of.for_x ? of.parts * padded(of.inputs) * tall : 0);
}

Product::Product(const Kernels& kernels, const Shape& shape, uint8_t* memory)
    : kernels_(kernels), shape_(shape), how_(slices_of(kernels, shape.parts)),
      x_(padded(shape.rows), shape.inputs, shape.parts, memory) {
  scale_ = reinterpret_cast<float*>(memory +
                                    Sliced::size(padded(shape.rows), shape.inputs, shape.parts));
  along_outputs_ = reinterpret_cast<int8_t*>(scale_ + padded(shape.outputs));
  x_floats_ = reinterpret_cast<float*>(memory);
  panels_ = x_floats_ + padded(shape.rows * shape.inputs);
}

void Product::forward(const float* x, const std::vector<Matrix>& matrices, float* y,
                      float* activated, const Each& each) {
  const size_t rows = shape_.rows, inputs = shape_.inputs, outputs = shape_.outputs;
  std::vector<float> bias;
  for (const Matrix& matrix : matrices)
    bias.insert(bias.end(), matrix.bias, matrix.bias + matrix.count);
  bias.resize(padded(outputs));
  if (!kernels_.slice) return forward_floats(x, matrices, bias.data(), y, activated, each);
  const Block<int8_t> along_inputs = pack(matrices, each);
  each(padded(rows) / kRowsAtOnce, [&](size_t part) {
    Slicer slicer(how_, inputs);
    for (size_t row = part * kRowsAtOnce; row < (part + 1) * kRowsAtOnce; ++row) {
      int8_t* bytes = x_.bytes + row * x_.stride;
      if (row < rows) {
        slicer(x + row * inputs, nullptr, bytes, x_.scale + row);
      } else {
        std::memset(bytes, 0, shape_.parts * padded(inputs));
        x_.scale[row] = 0.0f;
      }
    }
  });
  multiply(kernels_, how_, x_, rows, along_inputs.get(), scale_, padded(inputs), outputs,
           bias.data(), y, activated, each);
}

void Product::forward_floats(const float* x, const std::vector<Matrix>& matrices, const float* bias,
                             float* y, float* activated, const Each& each) {
  const size_t rows = shape_.rows, inputs = shape_.inputs, outputs = shape_.outputs;
  const Block<float> along_inputs = pack_floats(matrices, each);
  each(ceiling(rows, kRowsAtOnce), [&](size_t part) {
    const size_t first = part * kRowsAtOnce, count = std::min(kRowsAtOnce, rows - first);
    std::memcpy(x_floats_ + first * inputs, x + first * inputs, count * inputs * sizeof(float));
  });
  multiply(kernels_, x, inputs, rows, along_inputs.get(), inputs, outputs, bias, y, activated, each);
}

Block<float> Product::pack_floats(const std::vector<Matrix>& matrices, const Each& each) {
  const size_t inputs = shape_.inputs, outputs = shape_.outputs, apart = kernels_.float_columns;
  const std::vector<const float*> from = rows_of(matrices, inputs);
  Block<float> along_inputs = allocate<float>(padded(outputs) * inputs);
  each(padded(outputs) / kColumns, [&](size_t group) {
    const size_t first = group * kColumns;
    const size_t count = first < outputs ? std::min(kColumns, outputs - first) : 0;
    float* const to = in_panels(kernels_, along_inputs.get(), inputs, first);
    const bool together = count == kColumns && from[first] + 15 * inputs == from[first + 15];
    for (size_t input = 0; input < inputs; input += kColumns) {
      const size_t wide = std::min(kColumns, inputs - input);
      if (together && wide == kColumns) {
        kernels_.transpose(from[first] + input, inputs, to + input * apart, apart);
        continue;
      }
      for (size_t i = 0; i < wide; ++i)
        for (size_t n = 0; n < kColumns; ++n)
          to[(input + i) * apart + n] = n < count ? from[first + n][input + i] : 0.0f;
    }
    for (size_t n = 0; shape_.for_x && n < count; ++n)
      copy_into_panels(kernels_, from[first + n], inputs, panels_, outputs, first + n);
  });
  return along_inputs;
}

Block<int8_t> Product::pack(const std::vector<Matrix>& matrices, const Each& each) {
  const size_t inputs = shape_.inputs, outputs = shape_.outputs, parts = shape_.parts;
  const std::vector<const float*> from = rows_of(matrices, inputs);
  const size_t wide = padded(inputs), tall = padded(outputs);
  Block<int8_t> along_inputs = allocate<int8_t>(parts * wide * tall);
  each(tall / kStep, [&](size_t step) {
    Sliced sliced(kStep, inputs, parts);
    Slicer slicer(how_, inputs);
    for (size_t row = 0; row < kStep; ++row) {
      int8_t* bytes = sliced.bytes + row * sliced.stride;
      const size_t output = step * kStep + row;
      if (output < outputs) {
        slicer(from[output], nullptr, bytes, scale_ + output);
      } else {
        std::memset(bytes, 0, parts * wide);
        scale_[output] = 0.0f;
      }
    }
    for (size_t slice = 0; slice < parts; ++slice) {
      const int8_t* bytes = sliced.bytes + slice * wide;
      for (size_t group = 0; group < kStep / kColumns; ++group)
        for (size_t at = 0; at < wide / kStep; ++at)
          kernels_.pack_columns(bytes + group * kColumns * sliced.stride + at * kStep, sliced.stride,
                                along_inputs.get() + tile(step * kStep / kColumns + group, at,
                                                          wide / kStep, slice, parts));
      if (!shape_.for_x) continue;
      for (size_t group = 0; group < wide / kColumns; ++group)
        kernels_.pack_rows(bytes + group * kColumns, sliced.stride,
                           along_outputs_ + tile(group, step, tall / kStep, slice, parts));
    }
  });
  return along_inputs;
}

void Product::backward(const float* y_grad, const float* y, float* x_grad, float* grad,
                       float* bias_grad, const Each& each) const {
  if (!kernels_.slice) return backward_floats(y_grad, y, x_grad, grad, bias_grad, each);
  const size_t rows = shape_.rows, inputs = shape_.inputs, outputs = shape_.outputs;
  const size_t parts = shape_.parts;
  const std::vector<float> ones(padded(inputs), 1.0f);
  Block<float> before;
  if (y) before = allocate<float>(rows * outputs);
  // Summed over outputs, each of which has a scale in W.
  Sliced by_row(x_grad ? rows : 0, outputs, parts);
  if (x_grad || y)
    each(ceiling(rows, kRowsAtOnce), [&](size_t part) {
      Slicer slicer(how_, outputs);
      for (size_t row = part * kRowsAtOnce; row < std::min(rows, (part + 1) * kRowsAtOnce); ++row) {
        const float* from = y_grad + row * outputs;
        if (y) {
          float* to = before.get() + row * outputs;
          kernels_.gelu_back(y + row * outputs, from, outputs, to);
          from = to;
        }
        if (x_grad)
          slicer(from, scale_, by_row.bytes + row * by_row.stride,
                 by_row.scale + row);
      }
    });
  if (y) y_grad = before.get();
  if (x_grad)
    multiply(kernels_, how_, by_row, rows, along_outputs_, ones.data(), padded(outputs), inputs,
             nullptr, x_grad, nullptr, each);
  if (!grad) return;
  // Summed over rows, each of which has a scale in x.
  const size_t long_ = padded(rows), steps = long_ / kStep, wide = padded(inputs);
  Block<int8_t> panel = allocate<int8_t>(parts * long_ * wide);
  each(wide / kPanel, [&](size_t part) {
    for (size_t group = part * kPanel / kColumns; group < (part + 1) * kPanel / kColumns; ++group)
      for (size_t step = 0; step < steps; ++step)
        for (size_t slice = 0; slice < parts; ++slice)
          kernels_.pack_rows(x_.bytes + step * kStep * x_.stride + slice * wide + group * kColumns,
                             x_.stride, panel.get() + tile(group, step, steps, slice, parts));
  });
  Sliced by_output(outputs, rows, parts);
  each(ceiling(outputs, kColumns), [&](size_t part) {
    const size_t first = part * kColumns, count = std::min(kColumns, outputs - first);
    Block<float> columns = allocate<float>(kColumns * long_);
    turn_columns(kernels_, y_grad + first, outputs, rows, count, columns.get(), long_);
    for (size_t i = 0; i < count; ++i)
      how_.slice(columns.get() + i * long_, x_.scale, long_,
                 by_output.bytes + (first + i) * by_output.stride, by_output.scale + first + i);
    sum_columns(y_grad + first, outputs, rows, count, bias_grad + first);
  });
  multiply(kernels_, how_, by_output, outputs, panel.get(), ones.data(), long_, inputs, nullptr, grad,
           nullptr, each);
}

void Product::backward_floats(const float* y_grad, const float* y, float* x_grad, float* grad,
                              float* bias_grad, const Each& each) const {
  const size_t rows = shape_.rows, inputs = shape_.inputs, outputs = shape_.outputs;
  Block<float> before;
  if (y) {
    before = allocate<float>(rows * outputs);
    each(rows, [&](size_t row) {
      const size_t at = row * outputs;
      kernels_.gelu_back(y + at, y_grad + at, outputs, before.get() + at);
    });
    y_grad = before.get();
  }
  const std::vector<float> no_bias(padded(inputs));
  if (x_grad)
    multiply(kernels_, y_grad, outputs, rows, panels_, outputs, inputs, no_bias.data(), x_grad,
             nullptr, each);
  if (!grad) return;
  const Block<float> panels = allocate<float>(padded(inputs) * rows);
  each(rows, [&](size_t row) {
    copy_into_panels(kernels_, x_floats_ + row * inputs, inputs, panels.get(), rows, row);
  });
  const size_t long_ = ceiling(rows, kColumns) * kColumns;
  const Block<float> by_output = allocate<float>(outputs * long_);
  each(ceiling(outputs, kColumns), [&](size_t part) {
    const size_t first = part * kColumns, count = std::min(kColumns, outputs - first);
    turn_columns(kernels_, y_grad + first, outputs, rows, count, by_output.get() + first * long_,
                 long_);
    sum_columns(y_grad + first, outputs, rows, count, bias_grad + first);
  });
  multiply(kernels_, by_output.get(), long_, outputs, panels.get(), rows, inputs, no_bias.data(), grad,
           nullptr, each);
}

}  // namespace enrobe
