"""The retrofit methods "compress" and "recompute": which modules of a net become ours, and which are left and why."""
from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .._entering import Change, entered, plain_type, why_left
from ..errors import MemextError
from ..retrofit import ALREADY, Framework, Plan, neuron_changes, refuse_unchanged
from .modules import NORMS, PLAIN, POLICY
from .policy import PREFERENCES, Policy

__all__ = ["NEURON_POLICY", "compress", "recompute"]

NEURON_POLICY = "_chain"  # attribute of a neuron: its Policy; the adapters' neurons look for it


def compress(framework: Framework, net: nn.Module, skip: Sequence[str] | None = None) -> Plan:
    """Our neurons, and spikes kept as bits by every convolution, linear layer and pooling that reads them.

    skip: names or patterns of neurons to leave, as in exchange_neurons.  Raises MemextError: nothing can be changed.
    """
    return _plan(framework, net, Policy("compress"), skip)


def recompute(framework: Framework, net: nn.Module, prefer: str = "balanced", skip: Sequence[str] | None = None
              ) -> Plan:
    """As compress, and norms and neurons keep nothing of their own: they are rebuilt from what the layer before keeps.

    prefer: "speed" (every convolution's output is kept), "balanced" (cheap ones are run again instead; not slower than
    the framework), "memory" (all are run again).  skip: as in compress.  Raises MemextError: unknown prefer.
    """
    if prefer not in PREFERENCES:
        raise MemextError(f"{framework.package}.retrofit: prefer is {prefer!r}; allowed: "
                          f"{', '.join(map(repr, PREFERENCES))}")
    found = _plan(framework, net, Policy("recompute", prefer), skip)
    found.notes.append(f"prefer={prefer!r}")
    return found


def _plan(framework: Framework, net: nn.Module, policy: Policy, skip: Sequence[str] | None) -> Plan:
    plan, _ = neuron_changes(framework, net, skip)
    changing = {id(change.module): change for change in plan.changes}
    left = {id(module) for _, module, why in plan.skipped if why != ALREADY}
    table = {**PLAIN, **(NORMS if policy.chains else {}), **framework.layers}
    for name, module in net.named_modules():
        if id(module) in changing:
            changing[id(module)].attributes[NEURON_POLICY] = policy
        elif framework.is_neuron(module):
            if id(module) not in left:  # one of ours already: it only has to know
                plan.changes.append(Change(name or "(the model itself)", module, plain_type(module),
                                           {NEURON_POLICY: policy}))
        else:
            _layer(plan, name, module, policy, table)
    if not plan.changes:
        refuse_unchanged(framework, net, plan)
    plan.skipped = [entry for entry in plan.skipped if entry[2] != ALREADY]
    return plan


def _layer(plan: Plan, name: str, module: nn.Module, policy: Policy, table: dict[type, type]) -> None:
    cls = plain_type(module)
    host = next((base for base in cls.__mro__ if base in table), None)
    if host is None:
        return
    reason = None
    if entered(module) and why_left(module):
        reason = f"it was retrofitted, but {why_left(module)}"
    elif "forward" in module.__dict__ or "_conv_forward" in module.__dict__:
        reason = "its forward was replaced on this object"
    elif not _ends_in(cls, host):
        reason = f"{_definer(cls).__name__}.forward computes something of its own"
    elif isinstance(module, nn.modules.lazy.LazyModuleMixin):
        reason = "it has no parameters yet; run the net once, then retrofit"
    if reason is not None:
        plan.skipped.append((name, module, reason))
        return
    plan.changes.append(Change(name, module, table[host], {POLICY: policy}))


def _definer(cls: type) -> type:
    return next(base for base in cls.__mro__ if "forward" in vars(base))


def _ends_in(cls: type, host: type) -> bool:
    """Does cls.forward end in the forward of `host`? So it does if it is that one, or calls super().

    A class that calls Torch's operator itself (SpikingJelly's WSConv2d) would not be reached by our method.
    """
    for base in cls.__mro__:
        if base is host or (issubclass(base, host) and base.__module__.startswith("shared_core.")):
            return True
        for name in ("forward", "_conv_forward", "_forward"):
            own = vars(base).get(name)
            code = getattr(own, "__code__", None)
            if code is not None and "__class__" not in code.co_freevars and not _calls(base, code):
                return False
    return False


def _calls(base: type, code) -> bool:
    """Does this method call another method of its class that calls super()?"""
    called = (vars(base).get(name) for name in code.co_names)
    return any("__class__" in getattr(getattr(f, "__code__", None), "co_freevars", ()) for f in called)
