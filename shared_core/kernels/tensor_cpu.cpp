// CPU kernels on whole tensors, beside the neurons of cpu.cpp: packing of spikes, batch norm, max pooling. Same
// library, same rules: plain C interface, no Torch. backends/_tensor_native.py calls them.
#include "norm_cpu.h"
#include "pack_cpu.h"
#include "pool_cpu.h"

// The C ABI, beside that of cpu.cpp. Types are those of call.h. Pointers may be null where the number of values is 0.
extern "C" {

// See levels(). 0: `out` [4] is filled. 1: real values.
int memext_levels(const void* x, int type, long long n, double* out) {
  return with_type(type, [&](auto s) { return levels(static_cast<const decltype(s)*>(x), n, out) ? 0 : 1; });
}

// -1: done. Else the first value of a block that does not fit the kind and scale.
long long memext_pack(const void* x, int type, long long n, int kind, double scale, unsigned char* out, int threads) {
  return with_type(type,
                   [&](auto s) { return pack(static_cast<const decltype(s)*>(x), n, kind, scale, out, threads); });
}

void memext_unpack(const unsigned char* data, int kind, double scale, long long n, void* out, int type, int threads) {
  with_type(type, [&](auto s) { unpack(data, n, kind, scale, static_cast<decltype(s)*>(out), threads); });
}

// Tensors of batch norm are [outer, channels, inner] in memory. Per-channel values: double for double, else float.
void memext_normalise(const void* y, int type, long long outer, long long channels, long long inner, const void* scale,
                      const void* shift, void* out, int threads) {
  with_type(type, [&](auto s) {
    using S = decltype(s);
    using R = R_of<S>;
    normalise(static_cast<const S*>(y), {outer, channels, inner}, static_cast<const R*>(scale),
              static_cast<const R*>(shift), static_cast<S*>(out), threads);
  });
}

// a * b + c of n floats or doubles, each rounded once.
void memext_fused(const void* a, const void* b, const void* c, int type, long long n, void* out) {
  const auto run = [&](auto r) {
    using R = decltype(r);
    for (i64 i = 0; i < n; i++)
      static_cast<R*>(out)[i] = fused(static_cast<const R*>(a)[i], static_cast<const R*>(b)[i],
                                      static_cast<const R*>(c)[i]);
  };
  if (type == kFloat64) run(double{});
  else run(float{});
}

// mean, invstd, weight (null: 1): doubles, one per channel. sums [2, channels]: of g and of g * (y - mean); read if
// `known`, else written. training: mean and invstd depend on y. out may be grad.
void memext_norm_backward(const void* grad, const void* y, int type, long long outer, long long channels,
                          long long inner, const double* mean, const double* invstd, const double* weight,
                          double* sums, int training, int known, void* out, int threads) {
  const NormCall call{{outer, channels, inner}, mean, invstd, weight, sums, training != 0, known != 0};
  with_type(type, [&](auto s) {
    using S = decltype(s);
    norm_backward(call, static_cast<const S*>(grad), static_cast<const S*>(y), static_cast<S*>(out), threads);
  });
}

// [planes, h, w] float or double, h and w at least 1, w <= kMaxPoolRow. window 2: stride 2; window 3:
// stride 2 and padding 1; no ceil_mode.
void memext_max_pool(const void* x, int type, long long planes, long long h, long long w, int window, void* out,
                     int threads) {
  const auto run = [&](auto r) {
    using R = decltype(r);
    (window == 2 ? pool_2x2<R> : pool_3x3<R>)(static_cast<const R*>(x), planes, h, w, static_cast<R*>(out), threads);
  };
  if (type == kFloat64) run(double{});
  else run(float{});
}

// Its gradient. Every value of `out` is written.
void memext_max_pool_from(const void* x, int type, long long planes, long long h, long long w, int window,
                          const void* grad, void* out, int threads) {
  const auto run = [&](auto r) {
    using R = decltype(r);
    (window == 2 ? unpool_2x2_from<R> : unpool_3x3_from<R>)(static_cast<const R*>(x), planes, h, w,
                                                            static_cast<const R*>(grad), static_cast<R*>(out), threads);
  };
  if (type == kFloat64) run(double{});
  else run(float{});
}

// The gradient of max pooling where the input's bits are known. Every value of `out` is written.
void memext_max_pool_backward(const memext::Pool* pool, const unsigned char* bits, const void* grad, int type,
                              void* out, int threads) {
  with_type(type, [&](auto s) {
    using S = decltype(s);
    max_pool_backward(*pool, bits, static_cast<const S*>(grad), static_cast<S*>(out), threads);
  });
}
}
