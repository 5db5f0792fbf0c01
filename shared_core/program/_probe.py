"""The first training step again, on two copies of the model: the framework's own neurons, and ours.

Both get the arguments, random numbers and output gradients of the program's step; parameters are shared with the
program's model, gradients are not. Nothing of the program moves: random numbers, states, buffers, the optimizer.
"""
from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .._again import set_random_state
from .._entering import entered
from .._memory_graph import tensors_in
from ..errors import MemextError
from ..memory import MemoryReport, measure
from ..temporal import _hosts
from ._copies import aside, copied, device_of
from ._loops import as_written

__all__ = ["Measured", "compare", "compared"]

_ROUNDS, _LONG = 7, 8.0  # timed runs of each, the fastest counts; but after so many seconds no more
_ROOM = 0.08              # of the machine's memory stays free


@dataclass
class Measured:
    """reports, seconds (fastest of a few runs): by "native" and "ours"; native is missing where it could not be run.

    apart: distance of the gradient (all parameters as one vector) from native's, norm-relative; None: not compared.
    equal: are all outputs equal, bit for bit?  how: what the step was.
    """

    reports: dict[str, MemoryReport]
    seconds: dict[str, float]
    apart: float | None
    equal: bool | None
    how: str
    notes: list[str] = field(default_factory=list)


@dataclass
class _Ran:
    report: MemoryReport
    outputs: list[list[Tensor]]
    grads: dict[str, Tensor]


def compare(recording, options) -> Measured:
    """Raises MemextError where the step cannot be run again."""
    net = recording.model.net
    device = device_of(net)

    def step(copy):
        return _step(recording, copy, device)

    return compared(net, recording.copy, step, step, recording.model.applied.loops, _how(recording),
                    list(recording.notes), options.plot)


def compared(net: nn.Module, copy: nn.Module, native: Callable, ours: Callable, loops, how: str, notes: list[str],
             plot: bool) -> Measured:
    """native, ours: run a step on a copy of the model, and return its outputs (lists of tensors).

    net: the program's model, left as it is.  copy: of it, as it is now.  loops: forwards to be as written for native.
    """
    if any(isinstance(m, nn.SyncBatchNorm) for m in net.modules()):
        raise MemextError("its SyncBatchNorm talks to other processes")
    device, ran = device_of(net), {}
    models = {"ours": copy, "native": _native(copy)}
    steps = {"ours": ours, "native": native}
    with aside(device, list(net.modules())):
        ran["ours"] = _measured(steps["ours"], copy, device, plot)
        try:
            with _Room(), as_written(loops):
                ran["native"] = _measured(steps["native"], models["native"], device, plot)
        except (MemextError, torch.OutOfMemoryError) as problem:
            notes.append(f"native was not measured: {problem}")
        seconds = _times({name: (models[name], steps[name]) for name in ran}, loops, device)
    apart, equal = _difference(ran)
    return Measured({name: one.report for name, one in ran.items()}, seconds, apart, equal, how, notes)


def _how(recording) -> str:
    calls = len(recording.calls)
    what = "the first batch" if calls == 1 else f"the first batch ({calls} calls of the model)"
    if recording.whole:
        return f"{what}, forward and backward of the sum of the outputs (the loss could not be seen)"
    return f"{what}, forward and backward from the gradient that the program's loss gave the outputs"


def _native(copy: nn.Module) -> nn.Module:
    """A copy of a copy, as the program wrote it."""
    net = copied(copy)
    for host in _hosts.imported():
        if any(record.framework == host.framework.name for m in net.modules() for record in entered(m)):
            importlib.import_module(host.framework.package).restore(net)
    return net


def _step(recording, net: nn.Module, device: torch.device) -> list[list[Tensor]]:
    results: list[list[Tensor]] = []
    for call in recording.calls:
        args, kwargs = call.arguments(results)
        set_random_state(device, call.random)
        on, dtype = call.autocast
        with torch.enable_grad(), torch.autocast(device.type, enabled=on, dtype=dtype if on else None):
            out = net(*args, **kwargs)
        results.append(list(tensors_in(out)))
    pairs = []
    for call, tensors in zip(recording.calls, results):
        for i, t in enumerate(tensors):
            if t.requires_grad and (recording.whole or i in call.grads):
                pairs.append((t, torch.ones_like(t) if recording.whole else call.grads[i].to(t.dtype)))
    if not pairs:
        raise MemextError("no output of this step has a gradient")
    torch.autograd.backward([t for t, _ in pairs], [g for _, g in pairs])
    return [[t.detach() for t in tensors] for tensors in results]


def _measured(step: Callable, net: nn.Module, device: torch.device, plot: bool) -> _Ran:
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        step(copied(net))  # the first call loads libraries and fills caches
    fresh = copied(net)
    report = measure(lambda: step(fresh), model=fresh, timeline=plot)
    outputs, report.result = report.result, None
    return _Ran(report, outputs, {name: p.grad for name, p in fresh.named_parameters() if p.grad is not None})


def _times(runs: dict[str, tuple[nn.Module, Callable]], loops, device: torch.device) -> dict[str, float]:
    found: dict[str, list[float]] = {name: [] for name in runs}
    began = time.perf_counter()
    for _ in range(_ROUNDS):
        for name, (net, step) in runs.items():
            fresh = copied(net)
            with as_written(loops) if name == "native" else nullcontext():
                _wait(device)
                start = time.perf_counter()
                step(fresh)
                _wait(device)
                found[name].append(time.perf_counter() - start)
        if time.perf_counter() - began > _LONG:
            break
    return {name: min(seconds) for name, seconds in found.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _difference(ran: dict[str, _Ran]) -> tuple[float | None, bool | None]:
    if "native" not in ran:
        return None, None
    ours, native = ran["ours"], ran["native"]
    equal = all(a.shape == b.shape and torch.equal(a, b) for one, other in zip(ours.outputs, native.outputs)
                for a, b in zip(one, other))
    if ours.grads.keys() != native.grads.keys():
        return None, equal
    # All parameters together: of a bias before batch norm the true gradient is 0, and there is nothing but rounding.
    size = sum(g.double().square().sum().item() for g in native.grads.values())
    off = sum((ours.grads[name].double() - g.double()).square().sum().item() for name, g in native.grads.items())
    return math.sqrt(off / size) if size else math.sqrt(off), equal


class _Room(TorchDispatchMode):
    """Stops a native step before it takes the last of the machine's memory."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += 1
        if self.count % 16 == 1:
            total, free = _memory()
            if free < _ROOM * total:
                raise MemextError("it does not fit into this machine's memory")
        return func(*args, **(kwargs or {}))


def _memory() -> tuple[int, int]:
    """(all, available) in KiB; (0, 0) where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            lines = dict(line.split(":", 1) for line in file)
        return int(lines["MemTotal"].split()[0]), int(lines["MemAvailable"].split()[0])
    except (OSError, KeyError, ValueError):
        return 0, 0
