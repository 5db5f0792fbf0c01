// CPU kernels of the reversible neuron: chunks of columns that fit in the cache, time and groups around the vectorised
// loop over columns, threads over chunks. Same library and rules as cpu.cpp.
#include "reversible.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

// A vector loop as a function of its own: inlined into its caller, gcc forgets that the rows do not overlap.
#define MEMEXT_ROW __attribute__((noinline)) void

namespace {
using namespace memext;

constexpr i64 kScratch = 128 << 10;  // bytes of a chunk's rows; tuning: half of a small second-level cache
constexpr i64 kWhole = 64;           // from this inner size on, a chunk lies within one outer row and needs no copies

// ---- rows: the values of n columns of one group at one step --------------------------------------------------------

template <int kInner, class R>
MEMEXT_ROW gather_runs(const R* __restrict from, i64 runs, i64 jump, R* __restrict to) {
  for (i64 r = 0; r < runs; r++)
    for (int k = 0; k < kInner; k++) to[r * kInner + k] = from[r * jump + k];
}
template <int kInner, class R>
MEMEXT_ROW scatter_runs(const R* __restrict from, i64 runs, i64 jump, R* __restrict to) {
  for (i64 r = 0; r < runs; r++)
    for (int k = 0; k < kInner; k++) to[r * jump + k] = from[r * kInner + k];
}

// Columns [first, first + n) of a call. Those of one outer index are neighbours in memory.
struct Columns {
  i64 outer, groups, inner, first, n;

  bool whole() const { return first % inner + n <= inner; }
  i64 at(i64 step, i64 group, i64 column) const {
    return ((step * outer + column / inner) * groups + group) * inner + column % inner;
  }

  template <class F>  // f(index of the column, place in memory, length) for every run of neighbours
  void runs(i64 step, i64 group, F f) const {
    for (i64 j = 0; j < n;) {
      const i64 column = first + j, length = std::min(n - j, inner - column % inner);
      f(j, at(step, group, column), length);
      j += length;
    }
  }

  template <class R>
  const R* read(const void* tensor, i64 step, i64 group, R* buffer) const {
    const R* p = static_cast<const R*>(tensor);
    if (whole()) return p + at(step, group, first);
    const R* from = p + at(step, group, first);
    const i64 jump = groups * inner, count = n / inner;
    switch (first % inner || n % inner ? 0 : inner) {
      case 1: gather_runs<1>(from, count, jump, buffer); break;
      case 2: gather_runs<2>(from, count, jump, buffer); break;
      case 4: gather_runs<4>(from, count, jump, buffer); break;
      case 8: gather_runs<8>(from, count, jump, buffer); break;
      case 16: gather_runs<16>(from, count, jump, buffer); break;
      case 32: gather_runs<32>(from, count, jump, buffer); break;
      default: runs(step, group, [&](i64 j, i64 place, i64 length) { std::copy_n(p + place, length, buffer + j); });
    }
    return buffer;
  }

  // Where a row is computed: in the tensor, or in `buffer` until `written` puts it there.
  template <class R>
  R* to_write(void* tensor, i64 step, i64 group, R* buffer) const {
    return whole() ? static_cast<R*>(tensor) + at(step, group, first) : buffer;
  }
  template <class R>
  void written(void* tensor, i64 step, i64 group, const R* buffer) const {
    if (whole()) return;
    R* p = static_cast<R*>(tensor);
    R* to = p + at(step, group, first);
    const i64 jump = groups * inner, count = n / inner;
    switch (first % inner || n % inner ? 0 : inner) {
      case 1: scatter_runs<1>(buffer, count, jump, to); break;
      case 2: scatter_runs<2>(buffer, count, jump, to); break;
      case 4: scatter_runs<4>(buffer, count, jump, to); break;
      case 8: scatter_runs<8>(buffer, count, jump, to); break;
      case 16: scatter_runs<16>(buffer, count, jump, to); break;
      case 32: scatter_runs<32>(buffer, count, jump, to); break;
      default: runs(step, group, [&](i64 j, i64 place, i64 length) { std::copy_n(buffer + j, length, p + place); });
    }
  }
};

template <class R>
void load(const Columns& c, const void* tensor, i64 group, R otherwise, R* row) {
  if (!tensor) std::fill_n(row, c.n, otherwise);
  else if (const R* found = c.read<R>(tensor, 0, group, row); found != row) std::copy_n(found, c.n, row);
}

template <class R>
void store(const Columns& c, void* tensor, i64 group, const R* row, R* buffer) {
  if (!tensor) return;
  R* to = c.to_write<R>(tensor, 0, group, buffer);
  std::copy_n(row, c.n, to);
  c.written<R>(tensor, 0, group, to);
}

// ---- forward ------------------------------------------------------------------------------------------------------

// One step of one group. First: `current` is x of group 0, whose z goes to z0; else the output of the group before.
// Last: z0 is carried; else `next`, x of the group after.
template <bool kFirst, bool kLast, class R>
MEMEXT_ROW forward_row(i64 n, const Reversible<R>& neuron, const R* __restrict current, const R* __restrict next,
                       R* __restrict z0, R* __restrict v, R* __restrict y, u32* __restrict most_z,
                       u32* __restrict most_v) {
  const Reversible<R> k = neuron;
  for (i64 j = 0; j < n; j++) {
    R in = current[j];
    u32 greatest = most_z[j];
    if (kFirst) {
      const R z = k.to_grid(in);
      z0[j] = z;
      greatest = std::max(greatest, magnitude(z));
      in = k.input(z);
    }
    const R carried = kLast ? z0[j] : k.to_grid(next[j]);
    most_z[j] = std::max(greatest, magnitude(carried));
    const R m = k.charge(v[j], in);
    const R fired = k.fires(m) ? R(1) : R(0);
    const R out = fired + carried;
    const R after = k.settle(v[j], m, out);
    y[j] = out;
    v[j] = after;
    most_v[j] = std::max(most_v[j], magnitude(after));
  }
}

template <class R>
struct Forward {
  static i64 rows(const ReversibleCall& c) { return 2 * c.groups + 6; }

  static void run(const ReversibleCall& c, const Columns& at, i64 width, R* scratch, u32* most) {
    const auto k = Reversible<R>::of(c);
    R* const v = scratch;
    R* const out = v + c.groups * width;  // two rows are enough: a group reads the one before it
    R* const z0 = out + 2 * width;
    R* const mine = z0 + width;
    R* const next = mine + width;
    u32* const most_z = most;
    u32* const most_v = most + width;
    for (i64 g = 0; g < c.groups; g++) {
      load(at, c.initial, g, k.v_reset, v + g * width);
      for (i64 j = 0; j < at.n; j++) most_v[j] = std::max(most_v[j], magnitude(v[g * width + j]));
    }
    for (i64 t = 0; t < c.steps; t++) {
      const R* before = at.read<R>(c.x, t, 0, mine);
      for (i64 g = 0; g < c.groups; g++) {
        const bool last = g == c.groups - 1;
        const R* const after = last ? nullptr : at.read<R>(c.x, t, g + 1, next);
        R* const buffer = out + (g % 2) * width;
        R* const y = at.to_write<R>(c.y, t, g, buffer);
        const auto row = g == 0 ? &forward_row<true, false, R> : last ? &forward_row<false, true, R>
                                                                    : &forward_row<false, false, R>;
        row(at.n, k, before, after, z0, v + g * width, y, most_z, most_v);
        at.written<R>(c.y, t, g, y);
        before = y;
      }
    }
    for (i64 g = 0; g < c.groups; g++) store(at, c.final_state, g, v + g * width, out);
  }
};

// ---- backward -----------------------------------------------------------------------------------------------------

template <class R>
MEMEXT_ROW follow_row(i64 n, const Reversible<R>& neuron, const R* __restrict current, const R* __restrict y,
                      R* __restrict v, R* __restrict m_out) {
  const Reversible<R> k = neuron;
  for (i64 j = 0; j < n; j++) {
    const R m = k.charge(v[j], current[j]);
    m_out[j] = m;
    v[j] = k.settle(v[j], m, y[j]);
  }
}

// Group 0's input, from the last group's output (Eq. 8).
template <class R>
MEMEXT_ROW input_row(i64 n, const Reversible<R>& neuron, const R* __restrict m, const R* __restrict y,
                     R* __restrict input) {
  const Reversible<R> k = neuron;
  for (i64 j = 0; j < n; j++) input[j] = k.input(y[j] - (k.fires(m[j]) ? R(1) : R(0)));
}

template <class G, class R>
MEMEXT_ROW slope_row(i64 n, const Reversible<R>& neuron, const R* __restrict m, const R* parameters,
                     R* __restrict slope) {
  const Reversible<R> k = neuron;
  R a[kMaxSurrogateParams];
  for (int i = 0; i < kMaxSurrogateParams; i++) a[i] = parameters[i];
  for (i64 j = 0; j < n; j++) slope[j] = G::template grad<R>(k.excess(m[j]), a);
}

template <class R> using SlopeRow = void (*)(i64, const Reversible<R>&, const R*, const R*, R*);

template <class R>
SlopeRow<R> slope_of(int surrogate) {
  switch (surrogate) {
#define MEMEXT_CASE(ID, G, NAME) case ID: return &slope_row<G, R>;
    MEMEXT_SURROGATES(MEMEXT_CASE)
#undef MEMEXT_CASE
    default: return nullptr;
  }
}

// gi: on entry what the group after passed back (added to gy), on return dL/d(current). out: beta dL/d(carried z).
template <bool kGiven, bool kPassed, class R>
MEMEXT_ROW back_row(i64 n, const Reversible<R>& neuron, const R* __restrict m, const R* __restrict y,
                    const R* __restrict slope, const R* __restrict gy, R* __restrict e, R* __restrict gi,
                    R* __restrict out) {
  const Reversible<R> k = neuron;
  for (i64 j = 0; j < n; j++) {
    R g = kGiven ? gy[j] : R(0);
    if (kPassed) g += gi[j];
    R carry = e[j], current;
    out[j] = k.backward(m[j], y[j], slope[j], g, carry, current) * k.beta;
    e[j] = carry;
    gi[j] = current;
  }
}

template <class R>
MEMEXT_ROW add_row(i64 n, const R* __restrict a, const R* __restrict b, R* __restrict out) {
  for (i64 j = 0; j < n; j++) out[j] = a[j] + b[j];
}

template <class R>
struct Backward {
  static i64 rows(const ReversibleCall& c) { return 4 * c.steps + 8; }

  static void run(const ReversibleCall& c, const Columns& at, i64 width, R* scratch, u32*) {
    const auto k = Reversible<R>::of(c);
    const auto slope_of_row = slope_of<R>(c.surrogate);
    R a[kMaxSurrogateParams];
    for (int j = 0; j < kMaxSurrogateParams; j++) a[j] = R(c.surrogate_params[j]);
    const i64 block = c.steps * width;
    R *const m = scratch, *const gi = m + block, *const x0 = gi + block, *const gx0 = x0 + block;
    R *const v = gx0 + block, *const e = v + width, *const slope = e + width, *const own = slope + width,
      *const other = own + width, *const given = other + width, *const out = given + width;
    for (i64 g = c.groups - 1; g >= 0; g--) {
      const bool last = g == c.groups - 1;
      load(at, c.initial, g, k.v_reset, v);
      for (i64 t = 0; t < c.steps; t++) {
        const R* const y = at.read<R>(c.y, t, g, own);
        const R* const current = g > 0 ? at.read<R>(c.y, t, g - 1, other) : x0 + t * width;
        follow_row<R>(at.n, k, current, y, v, m + t * width);
        if (last) input_row<R>(at.n, k, m + t * width, y, x0 + t * width);
      }
      load(at, c.grad_final, g, R(0), e);
      const auto back = c.grad_y ? (last ? &back_row<true, false, R> : &back_row<true, true, R>)
                                 : (last ? &back_row<false, false, R> : &back_row<false, true, R>);
      for (i64 t = c.steps - 1; t >= 0; t--) {
        const R* const y = at.read<R>(c.y, t, g, own);
        const R* const gy = c.grad_y ? at.read<R>(c.grad_y, t, g, given) : nullptr;
        slope_of_row(at.n, k, m + t * width, a, slope);
        R* const to = last ? gx0 + t * width : at.to_write<R>(c.grad_x, t, g + 1, out);
        back(at.n, k, m + t * width, y, slope, gy, e, gi + t * width, to);
        if (!last) at.written<R>(c.grad_x, t, g + 1, to);
        if (g == 0) {
          R* const first = at.to_write<R>(c.grad_x, t, 0, out);
          add_row<R>(at.n, gx0 + t * width, gi + t * width, first);
          at.written<R>(c.grad_x, t, 0, first);
        }
      }
      store(at, c.grad_initial, g, e, out);
    }
  }
};

// ---- threads over chunks ------------------------------------------------------------------------------------------

template <class R, class Work>
int over_chunks(const ReversibleCall& c) {
  const i64 columns = c.outer * c.inner, rows = Work::rows(c);
  i64 width = std::min<i64>(512, std::max<i64>(kScratch / (rows * (i64)sizeof(R)), 64)) / 64 * 64;
  const bool whole = c.inner >= kWhole;
  const i64 pieces = whole ? (c.inner + width - 1) / width : 1;  // of one outer row
  const i64 chunks = whole ? c.outer * pieces : (columns + width - 1) / width;
  const int threads = (int)std::max<i64>(1, std::min<i64>(c.threads, chunks));
  bool failed = false;
  u32 greatest[2] = {};
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const i64 size = (rows * width * (i64)sizeof(R) + 2 * width * (i64)sizeof(u32) + 63) / 64 * 64;
    void* const memory = std::aligned_alloc(64, size);
    if (!memory) {
#pragma omp atomic write
      failed = true;
    }
    R* const scratch = static_cast<R*>(memory);
    u32* const most = memory ? reinterpret_cast<u32*>(scratch + rows * width) : nullptr;
    if (memory) std::memset(most, 0, 2 * width * sizeof(u32));
#pragma omp for schedule(static) nowait
    for (i64 j = 0; j < chunks; j++)
      if (memory) {
        const i64 row = whole ? j / pieces : 0, piece = whole ? j % pieces : j;
        const i64 first = row * c.inner + piece * width;
        const i64 end = whole ? (row + 1) * c.inner : columns;
        Work::run(c, {c.outer, c.groups, c.inner, first, std::min(width, end - first)}, width, scratch, most);
      }
#pragma omp critical
    for (int i = 0; memory && i < 2; i++)
      for (i64 j = 0; j < width; j++) greatest[i] = std::max(greatest[i], most[i * width + j]);
    std::free(memory);
  }
  if (c.largest) std::copy_n(greatest, 2, c.largest);
  return failed ? 3 : 0;
}

}  // namespace

extern "C" {
// 0: done. 2: no such surrogate. 3: out of memory.
int memext_reversible_forward(const memext::ReversibleCall* c) {
  if (c->steps <= 0 || c->outer * c->groups * c->inner <= 0) return 0;
  return c->compute == memext::kFloat64 ? over_chunks<double, Forward<double>>(*c)
                                        : over_chunks<float, Forward<float>>(*c);
}
int memext_reversible_backward(const memext::ReversibleCall* c) {
  if (!slope_of<float>(c->surrogate)) return 2;
  if (c->steps <= 0 || c->outer * c->groups * c->inner <= 0) return 0;
  return c->compute == memext::kFloat64 ? over_chunks<double, Backward<double>>(*c)
                                        : over_chunks<float, Backward<float>>(*c);
}
int memext_reversible_call_size() { return (int)sizeof(memext::ReversibleCall); }
}
