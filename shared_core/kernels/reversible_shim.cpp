// reversible.cu compiled as C++ (shim.h), behind the C ABI of reversible_cpu.cpp. Built by the tests only. The caller
// gives c.anchors and c.fired as for the GPU. To stay quick to compile: blocks of 4 or 32 steps, and a surrogate that is
// switched at run time.
#include "reversible.cu"

#include <algorithm>

namespace {
using namespace memext;

// Few and small blocks: the grid-stride loop, and blocks that lie past the end, must run in small tests.
template <class Kernel>
void launch(const ReversibleCall& c, Kernel kernel) {
  const i64 columns = c.outer * c.inner;
  shim::launch((unsigned)std::min<i64>((columns + 31) / 32, 3) + (columns > 32), 32, false, kernel);
}

int surrogate_id = 0;

template <class R>
__attribute__((noinline)) R any_surrogate(int id, R z, const R* a) {
  switch (id) {
#define MEMEXT_CASE(ID, G, NAME) case ID: return G::template grad<R>(z, a);
    MEMEXT_SURROGATES(MEMEXT_CASE)
#undef MEMEXT_CASE
    default: std::abort();  // the tests name those of the table only
  }
}

struct AnySurrogate {
  template <class R>
  static R grad(R z, const R* a) { return any_surrogate<R>(surrogate_id, z, a); }
};

template <class R>
int backward(const ReversibleCall& c) {
  surrogate_id = c.surrogate;
  if (c.steps <= 4) launch(c, [&] { reversible_backward<R, AnySurrogate, 4>(c); });
  else launch(c, [&] { reversible_backward<R, AnySurrogate, 32>(c); });
  return 0;
}

}  // namespace

extern "C" {
int memext_reversible_forward(const memext::ReversibleCall* c) {
  if (c->compute == kFloat64) launch(*c, [&] { reversible_forward<double>(*c); });
  else launch(*c, [&] { reversible_forward<float>(*c); });
  return 0;
}
int memext_reversible_backward(const memext::ReversibleCall* c) {
  return c->compute == kFloat64 ? backward<double>(*c) : backward<float>(*c);
}
int memext_reversible_call_size() { return (int)sizeof(memext::ReversibleCall); }
}
