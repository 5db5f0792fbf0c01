"""Shared membranes in a built SpikingJelly model: EfficientLIF-Net (Kim et al. 2023), Eq. 4-17.

    net = share(net, layers="auto", channels=2, sample=x, batch_norm="per_step")     # in place; restore(net) undoes it
    net = share(net, layers=[["layer1.0.sn1", "layer1.1.sn1"], ["layer1.0.sn2", "layer1.1.sn2"]])
"""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from shared_core._entering import entered
from shared_core.errors import MemextError
from shared_core.retrofit import ALREADY, classify
from shared_core.sharing import Sharer, SharingHost, Together

from ._host import base, neuron
from .neuron import FusedIFNode, FusedLIFNode, FusedParametricLIFNode, SharedLIFNode
from .retrofit import FRAMEWORK
from .surrogate import from_spikingjelly

__all__ = ["JoinedIFNode", "JoinedLIFNode", "share"]


class _Joined:
    """One of several layers that run on one membrane, in the order in which they are called.

    Its `_memories` is the dictionary that the others have, too. _together: the group; _member: which of it this is.
    """

    def single_step_forward(self, x, *args, **kwargs):
        self._check(x)
        return super().single_step_forward(x, *args, **kwargs)

    def multi_step_forward(self, x_seq, *args, **kwargs):
        if isinstance(x_seq, Tensor) and x_seq.dim() and x_seq.shape[0]:
            if x_seq.shape[0] > 1:
                raise MemextError(f"{self._together.names[self._member]!r} shares its membrane with other layers, and "
                                  f"was called on a sequence of {x_seq.shape[0]} steps by itself; time has to be "
                                  "outermost: call the module that share() has changed for it (report(net) names it)")
            self._check(x_seq[0])
        return super().multi_step_forward(x_seq, *args, **kwargs)

    def functional_forward(self, inputs, states, **kwargs):
        raise MemextError(f"{self._together.names[self._member]!r} shares its membrane with other layers, so it has no "
                          "state of its own to be handed in and out; restore(net) first")

    def _check(self, x) -> None:
        if isinstance(x, Tensor) and x.dim():
            self._together.check(self._member, self._memories["v"], self._membrane(x)[1:])


class JoinedLIFNode(_Joined, SharedLIFNode):
    """SharedLIFNode as one of a group of layers. Made by share()."""


class JoinedIFNode(_Joined, FusedIFNode):
    """FusedIFNode as one of a group of layers. Made by share()."""


# ---- what sharing must know of SpikingJelly --------------------------------------------------------------------------

_CHANNELS = {neuron.LIFNode: SharedLIFNode, neuron.IFNode: FusedIFNode,
             neuron.ParametricLIFNode: FusedParametricLIFNode}
_JOINED = {neuron.LIFNode: JoinedLIFNode, neuron.IFNode: JoinedIFNode}
# Layers for sequences that do the same to each step, whatever their name for it.
_STEP_BY_STEP = ("SeqToANNContainer", "MultiStepContainer", "_ThresholdDependentBatchNormBase")


def _become(module: nn.Module, table: dict[type, type]) -> tuple[type | None, str | None]:
    if isinstance(module, _Joined):
        return None, "it shares its membrane with other layers already; call restore(net) first"
    if module.store_v_seq:
        return None, "it has store_v_seq=True, and would store the membrane of several layers in turn"
    kinds = {FusedLIFNode: neuron.LIFNode, FusedIFNode: neuron.IFNode, FusedParametricLIFNode: neuron.ParametricLIFNode}
    ours = next((kinds[cls] for cls in type(module).__mro__ if cls in kinds), None)
    if ours in table and not module._online:  # SLTT's has another gradient
        return table[ours], None
    cls, why = classify(FRAMEWORK, module, table)
    if cls is None and why == ALREADY:
        why = f"there is no {type(module).__name__} with a shared membrane"
    elif cls is None and not entered(module) and not isinstance(module, tuple(table)):
        why = f"of SpikingJelly's neurons, {', '.join(host.__name__ for host in table)} can share a membrane"
    return cls, why


def _channel_class(module: nn.Module) -> tuple[type | None, str | None]:
    return _become(module, _CHANNELS)


def _joined_class(module: nn.Module) -> tuple[type | None, str | None]:
    learns = [name for name, _ in module.named_parameters()]
    if learns:
        channels = "; its channels can share one" if _become(module, _CHANNELS)[0] else ""
        return None, (f"it learns {', '.join(learns)} of its own, and layers that share a membrane have one leak (Eq. "
                      f"4 and 6){channels}")
    return _become(module, _JOINED)


def _parameters(module: nn.Module) -> dict[str, Any]:
    names = ("v_threshold", "v_reset", "detach_reset", "tau", "decay_input", "step_mode")
    found = {name: _value(getattr(module, name)) for name in names if hasattr(module, name)}
    function = module.surrogate_function
    known = from_spikingjelly(function)
    return {"neuron": "LIF" if isinstance(module, neuron.LIFNode) else type(module).__name__, **found,
            "channel groups": _channels(module),
            "surrogate_function": f"{type(function).__name__}{known.params}" if known.fn is None else repr(function)}


def _value(value):
    return value.tolist() if isinstance(value, Tensor) else value


def _channels(module: nn.Module) -> int:
    return getattr(module, "_groups", 1)


def _set_channels(module: nn.Module, groups: int) -> dict[str, Any]:
    return {"groups": groups} if isinstance(module, neuron.LIFNode) else {"_groups": groups}


def _set_joined(neurons: Sequence[nn.Module], names: Sequence[str]) -> list[dict[str, Any]]:
    first, together = neurons[0], Together(tuple(names))
    shared = {"_memories": dict(first._memories_rv), "_memories_rv": dict(first._memories_rv), "_together": together}
    own = {"groups": _channels(first)} if isinstance(first, neuron.LIFNode) else {}
    return [{**shared, **own, "_member": i} for i in range(len(neurons))]


def _on_sequences(module: nn.Module) -> bool:
    return module.step_mode == "m"


def _needs_sequence(module: nn.Module) -> str | None:
    if not isinstance(module, base.MultiStepModule) or isinstance(module, base.SingleStepModule):
        return None
    if any(cls.__name__ in _STEP_BY_STEP for cls in type(module).__mro__):
        return None
    return "works on whole sequences only, and time is stepped where a membrane is shared"


class _OneStep:
    """[N, *] -> what the parts make of the sequence [1, N, *], without its first dimension.

    They stay in step mode "m", so that a forward that unpacks T, N, C or holds layers for sequences runs as ever.
    modes: of every module inside.
    """

    def __init__(self, parts: Sequence[nn.Module], whole: bool, modes: Sequence[tuple[nn.Module, str]]):
        self.parts, self.whole, self.modes = parts, whole, modes

    def __call__(self, x: Tensor):
        x = x.unsqueeze(0)
        with _step_modes(self.modes):
            for part in self.parts:
                x = type(part).forward(part, x) if self.whole else part(x)
        return tree_map(self._first, x)

    def _first(self, out):
        if not isinstance(out, Tensor) or out.dim() == 0 or out.shape[0] != 1:
            got = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise MemextError(f"share: {type(self.parts[-1]).__name__} made {got} of a sequence of one step; where "
                              "layers inside share a membrane it must return [T, N, *] for [T, N, *]. If it adds or "
                              "removes the time dimension itself, move the layers that share into a module of their "
                              "own")
        return out.squeeze(0)


@contextmanager
def _one_step(parts: Sequence[nn.Module], whole: bool) -> Iterator[_OneStep]:
    """unroll refuses modules in step mode "m", for it would hand them [N, *]; ours hands them [1, N, *]. So they are in
    "s" while it looks, and in their own mode while a step runs."""
    inside = dict.fromkeys(m for part in parts for m in part.modules() if "_step_mode" in vars(m))
    modes = [(m, m._step_mode) for m in inside]
    with _step_modes([(m, "s") for m in inside]):
        yield _OneStep(parts, whole, modes)


@contextmanager
def _step_modes(modes: Sequence[tuple[nn.Module, str]]) -> Iterator[None]:
    before = [m._step_mode for m, _ in modes]
    for m, mode in modes:
        m._step_mode = mode
    try:
        yield
    finally:
        for (m, _), mode in zip(modes, before):
            m._step_mode = mode


HOST = SharingHost(FRAMEWORK, _channel_class, _joined_class, _parameters, _set_channels, _set_joined, _on_sequences,
                   _one_step, _needs_sequence)
_sharer = Sharer(HOST)


def share(net: nn.Module, layers: str | Sequence[Sequence[str]] | None = None, channels: int = 1, *,
          batch_norm: str | None = None, sample=None, per_stage: int | None = None, skip: Sequence[str] | None = None,
          prefer: str = "balanced") -> nn.Module:
    """Layers share a membrane, or channels of a layer do, or both: changes `net` in place, and returns it.

    Source: EfficientLIF-Net (Kim et al. 2023), Eq. 4-6 (layers), 7-11 (channels), 12-17 (both). It is another model
    than `net` and wants to be trained as such. The layers of a group use one membrane in the order in which they run;
    the last of step t hands it to the first of step t + 1. restore(net) undoes it, report(net) says what was joined,
    and why the rest was not.

    layers: lists of names of neurons (or patterns, "layer1.*.sn1"), one list per membrane; "auto": neurons that follow
        each other within a stage with equal activation size and equal parameters; None: no layers are joined.
    channels: number of groups that the channels of every neuron are split into (Eq. 12-17); 1: they are not.
    batch_norm: "per_step": training-mode batch norm between layers of a group may take its statistics from one step at
        a time, which it has to, as time is outermost there (another model than multi-step batch norm, also without
        sharing). None: refused, unless the norms are in eval mode.
    sample: a batch like the net's input, or its shape; nothing is computed. "auto" without it decides at the first
        forward pass; with lists of names, sizes are then checked as the net runs.
    per_stage: with "auto", membranes per stage. None: in a stage of residual blocks two, one for the first neurons of
        its blocks and one for the second (Table I); elsewhere one.
    skip: names or patterns of neurons to leave as they are.
    prefer: what is kept for the backward pass. "memory": a bit per spike, no membrane (they are all found again from
        the first step on); "balanced": membranes at about sqrt(2 T) of T steps, too; "speed": at every step. These run
        every step's layers again. "graph": what plain autograd keeps, and nothing is run again; together with
        retrofit(net, "compress") or "recompute" it takes the time of a net without sharing.

    In step mode "m", the smallest module (or run of children of a Sequential) that holds a group is stepped through
    time; the rest of the net stays as it is. In step mode "s" nothing steps: your loop does. state_dict keys stay.
    Raises MemextError, and leaves the net as it was: unknown names, modules that are no neurons, neurons that are named
    twice, have other sizes or parameters, learn parameters of their own, or share already; channels that cannot be
    split; batch norm as above; nothing to share.
    """
    return _sharer.share(net, layers=layers, channels=channels, batch_norm=batch_norm, sample=sample,
                         per_stage=per_stage, skip=skip, prefer=prefer)
