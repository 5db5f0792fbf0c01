"""What nets with shared membranes have to compute: EfficientLIF-Net Eq. 4-6 and 12-17 in plain Torch.

The reference knows nothing of neuron modules: it is handed the layers before each neuron, and does the rest itself,
with ordinary autograd through everything.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

SINGLE = 1e-5  # norm-relative, of float32 gradients: other order of additions over T steps; the bound
DOUBLE = 1e-12  # the same in float64


class _Fire(torch.autograd.Function):
    """f of Eq. 2 (a spike at the threshold, as SpikingJelly has it), with the arctangent surrogate of Section III-B:
    d/du (atan(pi u) / pi + 1/2) = 1 / (1 + (pi u)^2)."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return (u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx, g):
        (u,) = ctx.saved_tensors
        return g / (1 + (torch.pi * u) ** 2)


def after(u: Tensor, o: Tensor, theta: float, hard: bool, detach: bool) -> Tensor:
    """The membrane after the reset: U - O for a threshold of 1 (soft), 0 where it fired (hard)."""
    o = o.detach() if detach else o
    return u * (1 - o) if hard else u - o * theta


def one_layer(u: Tensor, x: Tensor, tau: float, theta: float, groups: int, hard: bool, detach: bool
              ) -> tuple[Tensor, Tensor]:
    """(spikes [N, C, *], membrane [N, C / groups, *] after the reset) of input x [N, C, *]: Eq. 12 to 15; with one
    group Eq. 4 and 5. lambda = 1 - 1 / tau."""
    spikes = []
    for part in x.chunk(groups, 1):                     # Eq. 12
        u = (u - u / tau) + part                        # Eq. 13, 4: lambda (U - O) + X; the reset is in u already
        o = _Fire.apply(u - theta)                      # Eq. 14, 5
        spikes.append(o)
        u = after(u, o, theta, hard, detach)
    return torch.cat(spikes, 1), u                      # Eq. 15


def stepped(before: Sequence[Callable[[Tensor], Tensor]], x_seq: Tensor, membrane_of: Sequence[int], *, tau: float,
            theta: float = 1.0, groups: int = 1, hard: bool = False, detach: bool = True,
            residual: Sequence[int | None] | None = None) -> tuple[Tensor, dict[int, Tensor]]:
    """(outputs of the last layer [T, N, *], membranes at the end), time outermost.

    before[l]: what stands before neuron l. membrane_of[l]: which membrane it uses; Eq. 6 and 17: a membrane goes from
    its last layer at step t to its first at t + 1.  residual[l]: the layer (-1: the input) whose output is added to
    what before[l] returns.
    """
    membranes: dict[int, Tensor] = {}
    outputs = []
    for x in x_seq:
        seen = [x]
        for i, layer in enumerate(before):
            current = layer(seen[-1])
            if residual is not None and residual[i] is not None:
                current = current + seen[residual[i] + 1]
            which = membrane_of[i]
            if which not in membranes:
                membranes[which] = torch.zeros_like(current[:, :current.shape[1] // groups])
            spikes, membranes[which] = one_layer(membranes[which], current, tau, theta, groups, hard, detach)
            seen.append(spikes)
        outputs.append(seen[-1])
    return torch.stack(outputs), membranes


def reversed_membranes(before: Sequence[Callable], x_seq: Tensor, spikes: Sequence[Tensor], last: Tensor, lam: float
                       ) -> list[Tensor]:
    """Eq. 21 as printed: the membranes of one group (before the reset, threshold 1) from the last one back.

        U_l^t = (U_{l+1}^t - W_{l+1} O_l^t) / lambda + O_l^t, and over the step likewise (Eq. 6)

    spikes: of every call of the membrane in turn, step after step and layer after layer. Returns membranes likewise.
    """
    found = [last]
    for call in reversed(range(1, len(spikes))):
        t, layer = divmod(call, len(before))
        given = x_seq[t] if layer == 0 else spikes[call - 1]
        found.insert(0, (found[0] - before[layer](given)) / lam + spikes[call - 1])
    return found


def weighted(out: Tensor) -> Tensor:
    """A loss that gives every element of the output a gradient of its own."""
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return (out * weight.to(out.dtype)).sum()


def distance(got: Tensor, wanted: Tensor) -> float:
    """Norm-relative, in float64; 0 for two zeros."""
    gap = (got.double() - wanted.double()).norm().item()
    return gap and gap / max(wanted.double().norm().item(), 1e-30)


def assert_gradients(got: nn.Module, wanted: nn.Module, bound: float) -> None:
    for (name, a), b in zip(got.named_parameters(), wanted.parameters(), strict=True):
        assert a.grad is not None and b.grad.abs().max() > 0, f"{name} has no gradient: this case tests nothing"
        assert distance(a.grad, b.grad) <= bound, f"{name}: {distance(a.grad, b.grad):.1e} > {bound:.0e}"


def assert_fires(out: Tensor, low: float = 0.05, high: float = 0.5) -> None:
    assert low <= out.double().mean() <= high, f"fires at a rate of {out.double().mean():.3f}: this case tests nothing"
