// Sixteen floats at once, in the compilers' vector types: one source for every instruction set.
#pragma once

#include <stddef.h>
#include <stdint.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define ENROBE_INLINE static inline __attribute__((always_inline))

namespace {

typedef float V __attribute__((vector_size(64)));
typedef int32_t I __attribute__((vector_size(64)));
typedef uint8_t B __attribute__((vector_size(16)));
typedef int8_t S __attribute__((vector_size(16)));

ENROBE_INLINE V load(const float* p) {
  V v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
ENROBE_INLINE void store(float* p, V v) { __builtin_memcpy(p, &v, sizeof v); }
ENROBE_INLINE V splat(float x) { return V{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
ENROBE_INLINE I splat(int32_t x) { return I{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
ENROBE_INLINE V maximum(V a, V b) { return a > b ? a : b; }
ENROBE_INLINE V minimum(V a, V b) { return a < b ? a : b; }

// a * b + c, rounded once where the processor can.
ENROBE_INLINE V fma(V a, V b, V c) {
#if defined(__AVX512F__)
  return (V)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
  struct Halves {
    __m256 low, high;
  };
  Halves x, y, z;
  __builtin_memcpy(&x, &a, sizeof a);
  __builtin_memcpy(&y, &b, sizeof b);
  __builtin_memcpy(&z, &c, sizeof c);
  z.low = _mm256_fmadd_ps(x.low, y.low, z.low);
  z.high = _mm256_fmadd_ps(x.high, y.high, z.high);
  __builtin_memcpy(&c, &z, sizeof c);
  return c;
#else
  return a * b + c;
#endif
}

// The lanes below `count`.
ENROBE_INLINE I first(size_t count) {
  const I lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return lanes < splat((int32_t)count);
}

ENROBE_INLINE float sum(V v) {
  float x[16];
  store(x, v);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; ++i) x[i] += x[i + width];
  return x[0];
}
ENROBE_INLINE float largest(V v) {
  float x[16];
  store(x, v);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; ++i) x[i] = x[i] > x[i + width] ? x[i] : x[i + width];
  return x[0];
}

// To the nearest whole number, halves to the even side, of numbers below 2^22.
constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23: adding it leaves no room for a fraction
constexpr int32_t kRounderBits = 0x4B400000;
ENROBE_INLINE I nearest(V v) {
  const V moved = v + splat(kRounder);
  I bits;
  __builtin_memcpy(&bits, &moved, sizeof bits);
  return bits - splat(kRounderBits);
}

// e^x for x <= 0, to a unit in the last place or two: 2^n times a polynomial on +-log(2)/2.
ENROBE_INLINE V exponential(V x) {
  x = maximum(x, splat(-87.0f));
  const I n = nearest(x * splat(1.44269504f));
  const V whole = __builtin_convertvector(n, V);
  // log(2) in two parts, the first of few digits, so that its products are exact.
  V r = fma(whole, splat(-0.693145752f), x);
  r = fma(whole, splat(-1.42860677e-6f), r);
  // Taylor's series; on this range its 8th term is below float32's last digit.
  V p = splat(1.0f / 5040);
  p = fma(p, r, splat(1.0f / 720));
  p = fma(p, r, splat(1.0f / 120));
  p = fma(p, r, splat(1.0f / 24));
  p = fma(p, r, splat(1.0f / 6));
  p = fma(p, r, splat(0.5f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
  const I bits = (n + splat(127)) << 23;
  V power;
  __builtin_memcpy(&power, &bits, sizeof bits);
  return p * power;
}

// x * 0.5 * (1 + erf(x / sqrt(2))); erf as a ratio of two polynomials with Eigen's coefficients.
ENROBE_INLINE V gelu(V x) {
  const V z = minimum(maximum(x * splat(0.707106781f), splat(-3.8325067f)), splat(3.8325067f));
  const V s = z * z;
  V p = splat(-2.72614225801306e-10f);
  p = fma(p, s, splat(2.77068142495902e-08f));
  p = fma(p, s, splat(-2.10102402082508e-06f));
  p = fma(p, s, splat(-5.69250639462346e-05f));
  p = fma(p, s, splat(-7.34990630326855e-04f));
  p = fma(p, s, splat(-2.95459980854025e-03f));
  p = fma(p, s, splat(-1.60960333262415e-02f));
  V q = splat(-1.45660718464996e-05f);
  q = fma(q, s, splat(-2.13374055278905e-04f));
  q = fma(q, s, splat(-1.68282697438203e-03f));
  q = fma(q, s, splat(-7.37332916720468e-03f));
  q = fma(q, s, splat(-1.42647390514189e-02f));
  const V half = x * splat(0.5f);
  return fma(half, z * p / q, half);
}

}  // namespace
