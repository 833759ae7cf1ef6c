// All of a table of kernels but its products of bytes, compiled once for each instruction set.
//
// Before it is included: kRows rows by 16 * kVectors columns, the block of sums that fits into the
// processor's registers.

#include <type_traits>

#include "kernels.h"
#include "vec.h"

namespace {

using enrobe::Activation;
using enrobe::Finish;
using enrobe::kPanel;

void nothing() {}

// c[rows][columns] = a[rows][k] times b[k][columns]. Numbers are floats, or pairs of whole numbers of 16 bits
// whose products are summed exactly.
template <typename Number>
struct Product {
  const Number* a;
  size_t a_stride;
  const Number* b;
  size_t b_stride;
  size_t k;
  float* c;
  size_t c_stride;
  const float* factors;                // of rows, or null
  bool add = false;                    // to what is in c; floats alone
  const float* scale = nullptr;        // of columns, or null
  // Of as many rows of b, which kMostRows of a fetch a part each; or null.
  const float* ahead = nullptr;
};

ENROBE_INLINE N multiplied(N a, N b, N sum) { return fma(a, b, sum); }
ENROBE_INLINE W multiplied(W a, W b, W sum) { return fma_halves(a, b, sum); }
ENROBE_INLINE N summed(N sum) { return sum; }
ENROBE_INLINE N summed(W sum) { return floats(sum); }
// Steps between two lines of them that are fetched.
constexpr size_t kApart = enrobe::kMostRows / kRows / kVectors;

// R rows from `first` on and C registers of columns of it, whose sums stay in registers.
template <int R, int C, typename Number>
ENROBE_INLINE void block(const Product<Number>& of, size_t first) {
  constexpr bool whole = std::is_same_v<Number, int32_t>;
  using Register = std::conditional_t<whole, W, N>;
  const Number* a = of.a + first * of.a_stride;
  const Number* b = of.b;
  float* c = of.c + first * of.c_stride;
  const size_t a_stride = of.a_stride, b_stride = of.b_stride, c_stride = of.c_stride, k = of.k;
  Register sums[R][C];
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i)
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) {
      sums[i][j] = Register{};
      if constexpr (!whole)
        if (of.add) sums[i][j] = Of<N>::load(c + i * c_stride + kLanes * j);
    }
  const float* ahead = of.ahead ? of.ahead + first / kRows * (k / kApart) * 16 : nullptr;
  for (size_t p = 0; p < k; ++p) {
    if (ahead && p % kApart == 0) __builtin_prefetch(ahead + p / kApart * 16, 0, 2);
    Register right[C];
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) right[j] = Of<Register>::load(b + p * b_stride + kLanes * j);
#pragma GCC unroll 16
    for (int i = 0; i < R; ++i) {
      const Register left = Of<Register>::filled(a[i * a_stride + p]);
#pragma GCC unroll 4
      for (int j = 0; j < C; ++j) sums[i][j] = multiplied(left, right[j], sums[i][j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < R; ++i) {
    const N factor = Of<N>::filled(of.factors ? of.factors[first + i] : 1.0f);
#pragma GCC unroll 4
    for (int j = 0; j < C; ++j) {
      N value = summed(sums[i][j]) * factor;
      if (of.scale) value *= Of<N>::load(of.scale + kLanes * j);
      Of<N>::store(c + i * c_stride + kLanes * j, value);
    }
  }
}

// Fewer rows than a block has.
template <int R, int C, typename Number>
void rest(const Product<Number>& of, size_t first, size_t rows) {
  if constexpr (R > 0) {
    if (rows == R)
      block<R, C>(of, first);
    else
      rest<R - 1, C>(of, first, rows);
  }
}

// `width` columns, a multiple of 16 and at most 16 * C.
template <int C, typename Number>
void multiply(const Product<Number>& of, size_t rows, size_t width) {
  if constexpr (C > 1)
    if (width < 16 * C) return multiply<C - 1>(of, rows, width);
  size_t first = 0;
  constexpr int registers = C * 16 / kLanes;
  for (; first + kRows <= rows; first += kRows) block<kRows, registers>(of, first);
  rest<kRows - 1, registers>(of, first, rows - first);
}

// --- products in float32 --------------------------------------------------------------------------

void pack_float(const float* panel, size_t k, float* out) {
  // A strip after another, each as wide as a block.
  constexpr size_t width = 16 * kVectors;
  for (size_t strip = 0; strip < kPanel; strip += width)
    for (size_t p = 0; p < k; ++p)
      for (size_t n = 0; n < width; ++n) *out++ = panel[p * kPanel + strip + n];
}

void dot_float(const float* a, size_t stride, size_t rows, const float* panel, size_t k,
               const float* ahead, float* sums) {
  constexpr size_t width = 16 * kVectors;
  // So many inputs that their weights stay in a cache from block to block: in the first one, or in the
  // second where a block has so many columns that it reads slowly; sums are put aside less often then.
  constexpr size_t most = width == kPanel ? 1024 : 8192 / width;
  for (size_t strip = 0; strip < kPanel; strip += width)
    for (size_t p = 0; p < k; p += most) {
      const size_t count = k - p < most ? k - p : most;
      const float* b = panel + strip * k + p * width;
      const bool last = strip + width == kPanel && p + count == k;
      const float* next = rows < enrobe::kMostRows ? nullptr : last ? ahead : b + count * width;
      multiply<kVectors>(Product<float>{a + p, stride, b, width, count, sums + strip, kPanel, nullptr,
                                        p > 0, nullptr, next},
                         rows, width);
    }
}

// --- between products -----------------------------------------------------------------------------

void quantize(const float* x, const float* smooth, size_t k, int zero, uint8_t* numbers,
              float* scale) {
  // Four at a time: one would wait for the one before it.
  V highs[4], lows[4];
  for (int j = 0; j < 4; ++j) highs[j] = lows[j] = splat(0.0f);
  for (size_t i = 0; i < k; i += 64) {
    for (int j = 0; j < 4; ++j) {
      V v = load(x + i + 16 * j);
      if (smooth) v *= load(smooth + i + 16 * j);
      highs[j] = maximum(v, highs[j]);
      lows[j] = minimum(v, lows[j]);
    }
  }
  const V high = maximum(maximum(highs[0], highs[1]), maximum(highs[2], highs[3]));
  const V low = minimum(minimum(lows[0], lows[1]), minimum(lows[2], lows[3]));
  const float up = largest(high) / (float)(255 - zero), down = largest(-low) / (float)zero;
  float s = up > down ? up : down;
  s = s > 1.17549435e-38f ? s : 1.17549435e-38f;
  *scale = s;
  const float inverse = 1.0f / s;
  for (size_t i = 0; i < k; i += 16) {
    V v = load(x + i);
    if (smooth) v *= load(smooth + i);
#if defined(__FMA__)
    // The quotient as a division would round it (Markstein 1990), at a fifth of the time.
    V quotient = v * splat(inverse);
    if (inverse < 1e37f) quotient = fma(fma(-quotient, splat(s), v), splat(inverse), quotient);
#else
    (void)inverse;
    const V quotient = v / splat(s);
#endif
    // Of the sum's bits the last eight are kept, which are the nearest whole number's.
    Bytes<I>::write(Bits<I, V>::of(quotient + splat(kRounder)) + splat((int32_t)zero), numbers + i);
  }
}

template <bool Int8, Activation How>
void finish_as(const void* given, size_t rows, const Finish& how, float* out, size_t stride) {
  V scale[4], bias[4];
  I offset[4];
  for (int j = 0; j < 4; ++j) {
    bias[j] = load(how.bias + 16 * j);
    if (Int8) {
      scale[j] = load(how.scale + 16 * j);
      offset[j] = Of<I>::load(how.offset + 16 * j);
    }
  }
  for (size_t r = 0; r < rows; ++r) {
    for (int j = 0; j < 4; ++j) {
      const size_t place = r * kPanel + 16 * j;
      V v;
      if (Int8) {
        const I sums = Of<I>::load((const int32_t*)given + place);
        v = floats(sums - offset[j]) * scale[j];
        v = fma(v, splat(how.row_scale[r]), bias[j]);
      } else {
        v = load((const float*)given + place) + bias[j];
      }
      if (How == Activation::gelu) v = gelu(v);
      if (How == Activation::relu) v = maximum(v, splat(0.0f));
      if (How == Activation::tanh) {
        // (1 - e^-2|x|) / (1 + e^-2|x|) with x's sign
        const V e = exponential(splat(-2.0f) * maximum(v, -v));
        const V t = (splat(1.0f) - e) / (splat(1.0f) + e);
        // Near 0 the difference loses digits: there x - x^3 / 3 + 2 x^5 / 15 is exact enough.
        const V s = v * v;
        const V near = fma(v * s, fma(s, splat(2.0f / 15), splat(-1.0f / 3)), v);
        const V far = pick(v < splat(0.0f), -t, t);
        v = pick(s < splat(0.01f), near, far);
      }
      if (how.residual) v += load(how.residual + r * how.residual_stride + 16 * j);
      store(out + r * stride + 16 * j, v);
    }
  }
}

void finish(const void* given, size_t rows, const Finish& how, float* out, size_t stride) {
  using Function = void (*)(const void*, size_t, const Finish&, float*, size_t);
  static const Function table[2][4] = {
      {finish_as<false, Activation::none>, finish_as<false, Activation::gelu>,
       finish_as<false, Activation::tanh>, finish_as<false, Activation::relu>},
      {finish_as<true, Activation::none>, finish_as<true, Activation::gelu>,
       finish_as<true, Activation::tanh>, finish_as<true, Activation::relu>}};
  table[how.scale != nullptr][(int)how.activation](given, rows, how, out, stride);
}

void norm(const float* x, size_t n, const float* weight, const float* bias, float eps, float* out) {
  const size_t wide = enrobe::padded(n);
  // Four sums at a time: one would wait for the one before it.
  V totals[4], squares[4];
  for (int j = 0; j < 4; ++j) totals[j] = squares[j] = splat(0.0f);
  for (size_t i = 0; i < wide; i += 64)
    for (int j = 0; j < 4; ++j) totals[j] += load(x + i + 16 * j);
  const V mean = splat(sum((totals[0] + totals[1]) + (totals[2] + totals[3])) / (float)n);
  for (size_t i = 0; i < wide; i += 64)
    for (int j = 0; j < 4; ++j) {
      const size_t at = i + 16 * j;
      V apart = load(x + at) - mean;
      if (at + 16 > n) apart = pick(first(at < n ? n - at : 0), apart, splat(0.0f));
      squares[j] = fma(apart, apart, squares[j]);
    }
  const V square = (squares[0] + squares[1]) + (squares[2] + squares[3]);
  const V factor = splat(1.0f / __builtin_sqrtf(sum(square) / (float)n + eps));
  for (size_t i = 0; i < wide; i += 16)
    store(out + i, fma((load(x + i) - mean) * factor, load(weight + i), load(bias + i)));
}

void add_int8(const int8_t* row, float scale, size_t n, float* out) {
  size_t i = 0;
  for (; i + 16 <= n; i += 16)
    store(out + i, fma(floats(Bytes<I>::read(row + i)), splat(scale), load(out + i)));
  for (; i < n; ++i) out[i] = __builtin_fmaf((float)row[i], scale, out[i]);
}

// --- attention ------------------------------------------------------------------------------------

// 16 x 16 numbers turned: blocks of 8, 4, 2 and 1 change places.
template <int Width>
ENROBE_INLINE void exchange(F4& upper, F4& lower) {
  const F4 a = upper, b = lower;
  if constexpr (Width == 2) {
    upper = __builtin_shufflevector(a, b, 0, 1, 4, 5);
    lower = __builtin_shufflevector(a, b, 2, 3, 6, 7);
  } else {
    upper = __builtin_shufflevector(a, b, 0, 4, 2, 6);
    lower = __builtin_shufflevector(a, b, 1, 5, 3, 7);
  }
}
template <int Width>
ENROBE_INLINE void exchange(F8& upper, F8& lower) {
  const F8 a = upper, b = lower;
  if constexpr (Width == 4) {
    upper = __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
    lower = __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
  } else if constexpr (Width == 2) {
    upper = __builtin_shufflevector(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
    lower = __builtin_shufflevector(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
  } else {
    upper = __builtin_shufflevector(a, b, 0, 8, 2, 10, 4, 12, 6, 14);
    lower = __builtin_shufflevector(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
  }
}
template <int Width>
ENROBE_INLINE void exchange(F16& upper, F16& lower) {
  const F16 a = upper, b = lower;
  if constexpr (Width == 8) {
    upper = __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23);
    lower = __builtin_shufflevector(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30,
                                    31);
  } else if constexpr (Width == 4) {
    upper = __builtin_shufflevector(a, b, 0, 1, 2, 3, 16, 17, 18, 19, 8, 9, 10, 11, 24, 25, 26, 27);
    lower = __builtin_shufflevector(a, b, 4, 5, 6, 7, 20, 21, 22, 23, 12, 13, 14, 15, 28, 29, 30,
                                    31);
  } else if constexpr (Width == 2) {
    upper = __builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29);
    lower = __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30,
                                    31);
  } else {
    upper = __builtin_shufflevector(a, b, 0, 16, 2, 18, 4, 20, 6, 22, 8, 24, 10, 26, 12, 28, 14, 30);
    lower = __builtin_shufflevector(a, b, 1, 17, 3, 19, 5, 21, 7, 23, 9, 25, 11, 27, 13, 29, 15,
                                    31);
  }
}
template <int Width, typename H>
ENROBE_INLINE void exchange(Pair<H>& upper, Pair<H>& lower) {
  if constexpr (sizeof(H) == 4 * Width) {
    const H kept = upper.high;
    upper.high = lower.low;
    lower.low = kept;
  } else {
    exchange<Width>(upper.low, lower.low);
    exchange<Width>(upper.high, lower.high);
  }
}

ENROBE_INLINE void turn(V (&rows)[16]) {
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i)
    if (!(i & 8)) exchange<8>(rows[i], rows[i + 8]);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i)
    if (!(i & 4)) exchange<4>(rows[i], rows[i + 4]);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i)
    if (!(i & 2)) exchange<2>(rows[i], rows[i + 2]);
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i)
    if (!(i & 1)) exchange<1>(rows[i], rows[i + 1]);
}

// Keys as strips [steps][width], of numbers(key, step) 16 steps at a time; a strip's last keys may be beyond
// the last one.
template <typename Number, typename Numbers>
ENROBE_INLINE void pack_strips(size_t keys, size_t steps, Number* packed, Numbers numbers) {
  constexpr size_t most = 16 * kVectors;
  for (size_t start = 0; start < keys; start += most) {
    const size_t left = keys - start;
    const size_t width = left < most ? (left + 15) / 16 * 16 : most;
    for (size_t part = 0; part < width; part += 16)
      for (size_t step = 0; step < steps; step += 16) {
        V rows[16];
        for (size_t i = 0; i < 16; ++i) rows[i] = numbers(start + part + i, step);
        turn(rows);
        const size_t count = steps - step < 16 ? steps - step : 16;
        for (size_t i = 0; i < count; ++i)
          Of<V>::store(packed + (step + i) * width + part, rows[i]);
      }
    packed += width * steps;
  }
}

// Keys times a factor; zeros behind the last one.
void pack_keys(const float* k, size_t stride, size_t keys, size_t d, float factor, float* packed) {
  pack_strips(keys, d, packed, [&](size_t key, size_t c) {
    return key < keys ? load(k + key * stride + c) * splat(factor) : splat(0.0f);
  });
}

struct Softmax {
  float most, factor;  // the largest; 1 / the sum of all e^(x - most)
};

// e^(x - most) in place.
Softmax softmax(float* x, size_t n) {
  const size_t full = n / 16 * 16;
  const V lowest = splat(-3.0e38f);
  V high = lowest;
  for (size_t i = 0; i < full; i += 16) high = maximum(load(x + i), high);
  if (full < n) high = maximum(pick(first(n - full), load(x + full), lowest), high);
  const V most = splat(largest(high));
  V total = splat(0.0f);
  for (size_t i = 0; i < full; i += 16) {
    const V e = exponential(load(x + i) - most);
    store(x + i, e);
    total += e;
  }
  if (full < n) {
    V e = exponential(load(x + full) - most);
    e = pick(first(n - full), e, splat(0.0f));
    store(x + full, e);
    total += e;
  }
  return {largest(high), 1.0f / sum(total)};
}

constexpr size_t kQueries = 24;  // whose scores are held at a time

// Of `rows` queries with all keys, which are packed in strips of so many steps.
template <typename Number>
void score_keys(const Number* q, size_t q_stride, size_t rows, const Number* packed, size_t steps,
                size_t keys, const float* factors, float* scores, size_t stride) {
  constexpr size_t most = 16 * kVectors;
  for (size_t key = 0; key < keys; key += most) {
    const size_t width = keys - key < most ? (keys - key + 15) / 16 * 16 : most;
    multiply<kVectors>(
        Product<Number>{q, q_stride, packed, width, steps, scores + key, stride, factors}, rows, width);
    packed += width * steps;
  }
}

// out[rows][d] = shares times values, in so many steps.
template <typename Number>
void mix_values(const Number* shares, size_t stride, size_t rows, const Number* v, size_t v_stride,
                size_t steps, size_t d, const float* factors, const float* scale, float* out,
                size_t out_stride) {
  constexpr size_t most = 16 * kVectors;
  for (size_t c = 0; c < d; c += most) {
    const size_t columns = d - c < most ? d - c : most;
    float aside[kQueries * most];
    const bool full = columns % 16 == 0;
    multiply<kVectors>(Product<Number>{shares, stride, v + c, v_stride, steps, full ? out + c : aside,
                                       full ? out_stride : most, factors, false,
                                       scale ? scale + c : nullptr},
                       rows, (columns + 15) / 16 * 16);
    for (size_t r = 0; r < rows && !full; ++r)
      __builtin_memcpy(out + r * out_stride + c, aside + r * most, columns * sizeof(float));
  }
}

// Their scores, and the keys turned.
size_t attend_scratch(size_t keys, size_t d) { return enrobe::padded(keys) * (kQueries + d); }

void attend(const float* q, size_t q_stride, size_t queries, const float* k, const float* v,
            size_t stride, size_t keys, size_t d, float* out, size_t out_stride, float* scratch) {
  const size_t wide = enrobe::padded(keys);
  float* packed = scratch + kQueries * wide;
  pack_keys(k, stride, keys, d, 1.0f / __builtin_sqrtf((float)d), packed);
  for (size_t start = 0; start < queries; start += kQueries) {
    const size_t rows = queries - start < kQueries ? queries - start : kQueries;
    score_keys(q + start * q_stride, q_stride, rows, (const float*)packed, d, keys, nullptr, scratch,
               wide);
    float factors[kQueries];
    for (size_t r = 0; r < rows; ++r) factors[r] = softmax(scratch + r * wide, keys).factor;
    mix_values((const float*)scratch, wide, rows, v, stride, keys, d, factors, nullptr,
               out + start * out_stride, out_stride);
  }
}

}  // namespace

#include "attend_int16.inl"
#include "training.inl"
