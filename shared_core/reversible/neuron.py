"""The reversible neuron of RevSNN: a whole sequence with nothing kept for the backward pass but its own output.

The published inverse (Eq. 7-10) divides by (1 - Y)(1 - 1/tau) + alpha, which crosses zero because Y is real-valued.
Ours runs forward in time from the known first potential: Y gives the inputs by subtraction (Eq. 8, 10), they give the
next potentials (Eq. 3, 6). Inputs are rounded to a grid on entry, so that the subtraction is exact.
"""
from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .._autograd import NO_FORWARD_MODE
from ..errors import MemextError
from ..functional import FLOATS
from ..surrogate import Surrogate
from . import _plain, _torch
from ._backends import choose, why_not_invertible
from ._equations import RANGE, Equations, Groups, groups_of
from ._range import check_later

__all__ = ["Equations", "invert", "is_invertible", "multi_step", "why_not_invertible"]


def multi_step(eq: Equations, x_seq: Tensor, v: Tensor | None = None, *, surrogate: Surrogate, split_dim: int = -1,
               online: bool = False, backend: str = "auto", name: str = "reversible neuron") -> tuple[Tensor, Tensor]:
    """T steps of one layer of reversible neurons.

    x_seq: [T, *step], T >= 1, float16/bfloat16/float32/float64, any strides.  v: [*step], or None: v_reset everywhere.
    split_dim: the dimension of a step whose elements are split into eq.groups contiguous groups.
    online: the potential before each step is a constant (as OTTT needs it); nothing flows back in time.
    backend: "auto"; "native" (CPU kernel), "cuda"; "torch"; "reference": the equations under Torch's own autograd,
        which keeps every step and can be differentiated twice. One asked for by name never falls back.
    Returns: y [T, *step] float32 (float64 for float64 input), also under autocast; final v [*step], same dtype.
    Saved for backward: y itself (no copy: the tensor that the next layer gets), v if one was given, eight bytes.
    Gradients: x_seq, v; those of the equations (autograd is the oracle), not the truncated Eq. 11, 12.
    Raises MemextError: wrong rank, dtype, shape, split; a backend that cannot serve this; forward-mode differentiation.
    In the backward pass: y was changed in place; create_graph=True; at its end: |beta x| had reached 127.
    """
    groups = _check(name, eq, x_seq, v, surrogate, split_dim)
    if online:
        return _online(eq, x_seq, v, surrogate, split_dim, backend, name)
    if forward_ad._current_level >= 0 and any(
            t is not None and forward_ad.unpack_dual(t).tangent is not None for t in (x_seq, v)):
        raise MemextError(NO_FORWARD_MODE.replace("functional", name))
    module = choose(surrogate, x_seq.device, backend)
    if module is None:
        return _reference(eq, x_seq, v, surrogate, groups)
    return _Reversible.apply(eq, surrogate, groups, module, name, x_seq, v)


def invert(eq: Equations, y_seq: Tensor, v: Tensor | None = None, *, surrogate: Surrogate, split_dim: int = -1,
           name: str = "reversible neuron") -> tuple[Tensor, Tensor]:
    """From outputs to inputs: Eq. 8 and 10, forward in time from the potential v before the first step.

    y_seq: [T, *step] float32 or float64, as multi_step returned it.  v: as it was given to multi_step.
    Returns: x_seq like y_seq, the inputs as rounded to the grid (round(beta x 2^16) / 2^16 / beta), bit for bit; the
    potentials before each step [T, *step], bit for bit.  Raises MemextError: wrong dtype, shape, split; a surrogate
    that cannot be run again.
    """
    groups = _check(f"{name}.invert", eq, y_seq, v, surrogate, split_dim)
    reason = why_not_invertible(surrogate)
    if reason is not None:
        raise MemextError(f"{name}.invert: {reason}")
    if y_seq.dtype not in (torch.float32, torch.float64):
        raise MemextError(f"{name}.invert: y_seq is {y_seq.dtype}; outputs are float32 or float64, and one rounded to "
                          "another type does not hold the inputs any more")
    with torch.no_grad():
        y = groups.sequence(y_seq, y_seq.dtype)
        start = _plain.start(eq, y, None if v is None else groups.state(v, y.dtype))
        found, before, _ = _torch.inverse(eq, y, start, surrogate)
        results = []
        for values in (found, before):
            whole, view = groups.empty(y.shape[0], dtype=y.dtype, device=y.device)
            view.copy_(values)
            results.append(whole)
    return tuple(results)


def is_invertible(eq: Equations, x_seq: Tensor, v: Tensor | None = None, *, surrogate: Surrogate, split_dim: int = -1,
                  name: str = "reversible neuron") -> bool:
    """Whether this neuron gives these inputs back bit for bit (rounded to the grid), at every step."""
    if why_not_invertible(surrogate) is not None:
        return False
    with torch.no_grad():
        groups = _check(name, eq, x_seq, v, surrogate, split_dim)
        y, _ = multi_step(eq, x_seq, v, surrogate=surrogate, split_dim=split_dim, name=name)
        found, _ = invert(eq, y, v, surrogate=surrogate, split_dim=split_dim, name=name)
        z = _torch.to_grid(groups.sequence(x_seq, y.dtype), eq.beta)
        same = torch.equal(groups.sequence(found, y.dtype), _torch.from_grid(z, eq.beta))
        return same and bool((z.abs() < RANGE).all())


def _check(name: str, eq: Equations, x: Tensor, v: Tensor | None, surrogate: Surrogate, split_dim: int) -> Groups:
    if not isinstance(eq, Equations):
        raise MemextError(f"{name}: eq is {eq!r}; a shared_core.reversible.Equations is needed")
    if not isinstance(surrogate, Surrogate):
        raise MemextError(f"{name}: surrogate is {surrogate!r}; one from shared_core.surrogate is needed, for example "
                          "surrogate.atan(), or surrogate.opaque(your_function, name=...)")
    if not isinstance(x, Tensor):
        raise MemextError(f"{name}: the input is {type(x).__name__}; a Tensor [T, *] is needed")
    if x.dim() < 2:
        raise MemextError(f"{name}: the input has shape {tuple(x.shape)}; time and at least one dimension to split are "
                          "needed: [T, *]")
    if x.layout != torch.strided or x.dtype not in FLOATS:
        raise MemextError(f"{name}: the input is {x.dtype}, {x.layout}; a dense float16, bfloat16, float32 or float64 "
                          "tensor is needed")
    if x.shape[0] == 0:
        raise MemextError(f"{name}: the input has T = 0 steps, shape {tuple(x.shape)}; at least one step is needed")
    if v is not None and (not isinstance(v, Tensor) or not v.is_floating_point() or v.shape != x.shape[1:]
                          or v.device != x.device):
        got = f"{tuple(v.shape)} {v.dtype} on {v.device}" if isinstance(v, Tensor) else repr(v)
        raise MemextError(f"{name}: the potential v is {got}; the input {tuple(x.shape)} needs a floating-point "
                          f"{tuple(x.shape[1:])} on {x.device} (was the state of another batch kept? reset it)")
    return groups_of(name, x, split_dim, eq.groups)


def _compute(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _online(eq, x_seq, v, surrogate, split_dim, backend, name):
    ys = []
    for x in x_seq.split(1):
        y, v = multi_step(eq, x, None if v is None else v.detach(), surrogate=surrogate, split_dim=split_dim,
                          backend=backend, name=name)
        ys.append(y)
    return (ys[0] if len(ys) == 1 else torch.cat(ys)), v


def _reference(eq: Equations, x_seq: Tensor, v: Tensor | None, surrogate: Surrogate, groups: Groups):
    dtype = _compute(x_seq)
    with torch.autocast(x_seq.device.type, enabled=False):
        x = groups.sequence(x_seq, dtype)
        y, final, _ = _torch.loop(eq, x, _plain.start(eq, x, None if v is None else groups.state(v, dtype)), surrogate)
    return groups.whole(y, 1), groups.whole(final, 0)


class _Reversible(torch.autograd.Function):
    @staticmethod
    def forward(ctx, eq, surrogate, groups, module, name, x_seq, v):
        dtype = _compute(x_seq)
        y, y_groups = groups.empty(x_seq.shape[0], dtype=dtype, device=x_seq.device)
        final, final_groups = groups.empty(dtype=dtype, device=x_seq.device)
        with torch.autocast(x_seq.device.type, enabled=False):
            largest = module.forward(eq, groups.sequence(x_seq, dtype), None if v is None else groups.state(v, dtype),
                                     surrogate, y_groups, final_groups)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(y, v, largest)
        ctx.call = eq, surrogate, groups, module, name, x_seq.dtype
        return y, final

    @staticmethod
    def backward(ctx, grad_y, grad_final):
        eq, surrogate, groups, module, name, x_dtype = ctx.call
        if torch.is_grad_enabled():
            raise MemextError(f"{name}: double backward (create_graph=True) needs the steps of the forward pass, which "
                              "are not kept; use backend='reference', or compute this gradient without create_graph")
        y, v, largest = _saved(ctx, name)
        if largest is not None:
            check_later(name, eq.v_th, largest)
        if grad_y is None and grad_final is None:
            return (None,) * 7
        dtype = y.dtype
        start = None if v is None else groups.state(v, dtype)
        grad_x, grad_x_groups = groups.empty(y.shape[0], dtype=dtype, device=y.device)
        grad_v, grad_v_groups = groups.empty(dtype=dtype, device=y.device)
        with torch.autocast(y.device.type, enabled=False):
            module.backward(eq, groups.sequence(y, dtype), start, surrogate,
                            None if grad_y is None else groups.sequence(grad_y, dtype),
                            None if grad_final is None else groups.state(grad_final, dtype),
                            grad_x_groups, grad_v_groups)
        return (*(None,) * 5, grad_x.to(x_dtype), None if v is None else grad_v.to(v.dtype))

    @staticmethod
    def jvp(ctx, *tangents):
        raise MemextError(NO_FORWARD_MODE)


def _saved(ctx, name: str):
    try:
        return ctx.saved_tensors
    except RuntimeError as problem:
        if "inplace" not in str(problem):
            raise
        raise MemextError(f"{name}: its output (or the potential it started from) was changed in place before the "
                          "backward pass; the output is all that is kept, and the inputs are computed from it. Write "
                          "`y = y + h` in the place of `y += h`, and ReLU(inplace=False)") from problem
