"""Cross-channel sharing: one membrane of C / groups channels that the channel groups run through one after the other.

EfficientLIF-Net Eq. 7-11: in a time step group 1 starts from the membrane that the last group of the step before left,
and its own membrane, after the reset, goes on to group 2. So T steps of [N, C, *] are T * groups steps of the ordinary
neuron on [N, C / groups, *], of which step (t, g) reads channels g * C / groups to (g + 1) * C / groups - 1 of x[t].
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import MemextError

__all__ = ["check_groups", "in_turn", "membrane_shape", "side_by_side"]


def check_groups(where: str, groups) -> None:
    if isinstance(groups, bool) or not isinstance(groups, int) or groups < 1:
        raise MemextError(f"{where}: groups is {groups!r}; a whole number of channel groups, at least 1, is needed")


def membrane_shape(where: str, shape: Sequence[int], groups: int) -> torch.Size:
    """Shape of the state that `groups` groups share, for a step on x of this shape, [N, C, *]."""
    if groups == 1:
        return torch.Size(shape)
    if len(shape) < 2:
        raise MemextError(f"{where}: a step of x has shape {tuple(shape)}; [N, C, *], rank 2 or more, is needed where "
                          f"groups={groups} of the C channels share a membrane")
    if shape[1] % groups:
        raise MemextError(f"{where}: C = {shape[1]} channels (dimension 1 of a step of shape {tuple(shape)}) cannot be "
                          f"split into groups={groups} of equal size; choose a divisor of C, or another C")
    return torch.Size((shape[0], shape[1] // groups, *shape[2:]))


def in_turn(x: Tensor, groups: int, channel: int = 1) -> Tensor:
    """x [T, N, C, *] -> [T * groups, N, C / groups, *], the groups of a step one after the other.

    channel: which dimension of one step holds the channels.
    """
    if groups == 1:
        return x
    return x.unflatten(1 + channel, (groups, -1)).movedim(1 + channel, 1).flatten(0, 1)


def side_by_side(x: Tensor, groups: int, channel: int = 1) -> Tensor:
    """The inverse of in_turn."""
    if groups == 1:
        return x
    return x.unflatten(0, (-1, groups)).movedim(1, 1 + channel).flatten(1 + channel, 2 + channel)
