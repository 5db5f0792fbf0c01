"""Loops over time in the forward of the program's own modules, run by unroll; the framework's own loops, likewise.

The first step of a loop runs as it is written: then every state has its shape, and it is seen whether all is as unroll
needs it. If not, and where no gradient is asked for, the loop runs as it is written to its end.
"""
from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten

from .._again import random_state, set_random_state
from ..errors import MemextError
from ..temporal import _hosts, unroll
from ..temporal._captured import captured
from ._rewrite import UNSET, rewritten

__all__ = ["as_before_if_refused", "as_written", "found", "framework_loop", "native_now", "rewrite"]

framework_loop: ContextVar[str | None] = ContextVar("memext_framework_loop", default=None)  # whose loop runs now
native_now: ContextVar[bool] = ContextVar("memext_native_now", default=False)  # loops of frameworks run as theirs
_NOT_THE_PROGRAMS = ("torch", "torchvision", "spikingjelly", "snntorch", "sj_memext", "snntorch_memext", "shared_core")
_KNOWN = (range, Tensor, enumerate, zip, list, tuple, reversed)  # what looking through twice does not change


def found(net: nn.Module) -> tuple[list[tuple[type, Callable, types.FunctionType]], list[str]]:
    """(class, its forward, the forward with its loops given to unroll) of the program's own classes in `net`; and why
    others are left."""
    changed, left = [], []
    for base in _own_classes(net):
        forward = vars(base)["forward"]
        if isinstance(forward, types.FunctionType) and not hasattr(forward, "_memext_original"):
            runner = _Runner(f"{base.__name__}.forward")
            new, why = rewritten(forward, runner)
            left += [f"{base.__name__}.forward, {reason}" for reason in why]
            if new is not None:
                new._memext_runner = runner
                changed.append((base, forward, new))
    return changed, left


def rewrite(net: nn.Module, method: str) -> tuple[list[tuple[type, Callable]], list[str]]:
    """Gives loops in `net` to unroll: ([(class, its forward as written)], why others are left).

    The classes change, for all their objects: so do copies and pickles. Classes that changed before are among them.
    """
    changed, left = found(net)
    for base, forward, new in changed:
        new._memext_original, new._memext_runner.method = forward, method
        base.forward = new
    return [(base, vars(base)["forward"]._memext_original) for base in _own_classes(net)
            if hasattr(vars(base)["forward"], "_memext_original")], left


@contextmanager
def as_written(loops: list[tuple[type, Callable]]) -> Iterator[None]:
    """Inside, these classes have their forwards back, and frameworks their own loops over time."""
    token = native_now.set(True)
    now = [(base, base.forward) for base, _ in loops]
    try:
        for base, forward in loops:
            base.forward = forward
        yield
    finally:
        native_now.reset(token)
        for base, forward in now:
            base.forward = forward


def _own_classes(net: nn.Module) -> list[type]:
    """The program's own, of modules in `net` that hold a neuron."""
    return list(dict.fromkeys(base for module in net.modules() if _holds_neuron(module) for base in type(module).__mro__
                              if "forward" in vars(base)
                              and base.__module__.split(".")[0] not in _NOT_THE_PROGRAMS))


def _holds_neuron(module: nn.Module) -> bool:
    return any(host.framework.is_neuron(part) for host in _hosts.imported() for part in module.modules()
               if part is not module)


class _Runner:
    """Runs one forward's loops. problem: why unroll refused, after which they run as they are written."""

    def __init__(self, where: str):
        self.where, self.method, self.problem = where, "reverse", None

    def __call__(self, iterable, body: Callable, start: tuple, lists: int):
        if not isinstance(iterable, _KNOWN):
            return self._written(iter(iterable), body, start, [[] for _ in range(lists)], None)
        items = list(iterable)
        if not items:
            return None
        outs, states = body(items[0], *start)
        made = [[out] for out in outs]
        if len(items) < 3 or self.problem or not torch.is_grad_enabled() or not _suits(outs, states):
            return self._written(iter(items[1:]), body, states, made, items[0])
        try:
            rest, states = self._unrolled(items[1:], body, states)
        except MemextError as problem:
            self.problem = str(problem)
            return self._written(iter(items[1:]), body, states, made, items[0])
        for values, more in zip(made, rest):
            values.extend(more.unbind(0))
        return made, states, items[-1]

    def _unrolled(self, items: list, body: Callable, states: tuple):
        def step(t, *carried):
            outs, after = body(items[t], *carried)
            return (outs or (torch.zeros(()),)), after

        with as_before_if_refused(body):
            if states:
                return unroll(step, lambda t: t, self.method, num_steps=len(items), state=states,
                              final_state="attached")
            return unroll(lambda t: step(t)[0], lambda t: t, self.method, num_steps=len(items),
                          final_state="attached"), ()

    @staticmethod
    def _written(items, body: Callable, states: tuple, made: list[list], item):
        last = UNSET if item is None and not any(made) else item
        for last in items:
            outs, states = body(last, *states)
            for values, out in zip(made, outs):
                values.append(out)
        return None if last is UNSET else (made, states, last)


@contextmanager
def as_before_if_refused(step: Callable) -> Iterator[None]:
    """A MemextError inside leaves the states of the modules that `step` uses, and random numbers, as they were."""
    modules = [m for root in captured(step)[0] for m in root.modules()]
    before = [(host, m, name, host.get(m, name)) for host in _hosts.imported() for m in modules
              for name in host.states(m)]
    device = next((p.device for m in modules for p in m.parameters(recurse=False)), torch.device("cpu"))
    drawn = random_state(device)
    try:
        yield
    except MemextError:
        for host, m, name, value in before:
            host.set(m, name, value)
        set_random_state(device, drawn)
        raise


def _suits(outs: tuple, states: tuple) -> bool:
    """Are a step's results what unroll can carry: tensors, and structures of them?"""
    flat, _ = tree_flatten((outs, states))
    return all(isinstance(value, Tensor) for value in flat) and len(flat) > 0

