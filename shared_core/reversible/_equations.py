"""The reversible neuron's constants, checked, and the tensor view in which its groups stand side by side."""
from __future__ import annotations

import math
import numbers
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import MemextError
from ..layout import Layout, layout_of

__all__ = ["GRID", "RANGE", "Equations", "Groups", "groups_of", "resolve_split"]

GRID = 2.0 ** -16  # what enters is rounded to multiples of it: z and H + z then have at most 24 bits
RANGE = 127.0      # |z| must stay below: |H + z| < 128 for spikes in {0, 1}, exact in float32


@dataclass(frozen=True)
class Equations:
    """The constants of RevSNN ("Towards Zero Memory Footprint SNN Training") Eq. 1-6, all unitless.

        z[g] = round(beta x[g] / GRID) GRID,   X[1] = z[1] / beta          (the grid is ours: it makes Eq. 8, 10 exact)
        M[1] = V[1] + (X[1] - V[1]) / tau                                  Eq. 1
        M[g] = V[g] + (Y[g-1] - V[g]) / tau          g = 2..groups         Eq. 4
        Y[g] = H(M[g] - v_th) + z[g+1],  z[groups+1] = z[1]                Eq. 2, 5
        V[g] <- ((1 - Y[g]) M[g] + Y[g] v_reset) + alpha V[g]              Eq. 3, 6

    groups: 2 or more.  tau: time constant in steps, > 0.  alpha: share of the old potential that is added.  beta: scale
    of what enters, not 0.  strict: H(u) is u > 0 (snnTorch), else u >= 0 (SpikingJelly).
    Raises MemextError: a value outside these, or not a plain number.
    """

    groups: int = 2
    tau: float = 2.0
    alpha: float = 0.1
    beta: float = 1.0
    v_th: float = 1.0
    v_reset: float = 0.0
    strict: bool = False

    def __post_init__(self):
        if not isinstance(self.groups, int) or isinstance(self.groups, bool) or self.groups < 2:
            raise MemextError(f"reversible neuron: groups is {self.groups!r}; a whole number >= 2 is needed (one group "
                              "alone has nobody to pass its input on)")
        for name in ("tau", "alpha", "beta", "v_th", "v_reset"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
                raise MemextError(f"reversible neuron: {name} is {value!r}; a finite number is needed (none of its "
                                  "constants can learn: the inverse would change under the stored output)")
            object.__setattr__(self, name, float(value))
        if self.tau <= 0:
            raise MemextError(f"reversible neuron: tau is {self.tau}; it must be positive")
        if self.beta == 0:
            raise MemextError("reversible neuron: beta is 0; the output would not carry the input (the inverse divides "
                              "by it); the paper uses 1.0")


def resolve_split(where: str, split_dim: int, step: torch.Size, groups: int) -> int:
    """`split_dim` of a step [N, *] as a number >= 0. Raises MemextError: out of range, or not divisible."""
    rank = len(step)
    if not isinstance(split_dim, int) or isinstance(split_dim, bool) or not -rank <= split_dim < rank:
        raise MemextError(f"{where}: split_dim is {split_dim!r}; a step has shape {tuple(step)}, so {-rank} to "
                          f"{rank - 1} is allowed (-1: the last dimension, as in the paper; 1: the channels)")
    d = split_dim % rank
    if step[d] % groups or step[d] == 0:
        raise MemextError(f"{where}: dimension {split_dim} of a step {tuple(step)} has {step[d]} elements, which "
                          f"{groups} groups cannot share equally; choose a number of groups that divides it, or "
                          "another split_dim (1: the channels)")
    return d


@dataclass(frozen=True)
class Groups:
    """Where the groups lie: a sequence [T, *step] seen as [T, outer, groups, inner], inner dense."""

    layout: Layout
    outer: int
    groups: int
    inner: int

    def sequence(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """[T, *step] -> [T, outer, groups, inner]; a copy only if t is not dense in this order and dtype."""
        if t.dtype != dtype:
            t = t.to(dtype)
        return self._view(self.layout.sequences(t), 1)

    def state(self, t: Tensor, dtype: torch.dtype) -> Tensor:
        """[*step] -> [outer, groups, inner]."""
        return self._view(self.layout.state(t, dtype), 0)

    def empty(self, *lead: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """A new tensor [*lead, *step], and its view [*lead, outer, groups, inner]."""
        t = self.layout.empty(*lead, dtype=dtype, device=device)
        return t, self._view(t, len(lead))

    def whole(self, view: Tensor, lead: int) -> Tensor:
        """The way back, for autograd: [*lead, outer, groups, inner] -> [*lead, *step]."""
        order, shape = self.layout.order, self.layout.shape
        ordered = view.reshape(*view.shape[:lead], *(shape[d] for d in order))
        return ordered.permute(*range(lead), *(lead + order.index(d) for d in range(len(order))))

    def _view(self, t: Tensor, lead: int) -> Tensor:
        ordered = t.permute(*range(lead), *(lead + d for d in self.layout.order))
        return ordered.reshape(*t.shape[:lead], self.outer, self.groups, self.inner)  # dense: never a copy


def groups_of(where: str, x_seq: Tensor, split_dim: int, groups: int) -> Groups:
    """The groups of x_seq [T, *step], in the memory order of its own steps (channels_last stays so)."""
    layout = layout_of(x_seq)
    d = resolve_split(where, split_dim, x_seq.shape[1:], groups)
    at = layout.order.index(d)
    outer = math.prod(layout.shape[k] for k in layout.order[:at])
    inner = layout.shape[d] // groups * math.prod(layout.shape[k] for k in layout.order[at + 1:])
    return Groups(layout, outer, groups, inner)
