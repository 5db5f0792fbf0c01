"""EfficientLIF-Net (Kim et al. 2023), Eq. 4-17, written out in plain Torch, step by step; Torch differentiates it.

`run` is the order in which layers and channel groups meet the membrane, which is what sharing is. What a neuron does
there is one of three functions: `Paper`, to the letter of Eq. 8, and the two frameworks' own neurons, each in its order
of operations, so that spikes can be compared exactly. Nothing here comes from the package.
"""
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


class Arctan(torch.autograd.Function):
    """f of Eq. 2: z > 0, or z >= 0, with the gradient 1 / (1 + (pi z)^2), both frameworks' ATan(alpha=2)."""

    @staticmethod
    def forward(ctx, z, strict):
        ctx.save_for_backward(z)
        return (z > 0 if strict else z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx, grad):
        z, = ctx.saved_tensors
        return grad / (1 + (math.pi * z) ** 2), None


def run(x_seq: Tensor, layers: Sequence[Callable[[Tensor], Tensor]], neuron, groups: int = 1, membrane=None):
    """One membrane for all `layers` and channel groups.

    x_seq: [T, N, C, *]. layers: W_l, each applied to the spikes of the layer before; [lambda o: o] is a single layer of
    neurons. neuron(membrane or None, current) -> (membrane, spikes).
    Returns: spikes of the last layer [T, N, C, *]; the membrane after the last step, and after each; all spikes.
    """
    outputs, seen, fired = [], [], []
    for o in x_seq:                                  # t
        for layer in layers:                         # l
            parts = layer(o).chunk(groups, 1)        # Eq. 7, 12
            spikes = []
            for part in parts:                       # i: from group i - 1 (Eq. 8, 13), for the first one from the last
                membrane, s = neuron(membrane, part)  # of layer l - 1 (4, 16), of the last layer at t - 1 (6, 11, 17)
                spikes.append(s)
            o = torch.cat(spikes, 1)                 # Eq. 10, 15
            fired.append(o)
        outputs.append(o)
        seen.append(membrane)
    return torch.stack(outputs), membrane, seen, fired


@dataclass
class Paper:
    """Eq. 8: U' = lam (U - O) + X;  Eq. 9: O' = f(U' - 1).  membrane: (U, O).  The spike in U - O has no gradient if
    detach_reset (as in the authors' code)."""

    lam: float
    detach_reset: bool = False

    def __call__(self, membrane, x):
        u, o = (torch.zeros_like(x),) * 2 if membrane is None else membrane
        u = self.lam * (u - (o.detach() if self.detach_reset else o)) + x
        o = Arctan.apply(u - 1.0, False)
        return (u, o), o


@dataclass
class SpikingJelly:
    """LIFNode of SpikingJelly 2.0.0. membrane: v, after the reset. v_reset None: soft reset."""

    tau: float
    decay_input: bool
    v_threshold: float = 1.0
    v_reset: float | None = 0.0
    detach_reset: bool = False

    def __call__(self, v, x):
        rest = 0.0 if self.v_reset is None else self.v_reset
        v = torch.full_like(x, rest) if v is None else v
        h = v + (x - (v - rest)) / self.tau if self.decay_input else v - (v - rest) / self.tau + x
        s = Arctan.apply(h - self.v_threshold, False)
        reset = s.detach() if self.detach_reset else s
        v = h - reset * self.v_threshold if self.v_reset is None else (1 - reset) * h + reset * self.v_reset
        return v, s


@dataclass
class SnnTorch:
    """Leaky of snnTorch 1.0.0. membrane: mem, reset one call later, or in the same call if not delay."""

    beta: Tensor
    threshold: Tensor
    scale: Tensor
    reset: str = "subtract"
    delay: bool = True

    def __call__(self, mem, x):
        mem = torch.zeros_like(x) if mem is None else mem
        beta, theta = self.beta.clamp(0, 1), self.threshold
        before = (mem - theta > 0).to(mem.dtype).detach()
        if self.reset == "zero":
            u = beta * ((1 - before) * mem) + x
        else:
            u = beta * mem + x
        if self.reset == "subtract":
            u = u - before * theta
        s = Arctan.apply(u - theta, True)
        mem = u
        if not self.delay and self.reset == "subtract":
            mem = u - (s - before) * theta
        if not self.delay and self.reset == "zero":
            mem = u - (s - before) * u
        return mem, s * self.scale
