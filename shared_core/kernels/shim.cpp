// neuron.cu compiled as C++ (shim.h), behind the C ABI of cpu.cpp. Built by the tests only; MEMEXT_LIB=path loads it in
// the place of the CPU library. To stay quick to compile it has two block sizes (4 and 32), a surrogate and a half type
// that are switched at run time, and these storage types: float32 or float64 throughout, or a half-type x with spikes of
// the same type or float32.
#include "half.h"

namespace memext {
// float16 or bfloat16, as the call says. Set per call, read by the lanes: calls must not run side by side.
inline bool half_is_brain = false;
struct AnyHalf { unsigned short bits; };
inline float widen(AnyHalf v) { return half_is_brain ? from_bfloat16(v.bits) : from_float16(v.bits); }
template <class R> inline void narrow(R v, AnyHalf& to) {
  to.bits = half_is_brain ? to_bfloat16((float)v) : to_float16((float)v);
}
}  // namespace memext

#include "neuron.cu"

#include <algorithm>
#include <cstring>
#include <utility>

namespace {
using namespace memext;

int surrogate_id = 0;

template <class R>
__attribute__((noinline)) R any_surrogate(int id, R z, const R* a) {
  switch (id) {
#define MEMEXT_CASE(ID, G, NAME) case ID: return G::template grad<R>(z, a);
    MEMEXT_SURROGATES(MEMEXT_CASE)
#undef MEMEXT_CASE
    default: std::abort();  // refused by run()
  }
}

bool knows_surrogate(int id) {
  switch (id) {
#define MEMEXT_CASE(ID, G, NAME) case ID: return true;
    MEMEXT_SURROGATES(MEMEXT_CASE)
#undef MEMEXT_CASE
    default: return false;
  }
}

struct AnySurrogate {
  template <class R>
  static R grad(R z, const R* a) { return any_surrogate<R>(surrogate_id, z, a); }
};

enum Direction { kForward, kBackward };

// Few and small blocks: the grid-stride loop, and blocks that lie past the end, must run in small tests.
template <class Kernel>
void launch(const Call& c, bool ballots, Kernel kernel) {
  const unsigned threads = 64;
  const unsigned blocks = (unsigned)std::min<i64>((c.neurons + threads - 1) / threads, 3) + (c.neurons > 32);
  shim::launch(blocks, threads, ballots, kernel);
}

template <class N, class R, class X, class S>
int run_typed(const Call& c, Direction direction) {
  const bool shared = c.groups > 1;
  if (direction == kForward) {
    if (shared) launch(c, c.bits != nullptr, [&] { forward<N, R, X, S, true>(c); });
    else launch(c, c.bits != nullptr, [&] { forward<N, R, X, S, false>(c); });
  } else {
    surrogate_id = c.surrogate;
    const bool rebuilt = c.bits || c.x_scale.data;
    if (shared) launch(c, false, [&] { backward<N, R, X, S, AnySurrogate, 32, true, true>(c); });
    else if (rebuilt) launch(c, false, [&] { backward<N, R, X, S, AnySurrogate, 32, true, false>(c); });
    else if (c.steps <= 4) launch(c, false, [&] { backward<N, R, X, S, AnySurrogate, 4, false, false>(c); });
    else launch(c, false, [&] { backward<N, R, X, S, AnySurrogate, 32, false, false>(c); });
  }
  return 0;
}

template <template <class, int> class N, int V>
int run_variant(const Call& c, Direction direction) {
  if (c.x_type == kFloat64 && c.spike_type == kFloat64)
    return run_typed<N<double, V>, double, double, double>(c, direction);
  using F = N<float, V>;
  if (c.x_type == kFloat32 && c.spike_type == kFloat32) return run_typed<F, float, float, float>(c, direction);
  if (c.x_type != kFloat16 && c.x_type != kBFloat16) return 4;
  half_is_brain = c.x_type == kBFloat16;
  if (c.spike_type == c.x_type) return run_typed<F, float, AnyHalf, AnyHalf>(c, direction);
  if (c.spike_type == kFloat32) return run_typed<F, float, AnyHalf, float>(c, direction);
  return 4;
}

template <template <class, int> class N, int... V>
int run_neuron(const Call& c, Direction direction, std::integer_sequence<int, V...>) {
  int code = 1;
  ((c.variant == V ? (void)(code = run_variant<N, V>(c, direction)) : (void)0), ...);
  return code;
}

int run(const Call& c, Direction direction) {
  if (direction == kBackward && !knows_surrogate(c.surrogate)) return 2;
  if (c.sums) return 5;
  if (c.steps <= 0 || c.neurons <= 0) return 0;
  switch (c.neuron) {
#define MEMEXT_CASE(ID, NAME) \
  case ID: return run_neuron<NAME>(c, direction, std::make_integer_sequence<int, NAME<float, 0>::kVariants>{});
    MEMEXT_NEURONS(MEMEXT_CASE)
#undef MEMEXT_CASE
    default: return 1;
  }
}

}  // namespace

extern "C" {
// As in cpu.cpp; 4: storage types that this library leaves out. 5: sums, which no GPU kernel computes.
int memext_forward(const memext::Call* c) { return run(*c, kForward); }
int memext_backward(const memext::Call* c) { return run(*c, kBackward); }
int memext_call_size() { return (int)sizeof(memext::Call); }
void memext_prefer_huge_pages(void*, long long) {}
int memext_runs_here(const char* isa) { return !std::strcmp(isa, "base"); }
}
