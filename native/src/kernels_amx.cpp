// AMX (servers from 2023 on): tiles of 16 rows, multiplied in a unit of their own.
//
// It has no float32, but whole numbers that are summed exactly. A row's numbers are rounded to 24 bits
// of the row's largest, in three signed bytes, and of the nine products of bytes the eight are summed
// that reach float32's last digit (Ozaki et al. 2012; Ootomo, Ozaki and Yokota 2024).
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the undefined lanes of its own intrinsics for a mistake.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
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
         int32_t* sums) {
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

template <size_t Parts, bool by_own>
ENROBE_INLINE void slice_by(const float* x, const float* by, size_t k, int8_t* slices, float* scale) {
  const auto at = [&](size_t i) { return by_own ? load(x + i) * load(by + i) : load(x + i); };
  V most = splat(0.0f), wrong = splat(0.0f);
  for (size_t i = 0; i < k; i += 16) {
    const V v = at(i);
    most = maximum(maximum(v, -v), most);
    wrong = fma(v, splat(0.0f), wrong);  // NaN where something is not finite
  }
  const float high = largest(most), unit = high > 1e-30f ? high : 1e-30f;
  const float limit = Parts == 3 ? kLargest : kLargestOfTwo;
  *scale = unit / limit * (Parts == 3 ? 65536.0f : 256.0f) + sum(wrong);
  const __m512 factor = _mm512_set1_ps(limit / unit);
  for (size_t i = 0; i < k; i += 16) {
    __m512i number = _mm512_cvtps_epi32(_mm512_mul_ps((__m512)at(i), factor));
    for (size_t part = Parts; part-- > 0;) {
      const __m512i low = _mm512_srai_epi32(_mm512_slli_epi32(number, 24), 24);
      _mm_storeu_si128((__m128i*)(slices + part * k + i), _mm512_cvtepi32_epi8(low));
      number = _mm512_srai_epi32(_mm512_sub_epi32(number, low), 8);
    }
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

// Of the products of bytes all whose worth is at least `Least`: 3 for 1/256^3, 2 for 1/256^2.
template <int Least>
ENROBE_INLINE void dot_by(const int8_t* a, size_t stride, size_t rows, const int8_t* panel, size_t k,
                          const float* row_scale, const float* scale, float* sums) {
  alignas(64) int32_t parts[4][16 * 16];
  const __m512 next = _mm512_set1_ps(1.0f / 256);
  for (size_t first = 0; first < rows; first += 16) {
    const size_t count = rows - first < 16 ? rows - first : 16;
    configure_sliced(count);
    for (size_t column = 0; column < kPanel; column += 16) {
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
      }
      _tile_stored(0, parts[0], 64);
      _tile_stored(1, parts[1], 64);
      _tile_stored(2, parts[2], 64);
      if (Least == 3) _tile_stored(3, parts[3], 64);
      const __m512 by = _mm512_loadu_ps(scale + column);
      for (size_t row = 0; row < count; ++row) {
        const auto part = [&](size_t n) {
          return _mm512_cvtepi32_ps(_mm512_load_si512(parts[n] + 16 * row));
        };
        __m512 v = part(Least);
        for (size_t n = Least; n-- > 0;) v = _mm512_fmadd_ps(v, next, part(n));
        const __m512 factor = _mm512_mul_ps(by, _mm512_set1_ps(row_scale[first + row]));
        _mm512_storeu_ps(sums + (first + row) * kPanel + column, _mm512_mul_ps(v, factor));
      }
    }
  }
}

void dot_sliced(const int8_t* a, size_t stride, size_t rows, const int8_t* panel, size_t k,
                const float* row_scale, const float* scale, float* sums) {
  dot_by<3>(a, stride, rows, panel, k, row_scale, scale, sums);
}
void dot_sliced_short(const int8_t* a, size_t stride, size_t rows, const int8_t* panel, size_t k,
                      const float* row_scale, const float* scale, float* sums) {
  dot_by<2>(a, stride, rows, panel, k, row_scale, scale, sums);
}

// Tiles 0 to 3 are sums worth 1 and 1/256 of 16 columns and of the next 16, 4 and 5 a row's two bytes.
void dot_two(const int8_t* a, size_t stride, size_t rows, const int8_t* panel, size_t k,
             const float* row_scale, const float* scale, float* sums) {
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
        const __m512 by = _mm512_loadu_ps(scale + at);
        for (size_t row = 0; row < count; ++row) {
          const auto part = [&](size_t n) {
            return _mm512_cvtepi32_ps(_mm512_load_si512(parts[n] + 16 * row));
          };
          const __m512 v = _mm512_fmadd_ps(part(2 * half + 1), _mm512_set1_ps(1.0f / 256),
                                           part(2 * half));
          const __m512 factor = _mm512_mul_ps(by, _mm512_set1_ps(row_scale[first + row]));
          _mm512_storeu_ps(sums + (first + row) * kPanel + at, _mm512_mul_ps(v, factor));
        }
      }
    }
  }
}

// --- training -------------------------------------------------------------------------------------

void pack_columns(const int8_t* rows, size_t stride, int8_t* tile) {
  for (size_t row = 0; row < 16; row += 4)
    for (size_t at = 0; at < 64; at += 16) {
      const auto read = [&](size_t n) {
        return _mm_loadu_si128((const __m128i*)(rows + (row + n) * stride + at));
      };
      const __m128i a = read(0), b = read(1), c = read(2), d = read(3);
      const __m128i ab = _mm_unpacklo_epi32(a, b), cd = _mm_unpacklo_epi32(c, d);
      const __m128i ab2 = _mm_unpackhi_epi32(a, b), cd2 = _mm_unpackhi_epi32(c, d);
      __m128i* out = (__m128i*)(tile + at * 16 + row * 4);
      _mm_storeu_si128(out, _mm_unpacklo_epi64(ab, cd));
      _mm_storeu_si128(out + 4, _mm_unpackhi_epi64(ab, cd));
      _mm_storeu_si128(out + 8, _mm_unpacklo_epi64(ab2, cd2));
      _mm_storeu_si128(out + 12, _mm_unpackhi_epi64(ab2, cd2));
    }
}

void pack_rows(const int8_t* rows, size_t stride, int8_t* tile) {
  for (size_t row = 0; row < 64; row += 4) {
    const auto read = [&](size_t n) {
      return _mm_loadu_si128((const __m128i*)(rows + (row + n) * stride));
    };
    const __m128i a = read(0), b = read(1), c = read(2), d = read(3);
    const __m128i ab = _mm_unpacklo_epi8(a, b), cd = _mm_unpacklo_epi8(c, d);
    const __m128i ab2 = _mm_unpackhi_epi8(a, b), cd2 = _mm_unpackhi_epi8(c, d);
    __m128i* out = (__m128i*)(tile + row * 16);
    _mm_storeu_si128(out, _mm_unpacklo_epi16(ab, cd));
    _mm_storeu_si128(out + 1, _mm_unpackhi_epi16(ab, cd));
    _mm_storeu_si128(out + 2, _mm_unpacklo_epi16(ab2, cd2));
    _mm_storeu_si128(out + 3, _mm_unpackhi_epi16(ab2, cd2));
  }
}

bool has_amx() {
  unsigned a, b, c, d;
  if (!enrobe::kernels_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool tiles = d >> 24 & 1, int8 = d >> 25 & 1, bf16 = d >> 22 & 1;
  // The kernel has to be asked for room to save the tiles in: ARCH_REQ_XCOMP_PERM, XTILEDATA.
  return tiles && int8 && bf16 && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}

}  // namespace

const enrobe::Kernels* enrobe::kernels_amx() {
  static const Kernels table = {"amx",    32,       96,       begin,  end,  dot,
                                nullptr,  nullptr,  quantize, finish, norm, add_int8,
                                attend,
                                attend_train, attend_train_back, gelu_rows, gelu_back, add_norm,
                                add_norm_back, adamw, sum_of_squares,
                                slice,    dot_sliced, dot_sliced_short, slice_two, dot_two,
                                pack_columns, pack_rows, transpose};
  static const bool has = has_amx();
  return has ? &table : nullptr;
}
