"""The oracle: every step in plain Torch, from Dynamics.step, as autograd sees it. Slow, and right.

Also the path of everything without a kernel: it saves what the kernels save (the input and the initial state) and
replays the loop in the backward pass; double backward always comes here.
"""
from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from .._groups import in_turn, side_by_side
from ..dynamics import Dynamics
from ..layout import layout_of
from ..spec import Outputs, Spec
from ..surrogate import spike
from ._rebuilt import Rebuilt


def unavailable() -> str | None:
    return None


def loop(spec: Spec, x: Tensor, state: Sequence[Tensor | None], params: Sequence[Tensor],
         given: Tensor | None = None) -> Outputs:
    """Differentiable loop over time. Half-precision input is computed in float32, as in the kernels.

    given: bool [T, *shape], the spikes, whatever the potentials say.
    """
    dynamics, compute, groups = spec.dynamics, spec.dtype_of_state(x), spec.groups
    x = in_turn(x, groups, spec.channel)
    given = None if given is None else in_turn(given, groups, spec.channel)
    fire = lambda z: spike(z, spec.surrogate, strict=dynamics.strict)  # noqa: E731
    fires = (fire,) * x.shape[0] if given is None else [_replay(fire, dynamics, s) for s in given]
    now = tuple(
        torch.full(x.shape[1:], rest, dtype=compute, device=x.device) if given is None else given.to(compute)
        for given, rest in zip(state, dynamics.rest)
    )
    values = tuple((p.reshape(()) if p.numel() == 1 else p).to(compute) for p in params)  # one value, of any rank
    spikes, recorded = [], []
    for i, (x_t, fire_t) in enumerate(zip(x, fires)):
        now = tuple(s.detach() for s in now) if spec.online and i % groups == 0 else now
        s, now = dynamics.step(x_t.to(compute), now, values, fire_t)
        spikes.append(s.to(spec.dtype_of_spikes(x)))
        if (i + 1) % groups == 0:
            recorded.append(now)
    return Outputs(
        spikes=side_by_side(torch.stack(spikes), groups, spec.channel),
        final=now,
        sequence=tuple(torch.stack(seq) for seq in zip(*recorded)) if spec.record else (),
    )


@lru_cache(maxsize=1024)
def _questions(dynamics: Dynamics) -> int:
    """How often one step asks whether the neuron fires; the last answer is the spike sent on."""
    asked = []
    one = torch.ones(())
    dynamics.step(one, (one,) * len(dynamics.states), (one,) * len(dynamics.params),
                  lambda z: asked.append(z) or (z > 0).to(z.dtype))
    return len(asked)


def _replay(fire: Callable[[Tensor], Tensor], dynamics: Dynamics, spikes: Tensor) -> Callable[[Tensor], Tensor]:
    """`fire` for one step whose spikes are known: their values, the surrogate's gradient."""
    left = _questions(dynamics)

    def fire_as_given(z: Tensor) -> Tensor:
        nonlocal left
        left -= 1
        s = fire(z)
        return s if left else s + (spikes.to(s.dtype) - s).detach()  # 0 and 1: exact

    return fire_as_given


def _fused_multiply_add(y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """y a + b, rounded once, to the dtype of a. float32: the product is exact in float64, and what the sum loses there
    decides where it would be rounded twice. float64: in pairs of numbers, right but for ties nobody meets."""
    if a.dtype == torch.float64:
        product = y * a
        total, lost = _sum_and_rest(product, b)
        return total + (lost + _rest_of_product(y, a, product))
    total, lost = _sum_and_rest(y.double() * a.double(), b.double())
    rounded = total.float()
    # Twice rounded is wrong only where total lies halfway between two floats, and a rest says which of them is right.
    other = torch.nextafter(rounded, torch.where(lost > 0, torch.inf, -torch.inf).float())
    halfway = (total - rounded.double()) == (other.double() - total)
    return torch.where(halfway & (lost != 0), other, rounded)


def _sum_and_rest(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a + b rounded, and exactly what the rounding took (Knuth's two-sum)."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def _rest_of_product(a: Tensor, b: Tensor, product: Tensor) -> Tensor:
    """Exactly what rounding took from the float64 a b (Dekker's product of halves of 26 bits)."""
    def halves(t):
        high = t * 134217729.0  # 2^27 + 1
        high = high - (high - t)
        return high, t - high

    (a1, a2), (b1, b2) = halves(a), halves(b)
    return ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2


def _through(x: Tensor, affine: tuple[Tensor, Tensor], channel: int, compute: torch.dtype) -> Tensor:
    scale, shift = (p.to(compute).reshape(-1, *(1,) * (x.dim() - channel - 2)) for p in affine)
    return _fused_multiply_add(x.to(compute), scale, shift).to(x.dtype)


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
             needs_x: bool, needs_state: Sequence[bool], needs_params: Sequence[bool], **rebuilt):
    """Replays the loop with a graph. Under create_graph=True the result is itself differentiable.

    rebuilt: see Rebuilt. Returns what the other backends return.
    """
    from ..spikes import unpack

    again = torch.is_grad_enabled()  # create_graph=True
    given, stored, spikes = Rebuilt(**rebuilt), x.detach(), None
    if rebuilt:
        given.check(x, layout_of(x))
        spikes = given.bits if given.bits is None else unpack(given.bits, layout_of(x), torch.bool)
        if given.affine is not None:
            x = _through(stored, given.affine, given.channel, spec.dtype_of_state(x)).requires_grad_(needs_x)
    # Under create_graph the graph must reach the saved tensors, yet one of them may be computed from another, or be
    # given twice: an alias of each keeps their gradients apart.
    cut = (lambda t, need: t.view_as(t)) if again else (lambda t, need: t.detach().requires_grad_(need))
    x = cut(x, needs_x)
    state = [s if s is None else cut(s, need) for s, need in zip(state, needs_state)]
    params = [cut(p, need) for p, need in zip(params, needs_params)]
    with torch.enable_grad():
        out = loop(spec, x, state, params, spikes)
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
    if given.into is not None and grads[0] is not None:
        grads[0] = given.into.copy_(grads[0])
    found = grads[0], grads[1:1 + count], grads[1 + count:]
    if not given.sums:
        return found
    if grads[0] is None:
        return *found, None
    other = [d for d in range(x.dim()) if d != 1 + given.channel]
    g = grads[0].detach().double()
    return *found, torch.stack([g.sum(other), (g * stored.double()).sum(other)])
