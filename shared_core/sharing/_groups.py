"""Which layers share a membrane: as listed, or found; and why layers cannot."""
from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from itertools import groupby

from torch import nn

from ..errors import MemextError
from ._layers import Layer, SharingHost

__all__ = ["check", "found", "listed", "named"]

FORM = "'auto', None, or lists of names of neurons, one list per membrane: [['layer1.0.sn1', 'layer1.1.sn1'], ...]"


def named(where: str, net: nn.Module, layers: Sequence[Layer], pattern: str, option: str) -> list[str]:
    """Names of the neurons that a name or pattern ("layer1.*.sn1") of the user's means, in the order of modules."""
    if not isinstance(pattern, str):
        raise MemextError(f"{where}: {option} holds {pattern!r}; {FORM if option == 'layers' else 'names'} allowed")
    found = [layer.name for layer in layers if fnmatchcase(layer.name, pattern) or layer.name == pattern]
    if found:
        return found
    module = dict(net.named_modules(remove_duplicate=False)).get(pattern)
    if module is None:
        near = ", ".join(layer.name for layer in layers[:6])
        raise MemextError(f"{where}: {option} names {pattern!r}, and the net has no module of that name; its neurons "
                          f"are {near}{', ...' if len(layers) > 6 else ''}")
    other = next((layer.name for layer in layers if layer.neuron is module), None)
    if other is not None:
        return [other]
    raise MemextError(f"{where}: {option} names {pattern!r}, which is no neuron but {type(module).__name__}; only "
                      "neurons have a membrane to share")


def listed(where: str, net: nn.Module, layers: Sequence[Layer], wanted) -> list[list[str]]:
    """The groups that the user lists. Raises MemextError: no lists of names; unknown or named twice; one name."""
    if isinstance(wanted, str) or not isinstance(wanted, Sequence):
        raise MemextError(f"{where}: layers is {wanted!r:.80}; allowed: {FORM}")
    if wanted and all(isinstance(name, str) for name in wanted):
        wanted = [wanted]
    groups: list[list[str]] = []
    taken: dict[str, int] = {}
    for i, patterns in enumerate(wanted):
        if isinstance(patterns, str) or not isinstance(patterns, Sequence):
            raise MemextError(f"{where}: layers[{i}] is {patterns!r:.80}; allowed: {FORM}")
        names = [name for pattern in patterns for name in named(where, net, layers, pattern, "layers")]
        for name in names:
            if name in taken:
                raise MemextError(f"{where}: {name!r} is in layers[{taken[name]}] and layers[{i}]; a neuron has one "
                                  "membrane, so it can be named once")
            taken[name] = i
        if len(names) < 2:
            raise MemextError(f"{where}: layers[{i}] names {names[0]!r} only; two or more neurons share a membrane"
                              if names else f"{where}: layers[{i}] is empty; two or more neurons share a membrane")
        groups.append(names)
    return groups


def found(host: SharingHost, net: nn.Module, ran: Sequence[Layer], per_stage: int | None,
          why_not: Callable[[Layer], str | None]) -> tuple[list[list[str]], dict[str, str]]:
    """The groups of "auto", and why other neurons are in none: (groups, {name: reason}).

    ran: in running order. Joined are neurons that follow each other within a stage, with equal sizes and parameters. A
    stage is the outermost Sequential around a neuron, or, where there is none, the module that holds it. In a stage of
    blocks with several neurons each, the first neurons of the blocks share a membrane and the second ones another
    (per_stage=2), which is what the paper's Table I implies; elsewhere all share one.
    """
    groups, alone = [], {layer.name: why for layer in ran if (why := why_not(layer)) is not None}
    for _, alike in groupby(ran, key=lambda layer: _kind(host, net, layer, alone)):
        run = list(alike)
        if run[0].name in alone:
            continue
        positions, blocks = _positions(net, run)
        membranes = per_stage or (2 if blocks else 1)
        for which in range(min(membranes, len(run))):
            names = [layer.name for layer, at in zip(run, positions) if at % membranes == which]
            if len(names) > 1:
                groups.append(names)
            else:
                alone |= dict.fromkeys(names, "no neuron before or after it in its stage has the same activation size "
                                              "and parameters")
    return groups, alone


def _kind(host: SharingHost, net: nn.Module, layer: Layer, alone: Mapping[str, str]) -> tuple:
    if layer.name in alone:
        return (layer.name,)
    return _stage(net, layer.name), layer.size, tuple(sorted(host.parameters(layer.neuron).items(), key=lambda p: p[0]))


def _stage(net: nn.Module, name: str) -> str:
    parts = name.split(".")[:-1]
    for depth in range(len(parts) + 1):
        path = ".".join(parts[:depth])
        if isinstance(net.get_submodule(path), nn.Sequential):
            return path
    return ".".join(parts)


def _positions(net: nn.Module, run: Sequence[Layer]) -> tuple[list[int], bool]:
    """Where each neuron stands in its block, and whether there are blocks; else where it stands in the run."""
    parents = [layer.name.rpartition(".")[0] for layer in run]
    blocks = len(set(parents)) > 1 and any(parents.count(p) > 1 and not isinstance(net.get_submodule(p), nn.Sequential)
                                           for p in parents)
    if not blocks:
        return list(range(len(run))), False
    return [parents[:i].count(p) for i, p in enumerate(parents)], True


def check(host: SharingHost, where: str, layers: Mapping[str, Layer], names: Sequence[str]) -> None:
    """Raises MemextError, with names and reason, if these cannot share a membrane."""
    first = layers[names[0]]
    for name in names:
        why = host.joined_class(layers[name].neuron)[1]
        if why is not None:
            raise MemextError(f"{where}: {name!r} ({type(layers[name].neuron).__name__}) cannot share its membrane "
                              f"with another layer: {why}")
    wanted = host.parameters(first.neuron)
    for name in names[1:]:
        other, has = layers[name], host.parameters(layers[name].neuron)
        differs = [key for key in wanted if wanted[key] != has.get(key)]
        if differs:
            said = ", ".join(f"{key} ({wanted[key]} and {has.get(key)})" for key in differs)
            raise MemextError(f"{where}: {first.name!r} and {name!r} differ in {said}; layers that share a membrane "
                              "need equal parameters")
        if first.size is not None and other.size is not None and first.size != other.size:
            raise MemextError(f"{where}: {first.name!r} has activations of size {first.size}, {name!r} of "
                              f"{other.size}; layers that share a membrane need one size")
