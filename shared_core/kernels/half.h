// float16 and bfloat16 as they lie in memory, and their conversions: integer arithmetic, round to nearest even, as
// Torch converts. One text for CPU and GPU, and no vendor header: NVRTC needs no include path but this folder.
#pragma once
#include "config.h"

namespace memext {

struct Float16 { unsigned short bits; };
struct BFloat16 { unsigned short bits; };

MX_HD float from_bfloat16(unsigned short h) { return bit_cast<float>((u32)h << 16); }

MX_HD unsigned short to_bfloat16(float f) {
  const u32 u = bit_cast<u32>(f);
  const u32 rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  return (unsigned short)((u & 0x7fffffffu) > 0x7f800000u ? (u >> 16) | 0x40u : rounded);
}

// float16: rebias the exponent by a multiplication, which also makes subnormals right.
MX_HD float from_float16(unsigned short h) {
#ifdef __CUDA_ARCH__  // one instruction there, the same values
  float f;
  asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
  return f;
#else
  const u32 magnitude = (u32)(h & 0x7fffu) << 13;
  const float scaled = bit_cast<float>(magnitude) * bit_cast<float>(0x77800000u);  // 2^112
  const u32 finite = bit_cast<u32>(scaled);
  const u32 special = magnitude | 0x7f800000u;
  return bit_cast<float>(((u32)(h & 0x8000u) << 16) | (magnitude >= 0x0f800000u ? special : finite));
#endif
}

MX_HD unsigned short to_float16(float f) {
#ifdef __CUDA_ARCH__  // the same values; a NaN may carry other bits
  unsigned short h;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
  return h;
#else
  const u32 u = bit_cast<u32>(f);
  const u32 sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
  // Normal results: drop 13 bits, to nearest even, and rebias. Subnormal results: let float addition round.
  const u32 normal = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  const float sum = bit_cast<float>(magnitude) + 0.5f;
  const u32 subnormal = bit_cast<u32>(sum) - 0x3f000000u;
  u32 h = magnitude < 0x38800000u ? subnormal : normal;
  h = magnitude >= 0x477ff000u ? 0x7c00u : h;
  h = magnitude > 0x7f800000u ? 0x7e00u : h;
  return (unsigned short)(sign | h);
#endif
}

// A stored value as a number, and a number as it is stored.
MX_HD float widen(float v) { return v; }
MX_HD double widen(double v) { return v; }
MX_HD float widen(Float16 v) { return from_float16(v.bits); }
MX_HD float widen(BFloat16 v) { return from_bfloat16(v.bits); }

template <class R> MX_HD void narrow(R v, float& to) { to = (float)v; }
template <class R> MX_HD void narrow(R v, double& to) { to = (double)v; }
template <class R> MX_HD void narrow(R v, Float16& to) { to.bits = to_float16((float)v); }
template <class R> MX_HD void narrow(R v, BFloat16& to) { to.bits = to_bfloat16((float)v); }

}  // namespace memext
