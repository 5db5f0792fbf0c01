"""Where spikes are known to be spikes: what our neurons stamp on their output, and what is remembered of a tensor.

A stamp is a note about one tensor object: its values in packed form, valid for one version of it. Views find it at the
tensor they are views of. (It stands in a weak table, not in the tensor's `__dict__`: what stands there is pickled with
the tensor.) So all consumers of one spike train share one packed copy, which lives as long as the spikes or somebody's
backward pass needs it. Tensors without a stamp are packed when first asked for (on the CPU the packing pass verifies
every value; elsewhere only what the graph proves to be spikes is packed, see `alphabet`).
"""
from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from .. import coding
from ..coding import is_dense, is_fake

__all__ = ["code_of", "stamp"]

_stamps: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # tensor -> Stamp


@dataclass
class Stamp:
    """version, address: of the tensor it speaks of.  data: packed; None: it cannot be packed."""

    version: int
    address: int
    data: Tensor | None
    code: coding.Code | None


def stamp(spikes: Tensor, bits: Tensor) -> None:
    """Notes on a neuron's output [T, N, *] that its values are `bits`, as the neuron kernel wrote them."""
    data, code = coding.from_step_bits(bits, spikes)
    _stamps[spikes] = Stamp(spikes._version, _address(spikes), data, code)


def code_of(x: Tensor) -> tuple[Tensor, coding.Code] | None:
    """x packed, as (data, code) for coding.decode; None if its values are not spikes or small integers."""
    holder = x if x._base is None else x._base
    found = _stamps.get(holder)
    if found is None or found.version != x._version or found.address != _address(x) or not _same_values(x, found):
        encoded = coding.encode(x, hint=None if x.device.type == "cpu" and not is_fake(x) else alphabet(x))
        data, code = encoded if encoded is not None else (None, None)
        found = Stamp(x._version, _address(x), data, code)
        if holder.numel() == x.numel() and is_dense(x):  # all of it, each value once
            _stamps[holder] = found
    if found.data is None:
        return None
    return found.data, replace(found.code, shape=tuple(x.shape), stride=x.stride())


def _same_values(x: Tensor, found: Stamp) -> bool:
    """All of the stamped memory, in whatever order of dimensions x shows it."""
    if found.code is None:
        return True
    count = 1
    for n in found.code.shape:
        count *= n
    return x.numel() == count and is_dense(x)


def _address(t: Tensor) -> int:
    return 0 if is_fake(t) else t.data_ptr()


# ---- what the graph proves ----

_SAME_VALUES = frozenset(("ViewBackward0", "ReshapeAliasBackward0", "UnsafeViewBackward0", "AliasBackward0",
                          "TBackward0", "PermuteBackward0", "TransposeBackward0", "SqueezeBackward0",
                          "SqueezeBackward1", "SqueezeBackward2", "UnsqueezeBackward0", "CloneBackward0",
                          "ToCopyBackward0", "SliceBackward0", "SelectBackward0", "SplitBackward0", "ExpandBackward0",
                          "SplitWithSizesBackward0", "UnbindBackward0", "MaxPool2DWithIndicesBackward0",
                          "RepeatBackward0", "UpsampleNearest2DBackward0"))


def alphabet(x: Tensor) -> coding.Alphabet | None:
    """The values x can have, as far as its graph proves it: spikes of our neurons, moved, pooled, multiplied, added."""
    levels = _levels(x.grad_fn, x.output_nr, 32)
    return None if levels is None else coding.Alphabet(levels)


def _levels(node, number: int, depth: int) -> int | None:
    """Greatest value, where values are the integers from 0 to it; None: unknown."""
    if node is None or depth == 0:
        return None
    cls = getattr(type(node), "_forward_cls", None)
    if cls is not None:
        return getattr(node, "levels", None) if number == 0 else None
    name, parents = node.name(), node.next_functions
    if name in _SAME_VALUES:
        return _levels(*parents[0], depth - 1)
    if name in ("AddBackward0", "MulBackward0", "CatBackward0", "StackBackward0"):
        known = [_levels(*parent, depth - 1) for parent in parents]
        if None in known or (name == "AddBackward0" and getattr(node, "_saved_alpha", 1) != 1):
            return None
        if name == "AddBackward0":
            return sum(known)
        return max(known) if name != "MulBackward0" else known[0] * known[1]
    return None
