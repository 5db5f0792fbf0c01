"""What a step function reads besides its arguments: modules, and tensors that learn.

A step is a Module, a method of one, or a function of the user's that closes over both. The gradient of a tensor can
only be told apart from that of another use of it if it can be exchanged for an alias, so each is found with its place.
"""
from __future__ import annotations

import functools
import types
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Place", "captured"]

_PLAIN = str | bytes | int | float | type | types.ModuleType  # nothing in them to find
_DEPTH = 4  # functions that call functions that hold lists of modules


@dataclass(frozen=True)
class Place:
    """Where a tensor is held: container[key], or a closure's cell."""

    container: object
    key: object = None

    def get(self):
        return self.container.cell_contents if self.key is None else self.container[self.key]

    def set(self, value) -> None:
        if self.key is None:
            self.container.cell_contents = value
        else:
            self.container[self.key] = value


def captured(step) -> tuple[list[nn.Module], list[Place]]:
    """(modules, outermost only; places of tensors that need a gradient, outside modules)."""
    modules: list[nn.Module] = []
    places: list[Place] = []
    seen: set[int] = set()

    def look(value, place: Place | None, depth: int) -> None:
        if isinstance(value, Tensor):
            if value.requires_grad and place is not None:
                places.append(place)
            return
        if id(value) in seen or depth > _DEPTH or isinstance(value, _PLAIN):
            return
        seen.add(id(value))
        if isinstance(value, nn.Module):
            modules.append(value)
        elif isinstance(value, types.MethodType):
            look(value.__self__, None, depth)
            look(value.__func__, None, depth)
        elif isinstance(value, functools.partial):
            for part in (value.func, value.args, value.keywords):
                look(part, None, depth)
        elif isinstance(value, types.FunctionType):
            if not value.__module__.startswith("torch."):
                of_function(value, depth + 1)
        elif isinstance(value, dict):
            for key in list(value):
                look(value[key], Place(value, key), depth + 1)
        elif isinstance(value, list | tuple):
            for i, part in enumerate(value):
                look(part, Place(value, i) if isinstance(value, list) else None, depth + 1)
        elif hasattr(value, "__dict__") and not type(value).__module__.startswith(("torch", "numpy", "builtins")):
            look(vars(value), None, depth + 1)

    def of_function(function: types.FunctionType, depth: int) -> None:
        for cell in function.__closure__ or ():
            try:
                look(cell.cell_contents, Place(cell), depth)
            except ValueError:  # a cell not yet filled
                continue
        for name in _names(function.__code__):
            if name in function.__globals__:
                look(function.__globals__[name], Place(function.__globals__, name), depth)
        look(function.__defaults__ or (), None, depth)
        look(function.__kwdefaults__ or {}, None, depth)

    look(step, None, 0)
    return modules, places


def _names(code: types.CodeType) -> set[str]:
    """Global names in a function and in those written inside it."""
    found = set(code.co_names)
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            found |= _names(part)
    return found


def leaves_of(tensors) -> set[int]:
    """ids of the leaves that learn, in the graph behind these tensors."""
    found, stack, seen = set(), [t.grad_fn for t in tensors if t.grad_fn is not None], set()
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if isinstance(leaf, torch.Tensor):
            found.add(id(leaf))
        stack.extend(n for n, _ in node.next_functions if n is not None)
    return found
