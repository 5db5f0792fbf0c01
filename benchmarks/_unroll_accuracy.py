"""A spiking network on human activities, trained with BPTT and with what `unroll` has for it. Used by accuracy_unroll.

    Linear - Leaky - Linear - Leaky - Linear - Leaky without reset, whose membrane is the score at every step
"""
from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import snntorch
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks._measure import HERE
from shared_core.temporal import online_train_step, unroll

sys.path.insert(0, str(HERE.parent / "examples"))  # examples are programs, not a package
import _activity

WIDTH, HOP, HIDDEN, BETA = 16, 2, 64, 0.9
STEPS = _activity.steps(WIDTH, HOP)
BPTT, PERTURBED, REVERSE, SLTT, SLTTK = "BPTT", "BPTT, one ulp off", "reverse", "SLTT", "SLTT-K"
METHODS = (BPTT, PERTURBED, REVERSE, SLTT, SLTTK)
LATE = "not measured: out of time"


@dataclass(frozen=True)
class Setting:
    """windows, test: how many of either set; None: all.  size: of a batch."""

    epochs: int = 8
    size: int = 128
    rate: float = 3e-3
    windows: int | None = None
    test: int | None = None


def build(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)

    def leaky(**options) -> nn.Module:
        return snntorch.Leaky(beta=BETA, init_hidden=True, **options)

    return nn.Sequential(nn.Linear(WIDTH * _activity.CHANNELS, HIDDEN), leaky(), nn.Linear(HIDDEN, HIDDEN), leaky(),
                         nn.Linear(HIDDEN, len(_activity.ACTIVITIES)), leaky(output=True, reset_mechanism="none"))


def perturb(net: nn.Module, seed: int) -> None:
    """Every weight to the next float above or below it, at random."""
    generator = torch.Generator().manual_seed(1000 + seed)
    with torch.no_grad():
        for p in net.parameters():
            up = torch.rand(p.shape, generator=generator) < 0.5
            p.copy_(torch.nextafter(p, torch.where(up, torch.inf, -torch.inf)))


def loss_and_gradients(net: nn.Module, x: Tensor, labels: Tensor, method: str) -> Tensor:
    """Mean over steps of the cross entropy of the membrane."""
    if method in (SLTT, SLTTK):
        return online_train_step(net, x, lambda out, t: cross_entropy(out[1], labels),
                                 k=STEPS // 4 if method == SLTTK else None, outputs=False)[1]
    if method == REVERSE:
        loss = cross_entropy(unroll(net, x, "reverse")[1].flatten(0, 1), labels.repeat(len(x)))
    else:
        loss = sum(cross_entropy(net(step)[1], labels) for step in x) / len(x)
    loss.backward()
    return loss.detach()


def rest(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, snntorch.Leaky):
            module.reset_mem()


@torch.no_grad()
def accuracy(net: nn.Module, windows: _activity.Windows) -> float:
    """Share of windows whose activity has the highest mean membrane."""
    rest(net)
    scores = sum(net(step)[1] for step in _activity.frames(windows.samples, WIDTH, HOP))
    rest(net)
    return (scores.argmax(1) == windows.labels).float().mean().item()


@torch.no_grad()
def firing(net: nn.Module, windows: _activity.Windows) -> list[float]:
    """Share of neurons and steps that fire, per hidden layer."""
    spikes: dict[nn.Module, list[float]] = {}
    hooks = [m.register_forward_hook(lambda m, _x, out: spikes.setdefault(m, []).append(out.mean().item()))
             for m in net if isinstance(m, snntorch.Leaky) and not m.output]
    accuracy(net, windows)
    for hook in hooks:
        hook.remove()
    return [sum(rates) / len(rates) for rates in spikes.values()]


def weights(net: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def train(method: str, seed: int, data: tuple, setting: Setting, late: Callable[[], bool], references: dict) -> dict:
    """One run: accuracy after every epoch, and the distance of its weights from BPTT's of the same seed.

    references: {(seed, epoch): BPTT's weights}, which the run of BPTT fills.
    """
    net = build(seed)
    if method == PERTURBED:
        perturb(net, seed)
    train_set, test_set = data
    per_epoch = len(train_set) // setting.size
    optimizer = torch.optim.Adam(net.parameters(), setting.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, per_epoch * setting.epochs)
    torch.manual_seed(seed)  # of SLTT-K's steps
    curve, apart, losses, start = [], [], [], time.perf_counter()
    for i, batch in enumerate(_activity.batches(train_set, setting.size, setting.epochs, seed), 1):
        if late():
            return {"failed": LATE}
        rest(net)
        optimizer.zero_grad()
        losses.append(loss_and_gradients(net, _activity.frames(batch.samples, WIDTH, HOP), batch.labels, method).item())
        optimizer.step()
        schedule.step()
        if i % per_epoch == 0:
            curve.append(accuracy(net, test_set))
            if method == BPTT:
                references[seed, len(curve)] = weights(net)
            wanted = references[seed, len(curve)]
            apart.append(((weights(net) - wanted).norm() / wanted.norm()).item())
    return {"accuracy": curve[-1], "accuracies": curve, "weights unlike BPTT's": apart, "first loss": losses[0],
            "last loss": losses[-1], "firing": firing(net, test_set), "seconds": time.perf_counter() - start}
