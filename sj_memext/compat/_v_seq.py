"""`v_seq` of the old multi-step nodes: always there, and kept only for who reads it.

0.0.0.0.12 stored the potential after every step of every call, which is as much memory again as the input. Here the
first call keeps its input (which training keeps anyway), and v_seq is computed when it is read, with its gradient; a
node that was read once records from then on, one that was not read keeps nothing but a weak reference.
"""
from __future__ import annotations

import weakref
from dataclasses import dataclass

from torch import Tensor

from shared_core.chain.method import NEURON_POLICY
from shared_core.errors import MemextError

__all__ = ["Call", "LazyVSeq"]

_SETTINGS = ("v_threshold", "v_reset", "tau", "decay_input", "detach_reset", "surrogate_function", "v_rest", "delta_T",
             "theta_rh")


@dataclass
class Call:
    """One call of a multi-step node: what v_seq [T, N, *] can be computed from again."""

    x_seq: object  # the input, or a weak reference to it
    version: int
    v: object
    settings: tuple
    stamps: tuple

    @classmethod
    def of(cls, node, x_seq: Tensor, weak: bool) -> Call:
        return cls(weakref.ref(x_seq) if weak else x_seq, x_seq._version, node._memories["v"], _settings(node),
                   _stamps(node))

    def replay(self, node, where: str) -> Tensor:
        """v_seq [T, N, *]. The node's state stays as it is. Raises MemextError: the input is gone, or is another."""
        x_seq = self.x_seq() if isinstance(self.x_seq, weakref.ref) else self.x_seq
        reason = None
        if x_seq is None:
            reason = "v_seq was not read after the first call, so this call kept nothing to compute it from"
        elif x_seq._version != self.version:
            reason = "the input was changed in place after the call"
        elif self.settings != _settings(node) or self.stamps != _stamps(node):
            reason = "the node's parameters changed after the call"
        if reason:
            raise MemextError(f"{where}: {reason}; set node.store_v_seq = True before the call, which stores v_seq as "
                              "0.0.0.0.12 did")
        kept, training = dict(node._memories), node.training
        node._store_v_seq = True
        try:
            node._memories["v"] = self.v
            node.multi_step_forward(x_seq)
            return node.__dict__["_v_seq_now"]
        finally:
            node._store_v_seq = False
            node._memories.update(kept)
            node.training = training


class LazyVSeq:
    """For nodes that derive from SpikingJelly's: `v_seq` as a property. The framework sets it as it always did."""

    @property
    def v_seq(self):
        now, call = self.__dict__.get("_v_seq_now"), self.__dict__.get("_v_seq_call")
        if now is not None or call is None:
            return now
        self.__dict__["_v_seq_now"] = None
        now = call.replay(self, type(self).__name__ + ".v_seq")
        self.__dict__.update(_v_seq_now=now, _v_seq_read=True)
        self._store_v_seq = True  # the setter would drop what was just computed
        return now

    @v_seq.setter
    def v_seq(self, value):
        self.__dict__["_v_seq_now"] = value
        if value is None:
            self.__dict__.pop("_v_seq_call", None)

    def _about_to_run(self, x_seq: Tensor) -> Call | None:
        """Before a call: what to remember of it; after the first one that nobody read, next to nothing."""
        if self.store_v_seq:
            return None
        if "_v_seq_calls" not in self.__dict__:
            self.__dict__["_v_seq_calls"] = 0
        weak = self.__dict__["_v_seq_calls"] > 0 or NEURON_POLICY in self.__dict__
        self.__dict__["_v_seq_calls"] += 1
        return Call.of(self, x_seq, weak)

    def _ran(self, call: Call | None) -> None:
        if call is not None:
            self.__dict__["_v_seq_call"] = call

    def __getstate__(self):
        state = dict(self.__dict__)
        state.pop("_v_seq_call", None)
        return state


def _settings(node) -> tuple:
    return tuple(value if not isinstance(value, Tensor) else (id(value), value._version)
                 for value in (getattr(node, name, None) for name in _SETTINGS))


def _stamps(node) -> tuple:
    return tuple((id(p), p._version) for p in node.parameters())
