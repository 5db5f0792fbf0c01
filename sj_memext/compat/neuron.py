"""spikingjelly.clock_driven.neuron of 0.0.0.0.12, on SpikingJelly 2.0.0's neurons.

Every class derives from the 2.0.0 class of the same equation, so that retrofit, substitute, monitors and exchanges see
what they know; names, argument order, defaults, repr and behaviour are those of 0.0.0.0.12:

    a node has one step mode, by its class;  MultiStepX is an X;  both are a BaseNode
    v_threshold and v_reset are set back by reset() to what the constructor got
    a subclass with neuronal_charge, neuronal_fire or neuronal_reset of its own is stepped with them
    MultiStepX always has v_seq (see _v_seq.py);  backend= is kept as an attribute, and has no effect
    a state of another shape is an error (2.0.0 starts again from rest)

Source of every signature and equation: SpikingJelly 0.0.0.0.12, clock_driven/neuron.py.
"""
from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from shared_core import dynamics
from shared_core.errors import MemextError
from sj_memext._host import neuron as host
from sj_memext._host import surrogate as host_surrogate

from ._arguments import check_backend as _check_backend
from ._arguments import check_floats
from ._equations import takes_old_way
from ._patches import say
from ._v_seq import LazyVSeq

__all__ = ["AdaptiveBaseNode", "BaseNode", "EIFNode", "GeneralNode", "IFNode", "LIAFNode", "LIFNode",
           "MultiStepEIFNode", "MultiStepGeneralNode", "MultiStepIFNode", "MultiStepLIFNode",
           "MultiStepParametricLIFNode", "ParametricLIFNode", "QIFNode", "check_backend"]

_SIGMOID = host_surrogate.Sigmoid()  # one for all nodes, as in the framework
_KEPT = ("v_threshold", "v_reset")


def check_backend(backend: str) -> None:
    """Nothing to check: no backend needs CuPy or Lava any more. Raises MemextError for a name that none had."""
    _check_backend(backend, "check_backend")


class BaseNode(host.BaseNode):
    """A neuron stepped as forward(x): charge, fire, reset. x [N, *] -> spikes [N, *]."""

    _kind = None  # says to retrofit that `forward` below is no equation; the subclasses name theirs
    _step = "s"

    def __init__(self, v_threshold: float = 1.0, v_reset: float | None = 0.0, surrogate_function: Callable = _SIGMOID,
                 detach_reset: bool = False):
        self._init(host.BaseNode, v_threshold=v_threshold, v_reset=v_reset, surrogate_function=surrogate_function,
                   detach_reset=detach_reset)

    def _init(self, cls: type, **arguments) -> None:
        """The constructor of the 2.0.0 class, in this class's step mode."""
        check_floats(type(self).__name__, **arguments)
        if not isinstance(arguments["detach_reset"], bool):
            raise MemextError(f"{type(self).__name__}: detach_reset is {arguments['detach_reset']!r}; True or False is "
                              "needed")
        cls.__init__(self, **arguments, step_mode=self._step)
        self.__dict__["_values_at_reset"] = {name: self.__dict__.get(name) for name in _KEPT}

    # ---- one step mode, by the class ----

    @property
    def step_mode(self):
        return self._step

    @step_mode.setter
    def step_mode(self, value):
        if value != self._step:
            say(f"step_mode {type(self).__name__}",
                f"{type(self).__name__} of clock_driven keeps step mode {self._step!r}, as in 0.0.0.0.14, where "
                f"set_step_mode({value!r}) did not reach it; use activation_based.neuron for nodes with both")

    def supported_step_mode(self):
        return (self._step,)

    # ---- state ----

    def reset(self):
        super().reset()
        self.__dict__.update(self.__dict__.get("_values_at_reset", {}))

    def set_reset_value(self, name, value):
        if name in self.__dict__.get("_values_at_reset", {}):
            self._values_at_reset[name] = value
        else:
            super().set_reset_value(name, value)

    def _check_shape(self, x: Tensor) -> None:
        v = self._memories["v"]
        if isinstance(v, Tensor) and v.shape != x.shape:
            raise MemextError(f"{type(self).__name__}: the state is {list(v.shape)}, the input of a step "
                              f"{list(x.shape)}. 0.0.0.0.12 raised here or broadcast, 2.0.0 would start from rest; "
                              "call functional.reset_net(net) between batches of different size")

    # ---- steps ----

    def forward(self, x: Tensor):
        if not takes_old_way(self):
            self._check_shape(x)
            return self.single_step_forward(x)
        self.neuronal_charge(x)  # as in 0.0.0.0.12, the state is a number until the first charge
        spike = self.neuronal_fire()
        self.neuronal_reset(spike)
        return spike

    def extra_repr(self):
        return f"v_threshold={self.v_threshold}, v_reset={self.v_reset}, detach_reset={self.detach_reset}"


class _MultiStep(LazyVSeq):
    """x_seq [T, N, *] -> spikes [T, N, *]. Stands before the single-step class in the MRO."""

    _kind = None  # as in BaseNode; every class below says its own
    _step = "m"

    def _with_backend(self, backend: str, lava_s_cale: int = 1 << 6) -> None:
        self.backend = _check_backend(backend, type(self).__name__)
        self.lava_s_cale, self.lava_neuron = lava_s_cale, None

    def forward(self, x_seq: Tensor):
        if x_seq.dim() < 2:
            raise MemextError(f"{type(self).__name__}: the input is {list(x_seq.shape)}; [T, N, *] is needed")
        if takes_old_way(self):
            return self._own_sequence(x_seq)
        if x_seq.shape[0]:
            self._check_shape(x_seq[0])
        call = self._about_to_run(x_seq)
        spikes = self.multi_step_forward(x_seq)
        self._ran(call)
        return spikes

    def _own_sequence(self, x_seq: Tensor) -> Tensor:
        spikes, seen = [], []
        for x in x_seq:
            spikes.append(super().forward(x))
            seen.append(self.v)
        self.v_seq = torch.stack(seen)
        return torch.stack(spikes)

    def to_lava(self):
        raise MemextError(f"{type(self).__name__}.to_lava: convert with activation_based.lava_exchange of SpikingJelly "
                          "2, which works on whole blocks")

    def extra_repr(self):
        return f"{super().extra_repr()}, backend={self.backend}"


class IFNode(BaseNode, host.IFNode):
    _kind = dynamics.IF

    def __init__(self, v_threshold: float = 1.0, v_reset: float | None = 0.0, surrogate_function: Callable = _SIGMOID,
                 detach_reset: bool = False, cupy_fp32_inference: bool = False):
        self._init(host.IFNode, v_threshold=v_threshold, v_reset=v_reset, surrogate_function=surrogate_function,
                   detach_reset=detach_reset)
        self.cupy_fp32_inference = cupy_fp32_inference


class MultiStepIFNode(_MultiStep, IFNode):
    _kind = dynamics.IF

    def __init__(self, v_threshold: float = 1.0, v_reset: float | None = 0.0, surrogate_function: Callable = _SIGMOID,
                 detach_reset: bool = False, backend: str = "torch", lava_s_cale: int = 1 << 6):
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset)
        self._with_backend(backend, lava_s_cale)


class LIFNode(BaseNode, host.LIFNode):
    _kind = dynamics.LIF

    def __init__(self, tau: float = 2.0, decay_input: bool = True, v_threshold: float = 1.0,
                 v_reset: float | None = 0.0, surrogate_function: Callable = _SIGMOID, detach_reset: bool = False,
                 cupy_fp32_inference: bool = False):
        self._init(host.LIFNode, tau=tau, decay_input=decay_input, v_threshold=v_threshold, v_reset=v_reset,
                   surrogate_function=surrogate_function, detach_reset=detach_reset)
        self.cupy_fp32_inference = cupy_fp32_inference

    def extra_repr(self):
        return f"{BaseNode.extra_repr(self)}, tau={self.tau}"


class MultiStepLIFNode(_MultiStep, LIFNode):
    _kind = dynamics.LIF

    def __init__(self, tau: float = 2.0, decay_input: bool = True, v_threshold: float = 1.0,
                 v_reset: float | None = 0.0, surrogate_function: Callable = _SIGMOID, detach_reset: bool = False,
                 backend: str = "torch", lava_s_cale: int = 1 << 6):
        super().__init__(tau, decay_input, v_threshold, v_reset, surrogate_function, detach_reset)
        self._with_backend(backend, lava_s_cale)


class ParametricLIFNode(BaseNode, host.ParametricLIFNode):
    _kind = dynamics.ParametricLIF

    def __init__(self, init_tau: float = 2.0, decay_input: bool = True, v_threshold: float = 1.0,
                 v_reset: float | None = 0.0, surrogate_function: Callable = _SIGMOID, detach_reset: bool = False):
        self._init(host.ParametricLIFNode, init_tau=init_tau, decay_input=decay_input, v_threshold=v_threshold,
                   v_reset=v_reset, surrogate_function=surrogate_function, detach_reset=detach_reset)

    def extra_repr(self):
        with torch.no_grad():
            return f"{BaseNode.extra_repr(self)}, tau={1.0 / self.w.sigmoid()}"


class MultiStepParametricLIFNode(_MultiStep, ParametricLIFNode):
    _kind = dynamics.ParametricLIF

    def __init__(self, init_tau: float = 2.0, decay_input: bool = True, v_threshold: float = 1.0,
                 v_reset: float | None = 0.0, surrogate_function: Callable = _SIGMOID, detach_reset: bool = False,
                 backend: str = "torch"):
        super().__init__(init_tau, decay_input, v_threshold, v_reset, surrogate_function, detach_reset)
        self._with_backend(backend)


class QIFNode(BaseNode, host.QIFNode):
    def __init__(self, tau: float = 2.0, v_c: float = 0.8, a0: float = 1.0, v_threshold: float = 1.0,
                 v_rest: float = 0.0, v_reset: float | None = -0.1, surrogate_function: Callable = _SIGMOID,
                 detach_reset: bool = False):
        self._init(host.QIFNode, tau=tau, v_c=v_c, a0=a0, v_threshold=v_threshold, v_rest=v_rest, v_reset=v_reset,
                   surrogate_function=surrogate_function, detach_reset=detach_reset)

    def extra_repr(self):
        return (f"{BaseNode.extra_repr(self)}, tau={self.tau}, v_c={self.v_c}, a0={self.a0}, "
                f"v_rest={self.v_rest}")


class EIFNode(BaseNode, host.EIFNode):
    def __init__(self, tau: float = 2.0, delta_T: float = 1.0, theta_rh: float = 0.8, v_threshold: float = 1.0,
                 v_rest: float = 0.0, v_reset: float | None = -0.1, surrogate_function: Callable = _SIGMOID,
                 detach_reset: bool = False):
        self._init(host.EIFNode, tau=tau, delta_T=delta_T, theta_rh=theta_rh, v_threshold=v_threshold, v_rest=v_rest,
                   v_reset=v_reset, surrogate_function=surrogate_function, detach_reset=detach_reset)

    def extra_repr(self):
        return f"{BaseNode.extra_repr(self)}, tau={self.tau}, delta_T={self.delta_T}, theta_rh={self.theta_rh}"


class MultiStepEIFNode(_MultiStep, EIFNode):
    def __init__(self, tau: float = 2.0, delta_T: float = 1.0, theta_rh: float = 0.8, v_threshold: float = 1.0,
                 v_rest: float = 0.0, v_reset: float | None = -0.1, surrogate_function: Callable = _SIGMOID,
                 detach_reset: bool = False, backend: str = "torch"):
        super().__init__(tau, delta_T, theta_rh, v_threshold, v_rest, v_reset, surrogate_function, detach_reset)
        self._with_backend(backend)


class LIAFNode(LIFNode):
    """Emits act(h) or act(h - v_threshold) instead of spikes, which only reset it."""

    def __init__(self, act: Callable, threshold_related: bool, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.act, self.threshold_related = act, threshold_related

    def forward(self, x: Tensor):
        self._check_shape(x)
        self.neuronal_charge(x)
        y = self.act(self.v - self.v_threshold if self.threshold_related else self.v)
        self.neuronal_reset(self.neuronal_fire())
        return y


def _broken(name: str, why: str, instead: str) -> type:
    def __init__(self, *args, **kwargs):
        raise MemextError(f"clock_driven.neuron.{name}: 0.0.0.0.12's could not be used ({why}), so there is nothing to "
                          f"be compatible with; {instead}")
    return type(name, (BaseNode,), {"__init__": __init__, "__module__": __name__, "__doc__": f"Refused: {why}."})


_BUFFERS = "its buffers a, b and c were set to None when it was made"
_YOURS = "derive from neuron.BaseNode and define neuronal_charge"
AdaptiveBaseNode = _broken("AdaptiveBaseNode", "its constructor raised a TypeError",
                           "use activation_based.neuron.AdaptBaseNode or IzhikevichNode")
GeneralNode = _broken("GeneralNode", _BUFFERS, _YOURS)
MultiStepGeneralNode = _broken("MultiStepGeneralNode", _BUFFERS, _YOURS)
