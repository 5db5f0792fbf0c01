"""The method, when a model is called for the first time: applied where it can be, and said where it cannot."""
from __future__ import annotations

import gc
import importlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import ModuleType

import torch
from torch import nn

from ..errors import MemextError
from ..plan import choose, plan
from ..temporal import Host
from . import _loops, _sequences

__all__ = ["Applied", "apply", "prepare"]

THROUGH_TIME = {"reverse": "reverse", "sltt": "online"}  # method -> unroll's


@dataclass
class Applied:
    """Of one model. methods: what was done, e.g. ["recompute"].  notes: what was not, and why; what was chosen.

    loops: classes that changed: (class, its forward as written).  measured: by _probe, later.
    """

    methods: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    loops: list[tuple[type, object]] = field(default_factory=list)
    measured: object = None


def prepare(method: str, adapter: ModuleType, notes: list[str], compare: Callable) -> None:
    """When an adapter is loaded: the framework's own loops over time, and what it does for a run at all.

    compare(net, native, ours): runs a step of a framework's own loop on copies of `net`, its way and ours.
    """
    def say(text: str) -> None:
        if text not in notes:
            notes.append(text)

    name = f"{adapter.__name__}._run"
    if importlib.util.find_spec(name) is not None:
        own = importlib.import_module(name)
        own.begin(say)
        if method in THROUGH_TIME:
            own.replace_loops(THROUGH_TIME[method], say, _loops.framework_loop, compare)


def apply(options, hosts: Sequence[Host], net: nn.Module, args: tuple, kwargs: dict) -> Applied:
    """Changes `net` in place; what cannot be done falls back to "neuron", with the reason in the notes."""
    done = Applied()
    for host in hosts:
        if any(host.framework.is_neuron(module) for module in net.modules()):
            adapter = importlib.import_module(host.framework.package)
            _apply(options, host, adapter, net, args, kwargs, done)
    return done


def _apply(options, host: Host, adapter: ModuleType, net: nn.Module, args, kwargs, done: Applied) -> None:
    name = options.method
    if name in ("neuron", "compress", "recompute"):
        _retrofit(host, adapter, net, name, {}, done)
        return
    if name == "share":
        _share(host, adapter, net, args, done)
        return
    if name == "auto":
        _auto(options, host, adapter, net, args, kwargs, done)
        return
    _retrofit(host, adapter, net, "neuron", {}, done)
    through_time(name, host, net, done)


def _retrofit(host: Host, adapter: ModuleType, net: nn.Module, method: str, given: dict, done: Applied) -> None:
    offered = importlib.import_module(f"{host.framework.package}.retrofit").METHODS
    if method not in offered:
        done.notes.append(f"{method!r} is for whole sequences, and {host.framework.name}'s neurons are called once a "
                          "step: 'neuron' instead (--method reverse goes through time)")
        method, given = "neuron", {}
    try:
        adapter.retrofit(net, method, **given)
        done.methods.append(method)
    except MemextError as problem:
        done.notes.append(str(problem))
        if method != "neuron":
            _retrofit(host, adapter, net, "neuron", {}, done)


def through_time(name: str, host: Host, net: nn.Module, done: Applied) -> None:
    """reverse and sltt, where time is seen: in loops inside a forward, and in modules that take whole sequences."""
    method = THROUGH_TIME[name]
    changed, why = _loops.rewrite(net, method)
    stepped, why_not = _sequences.step_through(host, net, method)
    done.loops += changed
    done.notes += [f"{name}: {base.__name__}.forward, its loop over time" for base, _ in changed]
    done.notes += [f"{name}: {what}" for what in stepped]
    if changed or stepped:
        done.methods = [name]
        done.notes += [f"{name}: not {reason}" for reason in [*why, *why_not]]
        return
    loop = _loops.framework_loop.get()
    if loop is not None:
        done.methods = [name]
        done.notes.append(f"{name}: {loop}")
        return
    reasons = [*why, *why_not]
    if not reasons:
        reasons = [f"{type(net).__name__}: its neurons are called once a step, by a loop that is in the program and in "
                   "no module's forward, where it cannot be seen; write it into a forward, or call "
                   "shared_core.temporal.unroll there"]
    done.notes += [f"{name}: not {reason}. 'neuron' instead" for reason in reasons]


def _share(host: Host, adapter: ModuleType, net: nn.Module, args, done: Applied) -> None:
    sample = args[0] if args and isinstance(args[0], torch.Tensor) else None
    try:
        adapter.share(net, layers="auto", batch_norm="per_step", sample=sample)
        done.methods.append("share")
        done.notes.append("share: layers of equal size share a membrane, batch norm takes its statistics per step; "
                          "that is another network than the program's, to be trained from the start")
    except MemextError as problem:
        done.notes.append(f"share: {problem}. 'neuron' instead")
        _retrofit(host, adapter, net, "neuron", {}, done)


def _auto(options, host: Host, adapter: ModuleType, net: nn.Module, args, kwargs, done: Applied) -> None:
    if kwargs or not args or not all(isinstance(t, torch.Tensor) for t in args):
        done.notes.append(f"auto: {type(net).__name__} is called with more than tensors, so its memory cannot be "
                          "planned: 'neuron' instead")
        _retrofit(host, adapter, net, "neuron", {}, done)
        return
    loops, _ = _loops.found(net)
    if not loops and _single_steps(host, net):
        done.notes.append("auto: the model is called once a step, by a loop in the program; how many steps there will "
                          "be cannot be seen, so nothing is planned: 'neuron' instead")
        _retrofit(host, adapter, net, "neuron", {}, done)
        return
    try:
        found = plan(net, tuple(args), options.budget, _optimizer_of(net), batch_dim=0)
    except MemextError as problem:
        done.notes.append(f"auto: {problem}: 'neuron' instead")
        _retrofit(host, adapter, net, "neuron", {}, done)
        return
    mine = found.chosen or found.smallest
    said = f"auto: {mine.name}, planned peak {mine.peak.peak / 2**20:.1f} MiB of {options.budget / 2**20:.1f} MiB"
    if found.chosen is None:
        said += "; nothing fits, this is the smallest"
        if loops:
            _retrofit(host, adapter, net, "neuron", {}, done)
            through_time("reverse", host, net, done)
            done.notes.append(f"{said}; 'reverse' instead, which is not planned, as a forward loops over time")
            return
    done.notes.append(said)
    if found.chosen is None:
        _retrofit(host, adapter, net, mine.method, dict(mine.options), done)
        return
    method, given = choose(found)
    if method == "native":
        adapter.restore(net)
        done.methods.append("native")
        return
    _retrofit(host, adapter, net, method, given, done)


def _single_steps(host: Host, net: nn.Module) -> bool:
    """Are its neurons called once a step? SpikingJelly's say so; snnTorch's always are."""
    modes = {getattr(m, "step_mode", "s") for m in net.modules() if host.framework.is_neuron(m)}
    return modes == {"s"}


def _optimizer_of(net: nn.Module):
    """The program's optimizer, if it is made by now."""
    own = {id(p) for p in net.parameters()}
    for thing in gc.get_objects():
        if isinstance(thing, torch.optim.Optimizer):
            if any(id(p) in own for group in thing.param_groups for p in group["params"]):
                return thing
    return None
