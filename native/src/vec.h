// Sixteen floats at once, in the compilers' vector types: one source for every instruction set.
#pragma once

#include <stddef.h>
#include <stdint.h>
#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#define ENROBE_INLINE static inline __attribute__((always_inline))

namespace {

typedef float F4 __attribute__((vector_size(16)));
typedef float F8 __attribute__((vector_size(32)));
typedef float F16 __attribute__((vector_size(64)));
typedef int32_t I4 __attribute__((vector_size(16)));
typedef int32_t I8 __attribute__((vector_size(32)));
typedef int32_t I16 __attribute__((vector_size(64)));
typedef uint32_t U4 __attribute__((vector_size(16)));
typedef uint32_t U8 __attribute__((vector_size(32)));
typedef uint32_t U16 __attribute__((vector_size(64)));

// Two vectors as one of twice as many lanes. A vector type wider than the processor's would do, too, but
// GCC keeps such ones in memory.
template <typename H>
struct Pair {
  H low, high;
};

#define ENROBE_PAIRED(sign)                                               \
  template <typename H>                                                   \
  ENROBE_INLINE auto operator sign(Pair<H> a, Pair<H> b) {                \
    return Pair<decltype(a.low sign b.low)>{a.low sign b.low, a.high sign b.high}; \
  }
ENROBE_PAIRED(+)
ENROBE_PAIRED(-)
ENROBE_PAIRED(*)
ENROBE_PAIRED(/)
ENROBE_PAIRED(<)
ENROBE_PAIRED(>)
ENROBE_PAIRED(^)
ENROBE_PAIRED(&)
ENROBE_PAIRED(|)
#undef ENROBE_PAIRED
template <typename H>
ENROBE_INLINE Pair<H> operator-(Pair<H> a) {
  return {-a.low, -a.high};
}
template <typename H>
ENROBE_INLINE Pair<H> operator<<(Pair<H> a, int by) {
  return {a.low << by, a.high << by};
}
template <typename H>
ENROBE_INLINE Pair<H> operator>>(Pair<H> a, int by) {
  return {a.low >> by, a.high >> by};
}
template <typename H>
ENROBE_INLINE Pair<H>& operator+=(Pair<H>& a, Pair<H> b) {
  return a = a + b;
}
template <typename H>
ENROBE_INLINE Pair<H>& operator*=(Pair<H>& a, Pair<H> b) {
  return a = a * b;
}

// N: the floats of one register; W: as many whole numbers.
#if defined(__AVX512F__)
typedef F16 N, V;
typedef I16 W;
typedef I16 I;
typedef U16 U;
#elif defined(__AVX2__)
typedef F8 N;
typedef I8 W;
typedef Pair<F8> V;
typedef Pair<I8> I;
typedef Pair<U8> U;
#else
typedef F4 N;
typedef I4 W;
typedef Pair<Pair<F4>> V;
typedef Pair<Pair<I4>> I;
typedef Pair<Pair<U4>> U;
#endif
constexpr int kLanes = sizeof(N) / sizeof(float);

// What has to be done half by half: a pair that is copied as a whole goes through memory.
template <typename T>
struct Of {
  template <typename X>
  ENROBE_INLINE T filled(X x) {
    return x - T{};  // the scalar goes into every lane
  }
  ENROBE_INLINE T load(const void* p) {
    T x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
  }
  ENROBE_INLINE void store(void* p, T x) { __builtin_memcpy(p, &x, sizeof x); }
};
template <typename H>
struct Of<Pair<H>> {
  template <typename X>
  ENROBE_INLINE Pair<H> filled(X x) {
    return {Of<H>::filled(x), Of<H>::filled(x)};
  }
  ENROBE_INLINE Pair<H> load(const void* p) {
    const char* bytes = static_cast<const char*>(p);
    return {Of<H>::load(bytes), Of<H>::load(bytes + sizeof(H))};
  }
  ENROBE_INLINE void store(void* p, Pair<H> x) {
    char* bytes = static_cast<char*>(p);
    Of<H>::store(bytes, x.low);
    Of<H>::store(bytes + sizeof(H), x.high);
  }
};
ENROBE_INLINE V load(const float* p) { return Of<V>::load(p); }
ENROBE_INLINE void store(float* p, V v) { Of<V>::store(p, v); }
ENROBE_INLINE V splat(float x) { return Of<V>::filled(x); }
ENROBE_INLINE I splat(int32_t x) { return Of<I>::filled(x); }
ENROBE_INLINE U splat_u(uint32_t x) { return Of<U>::filled(x); }
// The same bits as another type of as many lanes.
template <typename To, typename From>
struct Bits {
  ENROBE_INLINE To of(From x) { return (To)x; }
};
template <typename To, typename From>
struct Bits<Pair<To>, Pair<From>> {
  ENROBE_INLINE Pair<To> of(Pair<From> x) {
    return {Bits<To, From>::of(x.low), Bits<To, From>::of(x.high)};
  }
};

// a where the mask is, else b.
template <typename M, typename T>
ENROBE_INLINE T pick(M mask, T a, T b) {
  return mask ? a : b;
}
template <typename M, typename H>
ENROBE_INLINE Pair<H> pick(Pair<M> mask, Pair<H> a, Pair<H> b) {
  return {pick(mask.low, a.low, b.low), pick(mask.high, a.high, b.high)};
}
// The second where one is no number.
#if defined(__AVX512F__)
// Of a comparison with a constant GCC 12 makes three instructions.
ENROBE_INLINE V maximum(V a, V b) { return (V)_mm512_max_ps((__m512)a, (__m512)b); }
ENROBE_INLINE V minimum(V a, V b) { return (V)_mm512_min_ps((__m512)a, (__m512)b); }
#else
ENROBE_INLINE V maximum(V a, V b) { return pick(a > b, a, b); }
ENROBE_INLINE V minimum(V a, V b) { return pick(a < b, a, b); }
#endif

// Whole numbers as floats.
ENROBE_INLINE F4 floats(I4 x) { return __builtin_convertvector(x, F4); }
ENROBE_INLINE F8 floats(I8 x) { return __builtin_convertvector(x, F8); }
ENROBE_INLINE F16 floats(I16 x) { return __builtin_convertvector(x, F16); }
template <typename H>
ENROBE_INLINE auto floats(Pair<H> x) {
  return Pair<decltype(floats(x.low))>{floats(x.low), floats(x.high)};
}

// Sixteen signed bytes as whole numbers; sixteen whole numbers as bytes, what is above cut off.
template <typename T>
struct Bytes {
  static constexpr int lanes = sizeof(T) / 4;
  typedef int8_t Narrow __attribute__((vector_size(lanes)));
  ENROBE_INLINE T read(const int8_t* p) {
    Narrow bytes;
    __builtin_memcpy(&bytes, p, sizeof bytes);
    return __builtin_convertvector(bytes, T);
  }
  ENROBE_INLINE void write(T numbers, void* p) {
    const Narrow bytes = __builtin_convertvector(numbers, Narrow);
    __builtin_memcpy(p, &bytes, sizeof bytes);
  }
};
template <typename H>
struct Bytes<Pair<H>> {
  ENROBE_INLINE Pair<H> read(const int8_t* p) {
    return {Bytes<H>::read(p), Bytes<H>::read(p + sizeof(H) / 4)};
  }
  ENROBE_INLINE void write(Pair<H> numbers, void* p) {
    Bytes<H>::write(numbers.low, p);
    Bytes<H>::write(numbers.high, static_cast<char*>(p) + sizeof(H) / 4);
  }
};

// a * b + c, rounded once where the processor can.
ENROBE_INLINE F4 fma(F4 a, F4 b, F4 c) { return a * b + c; }
#if defined(__FMA__)
ENROBE_INLINE F8 fma(F8 a, F8 b, F8 c) {
  return (F8)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
}
#endif
#if defined(__AVX512F__)
ENROBE_INLINE F16 fma(F16 a, F16 b, F16 c) {
  return (F16)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
}
#endif
template <typename H>
ENROBE_INLINE Pair<H> fma(Pair<H> a, Pair<H> b, Pair<H> c) {
  return {fma(a.low, b.low, c.low), fma(a.high, b.high, c.high)};
}

// sum + a * b of each half of 32 bits, which are signed numbers of 16.
#if defined(__AVX512F__)
ENROBE_INLINE I16 fma_halves(I16 a, I16 b, I16 sum) {
  // Not the intrinsic: GCC 12 keeps its sums in memory.
  __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
  return sum;
}
#elif defined(ENROBE_AVX_VNNI)
ENROBE_INLINE I8 fma_halves(I8 a, I8 b, I8 sum) {
  __asm__("%{vex%} vpdpwssd %2, %1, %0" : "+x"(sum) : "x"(a), "x"(b));
  return sum;
}
#elif defined(__AVX2__)
ENROBE_INLINE I8 fma_halves(I8 a, I8 b, I8 sum) {
  return sum + (I8)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}
#elif defined(__ARM_NEON)
ENROBE_INLINE I4 fma_halves(I4 a, I4 b, I4 sum) {
  const int32x4_t left = (int32x4_t)a, right = (int32x4_t)b;
  const int32x4_t half = vmlal_s16((int32x4_t)sum, vmovn_s32(left), vmovn_s32(right));
  return (I4)vmlal_s16(half, vshrn_n_s32(left, 16), vshrn_n_s32(right, 16));
}
#else
ENROBE_INLINE I4 fma_halves(I4 a, I4 b, I4 sum) {
  return sum + ((a << 16) >> 16) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
}
#endif

ENROBE_INLINE F4 square_root(F4 x) {
  for (int i = 0; i < 4; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
}
#if defined(__AVX2__)
ENROBE_INLINE F8 square_root(F8 x) { return (F8)_mm256_sqrt_ps((__m256)x); }
#endif
#if defined(__AVX512F__)
ENROBE_INLINE F16 square_root(F16 x) { return (F16)_mm512_sqrt_ps((__m512)x); }
#endif
template <typename H>
ENROBE_INLINE Pair<H> square_root(Pair<H> x) {
  return {square_root(x.low), square_root(x.high)};
}

// The lanes below `count`.
ENROBE_INLINE auto first(size_t count) {
  alignas(64) static const int32_t lanes[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return Of<I>::load(lanes) < splat((int32_t)count);
}

ENROBE_INLINE float sum(V v) {
#if defined(__AVX512F__)
  // In the order of the loop below.
  return _mm512_reduce_add_ps((__m512)v);
#else
  float x[16];
  store(x, v);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; ++i) x[i] += x[i + width];
  return x[0];
#endif
}
ENROBE_INLINE float largest(V v) {
#if defined(__AVX512F__)
  return _mm512_reduce_max_ps((__m512)v);
#else
  float x[16];
  store(x, v);
  for (int width = 8; width; width /= 2)
    for (int i = 0; i < width; ++i) x[i] = x[i] > x[i + width] ? x[i] : x[i + width];
  return x[0];
#endif
}

// Adding it to a number below 2^22 leaves no room for a fraction: what is taken off again is the nearest
// whole number, halves to the even side, and the sum's last bits are that number's, as its own are zeros.
constexpr float kRounder = 12582912.0f;  // 1.5 * 2^23

// e^x for x <= 0, to a unit in the last place: 2^n times a polynomial on +-log(2)/2. Below -40, where
// nothing is left beside 1, it is e^-40: the products of smaller ones would be below what a float holds
// in full, and such cost a hundred times as much.
ENROBE_INLINE V exponential(V x) {
  x = maximum(x, splat(-40.0f));
  const V rounded = fma(x, splat(1.44269504f), splat(kRounder));
  const V n = rounded - splat(kRounder);
  // log(2) in two parts, the first of few digits, so that its products are exact.
  V r = fma(n, splat(-0.693145752f), x);
  r = fma(n, splat(-1.42860677e-6f), r);
  // Remez's polynomial for the relative error, which is 1.9e-9.
  V p = splat(0.00138367945f);
  p = fma(p, r, splat(0.00837485678f));
  p = fma(p, r, splat(0.0416682288f));
  p = fma(p, r, splat(0.166664198f));
  p = fma(p, r, splat(0.499999911f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
  // n, in the last bits of the sum, goes to the exponent.
  return Bits<V, U>::of(Bits<U, V>::of(p) + (Bits<U, V>::of(rounded) << 23));
}

// erf(x / sqrt(2)) as a ratio of two polynomials with Eigen's coefficients.
ENROBE_INLINE V erf_of_root(V x) {
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
  return z * p / q;
}

// x * 0.5 * (1 + erf(x / sqrt(2)))
#if defined(__AVX512F__)
// 0.5 * erf(x / sqrt(2)) near n / 3 as a polynomial of 3x - n, row by row its powers: through Chebyshev's
// nodes, which leaves 1.3e-7. At 5.16 and beyond it is 0.5.
alignas(64) static const float kErfPieces[5][16] = {
    {0.0f, 0.130558655f, 0.247507468f, 0.341344744f, 0.40878877f, 0.452209651f, 0.477249861f,
     0.490184665f, 0.496169627f, 0.498650104f, 0.499570936f, 0.499877125f, 0.49996832f, 0.499992669f,
     0.49999848f, 0.499999702f},
    {0.132979959f, 0.125793815f, 0.106482558f, 0.0806572288f, 0.0546705164f, 0.0331594422f,
     0.0179971699f, 0.00874063093f, 0.00379857933f, 0.00147719402f, 0.000514031213f, 0.000160056981f,
     4.4595392e-05f, 1.11181507e-05f, 2.48026936e-06f, 4.27724046e-07f},
    {0.0f, -0.00698851328f, -0.0118313227f, -0.0134427641f, -0.0121488916f, -0.00921087712f,
     -0.00599903241f, -0.00339915603f, -0.00168830052f, -0.000738638453f, -0.000285602f,
     -9.78288954e-05f, -2.97378356e-05f, -8.03275452e-06f, -1.93010328e-06f, -5.27369536e-07f},
    {-0.00244982284f, -0.00206123036f, -0.00109367853f, -5.15891361e-06f, 0.000779534981f,
     0.00108532317f, 0.000996935531f, 0.000719376607f, 0.000431213499f, 0.00022027854f, 9.72484777e-05f,
     3.74248448e-05f, 1.26263767e-05f, 3.74949036e-06f, 9.82893312e-07f, 1.0766629e-06f},
    {0.0f, 0.000185899611f, 0.000278601772f, 0.000248078111f, 0.00013743632f, 1.94497516e-05f,
     -5.49690267e-05f, -7.65781515e-05f, -6.4165506e-05f, -4.10826106e-05f, -2.15333821e-05f,
     -9.52545543e-06f, -3.61524485e-06f, -1.18917978e-06f, -3.41288086e-07f, 1.59079241e-06f}};
ENROBE_INLINE V gelu(V x) {
  const V size = maximum(x, -x);
  const V within = minimum(size, splat(5.16f)) * splat(3.0f);
  const V rounded = within + splat(kRounder);
  const V apart = within - (rounded - splat(kRounder));
  // Of the sum's bits the last four are looked at, which are n.
  const __m512i n = (__m512i)rounded;
  const auto piece = [&](int power) {
    return (V)_mm512_permutexvar_ps(n, (__m512)load(kErfPieces[power]));
  };
  V p = fma(piece(4), apart, piece(3));
  p = fma(p, apart, piece(2));
  p = fma(p, apart, piece(1));
  p = fma(p, apart, piece(0));
  return fma(size, p, x * splat(0.5f));
}
#else
ENROBE_INLINE V gelu(V x) {
  const V half = x * splat(0.5f);
  return fma(half, erf_of_root(x), half);
}
#endif
// 0.5 * (1 + erf(x / sqrt(2)))
ENROBE_INLINE V normal(V x) { return fma(splat(0.5f), erf_of_root(x), splat(0.5f)); }

}  // namespace
