"""What modules carry from step to step: where it is held, which dimension is the batch, and how it is put back.

Found by looking, not by class: an attribute, buffer or memory that holds tensors and is another one after a step than
before it. The batch is the dimension that is 3 with three samples and 2 with two.
"""
from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._plan_copy import reset_copy
from ..errors import MemextError
from ..temporal._hosts import hosts

__all__ = ["Dims", "Places", "Snapshot", "dims_between", "gathered", "leaves", "reset"]

_OF_TORCH = frozenset(vars(nn.Module()))
# "_memext_...": what our neurons compute from their parameters and keep; no state. _memories_rv: what a reset sets.
_NO_STATE = (*_OF_TORCH, "_memories", "_memories_rv")
_HELD = ("_buffers", "_memories")  # dictionaries of a module with entries that are read like attributes

Path = tuple[Hashable, ...]  # into a nested value; all elements of one list have the same
Dims = dict[Path, int | None]  # the batch dimension of each tensor; None: the same tensor whatever the batch


class Place(NamedTuple):
    """container[key], of the module called `owner`."""

    owner: str
    container: dict
    key: str

    @property
    def label(self) -> str:
        return repr(f"{self.owner}.{self.key}" if self.owner else self.key)


class Places:
    """All places of some modules where state may be.  named: (name, module), each module once."""

    def __init__(self, named: Sequence[tuple[str, nn.Module]]):
        found: dict[int, tuple[str, dict]] = {}  # layers that share a membrane have one dictionary
        for name, module in named:
            inside = (vars(module).get(key) for key in _HELD)
            for held in (vars(module), *(held for held in inside if isinstance(held, dict))):
                found.setdefault(id(held), (name, held))
        self._containers = list(found.values())

    def __iter__(self) -> Iterator[Place]:
        for owner, container in self._containers:
            for key in list(container):
                if key not in _NO_STATE and not str(key).startswith("_memext_"):
                    yield Place(owner, container, key)

    def signatures(self) -> dict[tuple[int, str], tuple]:
        """What each place holds, comparable. The tensors are in it, so that no other can get their id meanwhile."""
        found = {}
        for place in self:
            held = list(leaves(place.container[place.key]))
            found[id(place.container), place.key] = (tuple((path, id(t), _version(t), t.shape) for path, t in held),
                                                     tuple(t for _, t in held))
        return found

    def changed(self, before: dict[tuple[int, str], tuple]) -> Iterator[Place]:
        """Places that hold tensors now, and others (or written ones) before."""
        for place in self:
            held = list(leaves(place.container[place.key]))
            if not held:
                continue
            was = before.get((id(place.container), place.key), ((), ()))[0]
            if tuple((path, id(t), _version(t), t.shape) for path, t in held) != was:
                yield place


class Snapshot:
    """What modules hold, to be put back bit for bit: objects, contents of lists and dictionaries, values of tensors."""

    def __init__(self, modules: Sequence[nn.Module]):
        self._attributes = [(m, dict(vars(m))) for m in modules]
        self._inside: dict[int, tuple[object, object]] = {}
        self._tensors: dict[int, tuple[Tensor, int, Tensor]] = {}
        for m in modules:
            for key, value in vars(m).items():
                if key in _HELD or key not in _OF_TORCH:
                    self._keep(value)

    def _keep(self, value) -> None:
        if isinstance(value, Tensor):
            if not isinstance(value, nn.Parameter):
                self._tensors.setdefault(id(value), (value, _version(value), value.detach().clone()))
        elif isinstance(value, dict | list | deque | tuple) and id(value) not in self._inside:
            if not isinstance(value, tuple):
                self._inside[id(value)] = (value, dict(value) if isinstance(value, dict) else list(value))
            for part in list(value.values() if isinstance(value, dict) else value):
                self._keep(part)

    def put_modes_back(self) -> None:
        for m, attributes in self._attributes:
            m.training = attributes["training"]

    def put_back(self) -> None:
        for m, attributes in self._attributes:
            for key in [key for key in vars(m) if key not in attributes]:
                del vars(m)[key]
            vars(m).update(attributes)
        for held, was in self._inside.values():
            if isinstance(held, dict):
                held.clear()
                held.update(was)
            else:
                held.clear()
                held.extend(was)
        with torch.no_grad():
            for t, version, value in self._tensors.values():
                if _version(t) != version:
                    t.copy_(value)


def reset(roots: Sequence[nn.Module]) -> None:
    """All neurons at rest, as their frameworks do it."""
    for root in roots:
        reset_copy(root)
        for m in root.modules():  # subclasses of a neuron of snnTorch that a user has written
            if hasattr(m, "reset_mem") and any(host.framework.is_neuron(m) for host in hosts()):
                m.reset_mem()


# ---- nested values ---------------------------------------------------------------------------------------------------

def leaves(value, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Tensors in nested dicts, tuples, lists and deques, parameters left out."""
    if isinstance(value, Tensor):
        if not isinstance(value, nn.Parameter):
            yield path, value
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from leaves(part, (*path, key))
    elif isinstance(value, tuple):
        for i, part in enumerate(value):
            yield from leaves(part, (*path, i))
    elif isinstance(value, list | deque):
        for part in value:
            yield from leaves(part, (*path, list))


def _rebuilt(value, change: Callable[[Path, Tensor], Tensor], path: Path = ()):
    if isinstance(value, Tensor):
        return value if isinstance(value, nn.Parameter) else change(path, value)
    if isinstance(value, dict):
        made = value.copy()
        made.update({key: _rebuilt(part, change, (*path, key)) for key, part in value.items()})
        return made
    if isinstance(value, tuple):
        parts = [_rebuilt(part, change, (*path, i)) for i, part in enumerate(value)]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, list | deque):
        made = value.copy()
        made.clear()
        made.extend(_rebuilt(part, change, (*path, list)) for part in value)
        return made
    return value


def dims_between(label: str, three: Sequence[tuple[Path, Tensor]], two: Sequence[tuple[Path, Tensor]]) -> Dims:
    """The batch dimensions of a value, from what it was with three samples and with two.  Raises MemextError: which
    state has none, or several."""
    refusal = f"early_exit: the state {label} cannot be gathered when samples leave the batch: "
    if [path for path, _ in three] != [path for path, _ in two]:
        raise MemextError(f"{refusal}it holds {len(three)} tensors with three samples and {len(two)} with two; hold "
                          "one tensor [N, *], or a list or dict of them")
    dims: Dims = {}
    for (path, a), (_, b) in zip(three, two):
        differ = [i for i, sizes in enumerate(zip(a.shape, b.shape)) if sizes[0] != sizes[1]]
        if a.dim() == b.dim() and not differ and a.dtype == b.dtype and torch.equal(a, b):
            dims.setdefault(path, None)
            continue
        if a.dim() != b.dim() or len(differ) != 1 or (a.shape[differ[0]], b.shape[differ[0]]) != (3, 2):
            raise MemextError(f"{refusal}it has shape {tuple(a.shape)} with three samples and {tuple(b.shape)} with "
                              "two, where one dimension has to be the number of samples (and what is the same for all "
                              "samples must not depend on their inputs)")
        if dims.get(path, differ[0]) != differ[0]:
            raise MemextError(f"{refusal}the batch is dimension {dims[path]} of one of its tensors and {differ[0]} of "
                              "another; hold them in a tuple or dict, or with the batch in the same dimension")
        dims[path] = differ[0]
    return dims


def gathered(label: str, value, dims: Dims, samples: int, keep: Tensor, made: dict[int, Tensor]):
    """The value with the samples `keep` of `samples` only.  made: id -> tensor, of this round: what several neurons
    hold stays one tensor."""
    def select(path: Path, t: Tensor) -> Tensor:
        dim = dims.get(path)
        if dim is None or t.dim() <= dim:
            return t
        if t.shape[dim] != samples:
            raise MemextError(f"early_exit: the state {label} has shape {tuple(t.shape)} with {samples} samples in the "
                              f"batch; it had the number of samples in dimension {dim} in the first steps")
        if id(t) not in made:
            made[id(t)] = t.index_select(dim, keep)
        return made[id(t)]

    return _rebuilt(value, select)


def _version(t: Tensor) -> int:
    return -1 if t.is_inference() else t._version
