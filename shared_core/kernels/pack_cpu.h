// Packing of spikes and small integers on the CPU: blocks over threads; each value is checked while it is packed.
#pragma once
#include "tensor_cpu.h"

#include <algorithm>
#include <atomic>

namespace {
constexpr i64 kPackBlock = 4096;  // values a thread checks before it looks whether another thread gave up

// What the first values are: smallest, largest, the only one that is not 0 (0: none, -1: several), the coarsest of 1,
// 1/4, 1/16 that divides all (0: none). False: some value is in no alphabet.
template <class S>
bool levels(const S* x, i64 n, double* out) {
  double low = 0, high = 0, only = 0, grid = 1;
  for (i64 i = 0; i < n; i++) {
    const double v = (double)widen(x[i]);
    if (v == 0 && bit_cast<u64>(v) != 0) return false;  // -0.0
    if (!(v > -1e30 && v < 1e30)) return false;
    low = std::min(low, v), high = std::max(high, v);
    if (v != 0 && v != only) only = only == 0 ? v : -1;
    const auto whole = [&] { return v >= -128 && v <= 127 && v / grid == (double)(i64)(v / grid); };
    while (grid > 0 && !whole()) grid = grid > 0.0625 ? grid / 4 : 0;
    if (grid == 0 && only == -1) return false;
  }
  out[0] = low, out[1] = high, out[2] = only, out[3] = grid;
  return true;
}

// 64 bytes of 0 or 1 -> 8 bytes of bits.
inline void gather_bits(const u8* ones, u8* out) {
  for (int k = 0; k < 8; k++) {
    u64 eight;
    MX_MEMCPY(&eight, ones + 8 * k, 8);
    out[k] = (u8)((eight * 0x0102040810204080ull) >> 56);
  }
}

// Bits of values that are all 0 or `one`; false if some is not.
template <class U>
MX_ROW bool pack_bits(const U* __restrict x, i64 n, U one, u8* __restrict out) {
  U bad = 0;
  i64 i = 0;
  for (; i + 64 <= n; i += 64) {
    u8 ones[64];
    U wrong = 0;
    for (int j = 0; j < 64; j++) {
      const U v = x[i + j];
      wrong |= v ^ (v ? one : U(0));
      ones[j] = v != 0;
    }
    bad |= wrong;
    gather_bits(ones, out + i / 8);
  }
  if (i < n) {
    u8 ones[64] = {}, last[8];
    for (int j = 0; i + j < n; j++) {
      const U v = x[i + j];
      bad |= v ^ (v ? one : U(0));
      ones[j] = v != 0;
    }
    gather_bits(ones, last);
    std::copy_n(last, (n - i + 7) / 8, out + i / 8);
  }
  return bad == 0;
}

// Levels as bytes; false if some value has none.
template <class S, class Byte>
MX_ROW bool level_bytes(const S* __restrict x, i64 n, R_of<S> scale, R_of<S> low, R_of<S> high, Byte* __restrict out) {
  const R_of<S> inverse = R_of<S>(1) / scale;
  i32 bad = 0;
  for (i64 i = 0; i < n; i++) {
    const R_of<S> v = widen(x[i]);
    const i32 k = level_of(v, inverse, low, high);
    bad |= !fits(v, k, scale);
    out[i] = (Byte)k;
  }
  return bad == 0;
}

template <class S>
bool pack_block(const S* x, i64 n, int kind, double scale, u8* out) {
  const auto unit = R_of<S>(scale);
  if (kind == kBits) return pack_bits(reinterpret_cast<const U_of<S>*>(x), n, bit_cast<U_of<S>>(stored<S>(scale)), out);
  if (kind == kInt8) return level_bytes(x, n, unit, R_of<S>(-128), R_of<S>(127), reinterpret_cast<signed char*>(out));
  u8 low[kPackBlock];
  const bool fit = level_bytes(x, n, unit, R_of<S>(0), R_of<S>(15), low);
  if (n % 2) low[n] = 0;
  for (i64 i = 0; i < (n + 1) / 2; i++) out[i] = (u8)(low[2 * i] | low[2 * i + 1] << 4);
  return fit;
}

i64 packed_size(i64 n, int kind) { return kind == kBits ? (n + 7) / 8 : kind == kNibble ? (n + 1) / 2 : n; }

// -1: all packed. Else where a block begins that holds a value of another alphabet.
template <class S>
i64 pack(const S* x, i64 n, int kind, double scale, u8* out, int threads) {
  const i64 blocks = (n + kPackBlock - 1) / kPackBlock;
  std::atomic<i64> misfit{-1};
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (i64 b = 0; b < blocks; b++) {
    if (misfit.load(std::memory_order_relaxed) >= 0) continue;
    const i64 from = b * kPackBlock;
    if (!pack_block(x + from, std::min(kPackBlock, n - from), kind, scale, out + packed_size(from, kind)))
      misfit.store(from, std::memory_order_relaxed);
  }
  return misfit.load();
}

template <class U>
MX_ROW void unpack_bits(const u8* __restrict data, i64 n, U one, U* __restrict out) {
  i64 i = 0;
#ifdef __AVX2__  // lanes shifted by different counts
  for (; i + 32 <= n; i += 32) {
    u32 word;
    MX_MEMCPY(&word, data + i / 8, 4);
    for (u32 j = 0; j < 32; j++) out[i + j] = (word >> j) & 1u ? one : U(0);
  }
#else
  for (; i + 64 <= n; i += 64) {
    u8 ones[64];
    for (int k = 0; k < 8; k++) {
      const u64 eight = (data[i / 8 + k] * 0x0101010101010101ull) & 0x8040201008040201ull;  // bit j in byte j
      MX_MEMCPY(ones + 8 * k, &eight, 8);
    }
    for (int j = 0; j < 64; j++) out[i + j] = ones[j] ? one : U(0);
  }
#endif
  for (; i < n; i++) out[i] = bit_at(data, i) ? one : U(0);
}

template <class S, class Byte>
MX_ROW void bytes_to_values(const Byte* __restrict levels, i64 n, R_of<S> scale, S* __restrict out) {
  for (i64 i = 0; i < n; i++) narrow(R_of<S>(levels[i]) * scale, out[i]);
}

template <class S>
void unpack_block(const u8* data, i64 n, int kind, double scale, S* out) {
  if (kind == kBits) {
    unpack_bits(data, n, bit_cast<U_of<S>>(stored<S>(scale)), reinterpret_cast<U_of<S>*>(out));
  } else if (kind == kInt8) {
    bytes_to_values(reinterpret_cast<const signed char*>(data), n, R_of<S>(scale), out);
  } else {
    u8 levels[kPackBlock];
    for (i64 i = 0; i < (n + 1) / 2; i++) levels[2 * i] = data[i] & 15, levels[2 * i + 1] = data[i] >> 4;
    bytes_to_values(levels, n, R_of<S>(scale), out);
  }
}

template <class S>
void unpack(const u8* data, i64 n, int kind, double scale, S* out, int threads) {
  const i64 blocks = (n + kPackBlock - 1) / kPackBlock;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (i64 b = 0; b < blocks; b++) {
    const i64 from = b * kPackBlock;
    unpack_block(data + packed_size(from, kind), std::min(kPackBlock, n - from), kind, scale, out + from);
  }
}

}  // namespace
