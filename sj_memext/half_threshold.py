"""SpikingJelly's HalfThresholdIFNode on the fused kernels: the neuron of converted ANNs. See neuron.py for the rest."""
from __future__ import annotations

from torch import Tensor

from shared_core import dynamics

from ._host import functional, neuron
from .neuron import _Fused

__all__ = ["FusedHalfThresholdIFNode"]


class FusedHalfThresholdIFNode(_Fused, neuron.HalfThresholdIFNode):
    """IF with soft reset that starts, and after reset() starts again, at half its threshold. Arguments, attributes and
    memories: neuron.HalfThresholdIFNode's; backend= is ignored.

    Equation: shared_core.dynamics.IF. Source: SpikingJelly 2.0.0, neuron.HalfThresholdIFNode; local threshold balancing
    and channel-wise rate coding (ann2snn) put it in the place of a ReLU.
    """

    _kind = dynamics.IF

    def _initial(self, v, x: Tensor, rest: float) -> Tensor | None:
        if isinstance(v, Tensor) and v.shape != x.shape:
            v = float(self.v_threshold) / 2  # the framework starts again from here
        return super()._initial(v, x, rest)

    def _framework_steps(self, x_seq: Tensor, v: Tensor, tail: tuple, **precision):
        return functional.if_multi_step(x_seq, v, *tail, **precision)
