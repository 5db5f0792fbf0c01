// Batch norm on the CPU. A tensor [N, C, *], dense in any order of its dimensions, lies in memory as [outer, channels,
// inner]: contiguous images have inner = H * W, channels_last has inner = 1.
#pragma once
#include "tensor_cpu.h"

#include <algorithm>
#include <vector>

namespace {

struct Shape { i64 outer, channels, inner; };

constexpr i64 kTaskBytes = 512 * 1024;  // of gradient and input: what the sums read is still cached when applied

// ---- forward ----------------------------------------------------------------------------------------------------

template <class S>
MX_ROW void normalise_row(const S* y, i64 n, R_of<S> scale, R_of<S> shift, S* out) {
  MX_EACH
  for (i64 i = 0; i < n; i++) narrow(fused(R_of<S>(widen(y[i])), scale, shift), out[i]);
}
template <class S>
MX_ROW void normalise_each(const S* y, i64 n, const R_of<S>* scale, const R_of<S>* shift, S* out) {
  MX_EACH
  for (i64 i = 0; i < n; i++) narrow(fused(R_of<S>(widen(y[i])), scale[i], shift[i]), out[i]);
}

template <class S>
void normalise(const S* y, Shape s, const R_of<S>* scale, const R_of<S>* shift, S* out, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (i64 row = 0; row < (s.inner == 1 ? s.outer : s.outer * s.channels); row++) {
    if (s.inner == 1) {
      normalise_each(y + row * s.channels, s.channels, scale, shift, out + row * s.channels);
    } else {
      const i64 c = row % s.channels;
      normalise_row(y + row * s.inner, s.inner, scale[c], shift[c], out + row * s.inner);
    }
  }
}

// ---- backward: sums ---------------------------------------------------------------------------------------------

// Sums of g and of g * (y - mean) of one channel in lanes, so that a row of a few values costs few instructions.
constexpr int kLanes = 16;
struct Lanes {
  double of_g[kLanes] = {}, of_gy[kLanes] = {};

  void fold(double* sum_g, double* sum_gy) {
    for (int width = kLanes / 2; width > 0; width /= 2)
      for (int j = 0; j < width; j++) of_g[j] += of_g[j + width], of_gy[j] += of_gy[j + width];
    *sum_g = of_g[0], *sum_gy = of_gy[0];
  }
};

// Adds one row. At once: values taken together, at most kLanes; the row's last ones go one by one.
template <int kAtOnce, class S>
MX_ROW void sum_row(const S* __restrict g, const S* __restrict y, i64 n, double mean, Lanes& __restrict lanes) {
  double of_g[kAtOnce], of_gy[kAtOnce];
  for (int j = 0; j < kAtOnce; j++) of_g[j] = lanes.of_g[j], of_gy[j] = lanes.of_gy[j];
  i64 i = 0;
  for (; i + kAtOnce <= n; i += kAtOnce)
    for (int j = 0; j < kAtOnce; j++) {
      const double v = widen(g[i + j]);
      of_g[j] += v;
      of_gy[j] += v * ((double)widen(y[i + j]) - mean);
    }
  for (int j = 0; j < kAtOnce; j++) lanes.of_g[j] = of_g[j], lanes.of_gy[j] = of_gy[j];
  for (int j = 0; i < n; i++, j++) {
    const double v = widen(g[i]);
    lanes.of_g[j] += v;
    lanes.of_gy[j] += v * ((double)widen(y[i]) - mean);
  }
}

// Adds one row of all channels, inner = 1.
template <class S>
MX_ROW void sum_each(const S* __restrict g, const S* __restrict y, i64 n, const double* __restrict mean,
                     double* __restrict of_g, double* __restrict of_gy) {
  for (i64 i = 0; i < n; i++) {
    const double v = widen(g[i]);
    of_g[i] += v;
    of_gy[i] += v * ((double)widen(y[i]) - mean[i]);
  }
}

// ---- backward: apply --------------------------------------------------------------------------------------------

template <class S>
MX_ROW void grad_row(const S* g, const S* y, i64 n, const NormFactors<R_of<S>> f, S* out) {
  MX_EACH
  for (i64 i = 0; i < n; i++) narrow(norm_grad(R_of<S>(widen(g[i])), R_of<S>(widen(y[i])), f), out[i]);
}
template <class S>
MX_ROW void grad_each(const S* g, const S* y, i64 n, const R_of<S>* mean, const R_of<S>* scale, const R_of<S>* mean_g,
                      const R_of<S>* slope, S* out) {
  MX_EACH
  for (i64 i = 0; i < n; i++) {
    const NormFactors<R_of<S>> f{mean[i], scale[i], mean_g[i], slope[i]};
    narrow(norm_grad(R_of<S>(widen(g[i])), R_of<S>(widen(y[i])), f), out[i]);
  }
}

// ---- backward ---------------------------------------------------------------------------------------------------

// Per channel. weight null: 1. sums [2, channels]: sum of g and of g * (y - mean); given if `known`, else filled.
struct NormCall {
  Shape shape;
  const double *mean, *invstd, *weight;
  double* sums;
  bool training, known;
};

template <class S>
NormFactors<R_of<S>> factors_of(const NormCall& c, i64 channel) {
  return norm_factors<R_of<S>>(c.sums[channel], c.sums[c.shape.channels + channel], c.mean[channel], c.invstd[channel],
                               c.weight ? c.weight[channel] : 1.0,
                               c.training ? (double)(c.shape.outer * c.shape.inner) : 0.0);
}

// Whole channels a task, summed and applied while they are cached. out may be g.
template <class S>
void norm_backward_by_channel(const NormCall& c, const S* g, const S* y, S* out, int threads) {
  const Shape s = c.shape;
  const i64 fair = (s.channels + threads - 1) / threads;
  const i64 cached = std::max(kTaskBytes / std::max<i64>(1, s.outer * s.inner * 2 * (i64)sizeof(S)), 64 / s.inner + 1);
  const i64 width = std::min(fair, cached), tasks = (s.channels + width - 1) / width;
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (i64 task = 0; task < tasks; task++) {
    const i64 first = task * width, count = std::min(width, s.channels - first);
    const auto each_row = [&](auto f) {
      for (i64 o = 0; o < s.outer; o++)
        for (i64 i = 0; i < count; i++) f(i, (o * s.channels + first + i) * s.inner);
    };
    if (!c.known) {
      std::vector<Lanes> lanes(count);
      const auto add = s.inner >= kLanes ? &sum_row<kLanes, S> : &sum_row<4, S>;
      each_row([&](i64 i, i64 at) { add(g + at, y + at, s.inner, c.mean[first + i], lanes[i]); });
      for (i64 i = 0; i < count; i++) lanes[i].fold(&c.sums[first + i], &c.sums[s.channels + first + i]);
    }
    std::vector<NormFactors<R_of<S>>> factors(count);
    for (i64 i = 0; i < count; i++) factors[i] = factors_of<S>(c, first + i);
    each_row([&](i64 i, i64 at) { grad_row(g + at, y + at, s.inner, factors[i], out + at); });
  }
}

// Rows of all channels: blocks of rows have sums of their own, added in order, so threads do not change the result.
template <class S>
void norm_backward_by_row(const NormCall& c, const S* g, const S* y, S* out, int threads) {
  using R = R_of<S>;
  const i64 outer = c.shape.outer, channels = c.shape.channels;
  if (!c.known) {
    const i64 block = std::max<i64>(16, (outer + 63) / 64), blocks = (outer + block - 1) / block;
    std::vector<double> parts(blocks * 2 * channels, 0.0);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (i64 b = 0; b < blocks; b++)
      for (i64 row = b * block; row < std::min((b + 1) * block, outer); row++)
        sum_each(g + row * channels, y + row * channels, channels, c.mean, &parts[b * 2 * channels],
                 &parts[(b * 2 + 1) * channels]);
    for (i64 b = 0; b < blocks; b++)
      for (i64 i = 0; i < 2 * channels; i++) c.sums[i] += parts[b * 2 * channels + i];
  }
  std::vector<R> mean(channels), scale(channels), mean_g(channels), slope(channels);
  for (i64 i = 0; i < channels; i++) {
    const auto f = factors_of<S>(c, i);
    mean[i] = f.mean, scale[i] = f.scale, mean_g[i] = f.g, slope[i] = f.slope;
  }
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
  for (i64 row = 0; row < outer; row++) {
    const i64 at = row * channels;
    grad_each(g + at, y + at, channels, mean.data(), scale.data(), mean_g.data(), slope.data(), out + at);
  }
}

template <class S>
void norm_backward(const NormCall& c, const S* g, const S* y, S* out, int threads) {
  if (!c.known) std::fill_n(c.sums, 2 * c.shape.channels, 0.0);
  if (c.shape.inner == 1) norm_backward_by_row(c, g, y, out, threads);
  else norm_backward_by_channel(c, g, y, out, threads);
}

}  // namespace
