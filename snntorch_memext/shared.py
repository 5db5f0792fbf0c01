"""EfficientLIF-Net's shared neurons for snnTorch, on the fused kernels. See neurons.py for what FusedLeaky is."""
from __future__ import annotations

from shared_core._groups import check_groups

from .neurons import FusedLeaky

__all__ = ["SharedLeaky"]


class SharedLeaky(FusedLeaky):
    """Leaky whose membrane is shared between channel groups, and between layers.  Source: EfficientLIF-Net (Kim et al.
    2023), Eq. 7-11 (channels), Eq. 4-6 (layers), Eq. 12-17 (both), with the neuron of snnTorch 1.0.0.

        groups=N: the C channels of a step [N, C, *] are split into so many contiguous groups, which run one after the
        other through one membrane `mem` of [N, C / groups, *]; each starts from the membrane that the group before
        left, the first of a step from that of the last group of the step before. 1: the ordinary neuron.

    All other arguments: snntorch.Leaky's, by keyword; beta, threshold and graded_spikes_factor are one value, or
    broadcastable to the membrane. Calls and return values: FusedLeaky's, with `mem` of the membrane's shape; so
    multi_step(record=True) returns mem_seq [T, N, C / groups, *], the membrane after each step. snnTorch's reset is
    applied one call of the neuron later (reset_delay=True): to the next channel group, which runs on that membrane.

    Sharing between layers: call one object several times in a time step, after layers of equal output shape, with
    init_hidden=True, or handing its `mem` from call to call.

    Raises MemextError: groups is no whole number >= 1; when called: C is not divisible by groups, or a step has fewer
    than two dimensions while groups > 1.
    """

    def __init__(self, groups: int = 1, *, beta, **options):
        check_groups("SharedLeaky", groups)
        super().__init__(beta, **options)
        self.groups = groups

    @property
    def _groups(self) -> int:
        return self.groups

    def extra_repr(self):
        return f"groups={self.groups}"
