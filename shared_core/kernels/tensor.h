// Maths on single values that the CPU and the GPU kernels on whole tensors share (tensor_cpu.cpp, tensor.cu): packing
// of spikes, batch norm, which value of a pooling window is its maximum.
#pragma once
#include "config.h"
#include "half.h"

namespace memext {

// Kinds of packed values, coding.py. In the order of their size.
enum Kind : int { kBits = 0, kNibble = 1, kInt8 = 2 };

// ---- a * b + c, rounded once ------------------------------------------------------------------------------------

#if defined(__CUDACC__)
MX_HD float fused(float a, float b, float c) { return ::fmaf(a, b, c); }
MX_HD double fused(double a, double b, double c) { return ::fma(a, b, c); }
#elif defined(__FMA__) || defined(__ARM_FEATURE_FMA)
MX_HD float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
MX_HD double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
#else
// Without the instruction: the product is exact in double; the sum is rounded to odd there (its last bit says that
// something was cut off), so that rounding it again to float does no harm. Compiles to vector code.
MX_HD float fused(float a, float b, float c) {
  const double product = (double)a * (double)b, sum = product + (double)c;
  const double back = sum - product;
  const double lost = (product - (sum - back)) + ((double)c - back);
  const u64 bits = bit_cast<u64>(sum);
  const u64 outwards = (lost > 0) == (sum > 0) ? 1 : ~0ull;  // one step away from zero, or one towards it
  // lost is NaN where the sum is infinite or NaN: neither larger nor smaller than 0
  const u64 odd = (lost > 0) | (lost < 0) ? ((bits & 1) ? bits : bits + outwards) : bits;
  return (float)bit_cast<double>(odd);
}
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
#endif

// ---- packed values ----------------------------------------------------------------------------------------------

// k with value = k * scale, 0 where there is none in [low, high]; `fits` then fails. inverse = 1 / scale.
template <class R>
MX_HD i32 level_of(R value, R inverse, R low, R high) {
  const R wanted = value * inverse;
  const R above = wanted > low ? wanted : low;  // NaN becomes low
  return (i32)(above < high ? above : high);
}

// Is k * scale the value, bit for bit? -0.0 is not.
MX_HD bool fits(float value, i32 k, float scale) { return bit_cast<u32>(value) == bit_cast<u32>((float)k * scale); }
MX_HD bool fits(double value, i32 k, double scale) { return bit_cast<u64>(value) == bit_cast<u64>((double)k * scale); }

// ---- batch norm -------------------------------------------------------------------------------------------------

// What the backward of one channel needs. g: mean of the gradient, slope: how it follows y; both 0 in eval mode.
template <class R>
struct NormFactors { R mean, scale, g, slope; };

// sum_g: of g, dot: of g * (y - mean). count: values a channel; 0: eval mode.
template <class R>
MX_HD NormFactors<R> norm_factors(double sum_g, double dot, double mean, double invstd, double weight, double count) {
  if (count == 0) return {R(mean), R(invstd * weight), R(0), R(0)};
  return {R(mean), R(invstd * weight), R(sum_g / count), R(dot * invstd * invstd / count)};
}

template <class R>
MX_HD R norm_grad(R g, R y, const NormFactors<R>& f) { return ((g - f.g) - (y - f.mean) * f.slope) * f.scale; }

// ---- pooling windows --------------------------------------------------------------------------------------------

// Geometry of a 2-d pooling without dilation, by dimension (0: height, 1: width), and strides in elements of the input
// (whose bits are packed in memory order) and of the output's gradient: batch, channel, height, width. Padding is at
// most half a window, so every window has a value inside.
struct Pool {
  i64 batch, channels, in[2], out[2], kernel[2], stride[2], padding[2];
  i64 in_stride[4], out_stride[4];
};

// First position of window `o` inside the input, and the end of it, in dimension d.
MX_HD i64 window_start(const Pool& p, int d, i64 o) {
  const i64 first = o * p.stride[d] - p.padding[d];
  return first > 0 ? first : 0;
}
MX_HD i64 window_end(const Pool& p, int d, i64 o) {
  const i64 end = o * p.stride[d] - p.padding[d] + p.kernel[d];
  return end < p.in[d] ? end : p.in[d];
}

MX_HD bool bit_at(const unsigned char* bits, i64 i) { return (bits[i >> 3] >> (i & 7)) & 1; }

// Where the gradient of output (oh, ow) goes, as an offset from the plane's first element: to the first spike of the
// window, to its first value if there is none.
MX_HD i64 first_maximum(const Pool& p, const unsigned char* bits, i64 plane, i64 oh, i64 ow) {
  const i64 h0 = window_start(p, 0, oh), h1 = window_end(p, 0, oh);
  const i64 w0 = window_start(p, 1, ow), w1 = window_end(p, 1, ow);
  for (i64 h = h0; h < h1; h++)
    for (i64 w = w0; w < w1; w++) {
      const i64 at = h * p.in_stride[2] + w * p.in_stride[3];
      if (bit_at(bits, plane + at)) return at;
    }
  return h0 * p.in_stride[2] + w0 * p.in_stride[3];
}

}  // namespace memext
