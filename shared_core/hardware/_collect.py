"""A LayerTable from a network: it is run once on real input, and what its modules take and give is noted.

_Watch holds the hooks; matrix products outside of the known layers are seen by a dispatch mode and named.
"""
from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .._memory_graph import tensors_in
from .._plan_copy import reset_copy, unwrapped
from ..errors import MemextError
from ..temporal._hosts import Host, hosts
from .table import LayerTable

__all__ = ["layer_table"]

_CONVOLUTIONS = {nn.Conv1d: "conv", nn.Conv2d: "conv", nn.ConvTranspose1d: "transposed",
                 nn.ConvTranspose2d: "transposed"}
_PRODUCTS = ("convolution", "mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot", "linear", "_scaled_dot_product_")
_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)
_POOLS = tuple(getattr(nn, f"{kind}Pool{n}d") for kind in ("Max", "Avg", "AdaptiveMax", "AdaptiveAvg", "LP")
               for n in (1, 2, 3) if hasattr(nn, f"{kind}Pool{n}d"))
LOOPS = ("outside", "inside")


@dataclass
class _Row:
    """What was seen of a module at one input size; of all its calls and all samples together."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]  # of one sample's input: channels, height, width
    kind: str
    reason: str = ""
    images: int = 0
    values: int = 0
    nonzero: int = 0
    real: bool = False
    neuron: str = ""


@dataclass
class _Neuron:
    """Updates of a neuron behind one row (or behind none), of all samples and steps."""

    name: str
    row: _Row | None
    updates: int = 0
    calls: int = 0


def layer_table(net: nn.Module, sample: Tensor, *, time: str | None = None, T: int | None = None,
                run: Callable[[nn.Module, Tensor], object] | None = None) -> LayerTable:
    """The layers of a SpikingJelly or snnTorch network, with what they take on `sample`: shapes, time steps, spike
    rates, zero weights, neurons and shared membranes.

    sample: a batch of real input. [T, N, ...] where the network takes a sequence, or is stepped by the caller; what the
        network takes where it steps through time itself.
    time: "outside", the network is called once for each step of sample; "inside", it is called once. Default: inside,
        but for networks in step mode "s" and those whose neurons all have init_hidden=True.
    T: time steps, where they cannot be seen (a layer's own number of calls says otherwise).
    run: instead of time: called as run(net, sample), runs the whole sequence.
    Returns: LayerTable. Layers that are no convolution, linear layer or neuron are rows of kind "pool" or "other", and
        so is each place outside of a layer where matrices are multiplied (attention).
    Raises MemextError: no neuron in the network, a sample that it does not take, no layer ran.
    The network runs in evaluation mode, without gradients, from rest; its mode and states are then as they were.
    """
    if not isinstance(net, nn.Module):
        raise MemextError(f"layer_table: net is {type(net).__name__}; allowed: torch.nn.Module")
    if not isinstance(sample, Tensor) or sample.dim() < 2 or not sample.numel():
        raise MemextError(f"layer_table: sample is {type(sample).__name__}"
                          f"{f' of shape {tuple(sample.shape)}' if isinstance(sample, Tensor) else ''}; a tensor of at "
                          "least two dimensions is needed, real input with its batch")
    if time not in (None, *LOOPS):
        raise MemextError(f"layer_table: time is {time!r}; allowed: {', '.join(map(repr, LOOPS))} or None")
    inner = unwrapped(net)
    neurons = {module: (name or "net", host) for name, module in inner.named_modules() for host in hosts()
               if host.framework.is_neuron(module)}
    if not neurons:
        raise MemextError(f"layer_table: {type(inner).__name__} holds no spiking neuron of a framework that is "
                          "imported; of a network without, write the rows by hand: LayerTable.from_rows")
    multi_step = any(getattr(module, "step_mode", None) == "m" for module in neurons)
    outside = _is_outside(neurons, multi_step, time) and run is None
    batch = sample.shape[1] if (multi_step or outside) and sample.dim() > 1 else None
    watch = _Watch(inner, neurons, batch)
    with _as_it_was(inner, neurons), watch, torch.no_grad():
        try:
            if run is not None:
                run(net, sample)
            elif outside:
                for x in sample:
                    net(x)
            else:
                net(sample)
        except MemextError:
            raise
        except Exception as error:
            raise MemextError(f"layer_table: the network raised {type(error).__name__} on a sample of shape "
                              f"{tuple(sample.shape)}{', step by step' if outside else ''}: {error}") from error
        shared = _sharing(neurons, watch)
    steps = T or (len(sample) if multi_step or outside else min((n.calls for n in watch.neurons.values()), default=0))
    return _table(watch, steps, shared)


def _is_outside(neurons: dict, multi_step: bool, time: str | None) -> bool:
    if time is not None:
        return time == "outside"
    return not multi_step and all(getattr(module, "init_hidden", True) for module in neurons)


@contextlib.contextmanager
def _as_it_was(net: nn.Module, neurons: dict[nn.Module, tuple[str, Host]]) -> Iterator[None]:
    modes = {module: module.training for module in net.modules()}
    kept = [(module, host, name, host.get(module, name)) for module, (_, host) in neurons.items()
            for name in host.states(module)]
    try:
        with torch.random.fork_rng(devices=[]):
            net.eval()
            reset_copy(net)
            yield
    finally:
        reset_copy(net)
        for module, host, name, value in kept:
            host.set(module, name, value)
        for module, mode in modes.items():
            module.training = mode


class _Watch(TorchDispatchMode):
    """Hooks on every module while it is entered.  batch: samples; None: to be seen at the first neuron."""

    def __init__(self, net: nn.Module, neurons: dict[nn.Module, tuple[str, Host]], batch: int | None):
        super().__init__()
        self.net, self.known, self.batch = net, neurons, batch
        self.rows: dict[tuple, _Row] = {}
        self.neurons: dict[tuple, _Neuron] = {}
        self.loose: dict[str, int] = {}  # products outside of layers
        self.sizes: dict[nn.Module, int] = {}  # neurons of one call, all samples
        self._stack: list[tuple[str, bool]] = []
        self._last: _Row | None = None
        self._handles: list = []

    def __enter__(self):
        for name, module in self.net.named_modules():
            kind, reason = _kind(module, module in self.known)
            self._handles += [
                module.register_forward_pre_hook(
                    lambda m, args, name=name, kind=kind: self._stack.append((name, bool(kind)))),
                module.register_forward_hook(
                    lambda m, args, out, name=name, kind=kind, reason=reason: self._done(m, name, kind, reason, args,
                                                                                         out), always_call=True)]
        return super().__enter__()

    def __exit__(self, *problem):
        for handle in self._handles:
            handle.remove()
        return super().__exit__(*problem)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        if (name in _PRODUCTS or name.startswith(_PRODUCTS[-1])) and not any(known for _, known in self._stack):
            where = self._stack[-1][0] if self._stack else ""
            key = f"{name} in {where or 'the model itself'}"
            self.loose[key] = self.loose.get(key, 0) + 1
        return function(*args, **(kwargs or {}))

    def _done(self, module: nn.Module, name: str, kind: str, reason: str, args: tuple, out) -> None:
        self._stack.pop()
        if not kind or out is None or any(known for _, known in self._stack):
            return  # a container, a call that raised, or a part of a layer
        name = name or "net"
        if kind == "neuron":
            self._neuron(module, name, out)
            return
        x = next(iter(tensors_in(args)), None)
        if x is None:
            return
        row = self._row(module, name, kind, reason, x)
        if kind in ("pool", "other"):
            return
        row.images += self._images(module, x)
        row.values += x.numel()
        row.nonzero += int(torch.count_nonzero(x))
        row.real = row.real or bool(((x != 0) & (x != 1)).any())
        self._last = row

    def _row(self, module: nn.Module, name: str, kind: str, reason: str, x: Tensor) -> _Row:
        shape = tuple(x.shape)
        if kind in ("conv", "transposed"):
            dims = 2 if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) else 1
            shape = (shape[-dims - 1], *(1,) * (2 - dims), *shape[-dims:])
        elif kind == "linear":
            shape = (module.in_features, x.numel() // module.in_features // self._images(module, x), 1)
        else:
            shape = ()
        key = name, shape
        if key not in self.rows:
            again = sum(1 for other, _ in self.rows if other == name)
            self.rows[key] = _Row(f"{name}#{again + 1}" if again else name, module, shape, kind, reason)
        return self.rows[key]

    def _images(self, module: nn.Module, x: Tensor) -> int:
        """Evaluations in this call, over all samples."""
        if isinstance(module, nn.Linear):
            if getattr(module, "step_mode", None) == "m":
                return x.shape[0] * x.shape[1]
            batch = self.batch or x.shape[0]
            if x.dim() > 2 and x.shape[1] == batch and x.shape[0] % batch:
                return x.shape[0] * x.shape[1]  # a sequence, through a layer that does not mind
            return x.shape[0] if x.dim() > 1 else 1
        dims = 2 if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) else 1
        return math.prod(x.shape[:-dims - 1])

    def _neuron(self, module: nn.Module, name: str, out) -> None:
        spikes = next(iter(tensors_in(out)))
        in_sequence = getattr(module, "step_mode", None) == "m"
        if self.batch is None:
            self.batch = spikes.shape[0]
        row = self._last
        if row is not None and row.neuron not in ("", name):
            row = None  # there is one behind it already: a row of its own
        if row is not None:
            row.neuron = name
        key = name, row.name if row is not None else ""
        if key not in self.neurons:
            self.neurons[key] = _Neuron(name, row)
            if row is None:
                self.rows[name, ("neuron",)] = _Row(name, module, (), "neuron")
        found = self.neurons[key]
        found.updates += spikes.numel()
        found.calls += len(spikes) if in_sequence else 1
        self.sizes[module] = spikes.numel() // (len(spikes) if in_sequence else 1)


def _kind(module: nn.Module, neuron: bool) -> tuple[str, str]:
    """("", "") for a container, or a module that computes nothing by itself."""
    if neuron:
        return "neuron", ""
    for cls, kind in _CONVOLUTIONS.items():
        if isinstance(module, cls):
            return kind, ""
    if isinstance(module, nn.Linear):
        return "linear", ""
    if isinstance(module, _POOLS):
        return "pool", ""
    if isinstance(module, _NORMS):
        return "other", "normalisation; for inference it is folded into the layer before it"
    if next(module.children(), None) is None and next(module.parameters(recurse=False), None) is not None:
        return "other", f"a {type(module).__name__} is no convolution and no linear layer"
    return "", ""


def _sharing(neurons: dict[nn.Module, tuple[str, Host]], watch: _Watch) -> dict[str, tuple[int, str]]:
    """Per neuron: groups of channels that share a membrane, and a name for the membrane where several neurons do."""
    groups: dict[str, int] = {}
    holders: dict[int, list[str]] = {}
    for module, (name, host) in neurons.items():
        state = next((s for s in (host.get(module, key) for key in host.states(module)) if isinstance(s, Tensor)), None)
        if state is not None and state.numel() and module in watch.sizes:
            groups[name] = max(1, watch.sizes[module] // state.numel())
            holders.setdefault(id(state), []).append(name)
    shared = {name: f"shared{number}" for number, names in enumerate(names for names in holders.values()
                                                                    if len(names) > 1) for name in names}
    for name in {n.name for n in watch.neurons.values()}:
        if sum(1 for n in watch.neurons.values() if n.name == name) > 1:
            shared.setdefault(name, f"of {name}")  # one neuron behind several layers
    return {name: (groups.get(name, getattr(module, "_groups", 1)), shared.get(name, ""))  # states may be the caller's
            for module, (name, _) in neurons.items()}


def _table(watch: _Watch, steps: int, shared: dict[str, tuple[int, str]]) -> LayerTable:
    if not any(row.kind in ("conv", "transposed", "linear") for row in watch.rows.values()):
        raise MemextError("layer_table: no convolution or linear layer of the network ran on the sample")
    behind = {n.row.name: n for n in watch.neurons.values() if n.row is not None}
    rows, notes = [], []
    for row in watch.rows.values():
        if row.kind == "neuron":
            found = next(n for n in watch.neurons.values() if n.row is None and n.name == row.name)
            rows.append(dict(name=row.name, kind="neuron", **_neurons(found, watch.batch, steps, shared)))
            continue
        if row.kind in ("pool", "other"):
            rows.append(dict(name=row.name, kind=row.kind, neurons=0, reason=row.reason))
            continue
        after = behind.get(row.name)
        found = {"neurons": 0} if after is None else _neurons(after, watch.batch, steps, shared)
        weight = row.module.weight
        rows.append(dict(name=row.name, kind=row.kind, evaluations=max(1, row.images // watch.batch),
                         input_rate=row.nonzero / row.values, real_input=row.real,
                         weight_sparsity=1 - int(torch.count_nonzero(weight)) / weight.numel(), **_shape(row, notes),
                         **found))
    for place, times in watch.loose.items():
        rows.append(dict(name=place, kind="other", neurons=0,
                         reason=f"{times} matrix product{'s' * (times > 1)} outside of convolutions and linear layers"))
    return LayerTable.from_rows(rows, max(1, steps), notes)


def _neurons(n: _Neuron, batch: int, steps: int, shared: dict[str, tuple[int, str]]) -> dict:
    groups, membrane = shared[n.name]
    return dict(neurons=n.updates // batch // max(1, steps), groups_sharing=groups, membrane=membrane)


def _shape(row: _Row, notes: list[str]) -> dict:
    channels, height, width = row.shape
    m = row.module
    if row.kind == "linear":
        return dict(in_channels=channels, out_channels=m.out_features, height=height, width=width)
    padding, extra = _padding(m)
    if any(extra):
        notes.append(f"{row.name}: an even kernel with padding='same' pads one side more; that row is counted as input")
    found = dict(in_channels=channels, out_channels=m.out_channels, height=height + extra[0], width=width + extra[1],
                 kernel=_two(m.kernel_size, 1), stride=_two(m.stride, 1), padding=padding,
                 dilation=_two(m.dilation, 1), groups=m.groups)
    if row.kind == "transposed":
        found["output_padding"] = _two(m.output_padding, 0)
    return found


def _two(value: tuple[int, ...], missing: int) -> list[int]:
    return [missing] * (2 - len(value)) + list(value)


def _padding(m: nn.Module) -> tuple[list[int], list[int]]:
    """Padding on both sides, and what "same" adds to one side."""
    if not isinstance(m.padding, str):
        return _two(m.padding, 0), [0, 0]
    total = [d * (k - 1) if m.padding == "same" else 0 for d, k in zip(m.dilation, m.kernel_size)]
    return _two([n // 2 for n in total], 0), _two([n % 2 for n in total], 0)
