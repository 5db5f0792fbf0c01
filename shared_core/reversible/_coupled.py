"""The autograd node of a sequence of additive couplings: keeps the sequence's output, and brings back the rest from it.

    forward:   z1 += F(z2);  z2 += G(z1)                       block by block, without a graph
    backward:  z2 -= G(z1);  z1 -= F(z2)                       last block first; each G and F is rebuilt with a graph of
               g1 += G'(z1)^T g2;  g2 += F'(z2)^T g1           its own, which is gone before the next one is built
"""
from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

from .._again import fork
from ..errors import MemextError
from ..temporal._program import leaf
from ._coupling import Coupling, own
from ._grid import Rounded
from ._parts import Call, aside, key

__all__ = ["Coupled"]


class Coupled(torch.autograd.Function):
    """apply(coupling, result, number of parameters, x, *parameters, *tensors among the first states) -> y, *states."""

    @staticmethod
    def forward(ctx, coupling: Coupling, result: dict, count: int, x, *tensors):
        parameters, states = tensors[:count], tensors[count:]
        start = {key(cell): cell.get() for cell in coupling.cells()}
        y = coupling.forward(x)
        kept = {id(t): t for t in states}
        for call in coupling.calls:
            kept |= {id(s): s for s in call.before if isinstance(s, Tensor)}
        place = {i: n for n, i in enumerate(kept)}
        for call in coupling.calls:
            call.saved = {i: place[id(s)] for i, s in enumerate(call.before) if isinstance(s, Tensor)}
            call.before = [None if isinstance(s, Tensor) else s for s in call.before]
        ctx.save_for_backward(y, *parameters, *kept.values())
        ctx.set_materialize_grads(False)
        ctx.coupling, ctx.count, ctx.x_dtype = coupling, count, x.dtype
        ctx.starts = [k for k, s in start.items() if isinstance(s, Tensor)]  # in the order of `states`
        ctx.ends = []
        outputs = []
        if coupling.carry:
            for cell in coupling.cells():
                s = cell.get()
                if isinstance(s, Tensor) and s.is_floating_point() and s is not start[key(cell)]:
                    # Outputs must be no inputs, and what the neuron holds until then must not become part of the graph.
                    outputs.append(s.detach().clone() if id(s) in kept else s.detach())
                    ctx.ends.append(key(cell))
                    result[key(cell)] = cell
        return y, *outputs

    @staticmethod
    def backward(ctx, grad_y, *grad_states):
        coupling = ctx.coupling
        if torch.is_grad_enabled():
            raise MemextError(f"{coupling.where}: double backward (create_graph=True) was asked for; the graph of the "
                              "blocks is not kept. Use reversible=False for it")
        y, *tensors = _saved(ctx)
        kept = tensors[ctx.count:]  # the saved parameters are other objects inside torch.utils.checkpoint
        problem = coupling.in_range()
        if problem is not None:
            raise MemextError(problem)
        z = [own(half.contiguous(), y) for half in coupling.halves(y)]
        grads = [torch.zeros_like(h) for h in z] if grad_y is None else [
            own(half.contiguous(), grad_y) for half in coupling.halves(grad_y)]
        carried = dict(zip(ctx.ends, grad_states))
        del y, grad_y
        with ExitStack() as stack:
            if coupling.real:
                stack.enter_context(fork(coupling.device))
            aliases = stack.enter_context(aside(coupling.parts, coupling.training))
            for i, call in reversed(list(enumerate(coupling.calls))):
                undone(coupling, call, kept, aliases, carried, z[1 - i % 2], z[i % 2], grads[1 - i % 2], grads[i % 2])
            found = [aliases[id(p)].grad for p in coupling.parameters()]
        grad_x = torch.cat(grads, coupling.dim).to(ctx.x_dtype) if ctx.needs_input_grad[3] else None
        found += [carried.get(k) for k in ctx.starts]
        return None, None, None, grad_x, *(g if n else None for g, n in zip(found, ctx.needs_input_grad[4:]))


def undone(coupling: Coupling, call: Call, kept: list[Tensor], aliases: dict[int, Tensor], carried: dict,
           z_in: Tensor, z_out: Tensor, g_in: Tensor, g_out: Tensor) -> None:
    """z_out -= branch(z_in), in place; its gradient is added to g_in, to the aliases, and to those of the states.

    carried: gradients of the states after the call; becomes those of the states before it.
    """
    cells = call.part.cells
    before = [kept[call.saved[i]] if i in call.saved else s for i, s in enumerate(call.before)]
    with torch.enable_grad():
        x, leaves = leaf(z_in), [leaf(s) for s in before]
        out = coupling.again(call, leaves, x)
        added = Rounded.apply(out, coupling.grid, coupling.dtype)
        roots, gradients = ([added], [g_out]) if added.requires_grad else ([], [])
        for cell in cells if coupling.carry else ():
            g, s = carried.pop(key(cell), None), cell.get()
            if g is not None and isinstance(s, Tensor) and s.requires_grad:
                roots.append(s)
                gradients.append(g)
        learning = [aliases[id(p)] for p in call.part.parameters]
        into = [x, *(s for s in leaves if isinstance(s, Tensor) and s.requires_grad), *learning]
        if roots:
            torch.autograd.backward(roots, gradients, inputs=into)
    for cell, state in zip(cells, before):  # lets go of the graph
        cell.set(state)
    z_out.sub_(added.detach())
    if x.grad is not None:
        g_in.add_(x.grad)
    for cell, s in zip(cells, leaves):
        if isinstance(s, Tensor) and s.grad is not None:
            known = carried.get(key(cell))
            carried[key(cell)] = s.grad if known is None else known + s.grad


def _saved(ctx) -> tuple[Tensor, ...]:
    try:
        return ctx.saved_tensors
    except RuntimeError as problem:
        if "modified by an inplace operation" not in str(problem):
            raise
        raise MemextError(f"{ctx.coupling.where}: its output, or one of its parameters, was changed in place before "
                          "the backward pass, which needs it as it was. Write y = y + 1, not y += 1 (layers: "
                          "inplace=False), and step the optimizer after the backward pass") from problem
