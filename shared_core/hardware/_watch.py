"""What runs while a network is watched: its layers and neurons by hooks, and what is no layer by a dispatch mode.

Nothing is interpreted here; _collect.py makes a table of it once the numbers of samples and time steps are known.
"""
from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .._memory_graph import tensors_in
from ..errors import MemextError
from ..reversible._column_state import TurnedOn
from ..reversible.columns import Columns

__all__ = ["Loose", "NeuronCalls", "Seen", "Watch", "is_of_no_framework", "takes_sequences"]

_CONVOLUTIONS = {nn.Conv1d: "conv", nn.Conv2d: "conv", nn.ConvTranspose1d: "transposed",
                 nn.ConvTranspose2d: "transposed"}
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
_MEANS = tuple(getattr(nn, f"{kind}Pool{n}d") for kind in ("Avg", "AdaptiveAvg") for n in (1, 2, 3))
_POOLS = _MEANS + tuple(getattr(nn, f"{kind}Pool{n}d") for kind in ("Max", "AdaptiveMax", "LP") for n in (1, 2, 3)
                        if hasattr(nn, f"{kind}Pool{n}d"))
# Operators that are named where they run outside of a layer, by the start of their name: (start, kind, what they are).
_NAMED = tuple((name, "other", "matrix product") for name in (
    "convolution", "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "linear", "_scaled_dot_product_",
    "_native_multi_head_attention", "_transformer_encoder_layer_fwd")) + tuple(
    (name, "pool", "pooling") for name in ("avg_pool", "max_pool", "_adaptive_avg_pool", "adaptive_max_pool", "mean")
) + tuple((name, "other", "normalisation") for name in ("native_batch_norm", "native_layer_norm", "native_group_norm"))
_WHOLE = {"mm", "mv", "dot", "linear", "mean", "bmm"}  # whose names are starts of others'


@dataclass
class Seen:
    """Calls of a module with inputs of one shape.  values, nonzero, outputs: of all calls."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    kind: str
    reason: str = ""
    calls: int = 0
    values: int = 0
    nonzero: int = 0
    outputs: int = 0
    real: bool = False


@dataclass
class NeuronCalls:
    """A neuron behind one layer (or behind none).  updates, calls: of all samples; a sequence is T calls.
    stateless: it keeps nothing from step to step."""

    name: str
    behind: Seen | None
    stateless: bool = False
    updates: int = 0
    calls: int = 0


@dataclass
class Loose:
    """Operators outside of layers.  macs: multiply-adds of all samples; None: not known."""

    kind: str
    what: str
    times: int = 0
    macs: int | None = 0


class Watch(TorchDispatchMode):
    """Hooks on every module of `net` while it is entered.

    known: the neurons of frameworks.  batch, steps: None where the first neuron, or temporal columns, have to tell.
    """

    def __init__(self, net: nn.Module, known, batch: int | None, steps: int | None):
        super().__init__()
        self.net, self.known, self.batch, self.steps = net, known, batch, steps
        self.seen: dict[tuple, Seen] = {}
        self.neurons: dict[tuple, NeuronCalls] = {}
        self.loose: dict[str, Loose] = {}
        self.sizes: dict[nn.Module, int] = {}  # neurons of one call, all samples
        self.handed: dict[str, str] = {}  # neuron -> the one whose returned membrane it was given
        self._owner: dict[str, str] = {}  # layer -> the neuron behind it
        self._returned: dict[int, tuple[str, Tensor]] = {}
        self._stack: list[tuple[str, str]] = []  # (name, kind) of the modules that are running
        self._last: Seen | None = None
        self._handles: list = []

    def __enter__(self):
        for name, module in self.net.named_modules():
            kind, reason = _kind(module, module in self.known)
            self._handles += [
                module.register_forward_pre_hook(lambda m, args, entry=(name, kind): self._stack.append(entry)),
                module.register_forward_hook(
                    lambda m, args, kwargs, out, name=name, kind=kind, reason=reason: self._done(
                        m, name, kind, reason, (*args, *kwargs.values()), out), with_kwargs=True, always_call=True)]
        return super().__enter__()

    def __exit__(self, *problem):
        for handle in self._handles:
            handle.remove()
        return super().__exit__(*problem)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        found = next((entry for entry in _NAMED if name == entry[0] or (entry[0] not in _WHOLE
                                                                       and name.startswith(entry[0]))), None)
        if found is not None and self._outside(found[2]):
            where = self._stack[-1][0] if self._stack else ""
            loose = self.loose.setdefault(f"{name} in {where or 'the model itself'}", Loose(*found[1:]))
            loose.times += 1
            macs = _multiply_adds(name, args, out)
            loose.macs = None if None in (loose.macs, macs) else loose.macs + macs
        return out

    def _outside(self, what: str) -> bool:
        """Neurons may pool and normalise as they like, but matrices multiplied inside of one are synapses."""
        inside = {kind for _, kind in self._stack} - {"", "columns"}
        return not (inside - {"neuron"} if what == "matrix product" else inside)

    def _done(self, module: nn.Module, name: str, kind: str, reason: str, args: tuple, out) -> None:
        self._stack.pop()
        name = name or "net"
        around = {kind for _, kind in self._stack} - {"", "columns"}
        if not kind or out is None or around - {"neuron"}:
            return  # a container, a call that raised, or a part of a layer
        if kind == "columns":
            self._columns(module, name, out)
        elif kind == "neuron" and not around:
            self._neuron(module, name, args, out)
        elif kind != "neuron":
            self._layer(module, name, kind, reason, next(iter(tensors_in(args)), None), out, inside=bool(around))

    def _layer(self, module: nn.Module, name: str, kind: str, reason: str, x: Tensor | None, out, inside: bool) -> None:
        if x is None:
            return
        seen = self.seen.setdefault((name, tuple(x.shape)), Seen(name, module, tuple(x.shape), kind, reason))
        seen.calls += 1
        first = next(iter(tensors_in(out)), None)
        seen.outputs += 0 if first is None else first.numel()
        seen.values += x.numel()
        if kind in ("pool", "other"):
            return
        least = 2 if kind == "linear" else len(module.kernel_size) + 2
        if x.dim() < least:
            raise MemextError(f"layer_table: {name} got {tuple(x.shape)}, which has no batch of samples; the network "
                              "was called with one dimension too few. Pass a sample of one dimension more: [T, N, ...] "
                              "where the network is called once a step")
        seen.nonzero += int(torch.count_nonzero(x))
        seen.real = seen.real or bool(((x != 0) & (x != 1)).any())
        if not inside:  # a recurrent layer in a neuron is not what the neuron stands behind
            self._last = seen

    def _neuron(self, module: nn.Module, name: str, args: tuple, out) -> None:
        tensors = list(tensors_in(out))
        spikes = tensors[0]
        in_sequence = takes_sequences(module)
        if self.batch is None:
            self.batch = spikes.shape[in_sequence]
        for state in list(tensors_in(args))[1:]:
            giver = self._returned.get(id(state), (name,))[0]
            if giver != name:
                self.handed[name] = giver
        self._returned |= {id(state): (name, state) for state in tensors[1:]}  # kept alive, so that ids stay theirs
        self._update(name, spikes, self._behind(name), calls=len(spikes) if in_sequence else 1,
                     stateless=is_turned_off(module))
        self.sizes[module] = spikes.numel() // (len(spikes) if in_sequence else 1)

    def _columns(self, module: Columns, name: str, out) -> None:
        """The neurons between stages, one of each stage for all columns; a column is a time step."""
        self.batch = self.batch or out[0].shape[0]
        self.steps = self.steps or len(module.stages)
        for number, state in enumerate(out):
            self._update(f"{name}.neuron{number}", state, None, calls=len(module.stages), times=len(module.stages))

    def _behind(self, name: str) -> Seen | None:
        last = self._last
        if last is None or self._owner.setdefault(last.name, name) != name:
            return None  # there is one behind it already: a row of its own
        return last

    def _update(self, name: str, spikes: Tensor, behind: Seen | None, calls: int, times: int = 1,
                stateless: bool = False) -> None:
        key = name, None if behind is None else (behind.name, behind.shape)
        if key not in self.neurons:
            self.neurons[key] = NeuronCalls(name, behind, stateless)
            if behind is None:
                self.seen[name, ("neuron",)] = Seen(name, self.net, (), "neuron")
        self.neurons[key].updates += times * spikes.numel()
        self.neurons[key].calls += calls


def takes_sequences(module: nn.Module) -> bool:
    """A neuron that is called once on [T, N, *]: as it is set, or as it only can be (PSN, LeakyParallel)."""
    if getattr(module, "step_mode", None) is not None:
        return module.step_mode == "m"
    modes = getattr(module, "supported_step_mode", tuple)
    return modes() == ("m",) or any(c.__name__ == "LeakyParallel" for c in type(module).__mro__)


def is_of_no_framework(module: nn.Module) -> bool:
    """Neurons of T-RevSNN."""
    return isinstance(module, Columns) or is_turned_off(module)


def is_turned_off(module: nn.Module) -> bool:
    """One without a membrane."""
    return isinstance(getattr(module, "neuron", None), TurnedOn) and not isinstance(module, Columns)


def _kind(module: nn.Module, neuron: bool) -> tuple[str, str]:
    """("", "") for a container, or a module that computes nothing by itself."""
    if neuron or (is_turned_off(module) and next(module.children(), None) is None):
        return "neuron", ""
    if isinstance(module, Columns):
        return "columns", ""
    for cls, kind in _CONVOLUTIONS.items():
        if isinstance(module, cls):
            return kind, ""
    if isinstance(module, nn.Linear):
        return "linear", ""
    if isinstance(module, _POOLS):
        return "pool", "additions" if isinstance(module, _MEANS) else "comparisons"
    if isinstance(module, _NORMS):
        return "other", "normalisation; for inference it is folded into the layer before it"
    if next(module.children(), None) is None and next(module.parameters(recurse=False), None) is not None:
        return "other", f"a {type(module).__name__} is no convolution and no linear layer"
    return "", ""


def _multiply_adds(name: str, args: tuple, out) -> int | None:
    """Of one operator call; None where it is not known."""
    shapes = [tuple(a.shape) for a in args if isinstance(a, Tensor)]
    result = next(iter(tensors_in(out)), None)
    if result is None or not shapes:
        return None
    if name in ("mm", "bmm", "mv", "dot", "linear"):
        return result.numel() * shapes[0][-1]
    if name in ("addmm", "baddbmm", "addmv"):
        return result.numel() * shapes[1][-1]
    if name.startswith("convolution") and not args[6]:
        return result.numel() * math.prod(shapes[1][1:])
    if name.startswith("_scaled_dot_product_"):
        query, key, value = shapes[:3]
        return math.prod(query[:-1]) * key[-2] * (query[-1] + value[-1])
    return None


