"""Additive couplings written out from the equation, under plain autograd: the oracle of the reversible tests."""
from __future__ import annotations

import torch
from torch import Tensor, nn

GRID = 2.0 ** -14


def on_grid(x: Tensor, grid: float | None = GRID) -> Tensor:
    """The nearest multiple of grid, with the gradient of the identity: x - x is exactly 0."""
    x = x if x.dtype == torch.float64 else x.float()
    return x if grid is None else (x.detach() / grid).round() * grid + (x - x.detach())


def reference(blocks, x: Tensor, dim: int, grid: float | None = GRID, after=lambda module: None) -> Tensor:
    """y1 = x1 + F(x2), y2 = x2 + G(y1), block by block. after: called with every F and G that has run."""
    half = x.shape[dim] // 2
    z1, z2 = on_grid(x.narrow(dim, 0, half), grid), on_grid(x.narrow(dim, half, half), grid)
    for block in blocks:
        z1 = z1 + on_grid(block.f(z2.contiguous()), grid)
        after(block.f)
        z2 = z2 + on_grid(block.g(z1.contiguous()), grid)
        after(block.g)
    for z in (z1, z2):
        if z.requires_grad:  # cat hands back slices, on which kernels add in another order: up to 2e-6 in a norm's bias
            z.register_hook(lambda grad: grad.contiguous())
    return torch.cat((z1, z2), dim)


def weighted(y: Tensor) -> Tensor:
    """A loss that tells all values apart."""
    generator = torch.Generator().manual_seed(7)
    return (y * torch.randn(y.shape, generator=generator).to(y.dtype)).sum()


def gradients(net: nn.Module, x: Tensor | None = None) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
    return found if x is None or x.grad is None else {"x": x.grad.clone(), **found}


def assert_gradients_close(got: dict[str, Tensor], wanted: dict[str, Tensor], bound: float) -> None:
    """Norm-relative, each tensor on its own; those below 1e-5 of the largest, which hold rounding only (a norm takes
    the mean out of a gradient), against that."""
    assert got.keys() == wanted.keys() and got
    top = max(w.double().norm().item() for w in wanted.values())
    for name, w in wanted.items():
        off = (got[name].double() - w.double()).norm().item() / max(w.double().norm().item(), 1e-5 * top)
        assert off <= bound, f"{name}: {off:.2e} > {bound:.0e}"
