// What the two tables for AVX-512 share.
namespace {
// 24 of 32 registers are sums; no other shape has so few loads for them.
constexpr int kRows = 6, kVectors = 4;
}  // namespace
#include "kernels.inl"
