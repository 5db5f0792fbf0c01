"""What a graph reaches, and which Python objects keep graphs alive."""
from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from .._memory_graph import _inside, storages_of

__all__ = ["CONTAINERS", "Holder", "holders", "holders_in", "parameters_reached"]

CONTAINERS = (list, tuple, dict, set, deque)
_OBJECTS = 3000  # Python objects looked into behind one hook


def parameters_reached(roots: Iterable[Tensor]) -> set[int]:
    """ids of the tensors that a backward pass from `roots` would give a gradient.

    A custom Function that keeps modules on its ctx (a reversible sequence) runs their backward itself: theirs count.
    """
    found: set[int] = set()
    seen, waiting = set(), [t.grad_fn for t in roots if t.grad_fn is not None]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        for value in getattr(node, "__dict__", {}).values():
            for module in _modules(value):
                found.update(id(p) for p in module.parameters())
        waiting += [after for after, _ in node.next_functions]
    return found


def _modules(value, depth: int = 3) -> Iterator[nn.Module]:
    if isinstance(value, nn.Module):
        yield value
    elif depth and (isinstance(value, (list, tuple)) or callable(value)):
        for inner in value if isinstance(value, (list, tuple)) else _inside(value):
            yield from _modules(inner, depth - 1)


@dataclass(frozen=True)
class Holder:
    """Something that keeps graphs alive. where: in words a user knows.  tensors, nbytes: that carry a graph.

    size: how many items it has; to see whether it grows.
    """

    where: str
    tensors: int
    nbytes: int
    size: int


def holders(model: nn.Module, states: dict[nn.Module, set[str]]) -> list[Holder]:
    """Containers that modules, or objects behind their hooks, fill with tensors that carry a graph.

    states: names that are a module's membrane, not a record.
    """
    found: list[Holder] = []
    seen: set[int] = set()  # a monitor has a hook on many modules
    for name, module in model.named_modules():
        label = name or type(model).__name__
        for key, value in vars(module).items():
            if key in ("_parameters", "_buffers", "_modules", "_memories") or key in states.get(module, ()):
                continue
            if key in ("_forward_hooks", "_forward_pre_hooks"):
                found += _behind_hooks(label, value.values(), seen)
            elif isinstance(value, CONTAINERS):
                found += holders_in(f"{label}.{key}", value)
        record = getattr(module, "v_seq", None) if getattr(module, "store_v_seq", False) else None
        if isinstance(record, Tensor) and record.grad_fn is not None:
            found.append(Holder(f"{label}.v_seq (store_v_seq=True)", 1, _nbytes([record]), len(record)))
    return found


def holders_in(where: str, container) -> list[Holder]:
    tensors = list(_with_graph(container, 3))
    if not tensors:
        return []
    return [Holder(where, len(tensors), _nbytes(tensors), len(container))]


def _behind_hooks(label: str, hooks, seen: set[int]) -> list[Holder]:
    """Containers behind hooks: of a monitor's, or in a closure."""
    found, waiting = [], [(hook, f"a hook of {label}") for hook in hooks]
    for looked, (obj, where) in enumerate(waiting):
        if id(obj) in seen or looked > _OBJECTS or isinstance(obj, (nn.Module, Tensor, str, bytes, int, type)):
            continue
        seen.add(id(obj))
        if isinstance(obj, (list, deque)):
            found += holders_in(where, obj)
            continue
        attributes = {id(value): name for name, value in getattr(obj, "__dict__", {}).items()}
        for part in list(obj.values() if isinstance(obj, dict) else _inside(obj))[:200]:
            name = attributes.get(id(part)) if isinstance(part, CONTAINERS) else None
            waiting.append((part, f"{type(obj).__name__}.{name}, filled by {where}" if name else where))
    return found


def _with_graph(value, depth: int) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.grad_fn is not None:
            yield value
    elif depth and isinstance(value, CONTAINERS):
        for item in list(value.values()) if isinstance(value, dict) else list(value):
            yield from _with_graph(item, depth - 1)


def _nbytes(tensors: list[Tensor]) -> int:
    """Of the tensors themselves; what their graphs keep comes on top."""
    return sum({s._cdata: s.nbytes() for t in tensors for s in storages_of(t)}.values())
