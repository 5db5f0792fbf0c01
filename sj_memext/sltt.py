"""SpikingJelly's SLTTLIFNode on the fused kernels, in both step modes. See neuron.py for what all our nodes share."""
from __future__ import annotations

import torch
from torch import Tensor

from shared_core import dynamics

from ._host import neuron
from ._host import surrogate as host_surrogate
from .neuron import _Fused

__all__ = ["FusedSLTTLIFNode", "SLTTLIFNode"]


class FusedSLTTLIFNode(_Fused, neuron.SLTTLIFNode):
    """LIF of which the gradient leaves the temporal path out: in h[t], v[t-1] is a constant.

        h[t] = charge(x[t], stop_gradient(v[t-1]));   dL/dx[t] = dL/ds[t] surrogate'(h[t] - v_threshold) dh/dx
    Equation: shared_core.dynamics.LIF, with multi_step(..., online=True). Source: SLTT (Meng et al. 2023), Eq. 12 and
    13; SpikingJelly 2.0.0, neuron.SLTTLIFNode. Arguments, attributes and memories: that class's; backend= is ignored.

    step_mode="m" has the gradient of step_mode="s" (so has a net of such nodes, but for layers with statistics of their
    own in each step: batch norm in training), at the speed of a sequence, and memory that grows with T. Where memory
    must not, use "s" with sj_memext.functional.online_train_step.

    Differs from SpikingJelly 2.0.0: there, "m" is refused when a node is made, and has the full gradient of BPTT when
    set later; and in eval mode the spikes have no gradient (here: that of training).
    """

    _kind = dynamics.LIF
    _online = True

    def __init__(self, tau: float = 2.0, decay_input: bool = True, v_threshold: float = 1.0,
                 v_reset: float | None = 0.0, surrogate_function=host_surrogate.Sigmoid(),  # noqa: B008  as there
                 detach_reset: bool = True, step_mode: str = "s", store_v_seq: bool = False, *,
                 backend: str | None = None):
        super().__init__(tau, decay_input, v_threshold, v_reset, surrogate_function, detach_reset, "s", store_v_seq,
                         backend=backend)
        self.step_mode = step_mode  # the framework's __init__ takes "s" only

    def _options(self):
        return self.tau, self.decay_input

    def _framework_steps(self, x_seq: Tensor, v: Tensor, tail: tuple, **precision):
        """The framework's LIF, step by step: it has no sequence function that leaves the temporal path out."""
        spikes, seen = [], []
        for x in x_seq:
            (s,), (v,) = neuron.LIFNode.single_step_functional_forward(self, (x,), (v.detach(),))
            spikes.append(s)
            seen.append(v)
        *_, record = tail
        return torch.stack(spikes), v, torch.stack(seen) if record else None


SLTTLIFNode = FusedSLTTLIFNode
