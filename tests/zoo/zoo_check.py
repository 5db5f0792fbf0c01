"""Three training steps of a family as it is, and with one of our methods: same losses, same keys, less memory."""
from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from torch import Tensor, nn
from zoo_families import FAMILIES, Family, firing

import sj_memext
from shared_core.memory import measure

__all__ = ["METHODS", "SAME", "SUBSTITUTE", "Run", "assert_awake", "assert_same", "assert_saves", "distance", "native",
           "retrofitted", "run"]

# Relative, of a loss; norm-relative, of all gradients together. The same sums in another order are up to 3e-6 apart.
SAME = 1e-5
RATE = 0.02  # of SGD: three steps move the loss of a batch by MOVED at least
MOVED = 1e-3

METHODS: dict[str, tuple[str, dict]] = {
    "neuron": ("neuron", {}),
    "compress": ("compress", {}),
    "recompute": ("recompute", {"prefer": "balanced"}),
    "recompute, memory": ("recompute", {"prefer": "memory"}),
}
SUBSTITUTE = "substitute"  # at construction, no edit of the model's source


@dataclass
class Run:
    """Of three steps: losses, gradients as one vector each, and the weights before each.

    statistics: buffers after them.  saved, peak: bytes of the second step.  moved: how far, relatively, the steps have
    moved the loss of the first batch.
    """

    net: nn.Module
    losses: list[Tensor]
    gradients: list[Tensor]
    weights: list[list[Tensor]]
    statistics: dict[str, Tensor]
    keys: list[str]
    saved: int
    peak: int
    moved: float


def run(found: Family, change: Callable[[nn.Module], object] = lambda net: None, building=nullcontext,
        follow: Run | None = None) -> Run:
    """Trains three steps after `change(net)`; `building` is a context in which the net is built.

    follow: before every step the weights become those of that run. Training is chaotic: one spike on the other side of
    the threshold, of gradients 1e-7 apart, moves a loss by 1e-4, and is no difference between two methods.
    """
    with building():
        net, batches = found.make()
    keys = list(net.state_dict())
    change(net)
    assert list(net.state_dict()) == keys
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE, momentum=0.9)
    losses, gradients, weights, memory = [], [], [], None
    for i, batch in enumerate(batches):
        if follow is not None:
            with torch.no_grad():
                for p, wanted in zip(net.parameters(), follow.weights[i], strict=True):
                    p.copy_(wanted)
        weights.append([p.detach().clone() for p in net.parameters()])
        optimizer.zero_grad()
        if i == 1:  # the first step also fills caches
            memory = measure(partial(found.step, net, *batch), timeline=False)
            losses.append(memory.result)
        else:
            losses.append(found.step(net, *batch))
        gradients.append(torch.cat([torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten()
                                    for p in net.parameters()]))
        optimizer.step()
    statistics = {name: b.clone() for name, b in net.named_buffers()}
    last = [p.grad for p in net.parameters()]
    optimizer.zero_grad()
    moved = abs(float(found.step(net, *batches[0])) / float(losses[0]) - 1)
    for p, grad in zip(net.parameters(), last):
        p.grad = grad
    return Run(net, losses, gradients, weights, statistics, list(net.state_dict()), memory.saved_bytes,
               memory.peak_bytes, moved)


@lru_cache(maxsize=4)
def native(name: str) -> Run:
    return run(FAMILIES[name])


def retrofitted(name: str, method: str) -> Run:
    """`method`: a key of METHODS, or SUBSTITUTE."""
    if method == SUBSTITUTE:
        return run(FAMILIES[name], building=lambda: sj_memext.substitute("neuron"), follow=native(name))
    how, options = METHODS[method]
    return run(FAMILIES[name], lambda net: sj_memext.retrofit(net, how, **options), follow=native(name))


def assert_same(ours: Run, theirs: Run) -> None:
    """Losses and gradients of three steps, each from the same weights; statistics of norms, and the keys."""
    assert ours.keys == theirs.keys
    assert theirs.moved >= MOVED, f"nothing was learned: the loss moved by {theirs.moved:.1e}"
    for i in range(len(theirs.losses)):
        loss, wanted, apart = ours.losses[i], theirs.losses[i], distance(ours.gradients[i], theirs.gradients[i])
        assert abs(loss - wanted) <= SAME * abs(wanted), f"loss of step {i}: {loss:.7f}, native {wanted:.7f}"
        assert theirs.gradients[i].count_nonzero() and apart <= SAME, f"gradients of step {i} are {apart:.1e} apart"
    for name, b in theirs.statistics.items():
        assert torch.allclose(ours.statistics[name], b, rtol=SAME, atol=SAME), f"{name} after three steps"


def distance(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


def assert_saves(name: str, method: str, saved: float, peak: float) -> Run:
    """The three steps equal native's, and keep at most these shares of its bytes."""
    theirs, ours = native(name), retrofitted(name, method)
    print(f"{name}, {method}: saved {ours.saved / theirs.saved:.3f} of {theirs.saved >> 10} KiB, "
          f"peak {ours.peak / theirs.peak:.3f} of {theirs.peak >> 10} KiB")
    assert_same(ours, theirs)
    assert ours.saved <= saved * theirs.saved, f"kept for backward: {ours.saved / theirs.saved:.3f} of native's"
    assert ours.peak <= peak * theirs.peak, f"peak: {ours.peak / theirs.peak:.3f} of native's"
    return ours


def assert_awake(name: str) -> None:
    """A tenth to two fifths of the neurons fire, and nine of ten layers neither (almost) never nor (almost) always."""
    found = FAMILIES[name]
    net, batches = found.make()
    rates = firing(found, net, batches[0][0])
    mean, useful = sum(rates) / len(rates), sum(0.02 < rate < 0.9 for rate in rates) / len(rates)
    print(f"{name}: firing rate {mean:.3f}, from {min(rates):.3f} to {max(rates):.3f}")
    assert 0.1 <= mean <= 0.4 and useful >= 0.9, [round(rate, 3) for rate in rates]
