"""What a backward pass is given besides when its input was rebuilt (chain/): checked, and put into a call."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MemextError
from ..layout import Layout
from ._call import Call

__all__ = ["Rebuilt", "channel_sums"]


@dataclass(frozen=True)
class Rebuilt:
    """Keyword arguments of every backend's `backward`; none of them need be given.

    bits: uint8 [T, ceil(N / 8)] as the forward wrote them (Spec.bits): every spike is the stored one, whatever the
        potential says now. snnTorch's neurons read the reset R off their state all the same; with a scale of 0 they
        emit nothing, and their bits say so.
    affine: (scale, shift) [C], floating point: `x` holds y, and the neuron's input is fma(y, scale, shift), channel by
        channel, rounded to the dtype of y. The gradient of x is still that of the neuron's input.
    channel: dimension of one time step that counts the channels; 1 for [N, C, *].
    into: where the gradient of x goes, like x and dense; may be grad_spikes itself.
    sums: return, too, float64 [2, C]: the sums of grad_x and of grad_x y over all but the channels; None if x needs no
        gradient. Needs the affine.
    """

    bits: Tensor | None = None
    affine: tuple[Tensor, Tensor] | None = None
    channel: int = 1
    into: Tensor | None = None
    sums: bool = False

    def check(self, x: Tensor, layout: Layout) -> None:
        """MemextError unless all of it fits x [T, *shape]; the kernels check nothing."""
        if self.bits is not None:
            needed = x.shape[0], (layout.neurons + 7) // 8
            if self.bits.dtype != torch.uint8 or self.bits.shape != needed or self.bits.device != x.device:
                _refuse("bits", self.bits, f"the forward's torch.uint8 {list(needed)} on {x.device}")
        if self.affine is not None:
            if not 0 <= self.channel < x.dim() - 1:
                raise MemextError(f"backward: channel is {self.channel}; allowed: 0 to {x.dim() - 2}, a dimension of "
                                  f"one time step of x {list(x.shape)}")
            channels = x.shape[1 + self.channel]
            for name, p in zip(("scale", "shift"), self.affine, strict=True):
                if not p.is_floating_point() or p.shape != (channels,) or p.device != x.device:
                    _refuse(f"affine's {name}", p, f"one number per channel, [{channels}], on {x.device}")
        elif self.sums:
            raise MemextError("backward: sums=True without affine; the sums are those of its channels: give affine")
        if self.into is not None and not (
                self.into.dtype == x.dtype and self.into.shape == x.shape and self.into.device == x.device
                and layout.is_dense(self.into, 1) and (x.shape[0] <= 1 or self.into.stride(0) == layout.neurons)):
            _refuse("into", self.into, f"{x.dtype} {list(x.shape)} on {x.device} in memory order {layout.order} of a "
                                       "time step, without gaps")

    def add_to(self, call: Call, alive: list[Tensor], layout: Layout, compute: torch.dtype,
               address: Callable[[Tensor], int]) -> None:
        if self.bits is not None:
            alive.append(self.bits.contiguous())
            call.bits = address(alive[-1])
        if self.affine is not None:
            for to, p in zip((call.x_scale, call.x_shift), self.affine):
                after = len(layout.shape) - self.channel - 1
                values, to.inner, to.size = layout.parameter(p.reshape(-1, *(1,) * after), compute)
                alive.append(values)
                to.data = address(values)

    def check_memory(self, layout: Layout, grad_spikes: Tensor | None, x: Tensor,
                     address: Callable[[Tensor], int]) -> None:
        """A kernel reads rows while it writes those of `into`: they must be the rows of grad_spikes, or none it reads.

        grad_spikes, x: as the kernel reads them (copies, perhaps).
        """
        first, end = _span(self.into, address)
        if end == 0:
            return
        same = grad_spikes is not None and (
            address(grad_spikes) == first and grad_spikes.dtype == self.into.dtype
            and (x.shape[0] <= 1 or grad_spikes.stride(0) == layout.neurons))
        for name, t in (("x", x), ("grad_spikes", None if same else grad_spikes)):
            start, stop = (0, 0) if t is None else _span(t, address)
            if start < end and first < stop:
                raise MemextError(f"backward: into overlaps {name} in memory; allowed: all of grad_spikes, in the same "
                                  "dtype and strides, or memory of its own")


def channel_sums(grad: Tensor, y: Tensor, channel: int) -> Tensor:
    """float64 [2, C]: the sums of grad and of grad y [T, *shape] over all dimensions but 1 + channel; step by step, or
    the product would be a third tensor of that size."""
    dims = [d for d in range(y.dim() - 1) if d != channel]
    over = lambda t: t.sum(dims, dtype=torch.float64) if dims else t.double()  # noqa: E731
    sums = torch.zeros(2, y.shape[1 + channel], dtype=torch.float64, device=y.device)
    for g, y_t in zip(grad, y):
        g = g.to(torch.promote_types(g.dtype, torch.float32))
        sums[0] += over(g)
        sums[1] += over(g * y_t)
    return sums


def _refuse(name: str, got: Tensor, needed: str) -> None:
    raise MemextError(f"backward: {name} is {got.dtype} {list(got.shape)} with strides {list(got.stride())} on "
                      f"{got.device}; needed: {needed}")


def _span(t: Tensor, address: Callable[[Tensor], int]) -> tuple[int, int]:
    """First byte of t and the one behind its last; (0, 0) for tensors without memory."""
    start = address(t)
    if start == 0 or t.numel() == 0:
        return 0, 0
    return start, start + (sum((n - 1) * s for n, s in zip(t.shape, t.stride())) + 1) * t.element_size()
