"""The memory of a training step under each method, predicted from shapes: no GPU, no data, no second copy of anything.

    found = plan(net, (4, 32, 3, 224, 224), budget="24GiB", optimizer="adamw")
    print(found.table())
    method, options = choose(found)          # what retrofit(net, method, **options) takes
"""
from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor, nn

from ._plan_copy import unwrapped
from ._plan_methods import DEFAULT, NATIVE, MethodPlan, Planner, inputs_of
from ._plan_optimizer import cost_of
from ._plan_problem import TimeAsBatch
from ._plan_table import advice, only_slower, table
from ._plan_trace import mean_of_outputs
from .errors import MemextError

__all__ = ["MemoryPlan", "MethodPlan", "bytes_of", "choose", "plan"]

_UNITS = {"B": 1, **{f"{prefix}iB": 1024 ** i for i, prefix in enumerate("KMGT", 1)},
          **{f"{prefix}B": 1000 ** i for i, prefix in enumerate("KMGT", 1)},
          **{prefix: 1024 ** i for i, prefix in enumerate("KMGT", 1)}}
_ON_A_GPU = ("The figures for CUDA come from rules (what SpikingJelly's Triton kernels and ours keep) and are not "
             "verified on a GPU. The CUDA context, cuDNN workspaces and fragmentation come on top.")


@dataclass(frozen=True)
class MemoryPlan:
    """What `plan` found. budget: bytes, or None.  shape: of the first input, its batch in dimension `batch_dim`.

    methods: the fastest first.  chosen: the first that fits (without a budget: the smallest).  advice: lines that say
    what would have to change where nothing fits.  notes: what the figures leave out.
    """

    model: str
    shape: tuple[int, ...]
    batch_dim: int
    device: str
    optimizer: str | None
    budget: int | None
    methods: list[MethodPlan]
    advice: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def smallest(self) -> MethodPlan:
        return min((m for m in self.methods if m.peak is not None), key=lambda m: m.peak.peak)

    @property
    def chosen(self) -> MethodPlan | None:
        if self.budget is None:
            return self.smallest
        return next((m for m in self.methods if m.peak is not None and m.peak.peak <= self.budget), None)

    def __getitem__(self, name: str) -> MethodPlan:
        """By MethodPlan.name, e.g. "recompute(memory)"; "recompute" is that with its default, "balanced"."""
        found = {m.name: m for m in self.methods}
        name = name if name in found or f"{name}({DEFAULT})" not in found else f"{name}({DEFAULT})"
        if name not in found:
            raise MemextError(f"plan: there is no method {name!r}; planned: {', '.join(found)}")
        return found[name]

    def table(self, advice: bool = True) -> str:
        """The figures as lines of text.  advice: with the lines that say what would have to change."""
        return table(self, advice)

    def to_dict(self) -> dict:
        """Everything, as JSON types; sizes in bytes."""
        return {**dataclasses.asdict(self), "shape": list(self.shape),
                "chosen": None if self.chosen is None else self.chosen.name}

    def to_json(self, path) -> None:
        """Writes `to_dict()` to `path`. Raises OSError where that cannot be written."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")


def plan(model: nn.Module, sample, budget: int | str | None = None, optimizer=None, *, max_batch: bool = False,
         batch_dim: int = 1, loss: Callable | None = None, device: str | None = None) -> MemoryPlan:
    """Predicts the peak memory of one training step of `model` under each method, and which methods fit `budget`.

    Methods that turn the model into another network (such as "reversible") are not among them.

    model: as its author wrote it, in training or eval mode; retrofitted ones are planned from their native form. It may
        be built on the device "meta". It is not changed, and nothing of its size is allocated.
    sample: a tensor like the model's input, its shape, or a tuple of tensors for several inputs.
    budget: bytes, or text such as "24GiB", "800MB".  None: the figures only.
    optimizer: "sgd", "momentum", "adamw", ...; a torch.optim class or optimizer; a function of the parameters; or None.
    max_batch: also find, per method, the largest batch that fits the budget.
    batch_dim: dimension of the samples in every input: 1 for [T, N, ...], 0 for [N, ...].
    loss: called with the model's output, of whatever batch; default: its mean.
    device: "cpu" or "cuda"; default: where the parameters are.
    Returns: MemoryPlan.
    Raises MemextError: bad arguments; the model cannot run without data (it looks at values) or has no gradient.

    How: forward and backward run once per method on tensors that have shapes and no memory, while a ledger notes what
    is allocated and released; the output is held until the backward has ended, as by `out = net(x)`. Counted is what
    `memory.measure` counts, plus parameters, inputs and optimizer state; not what operators use inside themselves.
    Gradients are assumed to be None before the step (zero_grad's default). Hooks of the model run, on tensors without
    values.
    """
    _check(model, sample, batch_dim, device)
    limit = None if budget is None else bytes_of(budget)
    if max_batch and limit is None:
        raise MemextError("plan: max_batch needs a budget, e.g. budget='24GiB'")
    device = device or ("cuda" if any(p.is_cuda for p in model.parameters()) else "cpu")
    planner = Planner(unwrapped(model), sample, batch_dim, loss or mean_of_outputs, device,
                      cost_of(optimizer, foreach=device == "cuda"))
    methods = [planner.method(name, options) for name, options in planner.listed()]
    if all(m.peak is None for m in methods):
        raise MemextError(f"plan: {next(m for m in methods if m.method == NATIVE).problem}")
    if max_batch:
        methods = [planner.with_largest(m, limit) for m in methods]
    found = MemoryPlan(type(planner.model).__name__, planner.shape, batch_dim, device, _name(optimizer), limit, methods,
                       notes=[_ON_A_GPU] if device == "cuda" else [])
    found.notes.extend(only_slower(found))
    if found.chosen is None:
        found.advice.extend(_advice(found, planner, with_batch=not max_batch))
    return found


def _advice(found: MemoryPlan, planner: Planner, with_batch: bool) -> list[str]:
    best, limit = found.smallest, found.budget
    if with_batch:
        try:
            best = planner.with_largest(best, limit)
        except TimeAsBatch as problem:
            found.notes.append(str(problem).removeprefix("plan: "))
    floor, steps, of_one = planner.floor(best), None, None
    if floor.parameters + floor.gradients + floor.state + floor.work < limit:
        steps = planner.fewer_steps(best, limit, planner.shape[found.batch_dim])
        if not steps and best.largest_batch == 0:
            of_one = planner.fewer_steps(best, limit, 1)
    return advice(found, best, floor, steps, of_one)


def choose(found: MemoryPlan) -> tuple[str, dict]:
    """(method, options) for retrofit: the fastest that fits. ("native", {}): retrofit nothing.

    Raises MemextError: nothing fits; it names the smallest peak and what would have to change.
    """
    if found.chosen is None:
        raise MemextError("plan: " + " ".join(found.advice))
    return found.chosen.method, dict(found.chosen.options)


def bytes_of(budget: int | str) -> int:
    """24GiB -> 25769803776. GiB, MiB, G and M are powers of 1024, GB and MB of 1000; a plain number is bytes."""
    if isinstance(budget, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", budget)
        units = {unit.lower(): size for unit, size in _UNITS.items()}
        if match is not None and (match[2] or "B").lower() in units:
            budget = round(float(match[1]) * units[(match[2] or "B").lower()])
    if isinstance(budget, bool) or not isinstance(budget, (int, float)) or not 0 < budget < float("inf"):
        raise MemextError(f"plan: budget is {budget!r}; allowed: a positive number of bytes, or text with a unit "
                          f"({', '.join(_UNITS)}), e.g. '24GiB'")
    return int(budget)


def _check(model, sample, batch_dim, device) -> None:
    if not isinstance(model, nn.Module):
        raise MemextError(f"plan: model is {type(model).__name__}; a torch.nn.Module is needed")
    if not any(p.requires_grad for p in model.parameters()):
        raise MemextError(f"plan: no parameter of this {type(model).__name__} requires a gradient; there is no step of "
                          "training to plan")
    if device not in (None, "cpu", "cuda"):
        raise MemextError(f"plan: device is {device!r}; allowed: 'cpu', 'cuda' or None (where the parameters are)")
    if batch_dim not in (0, 1):
        raise MemextError(f"plan: batch_dim is {batch_dim!r}; allowed: 1 for inputs [T, N, ...], 0 for [N, ...]")
    if not _is_sample(sample):
        raise MemextError(f"plan: sample is {str(sample)[:80]!r} ({type(sample).__name__}); allowed: a tensor, a shape "
                          "such as (4, 32, 3, 224, 224), or a tuple of tensors")
    for t in inputs_of(sample):
        if t.dim() <= batch_dim:
            raise MemextError(f"plan: an input has shape {tuple(t.shape)}, and so no dimension {batch_dim} for the "
                              "batch; give the shape with time and batch, [T, N, ...], or batch_dim=0 for [N, ...]")


def _is_sample(sample) -> bool:
    if not isinstance(sample, (tuple, list)) or not sample:
        return isinstance(sample, Tensor)
    return all(isinstance(t, Tensor) for t in sample) or all(type(n) is int and n > 0 for n in sample)


def _name(optimizer) -> str | None:
    if optimizer is None or isinstance(optimizer, str):
        return optimizer
    kind = optimizer if hasattr(optimizer, "__name__") else type(optimizer)
    return kind.__name__
