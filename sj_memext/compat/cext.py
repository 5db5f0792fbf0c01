"""spikingjelly.cext.neuron of 0.0.0.0.12: the nodes of the CUDA extension, on 2.0.0's neurons, on every device.

    h[t] = v[t-1] + x[t]                                  IFNode
    h[t] = v[t-1] + (x[t] - (v[t-1] - v_reset)) / tau     LIFNode
    s[t] = H(h[t] - v_threshold);   v[t] = s[t] v_reset + (1 - s[t]) h[t];   ds/dh = surrogate'(alpha, h - v_threshold)
Source: SpikingJelly 0.0.0.0.12, cext/neuron.py. The surrogate is a name there, ATan by default (2.0.0: Sigmoid), and
tau is 100 by default. Only the hard reset existed: v_reset=None was not implemented, and is refused.

In eval mode the extension kept no gradient; here there is one, as in training. There is no ParametricLIFNode in the
wheel; code of that time has one, with the same arguments.
"""
from __future__ import annotations

from torch import nn

from shared_core import dynamics
from shared_core.errors import MemextError
from sj_memext._host import surrogate as host_surrogate

from . import neuron

__all__ = ["BaseNode", "IFNode", "LIFNode", "MultiStepIFNode", "MultiStepLIFNode", "MultiStepParametricLIFNode",
           "ParametricLIFNode", "surrogate_function_dict"]

surrogate_function_dict = {"ATan": 0, "Sigmoid": 1}


def _surrogate(where: str, name, alpha: float) -> nn.Module:
    if name not in surrogate_function_dict:
        raise MemextError(f"{where}: surrogate_function is {name!r}; allowed: 'ATan', 'Sigmoid', by name (cext.neuron "
                          "took no objects; clock_driven.neuron does)")
    return getattr(host_surrogate, name)(alpha)


class _Cext:
    """What the nodes share: the surrogate by name, hard reset only, whole numbers allowed. Before the node in the MRO.
    """

    _kind = None

    def _of(self, parent: type, v_threshold, v_reset, surrogate_function, alpha, detach_reset, **arguments) -> None:
        where = f"cext.neuron.{type(self).__name__}"
        if v_reset is None:
            raise MemextError(f"{where}: v_reset is None; the extension had no soft reset; use clock_driven.neuron's "
                              "nodes")
        arguments = {name: float(value) for name, value in arguments.items()}
        parent.__init__(self, **arguments, v_threshold=float(v_threshold), v_reset=float(v_reset),
                        surrogate_function=_surrogate(where, surrogate_function, alpha), detach_reset=detach_reset)
        self.alpha, self.grad_surrogate_function_index = alpha, surrogate_function_dict[surrogate_function]

    def extra_repr(self):
        name = type(self.surrogate_function).__name__
        return (f"v_threshold={self.v_threshold}, v_reset={self.v_reset}, detach_reset={self.detach_reset}, "
                f"surrogate_function={name}, alpha={self.alpha}")


class BaseNode(_Cext, neuron.BaseNode):
    """isinstance(module, cext.neuron.BaseNode) holds for every node here."""

    _kind = None

    def __init__(self, v_threshold=1.0, v_reset=0.0, surrogate_function="ATan", alpha=2.0, detach_reset=False):
        self._of(neuron.BaseNode, v_threshold, v_reset, surrogate_function, alpha, detach_reset)


class IFNode(BaseNode, neuron.IFNode):
    _kind = dynamics.IF

    def __init__(self, v_threshold=1.0, v_reset=0.0, surrogate_function="ATan", alpha=2.0, detach_reset=False):
        self._of(neuron.IFNode, v_threshold, v_reset, surrogate_function, alpha, detach_reset)


class LIFNode(BaseNode, neuron.LIFNode):
    _kind = dynamics.LIF

    def __init__(self, tau=100.0, v_threshold=1.0, v_reset=0.0, surrogate_function="ATan", alpha=2.0,
                 detach_reset=False):
        self._of(neuron.LIFNode, v_threshold, v_reset, surrogate_function, alpha, detach_reset, tau=tau)

    @property
    def reciprocal_tau(self) -> float:
        return 1 / self.tau

    def extra_repr(self):
        return f"{super().extra_repr()} tau={self.tau}"


class ParametricLIFNode(BaseNode, neuron.ParametricLIFNode):
    _kind = dynamics.ParametricLIF

    def __init__(self, init_tau=2.0, v_threshold=1.0, v_reset=0.0, surrogate_function="ATan", alpha=2.0,
                 detach_reset=False):
        self._of(neuron.ParametricLIFNode, v_threshold, v_reset, surrogate_function, alpha, detach_reset,
                 init_tau=init_tau)


class MultiStepIFNode(neuron._MultiStep, IFNode):
    _kind = dynamics.IF
    backend = "cext"

    def extra_repr(self):
        return IFNode.extra_repr(self)


class MultiStepLIFNode(neuron._MultiStep, LIFNode):
    _kind = dynamics.LIF
    backend = "cext"

    def extra_repr(self):
        return LIFNode.extra_repr(self)


class MultiStepParametricLIFNode(neuron._MultiStep, ParametricLIFNode):
    _kind = dynamics.ParametricLIF
    backend = "cext"

    def extra_repr(self):
        return ParametricLIFNode.extra_repr(self)
