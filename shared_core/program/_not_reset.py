"""Which neuron still carries an earlier step's graph: what "backward through the graph a second time" does not say.

A state that a forward begins with, and whose graph a backward pass has freed, was neither reset nor detached.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from torch import Tensor, nn

from ..temporal import Host

__all__ = ["Carried", "carried", "explanation"]

_SECOND = "backward through the graph a second time"
_IN_PLACE = "has been modified by an inplace operation"
_RESETS = {"spikingjelly": "spikingjelly.activation_based.functional.reset_net(net)",
           "snntorch": "snntorch.utils.reset(net)"}
_NODES = 16  # a state's own node and those before it; a neuron's equations are some ten
_OURS = ("_SingleStepBackward", "_MultiStepBackward")  # as Torch names the nodes of shared_core._autograd


@dataclass(frozen=True)
class Carried:
    """A neuron of the framework, as `kind`, whose `state` had a graph that is gone."""

    framework: str
    kind: str
    state: str


def carried(net: nn.Module, hosts: Iterable[Host]) -> dict[str, Carried]:
    """By module name: those of which a state holds on to a graph that was freed. Looks at states only: some us each."""
    found: dict[str, Carried] = {}
    for name, module in net.named_modules():
        for host in hosts:
            for state in host.states(module):
                value = host.get(module, state)
                if isinstance(value, Tensor) and value.grad_fn is not None and _is_freed(value.grad_fn):
                    records = getattr(module, "_entered_by_memext", ())
                    kind = (records[0].before if records else type(module)).__name__
                    found.setdefault(name, Carried(host.framework.name, kind, state))
    return found


def _is_freed(node) -> bool:
    """Has a backward pass freed something near this node?

    A last state that no loss depends on is not in that pass itself, but what it was computed from is. A node of ours
    computes spikes and state together, and so decides by itself.
    """
    waiting, seen = [node], 0
    while waiting and seen < _NODES:
        node = waiting.pop(0)
        seen += 1
        try:
            if hasattr(type(node), "_raw_saved_tensors"):  # a Function in Python; this unpacks nothing
                if node._raw_saved_tensors and type(node).__name__ in _OURS:
                    return False
            else:
                for name in _saved(type(node)):
                    getattr(node, name)
        except RuntimeError:
            return True
        waiting += [after for after, _ in node.next_functions if after is not None]
    return False


@cache
def _saved(kind: type) -> list[str]:
    return [name for name in dir(kind) if name.startswith("_saved_")]


def explanation(error: BaseException, models, hosts: Iterable[Host]) -> str | None:
    """What to say after the traceback of this error, or None."""
    text = str(error)
    if not isinstance(error, RuntimeError) or not (_SECOND in text or _IN_PLACE in text):
        return None
    hosts = list(hosts)
    for model in models:
        found = {**model.carried, **carried(model.net, hosts)}
        if found:
            return _sentence(type(model.net).__name__, found)
    if _SECOND in text and any(host.states(module) for model in models for module in model.net.modules()
                               for host in hosts):
        return ("memext run: every neuron that holds its state was reset or detached before this step; so the graph "
                "that is used twice is the program's own (a loss added up over steps, or states handed on)")
    return None


def _sentence(kind: str, found: dict[str, Carried]) -> str:
    name, first = next(iter(found.items()))
    others = f", and so do {len(found) - 1} more ({', '.join(list(found)[1:4])}{', ...' if len(found) > 4 else ''})" \
        if len(found) > 1 else ""
    return (f"memext run: {name or 'the model itself'!r} ({first.kind}) of {kind} was not reset: its {first.state!r} "
            f"still belongs to the graph of an earlier step, which its backward pass has freed{others}. Call "
            f"{_RESETS.get(first.framework, 'its reset')} after each optimizer step")
