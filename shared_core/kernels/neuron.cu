// GPU kernels around neuron.h: one thread per neuron, neighbouring threads on neighbouring neurons, time inside.
//
// Compiled by NVRTC, one kernel a module (backends/cuda.py names it through the MEMEXT_ macros at the end), and by the
// C++ compiler with shim.h, which runs the same text on the CPU. Semantics are those of cpu.cpp, argument by argument.
//
// The number of steps is a run-time value. The backward pass keeps the traces of one block of steps in registers, so
// its block size is a template argument (4, 8, 16, 32 = kBlock); longer sequences go block by block from the anchors.
// Values are read a group of steps at a time before the first is used, so that a thread has several loads under way; a
// group is read whole before it is written, which also lets grad_x share the memory of grad_spikes.
#include "affine.h"
#include "call.h"
#include "half.h"
#include "neuron.h"
#include "surrogate.h"
#ifdef __CUDACC__
#define MX_DEVICE __device__ __forceinline__
#define MX_UNROLL _Pragma("unroll")
#else
#include "shim.h"
#define MX_DEVICE inline
#define MX_UNROLL
#endif

namespace memext {

constexpr int kThreads = 128;  // a block; cuda.py launches as many. Tuning.
static_assert(sizeof(Call) <= 4096, "kernel arguments are limited to 4 KB on devices before sm_70 and by old drivers");

MX_DEVICE i64 first_neuron() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
MX_DEVICE i64 neurons_at_once() { return (i64)gridDim.x * blockDim.x; }

// Value i of a tensor of T, as R, and back.
template <class R, class T>
MX_DEVICE R read(const void* p, i64 i) { return R(widen(static_cast<const T*>(p)[i])); }
template <class T, class R>
MX_DEVICE void write(void* p, i64 i, R v) { narrow(v, static_cast<T*>(p)[i]); }

// A struct of kFields values of R, field by field. Loops unroll, so that the structs stay in registers.
template <class S, class R, int kFields, class Get>
MX_DEVICE S fields(Get get) {
  R f[kFields > 0 ? kFields : 1];
  MX_UNROLL
  for (int k = 0; k < kFields; k++) f[k] = get(k);
  S s{};
  MX_MEMCPY(&s, f, kFields * sizeof(R));
  return s;
}
template <class R, int kFields, class S, class Put>
MX_DEVICE void each_field(const S& s, Put put) {
  R f[kFields > 0 ? kFields : 1];
  MX_MEMCPY(f, &s, kFields * sizeof(R));
  MX_UNROLL
  for (int k = 0; k < kFields; k++) put(k, f[k]);
}

template <class R>
MX_DEVICE R value_of(const Param& p, i64 i) { return read<R, R>(p.data, p.size > 1 ? (i / p.inner) % p.size : 0); }
template <class N, class R>
MX_DEVICE typename N::Params params_of(const Call& c, i64 i) {
  return fields<typename N::Params, R, N::kParams>([&](int k) { return value_of<R>(c.params[k], i); });
}
template <class N, class R>
MX_DEVICE typename N::State initial_state(const Call& c, i64 i) {
  return fields<typename N::State, R, N::kStates>(
      [&](int k) { return c.initial[k] ? read<R, R>(c.initial[k], i) : R(c.rest[k]); });
}
// Where the state before block b (1, 2, ...) is kept.
template <class N>
MX_DEVICE i64 anchor_index(const Call& c, i64 block, int field, i64 i) {
  return ((block - 1) * N::kStates + field) * c.neurons + i;
}


// Where neuron i finds its values. kShared: channel groups may share a membrane (Call::groups); else there is one.
template <bool kShared>
struct Places {
  i64 first;         // of group 0, in a time step
  u32 groups;
  i64 run, neurons;
  MX_DEVICE Places(const Call& c, i64 i)
      : first(kShared ? place(c, 0, i) : i), groups(kShared ? (u32)c.groups : 1), run(c.run), neurons(c.neurons) {}
  MX_DEVICE i64 values_per_step() const { return kShared ? neurons * groups : neurons; }
  MX_DEVICE i64 time_of(i64 step) const { return kShared ? (u32)step / groups : step; }
  MX_DEVICE i64 in_time_step(i64 step) const { return kShared ? first + (u32)step % groups * run : first; }
  MX_DEVICE i64 at(i64 stride, i64 step) const { return time_of(step) * stride + in_time_step(step); }
  MX_DEVICE bool begins_time_step(i64 step) const { return !kShared || (u32)step % groups == 0; }
  MX_DEVICE bool ends_time_step(i64 step) const { return !kShared || ((u32)step + 1) % groups == 0; }
};

template <class N, class R, class X, class S, bool kShared>
MX_DEVICE void forward(const Call& c) {
  constexpr int kAhead = 8;  // tuning: bytes under way per multiprocessor = resident threads * kAhead * sizeof(X)
  static_assert(kBlock % kAhead == 0, "anchors are written between groups");
  const auto k = N::Const::from(c.constants);
  const i64 bit_row = (kShared ? c.neurons * c.groups + 7 : c.neurons + 7) / 8;
  // A ballot needs every lane of the warp: lanes past the end repeat the last neuron and write nothing.
  const i64 end = c.bits ? (c.neurons + 31) / 32 * 32 : c.neurons;
  for (i64 lane_neuron = first_neuron(); lane_neuron < end; lane_neuron += neurons_at_once()) {
    const bool inside = lane_neuron < c.neurons;
    const i64 i = inside ? lane_neuron : c.neurons - 1;
    const Places<kShared> places(c, i);
    const auto p = params_of<N, R>(c, i);
    auto state = initial_state<N, R>(c, i);
    for (i64 t0 = 0; t0 < c.steps; t0 += kAhead) {
      if (c.anchors && inside && t0 && t0 % kBlock == 0)
        each_field<R, N::kStates>(
            state, [&](int f, R v) { write<R>(c.anchors, anchor_index<N>(c, t0 / kBlock, f, i), v); });
      R x[kAhead];
      MX_UNROLL
      for (int s = 0; s < kAhead; s++)
        if (t0 + s < c.steps) x[s] = read<R, X>(c.x, places.at(c.x_stride, t0 + s));
      MX_UNROLL
      for (int s = 0; s < kAhead; s++) {
        const i64 t = t0 + s;
        if (t < c.steps) {
          const auto trace = N::charge(state, x[s], p, k);
          if (c.traces[0] && inside)  // one step only
            each_field<R, N::kTrace>(trace, [&](int f, R v) { write<R>(c.traces[f], i, v); });
          const bool fired = N::fires(trace, p, k);
          const R emitted = N::emit(fired, p, k);
          state = N::settle(trace, fired, p, k);
          if (inside) {
            write<S>(c.spikes, places.at(places.values_per_step(), t), emitted);
            if (places.ends_time_step(t))
              each_field<R, N::kStates>(state, [&](int f, R v) {
                if (c.states_seq[f]) write<R>(c.states_seq[f], places.time_of(t) * c.neurons + i, v);
              });
          }
          if (c.bits) {  // 32 neurons a word, one byte for every eighth lane: a row need not start at a whole word
            const u32 word = __ballot_sync(0xffffffffu, inside && emitted != R(0));
            if (inside && i % 8 == 0)
              c.bits[places.time_of(t) * bit_row + places.in_time_step(t) / 8] = (unsigned char)(word >> (i % 32));
          }
        }
      }
    }
    if (inside)
      each_field<R, N::kStates>(state, [&](int f, R v) {
        if (c.final_state[f]) write<R>(c.final_state[f], i, v);
      });
  }
}

// G: surrogate. kSteps: traces kept in registers; c.steps <= kSteps, or kSteps == kBlock.
// kRebuilt: bits or an affine may be given. There is no c.sums here.
template <class N, class R, class X, class S, class G, int kSteps, bool kRebuilt, bool kShared>
MX_DEVICE void backward(const Call& c) {
  constexpr int kGroup = 4;  // tuning, as kAhead; eight cost 20 to 40 registers more, and spill
  static_assert(kSteps <= kBlock && kSteps % kGroup == 0, "whole groups, anchors kBlock steps apart");
  const auto k = N::Const::from(c.constants);
  R a[kMaxSurrogateParams];
  MX_UNROLL
  for (int j = 0; j < kMaxSurrogateParams; j++) a[j] = R(c.surrogate_params[j]);
  const bool affine_given = kRebuilt && c.x_scale.data, bits_given = kRebuilt && c.bits;
  const bool online = c.flags & kOnline;  // here: read inside the loops, it costs registers
  const i64 bit_row = (kShared ? c.neurons * c.groups + 7 : c.neurons + 7) / 8;
  const bool kept = kSteps == kGroup && c.traces[0];  // one step, and its trace was kept
  const i64 blocks = kSteps < kBlock ? 1 : (c.steps + kBlock - 1) / kBlock;
  for (i64 i = first_neuron(); i < c.neurons; i += neurons_at_once()) {
    const auto p = params_of<N, R>(c, i);
    auto gp = fields<typename N::Params, R, N::kParams>([](int) { return R(0); });
    const Places<kShared> places(c, i);
    const R scale = affine_given && !kShared ? value_of<R>(c.x_scale, i) : R(1);
    const R shift = affine_given && !kShared ? value_of<R>(c.x_shift, i) : R(0);
    const auto input = [&](R y, i64 t) {
      if (!affine_given) return y;
      if (!kShared) return affine<X>(y, scale, shift);
      const i64 at = places.in_time_step(t);  // each group has channels of its own
      return affine<X>(y, value_of<R>(c.x_scale, at), value_of<R>(c.x_shift, at));
    };
    auto carry = fields<typename N::State, R, N::kStates>(
        [&](int f) { return c.grad_final[f] ? read<R, R>(c.grad_final[f], i) : R(0); });
    for (i64 b = blocks - 1; b >= 0; b--) {
      const i64 t0 = b * kBlock;
      const int count = c.steps - t0 < kSteps ? (int)(c.steps - t0) : kSteps;
      const auto start = b == 0 ? initial_state<N, R>(c, i)
                                : fields<typename N::State, R, N::kStates>([&](int f) {
                                    return read<R, R>(c.anchors, anchor_index<N>(c, b, f, i));
                                  });

      typename N::Trace trace[kSteps];  // forward again
      u32 spikes = 0;                   // bit s: the spike given for step t0 + s
      const auto fired = [&](const typename N::Trace& tr, int at) {
        return bits_given ? (spikes >> at & 1u) != 0 : N::fires(tr, p, k);
      };
      auto state = start;
      // A running pointer: 32 addresses computed from the step would be kept side by side, 10 registers more.
      const X* x_at = static_cast<const X*>(c.x) + t0 * c.x_stride + i;
      const unsigned char* bits_at = bits_given ? c.bits + t0 * bit_row + i / 8 : nullptr;
      MX_UNROLL
      for (int g = 0; g < kSteps; g += kGroup) {
        R x[kGroup];
        MX_UNROLL
        for (int s = 0; s < kGroup; s++)
          if (g + s < count && !kept) {
            const i64 t = t0 + g + s;
            x[s] = input(kShared ? read<R, X>(c.x, places.at(c.x_stride, t)) : R(widen(*x_at)), t);
            x_at += c.x_stride;
            if (bits_given && kShared) {
              const i64 at = places.in_time_step(t);
              spikes |= (c.bits[places.time_of(t) * bit_row + at / 8] >> (at % 8) & 1u) << (g + s);
            } else if (bits_given) {
              spikes |= (*bits_at >> (i % 8) & 1u) << (g + s);
              bits_at += bit_row;
            }
          }
        MX_UNROLL
        for (int s = 0; s < kGroup; s++)
          if (g + s < count) {
            trace[g + s] = kept ? fields<typename N::Trace, R, N::kTrace>([&](int f) { return read<R, R>(c.traces[f], i); })
                                : N::charge(state, x[s], p, k);
            state = N::settle(trace[g + s], fired(trace[g + s], g + s), p, k);
          }
      }

      MX_UNROLL
      for (int g = kSteps - kGroup; g >= 0; g -= kGroup) {  // backward
        R x[kGroup], gs[kGroup], extra[N::kStates][kGroup];
        MX_UNROLL
        for (int s = 0; s < kGroup; s++)
          if (g + s < count) {
            const i64 t = t0 + g + s;
            if (N::kNeedsInput) x[s] = c.x ? input(read<R, X>(c.x, places.at(c.x_stride, t)), t) : R(0);
            gs[s] = c.grad_spikes ? read<R, S>(c.grad_spikes, places.at(c.grad_spikes_stride, t)) : R(0);
            MX_UNROLL
            for (int f = 0; f < N::kStates; f++)
              if (c.grad_seq[f])
                extra[f][s] = places.ends_time_step(t)
                                  ? read<R, R>(c.grad_seq[f], places.time_of(t) * c.grad_seq_stride[f] + i)
                                  : R(0);
          }
        MX_UNROLL
        for (int s = kGroup - 1; s >= 0; s--) {
          const int at = g + s;
          if (at < count) {
            carry = fields<typename N::State, R, N::kStates>([&](int f) {
              R e[N::kStates];
              MX_MEMCPY(e, &carry, sizeof(e));
              return c.grad_seq[f] ? e[f] + extra[f][s] : e[f];
            });
            const int last = at > 0 ? at - 1 : 0;
            const auto before = at == 0 ? start : N::settle(trace[last], fired(trace[last], last), p, k);
            const R g_spike = G::template grad<R>(N::excess(trace[at], p, k), a);
            R gx;
            carry = N::backward(before, N::kNeedsInput ? x[s] : R(0), trace[at], fired(trace[at], at), p, k, g_spike,
                                gs[s], carry, gx, gp);
            if (online && places.begins_time_step(t0 + at)) carry = typename N::State{};
            if (c.grad_x) write<X>(c.grad_x, places.at(places.values_per_step(), t0 + at), gx);
          }
        }
      }
    }
    each_field<R, N::kStates>(carry, [&](int f, R v) {
      if (c.grad_initial[f]) write<R>(c.grad_initial[f], i, v);
    });
    each_field<R, N::kParams>(gp, [&](int f, R v) {
      if (c.grad_params[f]) write<R>(c.grad_params[f], i, v);
    });
  }
}

}  // namespace memext

#ifdef MEMEXT_NAME
extern "C" __global__ void __launch_bounds__(memext::kThreads) MEMEXT_NAME(const __grid_constant__ memext::Call c) {
  using namespace memext;
#if MEMEXT_STEPS
  backward<MEMEXT_NEURON<MEMEXT_R, MEMEXT_VARIANT>, MEMEXT_R, MEMEXT_X, MEMEXT_S, MEMEXT_SURROGATE, MEMEXT_STEPS,
           MEMEXT_REBUILT, MEMEXT_SHARED>(c);
#else
  forward<MEMEXT_NEURON<MEMEXT_R, MEMEXT_VARIANT>, MEMEXT_R, MEMEXT_X, MEMEXT_S, MEMEXT_SHARED>(c);
#endif
}
#endif
