// The one argument of every kernel entry point: pointers and sizes, nothing of Torch. backends/_call.py mirrors it
// field by field; memext_call_size() lets it check that both sides agree.
#pragma once
#include "config.h"

namespace memext {

constexpr int kBlock = 32;       // time steps between two kept states: the backward pass goes block by block
constexpr int kMaxStates = 4, kMaxParams = 8, kMaxConstants = 8, kMaxSurrogateParams = 4, kMaxTrace = 4;

// Bits of Call::flags. kOnline: the state before each step is a constant (SLTT), so backward hands no gradient from a
// step to the one before it, nor to the initial state.
constexpr int kOnline = 1;

enum Type : int { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

// A tensor of R with one value per neuron, or fewer: neuron i reads data[(i / inner) % size].
struct Param {
  const void* data;
  long long inner, size;
};

// Sequences are [steps, neurons], neurons dense, `*_stride` elements apart in time (0 = the same for all steps). Where
// channel groups share a membrane (`groups` below) they are [time steps, groups * neurons], and those of states
// [time steps, neurons].
// R is the arithmetic type: double for float64 tensors, float for all others. Null pointers: not wanted, or zero.
struct Call {
  long long steps, neurons;
  int neuron, variant, surrogate, compute;  // ids of neuron.h and surrogate.h; compute is kFloat32 or kFloat64
  int x_type, spike_type, threads, flags;
  double constants[kMaxConstants];
  double surrogate_params[kMaxSurrogateParams];
  double rest[kMaxStates];                // initial state where `initial` is null

  const void* x;                          // [steps, neurons] x_type
  long long x_stride;
  const void* initial[kMaxStates];        // [neurons] R
  Param params[kMaxParams];

  void* spikes;                           // [steps, neurons] spike_type
  unsigned char* bits;                    // [steps, ceil(neurons / 8)], bit i % 8 of byte i / 8, or null: see below
  void* final_state[kMaxStates];          // [neurons] R
  void* states_seq[kMaxStates];           // [steps, neurons] R, or null
  void* anchors;                          // [ceil(steps / kBlock) - 1, kStates, neurons] R; read by backward

  const void* grad_spikes;                // [steps, neurons] spike_type, or null
  long long grad_spikes_stride;
  const void* grad_final[kMaxStates];     // [neurons] R, or null
  const void* grad_seq[kMaxStates];       // [steps, neurons] R, or null
  long long grad_seq_stride[kMaxStates];
  void* grad_x;                           // [steps, neurons] x_type, or null
  void* grad_initial[kMaxStates];         // [neurons] R, or null
  void* grad_params[kMaxParams];          // [neurons] R, or null: summed over time, not over neurons

  // One step only (steps = 1), or null: the fields of the neuron's Trace. Written by forward; given to backward, which
  // then needs neither x nor, unless the neuron says so, the state before the step.
  void* traces[kMaxTrace];                // [neurons] R

  // An input that is rebuilt for backward (chain/). bits: written by forward; given to backward, they are the spikes.
  // x_scale: `x` holds y, and the input is fma(y, x_scale, x_shift), rounded to x_type; grad_x is still the gradient of
  // the input. grad_x may be the memory of grad_spikes, if type and stride are the same.
  Param x_scale, x_shift;                 // both, or data null in both; backward only
  // Sums of grad_x and of grad_x * y over steps and neurons, by index into x_scale. Zero before the call; each thread
  // adds to its own. CPU only.
  double* sums;                           // [threads, 2, x_scale.size], or null

  // Cross-channel sharing: so many channel groups run through one membrane in turn; 1 is the ordinary neuron. Step s is
  // group s % groups of time step s / groups, so steps = groups * time steps; `neurons`, states, anchors and params are
  // those of the one membrane, states_seq is written and grad_seq read after the last group of each time step, and
  // kOnline cuts between time steps. A time step of the input holds runs of `run` values of group 0, of group 1, ...,
  // of group 0 again: see place(). Forward writes `bits` if run is a multiple of 8 only; backward reads any.
  long long groups, run;
};

// Where, in a time step, neuron i has its value in group g.
MX_HD i64 place(const Call& c, i64 g, i64 i) {
  return c.groups == 1 ? i : (i / c.run * c.groups + g) * c.run + i % c.run;
}

}  // namespace memext
