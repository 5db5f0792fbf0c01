"""Spiking RNNs: what 0.0.0.0.12 to 0.0.0.0.14 computed otherwise is said when one is made; see install."""
from __future__ import annotations

import functools

from spikingjelly.activation_based import rnn as host

from ._patches import PATCHES, say

__all__ = ["install"]


def install() -> None:
    PATCHES.set(host.SpikingRNNBase, "__init__", _stacked(host.SpikingRNNBase.__init__))
    PATCHES.set(host.SpikingLSTMCell, "__init__", _clamped(host.SpikingLSTMCell.__init__))


def _stacked(original):
    @functools.wraps(original)
    def __init__(self, *args, **kwargs):
        original(self, *args, **kwargs)
        if self.num_layers > 1 and not self.bidirectional:
            say("rnn layers", f"rnn.{type(self).__name__} with {self.num_layers} layers: SpikingJelly 2 stacks them as "
                "torch.nn.LSTM does. Until 0.0.0.0.14 a layer read the one below a step late (in RNN and GRU, one row "
                "of its batch), so a net trained there gives other results")

    return __init__


def _clamped(original):
    @functools.wraps(original)
    def __init__(self, *args, **kwargs):
        original(self, *args, **kwargs)
        say("rnn clamp", "rnn.SpikingLSTMCell clamps the cell state to 1, as since 0.0.0.0.14; 0.0.0.0.12 did not")

    return __init__
