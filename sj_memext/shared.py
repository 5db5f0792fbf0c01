"""EfficientLIF-Net's shared neurons for SpikingJelly, on the fused kernels. See neuron.py for what our nodes share."""
from __future__ import annotations

from shared_core import dynamics
from shared_core._groups import check_groups

from ._host import surrogate as host_surrogate
from .neuron import FusedLIFNode

__all__ = ["SharedLIFNode"]


class SharedLIFNode(FusedLIFNode):
    """LIF whose membrane is shared between channel groups, and between layers.  Source: EfficientLIF-Net (Kim et al.
    2023), Eq. 7-11 (channels), Eq. 4-6 (layers), Eq. 12-17 (both).

        h[t,g] = charge(v[t,g-1], x[t,g]);   s[t,g] = H(h[t,g] - v_threshold);   v[t,g] = reset(h[t,g], s[t,g])
        v[t,0] = v[t-1,groups]               charge and reset: LIFNode's (shared_core.dynamics.LIF)

    groups: the C channels of a step [N, C, *] are split into so many contiguous groups x[t,1], x[t,2], ..., which run
        one after the other through one membrane `v` of [N, C / groups, *]. 1: the ordinary neuron.
    All other arguments, attributes and memories: LIFNode's; backend= is ignored. decay_input says how x enters: True,
        divided by tau (the authors' code); False, as it is (the paper, with lambda = 1 - 1 / tau).

    Sharing between layers: call one object several times in a time step (step_mode "s"), after layers of equal output
    shape; each call goes on from the membrane that the call before left, and the first of a step from the last of the
    step before. A membrane of another shape is started anew at rest, as by the framework. In step_mode "m" a call is
    the whole sequence of one layer, so layers cannot share a membrane there.
    store_v_seq: v_seq is [T, N, C / groups, *], the membrane after each time step (in "s": after each call).

    Raises MemextError: groups is no whole number >= 1; when called: C is not divisible by groups, or a step has fewer
    than two dimensions while groups > 1.
    """

    _kind = dynamics.LIF

    def __init__(self, groups: int = 1, tau: float = 2.0, decay_input: bool = True, v_threshold: float = 1.0,
                 v_reset: float | None = 0.0, surrogate_function=host_surrogate.Sigmoid(),  # noqa: B008  as there
                 detach_reset: bool = False, step_mode: str = "s", backend: str | None = None,
                 store_v_seq: bool = False):
        check_groups(type(self).__name__, groups)
        super().__init__(tau, decay_input, v_threshold, v_reset, surrogate_function, detach_reset, step_mode,
                         store_v_seq, backend=backend)
        self.groups = groups

    @property
    def _groups(self) -> int:
        return self.groups

    def extra_repr(self):
        return f"groups={self.groups}, {super().extra_repr()}"
