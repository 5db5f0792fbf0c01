"""Trains one network once per method, side by side, and measures memory, time, accuracy and equality of spikes."""
from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from _data import Digits
from _nets import Task
from torch import Tensor, nn

from shared_core.memory import MemoryReport, measure

NATIVE = "native"
WARM_UP, MEASURED = 2, 2  # steps that are not timed: the first ones, then those that run under the memory tracker
FEWEST_STEPS = WARM_UP + MEASURED + 1


@dataclass
class Run:
    """One method: its network and optimizer, and what was found.  seconds, cpu_seconds: per timed step."""

    method: str
    net: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None
    memory: MemoryReport | None = None
    seconds: list[float] = field(default_factory=list)
    cpu_seconds: list[float] = field(default_factory=list)
    checks: list[dict] = field(default_factory=list)
    accuracy: float = 0.0

    @property
    def step_s(self) -> float:
        return statistics.median(self.seconds)


def build(task: Task, method: str, seed: int) -> nn.Module:
    """The network with the weights of this seed; with any method but "native", retrofitted."""
    torch.manual_seed(seed)
    net = task.build()
    return net if method == NATIVE else task.retrofit(net, method)


def train(task: Task, methods: Sequence[str], batches: Sequence[Digits], test: Digits, seed: int,
          advance: Callable[[], None]) -> list[Run]:
    """Trains every method on the same batches from the same weights. Runs come back in the order of `methods`.

    The methods take turns, one step each, and the order of the turns changes with every batch: whatever else the
    machine does slows all of them alike.  advance() is called after every step.
    """
    runs = []
    for method in methods:
        net = build(task, method, seed)
        optimizer = torch.optim.Adam(net.parameters(), task.learning_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(batches))
        runs.append(Run(method, net, optimizer, schedule))
    probe = test[:len(batches[0])]
    for i, batch in enumerate(batches):
        if i in (0, len(batches) // 2):
            check(task, runs, probe, seed, i)
        for run in runs if i % 2 else reversed(runs):
            _one_step(task, run, batch, i)
            run.schedule.step()
            advance()
    check(task, runs, probe, seed, len(batches))
    for run in runs:
        run.accuracy = accuracy(task, run.net, test)
    return runs


def _one_step(task: Task, run: Run, batch: Digits, i: int) -> None:
    def step():
        run.optimizer.zero_grad()
        task.loss(run.net, *batch).backward()
        run.optimizer.step()
        task.forget(run.net)

    if WARM_UP <= i < WARM_UP + MEASURED:
        report = measure(step, model=run.net, optimizer=run.optimizer)
        if run.memory is None or report.seconds < run.memory.seconds:  # of equal figures, the less disturbed timeline
            run.memory = report
        return
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    if i >= WARM_UP:
        run.seconds.append(time.perf_counter() - wall)
        run.cpu_seconds.append(time.process_time() - cpu)


def accuracy(task: Task, net: nn.Module, test: Digits, size: int = 250) -> float:
    """Share of the test digits that get the highest score. The network is back in training mode afterwards."""
    net.eval()
    right = 0
    with torch.no_grad():
        for images, labels in zip(test.images.split(size), test.labels.split(size)):
            right += (task.scores(net, images).argmax(1) == labels).sum().item()
            task.forget(net)
    net.train()
    return right / len(test)


# ---- are the spikes the same? ------------------------------------------------------------------------------------

def check(task: Task, runs: Sequence[Run], batch: Digits, seed: int, step: int) -> None:
    """Compares all spikes and all gradients on one real batch, every method with native's weights of this moment.

    Same weights, because training is chaotic: gradients that differ in their last bit give other weights after some
    hundred steps, with native against native as well. Fresh networks, so that those in training notice nothing. Native
    is compared, too: with a second run of itself.
    """
    weights = runs[0].net.state_dict()
    spikes, gradients = _observe(task, NATIVE, weights, batch, seed)
    for run in runs:
        other_spikes, other_gradients = _observe(task, run.method, weights, batch, seed)
        fired, total = sum(s.sum().item() for s in spikes.values()), sum(s.numel() for s in spikes.values())
        run.checks.append({
            "step": step,
            "spikes_identical": all(torch.equal(spikes[name], other_spikes[name]) for name in spikes),
            "spikes_compared": total,
            "spikes_different": sum((spikes[name] != other_spikes[name]).sum().item() for name in spikes),
            "firing_rate": fired / total,
            "firing_rate_by_layer": {name: s.float().mean().item() for name, s in other_spikes.items()},
            "gradient_difference": max(_distance(other_gradients[name], gradients[name]) for name in gradients),
        })


def _observe(task: Task, method: str, weights: dict, batch: Digits, seed: int
             ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """({layer: every spike}, {parameter: gradient}) of one forward and backward, in training mode."""
    net = build(task, method, seed)
    net.load_state_dict(weights)
    seen: dict[str, list[Tensor]] = {}
    for name, module in net.named_modules():
        if task.is_neuron(module):
            module.register_forward_hook(lambda _module, _inputs, output, name=name: seen.setdefault(name, []).append(
                (output[0] if isinstance(output, tuple) else output).detach() != 0))
    task.loss(net, *batch).backward()
    task.forget(net)
    return ({name: torch.stack(calls) for name, calls in seen.items()},
            {name: p.grad for name, p in net.named_parameters() if p.grad is not None})


def _distance(got: Tensor, wanted: Tensor) -> float:
    """Norm of the difference over the norm of what was wanted."""
    return ((got.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-300)).item()
