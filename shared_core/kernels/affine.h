// The per-channel affine through which a backward pass may read its input (Call::x_scale): what batch norm computed.
#pragma once
#include "half.h"
#include "tensor.h"

namespace memext {

// fma(y, scale, shift) as a tensor of type X holds it.
template <class X, class R>
MX_HD R affine(R y, R scale, R shift) {
  X stored;
  narrow(fused(y, scale, shift), stored);
  return R(widen(stored));
}

}  // namespace memext
