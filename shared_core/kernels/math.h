// exp, log, pow, tanh, erf, sigmoid for float: branch-free, so that a loop over them is vectorised. Nested ?: are few:
// gcc 12 gives up where more than about four values meet.
//
// gcc calls libm's expf and friends one value at a time unless -ffast-math allows other results; CUDA's differ from
// libm's. These are adds, multiplies and selects only: the same bits on every CPU instruction set and on the GPU
// (compile with -ffp-contract=off, NVRTC with --fmad=false; no fused multiply-add is written, as old CPUs lack it).
// Error at most 2 ulp over the whole range, denormal results included (exp2_decay and sinpi_reduced, parts of
// surrogates: 2.5). exp overflows to inf and underflows to 0, log is -inf at 0 and NaN below, NaN in gives NaN out.
// The polynomials are weighted minimax fits of our own (Lawson's algorithm in 40 digits, coefficients rounded to float
// one after the other and the rest fitted again). double calls the platform's functions: it is the checking precision.
#pragma once
#include "config.h"

namespace memext {

constexpr double kPi = 3.14159265358979323846;
constexpr double kInvSqrtPi = 0.56418958354775628695;
constexpr double kLog2e = 1.44269504088896340736;

MX_HD float fabs(float x) { return bit_cast<float>(bit_cast<u32>(x) & 0x7fffffffu); }
MX_HD double fabs(double x) { return bit_cast<double>(bit_cast<u64>(x) & 0x7fffffffffffffffull); }

// |x| with the sign of s.
MX_HD float copysign(float x, float s) {
  return bit_cast<float>((bit_cast<u32>(x) & 0x7fffffffu) | (bit_cast<u32>(s) & 0x80000000u));
}

namespace detail {

constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: x + kRound has no fraction bits left, for |x| < 2^22

MX_HD float power_of_two(u32 n) { return bit_cast<float>((n + 127u) << 23); }  // n in [-126, 127], modulo 2^32

// x * 2^n, n in [-252, 254]: in two steps, so that a denormal result is rounded once. n is given as float(n) + kRound.
MX_HD float scale(float x, float rounded) {
  const i32 n = bit_cast<i32>(rounded) - bit_cast<i32>(kRound);
  const i32 half = n >> 1;
  return x * power_of_two(u32(half)) * power_of_two(u32(n - half));
}

// x = n ln2 + r, |r| <= ln2/2. ln2 in two parts: n * kLn2Hi is exact for |n| < 2^9.
constexpr float kLn2Hi = 0.693145752f;
constexpr float kLn2Lo = 1.42860677e-6f;

// e^x = (1 + result) 2^n, with rounded = float(n) + kRound.
MX_HD float exp_parts(float x, float& rounded) {
  x = x < -104.0f ? -104.0f : x;  // e^-104 is below half the smallest denormal, e^89 above the largest float;
  x = x > 89.0f ? 89.0f : x;      // comparisons this way round keep NaN
  rounded = x * float(kLog2e) + kRound;
  const float n = rounded - kRound;
  const float exact = x - n * kLn2Hi, low = n * kLn2Lo;
  const float r = exact - low;
  float q = 1.386479e-03f;
  q = q * r + 8.3664e-03f;
  q = q * r + 4.16675e-02f;
  q = q * r + 1.6666545e-01f;
  q = q * r + 4.9999997e-01f;
  return exact + (r * r * q - low);
}

// 12 leading bits: the product of two such numbers is exact.
MX_HD float leading(float x) { return bit_cast<float>(bit_cast<u32>(x) & 0xfffff000u); }

// x = (1 + f) 2^e, sqrt(1/2) <= 1 + f < sqrt(2); x positive and finite, or the result means nothing.
MX_HD float split(float x, float& e) {
  constexpr u32 kSqrtHalf = 0x3f3504f3u;
  const bool tiny = x < 1.17549435e-38f;
  const u32 bits = bit_cast<u32>(tiny ? x * 8388608.0f : x) - kSqrtHalf;
  e = float(bit_cast<i32>(bits) >> 23) - (tiny ? 23.0f : 0.0f);
  return bit_cast<float>((bits & 0x007fffffu) + kSqrtHalf) - 1.0f;
}

}  // namespace detail

// Nearest integer, ties to even.
MX_HD float rint(float x) {
  const float r = (x + detail::kRound) - detail::kRound;
  return fabs(x) < 4194304.0f ? r : x;
}
MX_HD double rint(double x) { return ::rint(x); }

MX_HD float exp(float x) {
  float rounded;
  const float w = detail::exp_parts(x, rounded);
  return detail::scale(1.0f + w, rounded);
}
MX_HD double exp(double x) { return ::exp(x); }

// 2^x for x <= 0, below 2^-126 flushed to 0: what surrogates decay with, at half the cost of exp. An exponent rounded
// to float costs |x| * 2^-24 of the value in any case; gradients there are small.
MX_HD float exp2_decay(float x) {
  using namespace detail;
  constexpr float kBiased = kRound + 127.0f;  // the low bits of x + kBiased are the exponent field of 2^n
  const float bounded = x < -126.0f ? -126.0f : x;
  const float rounded = bounded + kBiased;
  const float r = bounded - (rounded - kBiased);
  const float r2 = r * r;  // two short chains instead of one long: latency, not the number of operations, bounds this
  const float high = r2 * (1.3272455e-03f * r + 9.671428e-03f) + (5.550704e-02f * r + 2.4022244e-01f);
  const float p = r2 * high + (6.93147e-01f * r + 1.0f);
  const float y = p * bit_cast<float>(bit_cast<u32>(rounded) << 23);
  return x < -126.0f ? 0.0f : y;
}
MX_HD double exp2_decay(double x) { return ::exp2(x); }

MX_HD float log(float x) {
  using namespace detail;
  float e;
  const float f = split(x, e);
  float q = -7.63363e-02f;
  q = q * f + 1.2761965e-01f;
  q = q * f + -1.316042e-01f;
  q = q * f + 1.4201584e-01f;
  q = q * f + -1.6623323e-01f;
  q = q * f + 2.0001243e-01f;
  q = q * f + -2.5000823e-01f;
  q = q * f + 3.333333e-01f;
  const float f2 = f * f;
  const float r = e * kLn2Hi + (f + ((f2 * f * q + e * kLn2Lo) - 0.5f * f2));
  const float inf = bit_cast<float>(0x7f800000u), nan = bit_cast<float>(0x7fc00000u);
  const float not_positive = x == 0.0f ? -inf : nan;
  const float not_finite = x > 0.0f ? x : not_positive;
  return x > 0.0f && x < inf ? r : not_finite;
}
MX_HD double log(double x) { return ::log(x); }

MX_HD float sigmoid(float x) {
  using namespace detail;
  float rounded;
  const float w = exp_parts(-fabs(x), rounded);
  const float h = 1.0f + w;
  const float e = scale(h, rounded), e_lo = scale(w - (h - 1.0f), rounded);  // e^-|x| in two parts
  const float d = 1.0f + e, d_lo = (e - (d - 1.0f)) + e_lo;
  const bool below = x < 0.0f;
  const float y = (below ? e : 1.0f) / d;
  return y + ((below ? e_lo : 0.0f) - y * d_lo) / d;
}
MX_HD double sigmoid(double x) {
  const double e = ::exp(-fabs(x));
  return (x < 0.0 ? e : 1.0) / (1.0 + e);
}

MX_HD float tanh(float x) {
  const float t = x * x;
  float p = -5.897961e-03f;  // tanh(x) = x + x^3 p(x^2) up to 0.6
  p = p * t + 2.0798624e-02f;
  p = p * t + -5.3784717e-02f;
  p = p * t + 1.3331936e-01f;
  p = p * t + -3.33333e-01f;
  const float u = fabs(x);
  const float near = x + x * (t * p), far = 1.0f - 2.0f / (exp(2.0f * u) + 1.0f);
  return copysign(u < 0.6f ? near : far, x);
}
MX_HD double tanh(double x) { return ::tanh(x); }

MX_HD float erf(float x) {
  const float t = x * x;
  float p = -6.0809095e-04f;  // erf(x) = x + x p(x^2) up to 0.9
  p = p * t + 5.0098943e-03f;
  p = p * t + -2.6777273e-02f;
  p = p * t + 1.1282085e-01f;
  p = p * t + -3.7612516e-01f;
  p = p * t + 1.2837915e-01f;
  const float u = fabs(x) > 4.0f ? 4.0f : fabs(x);
  float q = 2.084266e-05f;  // erf(x) = 1 - exp(-q(x)) above; 1 from 3.92 on
  q = q * u + -4.315632e-04f;
  q = q * u + 4.1570985e-03f;
  q = q * u + -2.508286e-02f;
  q = q * u + 1.0822384e-01f;
  q = q * u + 6.3339776e-01f;
  q = q * u + 1.1294899e+00f;
  q = q * u + -1.695054e-04f;
  const float near = x + x * p, far = copysign(1.0f - exp(-q), x);
  return u < 0.9f ? near : far;
}
MX_HD double erf(double x) { return ::erf(x); }

// x^y for x >= 0 and finite y. y log2(x) is carried in two floats: at y log2(x) = 100 one would be 50 ulp off.
MX_HD float pow(float x, float y) {
  using namespace detail;
  // x = (1 + f) 2^e = c (1 + s)/(1 - s) 2^e, c near 1 + f, so that |s| < 0.09; log2((1 + s)/(1 - s)) = kC s + s^3 q(s^2)
  constexpr float kC = 2.88539008f, kCHi = 2.884765625f, kCLo = 6.24456778e-4f;  // 2 / ln2; kCHi has 12 bits
  float e;
  const float f = split(x, e), m = 1.0f + f;
  const float low = m < 0.92f ? 1.0f : 0.0f, high = m > 1.09f ? 1.0f : 0.0f;
  const float c = 1.0f - 0.15625f * low + 0.1875f * high;
  const float c_hi = -0.2451171875f * low + 0.248046875f * high;      // log2(c) in two parts; e + c_hi is exact
  const float c_lo = 4.6896635e-06f * low + -1.1936155e-04f * high;
  const float d = m + c, s = (m - c) / d;
  const float s_hi = leading(s), d_hi = leading(d);
  const float s_lo = (((m - c) - s_hi * d_hi) - s_hi * (m - (d_hi - c))) / d;
  const float t = s * s;
  float q = 4.1645828e-01f;
  q = q * t + 5.770634e-01f;
  q = q * t + 9.617967e-01f;
  const float large = kCHi * s_hi;  // exact
  const float small = kC * s_lo + (kCLo * s_hi + s * t * q) + c_lo;
  const float base = e + c_hi, sum = base + large;
  const float part = sum - base;
  const float rest = ((base - (sum - part)) + (large - part)) + small;  // sum + rest: base + large + small
  const float l_hi = leading(sum + rest), l_lo = (sum - l_hi) + rest;
  const float y_hi = leading(y), y_lo = y - y_hi;
  const float p_hi = y_hi * l_hi;  // exact
  const float p_lo = y_lo * l_hi + y * l_lo;
  const float inf = bit_cast<float>(0x7f800000u), nan = bit_cast<float>(0x7fc00000u);
  const float not_positive = x == 0.0f ? -inf : nan;
  const float end = y * (x > 0.0f ? x : not_positive);  // y log2(x) where x is 0, inf, negative or NaN
  const float p = (x > 0.0f) & (x < inf) ? p_hi + p_lo : end;
  float bounded = p < -152.0f ? -152.0f : p;
  bounded = bounded > 130.0f ? 130.0f : bounded;
  const float rounded = bounded + kRound;
  const float n = rounded - kRound;
  const float r = p == bounded ? (p_hi - n) + p_lo : bounded - n;
  float w = 1.5328523e-04f;
  w = w * r + 1.3390981e-03f;
  w = w * r + 9.618501e-03f;
  w = w * r + 5.5503596e-02f;
  w = w * r + 2.4022648e-01f;
  w = w * r + 6.931472e-01f;
  const float result = scale(1.0f + r * w, rounded);
  return y == 0.0f ? 1.0f : result;
}
MX_HD double pow(double x, double y) { return ::pow(x, y); }

// sin(pi x) for |x| <= 1/2.
MX_HD float sinpi_reduced(float x) {
  const float t = x * x;
  float q = 7.7719346e-02f;
  q = q * t + -5.983314e-01f;
  q = q * t + 2.5500863e+00f;
  q = q * t + -5.167711e+00f;
  const float x_hi = detail::leading(x);
  return x_hi * 3.140625f + ((x - x_hi) * 3.140625f + x * (t * q + 9.6765359e-04f));  // first product is exact
}
MX_HD double sinpi_reduced(double x) { return ::sin(kPi * x); }

// (-1)^k for an integer k.
template <class R>
MX_HD R parity(R k) { return R(1) - R(2) * fabs(k - R(2) * rint(R(0.5) * k)); }

}  // namespace memext
