"""May a backward pass write into the gradient it was handed? Only if nobody else can ever read it.

The autograd engine hands one and the same tensor to both branches of `x + F(x)`; a hook may have kept it; it may be a
view of something that lives on. So the references are counted: those to the tensor object, to the tensor behind it, to
its storage. What the counts are for a gradient that nobody else holds is measured once, on a graph where that is known,
in the very frames that ask later; where Torch has no such counters, the answer is always no.

Fake tensors (the planner's) are counted too, or a plan would show copies that a real step does not make. Their views of
views keep each other alive, so their counts grow along a chain of in-place gradients, and are measured along one.
"""
from __future__ import annotations

import sys
from contextlib import nullcontext
from functools import cache

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes

__all__ = ["sole_owner"]

_CHAIN = (4, (2, 2)) * 4  # shapes in turn


def sole_owner(grads: tuple, index: int = 0) -> bool:
    """grads: the arguments of `backward(ctx, *grads)`, as they came; no other name may be bound to grads[index]."""
    known = _expected(isinstance(grads[index], FakeTensor))
    return known is not None and _may_write(grads[index]) and _counts(grads, index) in known


def _may_write(g: Tensor) -> bool:
    plain = type(g) is Tensor or isinstance(g, FakeTensor)
    return plain and g.numel() > 0 and g.is_contiguous() and not g.requires_grad


def _counts(grads: tuple, index: int) -> tuple[int, ...]:
    """Holders of the object, the tensor, its storage's object, its storage; and of the tensor it is a view of."""
    storage = grads[index].untyped_storage()
    own = (sys.getrefcount(grads[index]), grads[index]._use_count(), sys.getrefcount(storage),
           torch._C._storage_Use_Count(storage._cdata))
    if not grads[index]._is_view():
        return own
    base = grads[index]._base
    return (*own, sys.getrefcount(base), base._use_count(), base.numel() == grads[index].numel())


@cache
def _expected(fake: bool = False) -> set[tuple[int, ...]] | None:
    """Counts of a gradient that has one owner: as an operator returns it, and as a view node passes it on.

    Measured under no mode that happens to be on now: they hold for the whole process.
    """
    if not hasattr(Tensor, "_use_count") or not hasattr(torch._C, "_storage_Use_Count"):
        return None
    with _disable_current_modes(), FakeTensorMode() if fake else nullcontext(), torch.enable_grad():
        x = torch.zeros(2, 2, requires_grad=True)
        for probe in (lambda y: y * 2, lambda y: y.view(4) * 2):
            probe(_Probe.apply(x)).sum().backward()
        if fake:
            _chain(_Probe.apply(x)).mul(2).sum().backward()
        alone = set(_Probe.seen)
        _Probe.seen.clear()
        y = _Probe.apply(x)
        (y + _Probe.apply(y)).mul(2).sum().backward()  # the first to run shares its gradient
        y = _Probe.apply(x)
        (y.view(4) + _Probe.apply(y.view(4))).mul(2).sum().backward()
        shared = {_Probe.seen[0], _Probe.seen[2]}
        _Probe.seen.clear()
        if fake:
            y = _Probe.apply(x)
            (y.view(2, 2) + _chain(y.view(4))).mul(2).sum().backward()
            shared |= set(_Probe.seen[:-1])
            _Probe.seen.clear()
    return None if alone & shared else alone


def _chain(y: Tensor) -> Tensor:
    for shape in _CHAIN:
        y = _Probe.apply(y, True).view(shape)
    return y


class _Probe(torch.autograd.Function):
    seen: list[tuple[int, ...]] = []  # noqa: RUF012

    @staticmethod
    def forward(ctx, x, in_place=False):
        ctx.in_place = in_place
        return x * 2

    @staticmethod
    def backward(ctx, *grads):
        _Probe.seen.append(_ask(grads))
        return grads[0] if ctx.in_place else grads[0] * 2, None


def _ask(grads: tuple, index: int = 0):
    """As deep as sole_owner: each frame between the engine and the count may hold a reference of its own."""
    return _counts(grads, index)
