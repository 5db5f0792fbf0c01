// What each neuron computes, once, for the CPU (C++17) and the GPU (CUDA C++ through NVRTC).
//
// A neuron is a struct template over the arithmetic type R (float or double) and a variant V (the options that
// change its equations, numbered; dynamics.py computes the same number). It declares
//
//   State   what is carried from step to step            Trace   what the backward pass needs of one step
//   Params  values that may differ per neuron and learn   Const   scalars fixed for the call
//
// and gives one step, in the exact operation order of the framework's own neuron (every line is rounded on its own:
// compile with -ffp-contract=off / --fmad=false, or spikes flip):
//
//   charge(before, x, p, c) -> Trace     the potential before the spike
//   excess(tr, p, c)        -> R         the surrogate's argument, h - theta
//   fires(tr, p, c)         -> bool      the spike
//   emit(fired, p, c)       -> R         the value sent to the next layer
//   settle(tr, fired, p, c) -> State     the state after the step
//   backward(...)           -> State     gradient of the state before the step; also of x and of the parameters
//
// kNeedsInput, kNeedsBefore: the parameter gradients read x, the state before the step. kCarryNeedsBefore: so does the
// gradient of the state, also when no parameter learns.
// In backward: g = surrogate'(excess), gs = gradient of the emitted value, e = gradient of the state after the step.
// `fired` is what fires() says or, in a backward pass to which the forward's spikes are given (Call::bits), the spike of
// the forward: an input that was rebuilt may be an ulp off, and asked again fires() would say something else.
// backends/reference.py runs the same equations, written apart in Torch (dynamics.py), as the oracle.
// How to add a neuron: docs/add_a_neuron.md.
#pragma once
#include "config.h"

namespace memext {

struct None {};  // no parameters

template <bool kFirst, class A, class B> struct Select { using type = A; };
template <class A, class B> struct Select<false, A, B> { using type = B; };

// ---------------------------------------------------------------------------------------------------------------
// SpikingJelly 2.0.0 (BaseNode and functional.neuron): fire on h >= theta, then reset in the same step.
// ---------------------------------------------------------------------------------------------------------------

template <class R>
struct SpikingJellyConst {
  R v_th, v_reset, tau;    // v_reset is 0 with soft reset: the leak then goes to 0, as in SpikingJelly
  R inv_tau;
  bool detach_reset;
  bool exact_inverse;      // tau is a power of two: multiplying by 1 / tau gives the bits of the division, faster
  MX_HD static SpikingJellyConst from(const double* c) {
    const R tau = R(c[2]);
    return {R(c[0]), R(c[1]), tau, R(1) / tau, c[3] != 0, is_power_of_two(tau)};
  }
  // Counts down by halving, exactly; 2^-30 to 2^30 is more than any time constant.
  MX_HD static bool is_power_of_two(R tau) {
    for (int i = 0; i < 31 && tau >= R(2); i++) tau *= R(0.5);
    for (int i = 0; i < 31 && tau < R(1); i++) tau *= R(2);
    return tau == R(1);
  }
  MX_HD R over_tau(R y) const { return exact_inverse ? y * inv_tau : y / tau; }
};

// v[t] = h - S theta (soft)  |  S v_reset + (1 - S) h (hard)
template <class R, bool kHard>
struct SpikingJellyFire {
  using Const = SpikingJellyConst<R>;
  MX_HD static bool fires(R h, const Const& c) { return h >= c.v_th; }
  MX_HD static R settle(R h, bool fired, const Const& c) {
    const R reset = kHard ? c.v_reset : h - c.v_th;
    return fired ? reset : h;
  }
  // Gradient of h through the spike and through the reset.
  MX_HD static R backward(R h, bool fired, R g, R gs, R e, const Const& c) {
    const R dv_ds = kHard ? c.v_reset - h : -c.v_th;
    const R through_reset = c.detach_reset ? R(0) : e * dv_ds;
    const R kept = (kHard && fired) ? R(0) : e;
    return (gs + through_reset) * g + kept;
  }
};

// IFNode:  h = v + x
template <class R, int V>
struct IF {
  static constexpr int kVariants = 2, kStates = 1, kTrace = 1, kParams = 0;
  static constexpr bool kNeedsInput = false, kNeedsBefore = false, kCarryNeedsBefore = false;
  using Fire = SpikingJellyFire<R, (V & 1) != 0>;
  using Const = SpikingJellyConst<R>;
  using Params = None;
  struct State { R v; };
  struct Trace { R h; };
  MX_HD static Trace charge(State before, R x, Params, const Const&) { return {before.v + x}; }
  MX_HD static R excess(Trace tr, Params, const Const& c) { return tr.h - c.v_th; }
  MX_HD static bool fires(Trace tr, Params, const Const& c) { return Fire::fires(tr.h, c); }
  MX_HD static R emit(bool fired, Params, const Const&) { return fired ? R(1) : R(0); }
  MX_HD static State settle(Trace tr, bool fired, Params, const Const& c) { return {Fire::settle(tr.h, fired, c)}; }
  MX_HD static State backward(State, R, Trace tr, bool fired, Params, const Const& c, R g, R gs, State e, R& gx,
                              Params&) {
    gx = Fire::backward(tr.h, fired, g, gs, e.v, c);
    return {gx};
  }
};

// The leak of LIFNode, ParametricLIFNode and KLIFNode; `rate` scales by 1/tau in the caller's own way.
//   decay_input:   h = v + (x - (v - v_reset)) / tau          else:   h = v - (v - v_reset) / tau + x
template <class R, bool kDecayInput, class Rate>
MX_HD R leak(R v, R x, R v_reset, Rate rate) {
  const R d = v - v_reset;
  if (kDecayInput) {
    const R f = rate(x - d);
    return v + f;
  }
  const R kept = v - rate(d);
  return kept + x;
}

// LIFNode: the rate is a division by tau, rounded as a division.
template <class R, int V>
struct LIF {
  static constexpr int kVariants = 4, kStates = 1, kTrace = 1, kParams = 0;
  static constexpr bool kHard = (V & 1) != 0, kDecayInput = (V & 2) != 0;
  static constexpr bool kNeedsInput = false, kNeedsBefore = false, kCarryNeedsBefore = false;
  using Fire = SpikingJellyFire<R, kHard>;
  using Const = SpikingJellyConst<R>;
  using Params = None;
  struct State { R v; };
  struct Trace { R h; };
  MX_HD static Trace charge(State before, R x, Params, const Const& c) {
    return {leak<R, kDecayInput>(before.v, x, c.v_reset, [&](R y) { return c.over_tau(y); })};
  }
  MX_HD static R excess(Trace tr, Params, const Const& c) { return tr.h - c.v_th; }
  MX_HD static bool fires(Trace tr, Params, const Const& c) { return Fire::fires(tr.h, c); }
  MX_HD static R emit(bool fired, Params, const Const&) { return fired ? R(1) : R(0); }
  MX_HD static State settle(Trace tr, bool fired, Params, const Const& c) { return {Fire::settle(tr.h, fired, c)}; }
  MX_HD static State backward(State, R, Trace tr, bool fired, Params, const Const& c, R g, R gs, State e, R& gx,
                              Params&) {
    const R gh = Fire::backward(tr.h, fired, g, gs, e.v, c);
    const R leaked = gh * c.inv_tau;
    gx = kDecayInput ? leaked : gh;
    return {gh - leaked};
  }
};

// ParametricLIFNode: the rate is a product with q = sigmoid(w), computed (and differentiated) by Torch outside.
template <class R, int V>
struct ParametricLIF {
  static constexpr int kVariants = 4, kStates = 1, kTrace = 1, kParams = 1;
  static constexpr bool kHard = (V & 1) != 0, kDecayInput = (V & 2) != 0;
  static constexpr bool kNeedsInput = kDecayInput, kNeedsBefore = true, kCarryNeedsBefore = false;
  using Fire = SpikingJellyFire<R, kHard>;
  using Const = SpikingJellyConst<R>;
  struct Params { R q; };
  struct State { R v; };
  struct Trace { R h; };
  MX_HD static Trace charge(State before, R x, Params p, const Const& c) {
    return {leak<R, kDecayInput>(before.v, x, c.v_reset, [&](R y) { return y * p.q; })};
  }
  MX_HD static R excess(Trace tr, Params, const Const& c) { return tr.h - c.v_th; }
  MX_HD static bool fires(Trace tr, Params, const Const& c) { return Fire::fires(tr.h, c); }
  MX_HD static R emit(bool fired, Params, const Const&) { return fired ? R(1) : R(0); }
  MX_HD static State settle(Trace tr, bool fired, Params, const Const& c) { return {Fire::settle(tr.h, fired, c)}; }
  MX_HD static State backward(State before, R x, Trace tr, bool fired, Params p, const Const& c, R g, R gs, State e,
                              R& gx, Params& gp) {
    const R gh = Fire::backward(tr.h, fired, g, gs, e.v, c);
    const R d = before.v - c.v_reset;
    gp.q += gh * (kDecayInput ? x - d : -d);
    const R leaked = gh * p.q;
    gx = kDecayInput ? leaked : gh;
    return {gh - leaked};
  }
};

// KLIFNode:  h = relu(k c), c the charge of LIFNode, k learnable.  scale_reset: resets h / k with the threshold theta / k.
template <class R, int V>
struct KLIF {
  static constexpr int kVariants = 8, kStates = 1, kTrace = 1, kParams = 1;
  static constexpr bool kHard = (V & 1) != 0, kDecayInput = (V & 2) != 0, kScale = (V & 4) != 0;
  static constexpr bool kNeedsInput = true, kNeedsBefore = true, kCarryNeedsBefore = false;
  using Const = SpikingJellyConst<R>;
  struct Params { R k; };
  struct State { R v; };
  struct Trace { R h; };
  MX_HD static R charge_unscaled(R v, R x, const Const& c) {
    return leak<R, kDecayInput>(v, x, c.v_reset, [&](R y) { return c.over_tau(y); });
  }
  MX_HD static Trace charge(State before, R x, Params p, const Const& c) {
    const R u = p.k * charge_unscaled(before.v, x, c);
    return {u <= R(0) ? R(0) : u};
  }
  MX_HD static R excess(Trace tr, Params, const Const& c) { return tr.h - c.v_th; }
  MX_HD static bool fires(Trace tr, Params, const Const& c) { return tr.h >= c.v_th; }
  MX_HD static R emit(bool fired, Params, const Const&) { return fired ? R(1) : R(0); }
  // What is reset, and the threshold of the soft reset. Torch divides a number by a tensor as reciprocal times number.
  MX_HD static R scaled(R h, Params p) { return kScale ? h / p.k : h; }
  MX_HD static R threshold(Params p, const Const& c) { return kScale ? (R(1) / p.k) * c.v_th : c.v_th; }
  MX_HD static State settle(Trace tr, bool fired, Params p, const Const& c) {
    const R h = scaled(tr.h, p);
    const R reset = kHard ? c.v_reset : h - threshold(p, c);
    return {fired ? reset : h};
  }
  MX_HD static State backward(State before, R x, Trace tr, bool fired, Params p, const Const& c, R g, R gs, State e,
                              R& gx, Params& gp) {
    const R per_k = kScale ? R(1) / p.k : R(1);  // exact where it is 1
    const R h = tr.h * per_k, theta = c.v_th * per_k;
    const R through_reset = c.detach_reset ? R(0) : e.v * (kHard ? c.v_reset - h : -theta);
    const R g_scaled = (kHard && fired) ? R(0) : e.v;
    const R gh = (gs + through_reset) * g + g_scaled * per_k;
    if (kScale) gp.k -= per_k * (g_scaled * h - (!kHard && fired ? e.v * theta : R(0)));
    const R gu = tr.h > R(0) ? gh : R(0);
    gp.k += gu * charge_unscaled(before.v, x, c);
    const R gc = gu * p.k;
    const R leaked = gc * c.inv_tau;
    gx = kDecayInput ? leaked : gc;
    return {gc - leaked};
  }
};

// ---------------------------------------------------------------------------------------------------------------
// snnTorch 1.0.0: fire on u - theta > 0. The state `mem` is not yet reset; the reset R = H(mem - theta) of the state
// passed in is detached and applied one step later (reset_delay), or taken back in the same step:
//   mem = u  |  u - (S - R) theta (subtract)  |  u - (S - R) u (zero)
// R is read off the state, in every pass: spikes given to a backward pass are S, and do not decide R.
// ---------------------------------------------------------------------------------------------------------------

// V = reset mechanism + 3 (same step): what Leaky and Synaptic have in common.
template <class R, int V>
struct SnnTorchFire {
  enum { kSubtract = 0, kZero = 1, kNoReset = 2 };
  static constexpr int kReset = V % 3;
  static constexpr bool kSameStep = V >= 3 && kReset != kNoReset;
  struct Const { MX_HD static Const from(const double*) { return {}; } };

  MX_HD static R heaviside(R m, R theta) { return (m - theta) > R(0) ? R(1) : R(0); }
  MX_HD static R settle(R u, bool fired, R reset, R theta) {
    if (!kSameStep) return u;
    const R now = (fired ? R(1) : R(0)) - reset;
    return u - now * (kReset == kSubtract ? theta : u);
  }
  // Gradient of u from those of mem (e) and of the spikes (gs); adds to those of theta and scale.
  MX_HD static R backward(R u, bool fired, R reset, R theta, R scale, R g, R gs, R e, R& g_theta, R& g_scale) {
    const R spike = fired ? R(1) : R(0);
    const R now = spike - reset;
    R g_spike = scale * gs;
    R kept = e;  // the part of e that reaches u without passing the spike
    if (kSameStep && kReset == kSubtract) {
      g_spike -= theta * e;
      g_theta -= now * e;
    }
    if (kSameStep && kReset == kZero) {
      g_spike -= u * e;
      kept = (R(1) - now) * e;
    }
    const R through_spike = g_spike * g;
    const R gu = kept + through_spike;
    g_theta -= through_spike;
    if (kReset == kSubtract) g_theta -= reset * gu;
    g_scale += gs * spike;
    return gu;
  }
};

// Leaky.  subtract: u = (beta mem + x) - R theta      zero: u = beta ((1 - R) mem) + x      none: u = beta mem + x
template <class R, int V>
struct Leaky {
  using Fire = SnnTorchFire<R, V>;
  using Const = typename Fire::Const;
  static constexpr bool kSubtracts = Fire::kReset == Fire::kSubtract, kZeroes = Fire::kReset == Fire::kZero;
  static constexpr int kVariants = 6, kStates = 1, kTrace = Fire::kSameStep ? 2 : 1, kParams = 3;
  static constexpr bool kNeedsInput = false, kNeedsBefore = true;
  static constexpr bool kCarryNeedsBefore = kZeroes || Fire::kSameStep;
  struct Params { R beta, theta, scale; };  // beta is already clamped to [0, 1]; scale = graded_spikes_factor
  struct State { R mem; };
  struct Delayed { R u; };
  struct SameStep { R u, reset; };
  using Trace = typename Select<Fire::kSameStep, SameStep, Delayed>::type;
  MX_HD static R reset_of(const SameStep& tr) { return tr.reset; }
  MX_HD static R reset_of(const Delayed&) { return R(0); }
  MX_HD static void keep_reset(SameStep& tr, R reset) { tr.reset = reset; }
  MX_HD static void keep_reset(Delayed&, R) {}

  MX_HD static Trace charge(State before, R x, Params p, const Const&) {
    const R reset = Fire::heaviside(before.mem, p.theta);
    const R kept = kZeroes ? (R(1) - reset) * before.mem : before.mem;
    const R base = p.beta * kept;
    const R u = base + x;
    Trace tr;
    tr.u = kSubtracts ? u - reset * p.theta : u;
    keep_reset(tr, reset);
    return tr;
  }
  MX_HD static R excess(Trace tr, Params p, const Const&) { return tr.u - p.theta; }
  MX_HD static bool fires(Trace tr, Params p, const Const&) { return (tr.u - p.theta) > R(0); }
  MX_HD static R emit(bool fired, Params p, const Const&) { return fired ? p.scale : R(0); }
  MX_HD static State settle(Trace tr, bool fired, Params p, const Const&) {
    return {Fire::settle(tr.u, fired, reset_of(tr), p.theta)};
  }
  MX_HD static State backward(State before, R, Trace tr, bool fired, Params p, const Const&, R g, R gs, State e, R& gx,
                              Params& gp) {
    const R reset = Fire::heaviside(before.mem, p.theta);
    gx = Fire::backward(tr.u, fired, reset, p.theta, p.scale, g, gs, e.mem, gp.theta, gp.scale);
    const R decayed = kZeroes ? R(1) - reset : R(1);
    gp.beta += gx * (decayed * before.mem);
    return {p.beta * gx * decayed};
  }
};

// Synaptic.  syn' = alpha syn + x;  m = beta mem + syn'.  subtract: u = m - R theta    zero: u = m - R m    none: u = m
template <class R, int V>
struct Synaptic {
  using Fire = SnnTorchFire<R, V>;
  using Const = typename Fire::Const;
  static constexpr bool kSubtracts = Fire::kReset == Fire::kSubtract, kZeroes = Fire::kReset == Fire::kZero;
  static constexpr int kVariants = 6, kStates = 2, kTrace = Fire::kSameStep ? 3 : 2, kParams = 4;
  static constexpr bool kNeedsInput = false, kNeedsBefore = true;
  static constexpr bool kCarryNeedsBefore = kZeroes || Fire::kSameStep;
  struct Params { R alpha, beta, theta, scale; };  // alpha, beta already clamped to [0, 1]
  struct State { R syn, mem; };
  struct Delayed { R syn, u; };
  struct SameStep { R syn, u, reset; };
  using Trace = typename Select<Fire::kSameStep, SameStep, Delayed>::type;
  MX_HD static R reset_of(const SameStep& tr) { return tr.reset; }
  MX_HD static R reset_of(const Delayed&) { return R(0); }
  MX_HD static void keep_reset(SameStep& tr, R reset) { tr.reset = reset; }
  MX_HD static void keep_reset(Delayed&, R) {}

  MX_HD static Trace charge(State before, R x, Params p, const Const&) {
    const R reset = Fire::heaviside(before.mem, p.theta);
    const R decayed = p.alpha * before.syn;
    const R leaked = p.beta * before.mem;
    Trace tr;
    tr.syn = decayed + x;
    const R m = leaked + tr.syn;
    tr.u = kSubtracts ? m - reset * p.theta : (kZeroes ? m - m * reset : m);
    keep_reset(tr, reset);
    return tr;
  }
  MX_HD static R excess(Trace tr, Params p, const Const&) { return tr.u - p.theta; }
  MX_HD static bool fires(Trace tr, Params p, const Const&) { return (tr.u - p.theta) > R(0); }
  MX_HD static R emit(bool fired, Params p, const Const&) { return fired ? p.scale : R(0); }
  MX_HD static State settle(Trace tr, bool fired, Params p, const Const&) {
    return {tr.syn, Fire::settle(tr.u, fired, reset_of(tr), p.theta)};
  }
  MX_HD static State backward(State before, R, Trace tr, bool fired, Params p, const Const&, R g, R gs, State e, R& gx,
                              Params& gp) {
    const R reset = Fire::heaviside(before.mem, p.theta);
    const R gu = Fire::backward(tr.u, fired, reset, p.theta, p.scale, g, gs, e.mem, gp.theta, gp.scale);
    const R gm = kZeroes ? gu * (R(1) - reset) : gu;
    const R g_syn = e.syn + gm;
    gp.beta += gm * before.mem;
    gp.alpha += g_syn * before.syn;
    gx = g_syn;
    return {p.alpha * g_syn, p.beta * gm};
  }
};

// Every neuron: id, struct. dynamics.py names the struct; a test compares counts and variants on both sides.
#define MEMEXT_NEURONS(X) \
  X(0, IF)                \
  X(1, LIF)               \
  X(2, ParametricLIF)     \
  X(3, Leaky)             \
  X(4, KLIF)              \
  X(5, Synaptic)

}  // namespace memext
