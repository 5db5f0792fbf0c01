"""A module whose layers share a membrane, called on a sequence: time is outermost inside it.

Eq. 6 takes the membrane of the last layer at step t to the first layer at step t + 1, so no layer of the group can run
all its steps before the next. The steps go through temporal.unroll, which keeps the spikes as bits and few states, and
finds inputs and membranes again in the backward pass by running forward (Section IV-C without its division); or, with
prefer="graph", through plain autograd, which runs nothing again.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from .. import temporal
from ..coding import is_fake
from ..errors import MemextError
from ._layers import SharingHost

__all__ = ["PREFER", "TimeOutermost", "training_norms"]

# Steps between two states that are kept, for T steps; None: as unroll has it, about sqrt(2 T) states in all.
_EVERY = {"memory": lambda steps: steps, "balanced": lambda steps: None, "speed": lambda steps: 1}
GRAPH = "graph"
PREFER = (*_EVERY, GRAPH)


def training_norms(parts: Sequence[nn.Module]) -> list[nn.Module]:
    """Norms that would take their statistics from each step by itself."""
    return [m for part in parts for m in part.modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and (m.training or m.running_mean is None)]


class TimeOutermost:
    """What stands as `forward` on a module. An object, not a bound method: it goes along with deepcopy and pickle.

    framework: by whose host it is run.  module, name: where it stands.  runs: ranges of the children of a Sequential
    that are stepped; None: all of it. neuron: one that shares a membrane; it tells whether a call is a sequence. 
    per_step_norm: allow training-mode norms. prefer: see PREFER.
    """

    hosts: ClassVar[dict[str, SharingHost]] = {}

    def __init__(self, framework: str, name: str, module: nn.Module, runs: list[tuple[int, int]] | None,
                 neuron: nn.Module, per_step_norm: bool, prefer: str):
        self.framework, self.name, self.module, self.runs = framework, name, module, runs
        self.neuron, self.per_step_norm, self.prefer = neuron, per_step_norm, prefer

    def notes(self) -> list[str]:
        """For the report."""
        children = ", ".join(f"{start} to {stop - 1}" for start, stop in self.runs or ())
        where = f"{self.name or 'the model itself'}{', children ' if children else ''}{children}"
        return [f"{where}: sequences are stepped through time here"]

    @property
    def host(self) -> SharingHost:
        return self.hosts[self.framework]

    @torch.compiler.disable
    def __call__(self, *args, **kwargs):
        plain = type(self.module).forward
        if not self.host.on_sequences(self.neuron):
            return plain(self.module, *args, **kwargs)
        if kwargs or len(args) != 1 or not isinstance(args[0], Tensor):
            raise MemextError(f"share: {self.name!r} is called with {len(args)} arguments and {len(kwargs)} keywords; "
                              "one tensor [T, N, *] is needed where layers inside it share a membrane")
        if self.runs is None:
            return self._through([self.module], args[0], whole=True)
        x, children, at = args[0], list(self.module), 0
        for start, stop in [*self.runs, (len(children), len(children))]:
            for child in children[at:start]:
                x = child(x)
            x = self._through(children[start:stop], x) if start < stop else x
            at = stop
        return x

    def _through(self, parts: Sequence[nn.Module], x_seq: Tensor, whole: bool = False):
        if not self.per_step_norm and training_norms(parts):
            raise MemextError(f"share: batch norm inside {self.name!r} is in training mode, and would have the "
                              "statistics of one step at a time; share(..., batch_norm='per_step') allows it, "
                              "net.eval() uses the running statistics")
        with self.host.one_step(parts, whole) as step:
            if is_fake(x_seq):  # only shapes are asked for
                return tree_map(lambda out: torch.stack([out] * x_seq.shape[0]), step(x_seq[0]))
            if self.prefer == GRAPH:
                return temporal.unroll(step, x_seq, "store", final_state="attached")
            every = _EVERY[self.prefer](x_seq.shape[0] if x_seq.dim() else 1)
            return temporal.unroll(step, x_seq, "reverse", every=every and max(every, 1), final_state="attached")
