// AMX (servers from 2023 on): tiles of 16 rows, multiplied in a unit of their own.
//
// It has no float32, but whole numbers that are summed exactly. A row's numbers are rounded to 24 bits
// of the row's largest, in three signed bytes, and of the nine products of bytes the eight are summed
// that reach float32's last digit (Ozaki et al. 2012; Ootomo, Ozaki and Yokota 2024).
#include "avx512.inl"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

struct alignas(64) TileConfig {
  uint8_t palette = 1, start = 0, reserved[14] = {};
  uint16_t bytes[16] = {};
  uint8_t rows[16] = {};
};

thread_local size_t configured = 0;  // what for; 0: the tiles are not ours

// Tiles 0 to 3 are sums, 4 and 5 inputs of 16 rows each, 6 and 7 weights.
// Up to 16 rows: sums 0 to 3 side by side, inputs 4.
void configure(size_t rows) {
  if (rows == configured) return;
  TileConfig config;
  const size_t upper = rows < 16 ? rows : 16, lower = rows - upper;
  for (int tile = 0; tile < 8; ++tile) {
    config.bytes[tile] = 64;
    config.rows[tile] = 16;
  }
  config.rows[0] = config.rows[1] = config.rows[4] = (uint8_t)upper;
  config.rows[2] = config.rows[3] = (uint8_t)(lower ? lower : upper);
  config.rows[5] = (uint8_t)(lower ? lower : 16);
  _tile_loadconfig(&config);
  configured = rows;
}

void begin() { configured = 0; }
void end() {
  if (configured) _tile_release();
  configured = 0;
}

ENROBE_INLINE void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}
constexpr size_t kRow = kPanel * 4;  // bytes of four (or two) inputs' weights, and of a row of sums

// Sums 0 to 3 of rows 0 to 15 and 16 to 31, columns 0 to 15 and 16 to 31.
ENROBE_INLINE void store_square(void* sums) {
  uint8_t* out = (uint8_t*)sums;
  _tile_stored(0, out, kRow);
  _tile_stored(1, out + 64, kRow);
  _tile_stored(2, out + 16 * kRow, kRow);
  _tile_stored(3, out + 16 * kRow + 64, kRow);
}
ENROBE_INLINE void store_strip(void* sums) {
  uint8_t* out = (uint8_t*)sums;
  _tile_stored(0, out, kRow);
  _tile_stored(1, out + 64, kRow);
  _tile_stored(2, out + 128, kRow);
  _tile_stored(3, out + 192, kRow);
}

void dot(const uint8_t* a, size_t stride, size_t rows, const int8_t* panel, size_t k,
         const int8_t*, int32_t* sums) {
  configure(rows);
  if (rows <= 16) {
    zero_sums();
    for (size_t p = 0; p < k; p += 64) {
      const int8_t* b = panel + p * kPanel;
      _tile_loadd(4, a + p, stride);
      _tile_loadd(6, b, kRow);
      _tile_dpbusd(0, 4, 6);
      _tile_loadd(7, b + 64, kRow);
      _tile_dpbusd(1, 4, 7);
      _tile_loadd(6, b + 128, kRow);
      _tile_dpbusd(2, 4, 6);
      _tile_loadd(7, b + 192, kRow);
      _tile_dpbusd(3, 4, 7);
    }
    store_strip(sums);
    return;
  }
  for (size_t half = 0; half < 2; ++half) {
    zero_sums();
    for (size_t p = 0; p < k; p += 64) {
      const int8_t* b = panel + p * kPanel + 128 * half;
      // The inputs of two steps on: a tile's load waits for the second-level cache row by row.
      for (size_t row = 0; row < rows; ++row) __builtin_prefetch(a + row * stride + p + 128);
      _tile_loadd(4, a + p, stride);
      _tile_loadd(5, a + 16 * stride + p, stride);
      _tile_loadd(6, b, kRow);
      _tile_loadd(7, b + 64, kRow);
      _tile_dpbusd(0, 4, 6);
      _tile_dpbusd(1, 4, 7);
      _tile_dpbusd(2, 5, 6);
      _tile_dpbusd(3, 5, 7);
    }
    store_square(sums + 32 * half);
  }
}

// --- float32 --------------------------------------------------------------------------------------

// Tiles 0 to 3 are sums of products worth 1, 1/256, 1/256^2 and 1/256^3; 4 to 6 a row's three bytes.
// From `weights` on they are weights.
void configure_sliced(size_t rows, int weights = 7) {
  const size_t how = 256 * (8 - weights) + rows;
  if (configured == how) return;
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) {
    config.bytes[tile] = 64;
    config.rows[tile] = tile < weights ? (uint8_t)rows : 16;
  }
  _tile_loadconfig(&config);
  configured = how;
}

// What three and two signed bytes can hold, and a little room.
constexpr float kLargest = 8355000.0f, kLargestOfTwo = 32600.0f;

// The lowest byte but `part` of 64 numbers, four vectors of them.
template <size_t Parts>
ENROBE_INLINE void store_slices(const __m512i (&numbers)[4], int8_t* slices, size_t k) {
  alignas(64) static constexpr auto every_fourth = [] {
    struct {
      uint8_t at[64];
    } made{};
    for (size_t i = 0; i < 32; ++i) made.at[i] = (uint8_t)(4 * i);
    return made;
  }();
  const __m512i first = _mm512_load_si512(every_fourth.at);
  for (size_t part = 0; part < Parts; ++part) {
    const __m512i places = _mm512_add_epi8(first, _mm512_set1_epi8((char)(Parts - 1 - part)));
    const __m512i low = _mm512_permutex2var_epi8(numbers[0], places, numbers[1]);
    const __m512i high = _mm512_permutex2var_epi8(numbers[2], places, numbers[3]);
    _mm512_storeu_si512(slices + part * k,
                        _mm512_inserti64x4(low, _mm512_castsi512_si256(high), 1));
  }
}

// With 128 added to each, a number's digits are its bytes; with the highest bit turned, signed ones.
template <size_t Parts>
ENROBE_INLINE __m512i signed_bytes(__m512 numbers) {
  const __m512i halves = _mm512_set1_epi32(Parts == 3 ? 0x808080 : 0x8080);
  return _mm512_xor_si512(_mm512_add_epi32(_mm512_cvtps_epi32(numbers), halves), halves);
}

template <size_t Parts, bool by_own>
ENROBE_INLINE void slice_by(const float* x, const float* by, size_t k, int8_t* slices, float* scale) {
  const auto at = [&](size_t i) {
    const __m512 v = _mm512_loadu_ps(x + i);
    return by_own ? _mm512_mul_ps(v, _mm512_loadu_ps(by + i)) : v;
  };
  __m512 most[4], wrong[4];
  for (size_t i = 0; i < 4; ++i) most[i] = wrong[i] = _mm512_setzero_ps();
  for (size_t i = 0; i < k; i += 64)
    for (size_t part = 0; part < 4; ++part) {
      const __m512 v = at(i + 16 * part);
      most[part] = _mm512_max_ps(_mm512_abs_ps(v), most[part]);
      // NaN where something is not finite
      wrong[part] = _mm512_fmadd_ps(v, _mm512_setzero_ps(), wrong[part]);
    }
  const float high = _mm512_reduce_max_ps(
      _mm512_max_ps(_mm512_max_ps(most[0], most[1]), _mm512_max_ps(most[2], most[3])));
  const float unit = high > 1e-30f ? high : 1e-30f;
  const float limit = Parts == 3 ? kLargest : kLargestOfTwo;
  *scale = unit / limit * (Parts == 3 ? 65536.0f : 256.0f) +
           _mm512_reduce_add_ps(
               _mm512_add_ps(_mm512_add_ps(wrong[0], wrong[1]), _mm512_add_ps(wrong[2], wrong[3])));
  const __m512 factor = _mm512_set1_ps(limit / unit);
  for (size_t i = 0; i < k; i += 64) {
    __m512i numbers[4];
    for (size_t part = 0; part < 4; ++part)
      numbers[part] = signed_bytes<Parts>(_mm512_mul_ps(at(i + 16 * part), factor));
    store_slices<Parts>(numbers, slices + i, k);
  }
}

void slice(const float* x, const float* by, size_t k, int8_t* slices, float* scale) {
  if (by)
    slice_by<3, true>(x, by, k, slices, scale);
  else
    slice_by<3, false>(x, by, k, slices, scale);
}
void slice_two(const float* x, const float* by, size_t k, int8_t* slices, float* scale) {
  if (by)
    slice_by<2, true>(x, by, k, slices, scale);
  else
    slice_by<2, false>(x, by, k, slices, scale);
}

// A square of 16 x 16 sums on its way to floats, a few rows at a time: between the steps of the next
// square, which the tiles' unit is busy with.
template <int Least>
struct Square {
  const int32_t (*parts)[16 * 16] = nullptr;  // the sums worth 1, 1/256, ...
  size_t row = 0, rows = 0;                   // the next, and how many
  const float* row_scale = nullptr;
  __m512 by = {}, bias = {};
  float* out = nullptr;
  size_t stride = 0;

  __attribute__((always_inline)) void turn(size_t most) {
    for (const size_t stop = rows - row < most ? rows : row + most; row < stop; ++row) {
      const auto part = [&](size_t n) {
        return _mm512_cvtepi32_ps(_mm512_load_si512(parts[n] + 16 * row));
      };
      __m512 v = part(Least);
      for (size_t n = Least; n-- > 0;) v = _mm512_fmadd_ps(v, _mm512_set1_ps(1.0f / 256), part(n));
      const __m512 factor = _mm512_mul_ps(by, _mm512_set1_ps(row_scale[row]));
      _mm512_storeu_ps(out + row * stride, _mm512_fmadd_ps(v, factor, bias));
    }
  }
};

// Of the products of bytes all whose worth is at least `Least`: 3 for 1/256^3, 2 for 1/256^2.
template <int Least>
ENROBE_INLINE void dot_by(const int8_t* a, size_t stride, size_t rows, const int8_t* panel, size_t k,
                          const float* row_scale, const float* scale, const float* bias, float* out,
                          size_t out_stride) {
  alignas(64) int32_t parts[2][Least + 1][16 * 16];
  Square<Least> before;
  size_t which = 0;
  const size_t share = (16 * 64 + k - 1) / k;  // rows of a square for each step
  for (size_t first = 0; first < rows; first += 16) {
    const size_t count = rows - first < 16 ? rows - first : 16;
    configure_sliced(count);
    for (size_t column = 0; column < kPanel; column += 16, which ^= 1) {
      const int8_t* x = a + first * stride;
      const int8_t* b = panel + 3 * column * k;
      zero_sums();
      for (size_t p = 0; p < k; p += 64, b += 3 * 1024) {
        // For a few rows the weights come from memory, which takes that long.
        for (size_t line = 0; line < 3 * 1024 && rows <= 32; line += 64)
          __builtin_prefetch(b + 4 * 3 * 1024 + line);
        _tile_loadd(4, x + p, stride);
        _tile_loadd(7, b, 64);
        _tile_dpbssd(0, 4, 7);
        _tile_loadd(5, x + k + p, stride);
        _tile_dpbssd(1, 5, 7);
        _tile_loadd(6, x + 2 * k + p, stride);
        _tile_dpbssd(2, 6, 7);
        _tile_loadd(7, b + 1024, 64);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 7);
        if (Least == 3) _tile_dpbssd(3, 6, 7);
        _tile_loadd(7, b + 2048, 64);
        _tile_dpbssd(2, 4, 7);
        if (Least == 3) _tile_dpbssd(3, 5, 7);
        before.turn(share);
      }
      before.turn(16);
      int32_t(*own)[16 * 16] = parts[which];
      _tile_stored(0, own[0], 64);
      _tile_stored(1, own[1], 64);
      _tile_stored(2, own[2], 64);
      if (Least == 3) _tile_stored(3, own[Least], 64);
      before = {own, 0, count, row_scale + first, _mm512_loadu_ps(scale + column),
                bias ? _mm512_loadu_ps(bias + column) : _mm512_setzero_ps(),
                out + first * out_stride + column, out_stride};
    }
  }
  before.turn(16);
}

void dot_sliced(const int8_t* a, size_t stride, size_t rows, const int8_t* panel, size_t k,
                const float* row_scale, const float* scale, const float* bias, float* out,
                size_t out_stride) {
  dot_by<3>(a, stride, rows, panel, k, row_scale, scale, bias, out, out_stride);
}
void dot_sliced_short(const int8_t* a, size_t stride, size_t rows, const int8_t* panel, size_t k,
                      const float* row_scale, const float* scale, const float* bias, float* out,
                      size_t out_stride) {
  dot_by<2>(a, stride, rows, panel, k, row_scale, scale, bias, out, out_stride);
}

// Tiles 0 to 3 are sums worth 1 and 1/256 of 16 columns and of the next 16, 4 and 5 a row's two bytes.
void dot_two(const int8_t* a, size_t stride, size_t rows, const int8_t* panel, size_t k,
             const float* row_scale, const float* scale, const float* bias, float* out,
             size_t out_stride) {
  alignas(64) int32_t parts[4][16 * 16];
  for (size_t first = 0; first < rows; first += 16) {
    const size_t count = rows - first < 16 ? rows - first : 16;
    configure_sliced(count, 6);
    for (size_t column = 0; column < kPanel; column += 32) {
      const int8_t* x = a + first * stride;
      const int8_t* b = panel + 2 * column * k;
      const int8_t* next = b + 2 * 16 * k;
      zero_sums();
      for (size_t p = 0; p < k; p += 64, b += 2 * 1024, next += 2 * 1024) {
        _tile_loadd(4, x + p, stride);
        _tile_loadd(6, b, 64);
        _tile_dpbssd(0, 4, 6);
        _tile_loadd(5, x + k + p, stride);
        _tile_dpbssd(1, 5, 6);
        _tile_loadd(7, next, 64);
        _tile_dpbssd(2, 4, 7);
        _tile_dpbssd(3, 5, 7);
        _tile_loadd(6, b + 1024, 64);
        _tile_dpbssd(1, 4, 6);
        _tile_loadd(7, next + 1024, 64);
        _tile_dpbssd(3, 4, 7);
      }
      _tile_stored(0, parts[0], 64);
      _tile_stored(1, parts[1], 64);
      _tile_stored(2, parts[2], 64);
      _tile_stored(3, parts[3], 64);
      for (size_t half = 0; half < 2; ++half) {
        const size_t at = column + 16 * half;
        Square<1> square{parts + 2 * half, 0, count, row_scale + first, _mm512_loadu_ps(scale + at),
                         bias ? _mm512_loadu_ps(bias + at) : _mm512_setzero_ps(),
                         out + first * out_stride + at, out_stride};
        square.turn(16);
      }
    }
  }
}

// --- training -------------------------------------------------------------------------------------

void pack_columns(const int8_t* rows, size_t stride, int8_t* tile) {
  // Fours of bytes are moved as if each were a float.
  V fours[16];
  for (size_t row = 0; row < 16; ++row) __builtin_memcpy(&fours[row], rows + row * stride, 64);
  turn(fours);
  for (size_t four = 0; four < 16; ++four) __builtin_memcpy(tile + four * 64, &fours[four], 64);
}

void pack_rows(const int8_t* rows, size_t stride, int8_t* tile) {
  alignas(64) static constexpr auto turned = [] {
    struct {
      uint8_t at[64];
    } made{};
    for (size_t i = 0; i < 64; ++i) made.at[i] = (uint8_t)(i % 4 * 16 + i / 4);
    return made;
  }();
  const __m512i places = _mm512_load_si512(turned.at);
  for (size_t row = 0; row < 64; row += 4) {
    const int8_t* from = rows + row * stride;
    const auto read = [&](size_t n) { return _mm_loadu_si128((const __m128i*)(from + n * stride)); };
    __m512i four = _mm512_castsi128_si512(read(0));
    four = _mm512_mask_broadcast_i32x4(four, 0x00F0, read(1));
    four = _mm512_mask_broadcast_i32x4(four, 0x0F00, read(2));
    four = _mm512_mask_broadcast_i32x4(four, 0xF000, read(3));
    _mm512_storeu_si512(tile + row * 16, _mm512_permutexvar_epi8(places, four));
  }
}

// --- attention ------------------------------------------------------------------------------------

// From so many keys on attention is quicker by tiles, for heads that fill them.
constexpr size_t kFewestKeys = 112;
constexpr size_t kQueriesAtOnce = 48;

constexpr size_t sliced_stride(size_t k) { return 3 * k + 64; }

// Columns of a panel, 16 at a time, from as many rows of slices; K a multiple of 64.
void pack_panel(const int8_t* rows, size_t k, int8_t* panel) {
  for (size_t step = 0; step < k / 64; ++step)
    for (size_t part = 0; part < 3; ++part, panel += 1024)
      pack_columns(rows + part * k + 64 * step, sliced_stride(k), panel);
}

// 2^x for x <= 0, to two units in the last place: 2^n times a minimax polynomial on +-1/2.
ENROBE_INLINE __m512 power_of_two(__m512 x) {
  // In this order, so that NaN stays.
  x = _mm512_max_ps(_mm512_set1_ps(-126.0f), x);
  const __m512 r = _mm512_reduce_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 p = _mm512_set1_ps(0x1.5c08e6p-10f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.3d0c52p-7f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.c6b6e4p-5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.ebf918p-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.62e428p-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.000002p+0f));
  return _mm512_scalef_ps(p, _mm512_sub_ps(x, r));
}

// 2^(x - most) of a row, a share of 1 each, as slices; what stands beyond n as zeros. Returns 1 / their
// sum.
float slice_softmax(const float* x, size_t n, size_t wide, int8_t* slices) {
  const auto inside = [&](size_t at) {
    return (__mmask16)(n - at < 16 ? (1u << (n - at)) - 1 : 0xFFFFu);
  };
  __m512 highest = _mm512_set1_ps(-3.0e38f);
  for (size_t i = 0; i < n; i += 16)
    highest = _mm512_mask_max_ps(highest, inside(i), highest, _mm512_loadu_ps(x + i));
  const __m512 most = _mm512_set1_ps(_mm512_reduce_max_ps(highest));
  __m512 total = _mm512_setzero_ps();
  for (size_t i = 0; i < wide; i += 64) {
    __m512i numbers[4];
    for (size_t part = 0; part < 4; ++part) {
      const size_t at = i + 16 * part;
      __m512 share = _mm512_setzero_ps();
      if (at < n)
        share = _mm512_maskz_mov_ps(
            inside(at), power_of_two(_mm512_sub_ps(_mm512_loadu_ps(x + at), most)));
      total = _mm512_add_ps(total, share);
      numbers[part] = signed_bytes<3>(_mm512_mul_ps(share, _mm512_set1_ps(kLargest)));
    }
    store_slices<3>(numbers, slices + i, wide);
  }
  return 1.0f / _mm512_reduce_add_ps(total);
}

// Scores of some queries with all keys, both of 64 numbers: the slices of 16 queries stay in their
// tiles for 64 keys, whose own stay in the first cache for all queries.
void score(const int8_t* queries, size_t rows, const int8_t* panels, size_t keys,
           const float* row_scale, const float* scale, float* scores) {
  alignas(64) int32_t parts[2][3][16 * 16];
  Square<2> before;
  for (size_t panel = 0; panel < keys; panel += kPanel)
    for (size_t first = 0; first < rows; first += 16) {
      const size_t count = rows - first < 16 ? rows - first : 16;
      configure_sliced(count);
      const int8_t* x = queries + first * sliced_stride(64);
      _tile_loadd(4, x, sliced_stride(64));
      _tile_loadd(5, x + 64, sliced_stride(64));
      _tile_loadd(6, x + 128, sliced_stride(64));
      for (size_t key = panel; key < panel + kPanel; key += 16) {
        const int8_t* b = panels + 3 * 64 * key;
        zero_sums();
        _tile_loadd(7, b, 64);
        _tile_dpbssd(0, 4, 7);
        _tile_dpbssd(1, 5, 7);
        _tile_dpbssd(2, 6, 7);
        _tile_loadd(7, b + 1024, 64);
        _tile_dpbssd(1, 4, 7);
        _tile_dpbssd(2, 5, 7);
        _tile_loadd(7, b + 2048, 64);
        _tile_dpbssd(2, 4, 7);
        before.turn(16);
        int32_t(*own)[16 * 16] = parts[key / 16 % 2];
        _tile_stored(0, own[0], 64);
        _tile_stored(1, own[1], 64);
        _tile_stored(2, own[2], 64);
        before = {own, 0, count, row_scale + first, _mm512_loadu_ps(scale + key),
                  _mm512_setzero_ps(), scores + first * keys + key, keys};
      }
    }
  before.turn(16);
}

// Where what attend_by_tiles makes has its place, in bytes.
struct TilesRoom {
  size_t key_panels, value_panels, key_scale, value_scale, row_scale, asked, scores, shares, end = 0;

  TilesRoom(size_t keys, size_t d) {
    const size_t wide = enrobe::padded(keys);
    const auto take = [&](size_t bytes) {
      const size_t start = end;
      end += (bytes + 63) / 64 * 64;
      return start;
    };
    key_panels = take(3 * d * wide);
    value_panels = take(3 * d * wide);
    key_scale = take(wide * 4);
    value_scale = take(d * 4);
    row_scale = take(kQueriesAtOnce * 4);
    asked = take(kQueriesAtOnce * sliced_stride(d));
    scores = take(kQueriesAtOnce * wide * 4);
    shares = take(kQueriesAtOnce * sliced_stride(wide));
  }
};

size_t scratch_by_tiles(size_t keys, size_t d) {
  const size_t plain = attend_scratch(keys, d), tiles = TilesRoom(keys, d).end / sizeof(float);
  return d % 64 || plain > tiles ? plain : tiles;
}

// As `attend` of kernels.inl, whose products are here of slices: scores of queries and keys in eight
// products of bytes, shares times values in six.
void attend_by_tiles(const float* q, size_t q_stride, size_t queries, const float* k, const float* v,
                     size_t stride, size_t keys, size_t d, float* out, size_t out_stride,
                     float* scratch) {
  if (keys < kFewestKeys || d % 64) {
    attend(q, q_stride, queries, k, v, stride, keys, d, out, out_stride, scratch);
    return;
  }
  const size_t wide = enrobe::padded(keys);
  const TilesRoom room(keys, d);
  uint8_t* const base = (uint8_t*)scratch;
  int8_t* const key_panels = (int8_t*)(base + room.key_panels);
  int8_t* const value_panels = (int8_t*)(base + room.value_panels);
  float* const key_scale = (float*)(base + room.key_scale);
  float* const value_scale = (float*)(base + room.value_scale);
  float* const row_scale = (float*)(base + room.row_scale);
  int8_t* const asked = (int8_t*)(base + room.asked);
  float* const scores = (float*)(base + room.scores);
  int8_t* const shares = (int8_t*)(base + room.shares);

  // Of base 2 is the softmax.
  const float factor = 1.44269504f / __builtin_sqrtf((float)d);
  for (size_t key = 0; key < wide; key += 16) {
    // Nothing else is in these two places yet.
    int8_t* const rows = asked;
    for (size_t i = 0; i < 16; ++i) {
      if (key + i < keys) {
        slice(k + (key + i) * stride, nullptr, d, rows + i * sliced_stride(d), key_scale + key + i);
        key_scale[key + i] *= factor;
      } else {
        __builtin_memset(rows + i * sliced_stride(d), 0, 3 * d);
        key_scale[key + i] = 0.0f;
      }
    }
    pack_panel(rows, d, key_panels + 3 * d * key);
  }
  for (size_t column = 0; column < d; column += 16) {
    const size_t whole = keys / 16 * 16;
    for (size_t key = 0; key < whole; key += 16)
      transpose(v + key * stride + column, stride, scores + key, wide);
    for (size_t i = 0; i < 16; ++i) {
      float* const of_column = scores + i * wide;
      for (size_t key = whole; key < wide; ++key)
        of_column[key] = key < keys ? v[key * stride + column + i] : 0.0f;
      slice(of_column, nullptr, wide, shares + i * sliced_stride(wide), value_scale + column + i);
    }
    pack_panel(shares, wide, value_panels + 3 * wide * column);
  }

  for (size_t start = 0; start < queries; start += kQueriesAtOnce) {
    const size_t rows = queries - start < kQueriesAtOnce ? queries - start : kQueriesAtOnce;
    for (size_t row = 0; row < rows; ++row)
      slice(q + (start + row) * q_stride, nullptr, d, asked + row * sliced_stride(d),
            row_scale + row);
    if (d == 64)
      score(asked, rows, key_panels, wide, row_scale, key_scale, scores);
    else
      for (size_t key = 0; key < wide; key += kPanel)
        dot_sliced_short(asked, sliced_stride(d), rows, key_panels + 3 * d * key, d, row_scale,
                         key_scale + key, nullptr, scores + key, wide);
    for (size_t row = 0; row < rows; ++row)
      row_scale[row] = 65536.0f / kLargest * slice_softmax(scores + row * wide, keys, wide,
                                                          shares + row * sliced_stride(wide));
    for (size_t column = 0; column < d; column += kPanel)
      dot_sliced_short(shares, sliced_stride(wide), rows, value_panels + 3 * wide * column, wide,
                       row_scale, value_scale + column, nullptr, out + start * out_stride + column,
                       out_stride);
  }
}

bool has_amx() {
  unsigned a, b, c, d;
  if (!enrobe::kernels_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool tiles = d >> 24 & 1, int8 = d >> 25 & 1, bf16 = d >> 22 & 1, bytes = c >> 1 & 1;
  // The kernel has to be asked for room to save the tiles in: ARCH_REQ_XCOMP_PERM, XTILEDATA.
  return tiles && int8 && bf16 && bytes && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}

}  // namespace

const enrobe::Kernels* enrobe::kernels_amx() {
  static const Kernels table = {"amx",    32,       96,       16 * kVectors, begin,  end,  dot,
                                nullptr,  nullptr,  quantize, finish, norm, add_int8,
                                attend_by_tiles, scratch_by_tiles, attend_int16, attend_int16_scratch,
                                attend_train, attend_train_back, gelu_rows, gelu_back, add_norm,
                                add_norm_back, adamw, sum_of_squares, transpose,
                                slice,    dot_sliced, dot_sliced_short, slice_two, dot_two,
                                pack_columns, pack_rows};
  static const bool has = has_amx();
  return has ? &table : nullptr;
}
