// What every kernel header needs to compile twice: as C++17 (g++, clang++) and as CUDA C++ (NVRTC, nvcc).
#pragma once

#ifndef __CUDACC_RTC__  // NVRTC has no host headers and needs none
#include <cmath>
#endif

// Always inlined: a call left in the loop over neurons would keep it from being vectorised.
#ifdef __CUDACC__
#define MX_HD __host__ __device__ __forceinline__
#else
#define MX_HD inline __attribute__((always_inline))
#endif

#ifdef __CUDACC_RTC__
#define MX_MEMCPY memcpy
#else
#define MX_MEMCPY __builtin_memcpy
#endif

namespace memext {

using i32 = int;
using u32 = unsigned int;
using i64 = long long;
using u64 = unsigned long long;
static_assert(sizeof(i32) == 4 && sizeof(u32) == 4 && sizeof(i64) == 8 && sizeof(u64) == 8, "integer widths");

// The bits of a value read as another type; a plain register move, also in vectorised code.
template <class To, class From>
MX_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast between types of different size");
  To to;
  MX_MEMCPY(&to, &from, sizeof(To));
  return to;
}

}  // namespace memext
