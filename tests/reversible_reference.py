"""RevSNN's neuron, Eq. 1-6 and the published inverse Eq. 7-10, written from the paper one group after the other.

Written apart from shared_core/reversible, so that the two can disagree. Everything here is differentiable Torch; the
groups are split along `dim` of a step, and all tensors are lists of steps.
"""
from __future__ import annotations

import torch
from torch import Tensor

from shared_core import surrogate
from shared_core.reversible.neuron import Equations

GRID = 2.0 ** -16


def gridded(x: Tensor, beta: float) -> Tensor:
    """round(beta x / g) g; the gradient is that of beta x."""
    scaled = beta * x
    return scaled - scaled.detach() + torch.round(scaled.detach() / GRID) * GRID


class Spike(torch.autograd.Function):
    """H(u) as decided here or elsewhere, with the surrogate's slope."""

    @staticmethod
    def forward(ctx, u, fired, sg):
        ctx.save_for_backward(u)
        ctx.sg = sg
        return fired.to(u.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.sg.grad(*ctx.saved_tensors), None, None


def forward(eq: Equations, x_seq: Tensor, v: Tensor | None, sg, dim: int = -1, decisions=None):
    """Eq. 1-6 for any number of groups. -> y_seq, final v, potentials before each step, spikes of each step.

    decisions: spikes [T, *] to use instead of H(M - v_th); the slope stays that of the surrogate at M - v_th.
    """
    if v is None:
        v = torch.full_like(x_seq[0], eq.v_reset)
    ys, before, fired = [], [], []
    for t, x in enumerate(x_seq):
        before.append(v)
        z = gridded(x, eq.beta).chunk(eq.groups, dim)
        given = None if decisions is None else decisions[t].chunk(eq.groups, dim)
        new_v, y, h = [], [], []
        for g, v_g in enumerate(v.chunk(eq.groups, dim)):
            current = z[0] / eq.beta if g == 0 else y[g - 1]
            m = v_g + (current - v_g) / eq.tau                                     # Eq. 1, 4
            u = m - eq.v_th
            h.append((u > 0 if eq.strict else u >= 0).to(x.dtype) if given is None else given[g])
            y.append(Spike.apply(u, h[g], sg) + z[(g + 1) % eq.groups])            # Eq. 2, 5
            new_v.append((1 - y[g]) * m + y[g] * eq.v_reset + eq.alpha * v_g)      # Eq. 3, 6
        v = torch.cat(new_v, dim)
        ys.append(torch.cat(y, dim))
        fired.append(torch.cat(h, dim))
    return torch.stack(ys), v, torch.stack(before), torch.stack(fired)


def forward_ungridded(eq: Equations, x1, x2, v1, v2):
    """One step of the paper's two groups, without our grid."""
    h = lambda m: (m >= eq.v_th).to(m.dtype)  # noqa: E731
    m1 = v1 + (x1 - v1) / eq.tau
    y1 = h(m1) + eq.beta * x2
    m2 = v2 + (y1 - v2) / eq.tau
    y2 = h(m2) + eq.beta * x1
    return (y1, y2, (1 - y1) * m1 + y1 * eq.v_reset + eq.alpha * v1, (1 - y2) * m2 + y2 * eq.v_reset + eq.alpha * v2)


def published_inverse(eq: Equations, y1, y2, v1, v2):
    """Eq. 7-10: inputs and potentials before a step, from its outputs and the potentials after it."""
    h = lambda m: (m >= eq.v_th).to(m.dtype)  # noqa: E731
    v2 = (v2 - (1 - y2) * y1 / eq.tau - y2 * eq.v_reset) / ((1 - y2) * (1 - 1 / eq.tau) + eq.alpha)     # Eq. 7
    x1 = (y2 - h(v2 + (y1 - v2) / eq.tau)) / eq.beta                                                    # Eq. 8
    v1 = (v1 - (1 - y1) * x1 / eq.tau - y1 * eq.v_reset) / ((1 - y1) * (1 - 1 / eq.tau) + eq.alpha)     # Eq. 9
    x2 = (y1 - h(v1 + (x1 - v1) / eq.tau)) / eq.beta                                                    # Eq. 10
    return x1, x2, v1, v2


def oracle(eq: Equations, x_seq: Tensor, v: Tensor | None, sg, weights, dim: int = -1):
    """Gradients of x (and v) of sum(weights * (y, final v)) by float64 autograd, firing where a run in x's own
    arithmetic (float32 for half types) fires."""
    own = torch.float64 if x_seq.dtype == torch.float64 else torch.float32
    with torch.no_grad():
        *_, fired = forward(eq, x_seq.to(own), None if v is None else v.to(own), sg, dim)
    leaves = [t.detach().double().requires_grad_() for t in (x_seq, v) if t is not None]
    y, final, *_ = forward(eq, leaves[0], leaves[1] if v is not None else None, sg, dim, fired.double())
    loss = (y * weights[0].double()).sum() + (final * weights[1].double()).sum()
    return torch.autograd.grad(loss, leaves)


ATAN = surrogate.atan(alpha=2.0)
