"""The reversible neuron in plain Torch, on [T, outer, groups, inner]: forward, inverse, gradient. See _equations.py.

`loop` can be differentiated by Torch itself: it is the oracle, and the way for what no inverse can serve. The other
functions run without a graph. The order of every rounded operation is part of the contract (kernels/reversible.h has
the same), because the inverse must take the same decisions to fire as the forward pass.
"""
from __future__ import annotations

import torch
from torch import Tensor

from ..surrogate import Surrogate, spike
from ._equations import GRID, Equations

__all__ = ["backward", "from_grid", "inverse", "loop", "to_grid"]


def to_grid(x: Tensor, beta: float) -> Tensor:
    """z = round(beta x / GRID) GRID, ties to even; the gradient passes straight through."""
    scaled = x * beta
    rounded = torch.round(scaled.detach() * (1 / GRID)) * GRID
    return rounded + (scaled - scaled.detach()) if scaled.requires_grad else rounded


def _over(t: Tensor, number: float) -> Tensor:
    """t / number, rounded once. On a GPU, Torch would multiply by the reciprocal of a Python number."""
    return t / (number if t.device.type == "cpu" else torch.full((), number, dtype=t.dtype, device=t.device))


def from_grid(z: Tensor, beta: float) -> Tensor:
    """X = z / beta: the input that z stands for."""
    return _over(z, beta)


def charge(eq: Equations, v: Tensor, current: Tensor) -> Tensor:
    return v + _over(current - v, eq.tau)


def settle(eq: Equations, v: Tensor, m: Tensor, y: Tensor) -> Tensor:
    return ((1.0 - y) * m + y * eq.v_reset) + v * eq.alpha


def loop(eq: Equations, x: Tensor, v: Tensor, surrogate: Surrogate) -> tuple[Tensor, Tensor, Tensor]:
    """x [T, outer, groups, inner], v [outer, groups, inner] -> y like x, final v, greatest |z|, |v| (float32 [2])."""
    z, ys = to_grid(x, eq.beta), []
    potentials, highest = list(v.unbind(1)), v.detach().abs().amax() if v.numel() else v.new_zeros(())
    for z_t in z.unbind(0):
        parts, current = z_t.unbind(1), None
        out = []
        for g in range(eq.groups):
            current = from_grid(parts[0], eq.beta) if g == 0 else out[-1]
            m = charge(eq, potentials[g], current)
            y = spike(m - eq.v_th, surrogate, strict=eq.strict).to(z.dtype) + parts[(g + 1) % eq.groups]
            potentials[g] = settle(eq, potentials[g], m, y)
            out.append(y)
            if m.numel():
                highest = torch.maximum(highest, potentials[g].detach().abs().amax())
        ys.append(torch.stack(out, 1))
    largest = z.detach().abs().amax() if z.numel() else highest
    return torch.stack(ys), torch.stack(potentials, 1), torch.stack((largest, highest)).float()


def inverse(eq: Equations, y: Tensor, v: Tensor, surrogate: Surrogate) -> tuple[Tensor, Tensor, Tensor]:
    """y [T, outer, groups, inner], initial v -> (X like x, on the grid; potentials v before each step; M).

    Forward in time. Groups 2.. need Y alone; they give z[1], and with it group 1 (Eq. 8, 10, then Eq. 3, 6).
    """
    with torch.no_grad():
        before, m, z = (torch.empty_like(y) for _ in range(3))

        def run(g: slice, current: Tensor) -> None:
            now = v[:, g].clone()
            for t in range(y.shape[0]):
                before[t, :, g] = now
                m[t, :, g] = charge(eq, now, current[t])
                now = settle(eq, now, m[t, :, g], y[t, :, g])

        def carried(g: slice) -> Tensor:
            fired = spike(m[:, :, g] - eq.v_th, surrogate, strict=eq.strict).to(y.dtype)
            return y[:, :, g] - fired

        run(slice(1, None), y[:, :, :-1])
        rest = carried(slice(1, None))  # z[3], ..., z[groups], z[1]
        z[:, :, 2:], z[:, :, 0] = rest[:, :, :-1], rest[:, :, -1]
        run(slice(0, 1), from_grid(z[:, :, :1], eq.beta))
        z[:, :, 1] = carried(slice(0, 1))[:, :, 0]
        return from_grid(z, eq.beta), before, m


def backward(eq: Equations, y: Tensor, v: Tensor, surrogate: Surrogate, grad_y: Tensor | None, grad_v: Tensor | None
             ) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the initial v, in one walk back over the inverse; no forward graph is built.

    With e = dL/dV after the step, G = the gradient that Y gets from outside:
        dY[g] = G[g] + e (v_reset - M[g]) + dI[g+1]        dM = dY surrogate'(M - v_th) + e (1 - Y)
        dI[g] = dM / tau                                   dV before = dM - dM / tau + alpha e
        dx[g+1] = beta dY[g],  dx[1] = beta dY[groups] + dI[1]
    """
    _, _, m = inverse(eq, y, v, surrogate)
    slope = _slope(surrogate, m - eq.v_th, eq.strict)
    with torch.no_grad():
        grad_x = torch.empty_like(y)
        e = torch.zeros_like(v) if grad_v is None else grad_v.clone()
        for t in range(y.shape[0] - 1, -1, -1):
            outer = e * (eq.v_reset - m[t])
            if grad_y is not None:
                outer = outer + grad_y[t]
            kept = e * (1.0 - y[t])
            passed = None
            for g in range(eq.groups - 1, -1, -1):
                dy = outer[:, g] if passed is None else outer[:, g] + passed
                dm = dy * slope[t, :, g] + kept[:, g]
                passed = _over(dm, eq.tau)
                e[:, g] = (dm - passed) + e[:, g] * eq.alpha
                grad_x[t, :, (g + 1) % eq.groups] = dy * eq.beta
            grad_x[t, :, 0] += passed
    return grad_x, e


def _slope(surrogate: Surrogate, excess: Tensor, strict: bool) -> Tensor:
    if surrogate.fn is None:
        with torch.no_grad():
            return surrogate.grad(excess)
    with torch.enable_grad():
        excess = excess.detach().requires_grad_()
        fired = spike(excess, surrogate, strict=strict)
        if not fired.requires_grad:
            return torch.zeros_like(excess)
        (found,) = torch.autograd.grad(fired, excess, torch.ones_like(fired), allow_unused=True)
    return torch.zeros_like(excess) if found is None else found.to(excess.dtype)
