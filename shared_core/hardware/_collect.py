"""A LayerTable from a network: it is run once on real input, and what its modules take and give is noted (_watch.py).

Here calls become rows: by the numbers of samples and time steps, which the run tells, and by who shares a membrane.
"""
from __future__ import annotations

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .._plan_copy import reset_copy, unwrapped
from ..errors import MemextError
from ..temporal._hosts import Host, imported
from ._watch import Loose, NeuronCalls, Seen, Watch, is_of_no_framework, takes_sequences
from .table import LayerTable

__all__ = ["layer_table"]

LOOPS = ("outside", "inside")


def layer_table(net: nn.Module, sample: Tensor, *, time: str | None = None, T: int | None = None,
                run: Callable[[nn.Module, Tensor], object] | None = None) -> LayerTable:
    """The layers of a SpikingJelly or snnTorch network, with what they take on `sample`: shapes, time steps, spike
    rates, zero weights, neurons and shared membranes.

    sample: a batch of real input. [T, N, ...] where the network takes a sequence, or is stepped by the caller; what the
        network takes where it steps through time itself, or shows images T times.
    time: "outside", the network is called once for each step of sample; "inside", it is called once. Default: inside,
        but for networks in step mode "s" and those whose neurons all have init_hidden=True.
    T: time steps; default: as often as most neurons are updated.
    run: instead of time: called as run(net, sample), runs the whole sequence.
    Returns: LayerTable. Layers that are no convolution, linear layer or neuron are rows of kind "pool" or "other", and
        so is each place outside of a layer where matrices are multiplied (attention), or values pooled or normalised.
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
    if T is not None and (isinstance(T, bool) or not isinstance(T, int) or T < 1):
        raise MemextError(f"layer_table: T is {T!r}; allowed: whole numbers from 1 on, or None")
    net = unwrapped(net)  # hooks of a compiled module's parts may not be called
    frameworks = imported()
    neurons = {module: (name or "net", host) for name, module in net.named_modules() for host in frameworks
               if host.framework.is_neuron(module)}
    if not neurons and not any(is_of_no_framework(module) for module in net.modules()):
        raise MemextError(f"layer_table: {type(net).__name__} holds no spiking neuron of a framework that is "
                          "imported; of a network without, write the rows by hand: LayerTable.from_rows")
    outside = run is None and _is_outside(neurons, time)
    watch = Watch(net, neurons, *((sample.shape[1], len(sample)) if outside else (None, None)))
    with _as_it_was(net, frameworks), watch, torch.no_grad():
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
    return _table(watch, T or watch.steps or _usual([n.calls for n in watch.neurons.values()]), shared)


def _usual(calls: list[int]) -> int:
    """The time steps: how often most neurons were updated (one that several layers share is in the list for each)."""
    return Counter(calls).most_common(1)[0][0] if calls else 1


def _is_outside(neurons: dict[nn.Module, tuple[str, Host]], time: str | None) -> bool:
    if time is not None:
        return time == "outside"
    return bool(neurons) and all(not takes_sequences(module) and getattr(module, "init_hidden", True)
                                 for module in neurons)


@contextlib.contextmanager
def _as_it_was(net: nn.Module, frameworks: Sequence[Host]) -> Iterator[None]:
    """Evaluation mode and states at rest inside; outside, modes, states and random numbers are what they were."""
    modes = {module: module.training for module in net.modules()}
    kept = [(module, host, name, host.get(module, name)) for module in net.modules() for host in frameworks
            for name in host.states(module)]
    gpus = {p.device for p in net.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=list(gpus)):
            net.eval()
            reset_copy(net)
            yield
    finally:
        reset_copy(net)
        for module, host, name, value in kept:
            host.set(module, name, value)
        for module, mode in modes.items():
            module.training = mode


def _sharing(neurons: dict[nn.Module, tuple[str, Host]], watch: Watch) -> dict[str, tuple[int, str]]:
    """Per neuron: groups of channels that share a membrane, and a name for the membrane where several neurons do."""
    groups: dict[str, int] = {}
    holders: dict[int, list[str]] = {}
    for module, (name, host) in neurons.items():
        state = next((s for s in (host.get(module, key) for key in host.states(module)) if isinstance(s, Tensor)), None)
        if state is not None and state.numel() and module in watch.sizes:
            groups[name] = max(1, watch.sizes[module] // state.numel())
            holders.setdefault(id(state), []).append(name)
    joined = [set(names) for names in holders.values()]
    joined += [{name, giver} for name, giver in watch.handed.items()]  # states that the caller keeps
    shared = {name: f"shared{number}" for number, names in enumerate(_merged(joined)) for name in names}
    places: dict[str, set[str | None]] = {}
    for n in watch.neurons.values():
        places.setdefault(n.name, set()).add(None if n.behind is None else n.behind.name)
    for name, layers in places.items():
        if len(layers) > 1:
            shared.setdefault(name, f"of {name}")  # one neuron behind several layers
    return {name: (groups.get(name, getattr(module, "_groups", 1)), shared.get(name, ""))
            for module, (name, _) in neurons.items()}


def _merged(sets: list[set[str]]) -> list[set[str]]:
    """Sets that have a member in common, as one; those of one member are left out."""
    found: list[set[str]] = []
    for one in sets:
        for other in [other for other in found if other & one]:
            found.remove(other)
            one = one | other
        found.append(one)
    return [one for one in found if len(one) > 1]


class _Size(NamedTuple):
    """Of one sample's input: channels, height, width.  images: evaluations of all samples in one call."""

    channels: int
    height: int
    width: int
    images: int


def _table(watch: Watch, steps: int, shared: dict[str, tuple[int, str]]) -> LayerTable:
    if not any(seen.kind in ("conv", "transposed", "linear") for seen in watch.seen.values()):
        raise MemextError("layer_table: no convolution or linear layer of the network ran on the sample")
    batch = watch.batch or 1
    rows: list[dict] = []
    notes: list[str] = []
    sizes: dict[str, int] = {}  # a layer may have inputs of several
    for calls in _same_size(watch, batch, steps):
        first = calls[0][0]
        sizes[first.name] = sizes.get(first.name, 0) + 1
        name = first.name if sizes[first.name] == 1 else f"{first.name}#{sizes[first.name]}"
        behind = [n for n in watch.neurons.values() if any(n.behind is seen for seen, _ in calls)]
        if first.kind == "neuron":
            behind = [n for n in watch.neurons.values() if n.behind is None and n.name == first.name]
            rows.append(dict(name=name, kind="neuron", **_neurons(behind, batch, steps, shared)))
        elif first.kind in ("pool", "other"):
            rows.append(dict(name=name, kind=first.kind, neurons=0, reason=_reason(calls, batch)))
        else:
            rows.append(dict(name=name, kind=first.kind, **_rates(calls, batch), **_shape(first, calls[0][1], notes),
                             **_neurons(behind, batch, steps, shared)))
    rows += [dict(name=place, kind=loose.kind, neurons=0, reason=_reason_of_loose(loose, batch))
             for place, loose in watch.loose.items()]
    return LayerTable.from_rows(rows, max(1, steps), notes)


def _same_size(watch: Watch, batch: int, steps: int) -> list[list[tuple[Seen, _Size]]]:
    """Calls of a layer with inputs of one size, whether they came step by step or as a sequence, are one row."""
    found: dict[tuple, list[tuple[Seen, _Size]]] = {}
    for seen in watch.seen.values():
        size = _size(seen, batch, steps)
        key = (seen.name, "neuron") if seen.kind == "neuron" else (seen.name, *size[:3])
        found.setdefault(key, []).append((seen, size))
    return list(found.values())


def _size(seen: Seen, batch: int, steps: int) -> _Size:
    shape, module = seen.shape, seen.module
    if seen.kind in ("conv", "transposed"):
        dims = 2 if isinstance(module, nn.Conv2d | nn.ConvTranspose2d) else 1
        size = (*(1,) * (2 - dims), *shape[-dims:])
        return _Size(shape[-dims - 1], *size, math.prod(shape[:-dims - 1]))
    if seen.kind == "linear":
        images = shape[0] if len(shape) > 1 else 1
        sequence = getattr(module, "step_mode", None) == "m" or shape[:2] == (steps, batch) or shape[0] % batch
        if len(shape) > 2 and sequence and shape[1] == batch:
            images *= batch
        return _Size(shape[-1], math.prod(shape[:-1]) // images, 1, images)
    return _Size(0, 0, 0, 0)


def _rates(calls: list[tuple[Seen, _Size]], batch: int) -> dict:
    weight = calls[0][0].module.weight
    return dict(evaluations=max(1, sum(size.images * seen.calls for seen, size in calls) // batch),
                input_rate=sum(seen.nonzero for seen, _ in calls) / sum(seen.values for seen, _ in calls),
                real_input=any(seen.real for seen, _ in calls),
                weight_sparsity=1 - int(torch.count_nonzero(weight)) / weight.numel())


def _neurons(found: list[NeuronCalls], batch: int, steps: int, shared: dict[str, tuple[int, str]]) -> dict:
    """found: one neuron, in several lines where its inputs came both step by step and as a sequence."""
    if not found:
        return {"neurons": 0}
    calls, first = sum(n.calls for n in found), found[0]
    groups, membrane = shared.get(first.name, (1, ""))
    return dict(neurons=sum(n.updates for n in found) // calls // batch, stateless=first.stateless,
                neuron_runs=None if calls == steps else calls, groups_sharing=groups, membrane=membrane)


def _reason(calls: list[tuple[Seen, _Size]], batch: int) -> str:
    first = calls[0][0]
    if first.kind != "pool":
        return first.reason
    count = sum(seen.values for seen, _ in calls)  # a window of k * k takes that many inputs for each output
    size = getattr(first.module, "kernel_size", None)
    if size is not None:
        sides = size if isinstance(size, tuple) else (size,) * int(type(first.module).__name__[-2])
        count = sum(seen.outputs for seen, _ in calls) * math.prod(sides)
    return f"{count // batch} {first.reason} for a sample"


def _reason_of_loose(loose: Loose, batch: int) -> str:
    calls = f"{loose.times} {loose.what}{'s' * (loose.times > 1 and loose.what == 'matrix product')}"
    macs = f", {loose.macs // batch} multiply-adds for a sample" if loose.macs else ""
    return f"{calls} outside of convolutions and linear layers{macs}"


def _shape(seen: Seen, size: _Size, notes: list[str]) -> dict:
    channels, height, width, _ = size
    m = seen.module
    if seen.kind == "linear":
        return dict(in_channels=channels, out_channels=m.out_features, height=height, width=width)
    padding, extra = _padding(m)
    if any(extra):
        notes.append(f"{seen.name}: an even kernel with padding='same' pads one side more, which is counted as input")
    found = dict(in_channels=channels, out_channels=m.out_channels, height=height + extra[0], width=width + extra[1],
                 kernel=_two(m.kernel_size, 1), stride=_two(m.stride, 1), padding=padding,
                 dilation=_two(m.dilation, 1), groups=m.groups)
    if seen.kind == "transposed":
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
