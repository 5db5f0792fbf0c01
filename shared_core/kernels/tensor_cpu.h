// What the CPU kernels on whole tensors share: stored types and their arithmetic, and how loops are written so that the
// compiler turns them into vector code.
#pragma once
#include "call.h"
#include "tensor.h"

namespace {
using namespace memext;
using u8 = unsigned char;
using u16 = unsigned short;

#define MX_ROW __attribute__((noinline))
#if defined(__clang__)
#define MX_EACH _Pragma("clang loop vectorize(assume_safety)")
#else
#define MX_EACH _Pragma("GCC ivdep")
#endif

// Calls f with a value of the stored type: float, double, Float16 or BFloat16.
template <class F>
auto with_type(int type, F f) {
  switch (type) {
    case kFloat32: return f(float{});
    case kFloat64: return f(double{});
    case kFloat16: return f(Float16{});
    default: return f(BFloat16{});
  }
}

template <class S> struct Wide { using type = float; };
template <> struct Wide<double> { using type = double; };
template <class S> using R_of = typename Wide<S>::type;  // arithmetic of a stored type

template <int kBytes> struct Unsigned;
template <> struct Unsigned<2> { using type = u16; };
template <> struct Unsigned<4> { using type = u32; };
template <> struct Unsigned<8> { using type = u64; };
template <class S> using U_of = typename Unsigned<sizeof(S)>::type;  // its bits

template <class S>
S stored(double value) {
  S s;
  narrow(R_of<S>(value), s);
  return s;
}

}  // namespace
