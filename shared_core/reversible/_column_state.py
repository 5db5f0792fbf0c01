"""The turned-on neurons of temporal columns (T-RevSNN): when they fire, and how their state is found again.

    v[t] = decay[t] * v[t-1] + u[t];   s[t] = (v[t] >= v_threshold);   no reset        (T-RevSNN Eq. 2, 10)

Backward needs v[t-1], which is (v[t] - u[t]) / decay[t] (Eq. 11) up to rounding. Two things are kept so that rounding
does no harm: one bit per neuron and column, which says on which side of the neuron's edges the state was, and the
states themselves of channels where dividing has made too large an error.

An edge is a value where the spike or its surrogate derivative jumps: the threshold, and both ends of a window. The bit
is the parity of the number of edges below the state. A state that was solved for is nearer to its true value than half
the distance between two edges, so a wrong parity says which edge it has to be moved across.
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from ..backends import tensor as kernels
from ..coding import is_fake
from ..errors import MemextError
from ..surrogate import Surrogate, opaque, spike

__all__ = ["TurnedOn", "kept_channels", "smoothness", "window"]


class _Window(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(z.abs() <= 0.5)  # a byte an element
        return (z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx, grad):
        inside, = ctx.saved_tensors
        return grad * inside


def _window(z: Tensor) -> Tensor:
    return _Window.apply(z)


def window() -> Surrogate:
    """ds/dh = 1 where |z| <= 1/2, ends included, else 0. With a threshold of 1/2: where 0 <= h <= 1.

    Source: T-RevSNN's published code. `rectangle(1)` leaves the ends out, and a neuron without any input sits on one.
    """
    return _WINDOW


_WINDOW = opaque(_window, name="window", alphabet="binary")


def _edges(surrogate: Surrogate) -> tuple[tuple[float, bool], ...]:
    """(z, whether z itself lies above the edge) for every jump of spike or derivative, in ascending order."""
    if surrogate.fn is _window:
        return (-0.5, True), (0.0, True), (0.5, False)
    if surrogate.name == "rect":
        half = 0.5 / surrogate.params[0]
        return (-half, False), (0.0, True), (half, True)
    if surrogate.name == "piecewise_leaky_relu":
        width = surrogate.params[0]
        return (-width, False), (0.0, True), (width, True)
    if surrogate.name == "sparse_fast_sigmoid" and surrogate.params[1] != 0:
        return tuple(sorted([(0.0, True), (surrogate.params[1], False)]))
    return ((0.0, True),)


@lru_cache(maxsize=64)
def smoothness(surrogate: Surrogate) -> float:
    """The steepest slope of the surrogate's derivative away from its edges: an error of the state becomes an error of
    the gradient at most this much larger. At least 1."""
    step = 0.001
    with unset_fake_temporarily(), torch.enable_grad():
        z = torch.linspace(-4, 4, 8001, dtype=torch.float64).requires_grad_()
        g, = torch.autograd.grad(spike(z, surrogate, strict=False).sum(), z)
        z, slope = z.detach(), g.diff().abs() / step
        for at, _ in _edges(surrogate):
            slope[(z[:-1] - step <= at) & (at <= z[1:] + step)] = 0.0
        return max(1.0, float(slope.max()))


@dataclass(frozen=True)
class TurnedOn:
    """What all turned-on neurons of a net have in common.  Raises MemextError: spikes that are not 0 or 1."""

    v_threshold: float = 0.5
    surrogate: Surrogate = _WINDOW

    def __post_init__(self):
        if self.surrogate.alphabet != "binary" or self.surrogate.random:
            raise MemextError(f"columns: surrogate {self.surrogate.name!r} gives {self.surrogate.alphabet} values"
                              f"{' at random' if self.surrogate.random else ''}; the turned-on neurons need spikes "
                              "that are 0 or 1 and the same every time. Use window(), or one of the table's")

    def spike(self, v: Tensor) -> Tensor:
        """0 or 1, differentiable through the surrogate; shape and dtype of v."""
        return spike(v - self.v_threshold, self.surrogate, strict=False)

    def parity(self, v: Tensor) -> Tensor:
        """Whether the number of edges below the state is odd; bool, shape of v."""
        z = v - self.v_threshold
        odd = None
        for at, closed in _edges(self.surrogate):
            above = z >= at if closed else z > at
            odd = above if odd is None else odd ^ above
        return odd

    def settle(self, v: Tensor, odd: Tensor) -> Tensor:
        """v, with every state that is on the wrong side of its nearest edge put across it; on the CPU in v's memory.

        odd: parity of the true states.
        """
        wrong = self.parity(v) != odd
        if wrong.device.type != "cpu":  # how many are wrong could be known by waiting only
            return torch.where(wrong, self._across(v), v)
        if not is_fake(wrong) and wrong.any():
            v[wrong] = self._across(v[wrong])
        return v

    def _across(self, v: Tensor) -> Tensor:
        """States on the other side of the edge that is nearest to each, as close to it as is sure."""
        z = v - self.v_threshold
        step = 8 * torch.finfo(v.dtype).eps * max(1.0, abs(self.v_threshold))
        nearest, across = None, None
        for at, closed in _edges(self.surrogate):
            far = (z - at).abs()
            above = z >= at if closed else z > at
            moved = above.to(v.dtype) * (-2 * step) + (self.v_threshold + at + step)
            nearest, across = (far, moved) if nearest is None else (
                torch.minimum(nearest, far), torch.where(far < nearest, moved, across))
        return across


def packed(odd: Tensor) -> Tensor:
    """bool, any shape -> uint8 [ceil(numel / 8)]"""
    return kernels.pack(odd.to(torch.bfloat16).reshape(-1), "bits", 1.0)


def unpacked(bits: Tensor, like: Tensor) -> Tensor:
    """The inverse: bool in the shape of `like`."""
    flat = torch.empty(like.numel(), dtype=torch.bfloat16, device=bits.device)
    kernels.unpack(bits, "bits", 1.0, flat)
    return flat.view(like.shape) != 0


def kept_channels(decays: Tensor, allowed: float, unit: float) -> list[list[int]]:
    """For the state after every column but the last: the channels that must be kept, as dividing errs by too much.

    decays: [T, C] of one stage, on the CPU.  allowed: error of a state of size 1.  unit: rounding of such a state.
    An error e after a column is (e + unit) / |decay| before it; where that exceeds `allowed`, the state is kept, and
    the error starts again from 0.
    """
    keep, error = [], torch.zeros(decays.shape[1], dtype=torch.float64)
    for decay in decays.double().abs()[1:].flip(0):
        error = (error + unit) / decay
        chosen = ~(error <= allowed)
        error[chosen] = 0.0
        keep.append(chosen.nonzero().flatten().tolist())
    return keep[::-1]
