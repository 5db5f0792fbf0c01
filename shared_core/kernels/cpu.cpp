// CPU kernels around neuron.h: threads over chunks of neurons, time inside a chunk, neurons vectorised.
// Compiled once per instruction set, each into a library of its own; the widest that runs is loaded.
//
// A chunk's scratch (one block of time steps) stays in the first- or second-level cache, so global memory is touched
// once per input and output. The surrogate runs over a whole block through a function pointer: neurons and surrogates
// are instantiated side by side, not as a product.
#include "call.h"
#include "neuron.h"
#include "places.h"
#include "rows.h"
#include "surrogate.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <utility>

#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <sys/mman.h>
#endif

namespace {
using namespace memext;
using i64 = long long;

constexpr i64 kScratchBytes = 160 * 1024, kMaxWidth = 2048;  // measured: docs/design/cpu_kernels.md

// ---- structs of R, kept as rows [field][neuron] -----------------------------------------------------------------

// State, Trace and Params hold values of R and nothing else, so their fields are an array of R. (memcpy between the two
// would be the letter of the standard, but gcc 12 then moves two floats as one integer and does not vectorise.)
template <class S, class R, int kFields>
MX_HD S load_fields(const R* rows, i64 stride, i64 i) {
  static_assert(kFields == 0 || sizeof(S) == kFields * sizeof(R), "a field is missing from kStates, kTrace or kParams");
  S s{};
  for (int k = 0; k < kFields; k++) reinterpret_cast<R*>(&s)[k] = rows[k * stride + i];
  return s;
}
template <class S, class R, int kFields>
MX_HD void store_fields(const S& s, R* rows, i64 stride, i64 i) {
  for (int k = 0; k < kFields; k++) rows[k * stride + i] = reinterpret_cast<const R*>(&s)[k];
}

// ---- surrogates over a block ------------------------------------------------------------------------------------

template <class R> using SurrogateBlock = void (*)(R* z, i64 n, const R* a);

template <class S, class R>
void surrogate_block(R* __restrict z, i64 n, const R* a) {
  R p[kMaxSurrogateParams];
  for (int k = 0; k < kMaxSurrogateParams; k++) p[k] = a[k];
  for (i64 i = 0; i < n; i++) z[i] = S::template grad<R>(z[i], p);
}

template <class R>
SurrogateBlock<R> surrogate_of(int id) {
  switch (id) {
#define MEMEXT_CASE(ID, S, NAME) case ID: return &surrogate_block<S, R>;
    MEMEXT_SURROGATES(MEMEXT_CASE)
#undef MEMEXT_CASE
    default: return nullptr;
  }
}

// ---- a chunk of neurons -----------------------------------------------------------------------------------------

// Neurons a chunk: what is touched per step should stay in the first-level cache, one block's scratch in the second.
i64 chunk_width(i64 bytes_per_neuron, i64 neurons, int threads) {
  i64 width = std::min<i64>(kScratchBytes / bytes_per_neuron, kMaxWidth);
  width = std::min(width, (neurons + threads - 1) / threads);  // at least one chunk a thread
  return std::max<i64>(64, (width + 63) / 64 * 64);            // whole bytes of packed bits, whole vectors
}

// Scratch rows of one chunk, each `width` values long; fields of a struct follow each other.
template <class N, class R>
struct Scratch {
  static constexpr i64 kBefore = N::kNeedsBefore ? N::kStates : 0;
  R *params, *state, *x, *spikes;                          // forward and backward
  R *start, *carry, *grad_params, *grad_x, *zeros;         // backward
  R *before, *trace, *z;                                   // backward, one per step of a block
  static constexpr i64 kForward = N::kParams + N::kStates + 2;
  static constexpr i64 kBackward = kForward + 2 * N::kStates + N::kParams + 2;
  static constexpr i64 kPerStep = kBefore + N::kTrace + 1;

  Scratch(R* p, i64 width, i64 block) {
    const auto take = [&](i64 rows) { R* taken = p; p += rows * width; return taken; };
    params = take(N::kParams), state = take(N::kStates), x = take(1), spikes = take(1);
    start = take(N::kStates), carry = take(N::kStates), grad_params = take(N::kParams), grad_x = take(1), zeros = take(1);
    before = take(kBefore * block), trace = take(N::kTrace * block), z = take(block);
  }
};

// More rows of a chunk, in a backward pass whose input is rebuilt; they cost nothing where they are not asked for.
template <class R>
struct Rebuilt {
  R *fired, *scale, *shift, *x, *sum, *product;
  static i64 count(const Call& c) { return (c.bits ? 1 : 0) + (c.x_scale.data ? 3 : 0) + (c.sums ? 2 : 0); }
  Rebuilt(const Places& rows, i64 width, R* p) {
    const Call& c = rows.c;
    const auto take = [&](bool wanted) { R* taken = p; p += wanted ? width : 0; return wanted ? taken : nullptr; };
    fired = take(c.bits);
    scale = take(c.x_scale.data), shift = take(c.x_scale.data), x = take(c.x_scale.data);
    sum = take(c.sums), product = take(c.sums);
    if (scale) read_channels(rows, 0);
    if (sum) std::fill_n(sum, width, R(0)), std::fill_n(product, width, R(0));
  }

  // Scale and shift of the channels whose values a step reads; they are the same in all steps unless groups share.
  void read_channels(const Places& rows, i64 step) const {
    rows.each_piece(step, [&](i64 i, i64 m, i64 at) {
      fill_row(rows.c.x_scale, at, m, scale + i), fill_row(rows.c.x_shift, at, m, shift + i);
    });
  }
  // Brings the sums to the channels of a step, and begins anew.
  void add_sums(const Places& rows, i64 step, i64 width) const {
    const Call& c = rows.c;
#ifdef _OPENMP
    double* mine = c.sums + omp_get_thread_num() * 2 * c.x_scale.size;
#else
    double* mine = c.sums;
#endif
    rows.each_piece(step, [&](i64 i, i64 m, i64 at) {
      add_to_channels(c.x_scale, at, m, sum + i, mine);
      add_to_channels(c.x_scale, at, m, product + i, mine + c.x_scale.size);
    });
    std::fill_n(sum, width, R(0));
    std::fill_n(product, width, R(0));
  }
};

// Parameter rows of a chunk. True if some parameter differs between neurons.
template <class N, class R>
bool fill_params(const Call& c, i64 lo, i64 n, i64 width, R* rows) {
  bool per_neuron = false;
  for (int k = 0; k < N::kParams; k++) {
    const Param& p = c.params[k];
    per_neuron |= p.size > 1;
    fill_row(p, lo, n, rows + k * width);
  }
  return per_neuron;
}

// The loops over neurons. MEMEXT_EACH_NEURON: no neuron reads what another one writes.
#if defined(__clang__)
#define MEMEXT_EACH_NEURON _Pragma("clang loop vectorize(assume_safety)") for (i64 i = 0; i < n; i++)
#else
#define MEMEXT_EACH_NEURON _Pragma("GCC ivdep") for (i64 i = 0; i < n; i++)
#endif

// Calls f with `value` as a type, std::true_type or std::false_type; neurons without parameters are compiled once.
template <class N, class F>
void with_flag(bool value, F f) {
  if constexpr (N::kParams > 0)
    if (value) return f(std::true_type{});
  f(std::false_type{});
}

// `n` values of each field: from[k] + offset -> rows, or a constant where the pointer is null.
template <class R, int kFields>
void load_rows(const void* const* from, i64 offset, const double* otherwise, i64 n, i64 width, R* rows) {
  for (int k = 0; k < kFields; k++) {
    const R* p = static_cast<const R*>(from[k]);
    if (p) std::copy_n(p + offset, n, rows + k * width);
    else std::fill_n(rows + k * width, n, otherwise ? R(otherwise[k]) : R(0));
  }
}

template <class R, int kFields>
void store_rows(const R* rows, i64 n, i64 width, void* const* to, i64 offset) {
  for (int k = 0; k < kFields; k++)
    if (to[k]) std::copy_n(rows + k * width, n, static_cast<R*>(to[k]) + offset);
}

// ---- forward ----------------------------------------------------------------------------------------------------

template <class N, class R, bool kRows>
MEMEXT_ROW forward_row(const typename N::Const k, const R* __restrict params, i64 n, i64 width, const R* __restrict x,
                 R* __restrict state, R* __restrict spikes) {
  const auto scalar = load_fields<typename N::Params, R, N::kParams>(params, width, 0);
  MEMEXT_EACH_NEURON {
    const auto p = kRows ? load_fields<typename N::Params, R, N::kParams>(params, width, i) : scalar;
    const auto before = load_fields<typename N::State, R, N::kStates>(state, width, i);
    const auto tr = N::charge(before, x[i], p, k);
    const bool fired = N::fires(tr, p, k);
    spikes[i] = N::emit(fired, p, k);
    store_fields<typename N::State, R, N::kStates>(N::settle(tr, fired, p, k), state, width, i);
  }
}

// One step, for the backward pass: keeps the trace and the surrogate's argument, moves the state on.
// kBits: the spikes are given.
template <class N, class R, bool kRows, bool kBits>
MEMEXT_ROW replay_row(const typename N::Const k, const R* __restrict params, i64 n, i64 width, const R* __restrict x,
                const R* __restrict spikes, R* __restrict state, R* __restrict trace, R* __restrict z) {
  const auto scalar = load_fields<typename N::Params, R, N::kParams>(params, width, 0);
  MEMEXT_EACH_NEURON {
    const auto p = kRows ? load_fields<typename N::Params, R, N::kParams>(params, width, i) : scalar;
    const auto before = load_fields<typename N::State, R, N::kStates>(state, width, i);
    const auto tr = N::charge(before, x[i], p, k);
    z[i] = N::excess(tr, p, k);
    store_fields<typename N::Trace, R, N::kTrace>(tr, trace, width, i);
    const bool fired = kBits ? spikes[i] != R(0) : N::fires(tr, p, k);
    store_fields<typename N::State, R, N::kStates>(N::settle(tr, fired, p, k), state, width, i);
  }
}

template <class N, class R>
void forward_chunk(const Call& c, i64 lo, i64 n, i64 width, R* memory) {
  const Scratch<N, R> s(memory, width, 1);
  const Places rows(c, lo, n);
  const bool per_neuron = fill_params<N, R>(c, lo, n, width, s.params);
  load_rows<R, N::kStates>(c.initial, lo, c.rest, n, width, s.state);
  const auto k = N::Const::from(c.constants);
  for (i64 t = 0; t < c.steps; t++) {
    if (c.anchors && t && t % kBlock == 0)
      for (int f = 0; f < N::kStates; f++)
        std::copy_n(s.state + f * width, n,
                    static_cast<R*>(c.anchors) + ((t / kBlock - 1) * N::kStates + f) * c.neurons + lo);
    const R* x = rows.read(c.x, c.x_type, c.x_stride, t, s.x);
    R* spikes = rows.to_write(c.spikes, c.spike_type, t, s.spikes);
    if (c.traces[0]) {
      with_flag<N>(per_neuron, [&](auto differ) {
        std::copy_n(s.state, N::kStates * width, s.start);
        replay_row<N, R, differ.value, false>(k, s.params, n, width, x, nullptr, s.start, s.trace, s.z);
      });
      store_rows<R, N::kTrace>(s.trace, n, width, c.traces, lo);
    }
    with_flag<N>(per_neuron,
                 [&](auto differ) { forward_row<N, R, differ.value>(k, s.params, n, width, x, s.state, spikes); });
    if (c.bits) rows.pack(spikes, t);
    rows.write(c.spikes, c.spike_type, t, spikes);
    if (rows.ends_time_step(t))
      store_rows<R, N::kStates>(s.state, n, width, c.states_seq, rows.time_of(t) * c.neurons + lo);
  }
  store_rows<R, N::kStates>(s.state, n, width, c.final_state, lo);
}

// ---- backward ---------------------------------------------------------------------------------------------------

// The surrogate's argument of a step whose trace was kept.
template <class N, class R, bool kRows>
MEMEXT_ROW excess_row(const typename N::Const k, const R* __restrict params, i64 n, i64 width,
                      const R* __restrict trace, R* __restrict z) {
  const auto scalar = load_fields<typename N::Params, R, N::kParams>(params, width, 0);
  MEMEXT_EACH_NEURON {
    const auto p = kRows ? load_fields<typename N::Params, R, N::kParams>(params, width, i) : scalar;
    z[i] = N::excess(load_fields<typename N::Trace, R, N::kTrace>(trace, width, i), p, k);
  }
}

template <class N, class R, bool kRows, bool kLearn, bool kBits>
MEMEXT_ROW backward_row(const typename N::Const k, const R* __restrict params, i64 n, i64 width, const R* __restrict x,
                  const R* __restrict kept_before, const R* __restrict trace, const R* __restrict spikes,
                  const R* __restrict g, const R* __restrict gs, R* __restrict carry, R* __restrict gx,
                  R* __restrict grad_params) {
  const auto scalar = load_fields<typename N::Params, R, N::kParams>(params, width, 0);
  MEMEXT_EACH_NEURON {
    const auto p = kRows ? load_fields<typename N::Params, R, N::kParams>(params, width, i) : scalar;
    typename N::State before{};
    if (kLearn ? N::kNeedsBefore : N::kCarryNeedsBefore)
      before = load_fields<typename N::State, R, N::kStates>(kept_before, width, i);
    const auto tr = load_fields<typename N::Trace, R, N::kTrace>(trace, width, i);
    const auto e = load_fields<typename N::State, R, N::kStates>(carry, width, i);
    typename N::Params gp{};
    if (kLearn) gp = load_fields<typename N::Params, R, N::kParams>(grad_params, width, i);
    const bool fired = kBits ? spikes[i] != R(0) : N::fires(tr, p, k);
    const R x_i = kLearn && N::kNeedsInput ? x[i] : R(0);
    R gx_i;
    const auto g_before = N::backward(before, x_i, tr, fired, p, k, g[i], gs[i], e, gx_i, gp);
    gx[i] = gx_i;
    store_fields<typename N::State, R, N::kStates>(g_before, carry, width, i);
    if (kLearn) store_fields<typename N::Params, R, N::kParams>(gp, grad_params, width, i);
  }
}

// Steps t0 to t1 - 1: forward again from s.start, surrogate, then back; s.carry goes from after t1 - 1 to before t0.
template <class N, class R, bool kRows, bool kLearn, bool kBits>
void backward_block(const Places& rows, const Scratch<N, R>& s, const Rebuilt<R>& rebuilt, i64 width, i64 t0, i64 t1,
                    const typename N::Const& k, SurrogateBlock<R> surrogate, const R* a) {
  const Call& c = rows.c;
  const i64 lo = rows.lo, n = rows.n;
  const auto stored = [&](i64 t) { return rows.read(c.x, c.x_type, c.x_stride, t, s.x); };
  const auto input = [&](const R* y, i64 t) {
    if (!rebuilt.scale) return y;
    if (c.groups > 1) rebuilt.read_channels(rows, t);
    affine_row(c.x_type, n, y, rebuilt.scale, rebuilt.shift, rebuilt.x);
    return (const R*)rebuilt.x;
  };
  const auto read_spikes = [&](i64 t) {
    if (kBits) rows.unpack(rebuilt.fired, t);
  };
  // A row that is read and written: copied first, so that the loop over neurons may take its rows for separate ones.
  const bool in_place = c.grad_x && c.grad_x == c.grad_spikes;
  std::copy_n(s.start, N::kStates * width, s.state);
  const auto before = [&](i64 t) { return s.before + (t - t0) * s.kBefore * width; };
  const auto trace = [&](i64 t) { return s.trace + (t - t0) * N::kTrace * width; };
  if (c.traces[0]) {
    load_rows<R, N::kTrace>(c.traces, lo, nullptr, n, width, s.trace);
    std::copy_n(s.state, s.kBefore * width, s.before);
    excess_row<N, R, kRows>(k, s.params, n, width, s.trace, s.z);
  } else for (i64 t = t0; t < t1; t++) {
    const R* x = input(stored(t), t);
    read_spikes(t);
    if (kLearn ? N::kNeedsBefore : N::kCarryNeedsBefore) std::copy_n(s.state, s.kBefore * width, before(t));
    replay_row<N, R, kRows, kBits>(k, s.params, n, width, x, rebuilt.fired, s.state, trace(t), s.z + (t - t0) * n);
  }
  surrogate(s.z, (t1 - t0) * n, a);
  for (i64 t = t1 - 1; t >= t0; t--) {
    for (int f = 0; f < N::kStates; f++)
      if (c.grad_seq[f] && rows.ends_time_step(t)) {
        const i64 at = rows.time_of(t) * c.grad_seq_stride[f] + lo;
        const R* __restrict more = static_cast<const R*>(c.grad_seq[f]) + at;
        R* __restrict carry = s.carry + f * width;
        for (i64 i = 0; i < n; i++) carry[i] += more[i];
      }
    const R* y = (kLearn && N::kNeedsInput) || rebuilt.sum ? stored(t) : s.x;
    const R* x = kLearn && N::kNeedsInput ? input(y, t) : s.x;
    const R* gs = s.zeros;
    if (c.grad_spikes) gs = rows.read(c.grad_spikes, c.spike_type, c.grad_spikes_stride, t, s.spikes);
    if (in_place && gs != s.spikes) gs = std::copy_n(gs, n, s.spikes) - n;
    R* gx = c.grad_x ? rows.to_write(c.grad_x, c.x_type, t, s.grad_x) : s.grad_x;
    read_spikes(t);
    backward_row<N, R, kRows, kLearn, kBits>(k, s.params, n, width, x, before(t), trace(t), rebuilt.fired,
                                             s.z + (t - t0) * n, gs, s.carry, gx, s.grad_params);
    if (c.flags & kOnline && rows.begins_time_step(t)) std::fill_n(s.carry, N::kStates * width, R(0));
    if (c.grad_x) rows.write(c.grad_x, c.x_type, t, gx);
    if (rebuilt.sum) {  // of the gradient as it is stored
      const R* g = c.grad_x ? rows.read(c.grad_x, c.x_type, rows.values_per_step(), t, s.grad_x) : gx;
      sum_row(n, g, y, rebuilt.sum, rebuilt.product);
      if (c.groups > 1) rebuilt.add_sums(rows, t, width);
    }
  }
  if (rebuilt.sum && c.groups == 1) rebuilt.add_sums(rows, t0, width);
}

template <class N, class R>
void backward_chunk(const Call& c, i64 lo, i64 n, i64 width, R* memory) {
  const i64 block = std::min<i64>(c.steps, kBlock);
  const Scratch<N, R> s(memory, width, block);
  const Places rows(c, lo, n);
  const Rebuilt<R> rebuilt(rows, width, memory + (s.kBackward + block * s.kPerStep) * width);
  const bool per_neuron = fill_params<N, R>(c, lo, n, width, s.params);
  const auto k = N::Const::from(c.constants);
  std::fill_n(s.grad_params, N::kParams * width, R(0));
  std::fill_n(s.zeros, width, R(0));
  load_rows<R, N::kStates>(c.grad_final, lo, nullptr, n, width, s.carry);
  R a[kMaxSurrogateParams];
  for (int j = 0; j < kMaxSurrogateParams; j++) a[j] = R(c.surrogate_params[j]);
  const auto surrogate = surrogate_of<R>(c.surrogate);
  bool learn = false;
  for (int f = 0; f < N::kParams; f++) learn |= c.grad_params[f] != nullptr;
  for (i64 b = (c.steps - 1) / kBlock; b >= 0; b--) {
    const void* anchors[kMaxStates] = {};
    for (int f = 0; b > 0 && f < N::kStates; f++)
      anchors[f] = static_cast<const R*>(c.anchors) + ((b - 1) * N::kStates + f) * c.neurons;
    load_rows<R, N::kStates>(b > 0 ? anchors : c.initial, lo, c.rest, n, width, s.start);
    const i64 t0 = b * kBlock, t1 = std::min<i64>(c.steps, t0 + kBlock);
    with_flag<N>(learn, [&](auto learns) {
      const auto run = [&](auto differ, auto bits) {
        backward_block<N, R, differ.value, learns.value, bits.value>(rows, s, rebuilt, width, t0, t1, k, surrogate, a);
      };
      // With bits always from rows: one value read again and again costs little, a loop of its own time to compile.
      if (c.bits) run(std::bool_constant<(N::kParams > 0)>{}, std::true_type{});
      else with_flag<N>(per_neuron, [&](auto differ) { run(differ, std::false_type{}); });
    });
  }
  store_rows<R, N::kStates>(s.carry, n, width, c.grad_initial, lo);
  store_rows<R, N::kParams>(s.grad_params, n, width, c.grad_params, lo);
}

// ---- threads over chunks ----------------------------------------------------------------------------------------

template <class R>
using ChunkFunction = void (*)(const Call&, i64 lo, i64 n, i64 width, R* scratch);

template <class R>
int over_chunks(const Call& c, i64 width, i64 scratch_size, ChunkFunction<R> run) {
  const i64 chunks = (c.neurons + width - 1) / width;
  const int threads = (int)std::max<i64>(1, std::min<i64>(c.threads, chunks));
  bool failed = false;
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    // rounded up to a whole number of cache lines, as aligned_alloc demands
    R* scratch = static_cast<R*>(std::aligned_alloc(64, (scratch_size * sizeof(R) + 63) / 64 * 64));
    if (!scratch) {
#pragma omp atomic write
      failed = true;
    }
#pragma omp for schedule(static)
    for (i64 j = 0; j < chunks; j++)
      if (scratch) run(c, j * width, std::min(width, c.neurons - j * width), width, scratch);
    std::free(scratch);
  }
  return failed ? 3 : 0;
}

template <class N, class R>
int forward(const Call& c) {
  using S = Scratch<N, R>;
  const i64 width = chunk_width(S::kForward * sizeof(R), c.neurons, c.threads);
  return over_chunks<R>(c, width, (S::kBackward + S::kPerStep) * width, &forward_chunk<N, R>);
}

template <class N, class R>
int backward(const Call& c) {
  using S = Scratch<N, R>;
  const i64 rows = Rebuilt<R>::count(c) + S::kBackward + std::min<i64>(c.steps, kBlock) * S::kPerStep;
  const i64 width = chunk_width(rows * sizeof(R), c.neurons, c.threads);
  return over_chunks<R>(c, width, rows * width, &backward_chunk<N, R>);
}

// ---- the table --------------------------------------------------------------------------------------------------

using Entry = int (*)(const Call&);
struct Entries { Entry forward = nullptr, backward = nullptr; };

template <template <class, int> class N, class R, int... V>
Entries pick(int variant, std::integer_sequence<int, V...>) {
  Entries found;
  ((variant == V ? (void)(found = Entries{&forward<N<R, V>, R>, &backward<N<R, V>, R>}) : (void)0), ...);
  return found;
}

template <template <class, int> class N>
Entries pick(int variant, int compute) {
  using All = std::make_integer_sequence<int, N<float, 0>::kVariants>;
  return compute == kFloat64 ? pick<N, double>(variant, All{}) : pick<N, float>(variant, All{});
}

Entries find(const Call& c) {
  switch (c.neuron) {
#define MEMEXT_CASE(ID, NAME) case ID: return pick<NAME>(c.variant, c.compute);
    MEMEXT_NEURONS(MEMEXT_CASE)
#undef MEMEXT_CASE
    default: return {};
  }
}

template <class N>
void describe(int* out) {
  const int values[] = {N::kVariants, N::kStates, N::kParams, N::kTrace, N::kNeedsInput, N::kNeedsBefore,
                        N::kCarryNeedsBefore};
  std::copy_n(values, 7, out);
}

template <template <class, int> class N, int... V>
int describe(int variant, int* out, std::integer_sequence<int, V...>) {
  int code = 1;
  ((variant == V ? (void)(describe<N<float, V>>(out), code = 0) : (void)0), ...);
  return code;
}

int describe(int neuron, int variant, int* out) {
  switch (neuron) {
#define MEMEXT_CASE(ID, NAME) \
  case ID: return describe<NAME>(variant, out, std::make_integer_sequence<int, NAME<float, 0>::kVariants>{});
    MEMEXT_NEURONS(MEMEXT_CASE)
#undef MEMEXT_CASE
    default: return 1;
  }
}

int run(const Call* c, Entry Entries::* which) {
  const Entry entry = find(*c).*which;
  if (!entry) return 1;
  if (which == &Entries::backward && !surrogate_of<float>(c->surrogate)) return 2;
  if (c->steps <= 0 || c->neurons <= 0) return 0;
  return entry(*c);
}

}  // namespace

// The C ABI. One library per instruction set is built from this file (_build.py), so nothing has to be kept apart at
// link time; backends/native.py loads the widest one that memext_runs_here() allows.
extern "C" {
// 0: done. 1: no such neuron or variant. 2: no such surrogate. 3: out of memory.
int memext_forward(const memext::Call* c) { return run(c, &Entries::forward); }
int memext_backward(const memext::Call* c) { return run(c, &Entries::backward); }
int memext_call_size() { return (int)sizeof(memext::Call); }

// kVariants, kStates, kParams, kTrace, kNeedsInput, kNeedsBefore, kCarryNeedsBefore of a neuron; 1: no such neuron.
int memext_describe(int neuron, int variant, int* out) { return describe(neuron, variant, out); }

// Asks for huge pages under a large tensor that has not been touched yet. Faulting in 4 KiB pages costs several times
// what the kernels themselves cost (docs/design/cpu_kernels.md). A hint: failure changes nothing.
void memext_prefer_huge_pages(void* data, long long bytes) {
#ifdef __linux__
  constexpr unsigned long long kHuge = 2ull << 20;
  const auto first = ((unsigned long long)data + kHuge - 1) / kHuge * kHuge;
  const auto end = ((unsigned long long)data + bytes) / kHuge * kHuge;
  if (first < end) madvise((void*)first, end - first, MADV_HUGEPAGE);
#endif
}

// Whether this processor has the named instruction set ("base", "avx2", "avx512").
int memext_runs_here(const char* isa) {
#if defined(__x86_64__) && defined(__GNUC__)
  __builtin_cpu_init();
  if (!std::strcmp(isa, "avx2"))
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (!std::strcmp(isa, "avx512"))
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512cd");
#endif
  return !std::strcmp(isa, "base");
}
}
