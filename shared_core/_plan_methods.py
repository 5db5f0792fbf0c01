"""Which methods there are for a model, and what each needs: traces by method, batch and number of time steps."""
from __future__ import annotations

import dataclasses
import importlib
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType

import torch
from torch import Tensor, nn

from . import registry
from ._entering import entered
from ._plan_calls import Calls
from ._plan_copy import fake_copy, fake_like, reset_copy
from ._plan_law import Peak, is_law_batch, largest_batch, law_batch, peak_of
from ._plan_opaque import mark_spikes
from ._plan_optimizer import OptimizerCost
from ._plan_problem import TimeAsBatch, is_ours, of_memext, of_model, of_other_batch
from ._plan_trace import Trace, trace
from .errors import MemextError

__all__ = ["DEFAULT", "FASTEST_FIRST", "NATIVE", "Floor", "MethodPlan", "Planner", "inputs_of", "keeps_network"]

NATIVE = "native"
SAME_NETWORK = ("neuron", "compress", "recompute")
DEFAULT = "balanced"  # of recompute's option `prefer`
# From fast to slow, as the benchmarks of training steps on the CPU measured it; a method not listed comes last.
FASTEST_FIRST = ("neuron", "recompute(speed)", "compress", "recompute(balanced)", NATIVE, "recompute(memory)")


def keeps_network(name: str, method: Callable) -> bool:
    """Does a method of retrofit compute the same network? Others are not to be chosen by their memory.

    A method of another package says so by the attribute `same_network = True` of its function.
    """
    return name in SAME_NETWORK or getattr(method, "same_network", False)


@dataclass(frozen=True)
class MethodPlan:
    """One method. method, options: for retrofit; "native": the model as it is.

    peak: see Peak; None: it cannot be used, and `problem` says why.
    largest_batch, at_largest: with max_batch, the largest batch that fits, 0 for none, and its peak.
    """

    method: str
    options: dict[str, object] = field(default_factory=dict)
    peak: Peak | None = None
    problem: str | None = None
    largest_batch: int | None = None
    at_largest: Peak | None = None

    @property
    def name(self) -> str:
        """method(option, ...), as the table shows it."""
        return self.method + (f"({', '.join(map(str, self.options.values()))})" if self.options else "")


@dataclass(frozen=True)
class Floor:
    """Bytes of a training step with no sample at all. state, work: what the optimizer keeps, and needs in its step."""

    parameters: int
    gradients: int
    state: int
    work: int


class Planner:
    """Traces of one model: by method, number of time steps and batch."""

    def __init__(self, model: nn.Module, sample, batch_dim: int, loss: Callable, device: str,
                 optimizer: OptimizerCost | None):
        self.model, self.batch_dim, self.loss, self.optimizer = model, batch_dim, loss, optimizer
        self.inputs = inputs_of(sample)
        self.shape = tuple(self.inputs[0].shape)
        self.native_on = "cpu" if device == "cpu" else "meta"  # where native neurons do what they do on the device
        self.adapter = _adapter_of(model)
        self.traces: dict[tuple, Trace] = {}
        self.calls = 0  # most calls of one neuron in a step on the sample

    def listed(self) -> list[tuple[str, dict]]:
        """Every method that computes the same network, with its options, the fastest first."""
        found: list[tuple[str, dict]] = [(NATIVE, {})]
        if self.adapter is not None:
            from .chain.policy import PREFERENCES
            for name, method in self.adapter.METHODS.items():
                if not keeps_network(name, method):
                    continue
                takes = inspect.signature(method).parameters
                found += [(name, {"prefer": p}) for p in PREFERENCES] if "prefer" in takes else [(name, {})]
        rank = {name: i for i, name in enumerate(FASTEST_FIRST)}
        return sorted(found, key=lambda m: rank.get(MethodPlan(*m).name, len(rank)))

    def method(self, name: str, options: dict) -> MethodPlan:
        try:
            return MethodPlan(name, options, self.peak(name, options, self.shape[self.batch_dim]))
        except MemextError as problem:
            return MethodPlan(name, options, problem=str(problem))

    def with_largest(self, found: MethodPlan, budget: int) -> MethodPlan:
        if found.peak is None:
            return found
        try:
            tensors = [t.numel() * t.element_size() for t in (*self.model.parameters(), *self.model.buffers())]
            law = self.trace(found.method, found.options, law_batch(tensors))
            exact = lambda batch: self.peak(found.method, found.options, batch)  # noqa: E731
            if peak_of(law, self.optimizer, self.shape[self.batch_dim]) == found.peak:  # traced apart: the law holds
                exact = lambda batch: peak_of(law, self.optimizer, batch)  # noqa: E731
            batch, peak = largest_batch(law, budget, self.optimizer, exact)
        except TimeAsBatch:
            raise
        except MemextError as problem:
            return dataclasses.replace(found, problem=f"no largest batch: {problem}")
        return dataclasses.replace(found, largest_batch=batch, at_largest=peak)

    def fewer_steps(self, found: MethodPlan, budget: int, batch: int) -> int | None:
        """The largest T, of half, a quarter, ... of the sample's, at which this batch fits; None: unknown or none."""
        steps = self.shape[0] // 2 if self.batch_dim == 1 else 0
        while steps:
            try:
                if self.peak(found.method, found.options, batch, steps).peak <= budget:
                    return steps
            except MemextError:  # T is part of the model
                return None
            steps //= 2
        return None

    def floor(self, found: MethodPlan) -> Floor:
        """What a planned method needs before the first sample."""
        known = self.trace(found.method, found.options, self.shape[self.batch_dim])
        cost, sizes = self.optimizer, known.parameter_sizes
        state, work = (0, 0) if cost is None else (cost.state(sizes), cost.transients(sizes))
        return Floor(known.weights_bytes, sum(sizes), state, work)

    def peak(self, name: str, options: dict, batch: int, steps: int | None = None) -> Peak:
        return peak_of(self.trace(name, options, batch, steps), self.optimizer)

    def trace(self, name: str, options: dict, batch: int, steps: int | None = None) -> Trace:
        key = (name, tuple(options.items()), batch, steps)
        if key not in self.traces:
            self.traces[key] = self._trace(name, options, batch, steps)
        return self.traces[key]

    def _trace(self, name: str, options: dict, batch: int, steps: int | None) -> Trace:
        def prepare() -> nn.Module:
            copied = fake_copy(self.model, "cpu")
            if self.adapter is not None:
                if any(entered(module) for module in copied.modules()):
                    self.adapter.restore(copied)
                if name != NATIVE:
                    self.adapter.retrofit(copied, name, **options)
            reset_copy(copied)
            if self.native_on == "cpu":
                mark_spikes(self._neurons(copied, ours=True))
            return copied

        inputs = lambda: [self._input(t, batch, steps) for t in self.inputs]  # noqa: E731
        replayed: list[nn.Module] = []
        of_sample = batch == self.shape[self.batch_dim]
        limited = self.calls and is_law_batch(batch) and not of_sample
        calls = Calls(self.batch_dim, batch, 2 * self.calls if limited else None)

        def opaque(copied: nn.Module) -> list[nn.Module]:
            replayed.extend(self._neurons(copied, ours=False))
            return replayed

        def count(copied: nn.Module) -> None:
            calls.count(m for ours in (True, False) for m in self._neurons(copied, ours, as_written=False))

        try:
            try:
                found = trace(prepare, inputs, batch, self.loss, opaque, self.native_on, count)
            except MemextError:
                raise
            except Exception:
                if not replayed:
                    raise
                # Perhaps the model looks at the state of a neuron that was not really run: run them all; it takes
                # longer.
                found = trace(prepare, inputs, batch, self.loss, prepared=count)
        except MemextError:
            raise
        except Exception as problem:
            raise self._explained(name, options, batch, steps, problem) from problem
        if of_sample and steps is None:
            self.calls = max(self.calls, calls.most)
        return found

    def _explained(self, name: str, options: dict, batch: int, steps: int | None, problem: Exception) -> MemextError:
        shape = tuple(self._shape(self.inputs[0], batch, steps))
        if name == NATIVE:
            if is_ours(problem):
                return MemextError(of_memext(name, self.model, shape, problem))
            ran = (name, (), self.shape[self.batch_dim], None) in self.traces
            return MemextError((of_other_batch if ran else of_model)(self.model, shape, self.batch_dim, problem))
        self.trace(NATIVE, {}, batch, steps)  # where that fails too, it says why, and our method is not to blame
        return MemextError(of_memext(MethodPlan(name, options).name, self.model, shape, problem))

    def _neurons(self, model: nn.Module, ours: bool, as_written: bool = True) -> list[nn.Module]:
        """Our neurons, or the framework's own.  as_written: only those whose forward is their class's."""
        if self.adapter is None:
            return []
        is_neuron = self.adapter.FRAMEWORK.is_neuron
        return [m for m in model.modules() if is_neuron(m) and bool(entered(m)) == ours
                and not (as_written and "forward" in vars(m))]

    def _shape(self, t: Tensor, batch: int, steps: int | None) -> torch.Size:
        shape = list(t.shape)
        shape[self.batch_dim] = batch
        if steps is not None:
            shape[0] = steps
        return torch.Size(shape)

    def _input(self, t: Tensor, batch: int, steps: int | None) -> Tensor:
        shape = self._shape(t, batch, steps)
        if shape == t.shape:
            return fake_like(t, "cpu")
        return torch.empty(shape, dtype=t.dtype).requires_grad_(t.requires_grad)


def inputs_of(sample) -> list[Tensor]:
    if isinstance(sample, Tensor):
        return [sample]
    if all(isinstance(n, int) for n in sample):
        return [torch.empty(tuple(sample), device="meta")]
    return list(sample)


def _adapter_of(model: nn.Module) -> ModuleType | None:
    """The `retrofit` module of the adapter whose framework has neurons in this model."""
    for adapter in registry.adapters().values():
        if adapter.missing or adapter.framework not in sys.modules:
            continue
        module = importlib.import_module(f"{adapter.load().__name__}.retrofit")
        if any(module.FRAMEWORK.is_neuron(m) for m in model.modules()):
            return module
    return None
