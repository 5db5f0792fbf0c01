"""What every module of a model was called with, noted by hooks while the model runs."""
from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .._memory_graph import tensors_in
from ..temporal import Host
from ._hand import emits_spikes, is_plain, own_tensors, steps_inside

__all__ = ["Seen", "Watch"]

_SHAPES = 4  # different shapes of one module's input that are kept
# Layers to which dimension 0 is the batch, and the number of dimensions that they then take.
_BATCHED = {nn.Conv1d: (3,), nn.Conv2d: (4,), nn.Conv3d: (5,), nn.BatchNorm1d: (2, 3), nn.BatchNorm2d: (4,),
            nn.BatchNorm3d: (5,)}


@dataclass
class Seen:
    """One module. host: of the framework whose neuron it is, or None.  by_hand: why it is taken for a neuron of its
    author's own, or None.

    calls: in the steps watched.  shapes: of its first input, without repeats, in order.  fired, spikes: share of the
    output that is not 0, summed over the calls in `rates`.  loop: steps found inside one call.
    fed_by: name of a layer that takes dimension 0 for the batch, and whose output came in as it was.
    entered_with: its states that had a graph when a later forward began.
    """

    name: str
    module: nn.Module
    host: Host | None
    by_hand: str | None = None
    calls: int = 0
    shapes: list[torch.Size] = field(default_factory=list)
    fired: float = 0.0
    rates: int = 0
    loop: int = 0
    fed_by: str | None = None
    entered_with: list[str] = field(default_factory=list)

    @property
    def is_neuron(self) -> bool:
        return self.host is not None or self.by_hand is not None

    @property
    def kind(self) -> str:
        records = getattr(self.module, "_entered_by_memext", ())
        return (records[0].before if records else type(self.module)).__name__

    @property
    def step_mode(self) -> str | None:
        return getattr(self.module, "step_mode", None)

    @property
    def rate(self) -> float | None:
        return self.fired / self.rates if self.rates else None


class Watch:
    """Hooks on all modules of `model` while the `with` lasts. forwards: calls of the model itself.

    failed: name of the innermost module in which the first exception was raised.  kept: outputs of the model.
    """

    def __init__(self, model: nn.Module, hosts: Sequence[Host], keep: bool = True):
        self.model, self.hosts, self.keep = model, list(hosts), keep
        self.seen: dict[nn.Module, Seen] = {}
        for name, module in model.named_modules():
            host = next((h for h in self.hosts if h.framework.is_neuron(module)), None)
            self.seen[module] = Seen(name, module, host)
        self.forwards, self.counting = 0, True
        self.kept: list[Tensor] = []
        self.stack: list[Seen] = []
        self.failed: Seen | None = None
        self.failed_with: torch.Size | None = None
        self._handles: list = []
        self._first: set[nn.Module] = set()  # not called yet in this forward
        self._looked = False  # at the states that a later step begins with
        self._own: dict[nn.Module, dict[str, int]] = {}
        self._outputs: dict[int, tuple[weakref.ref, str]] = {}

    def __enter__(self) -> Watch:
        for module in self.seen:
            self._handles.append(module.register_forward_pre_hook(self._before))
            self._handles.append(module.register_forward_hook(self._after, always_call=True))
        return self

    def __exit__(self, *problem) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._outputs.clear()

    def states(self, module: nn.Module) -> dict[str, object]:
        """What the module carries from step to step, by its framework, or by hand."""
        found = {name: host.get(module, name) for host in self.hosts for name in host.states(module)}
        seen = self.seen.get(module)
        if seen is not None and seen.by_hand and not found:
            found = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
        return found

    def begin(self, module: nn.Module) -> None:
        """A forward of the whole model begins."""
        self.stack.clear()
        self.forwards += self.counting
        if self.counting or not self._looked:
            self._first, self._looked = set(self.seen), not self.counting

    # ---- hooks ----

    def _before(self, module: nn.Module, args: tuple) -> None:
        seen = self.seen[module]
        if module is self.model and not self.stack:
            self.begin(module)
        self.stack.append(seen)
        if module in self._first:
            self._first.discard(module)
            if not self.counting:
                seen.entered_with = [name for name, value in self.states(module).items()
                                     if isinstance(value, Tensor) and value.grad_fn is not None]
        if not self.counting:
            return
        seen.calls += 1
        x = next(iter(tensors_in(args)), None)
        if x is not None:
            if x.shape not in seen.shapes and len(seen.shapes) < _SHAPES:
                seen.shapes.append(x.shape)
            ref, name = self._outputs.get(id(x), (None, None))
            if ref is not None and ref() is x:
                seen.fed_by = name
        if seen.host is None and is_plain(module):
            self._own[module] = own_tensors(module)

    def _after(self, module: nn.Module, args: tuple, out) -> None:
        seen = self.stack.pop() if self.stack else self.seen[module]
        outputs = tensors_in(out)
        if not outputs:  # also where an exception passes through: the innermost module comes first
            if out is None and self.failed is None:
                self.failed, self.failed_with = seen, next((t.shape for t in tensors_in(args)), None)
            return
        if self.failed is not None:  # it was caught, or was none: a module may return nothing
            self.failed = None
        if module is self.model and self.keep and self.counting:
            self.kept += outputs
        if not self.counting:
            return
        x, y = next(iter(tensors_in(args)), None), outputs[0]
        self._by_hand(seen, x, y)
        if seen.is_neuron:
            seen.fired += y.detach().count_nonzero().item() / max(1, y.numel())
            seen.rates += 1
        if y.dim() in _BATCHED.get(_batched(module), ()) and seen.step_mode != "m":
            self._outputs[id(y)] = (weakref.ref(y), seen.name)

    def _by_hand(self, seen: Seen, x, y: Tensor) -> None:
        before = self._own.pop(seen.module, None)
        if before is None or x is None:
            return
        changed = [name for name, value in own_tensors(seen.module).items() if before.get(name) != value]
        if changed:
            seen.by_hand = f"keeps {changed[0]!r}"
        elif seen.by_hand is None and emits_spikes(x, y):
            seen.by_hand = "emits spikes"
        if seen.by_hand and not seen.loop:
            seen.loop = steps_inside(x, y)


def _batched(module: nn.Module) -> type | None:
    return next((cls for cls in _BATCHED if isinstance(module, cls)), None)
