// GPU kernels of the reversible neuron: one thread per column, its groups one after the other, time inside.
// Neighbouring threads are on neighbouring columns, which are neighbours in memory.
//
// Compiled by NVRTC, one kernel a module (reversible/_cuda.py names it through the MEMEXT_ macros at the end), and by
// the C++ compiler with shim.h. Semantics are those of reversible_cpu.cpp, argument by argument.
//
// Backward keeps the potentials of one block of steps of one group in registers; block sizes are 4, 8, 16, 32. Longer
// sequences go block by block, from potentials that a first walk leaves in c.anchors. What one group passes back to the
// group before it waits in grad_x, in the place that the latter's own result takes afterwards.
#include "reversible.h"
#ifdef __CUDACC__
#define MX_DEVICE __device__ __forceinline__
#define MX_UNROLL _Pragma("unroll")
#else
#include "shim.h"
#define MX_DEVICE inline
#define MX_UNROLL
#endif

namespace memext {

constexpr int kReversibleThreads = 128;

MX_DEVICE i64 first_column() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
MX_DEVICE i64 columns_at_once() { return (i64)gridDim.x * blockDim.x; }

MX_DEVICE void raise_to(u32* most, u32 value) {
#ifdef __CUDACC__
  if (value > *most) atomicMax(most, value);  // most threads find a greater one there already
#else
  if (value > *most) *most = value;
#endif
}

// Where the values of one column lie.
struct Column {
  i64 index, step, group, first;  // strides in time and from group to group; place of group 0 at step 0

  MX_DEVICE static Column of(const ReversibleCall& c, i64 column) {
    return {column, c.outer * c.groups * c.inner, c.inner, column / c.inner * c.groups * c.inner + column % c.inner};
  }
  MX_DEVICE i64 at(i64 t, i64 g) const { return t * step + g * group + first; }
  MX_DEVICE i64 state(i64 g) const { return g * group + first; }
};

template <class R>
MX_DEVICE R start_of(const ReversibleCall& c, const Column& at, i64 g) {
  return c.initial ? static_cast<const R*>(c.initial)[at.state(g)] : R(c.v_reset);
}

template <class R>
MX_DEVICE void reversible_forward(const ReversibleCall& c) {
  const auto k = Reversible<R>::of(c);
  const R* const x = static_cast<const R*>(c.x);
  R* const y = static_cast<R*>(c.y);
  for (i64 column = first_column(); column < c.outer * c.inner; column += columns_at_once()) {
    const Column at = Column::of(c, column);
    u32 most_z = 0, most_v = 0;
    for (i64 g = 0; g < c.groups; g++) {  // group by group: one potential at a time, and none in memory
      R v = start_of<R>(c, at, g);
      most_v = magnitude(v) > most_v ? magnitude(v) : most_v;
      const i64 carrier = g + 1 < c.groups ? g + 1 : 0;
      for (i64 t = 0; t < c.steps; t++) {
        const R carried = k.to_grid(x[at.at(t, carrier)]);
        const R current = g ? y[at.at(t, g - 1)] : k.input(k.to_grid(x[at.at(t, 0)]));
        const R m = k.charge(v, current);
        const R out = (k.fires(m) ? R(1) : R(0)) + carried;
        v = k.settle(v, m, out);
        y[at.at(t, g)] = out;
        most_z = magnitude(carried) > most_z ? magnitude(carried) : most_z;
        most_v = magnitude(v) > most_v ? magnitude(v) : most_v;
      }
      if (c.final_state) static_cast<R*>(c.final_state)[at.state(g)] = v;
    }
    raise_to(c.largest, most_z);
    raise_to(c.largest + 1, most_v);
  }
}

// G: surrogate. kSteps: potentials kept in registers; c.steps <= kSteps, or kSteps == 32.
template <class R, class G, int kSteps>
MX_DEVICE void reversible_backward(const ReversibleCall& c) {
  static_assert(kSteps <= 32, "the spikes of a block are the bits of one word");
  const auto k = Reversible<R>::of(c);
  R a[kMaxSurrogateParams];
  MX_UNROLL
  for (int j = 0; j < kMaxSurrogateParams; j++) a[j] = R(c.surrogate_params[j]);
  const R* const y = static_cast<const R*>(c.y);
  const R* const gy = static_cast<const R*>(c.grad_y);
  R* const gx = static_cast<R*>(c.grad_x);
  R* const anchors = static_cast<R*>(c.anchors);
  const i64 columns = c.outer * c.inner, blocks = (c.steps + kSteps - 1) / kSteps, last = c.groups - 1;
  for (i64 column = first_column(); column < columns; column += columns_at_once()) {
    const Column at = Column::of(c, column);
    u32 only_word = 0;  // the last group's spikes, if there is but one block
    for (i64 g = last; g >= 0; g--) {
      const auto current = [&](i64 t) {  // what charges group g: Eq. 4, or Eq. 8 for group 0
        if (g) return y[at.at(t, g - 1)];
        const u32 word = blocks > 1 ? c.fired[t / 32 * columns + column] : only_word;
        return k.input(y[at.at(t, last)] - (word >> (t % 32) & 1u ? R(1) : R(0)));
      };
      if (blocks > 1) {  // a first walk: the potentials at the blocks' starts, and the last group's spikes
        R v = start_of<R>(c, at, g);
        u32 word = 0;
        for (i64 t = 0; t < c.steps; t++) {
          if (t && t % kSteps == 0) anchors[(t / kSteps - 1) * columns + column] = v;
          const R m = k.charge(v, current(t));
          v = k.settle(v, m, y[at.at(t, g)]);
          if (g == last) {
            word |= (u32)k.fires(m) << (t % 32);
            if (t % 32 == 31 || t + 1 == c.steps) c.fired[t / 32 * columns + column] = word, word = 0;
          }
        }
      }
      R e = c.grad_final ? static_cast<const R*>(c.grad_final)[at.state(g)] : R(0);
      for (i64 b = blocks - 1; b >= 0; b--) {
        const i64 t0 = b * kSteps;
        const int count = c.steps - t0 < kSteps ? (int)(c.steps - t0) : kSteps;
        R v = b ? anchors[(b - 1) * columns + column] : start_of<R>(c, at, g);
        R m[kSteps];
        u32 word = 0;
        MX_UNROLL
        for (int s = 0; s < kSteps; s++)
          if (s < count) {
            m[s] = k.charge(v, current(t0 + s));
            v = k.settle(v, m[s], y[at.at(t0 + s, g)]);
            word |= (u32)k.fires(m[s]) << s;
          }
        if (g == last) only_word = word;
        MX_UNROLL
        for (int s = kSteps - 1; s >= 0; s--)
          if (s < count) {
            const i64 t = t0 + s, after = at.at(t, g == last ? 0 : g + 1);
            R upstream = gy ? gy[at.at(t, g)] : R(0), gi;
            if (g != last) upstream += gx[after];
            const R slope = G::template grad<R>(k.excess(m[s]), a);
            gx[after] = k.backward(m[s], y[at.at(t, g)], slope, upstream, e, gi) * k.beta;
            if (g) gx[at.at(t, g)] = gi;
            else gx[at.at(t, 0)] += gi;
          }
      }
      if (c.grad_initial) static_cast<R*>(c.grad_initial)[at.state(g)] = e;
    }
  }
}

}  // namespace memext

#ifdef MEMEXT_NAME
extern "C" __global__ void __launch_bounds__(memext::kReversibleThreads)
    MEMEXT_NAME(const __grid_constant__ memext::ReversibleCall c) {
  using namespace memext;
#if MEMEXT_STEPS
  reversible_backward<MEMEXT_R, MEMEXT_SURROGATE, MEMEXT_STEPS>(c);
#else
  reversible_forward<MEMEXT_R>(c);
#endif
}
#endif
