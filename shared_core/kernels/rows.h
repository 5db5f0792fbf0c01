// Rows of a sequence as the arithmetic type R: a pointer into the tensor where the types agree, a converted copy
// where they do not (half.h).
#pragma once
#include "call.h"
#include "half.h"

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

}  // namespace
