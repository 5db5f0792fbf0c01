"""Reversible blocks for SpikingJelly: memory that does not grow with depth. The maths: shared_core.reversible.coupling.

    block = lambda c: torch.nn.Sequential(neuron.IFNode(), layer.Conv2d(c, c, 3, padding=1), layer.BatchNorm2d(c))
    net = ReversibleSequence([ReversibleBlock(block(32), block(32)) for _ in range(48)])
    functional.set_step_mode(net, "m")
    y = net(x)                      # [T, N, 64, H, W]; kept for the backward pass: y
"""
from __future__ import annotations

import warnings

import torch

from shared_core.reversible import coupling, is_rebuilding

from ._host import base

__all__ = ["ReversibleBlock", "ReversibleSequence"]

_DROPPED = ("{}: called twice without functional.reset_net in between. In step mode 'm' its neurons start every call "
            "from the states that they were given, as after a reset, and keep none; pass carry_state=True for neurons "
            "that go on where the last call ended (their states then take memory for every block)")


class _StepModes:
    """Where the channels are, and what becomes of states, in SpikingJelly's two step modes.

    Goes with MemoryModule, so that functional.reset_net reaches it; there is no memory of its own.
    """

    _ran = False

    def _dim(self):
        return (2 if self.step_mode == "m" else 1) if self.split_dim is None else self.split_dim

    def _carries(self):
        return self.step_mode == "s" if self.carry_state is None else self.carry_state

    def forward(self, x):
        if self.step_mode == "m" and self.carry_state is None and not _again():
            if self._ran and any(m._memories for m in self.modules() if isinstance(m, base.MemoryModule)):
                warnings.warn(_DROPPED.format(type(self).__name__), RuntimeWarning, stacklevel=2)
            self._ran = True
        return super().forward(x)

    def reset(self):
        self._ran = False
        super().reset()


def _again() -> bool:
    """Inside a backward pass (torch.utils.checkpoint) or a rebuilt block."""
    return is_rebuilding() or torch._C._current_graph_task_id() != -1


class ReversibleBlock(_StepModes, coupling.ReversibleBlock, base.MemoryModule):
    """y1 = x1 + f(x2), y2 = x2 + g(y1). See shared_core.reversible.coupling.ReversibleBlock.

    step_mode: of this block; set f's and g's too, or all with functional.set_step_mode.
    split_dim None: the channels are dimension 2 in step mode "m" ([T, N, C, ...]), 1 in step mode "s" ([N, C, ...]).
    carry_state None: neurons keep their states in step mode "s" only. In step mode "m" a call holds the whole sequence,
        and states would take memory for every block; a warning says when functional.reset_net was left out.
    """

    def __init__(self, f, g, *, step_mode: str = "s", **options):
        super().__init__(f, g, **options)
        self.step_mode = step_mode


class ReversibleSequence(_StepModes, coupling.ReversibleSequence, base.MemoryModule):
    """Blocks in a row of which only the last output is kept. See shared_core.reversible.coupling.ReversibleSequence.

    step_mode, split_dim, carry_state: as in ReversibleBlock.
    """

    def __init__(self, blocks, *, step_mode: str = "s", **options):
        super().__init__(blocks, **options)
        self.step_mode = step_mode
