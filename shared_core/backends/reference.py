"""The oracle: every step in plain Torch, from Dynamics.step, as autograd sees it. Slow, and right.

Also the path of everything without a kernel: it saves what the kernels save (the input and the initial state) and
replays the loop in the backward pass; double backward always comes here.
"""
from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..spec import Outputs, Spec
from ..surrogate import spike


def unavailable() -> str | None:
    return None


def loop(spec: Spec, x: Tensor, state: Sequence[Tensor | None], params: Sequence[Tensor]) -> Outputs:
    """Differentiable loop over time. Half-precision input is computed in float32, as in the kernels."""
    dynamics, compute = spec.dynamics, spec.dtype_of_state(x)
    fire = lambda z: spike(z, spec.surrogate, strict=dynamics.strict)  # noqa: E731
    now = tuple(
        torch.full(x.shape[1:], rest, dtype=compute, device=x.device) if given is None else given.to(compute)
        for given, rest in zip(state, dynamics.rest)
    )
    values = tuple((p.reshape(()) if p.numel() == 1 else p).to(compute) for p in params)  # one value, of any rank
    spikes, recorded = [], []
    for x_t in x:
        s, now = dynamics.step(x_t.to(compute), now, values, fire)
        spikes.append(s.to(spec.dtype_of_spikes(x)))
        recorded.append(now)
    return Outputs(
        spikes=torch.stack(spikes),
        final=now,
        sequence=tuple(torch.stack(seq) for seq in zip(*recorded)) if spec.record else (),
    )


def forward(spec: Spec, x: Tensor, state: Sequence[Tensor | None], params: Sequence[Tensor], *, keep: bool) -> Outputs:
    """As `loop`, without a graph."""
    from ..spikes import pack

    with torch.no_grad():
        out = loop(spec, x, state, params)
        if spec.bits:
            out.bits = pack(out.spikes)
        return out


def backward(spec: Spec, x: Tensor, state: Sequence[Tensor | None], params: Sequence[Tensor], anchors: Tensor | None,
             grad_spikes: Tensor | None, grad_final: Sequence[Tensor | None], grad_sequence: Sequence[Tensor | None],
             needs_x: bool, needs_state: Sequence[bool], needs_params: Sequence[bool]
             ) -> tuple[Tensor | None, list[Tensor | None], list[Tensor | None]]:
    """Replays the loop with a graph. Under create_graph=True the result is itself differentiable."""
    again = torch.is_grad_enabled()  # create_graph=True
    # Under create_graph the graph must reach the saved tensors, yet one of them may be computed from another, or be
    # given twice: an alias of each keeps their gradients apart.
    cut = (lambda t: t.view_as(t)) if again else (lambda t: t.detach().requires_grad_(t.requires_grad))
    x = cut(x)
    state = [s if s is None else cut(s) for s in state]
    params = [cut(p) for p in params]
    with torch.enable_grad():
        out = loop(spec, x, state, params)
    wanted = [(x, needs_x), *zip(state, needs_state), *zip(params, needs_params)]
    inputs = [t for t, need in wanted if need]
    pairs = [(o, g) for o, g in zip((out.spikes, *out.final, *out.sequence),
                                    (grad_spikes, *grad_final, *grad_sequence)) if g is not None and o.requires_grad]
    if pairs and inputs:
        found = iter(torch.autograd.grad([o for o, _ in pairs], inputs, [g for _, g in pairs],
                                         create_graph=again, allow_unused=True))
    else:
        found = iter([None] * len(inputs))
    grads = [next(found) if need else None for _, need in wanted]
    count = len(state)
    return grads[0], grads[1:1 + count], grads[1 + count:]
