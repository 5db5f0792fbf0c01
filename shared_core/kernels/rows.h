// Rows of a sequence as the arithmetic type R: a pointer into the tensor where the types agree, a converted copy
// where they do not (half.h). Also packed spikes, and rows of values per channel.
#pragma once
#include "affine.h"
#include "call.h"
#include "half.h"

#include <algorithm>
#include <cstring>

// A vector loop as a function of its own: inlined into its caller, gcc forgets that the rows do not overlap.
#define MEMEXT_ROW __attribute__((noinline)) void

namespace {

using memext::Type;

template <class R, class From, class Convert>
inline void convert(const void* from, long long offset, long long n, R* __restrict to, Convert f) {
  const From* __restrict p = static_cast<const From*>(from) + offset;
  for (long long i = 0; i < n; i++) to[i] = (R)f(p[i]);
}

// n values from `offset` of a tensor of `type`, as R: in place, or converted into `buffer`.
template <class R>
const R* read_row(const void* tensor, int type, long long offset, long long n, R* buffer) {
  const int own = sizeof(R) == 8 ? memext::kFloat64 : memext::kFloat32;
  if (type == own) return static_cast<const R*>(tensor) + offset;
  const auto from_half = [](auto h) { return memext::from_float16(h); };
  const auto from_brain = [](auto h) { return memext::from_bfloat16(h); };
  switch (type) {
    case memext::kFloat32: convert<R, float>(tensor, offset, n, buffer, [](float v) { return v; }); break;
    case memext::kFloat64: convert<R, double>(tensor, offset, n, buffer, [](double v) { return v; }); break;
    case memext::kFloat16: convert<R, unsigned short>(tensor, offset, n, buffer, from_half); break;
    default: convert<R, unsigned short>(tensor, offset, n, buffer, from_brain); break;
  }
  return buffer;
}

// Where the kernel writes a row: straight into the tensor, or into `buffer` until write_row converts it.
template <class R>
R* row_to_write(void* tensor, int type, long long offset, R* buffer) {
  const int own = sizeof(R) == 8 ? memext::kFloat64 : memext::kFloat32;
  return type == own ? static_cast<R*>(tensor) + offset : buffer;
}

template <class R>
void write_row(void* tensor, int type, long long offset, long long n, const R* row) {
  const int own = sizeof(R) == 8 ? memext::kFloat64 : memext::kFloat32;
  if (type == own) return;
  if (type == memext::kFloat32 || type == memext::kFloat64) {
    for (long long i = 0; i < n; i++) {
      if (type == memext::kFloat32) static_cast<float*>(tensor)[offset + i] = (float)row[i];
      else static_cast<double*>(tensor)[offset + i] = (double)row[i];
    }
    return;
  }
  unsigned short* __restrict out = static_cast<unsigned short*>(tensor) + offset;
  if (type == memext::kFloat16) for (long long i = 0; i < n; i++) out[i] = memext::to_float16((float)row[i]);
  else for (long long i = 0; i < n; i++) out[i] = memext::to_bfloat16((float)row[i]);
}

// Bit i % 8 of byte i / 8 says whether row[i] is not zero; unused bits of the last byte are 0.
template <class R>
void pack_row(const R* __restrict row, long long n, unsigned char* __restrict out) {
  long long i = 0;
  for (; i + 8 <= n; i += 8) {
    unsigned byte = 0;
    for (int j = 0; j < 8; j++) byte |= (unsigned)(row[i + j] != R(0)) << j;
    out[i / 8] = (unsigned char)byte;
  }
  if (i < n) {
    unsigned byte = 0;
    for (int j = 0; i + j < n; j++) byte |= (unsigned)(row[i + j] != R(0)) << j;
    out[i / 8] = (unsigned char)byte;
  }
}

// The eight values of every byte: looked up, they cost a fifth of what shifting costs.
template <class R>
struct BitTable {
  R values[256][8];
  constexpr BitTable() : values() {
    for (int byte = 0; byte < 256; byte++)
      for (int j = 0; j < 8; j++) values[byte][j] = R(byte >> j & 1);
  }
};

// The inverse, as 1 and 0. Writes whole bytes: up to 7 values past n.
template <class R>
MEMEXT_ROW unpack_row(const unsigned char* __restrict bits, long long n, R* __restrict row) {
  static constexpr BitTable<R> table;
  for (long long i = 0; i < n; i += 8) std::memcpy(row + i, table.values[bits[i / 8]], sizeof(table.values[0]));
}

// ---- values per channel (Param) ---------------------------------------------------------------------------------

// The values of n neurons from `lo` on, run by run: f(i, m, j, step) says that neurons lo + i, lo + i + 1, ... (m of
// them) have the values j, j + step, ...; step is 0 (one channel for all of them) or 1 (each its own).
template <class F>
void each_run(const memext::Param& p, long long lo, long long n, F f) {
  if (p.size == 1) return f(0ll, n, 0ll, 0);
  for (long long i = 0; i < n;) {
    const long long at = lo + i, channel = at / p.inner % p.size;
    const long long left = p.inner == 1 ? p.size - channel : p.inner - at % p.inner;
    const long long m = std::min(n - i, left);
    f(i, m, channel, p.inner == 1 ? 1 : 0);
    i += m;
  }
}

template <class R>
void fill_row(const memext::Param& p, long long lo, long long n, R* row) {
  const R* values = static_cast<const R*>(p.data);
  each_run(p, lo, n, [&](long long i, long long m, long long j, int step) {
    if (step) std::copy_n(values + j, m, row + i);
    else std::fill_n(row + i, m, values[j]);
  });
}

// x = fma(y, scale, shift), rounded to `type`.
template <class R>
MEMEXT_ROW affine_row(int type, long long n, const R* __restrict y, const R* __restrict scale,
                      const R* __restrict shift, R* __restrict x) {
  if (type == memext::kFloat16)
    for (long long i = 0; i < n; i++) x[i] = memext::affine<memext::Float16>(y[i], scale[i], shift[i]);
  else if (type == memext::kBFloat16)
    for (long long i = 0; i < n; i++) x[i] = memext::affine<memext::BFloat16>(y[i], scale[i], shift[i]);
  else
    for (long long i = 0; i < n; i++) x[i] = memext::affine<R>(y[i], scale[i], shift[i]);
}

// Lane by lane: sum += g, product += g y.
template <class R>
MEMEXT_ROW sum_row(long long n, const R* __restrict g, const R* __restrict y, R* __restrict sum,
                   R* __restrict product) {
  for (long long i = 0; i < n; i++) sum[i] += g[i], product[i] += g[i] * y[i];
}

template <class R>
double sum_of(const R* row, long long n) {
  double parts[8] = {};  // side by side: gcc keeps the order of a sum, and one sum would wait for itself
  long long i = 0;
  for (; i + 8 <= n; i += 8)
    for (int j = 0; j < 8; j++) parts[j] += row[i + j];
  for (; i < n; i++) parts[0] += row[i];
  return ((parts[0] + parts[1]) + (parts[2] + parts[3])) + ((parts[4] + parts[5]) + (parts[6] + parts[7]));
}

// Adds n values from neuron `lo` on to the sums of their channels.
template <class R>
void add_to_channels(const memext::Param& p, long long lo, long long n, const R* row, double* sums) {
  each_run(p, lo, n, [&](long long i, long long m, long long j, int step) {
    if (step) for (long long k = 0; k < m; k++) sums[j + k] += row[i + k];
    else sums[j] += sum_of(row + i, m);
  });
}

}  // namespace
