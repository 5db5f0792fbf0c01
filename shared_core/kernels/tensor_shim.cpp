// tensor.cu compiled as C++ (shim.h): each of its kernels for each stored type, as a function that takes the launch
// configuration and then what the kernel takes. Built by the tests only, which put it in CuPy's place.
#include "tensor.cu"

namespace {
using namespace memext;

template <class Kernel>
void launch(unsigned blocks, unsigned threads, Kernel kernel) { shim::launch(blocks, threads, false, kernel); }

}  // namespace

#define MEMEXT_KERNELS(S, TYPE)                                                                                       \
  void memext_pack_##TYPE(unsigned blocks, unsigned threads, const S* x, i64 n, int kind, double scale, u8* out) {    \
    launch(blocks, threads, [&] { pack(x, n, kind, scale, out); });                                                   \
  }                                                                                                                   \
  void memext_unpack_##TYPE(unsigned blocks, unsigned threads, const u8* data, i64 n, int kind, double scale,         \
                            S* out) {                                                                                 \
    launch(blocks, threads, [&] { unpack(data, n, kind, scale, out); });                                              \
  }                                                                                                                   \
  void memext_fused_##TYPE(unsigned blocks, unsigned threads, const R_of<S>* a, const R_of<S>* b, const R_of<S>* c,   \
                           i64 n, R_of<S>* out) {                                                                     \
    launch(blocks, threads, [&] { fused_each(a, b, c, n, out); });                                                    \
  }                                                                                                                   \
  void memext_normalise_##TYPE(unsigned blocks, unsigned threads, const S* y, i64 n, i64 channels, i64 inner,         \
                               const R_of<S>* scale, const R_of<S>* shift, S* out) {                                  \
    launch(blocks, threads, [&] { normalise(y, n, channels, inner, scale, shift, out); });                            \
  }                                                                                                                   \
  void memext_norm_sums_##TYPE(unsigned blocks, unsigned threads, const S* g, const S* y, i64 outer, i64 channels,    \
                               i64 inner, const double* mean, i64 parts, double* sums) {                              \
    launch(blocks, threads, [&] { norm_sums(g, y, outer, channels, inner, mean, parts, sums); });                     \
  }                                                                                                                   \
  void memext_norm_apply_##TYPE(unsigned blocks, unsigned threads, const S* g, const S* y, i64 n, i64 channels,       \
                                i64 inner, const R_of<S>* factors, S* out) {                                          \
    launch(blocks, threads, [&] { norm_apply(g, y, n, channels, inner, factors, out); });                             \
  }                                                                                                                   \
  void memext_unpool_##TYPE(unsigned blocks, unsigned threads, const Pool* p, const u8* bits, const S* grad, S* out) { \
    launch(blocks, threads, [&] { unpool(*p, bits, grad, out); });                                                    \
  }

extern "C" {
MEMEXT_KERNELS(float, float)
MEMEXT_KERNELS(double, double)
MEMEXT_KERNELS(Float16, float16)
MEMEXT_KERNELS(BFloat16, bfloat16)
}
