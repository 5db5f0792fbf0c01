"""Several steps at once: stateless layers see [k N, *], modules that carry states are handed [k, N, *].

Only where nothing in the module can tell the difference but by rounding: a chain of layers that treat samples apart.
Batch norm in training has statistics of each step, and dropout draws a mask for each, so these are not merged.
"""
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn

from ..errors import MemextError
from ._program import Program

__all__ = ["merging", "why_not"]

# A module of another kind says so itself: `steps_at_once = True`.
_SAYS_SO = "steps_at_once"
_APART = tuple(getattr(nn, name) for name in (
    "Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d Linear Flatten Identity MaxPool1d MaxPool2d "
    "MaxPool3d AvgPool1d AvgPool2d AvgPool3d AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveMaxPool2d ReLU LeakyReLU GELU "
    "SiLU Sigmoid Tanh GroupNorm LayerNorm Upsample ZeroPad2d").split())


def why_not(program: Program, explicit: int) -> str | None:
    """None if steps of this program can be merged, else the reason."""
    if explicit:
        return "its states are handed in with state=, and only states that modules hold can go through several steps"
    if not isinstance(program.step, nn.Module):
        return "it is a function; what is merged is a Sequential, or a module with steps_at_once = True"
    stateful = {cell.module for cell in program.cells}

    def look(m: nn.Module, name: str) -> str | None:
        if getattr(m, _SAYS_SO, False) or m in stateful:
            return None
        if isinstance(m, nn.Sequential) and type(m).forward is nn.Sequential.forward:
            inside = (look(child, f"{name}.{n}".strip(".")) for n, child in m.named_children())
            return next((why for why in inside if why), None)
        still = isinstance(m, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd) and not m.training
        if still or (isinstance(m, _APART) and not list(m.children())):
            return None
        return f"{name or 'the module'} ({type(m).__name__}) is not known to treat samples apart"

    return look(program.step, "")


def merging(program: Program) -> Callable:
    """A context manager, called with k: inside, the program's module takes k steps side by side."""
    hosts = {cell.module: cell.host for cell in program.cells}
    for inner in {child for m in hosts for child in m.modules() if child is not m}:
        hosts.pop(inner, None)  # called step by step by the one around it

    @contextmanager
    def merged(k: int) -> Iterator[None]:
        for m, host in hosts.items():
            m.__dict__["forward"] = _over(host.sequence, m, k)
        try:
            yield
        finally:
            for m in hosts:
                m.__dict__.pop("forward", None)

    for m in hosts:
        if "forward" in m.__dict__:
            raise MemextError(f"unroll: steps_at_once: forward was replaced on a {type(m).__name__} object; use "
                              "steps_at_once=1")
    return merged


def _over(sequence: Callable, m: nn.Module, k: int) -> Callable:
    def forward(x: Tensor):
        m.__dict__.pop("forward", None)  # a loop over the module's own forward must find that one
        try:
            out = sequence(m, x.unflatten(0, (k, -1)))
        finally:
            m.__dict__["forward"] = forward
        if isinstance(out, Sequence):
            return tuple(t.flatten(0, 1) for t in out)
        return out.flatten(0, 1)

    return forward
