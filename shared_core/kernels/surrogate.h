// Surrogate gradients: what stands in for ds/dh in backward, one struct per kind.
//
//   grad(z, a)    z = h - theta, a = the parameters in the order of shared_core/surrogate.py; returns ds/dh
//
// surrogate.py holds the same table with the Torch formulas, written apart; a test compares ids, names and values.
// Ids are stable: they are stored in calls and caches. A new kind takes the next number, none is ever reused.
//
// Every formula is branch-free, so that a loop over z is vectorised (pass `a` as a local array, or the compiler must
// assume that writing the result changes it), and finite for every finite z. Two of the frameworks' formulas are not:
// snnTorch 1.0.0 sigmoid(25) gives NaN below z = -3.55 (exp overflows, inf / inf), and SpikingJelly 2.0.0
// FakeNumericalGradient gives -inf at z = -0.0. Elsewhere values agree with the frameworks' up to rounding.
#pragma once
#include "math.h"

namespace memext {

// Papers' names for kinds below, no second copy of the formula:
//   rectangle(gamma), SLTT Eq. 5:   1/gamma if |z| < gamma/2      = Rect, alpha = 1/gamma
//   triangle(gamma),  SLTT Eq. 6:   max(0, gamma - |z|)/gamma^2   = PiecewiseQuadratic, alpha = 1/gamma
//   arctan,           EfficientLIF-Net: 1 / (1 + (pi z)^2)        = ATan, alpha = 2

// a[0] s (1 - s), s = sigmoid(a[0] z).  SpikingJelly Sigmoid, snnTorch sigmoid.
struct Sigmoid {
  static constexpr int kParams = 1;
  template <class R>
  MX_HD static R grad(R z, const R* a) {
    const R e = exp2_decay(-(R(kLog2e) * a[0]) * fabs(z));  // s (1 - s) is even in z: e^(-a |z|) never overflows
    const R d = R(1) + e;
    return a[0] * e / (d * d);
  }
};

// a/2 / (1 + (pi/2 a z)^2).  SpikingJelly ATan, snnTorch atan.
struct ATan {
  static constexpr int kParams = 1;
  template <class R>
  MX_HD static R grad(R z, const R* a) {
    const R half = R(0.5) * a[0];
    const R u = R(kPi) * half * z;
    return half / (R(1) + u * u);
  }
};

// max(0, a - a^2 |z|).  SpikingJelly PiecewiseQuadratic.
struct PiecewiseQuadratic {
  static constexpr int kParams = 1;
  template <class R>
  MX_HD static R grad(R z, const R* a) {
    const R g = a[0] - a[0] * a[0] * fabs(z);
    return g < R(0) ? R(0) : g;  // this way round a NaN stays a NaN
  }
};

// a/2 exp(-a |z|).  SpikingJelly PiecewiseExp.
struct PiecewiseExp {
  static constexpr int kParams = 1;
  template <class R>
  MX_HD static R grad(R z, const R* a) { return R(0.5) * a[0] * exp2_decay(-(R(kLog2e) * a[0]) * fabs(z)); }
};

// a/2 / (1 + a |z|)^2.  SpikingJelly SoftSign.
struct SoftSign {
  static constexpr int kParams = 1;
  template <class R>
  MX_HD static R grad(R z, const R* a) {
    const R d = R(1) + a[0] * fabs(z);
    return R(0.5) * a[0] / (d * d);
  }
};

// a / (1 + |z|)^2.  SpikingJelly SuperSpike.
struct SuperSpike {
  static constexpr int kParams = 1;
  template <class R>
  MX_HD static R grad(R z, const R* a) {
    const R d = R(1) + fabs(z);
    return a[0] / (d * d);
  }
};

// 1 / (1/a + |z|).  SpikingJelly NonzeroSignLogAbs.
struct NonzeroSignLogAbs {
  static constexpr int kParams = 1;
  template <class R>
  MX_HD static R grad(R z, const R* a) { return R(1) / (R(1) / a[0] + fabs(z)); }
};

// a/sqrt(pi) exp(-(a z)^2).  SpikingJelly Erf.
struct Erf {
  static constexpr int kParams = 1;
  template <class R>
  MX_HD static R grad(R z, const R* a) {
    const R u = a[0] * z;
    return a[0] * R(kInvSqrtPi) * exp2_decay(-R(kLog2e) * (u * u));
  }
};

// 1/(2w) if |z| < w, else c; a = {w, c}.  SpikingJelly PiecewiseLeakyReLU.
struct PiecewiseLeakyReLU {
  static constexpr int kParams = 2;
  template <class R>
  MX_HD static R grad(R z, const R* a) {
    const R inside = R(0.5) / a[0];
    const R outside = a[1];
    return fabs(z) < a[0] ? inside : outside;
  }
};

// 4/T sum_{k=1}^{n-1} cos((2k - 1) 2 pi z / T); a = {n, T}.  SpikingJelly SquarewaveFourierSeries.
// The sum over k is sin(2m y) / (2 sin y) with m = n - 1, y = 2 pi z / T. With y = pi (j + u), j the nearest integer,
// it is (-1)^j sin(2 pi m u) / (2 sin(pi u)), |u| <= 1/2: no loop, and no loss of digits near the poles of 1/sin.
struct SquarewaveFourierSeries {
  static constexpr int kParams = 2;
  template <class R>
  MX_HD static R grad(R z, const R* a) {
    const R m = a[0] - R(1);
    const R unbounded = R(2) * (z / a[1]);
    const R capped = unbounded > R(1e30) ? R(1e30) : unbounded;  // even integers from 2^54 on, in either precision
    const R half_turns = capped < R(-1e30) ? R(-1e30) : capped;
    const R j = rint(half_turns);
    const R u = half_turns - j;
    const R w = m * u;                          // sin(2 pi m u): m u in turns
    const R k = rint(R(2) * w);
    const R numerator = sinpi_reduced(R(2) * w - k) * parity(k);
    const R denominator = R(2) * sinpi_reduced(u);
    const R sum = fabs(u) < R(1e-15) ? m : numerator / denominator;  // 0 / 0, and no digits left in denormals
    return R(4) / a[1] * parity(j) * sum;
  }
};

// alpha s (1 - s), s = sigmoid(alpha z), if z < 0; beta / (z + 1) otherwise; a = {alpha, beta}.  SpikingJelly S2NN.
struct S2NN {
  static constexpr int kParams = 2;
  template <class R>
  MX_HD static R grad(R z, const R* a) {
    const R below = Sigmoid::grad(z, a);
    const R above = a[1] / (fabs(z) + R(1));
    return z < R(0) ? below : above;
  }
};

// (1 + 2/(a - 1) |z|)^-a, a > 1.  SpikingJelly QPseudoSpike.
struct QPseudoSpike {
  static constexpr int kParams = 1;
  template <class R>
  MX_HD static R grad(R z, const R* a) {
    const R slope = R(2) / (a[0] - R(1));
    const R wide = slope * fabs(z), u = wide > R(1e30) ? R(1e30) : wide;
    const R y = R(1) + u;
    const R log1p = log(y) + (u - (y - R(1))) / y;  // what rounding y lost: a times it would be lost from the power
    return exp2_decay(-(R(kLog2e) * a[0]) * log1p);
  }
};

// k if z >= 0, else leak; a = {leak, k}.  SpikingJelly LeakyKReLU.
struct LeakyKReLU {
  static constexpr int kParams = 2;
  template <class R>
  MX_HD static R grad(R z, const R* a) {
    const R below = a[0], above = a[1];
    return z >= R(0) ? above : below;
  }
};

// min(1/|z|, a).  SpikingJelly FakeNumericalGradient.
struct FakeNumericalGradient {
  static constexpr int kParams = 1;
  template <class R>
  MX_HD static R grad(R z, const R* a) {
    const R g = R(1) / fabs(z);  // inf at 0: a is smaller
    const R most = a[0];
    return g > most ? most : g;
  }
};

// a if z <= 0, 1 up to z = 1, 1/z above.  SpikingJelly LogTailedReLU.
struct LogTailedReLU {
  static constexpr int kParams = 1;
  template <class R>
  MX_HD static R grad(R z, const R* a) {
    const R tail = R(1) / (z > R(1) ? z : R(1));
    const R below = a[0];
    return z <= R(0) ? below : tail;
  }
};

// 1.  SpikingJelly DeterministicPass, snnTorch straight_through_estimator.
struct StraightThrough {
  static constexpr int kParams = 0;
  template <class R>
  MX_HD static R grad(R, const R*) { return R(1); }
};

// a if |z| < 1/(2a), else 0.  SpikingJelly Rect.
struct Rect {
  static constexpr int kParams = 1;
  template <class R>
  MX_HD static R grad(R z, const R* a) {
    const R inside = a[0];
    return fabs(z) < R(0.5) / a[0] ? inside : R(0);
  }
};

// 1 / (a |z| + 1)^2.  snnTorch fast_sigmoid.
struct FastSigmoid {
  static constexpr int kParams = 1;
  template <class R>
  MX_HD static R grad(R z, const R* a) {
    const R d = a[0] * fabs(z) + R(1);
    return R(1) / (d * d);
  }
};

// a if z < 0, else -a.  snnTorch triangular, sign as in snnTorch 1.0.0: the gradient is negative from the threshold
// on. Kept, because a converted network must train as before; `triangle` above is the one to use.
struct Triangular {
  static constexpr int kParams = 1;
  template <class R>
  MX_HD static R grad(R z, const R* a) {
    const R below = a[0], above = -a[0];
    return z >= R(0) ? above : below;
  }
};

// 1 if z > 0, else 0.  snnTorch heaviside.
struct Heaviside {
  static constexpr int kParams = 0;
  template <class R>
  MX_HD static R grad(R z, const R*) { return z > R(0) ? R(1) : R(0); }
};

// slope exp(-beta |z - 1|), beta >= 0; a = {beta, slope}.  snnTorch spike_rate_escape.
struct SpikeRateEscape {
  static constexpr int kParams = 2;
  template <class R>
  MX_HD static R grad(R z, const R* a) { return a[1] * exp2_decay(-(R(kLog2e) * a[0]) * fabs(z - R(1))); }
};

// fast_sigmoid(slope) if z > B, else 0; a = {slope, B}.  snnTorch SFS.
struct SparseFastSigmoid {
  static constexpr int kParams = 2;
  template <class R>
  MX_HD static R grad(R z, const R* a) {
    const R g = FastSigmoid::grad(z, a);
    return z > a[1] ? g : R(0);
  }
};

// 0.  snnTorch neurons with surrogate_disable=True.
struct NoGradient {
  static constexpr int kParams = 0;
  template <class R>
  MX_HD static R grad(R, const R*) { return R(0); }
};

#define MEMEXT_SURROGATES(X)                             \
  X(0, Sigmoid, "sigmoid")                               \
  X(1, ATan, "atan")                                     \
  X(2, PiecewiseQuadratic, "piecewise_quadratic")        \
  X(3, PiecewiseExp, "piecewise_exp")                    \
  X(4, SoftSign, "soft_sign")                            \
  X(5, SuperSpike, "super_spike")                        \
  X(6, NonzeroSignLogAbs, "nonzero_sign_log_abs")        \
  X(7, Erf, "erf")                                       \
  X(8, PiecewiseLeakyReLU, "piecewise_leaky_relu")       \
  X(9, SquarewaveFourierSeries, "squarewave_fourier_series") \
  X(10, S2NN, "s2nn")                                    \
  X(11, QPseudoSpike, "q_pseudo_spike")                  \
  X(12, LeakyKReLU, "leaky_k_relu")                      \
  X(13, FakeNumericalGradient, "fake_numerical_gradient") \
  X(14, LogTailedReLU, "log_tailed_relu")                \
  X(15, StraightThrough, "straight_through")             \
  X(16, Rect, "rect")                                    \
  X(17, FastSigmoid, "fast_sigmoid")                     \
  X(18, Triangular, "triangular")                        \
  X(19, Heaviside, "heaviside")                          \
  X(20, SpikeRateEscape, "spike_rate_escape")            \
  X(21, SparseFastSigmoid, "sparse_fast_sigmoid")        \
  X(22, NoGradient, "none")

}  // namespace memext
