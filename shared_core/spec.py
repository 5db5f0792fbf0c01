"""One fused call, described: which neuron, which surrogate, what comes out. Hashable, and a string for operators."""
from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .backends._call import compute_dtype
from .dynamics import Dynamics
from .surrogate import Surrogate

__all__ = ["Outputs", "Spec"]


@dataclass(frozen=True)
class Spec:
    """dynamics, surrogate: what runs.  spike_dtype: dtype of the emitted values, None = the input's.
    record: return every state after every step.  bits: return the spikes packed, too.
    online: the state before each step is a constant in the gradient (SLTT); that of the initial state is zero.
    groups: so many groups of the channels run through one membrane in turn, in each step (_groups.py).
    channel: which dimension of one time step counts the channels; read where groups > 1.
    """

    dynamics: Dynamics
    surrogate: Surrogate
    spike_dtype: torch.dtype | None = None
    record: bool = False
    bits: bool = False
    online: bool = False
    groups: int = 1
    channel: int = 1

    def dtype_of_spikes(self, x: Tensor) -> torch.dtype:
        return self.spike_dtype or x.dtype

    def dtype_of_state(self, x: Tensor) -> torch.dtype:
        return compute_dtype(x.dtype)

    def to_json(self) -> str:
        """Text for an operator's schema. Opaque surrogates (Python functions) cannot be written: ValueError."""
        if self.surrogate.fn is not None:
            raise ValueError(f"surrogate {self.surrogate.name!r} is a Python function, not an entry of the table")
        dtype = str(self.spike_dtype).removeprefix("torch.") if self.spike_dtype else None
        return json.dumps([self.dynamics.to_json(), self.surrogate.name, self.surrogate.params, dtype,
                           self.record, self.bits, self.online, self.groups, self.channel])

    @staticmethod
    @lru_cache(maxsize=1024)
    def from_json(text: str) -> Spec:
        dynamics, name, params, dtype, *rest = json.loads(text)
        return Spec(Dynamics.from_json(dynamics), Surrogate(name, tuple(params)),
                    getattr(torch, dtype) if dtype else None, *rest)


@dataclass
class Outputs:
    """What a backend's forward returns.

    spikes [T, *shape]; each of final [*shape]; each of sequence [T, *shape]; bits uint8 [T, ceil(N / 8)].
    For the backward pass: anchors [ceil(T / 32) - 1, states, *shape]; each of traces [*shape].
    With groups > 1 the states' shape is the membrane's, and anchors are kept every 32 of its T * groups steps.
    """

    spikes: Tensor
    final: tuple[Tensor, ...]
    sequence: tuple[Tensor, ...] = ()
    bits: Tensor | None = None
    anchors: Tensor | None = None
    traces: tuple[Tensor, ...] = ()
