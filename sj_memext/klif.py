"""SpikingJelly's KLIFNode on the fused kernels. Added as docs/add_a_neuron.md describes; see neuron.py for the rest."""
from __future__ import annotations

import torch
from torch import Tensor

from shared_core import dynamics

from ._host import neuron
from .neuron import _Fused

__all__ = ["FusedKLIFNode"]


class FusedKLIFNode(_Fused, neuron.KLIFNode):
    """LIF whose charge is scaled by a learnable k and rectified, h = relu(k c). Arguments, attributes, parameter `k`
    and memories: neuron.KLIFNode's; backend= is ignored. `k` may also have a shape broadcastable to one step's.

    Equation: shared_core.dynamics.KLIF. Source: SpikingJelly 2.0.0, neuron.KLIFNode.
    """

    _kind = dynamics.KLIF

    def _options(self):
        return self.tau, self.decay_input, self.scale_reset

    def _params(self):
        k = self.k
        return (k.float() if k.dtype in (torch.float16, torch.bfloat16) else k,)

    def _framework_steps(self, x_seq: Tensor, v: Tensor, tail: tuple, **precision):
        """The framework steps this node one by one, whatever the precision: it has no sequence function for it."""
        spikes, seen = [], []
        for x in x_seq:
            (s,), (v,) = neuron.KLIFNode.single_step_functional_forward(self, (x,), (v,))
            spikes.append(s)
            seen.append(v)
        *_, record = tail
        return torch.stack(spikes), v, torch.stack(seen) if record else None
