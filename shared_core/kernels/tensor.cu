// GPU kernels on whole tensors, beside the neurons of neuron.cu: packing of spikes, batch norm, max pooling from bits.
// One module per stored type (MEMEXT_STORED), with all kernels; compiled by NVRTC (backends/_tensor_cuda.py), and by
// the C++ compiler with shim.h (tensor_shim.cpp). Semantics are those of tensor_cpu.cpp. No kernel waits for another
// block, and no sum depends on the order in which threads run.
#include "call.h"
#include "tensor.h"
#ifdef __CUDACC__
#define MX_DEVICE __device__ __forceinline__
#else
#include "shim.h"
#define MX_DEVICE inline
#endif

namespace memext {

using u8 = unsigned char;

template <class S> struct Wide { using type = float; };
template <> struct Wide<double> { using type = double; };
template <class S> using R_of = typename Wide<S>::type;  // arithmetic of a stored type

MX_DEVICE i64 first_index() { return (i64)blockIdx.x * blockDim.x + threadIdx.x; }
MX_DEVICE i64 all_threads() { return (i64)gridDim.x * blockDim.x; }

// ---- packing: one thread a byte, one thread a value -------------------------------------------------------------

template <class S>
MX_DEVICE void pack(const S* x, i64 n, int kind, double scale, u8* out) {
  using R = R_of<S>;
  const int each = kind == kBits ? 8 : kind == kNibble ? 2 : 1;
  const R inverse = R(1) / R(scale);
  for (i64 byte = first_index(); byte * each < n; byte += all_threads()) {
    u32 packed = 0;
    for (int j = 0; j < each && byte * each + j < n; j++) {
      const R v = widen(x[byte * each + j]);
      packed |= kind == kBits ? (u32)(v != R(0)) << j : (u32)level_of(v, inverse, R(-128), R(127)) << 4 * j;
    }
    out[byte] = (u8)packed;
  }
}

template <class S>
MX_DEVICE void unpack(const u8* data, i64 n, int kind, double scale, S* out) {
  using R = R_of<S>;
  for (i64 i = first_index(); i < n; i += all_threads()) {
    const R level = kind == kBits     ? R(bit_at(data, i))
                    : kind == kNibble ? R((data[i >> 1] >> 4 * (i & 1)) & 15)
                                      : R((signed char)data[i]);
    narrow(level * R(scale), out[i]);
  }
}

// ---- batch norm: tensors are [outer, channels, inner] in memory -------------------------------------------------

template <class R>
MX_DEVICE void fused_each(const R* a, const R* b, const R* c, i64 n, R* out) {
  for (i64 i = first_index(); i < n; i += all_threads()) out[i] = fused(a[i], b[i], c[i]);
}

template <class S>
MX_DEVICE void normalise(const S* y, i64 n, i64 channels, i64 inner, const R_of<S>* scale, const R_of<S>* shift,
                         S* out) {
  for (i64 i = first_index(); i < n; i += all_threads()) {
    const i64 c = i / inner % channels;
    narrow(fused(R_of<S>(widen(y[i])), scale[c], shift[c]), out[i]);
  }
}

// Partial sums [2, parts, channels] of g and of g * (y - mean): thread (part, channel) adds every parts-th value of its
// channel. Neighbouring threads read neighbouring values: of one channel, or of neighbouring ones where inner is 1.
template <class S>
MX_DEVICE void norm_sums(const S* g, const S* y, i64 outer, i64 channels, i64 inner, const double* mean, i64 parts,
                         double* sums) {
  for (i64 i = first_index(); i < parts * channels; i += all_threads()) {
    const i64 c = inner == 1 ? i % channels : i / parts, part = inner == 1 ? i / channels : i % parts;
    double of_g = 0, of_gy = 0;
    for (i64 k = part; k < outer * inner; k += parts) {
      const i64 at = (k / inner * channels + c) * inner + k % inner;
      const double v = (double)widen(g[at]);
      of_g += v;
      of_gy += v * ((double)widen(y[at]) - mean[c]);
    }
    sums[part * channels + c] = of_g;
    sums[(parts + part) * channels + c] = of_gy;
  }
}

// factors [4, channels]: the fields of NormFactors. out may be g.
template <class S>
MX_DEVICE void norm_apply(const S* g, const S* y, i64 n, i64 channels, i64 inner, const R_of<S>* factors, S* out) {
  using R = R_of<S>;
  for (i64 i = first_index(); i < n; i += all_threads()) {
    const i64 c = i / inner % channels;
    const NormFactors<R> f{factors[c], factors[channels + c], factors[2 * channels + c], factors[3 * channels + c]};
    narrow(norm_grad(R(widen(g[i])), R(widen(y[i])), f), out[i]);
  }
}

// ---- max pooling from bits: one thread a value of the input, which asks the windows it lies in ------------------

MX_DEVICE i64 first_window(const Pool& p, int d, i64 at) {  // the first that reaches position `at`
  const i64 past = at + p.padding[d] - p.kernel[d] + 1;
  return past > 0 ? (past + p.stride[d] - 1) / p.stride[d] : 0;
}
MX_DEVICE i64 last_window(const Pool& p, int d, i64 at) {
  const i64 last = (at + p.padding[d]) / p.stride[d];
  return last < p.out[d] ? last : p.out[d] - 1;
}

template <class S>
MX_DEVICE void unpool(const Pool& p, const u8* bits, const S* grad, S* out) {
  const i64 n = p.batch * p.channels * p.in[0] * p.in[1];
  for (i64 i = first_index(); i < n; i += all_threads()) {
    i64 w = i % p.in[1], h = i / p.in[1] % p.in[0], c = i / (p.in[1] * p.in[0]) % p.channels;
    i64 b = i / (p.in[1] * p.in[0] * p.channels);
    if (p.in_stride[1] == 1) {  // channels last: neighbouring threads on neighbouring channels
      c = i % p.channels, w = i / p.channels % p.in[1];
      h = i / (p.channels * p.in[1]) % p.in[0], b = i / (p.channels * p.in[1] * p.in[0]);
    }
    const i64 plane = b * p.in_stride[0] + c * p.in_stride[1], at = h * p.in_stride[2] + w * p.in_stride[3];
    const S* const from = grad + b * p.out_stride[0] + c * p.out_stride[1];
    S sum;
    narrow(R_of<S>(0), sum);
    for (i64 oh = first_window(p, 0, h); oh <= last_window(p, 0, h); oh++)
      for (i64 ow = first_window(p, 1, w); ow <= last_window(p, 1, w); ow++)
        if (first_maximum(p, bits, plane, oh, ow) == at) {
          const R_of<S> more = widen(from[oh * p.out_stride[2] + ow * p.out_stride[3]]);
          narrow(R_of<S>(widen(sum)) + more, sum);
        }
    out[plane + at] = sum;
  }
}

}  // namespace memext

#ifdef MEMEXT_STORED
using namespace memext;
using S = MEMEXT_STORED;
using R = R_of<S>;
#define MEMEXT_KERNEL extern "C" __global__ void

MEMEXT_KERNEL memext_pack(const S* x, i64 n, int kind, double scale, u8* out) { pack(x, n, kind, scale, out); }
MEMEXT_KERNEL memext_unpack(const u8* data, i64 n, int kind, double scale, S* out) {
  unpack(data, n, kind, scale, out);
}
MEMEXT_KERNEL memext_fused(const R* a, const R* b, const R* c, i64 n, R* out) { fused_each(a, b, c, n, out); }
MEMEXT_KERNEL memext_normalise(const S* y, i64 n, i64 channels, i64 inner, const R* scale, const R* shift, S* out) {
  normalise(y, n, channels, inner, scale, shift, out);
}
MEMEXT_KERNEL memext_norm_sums(const S* g, const S* y, i64 outer, i64 channels, i64 inner, const double* mean,
                               i64 parts, double* sums) {
  norm_sums(g, y, outer, channels, inner, mean, parts, sums);
}
MEMEXT_KERNEL memext_norm_apply(const S* g, const S* y, i64 n, i64 channels, i64 inner, const R* factors, S* out) {
  norm_apply(g, y, n, channels, inner, factors, out);
}
MEMEXT_KERNEL memext_unpool(const __grid_constant__ Pool p, const u8* bits, const S* grad, S* out) {
  unpool(p, bits, grad, out);
}
#endif
