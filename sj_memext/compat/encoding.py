"""spikingjelly.clock_driven.encoding of 0.0.0.0.12: `encode(x)` writes self.spike, a call without x goes on with it."""
from __future__ import annotations

import torch
from spikingjelly.activation_based import encoding as host
from torch import Tensor

from ._patches import PATCHES

__all__ = ["LatencyEncoder", "PeriodicEncoder", "StatefulEncoder", "StatelessEncoder", "WeightedPhaseEncoder",
           "install"]


class StatelessEncoder(host.StatelessEncoder):
    """Base of encoders without memory: subclasses define forward(x)."""

    def __init__(self):
        super().__init__()


class StatefulEncoder(host.StatefulEncoder):
    """Base of encoders of T steps: subclasses define encode(x), which sets self.spike [T, *]. A call returns its next
    step, from the first again after the last."""

    def __init__(self, T: int):
        super().__init__(T)

    def encode(self, x: Tensor) -> None:
        self.spike = self.single_step_encode(x)

    def forward(self, x: Tensor | None = None) -> Tensor:
        if self.spike is None:
            self.encode(x)
        t, self.t = self.t, (self.t + 1) % self.T
        return self.spike[t]


class PeriodicEncoder(StatefulEncoder):
    """spike [T, *], over and over; until the first reset the one it was made with (2.0.0 wants it at the call)."""

    def __init__(self, spike: Tensor):
        super().__init__(spike.shape[0])
        self.encode(spike)

    def encode(self, spike: Tensor) -> None:
        self.spike, self.T = spike, spike.shape[0]


class LatencyEncoder(StatefulEncoder, host.LatencyEncoder):
    """One spike in T steps, the earlier the larger x in [0, 1]."""

    def __init__(self, T: int, enc_function: str = "linear"):
        host.LatencyEncoder.__init__(self, T, enc_function)


class WeightedPhaseEncoder(StatefulEncoder, host.WeightedPhaseEncoder):
    """The K binary digits of x in [0, 1 - 2^-K], the most significant first."""

    def __init__(self, K: int):
        host.WeightedPhaseEncoder.__init__(self, K)


def install() -> None:
    """Encoders written for 0.0.0.0.14, whose single_step_encode sets self.spike instead of returning it."""
    PATCHES.set(host.StatefulEncoder, "single_step_functional_forward", _with_attribute(
        host.StatefulEncoder.single_step_functional_forward))


def _with_attribute(original):
    def single_step_functional_forward(self, inputs, states, **kwargs):
        spike, t = states
        if spike is None:
            spike = self.single_step_encode(inputs[0])
            spike = self._memories["spike"] if spike is None else spike
            self._memories["spike"] = None
        if not isinstance(spike, torch.Tensor):
            return original(self, inputs, states, **kwargs)
        return original(self, inputs, (spike, t), **kwargs)

    return single_step_functional_forward
