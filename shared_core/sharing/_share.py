"""share: the plan of who becomes what, made real by the machinery of retrofit."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import ClassVar

from torch import nn

from .._entering import Change, entered, leave, plain_type
from .._groups import check_groups
from ..errors import MemextError
from ..retrofit import Framework, Plan, Retrofitter
from . import _groups
from ._layers import Layer, SharingHost, layers_of, observe
from ._regions import regions
from ._stepped import PREFER, TimeOutermost, training_norms

__all__ = ["Sharer"]

METHOD = "share"
PER_STEP = "per_step"


class Sharer:
    """share(net, ...) for one framework; `restore` and `report` are those of the adapter's Retrofitter."""

    known: ClassVar[dict[str, Sharer]] = {}

    def __init__(self, host: SharingHost):
        self.host = host
        self.known.setdefault(host.framework.name, self)
        self.where = f"{host.framework.package}.share"
        TimeOutermost.hosts[host.framework.name] = host
        self._retrofitter = Retrofitter(host.framework, {METHOD: partial(_plan, host=host)})

    def share(self, net: nn.Module, **options) -> nn.Module:
        try:
            return self._retrofitter.retrofit(net, METHOD, **options)
        except MemextError as problem:
            own = f"{self._retrofitter.framework.package}.retrofit"
            raise MemextError(str(problem).replace(own, self.where)) from problem.__cause__


def _plan(framework: Framework, net: nn.Module, layers=None, channels: int = 1, batch_norm: str | None = None,
          sample=None, per_stage: int | None = None, skip: Sequence[str] | None = None, prefer: str = "balanced",
          *, host: SharingHost) -> Plan:
    where = f"{framework.package}.share"
    _check(where, layers, channels, batch_norm, per_stage, skip, prefer)
    everyone = layers_of(host, net)
    if not everyone:
        raise MemextError(f"{where}: this {type(net).__name__} has no neuron of the framework")
    left = {name for pattern in skip or () for name in _groups.named(where, net, everyone, pattern, "skip")}
    open_ = [layer for layer in everyone if layer.name not in left]
    alone: dict[str, str] = dict.fromkeys(left, "named in skip")
    if isinstance(layers, str) and sample is None:
        return _later(net, dict(layers=layers, channels=channels, batch_norm=batch_norm, per_stage=per_stage, skip=skip,
                                prefer=prefer), host)
    ran = observe(host, net, open_, sample) if sample is not None else []
    if isinstance(layers, str):
        groups, found_alone = _groups.found(host, net, ran, per_stage, lambda layer: host.joined_class(layer.neuron)[1])
        alone |= {layer.name: "it does not run on the sample" for layer in open_} | found_alone
        if not groups and channels == 1:
            raise MemextError(f"{where}: no two neurons can share a membrane: "
                              + "; ".join(f"{layer.name}: {alone[layer.name]}" for layer in open_))
        alone = {name: why for name, why in alone.items() if not any(name in names for names in groups)}
    else:
        groups = _groups.listed(where, net, open_, layers) if layers is not None else []
        seen = {layer.name for layer in ran}
        for name in (name for names in groups for name in names if ran and name not in seen):
            raise MemextError(f"{where}: {name!r} does not run on the sample")
    by_name = {layer.name: layer for layer in everyone}
    for names in groups:
        _groups.check(host, where, by_name, names)
    return _changes(host, net, where, by_name, open_, groups, channels, batch_norm, prefer, alone)


def _changes(host: SharingHost, net: nn.Module, where: str, by_name: Mapping[str, Layer], open_: Sequence[Layer],
             groups, channels: int, batch_norm: str | None, prefer: str, alone: Mapping[str, str]) -> Plan:
    plan, joined = Plan(), {name for names in groups for name in names}
    for names in groups:
        neurons = [by_name[name].neuron for name in names]
        for name, m, attributes in zip(names, neurons, host.set_joined(neurons, names)):
            if channels > 1:
                _check_channels(where, by_name[name], host, channels)
                attributes = {**attributes, **host.set_channels(m, channels)}
            plan.changes.append(Change(name, m, host.joined_class(m)[0], attributes))
    for layer in open_:
        if layer.name in joined:
            continue
        cls, why = host.channel_class(layer.neuron) if channels > 1 else (None, alone.get(layer.name, "not named"))
        if cls is None:
            plan.skipped.append((layer.name, layer.neuron, why))
            continue
        _check_channels(where, layer, host, channels)
        plan.changes.append(Change(layer.name, layer.neuron, cls, host.set_channels(layer.neuron, channels)))
    plan.skipped += [(name, by_name[name].neuron, why) for name, why in alone.items()
                     if by_name[name] not in open_]
    if not plan.changes:
        reasons = "; ".join(f"{name}: {why}" for name, _, why in plan.skipped)
        raise MemextError(f"{where}: no neuron can be changed: {reasons}")
    if channels > 1:
        plan.notes.append(f"channels of every neuron that is changed: {channels} groups share a membrane")
    _bring_time_outside(host, net, where, by_name, groups, batch_norm, prefer, plan)
    return plan


def _bring_time_outside(host: SharingHost, net: nn.Module, where: str, by_name: Mapping[str, Layer], groups,
                        batch_norm: str | None, prefer: str, plan: Plan) -> None:
    """Adds the modules that step through time."""
    if host.one_step is None:
        return
    at: dict[str, list] = {}
    for region in regions(host, net, groups):
        neuron = by_name[region.names[0]].neuron
        parts = region.parts(net)
        for m_name, m in ((n, m) for part in parts for n, m in part.named_modules()):
            why = host.needs_sequence(m)
            if why is not None:
                raise MemextError(f"{where}: {', '.join(region.names)} cannot share a membrane: {m_name!r} inside "
                                  f"{region.path!r} ({type(m).__name__}) {why}")
        if batch_norm is None and host.on_sequences(neuron) and training_norms(parts):
            raise MemextError(f"{where}: between {', '.join(region.names)} batch norm is in training mode. Layers that "
                              "share a membrane run step by step, so its statistics would be those of one step "
                              "(another model than multi-step batch norm, also without sharing); pass "
                              "batch_norm='per_step' to have it so, or call net.eval() first to use the running "
                              "statistics")
        at.setdefault(region.path, []).append((region, neuron))
    for path, here in at.items():
        module = net.get_submodule(path)
        runs = sorted(region.run for region, _ in here) if here[0][0].run is not None else None
        stepped = TimeOutermost(host.framework.name, path, module, runs, here[0][1], batch_norm == PER_STEP, prefer)
        plan.changes.append(Change(path or "(the model itself)", module, plain_type(module), {"forward": stepped}))


def _check(where: str, layers, channels, batch_norm, per_stage, skip, prefer) -> None:
    if isinstance(layers, str) and layers != "auto":
        raise MemextError(f"{where}: layers is {layers!r}; allowed: {_groups.FORM}")
    check_groups(f"{where}: channels", channels)
    if batch_norm not in (None, PER_STEP):
        raise MemextError(f"{where}: batch_norm is {batch_norm!r}; allowed: 'per_step', or None")
    if per_stage is not None and (isinstance(per_stage, bool) or not isinstance(per_stage, int) or per_stage < 1
                                  or layers != "auto"):
        raise MemextError(f"{where}: per_stage is {per_stage!r} with layers={layers!r:.40}; a number of membranes, at "
                          "least 1, is allowed with layers='auto'")
    if layers is None and channels == 1:
        raise MemextError(f"{where}: layers is None and channels is 1, so nothing is to be shared; pass layers='auto' "
                          "or lists of names, or channels=2")
    if isinstance(skip, str) or not (skip is None or isinstance(skip, Sequence)):
        raise MemextError(f"{where}: skip is {skip!r:.80}; a list of names or patterns is needed")
    if prefer not in PREFER:
        raise MemextError(f"{where}: prefer is {prefer!r}; allowed: {', '.join(map(repr, PREFER))}")


def _check_channels(where: str, layer: Layer, host: SharingHost, channels: int) -> None:
    why = host.channel_class(layer.neuron)[1]
    if why is not None:
        raise MemextError(f"{where}: channels is {channels}, and the channels of {layer.name!r} "
                          f"({type(layer.neuron).__name__}) cannot share a membrane: {why}")
    if layer.size is not None and (not layer.size or layer.size[0] % channels):
        raise MemextError(f"{where}: channels is {channels}, and {layer.name!r} has activations of size {layer.size}, "
                          f"whose channels cannot be split into {channels} groups of equal size; pass "
                          f"skip=[{layer.name!r}], or another number")


# ---- "auto" without a sample -----------------------------------------------------------------------------------------

def _later(net: nn.Module, options: dict, host: SharingHost) -> Plan:
    change = Change("(the model itself)", net, plain_type(net), {"forward": AtFirstForward(host.framework.name, net,
                                                                                          options)})
    return Plan([change])


class AtFirstForward:
    """What stands as `forward` on a net until it is first called: then its input is the sample."""

    def __init__(self, framework: str, net: nn.Module, options: dict):
        self.framework, self.net, self.options = framework, net, options

    def notes(self) -> list[str]:
        return ["auto without a sample: what is shared is decided at the first forward pass"]

    def __call__(self, *args, **kwargs):
        net = self.net
        if kwargs or entered(net)[-1].attributes != ("forward",):
            raise MemextError("share: layers='auto' was asked for without a sample, and the first forward pass has "
                              f"keywords {sorted(kwargs)}; call share with sample=x")
        record = leave(net)
        try:
            Sharer.known[self.framework].share(net, sample=args, **self.options)
        except MemextError:
            Change("", net, record.ours, {"forward": self}).apply(self.framework, METHOD)
            raise
        return net.forward(*args)
