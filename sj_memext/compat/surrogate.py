"""spikingjelly.clock_driven.surrogate of 0.0.0.0.12, and what 0.0.0.0.14's differs in from 2.0.0's.

The surrogates are 2.0.0's own classes, with two exceptions:
    PiecewiseLeakyReLU       its gradient within |x| < w was 1/w until 0.0.0.0.14; in 2.0.0 it is 1/(2w)
    SurrogateFunctionBase    took (alpha, spiking), called spiking_function(x, alpha); in 2.0.0 (spiking, **parameters)
"""
from __future__ import annotations

import torch
from torch import Tensor, nn

from shared_core.errors import MemextError
from sj_memext._host import surrogate as host

from ._equations import is_own
from ._patches import PATCHES

__all__ = ["MultiArgsSurrogateFunctionBase", "PiecewiseLeakyReLU", "SurrogateFunctionBase", "install",
           "piecewise_leaky_relu"]


class piecewise_leaky_relu(torch.autograd.Function):
    """Heaviside forward; backward 1/w where |x| < w, else c."""

    @staticmethod
    def forward(ctx, x: Tensor, w: float = 1, c: float = 0.01):
        ctx.save_for_backward(x)
        ctx.w, ctx.c = w, c
        return host.heaviside(x)

    @staticmethod
    def backward(ctx, grad):
        x, = ctx.saved_tensors
        return torch.where(x.abs() < ctx.w, grad / ctx.w, grad * ctx.c), None, None


class PiecewiseLeakyReLU(host.PiecewiseLeakyReLU):
    """2.0.0's, with the gradient of 0.0.0.0.14 and before: 1/w where |x| < w, else c."""

    alphabet, random = "binary", False  # for sj_memext.surrogate.from_spikingjelly, which does not know this class

    @staticmethod
    def spiking_function(x: Tensor, w: float, c: float) -> Tensor:
        return piecewise_leaky_relu.apply(x, w, c)

    @staticmethod
    def backward(grad_output: Tensor, x: Tensor, w: float, c: float) -> Tensor:
        return torch.where(x.abs() < w, grad_output / w, grad_output * c)


class SurrogateFunctionBase(host.SurrogateFunctionBase):
    """Base of surrogates with one parameter: subclasses define spiking_function(x, alpha) and primitive_function."""

    def __init__(self, alpha, spiking: bool = True):
        super().__init__(spiking=spiking, alpha=alpha)

    def forward(self, x: Tensor) -> Tensor:
        return (self.spiking_function if self.spiking else self.primitive_function)(x, self.alpha)


class MultiArgsSurrogateFunctionBase(nn.Module):
    """Base of surrogates with several parameters: subclasses define forward."""

    def __init__(self, spiking: bool, *args, **kwargs):
        super().__init__()
        self.spiking = spiking

    def set_spiking_mode(self, spiking: bool) -> None:
        self.spiking = spiking

    def cuda_code(self, x: str, y: str, dtype: str = "fp32"):
        return _no_cuda_code(self)

    def cuda_codes(self, y: str, x: str, dtype: str):
        return _no_cuda_code(self)


def _no_cuda_code(self, *args, **kwargs):
    raise MemextError(f"{type(self).__name__}.cuda_code: SpikingJelly 2 has no CuPy kernels to put this text into; the "
                      "surrogate's Python form is used on every device")


# ---- for subclasses of the framework's own base, written for 0.0.0.0.13 and 0.0.0.0.14 -------------------------------

def install() -> None:
    base = host.SurrogateFunctionBase
    PATCHES.set(base, "__init__", _with_alpha(base.__init__))
    PATCHES.set(base, "forward", _positional(base.forward))
    PATCHES.add(base, "cuda_code", _no_cuda_code)
    PATCHES.add(base, "cuda_codes", _no_cuda_code)
    PATCHES.add(base, "_load_from_state_dict", _without_alpha)
    PATCHES.set(host.PiecewiseLeakyReLU, "__init__", _becomes_old(host.PiecewiseLeakyReLU.__init__))
    PATCHES.add(host, "MultiArgsSurrogateFunctionBase", MultiArgsSurrogateFunctionBase)


def _with_alpha(original):
    def __init__(self, *args, **kwargs):
        if args and not isinstance(args[0], bool):  # (alpha, spiking=True); 2.0.0's own call is (spiking, **parameters)
            alpha, *rest = args
            kwargs = {**dict(zip(("spiking",), rest)), **kwargs, "alpha": alpha}
            args = ()
        original(self, *args, **kwargs)

    return __init__


def _positional(original):
    def forward(self, x):
        function = self.spiking_function if self.spiking else self.primitive_function
        if is_own(function):  # the parameter may have any name there
            return function(x, *self._sg_params.values())
        return original(self, x)

    return forward


def _becomes_old(original):
    def __init__(self, *args, **kwargs):
        if type(self) is host.PiecewiseLeakyReLU:
            self.__class__ = PiecewiseLeakyReLU
        original(self, *args, **kwargs)

    return __init__


def _without_alpha(self, state_dict, prefix, *rest):
    """Checkpoints of 0.0.0.0.4 hold alpha as a buffer."""
    key = prefix + "alpha"
    if key in state_dict and "alpha" not in self._parameters and "alpha" not in self._buffers:
        value = float(state_dict.pop(key))
        if abs(value - float(self.alpha)) > 1e-6 * abs(value):
            raise MemextError(f"load_state_dict: {key} is {value} in this checkpoint, and {self.alpha} in the model; "
                              f"make the model with alpha={value}")
    nn.Module._load_from_state_dict(self, state_dict, prefix, *rest)
