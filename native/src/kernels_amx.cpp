// AMX (servers from 2023 on): tiles of 16 rows, multiplied in a unit of their own.
// float32 stays with AVX-512: as six products of bfloat16 it is exact enough here, too, but where both
// threads of a core are busy a tile takes so long to load that this was a fifth slower.
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

thread_local size_t configured = 0;  // rows of a block; 0: the tiles are not ours

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

bool has_amx() {
  unsigned a, b, c, d;
  if (!enrobe::kernels_avx512() || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  const bool tiles = d >> 24 & 1, int8 = d >> 25 & 1, bf16 = d >> 22 & 1;
  // The kernel has to be asked for room to save the tiles in: ARCH_REQ_XCOMP_PERM, XTILEDATA.
  return tiles && int8 && bf16 && syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}

}  // namespace

const enrobe::Kernels* enrobe::kernels_amx() {
  static const Kernels table = {"amx",    32,     96,     begin, end,      dot,
                                pack_float, dot_float, quantize, finish, norm, add_int8, attend};
  static const bool has = has_amx();
  return has ? &table : nullptr;
}
