"""The smallest part of a net that holds a whole group: time is outermost there, and nowhere else.

A part is a module, or some consecutive children of a Sequential. In a Sequential it begins behind the last neuron
before the group, so that the convolution and the norm in front of the first neuron belong to it: it then keeps spikes
for its backward pass, not what a norm made of them, and each layer of the group has its norm inside.
"""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from ._layers import SharingHost

__all__ = ["Region", "is_chain", "regions"]


@dataclass(frozen=True)
class Region:
    """Module `path` of the net; with `run`, its children run[0] to run[1] - 1 only.  names: the neurons it is for."""

    path: str
    run: tuple[int, int] | None
    names: tuple[str, ...]

    def parts(self, net: nn.Module) -> list[nn.Module]:
        module = net.get_submodule(self.path)
        return [module] if self.run is None else list(module)[slice(*self.run)]

    def holds(self, net: nn.Module, path: str) -> bool:
        """Is module `path` in it?"""
        if self.path and path != self.path and not path.startswith(self.path + "."):
            return False
        if self.run is None:
            return True
        inside = path[len(self.path):].lstrip(".")
        children = list(net.get_submodule(self.path)._modules)
        return bool(inside) and self.run[0] <= children.index(inside.split(".")[0]) < self.run[1]


def is_chain(module: nn.Module) -> bool:
    """A Sequential that calls its children one after the other, and is called on what the first one gets."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def regions(host: SharingHost, net: nn.Module, groups: Iterable[Sequence[str]]) -> list[Region]:
    """One region per group, and those that overlap made one."""
    found: list[Region] = []
    for names in groups:
        new = _smallest(host, net, names)
        while True:
            others = [r for r in found if _overlap(net, r, new)]
            if not others:
                break
            found = [r for r in found if r not in others]
            new = _smallest(host, net, [*new.names, *(name for r in others for name in r.names)])
        found.append(new)
    return found


def _overlap(net: nn.Module, a: Region, b: Region) -> bool:
    return any(a.holds(net, name) for name in b.names) or any(b.holds(net, name) for name in a.names)


def _smallest(host: SharingHost, net: nn.Module, names: Sequence[str]) -> Region:
    common = names[0].split(".")[:-1]
    for name in names[1:]:
        parts = name.split(".")[:-1]
        same = [i for i, (a, b) in enumerate(zip(common, parts)) if a != b]
        common = common[:min(same[0] if same else len(parts), len(parts), len(common))]
    while common and isinstance(net.get_submodule(".".join(common)), nn.ModuleList | nn.ModuleDict):
        common.pop()  # these have no forward
    path = ".".join(common)
    module = net.get_submodule(path)
    if not is_chain(module):
        return Region(path, None, tuple(names))
    children = list(module._modules)
    at = [children.index(name.split(".")[len(common)]) for name in names]
    start = min(at)
    while start and not any(map(host.framework.is_neuron, module._modules[children[start - 1]].modules())):
        start -= 1
    return Region(path, (start, max(at) + 1), tuple(names))
