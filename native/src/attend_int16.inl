// Attention in whole numbers of 16 bits, two in a lane: a processor sums their products twice as quickly
// as those of float32. As docs/small.md has it.
//
// Queries and keys have so many bits that a sum of d products fits into 32, values have 14, and shares
// what that leaves them, up to 16. Each column of a text's keys and values has a scale, that of the keys is
// multiplied into the queries, and each query then has one.

namespace {

constexpr float kMostValue = 8191.0f;
constexpr float kMostShares = 262144.0f;  // all of a query's together: times 8192 it is 2^31
constexpr float kMostShare = 32767.0f;
// Smaller ones are as nothing, and their inverses could be infinite.
constexpr float kLeastSize = 1e-30f;

// Columns of a head, filled up to pairs: column c goes with c + 16.
ENROBE_INLINE size_t paired(size_t d) { return (d + 31) / 32 * 32; }

// x * factor rounded to whole numbers, two a lane.
ENROBE_INLINE I halves(V low, V low_factor, V high, V high_factor) {
  const I lower = Bits<I, V>::of(fma(low, low_factor, splat(kRounder)));
  const I upper = Bits<I, V>::of(fma(high, high_factor, splat(kRounder)));
  return (lower & splat((int32_t)0xffff)) | (upper << 16);
}

// What a column is multiplied by so that its largest is `limit`, and the inverse; 0 for columns beyond d.
struct Scales {
  float *factor, *inverse;
};

void scale_columns(const float* x, size_t stride, size_t rows, size_t d, float limit, Scales out) {
  for (size_t c = 0; c < paired(d); c += 32) {
    V high[2] = {splat(0.0f), splat(0.0f)}, low[2] = {splat(0.0f), splat(0.0f)};
    for (size_t row = 0; row < rows; ++row)
      for (size_t j = 0; j < 2; ++j) {
        const V v = load(x + row * stride + c + 16 * j);
        high[j] = maximum(v, high[j]);
        low[j] = minimum(v, low[j]);
      }
    for (size_t j = 0; j < 2; ++j) {
      const size_t at = c + 16 * j;
      const auto inside = first(at < d ? d - at : 0);
      const V size = maximum(maximum(high[j], -low[j]), splat(kLeastSize));
      store(out.factor + at, pick(inside, splat(limit) / size, splat(0.0f)));
      store(out.inverse + at, pick(inside, size / splat(limit), splat(0.0f)));
    }
  }
}

// As pack_keys. Scores of keys that are not there are looked at by nobody.
void pack_key_halves(const float* k, size_t stride, size_t keys, size_t d, const float* factor,
                     int32_t* packed) {
  pack_strips(keys, paired(d) / 2, packed, [&](size_t key, size_t pair) {
    const size_t c = 2 * pair;
    const float* from = k + (key < keys ? key : keys - 1) * stride + c;
    return Bits<V, I>::of(halves(load(from), load(factor + c), load(from + 16), load(factor + c + 16)));
  });
}

// Row r goes with r + 16.
void pack_value_halves(const float* v, size_t stride, size_t keys, size_t d, const float* factor,
                       int32_t* packed) {
  for (size_t key = 0; key < keys; key += 32)
    for (size_t row = key; row < key + 16; ++row, packed += paired(d)) {
      // The shares of rows that are not there are zeros.
      const float* low = v + (row < keys ? row : keys - 1) * stride;
      const float* high = v + (row + 16 < keys ? row + 16 : keys - 1) * stride;
      for (size_t c = 0; c < d; c += 16) {
        const V by = load(factor + c);
        Of<I>::store(packed + c, halves(load(low + c), by, load(high + c), by));
      }
    }
}

// A query, multiplied by the keys' scales. Returns its own.
float query_halves(const float* q, size_t d, const float* key_scale, float limit, int32_t* out) {
  V high = splat(0.0f), low = splat(0.0f);
  for (size_t c = 0; c < paired(d); c += 16) {
    const V v = load(q + c) * load(key_scale + c);
    high = maximum(v, high);
    low = minimum(v, low);
  }
  const float found = largest(maximum(high, -low));
  const float size = found > kLeastSize ? found : kLeastSize;
  const V factor = splat(limit / size);
  for (size_t c = 0; c < paired(d); c += 32)
    Of<I>::store(out + c / 2, halves(load(q + c) * load(key_scale + c), factor,
                                     load(q + c + 16) * load(key_scale + c + 16), factor));
  return size / limit;
}

// In place.
void share_halves(float* x, size_t n, float factor) {
  const V by = splat(factor);
  for (size_t i = 0; i < n; i += 32)
    Of<I>::store(x + i / 2,
                 halves(load(x + i), by, i + 16 < n ? load(x + i + 16) : splat(0.0f), by));
}

size_t attend_int16_scratch(size_t keys, size_t d) {
  return enrobe::padded(keys) * (kQueries + paired(d)) + paired(d) * (kQueries / 2 + 4);
}

void attend_int16(const float* q, size_t q_stride, size_t queries, const float* k, const float* v,
                  size_t stride, size_t keys, size_t d, float* out, size_t out_stride,
                  float* scratch) {
  const size_t wide = enrobe::padded(keys), columns = paired(d), pairs = columns / 2;
  const auto take = [&](size_t count) {
    float* const own = scratch;
    scratch += count;
    return own;
  };
  float* const scores = take(kQueries * wide);
  int32_t* const packed_keys = (int32_t*)take(wide * pairs);
  int32_t* const packed_values = (int32_t*)take(wide * pairs);
  int32_t* const asked = (int32_t*)take(kQueries * pairs);
  const Scales of_keys{take(columns), take(columns)}, of_values{take(columns), take(columns)};

  const double root = __builtin_floor(__builtin_sqrt(2147483647.0 / (double)d));
  const float limit = root < 32767 ? (float)root : 32767.0f;
  const float inverse_root = 1.0f / __builtin_sqrtf((float)d);
  const float most_shares = kMostShares - (float)keys;  // whose rounding adds half as much at most
  scale_columns(k, stride, keys, d, limit, of_keys);
  pack_key_halves(k, stride, keys, d, of_keys.factor, packed_keys);
  scale_columns(v, stride, keys, d, kMostValue, of_values);
  pack_value_halves(v, stride, keys, d, of_values.factor, packed_values);
  for (size_t start = 0; start < queries; start += kQueries) {
    const size_t rows = queries - start < kQueries ? queries - start : kQueries;
    float factors[kQueries];
    for (size_t r = 0; r < rows; ++r)
      factors[r] = inverse_root * query_halves(q + (start + r) * q_stride, d, of_keys.inverse, limit,
                                               asked + r * pairs);
    score_keys((const int32_t*)asked, pairs, rows, (const int32_t*)packed_keys, pairs, keys, factors,
               scores, wide);
    for (size_t r = 0; r < rows; ++r) {
      const float of_sum = softmax(scores + r * wide, keys).factor, all = most_shares * of_sum;
      const float factor = all < kMostShare ? all : kMostShare;
      share_halves(scores + r * wide, keys, factor);
      factors[r] = of_sum / factor;
    }
    mix_values((const int32_t*)scores, wide, rows, (const int32_t*)packed_values, columns,
               (keys + 31) / 32 * 16, d, factors, of_values.inverse, out + start * out_stride,
               out_stride);
  }
}

}  // namespace
