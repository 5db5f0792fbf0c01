"""Whole sequences through a chain of layers, stepped through time: the memory of one step instead of T.

A Sequential in step mode "m" computes layer by layer what it computes step by step in mode "s", if no layer looks at
several steps at once. It keeps its step mode as far as the program can see; each step runs in mode "s".
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._entering import Change, entered
from ..temporal import Host, unroll

__all__ = ["SteppedSequential", "step_through"]

METHOD = "_memext_through_time"


class SteppedSequential(nn.Sequential):
    """A Sequential of layers in step mode "m" that goes through time by unroll. Made by `memext run`."""

    def forward(self, x_seq):
        if not isinstance(x_seq, Tensor) or x_seq.dim() < 2 or x_seq.shape[0] < 2 or not torch.is_grad_enabled():
            return super().forward(x_seq)
        parts = [m for m in self.modules() if getattr(m, "step_mode", None) == "m"]

        def step(x):
            with _single(parts):
                return nn.Sequential.forward(self, x)

        with _single(parts):
            return unroll(step, x_seq, getattr(self, METHOD, "reverse"), final_state="attached")


def step_through(host: Host, net: nn.Module, method: str) -> tuple[list[str], list[str]]:
    """Changes the largest chains in `net` that can be stepped through: (what was changed, why others are left)."""
    done: list[str] = []
    left: list[str] = []
    _look(host, "", net, method, done, left)
    return done, left


def _look(host: Host, name: str, module: nn.Module, method: str, done: list[str], left: list[str]) -> None:
    neurons = [m for m in module.modules() if host.framework.is_neuron(m) and getattr(m, "step_mode", "s") == "m"]
    if not neurons or module in neurons:
        return
    if type(module) is nn.Sequential and not entered(module):
        why = _why_not(module)
        if why is None:
            Change(name, module, SteppedSequential, {METHOD: method}).apply(host.framework.name, "neuron")
            done.append(f"{name or 'the model itself'!r} (Sequential) is stepped through time")
            return
        left.append(f"{name or 'the model itself'!r} (Sequential): {why}")
    for child, part in module.named_children():
        _look(host, f"{name}.{child}" if name else child, part, method, done, left)


def _why_not(module: nn.Sequential) -> str | None:
    for part in _parts(module):
        kind = type(part).__name__
        if isinstance(part, _BatchNorm):
            return (f"{kind} takes its statistics over all steps together, step by step it would be another network "
                    "(--method recompute is exact, and small)")
        if isinstance(part, nn.Identity):
            continue
        if getattr(part, "step_mode", None) != "m" or "s" not in part.supported_step_mode():
            return f"{kind} may look at several steps at once"
        if getattr(part, "store_v_seq", False):
            return f"{kind} stores the states of a whole sequence (store_v_seq=True)"
    return None


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """The layers of a chain; what a layer holds inside is its own affair."""
    for part in module.children():
        if type(part) is nn.Sequential:
            yield from _parts(part)
        else:
            yield part


@contextmanager
def _single(parts: Sequence[nn.Module]) -> Iterator[None]:
    try:
        for part in parts:
            part.step_mode = "s"
        yield
    finally:
        for part in parts:
            part.step_mode = "m"
