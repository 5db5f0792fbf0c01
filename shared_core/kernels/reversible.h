// The reversible neuron (RevSNN Eq. 1-6, see shared_core/reversible/_equations.py): one group of one column at one
// step. CPU (reversible_cpu.cpp) and GPU (reversible.cu) put their loops around this text.
//
// A column is one element of every group: group g (0, 1, ...) is charged by group g - 1's output, group 0 by its own
// input. Groups 1, 2, ... can be followed from the outputs alone; what the last one did gives group 0's input. So the
// backward pass goes through the groups from the last to the first, and each needs one potential per step.
//
// Every operation is rounded on its own, in the order of reversible/_torch.py: the backward pass must take the
// decisions of the forward pass again.
#pragma once
#include "call.h"
#include "surrogate.h"

namespace memext {

// Sequences are [steps, outer, groups, inner], potentials [outer, groups, inner], all dense and of R: double if compute
// is kFloat64, else float. Null: not wanted, or zero (initial: v_reset everywhere). Mirrored by reversible/_call.py.
struct ReversibleCall {
  long long steps, outer, groups, inner;
  int compute, surrogate, strict, threads;
  double tau, alpha, beta, v_th, v_reset;
  double surrogate_params[kMaxSurrogateParams];
  const void* x;           // forward reads it
  const void* initial;
  void* y;                 // forward writes it, backward reads it
  void* final_state;
  unsigned* largest;       // [2]: greatest |z| and |V| as float bits; 0 before the call
  const void* grad_y;
  const void* grad_final;
  void* grad_x;
  void* grad_initial;
  void* anchors;           // GPU, steps > block: [ceil(steps / block) - 1, columns] R, scratch
  unsigned* fired;         // GPU, steps > block: [ceil(steps / 32), columns], scratch
};

// Nearest integer, ties to even, for every float (math.h's rint stops at 2^22).
MX_HD float nearest(float x) {
#ifdef __CUDACC__
  return ::rintf(x);
#else
  return __builtin_rintf(x);
#endif
}
MX_HD double nearest(double x) {
#ifdef __CUDACC__
  return ::rint(x);
#else
  return __builtin_rint(x);
#endif
}

template <class R>
struct Reversible {
  R tau, alpha, beta, v_th, v_reset;
  bool strict;

  MX_HD static Reversible of(const ReversibleCall& c) {
    return {R(c.tau), R(c.alpha), R(c.beta), R(c.v_th), R(c.v_reset), c.strict != 0};
  }

  // What enters: z = round(beta x / 2^-16) 2^-16, and the input that it stands for.
  MX_HD R to_grid(R x) const { return nearest(x * beta * R(65536)) * R(1.0 / 65536); }
  MX_HD R input(R z) const { return z / beta; }

  MX_HD R charge(R v, R current) const { return v + (current - v) / tau; }
  MX_HD R excess(R m) const { return m - v_th; }
  MX_HD bool fires(R m) const { return strict ? excess(m) > R(0) : excess(m) >= R(0); }
  MX_HD R settle(R v, R m, R y) const { return ((R(1) - y) * m + y * v_reset) + v * alpha; }

  // One step back. g: surrogate'(excess), gy: dL/dY, e: dL/d(potential after) and, on return, before.
  // gi: dL/d(current). Returns dL/d(carried z).
  MX_HD R backward(R m, R y, R g, R gy, R& e, R& gi) const {
    const R dy = gy + e * (v_reset - m);
    const R dm = dy * g + e * (R(1) - y);
    gi = dm / tau;
    e = (dm - gi) + e * alpha;
    return dy;
  }
};

// |v| as the bits of a float: compared as integers, NaN is the greatest.
MX_HD u32 magnitude(float v) { return bit_cast<u32>(v) & 0x7fffffffu; }
MX_HD u32 magnitude(double v) { return magnitude(float(v)); }

}  // namespace memext
