"""What stepping through time must know of a framework: where its modules keep their states."""
from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from .. import registry
from ..errors import MemextError
from ..retrofit import Framework

__all__ = ["Cell", "Host", "hosts", "register"]


@dataclass(frozen=True)
class Host:
    """framework: the adapter's, for its neurons and what they become.

    states: names of what a module carries from step to step by itself; () for one that carries nothing.
    get, set: one state of a module.  sequence: calls a module that carries states on [T, *] instead of T times.
    pools: its classes of max pooling that do what torch.nn.MaxPool2d does, called step by step.
    leave: undoes what our class may have left on an object that was ours for a while.
    check: raises MemextError for a module that cannot be called step by step as it is set now.
    """

    framework: Framework
    states: Callable[[nn.Module], Sequence[str]]
    get: Callable[[nn.Module, str], object]
    set: Callable[[nn.Module, str, object], None]
    sequence: Callable[[nn.Module, Tensor], object]
    pools: tuple[type, ...] = ()
    leave: Callable[[nn.Module], None] = lambda module: None
    check: Callable[[nn.Module, str], None] = lambda module, name: None


@dataclass(frozen=True)
class Cell:
    """One hidden state: of `module`, called `name`."""

    host: Host
    module: nn.Module
    name: str

    def get(self):
        return self.host.get(self.module, self.name)

    def set(self, value) -> None:
        self.host.set(self.module, self.name, value)


_HOSTS: dict[str, Host] = {}


def register(host: Host) -> None:
    """Called by an adapter when it is imported. Registering the same framework again replaces it."""
    _HOSTS[host.framework.name] = host


def imported() -> list[Host]:
    """Of every framework that the user has imported; its adapter is imported here, where that is still to be done."""
    for adapter in registry.adapters().values():
        if adapter.framework in sys.modules and adapter.framework not in _HOSTS and not adapter.missing:
            importlib.import_module(adapter.load().__name__)
    return [host for name, host in _HOSTS.items() if name in sys.modules]


def hosts() -> list[Host]:
    """As imported(). Raises MemextError: there is none."""
    found = imported()
    if not found:
        raise MemextError("temporal: neither SpikingJelly nor snnTorch is imported, so no module here can hold a "
                          "spiking neuron; import the framework before unroll is called")
    return found
