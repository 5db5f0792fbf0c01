"""The retrofit method "reversible": IF and LIF nodes become reversible neurons. That is another network."""
from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from torch import nn

from shared_core._entering import Change, entered, plain_type
from shared_core.errors import MemextError
from shared_core.retrofit import Framework, Plan, refuse_unchanged
from shared_core.reversible.neuron import Equations

from ._host import neuron
from .neuron import overrides
from .reversible import ReversibleIFNode, ReversibleLIFNode, _Reversible

__all__ = ["reversible"]

_OURS = {neuron.LIFNode: ReversibleLIFNode, neuron.IFNode: ReversibleIFNode}
NOTE = ("'reversible' is another network, not the same one in less memory: its neurons (RevSNN Eq. 1-6) emit real "
        "values and reset in another way; train it from the start, or fine-tune")


def reversible(framework: Framework, net: nn.Module, groups: int = 2, alpha: float = 0.1, beta: float = 1.0,
               tau: float | None = None, v_reset: float | None = None, split_dim: int = -1,
               skip: Sequence[str] | None = None) -> Plan:
    """Every IFNode and LIFNode becomes a ReversibleLIFNode; see there for groups, alpha, beta and split_dim.

    tau: None: the node's own (IF: 2.0).  v_reset: None: the node's own (soft reset: 0.0).  skip: names or patterns of
    neurons to leave.  Thresholds and surrogate functions stay; decay_input and detach_reset have no meaning here.
    Raises MemextError: a constant out of range; a name in skip that fits no neuron; no neuron that can be changed.
    """
    where = f"{framework.package}.retrofit"
    skip = () if skip is None else skip
    if not isinstance(skip, list | tuple | set | frozenset) or not all(isinstance(s, str) for s in skip):
        raise MemextError(f"{where}: skip is {skip!r}; a list of names or patterns is needed, e.g. ['layer1.*']")
    plan, soft, already = Plan(notes=[NOTE]), 0, False
    found = [(name, module) for name, module in net.named_modules() if framework.is_neuron(module)]
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for name, _ in found):
            raise MemextError(f"{where}: skip={pattern!r} fits no neuron; the neurons are: "
                              f"{', '.join(name or '(the model itself)' for name, _ in found) or 'none'}")
    for name, module in found:
        shown, host = name or "(the model itself)", _host_of(module)
        reason = _why_not(module, host)
        if isinstance(module, _Reversible):
            already = True
        elif reason is None and any(fnmatchcase(name, pattern) for pattern in skip):
            reason = "named in skip"
        if reason is not None:
            plan.skipped.append((shown, module, reason))
            continue
        own_reset = 0.0 if module.v_reset is None else module.v_reset
        soft += module.v_reset is None and v_reset is None
        values = {"groups": groups, "alpha": alpha, "beta": beta, "split_dim": split_dim,
                  "tau": getattr(module, "tau", 2.0) if tau is None else tau,
                  "v_reset": own_reset if v_reset is None else v_reset}
        change = Change(shown, module, _OURS[host], values)
        _check(where, change)
        plan.changes.append(change)
    if not plan.changes and not already:
        refuse_unchanged(framework, net, plan)
    if soft:
        plan.notes.append(f"{soft} neurons had a soft reset, which this neuron has not; their v_reset is 0.0")
    return plan


def _host_of(module: nn.Module) -> type | None:
    return next((base for base in plain_type(module).__mro__ if base in _OURS), None)


def _why_not(module: nn.Module, host: type | None) -> str | None:
    if isinstance(module, _Reversible):
        return "it is reversible already"
    if entered(module):
        return (f"it was retrofitted by {entered(module)[-1].method!r}; restore(net) first (retrofit 'compress' can be "
                "added afterwards)")
    if host is None:
        return f"only {', '.join(cls.__name__ for cls in _OURS)} have a reversible counterpart"
    changed = overrides(plain_type(module), host)
    if plain_type(module) is not host and (changed or plain_type(module).__module__.startswith("sj_memext")):
        return f"it is a {plain_type(module).__name__}, which computes something else than {host.__name__}"
    if "forward" in module.__dict__:
        return "its forward was replaced on this object"
    return None


def _check(where: str, change: Change) -> None:
    """A constant out of range is said now, not at the first call."""
    values = change.attributes
    try:
        Equations(values["groups"], values["tau"], values["alpha"], values["beta"], change.module.v_threshold,
                  values["v_reset"])
    except MemextError as problem:
        raise MemextError(f"{where}: {change.name!r} cannot become reversible: {problem}") from problem
