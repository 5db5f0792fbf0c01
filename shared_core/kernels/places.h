// Where the rows of a chunk of neurons lie in the tensors of a sequence, step by step (CPU).
//
// Where channel groups share a membrane (Call::groups), a row may be in pieces that lie apart: it is then gathered in a
// buffer, or scattered from it. Else, and where a chunk lies in one run, it is one piece, read and written in place.
#pragma once
#include "rows.h"

namespace {

struct Places {
  const memext::Call& c;
  const long long lo, n;  // neurons lo to lo + n - 1
  const bool whole;       // each row is one piece

  Places(const memext::Call& call, long long lo, long long n)
      : c(call), lo(lo), n(n), whole(c.groups == 1 || lo / c.run == (lo + n - 1) / c.run) {}

  long long values_per_step() const { return c.neurons * c.groups; }
  long long time_of(long long step) const { return step / c.groups; }
  bool ends_time_step(long long step) const { return (step + 1) % c.groups == 0; }
  bool begins_time_step(long long step) const { return step % c.groups == 0; }

  // f(i, m, at) for each piece: the values of neurons lo + i to lo + i + m - 1 begin at `at` in their time step.
  template <class F>
  void each_piece(long long step, F f) const {
    for (long long i = 0; i < n;) {
      const long long m = whole ? n : std::min(n - i, c.run - (lo + i) % c.run);
      f(i, m, memext::place(c, step % c.groups, lo + i));
      i += m;
    }
  }

  // The row of a step: in place, or in `buffer`. stride: from one time step to the next.
  template <class R>
  const R* read(const void* tensor, int type, long long stride, long long step, R* buffer) const {
    const long long start = time_of(step) * stride;
    if (whole) return read_row<R>(tensor, type, start + memext::place(c, step % c.groups, lo), n, buffer);
    each_piece(step, [&](long long i, long long m, long long at) {
      const R* piece = read_row<R>(tensor, type, start + at, m, buffer + i);
      if (piece != buffer + i) std::copy_n(piece, m, buffer + i);
    });
    return buffer;
  }

  // Where the kernel writes the row of a step: in place, or into `buffer` until write() brings it there.
  template <class R>
  R* to_write(void* tensor, int type, long long step, R* buffer) const {
    if (!whole) return buffer;
    const long long start = time_of(step) * values_per_step();
    return row_to_write<R>(tensor, type, start + memext::place(c, step % c.groups, lo), buffer);
  }
  template <class R>
  void write(void* tensor, int type, long long step, const R* row) const {
    const long long start = time_of(step) * values_per_step();
    each_piece(step, [&](long long i, long long m, long long at) {
      R* there = row_to_write<R>(tensor, type, start + at, (R*)nullptr);
      if (there && !whole) std::copy_n(row + i, m, there);
      write_row<R>(tensor, type, start + at, m, row + i);
    });
  }

  unsigned char* bits_of(long long step) const { return c.bits + time_of(step) * ((values_per_step() + 7) / 8); }

  // Pieces begin at whole bytes: groups are 1, or run is a multiple of 8.
  template <class R>
  void pack(const R* row, long long step) const {
    unsigned char* bits = bits_of(step);
    each_piece(step, [&](long long i, long long m, long long at) { pack_row(row + i, m, bits + at / 8); });
  }
  // Pieces may begin anywhere. Where they begin at whole bytes, writes whole bytes: up to 7 values past the row.
  template <class R>
  void unpack(R* row, long long step) const {
    const unsigned char* bits = bits_of(step);
    const bool bytes = c.groups == 1 || c.run % 8 == 0;
    each_piece(step, [&](long long i, long long m, long long at) {
      if (bytes) return unpack_row(bits + at / 8, m, row + i);
      for (long long k = 0; k < m; k++) row[i + k] = R(bits[(at + k) / 8] >> (at + k) % 8 & 1);
    });
  }
};

}  // namespace
