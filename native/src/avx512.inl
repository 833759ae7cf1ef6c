// What the two tables for AVX-512 share.
namespace {
// 24 of 32 registers are sums; no other shape has so few loads for them.
constexpr int kRows = 6, kVectors = 4;
}  // namespace
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the undefined lanes of its own intrinsics for a mistake.
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include "kernels.inl"
