// What training needs beside products, compiled once for each instruction set with kernels.inl.

namespace {

using enrobe::AdamW;
using enrobe::AddNorm;
using enrobe::Dropping;
using enrobe::Heads;

constexpr size_t up16(size_t n) { return (n + 15) / 16 * 16; }

// --- dropout --------------------------------------------------------------------------------------

// 1 / (1 - share) or 0, of the elements whose numbers are given; by a hash of 32 bits ("lowbias32",
// Wellons 2018).
ENROBE_INLINE V kept(const Dropping& how, uint32_t key, U number) {
  U x = number * splat_u(0x9E3779B9u) + splat_u(key);
  x = (x ^ (x >> 16)) * splat_u(0x7FEB352Du);
  x = (x ^ (x >> 15)) * splat_u(0x846CA68Bu);
  x = x ^ (x >> 16);
  // Compared as signed numbers, which every processor can.
  const I signed_ = Bits<I, U>::of(x);
  return pick(signed_ < splat(how.limit), splat(0.0f), splat(how.factor));
}
ENROBE_INLINE U lanes_from(uint32_t start) {
  alignas(64) static const uint32_t lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return Of<U>::load(lanes) + splat_u(start);
}

// --- attention ------------------------------------------------------------------------------------

using enrobe::kKeys;

// Rows of d numbers times a factor, filled up with zeros to `wide` numbers and to `tall` rows.
void copy_rows(const float* x, size_t stride, size_t rows, size_t d, float factor, size_t tall,
               size_t wide, float* out) {
  for (size_t r = 0; r < rows; ++r, out += wide) {
    const float* from = x + r * stride;
    size_t c = 0;
    for (; c + 16 <= d; c += 16) store(out + c, load(from + c) * splat(factor));
    for (; c < wide; ++c) out[c] = c < d ? from[c] * factor : 0.0f;
  }
  __builtin_memset(out, 0, (tall - rows) * wide * sizeof(float));
}

// 16 x 16
void transpose(const float* x, size_t stride, float* out, size_t out_stride) {
  V rows[16];
  for (size_t i = 0; i < 16; ++i) rows[i] = load(x + i * stride);
  turn(rows);
  for (size_t i = 0; i < 16; ++i) store(out + i * out_stride, rows[i]);
}

// [rows][columns] to [columns][rows]; both multiples of 16.
void turn_all(const float* x, size_t rows, size_t columns, float* out, size_t out_stride) {
  for (size_t r = 0; r < rows; r += 16)
    for (size_t c = 0; c < columns; c += 16)
      transpose(x + r * columns + c, columns, out + c * out_stride + r, out_stride);
}

// c[rows][columns] = a times b, of any number of columns that is a multiple of 16.
void multiply_all(const float* a, size_t a_stride, const float* b, size_t b_stride, size_t k, float* c,
                  size_t c_stride, size_t rows, size_t columns, const float* factors = nullptr,
                  bool add = false) {
  constexpr size_t most = 16 * kVectors;
  for (size_t start = 0; start < columns; start += most) {
    const size_t width = columns - start < most ? columns - start : most;
    multiply<kVectors>(
        Product<float>{a, a_stride, b + start, b_stride, k, c + start, c_stride, factors, add}, rows, width);
  }
}

void put_rows(const float* x, size_t x_stride, size_t rows, size_t d, float* out, size_t stride) {
  for (size_t r = 0; r < rows; ++r)
    __builtin_memcpy(out + r * stride, x + r * x_stride, d * sizeof(float));
}

void attend_train(const Heads& of, const Dropping& how, uint32_t key, float* scratch) {
  const size_t wide = up16(of.d), keys = up16(of.keys);
  float* q = scratch;
  float* k = q + up16(of.queries) * wide;
  float* k_turned = k + keys * wide;
  float* v = k_turned + keys * wide;
  float* scores = v + keys * wide;
  float* mixed = scores + kQueries * keys;
  copy_rows(of.q, of.q_stride, of.queries, of.d, 1.0f / __builtin_sqrtf((float)of.d), of.queries, wide,
            q);
  copy_rows(of.k, of.k_stride, of.keys, of.d, 1.0f, keys, wide, k);
  copy_rows(of.v, of.v_stride, of.keys, of.d, 1.0f, of.keys, wide, v);
  turn_all(k, keys, wide, k_turned, keys);
  for (size_t start = 0; start < of.queries; start += kQueries) {
    const size_t rows = of.queries - start < kQueries ? of.queries - start : kQueries;
    multiply_all(q + start * wide, wide, k_turned, keys, wide, scores, keys, rows, keys);
    float factors[kQueries];
    for (size_t r = 0; r < rows; ++r) {
      float* row = scores + r * keys;
      const Softmax found = softmax(row, of.keys);
      factors[r] = found.factor;
      of.log_sums[start + r] = found.most - __builtin_logf(found.factor);
      if (how.limit != INT32_MIN)
        for (size_t j = 0; j < of.keys; j += 16)
          store(row + j, load(row + j) * kept(how, key, lanes_from(j) * splat_u((uint32_t)of.queries) +
                                                            splat_u((uint32_t)(start + r))));
    }
    multiply_all(scores, keys, v, wide, of.keys, mixed, wide, rows, wide, factors);
    put_rows(mixed, wide, rows, of.d, of.out + start * of.out_stride, of.out_stride);
  }
}

// Scores have keys for rows and queries for columns here, so that all but the last product can take
// them as they lie.
void attend_train_back(const Heads& of, const Dropping& how, uint32_t key, float* scratch) {
  const size_t wide = up16(of.d), queries = up16(of.queries), keys = up16(of.keys);
  const float root = 1.0f / __builtin_sqrtf((float)of.d);
  float* q = scratch;
  float* q_turned = q + queries * wide;
  float* grad = q_turned + queries * wide;
  float* grad_turned = grad + queries * wide;
  float* q_grad = grad_turned + queries * wide;
  float* k = q_grad + queries * wide;
  float* v = k + keys * wide;
  float* log_sums = v + keys * wide;
  float* deltas = log_sums + queries;
  float* shares = deltas + queries;
  float* dropped = shares + kKeys * queries;
  float* score_grads = dropped + kKeys * queries;
  float* turned = score_grads + kKeys * queries;
  float* found = turned + kKeys * queries;
  copy_rows(of.q, of.q_stride, of.queries, of.d, root, queries, wide, q);
  copy_rows(of.k, of.k_stride, of.keys, of.d, 1.0f, of.keys, wide, k);
  copy_rows(of.v, of.v_stride, of.keys, of.d, 1.0f, of.keys, wide, v);
  copy_rows(of.out_grad, of.out_stride, of.queries, of.d, 1.0f, queries, wide, grad);
  turn_all(q, queries, wide, q_turned, queries);
  turn_all(grad, queries, wide, grad_turned, queries);
  for (size_t i = 0; i < queries; ++i) {
    // No share of a query that is not there.
    log_sums[i] = i < of.queries ? of.log_sums[i] : 1e30f;
    float delta = 0.0f;
    for (size_t c = 0; c < of.d && i < of.queries; ++c)
      delta += of.out[i * of.out_stride + c] * of.out_grad[i * of.out_stride + c];
    deltas[i] = delta;
  }
  for (size_t start = 0; start < of.keys; start += kKeys) {
    const size_t rows = of.keys - start < kKeys ? of.keys - start : kKeys;
    multiply_all(k + start * wide, wide, q_turned, queries, wide, shares, queries, rows, queries);
    multiply_all(v + start * wide, wide, grad_turned, queries, wide, score_grads, queries, rows, queries);
    for (size_t r = 0; r < rows; ++r) {
      const size_t at = r * queries;
      for (size_t i = 0; i < queries; i += 16) {
        const V share = exponential(minimum(load(shares + at + i) - load(log_sums + i), splat(0.0f)));
        V mask = splat(1.0f);
        if (how.limit != INT32_MIN)
          mask = kept(how, key, lanes_from((uint32_t)i) +
                                    splat_u((uint32_t)((start + r) * of.queries)));
        store(dropped + at + i, share * mask);
        store(score_grads + at + i, share * (load(score_grads + at + i) * mask - load(deltas + i)));
      }
    }
    multiply_all(dropped, queries, grad, wide, of.queries, found, wide, rows, wide);
    put_rows(found, wide, rows, of.d, of.v_grad + start * of.v_grad_stride, of.v_grad_stride);
    multiply_all(score_grads, queries, q, wide, of.queries, found, wide, rows, wide);
    put_rows(found, wide, rows, of.d, of.k_grad + start * of.k_grad_stride, of.k_grad_stride);
    for (size_t r = rows; r < up16(rows); ++r)
      __builtin_memset(score_grads + r * queries, 0, queries * sizeof(float));
    turn_all(score_grads, up16(rows), queries, turned, kKeys);
    multiply_all(turned, kKeys, k + start * wide, wide, rows, q_grad, wide, of.queries, wide, nullptr,
                 start > 0);
  }
  for (size_t i = 0; i < of.queries; ++i)
    for (size_t c = 0; c < of.d; ++c)
      of.q_grad[i * of.q_grad_stride + c] = q_grad[i * wide + c] * root;
}

// --- between products -----------------------------------------------------------------------------

ENROBE_INLINE V read(const float* x, size_t left) {
  if (left >= 16) return load(x);
  alignas(64) float some[16] = {};
  __builtin_memcpy(some, x, left * sizeof(float));
  return load(some);
}
ENROBE_INLINE void write(float* x, size_t left, V v) {
  if (left >= 16) return store(x, v);
  alignas(64) float some[16];
  store(some, v);
  __builtin_memcpy(x, some, left * sizeof(float));
}

void gelu_rows(const float* x, size_t n, float* out) {
  for (size_t i = 0; i < n; i += 16) write(out + i, n - i, gelu(read(x + i, n - i)));
}

// Phi(x) + x phi(x), of the normal distribution and its density.
void gelu_back(const float* x, const float* out_grad, size_t n, float* grad) {
  for (size_t i = 0; i < n; i += 16) {
    const V v = read(x + i, n - i);
    const V density = splat(0.398942280f) * exponential(v * v * splat(-0.5f));
    write(grad + i, n - i, read(out_grad + i, n - i) * fma(v, density, normal(v)));
  }
}

void add_norm(const AddNorm& of, uint32_t number, const float* x, const float* residual, float* total,
              float* out, float* found) {
  V sums = splat(0.0f);
  for (size_t i = 0; i < of.n; i += 16) {
    const size_t left = of.n - i;
    V v = read(x + i, left);
    if (of.how.limit != INT32_MIN) v *= kept(of.how, of.key, lanes_from(number + (uint32_t)i));
    v += read(residual + i, left);
    write(total + i, left, v);
    sums += v;
  }
  const float mean = sum(sums) / (float)of.n;
  V squares = splat(0.0f);
  for (size_t i = 0; i < of.n; i += 16) {
    V apart = read(total + i, of.n - i) - splat(mean);
    if (of.n - i < 16) apart = pick(first(of.n - i), apart, splat(0.0f));
    squares = fma(apart, apart, squares);
  }
  const float factor = 1.0f / __builtin_sqrtf(sum(squares) / (float)of.n + of.eps);
  found[0] = mean, found[1] = factor;
  for (size_t i = 0; i < of.n; i += 16) {
    const size_t left = of.n - i;
    const V scaled = (read(total + i, left) - splat(mean)) * splat(factor);
    write(out + i, left, fma(scaled, read(of.weight + i, left), read(of.bias + i, left)));
  }
}

void add_norm_back(const AddNorm& of, uint32_t number, const float* total, const float* found,
                   const float* out_grad, float* residual_grad, float* x_grad, float* weight_grad,
                   float* bias_grad) {
  const V mean = splat(found[0]), factor = splat(found[1]);
  V sums = splat(0.0f), products = splat(0.0f);
  for (size_t i = 0; i < of.n; i += 16) {
    const size_t left = of.n - i;
    const V grad = read(out_grad + i, left), scaled = (read(total + i, left) - mean) * factor;
    const V weighted = grad * read(of.weight + i, left);
    sums += weighted;
    products = fma(weighted, scaled, products);
    write(weight_grad + i, left, fma(grad, scaled, read(weight_grad + i, left)));
    write(bias_grad + i, left, grad + read(bias_grad + i, left));
  }
  const V level = splat(sum(sums) / (float)of.n), slope = splat(sum(products) / (float)of.n);
  for (size_t i = 0; i < of.n; i += 16) {
    const size_t left = of.n - i;
    const V scaled = (read(total + i, left) - mean) * factor;
    const V weighted = read(out_grad + i, left) * read(of.weight + i, left);
    const V grad = factor * (weighted - level - scaled * slope);
    write(residual_grad + i, left, grad);
    if (of.how.limit != INT32_MIN)
      write(x_grad + i, left, grad * kept(of.how, of.key, lanes_from(number + (uint32_t)i)));
  }
}

// --- AdamW ----------------------------------------------------------------------------------------

// As torch's fused one has it, step by step: Loshchilov and Hutter 2019, with bias correction.
void adamw(const AdamW& how, size_t n, const float* grad, float* x, float* mean, float* square) {
  const V keep = splat(how.keep), first = splat(1.0f - how.beta1), second = splat(1.0f - how.beta2);
  const V beta1 = splat(how.beta1), beta2 = splat(how.beta2), eps = splat(how.eps);
  const V rate = splat(how.rate), root = splat(how.root), scale = splat(how.grad_scale);
  const auto some = [&](const float* g_at, float* x_at, float* m_at, float* s_at) {
    const V g = load(g_at) * scale;
    const V m = fma(g, first, load(m_at) * beta1);
    const V s = fma(g * g, second, load(s_at) * beta2);
    store(m_at, m);
    store(s_at, s);
    store(x_at, load(x_at) * keep - rate * m / (square_root(s) * root + eps));
  };
  size_t i = 0;
  for (; i + 16 <= n; i += 16) some(grad + i, x + i, mean + i, square + i);
  if (i == n) return;
  float rest[4][16] = {};
  const float* from[4] = {grad, x, mean, square};
  for (size_t part = 0; part < 4; ++part)
    __builtin_memcpy(rest[part], from[part] + i, (n - i) * sizeof(float));
  some(rest[0], rest[1], rest[2], rest[3]);
  __builtin_memcpy(x + i, rest[1], (n - i) * sizeof(float));
  __builtin_memcpy(mean + i, rest[2], (n - i) * sizeof(float));
  __builtin_memcpy(square + i, rest[3], (n - i) * sizeof(float));
}

float sum_of_squares(const float* x, size_t n) {
  V total[4] = {splat(0.0f), splat(0.0f), splat(0.0f), splat(0.0f)};
  size_t i = 0;
  for (; i + 64 <= n; i += 64)
    for (size_t part = 0; part < 4; ++part) {
      const V v = load(x + i + 16 * part);
      total[part] = fma(v, v, total[part]);
    }
  float rest = 0.0f;
  for (; i < n; ++i) rest += x[i] * x[i];
  return sum((total[0] + total[1]) + (total[2] + total[3])) + rest;
}

}  // namespace
