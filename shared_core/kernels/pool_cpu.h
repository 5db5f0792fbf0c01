// Max pooling on the CPU: forward on floats, backward from those floats or straight from the bits of spikes.
#pragma once
#include "tensor_cpu.h"

#include <algorithm>
#include <cstring>

namespace {

// ---- forward ----------------------------------------------------------------------------------------------------

// The maximum as Torch finds it, going through a window: the first of equal values, a NaN if there is one.
template <class R>
MX_HD bool replaces(R so_far, R next) { return (next > so_far) | (next != next); }
template <class R>
MX_HD R larger(R so_far, R next) { return replaces(so_far, next) ? next : so_far; }

template <class R>
MX_ROW void pool_2x2_row(const R* __restrict a, const R* __restrict b, i64 n, R* __restrict out) {
  for (i64 i = 0; i < n; i++)
    out[i] = larger(larger(larger(a[2 * i], a[2 * i + 1]), b[2 * i]), b[2 * i + 1]);
}

// Windows of 3, stride 2, padding 1 along one row of w values.
template <class R>
MX_ROW void pool_row_of_3(const R* __restrict x, i64 w, i64 n, R* __restrict out) {
  const i64 whole = std::min(n, w / 2);  // windows whose last value, 2 i + 1, is inside
  out[0] = w > 1 ? larger(x[0], x[1]) : x[0];
  for (i64 i = 1; i < whole; i++) out[i] = larger(larger(x[2 * i - 1], x[2 * i]), x[2 * i + 1]);
  for (i64 i = std::max<i64>(whole, 1); i < n; i++) out[i] = larger(x[2 * i - 1], x[2 * i]);
}

template <class R>
MX_ROW void pool_rows(const R* __restrict a, const R* __restrict b, i64 n, R* __restrict out) {
  for (i64 i = 0; i < n; i++) out[i] = larger(a[i], b[i]);
}

template <class R>
void pool_2x2(const R* x, i64 planes, i64 h, i64 w, R* out, int threads) {
  const i64 oh = h / 2, ow = w / 2;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (i64 p = 0; p < planes; p++)
    for (i64 i = 0; i < oh; i++) {
      const R* row = x + (p * h + 2 * i) * w;
      pool_2x2_row(row, row + w, ow, out + (p * oh + i) * ow);
    }
}

// Along rows first, then across three rows; the last one is also the next window's first. Neither order nor grouping
// changes which value comes first or which NaN comes last.
constexpr i64 kMaxPoolRow = 2048;

template <class R>
void pool_3x3(const R* x, i64 planes, i64 h, i64 w, R* out, int threads) {
  const i64 oh = (h - 1) / 2 + 1, ow = (w - 1) / 2 + 1;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (i64 p = 0; p < planes; p++) {
    R before[kMaxPoolRow], row[kMaxPoolRow];  // row 2 i - 1; the row at hand
    for (i64 i = 0; i < oh; i++) {
      R* to = out + (p * oh + i) * ow;
      const R* from = x + (p * h + 2 * i) * w;
      pool_row_of_3(from, w, ow, row);
      if (i == 0) std::copy_n(row, ow, to);
      else pool_rows(before, row, ow, to);
      if (2 * i + 1 < h) {
        pool_row_of_3(from + w, w, ow, before);
        std::copy_n(to, ow, row);
        pool_rows(row, before, ow, to);
      }
    }
  }
}

// ---- backward from values ---------------------------------------------------------------------------------------

// The gradient goes to the last value that replaced those before it, else to the first: each takes it all or hands on
// what is left. (Selects, no index: an index keeps the compiler from vector code, and takes ten times as long.)
template <class R>
MX_ROW void unpool_2x2_values(const R* __restrict a, const R* __restrict b, const R* __restrict g, i64 n,
                              R* __restrict out_a, R* __restrict out_b) {
  for (i64 i = 0; i < n; i++) {
    const R a0 = a[2 * i], a1 = a[2 * i + 1], b0 = b[2 * i], b1 = b[2 * i + 1];
    const bool second = replaces(a0, a1);
    const R of_two = second ? a1 : a0;
    const bool third = replaces(of_two, b0);
    const R of_three = third ? b0 : of_two;
    const bool fourth = replaces(of_three, b1);
    const R all = g[i], left3 = fourth ? R(0) : all, left2 = third ? R(0) : left3;
    out_b[2 * i + 1] = fourth ? all : R(0);
    out_b[2 * i] = third ? left3 : R(0);
    out_a[2 * i + 1] = second ? left2 : R(0);
    out_a[2 * i] = second ? R(0) : left2;
  }
}

template <class R>
void unpool_2x2_from(const R* x, i64 planes, i64 h, i64 w, const R* grad, R* out, int threads) {
  const i64 oh = h / 2, ow = w / 2;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (i64 p = 0; p < planes; p++) {
    for (i64 i = 0; i < oh; i++) {
      const i64 top = (p * h + 2 * i) * w;
      unpool_2x2_values(x + top, x + top + w, grad + (p * oh + i) * ow, ow, out + top, out + top + w);
      if (w > 2 * ow) out[top + w - 1] = out[top + 2 * w - 1] = R(0);
    }
    if (h > 2 * oh) std::fill_n(out + (p * h + h - 1) * w, w, R(0));
  }
}

// Windows of 3, stride 2, padding 1 meet: their gradients are added in the order of the windows, as Torch does.
template <class R>
void unpool_3x3_from(const R* x, i64 planes, i64 h, i64 w, const R* grad, R* out, int threads) {
  const i64 oh = (h - 1) / 2 + 1, ow = (w - 1) / 2 + 1;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (i64 p = 0; p < planes; p++) {
    const R* plane = x + p * h * w;
    R* to = out + p * h * w;
    std::fill_n(to, h * w, R(0));
    for (i64 i = 0; i < oh; i++)
      for (i64 j = 0; j < ow; j++) {
        const i64 top = std::max<i64>(2 * i - 1, 0), left = std::max<i64>(2 * j - 1, 0);
        i64 at = top * w + left;
        for (i64 r = top; r < std::min(2 * i + 2, h); r++)
          for (i64 c = left; c < std::min(2 * j + 2, w); c++)
            if (replaces(plane[at], plane[r * w + c])) at = r * w + c;
        to[at] += grad[(p * oh + i) * ow + j];
      }
  }
}

// ---- backward from bits -----------------------------------------------------------------------------------------

// 64 bits from bit `at` on, of which at least 57 count; zeros past the end.
inline u64 bits_from(const u8* bits, i64 bytes, i64 at) {
  u64 word = 0;
  const i64 byte = at >> 3;
  if (byte + 8 <= bytes) MX_MEMCPY(&word, bits + byte, 8);
  else if (byte < bytes) MX_MEMCPY(&word, bits + byte, bytes - byte);
  return word >> (at & 7);
}

constexpr i64 kWordBits = 48;  // a multiple of 2 that bits_from always has

// out[i] = g[i / 2] where bit i of `chosen` is set, else 0.
template <class U>
MX_ROW void spread(u64 chosen, const U* __restrict g, i64 outputs, U* __restrict out) {
  for (i64 i = 0; i < outputs; i++) {
    out[2 * i] = (chosen >> (2 * i)) & 1 ? g[i] : U(0);
    out[2 * i + 1] = (chosen >> (2 * i + 1)) & 1 ? g[i] : U(0);
  }
}

// 2 x 2 windows side by side in contiguous planes: which value is chosen is computed on whole words of bits.
template <class U>
void unpool_2x2(const Pool& p, const u8* bits, i64 bytes, const U* grad, U* out, int threads) {
  const i64 h = p.in[0], w = p.in[1], oh = p.out[0], ow = p.out[1];
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (i64 row = 0; row < p.batch * p.channels * oh; row++) {
    const i64 plane = row / oh, i = row % oh, top = (plane * h + 2 * i) * w;
    for (i64 j = 0; j < ow; j += kWordBits / 2) {
      constexpr u64 kEven = 0x5555555555555555ull;
      const u64 a = bits_from(bits, bytes, top + 2 * j), b = bits_from(bits, bytes, top + w + 2 * j);
      const u64 a0 = a & kEven, a1 = (a >> 1) & kEven, b0 = b & kEven, b1 = (b >> 1) & kEven;
      const u64 none = ~(a0 | a1 | b0 | b1) & kEven;
      const i64 n = std::min(kWordBits / 2, ow - j);
      spread((a0 | none) | (a1 & ~a0) << 1, grad + row * ow + j, n, out + top + 2 * j);
      spread((b0 & ~(a0 | a1)) | (b1 & ~(a0 | a1 | b0)) << 1, grad + row * ow + j, n, out + top + w + 2 * j);
    }
    if (w > 2 * ow) out[top + w - 1] = out[top + 2 * w - 1] = 0;
    if (i == oh - 1 && h > 2 * oh) std::fill_n(out + top + 2 * w, w, U(0));
  }
}

template <class S>
void add_to(S& sum, const S& g) { narrow(R_of<S>(widen(sum)) + R_of<S>(widen(g)), sum); }

// Windows of up to kMaxCells values in rows that lie dense: the bits of a window are one word, whose lowest set bit is
// the first spike.
constexpr i64 kMaxCells = 63, kMaxRows = 8, kMaxColumns = 16;

struct Windows {
  const Pool p;
  i64 at_once;            // windows that one word of a row holds
  i64 offset[kMaxCells + 1];  // of each value of a window from its first, in elements

  explicit Windows(const Pool& pool) : p(pool), at_once((kWordBits - p.kernel[1]) / p.stride[1] + 1) {
    for (i64 k = 0; k <= kMaxCells; k++) offset[k] = k / p.kernel[1] * p.in_stride[2] + k % p.kernel[1];
  }

  static bool serve(const Pool& p) {
    return p.in_stride[3] == 1 && p.kernel[0] <= kMaxRows && p.kernel[1] <= kMaxColumns &&
           p.kernel[0] * p.kernel[1] <= kMaxCells && p.stride[1] <= kWordBits;
  }
};

// One row of windows. kHeight: rows of a window, 0: read from the geometry.
template <int kHeight, class S>
MX_ROW void unpool_row(const Windows& windows, const u8* bits, i64 bytes, i64 plane, i64 oh, const S* grad, S* out) {
  const Pool& p = windows.p;
  const i64 step = p.in_stride[2], height = kHeight ? kHeight : p.kernel[0], width = p.kernel[1], w = p.in[1];
  const i64 top = oh * p.stride[0] - p.padding[0], stride = p.stride[1], each_grad = p.out_stride[3];
  S* const first_row = out + window_start(p, 0, oh) * step;
  const u64 columns = (1ull << width) - 1;
  for (i64 from = 0; from < p.out[1]; from += windows.at_once) {
    i64 left = from * stride - p.padding[1];  // column of the words' lowest bit
    const i64 shift = left < 0 ? -left : 0;
    const u64 inside = w - left < 64 ? (1ull << (w - left)) - 1 : ~0ull;
    u64 rows[kMaxRows];
    for (i64 r = 0; r < height; r++) {
      const bool there = top + r >= 0 && top + r < p.in[0];
      rows[r] = there ? bits_from(bits, bytes, plane + (top + r) * step + left + shift) << shift & inside : 0;
    }
    const i64 end = std::min(from + windows.at_once, p.out[1]);
    for (i64 ow = from; ow < end; ow++, left += stride) {
      u64 window = 0;
      for (i64 r = 0; r < height; r++) {
        window |= (rows[r] & columns) << r * width;
        rows[r] >>= stride;
      }
      S* const spike = out + top * step + left + windows.offset[__builtin_ctzll(window | 1ull << kMaxCells)];
      add_to(*(window ? spike : first_row + (left > 0 ? left : 0)), grad[ow * each_grad]);
    }
  }
}

// Channels last: all channels of a window side by side, 32 bits of each of its values a word.
template <class S>
MX_ROW void add_chosen(u32 chosen, const S* __restrict grad, i64 n, S* __restrict out) {
  for (i64 i = 0; i < n; i++) {
    S sum = out[i];
    add_to(sum, grad[i]);
    out[i] = (chosen >> i) & 1 ? sum : out[i];
  }
}

template <class S>
void unpool_channels(const Pool& p, const u8* bits, i64 bytes, i64 image, i64 oh, i64 ow, const S* grad, S* out) {
  const i64 h0 = window_start(p, 0, oh), h1 = window_end(p, 0, oh);
  const i64 w0 = window_start(p, 1, ow), w1 = window_end(p, 1, ow);
  for (i64 c = 0; c < p.channels; c += 32) {
    const i64 n = std::min<i64>(32, p.channels - c);
    const auto at = [&](i64 h, i64 w) { return h * p.in_stride[2] + w * p.in_stride[3] + c; };
    u32 open = n == 32 ? ~0u : (1u << n) - 1;  // channels without a spike so far
    for (i64 h = h0; h < h1; h++)
      for (i64 w = w0; w < w1; w++) {
        const u32 chosen = (u32)bits_from(bits, bytes, image + at(h, w)) & open;
        open &= ~chosen;
        if (chosen) add_chosen(chosen, grad + c, n, out + at(h, w));
      }
    if (open) add_chosen(open, grad + c, n, out + at(h0, w0));
  }
}

// Any windows. Gradients that meet are added in the order of the windows, in the stored type, as Torch does.
template <class S>
void unpool(const Pool& p, const u8* bits, i64 bytes, const S* grad, S* out, int threads) {
  const Windows windows(p);
  const bool rows = Windows::serve(p), channels = p.in_stride[1] == 1 && p.out_stride[1] == 1 && p.channels > 1;
  const auto one_row = p.kernel[0] == 2 ? &unpool_row<2, S> : p.kernel[0] == 3 ? &unpool_row<3, S> : &unpool_row<0, S>;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (i64 task = 0; task < (channels ? p.batch : p.batch * p.channels); task++) {
    const i64 n = channels ? task : task / p.channels, c = channels ? 0 : task % p.channels;
    const i64 at = n * p.in_stride[0] + c * p.in_stride[1];
    const S* from = grad + n * p.out_stride[0] + c * p.out_stride[1];
    for (i64 oh = 0; oh < p.out[0]; oh++) {
      const S* row = from + oh * p.out_stride[2];
      if (!channels && rows) one_row(windows, bits, bytes, at, oh, row, out + at);
      else
        for (i64 ow = 0; ow < p.out[1]; ow++) {
          const S* g = row + ow * p.out_stride[3];
          if (channels) unpool_channels(p, bits, bytes, at, oh, ow, g, out + at);
          else add_to(out[at + first_maximum(p, bits, at, oh, ow)], *g);
        }
    }
  }
}

template <class S>
void max_pool_backward(const Pool& p, const u8* bits, const S* grad, S* out, int threads) {
  const i64 values = p.batch * p.channels * p.in[0] * p.in[1], bytes = (values + 7) / 8;
  const auto each = [&](int d) {
    return p.kernel[d] == 2 && p.stride[d] == 2 && p.padding[d] == 0 && p.out[d] == p.in[d] / 2;
  };
  const auto contiguous = [&](const i64* stride, const i64* size) {
    return stride[3] == 1 && stride[2] == size[1] && stride[1] == size[0] * size[1] &&
           stride[0] == p.channels * stride[1];
  };
  const bool long_rows = p.out[1] >= 8;  // shorter ones are quicker window by window
  if (long_rows && each(0) && each(1) && contiguous(p.in_stride, p.in) && contiguous(p.out_stride, p.out)) {
    unpool_2x2(p, bits, bytes, reinterpret_cast<const U_of<S>*>(grad), reinterpret_cast<U_of<S>*>(out), threads);
    return;
  }
  std::memset(static_cast<void*>(out), 0, values * sizeof(S));
  unpool(p, bits, bytes, grad, out, threads);
}

}  // namespace
