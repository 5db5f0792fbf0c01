"""Shared membranes in a built snnTorch model: EfficientLIF-Net (Kim et al. 2023), Eq. 4-17, with snnTorch's Leaky.

    net = share(net, layers=[["lif1", "lif2"]], channels=2)      # in place; restore(net) undoes it
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from shared_core._groups import membrane_shape
from shared_core.errors import MemextError
from shared_core.retrofit import ALREADY, classify
from shared_core.sharing import Sharer, SharingHost, Together

from ._host import Leaky
from .neurons import FusedLeaky
from .retrofit import FRAMEWORK
from .shared import SharedLeaky
from .surrogate import from_snntorch

__all__ = ["JoinedLeaky", "share"]


class JoinedLeaky(SharedLeaky):
    """SharedLeaky as one of a group of layers that run on one membrane. Made by share().

    The membrane is the buffer `mem` of the first of them, `_leader` (None: this one is it).  _together: the group;
    _member: which of it this is.
    """

    @property
    def mem(self) -> Tensor:
        return (self._leader or self)._buffers["mem"]

    def __setattr__(self, name, value):
        if name == "mem":  # torch would put it among the buffers of this object, without asking the property
            (self._leader or self)._buffers["mem"] = value
        else:
            super().__setattr__(name, value)

    def forward(self, input_, mem=None):
        """One step, from where the layer before left the membrane. Arguments and results: FusedLeaky's."""
        if isinstance(input_, Tensor) and input_.dim():
            size = membrane_shape(type(self).__name__, input_.shape, self.groups)[1:]
            self._together.check(self._member, self.mem, size)
        return self._step(input_, mem)

    def multi_step(self, x_seq: Tensor, mem: Tensor | None = None, *, record: bool = False):
        """FusedLeaky.multi_step for T = 1. Raises MemextError: T > 1, for time has to be outermost."""
        if isinstance(x_seq, Tensor) and x_seq.dim() and x_seq.shape[0] > 1:
            raise MemextError(f"{self._together.names[self._member]!r} shares its membrane with other layers, and was "
                              f"called on a sequence of {x_seq.shape[0]} steps by itself; time has to be outermost: "
                              "call the whole net once a step")
        return super().multi_step(x_seq, mem, record=record)


def _become(module: nn.Module, ours: type) -> tuple[type | None, str | None]:
    if isinstance(module, JoinedLeaky):
        return None, "it shares its membrane with other layers already; call restore(net) first"
    if isinstance(module, FusedLeaky):
        return ours, None
    cls, why = classify(FRAMEWORK, module, {Leaky: ours})
    if cls is None and (why == ALREADY or not isinstance(module, Leaky)):
        why = f"of snnTorch's neurons, Leaky can share a membrane, {type(module).__name__} cannot"
    return cls, why


def _channel_class(module: nn.Module) -> tuple[type | None, str | None]:
    return _become(module, SharedLeaky)


def _joined_class(module: nn.Module) -> tuple[type | None, str | None]:
    cls, why = _become(module, JoinedLeaky)
    if cls is None:
        return cls, why
    learns = [name for name, _ in module.named_parameters()]
    if learns:
        return None, (f"it learns {', '.join(learns)} of its own, and layers that share a membrane have one leak (Eq. "
                      "4 and 6); its channels can share one")
    if not module.init_hidden:
        return None, ("it has init_hidden=False, so its state is a variable of your forward: hand the `mem` that one "
                      "layer returns to the next, which is Eq. 4, or use init_hidden=True")
    return cls, None


def _parameters(module: nn.Module) -> dict[str, Any]:
    known = from_snntorch(module.spike_grad)
    mechanisms = {number: name for name, number in module.reset_dict.items()}
    return {**{name: getattr(module, name).tolist() for name in ("beta", "threshold", "graded_spikes_factor")},
            "reset_mechanism": mechanisms.get(int(module.reset_mechanism_val)), "reset_delay": bool(module.reset_delay),
            "channel groups": _channels(module),
            "spike_grad": f"{known.name}{known.params}" if known.fn is None else repr(module.spike_grad)}


def _channels(module: nn.Module) -> int:
    return getattr(module, "groups", 1)


def _set_channels(module: nn.Module, groups: int) -> dict[str, Any]:
    return {"groups": groups}


def _set_joined(neurons: Sequence[nn.Module], names: Sequence[str]) -> list[dict[str, Any]]:
    first, together = neurons[0], Together(tuple(names))
    return [{"_leader": first if i else None, "_together": together, "_member": i, "groups": _channels(first)}
            for i in range(len(neurons))]


_sharer = Sharer(SharingHost(FRAMEWORK, _channel_class, _joined_class, _parameters, _set_channels, _set_joined))


def share(net: nn.Module, layers: str | Sequence[Sequence[str]] | None = None, channels: int = 1, *,
          batch_norm: str | None = None, sample=None, per_stage: int | None = None, skip: Sequence[str] | None = None
          ) -> nn.Module:
    """Layers share a membrane, or channels of a layer do, or both: changes `net` in place, and returns it.

    Source: EfficientLIF-Net (Kim et al. 2023), Eq. 4-6 (layers), 7-11 (channels), 12-17 (both), with snnTorch's Leaky.
    It is another model than `net` and wants to be trained as such. The layers of a group use one membrane in the order
    in which they run; the last of step t hands it to the first of step t + 1. restore(net) undoes it, report(net) says
    what was joined and what not.

    layers: lists of names of neurons (or patterns, "block1.*"), one list per membrane; "auto": neurons that follow each
        other within a stage with equal activation size and equal parameters; None: no layers are joined. They hold
        their states themselves (init_hidden=True); a forward that hands them around shares by handing on one `mem`.
    channels: number of groups that the channels (dimension 1) of every neuron are split into; 1: they are not. A
        network that hands states around works as before, with states of [N, C / channels, *].
    batch_norm: "per_step" or None; batch norm sees one step at a time here in any case.
    sample: one step's input, or its shape; nothing is computed. "auto" without it decides at the first forward pass;
        with lists of names, sizes are then checked as the net runs.
    per_stage: with "auto", membranes per stage. None: in a stage of blocks with several neurons each two, one for the
        first neurons of its blocks and one for the second; elsewhere one.
    skip: names or patterns of neurons to leave as they are.

    The net is stepped by your loop, as ever; under shared_core.temporal.unroll its spikes are kept as bits, and the
    membranes are found again in the backward pass. state_dict keys stay.
    Raises MemextError, and leaves the net as it was: unknown names, modules that are no neurons, neurons that are named
    twice, have other sizes or parameters, learn parameters of their own, are handed their state, or share already;
    channels that cannot be split; nothing to share.
    """
    return _sharer.share(net, layers=layers, channels=channels, batch_norm=batch_norm, sample=sample,
                         per_stage=per_stage, skip=skip)
