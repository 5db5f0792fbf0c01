"""RevSNN's reversible neuron for SpikingJelly ("Towards Zero Memory Footprint SNN Training", Eq. 1-6).

    node = ReversibleLIFNode(groups=2, tau=2.0, alpha=0.1, step_mode="m")     # in the place of neuron.LIFNode(...)
    x_seq = node.invert(y_seq)                                                # its inputs, from its output alone

It is a neuron of its own, not another way to run LIFNode: its output carries the input of a neighbouring group and is
real-valued. shared_core.reversible.neuron has the equations.
"""
from __future__ import annotations

import numbers
from functools import lru_cache

import torch
from torch import Tensor

from shared_core.errors import MemextError
from shared_core.reversible import neuron as core

from ._exchange import AskedByLava, operations_are_counted
from ._host import neuron
from ._host import surrogate as host_surrogate
from .surrogate import from_spikingjelly

__all__ = ["ReversibleLIFNode", "ReversibleOTTTLIFNode"]

_equations = lru_cache(maxsize=1024)(core.Equations)


class _Reversible(AskedByLava):
    """The neuron itself, before a class of the framework's. Reads the node's attributes at every call."""

    groups, alpha, beta, split_dim, tau = 2, 0.1, 1.0, -1, 2.0
    _online = False  # the potential before a step is a constant

    # ---- what users call ----

    def invert(self, y_seq: Tensor, v: Tensor | None = None, potentials: bool = False):
        """The inputs of a sequence, from its outputs.

        y_seq: [T, N, *], T successive outputs in either step mode.  v: [N, *], the potential before the first; None:
        at rest (v_reset).
        Returns: x_seq [T, N, *], bit for bit the inputs that the neuron used: round(beta x 2^16) / 2^16 / beta. With
        potentials=True also the potentials before each step, [T, N, *], bit for bit.
        Raises MemextError: wrong shape or dtype; a surrogate that draws random numbers or emits real values.
        """
        x_seq, before = core.invert(self._eq(), y_seq, v, surrogate=self._surrogate(), split_dim=self.split_dim,
                                    name=type(self).__name__)
        return (x_seq, before) if potentials else x_seq

    def check_invertible(self, sample: Tensor) -> bool:
        """Whether the inputs `sample` ([T, N, *]; in step mode "s" [N, *]) come back bit for bit. Leaves the state."""
        sample = sample.unsqueeze(0) if self.step_mode == "s" else sample
        return core.is_invertible(self._eq(), sample, surrogate=self._surrogate(), split_dim=self.split_dim,
                                  name=type(self).__name__)

    # ---- the framework's interface ----

    def materialize_states(self, inputs, states, step_mode):
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        v = self._initial(states[0], x)
        if v is None:
            v = torch.full(x.shape, self._eq().v_reset, dtype=_state_dtype(x), device=x.device)
        return (v, *states[1:])

    def functional_forward(self, inputs, states, **kwargs):
        if self.step_mode == "s":
            return self.single_step_functional_forward(inputs, states, **kwargs)
        if self.step_mode == "m":
            return self.multi_step_functional_forward(inputs, states, **kwargs)
        raise ValueError(self.step_mode)

    def single_step_functional_forward(self, inputs, states, **kwargs):
        y, v = self._run(inputs[0].unsqueeze(0), states[0])
        return (y.squeeze(0),), (v, *states[1:])

    def multi_step_functional_forward(self, inputs, states, **kwargs):
        y_seq, v = self._run(inputs[0], states[0])
        return (y_seq,), (v, *states[1:])

    def single_step_forward(self, x, *args, **kwargs):
        outputs, states = self.single_step_functional_forward((x, *args), tuple(self._memories.values()), **kwargs)
        for name, value in zip(self._memories, states, strict=True):
            self._memories[name] = value
        if self.store_v_seq:
            self._append_v_seq(self._v_seq_source())
        return outputs[0] if len(outputs) == 1 else outputs

    def multi_step_forward(self, x_seq, *args, **kwargs):
        if self.store_v_seq:
            return super().multi_step_forward(x_seq, *args, **kwargs)
        y_seq, self._memories["v"] = self._run(x_seq, self._memories["v"])
        return y_seq

    def extra_repr(self):
        return (f"groups={self.groups}, tau={self.tau}, alpha={self.alpha}, beta={self.beta}, "
                f"v_threshold={self.v_threshold}, v_reset={self.v_reset}, split_dim={self.split_dim}, "
                f"step_mode={self.step_mode}")

    # ---- one call ----

    def _eq(self) -> core.Equations:
        values = (self.tau, self.alpha, self.beta, self.v_threshold, self.v_reset)
        if any(not isinstance(value, numbers.Real) for value in values):
            return core.Equations(self.groups, *values)  # raises, in its own words
        return _equations(self.groups, *map(float, values))

    def _surrogate(self):
        if not callable(self.surrogate_function):
            raise MemextError(f"{type(self).__name__}: surrogate_function is {self.surrogate_function!r}; a surrogate "
                              f"of {host_surrogate.__name__} or sj_memext.surrogate is needed")
        return from_spikingjelly(self.surrogate_function)

    def _run(self, x_seq: Tensor, v) -> tuple[Tensor, Tensor]:
        if isinstance(x_seq, Tensor) and x_seq.dim() and x_seq.shape[0]:
            v = self._initial(v, x_seq[0])
        return core.multi_step(self._eq(), x_seq, v, surrogate=self._surrogate(), split_dim=self.split_dim,
                               online=self._online, name=type(self).__name__,
                               backend="reference" if operations_are_counted() else "auto")

    def _initial(self, v, x: Tensor) -> Tensor | None:
        """The potential before a step on x [N, *]: None at rest. As in the framework, one of another shape starts
        again from rest, and one of another dtype or device is moved."""
        if isinstance(v, Tensor):
            if v.shape != x.shape:
                return None
            v = v.to(device=x.device, dtype=_state_dtype(x))
            return v.clone() if v.is_inference() and not torch.is_inference_mode_enabled() else v
        if isinstance(v, bool) or not isinstance(v, numbers.Real):
            raise MemextError(f"{type(self).__name__}: the memory v is {v!r}; a number or a tensor is needed. Set it "
                              "back with functional.reset_net(net)")
        rest = self._eq().v_reset
        return None if v == rest else torch.full(x.shape, float(v), dtype=_state_dtype(x), device=x.device)


def _state_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


class ReversibleLIFNode(_Reversible, neuron.LIFNode):
    """The reversible neuron: nothing is kept for its backward pass but its own output.  Source: RevSNN Eq. 1-6.

        M[1] = V[1] + (X[1] - V[1]) / tau,   M[g] = V[g] + (Y[g-1] - V[g]) / tau
        Y[g] = H(M[g] - v_threshold) + beta X[g+1]     (the last group carries X[1])
        V[g] <- (1 - Y[g]) M[g] + Y[g] v_reset + alpha V[g]
    shared_core.reversible.neuron.Equations has the exact form: inputs are rounded to 2^-16 / beta on entry.

    groups: the elements of dimension split_dim are split into so many contiguous groups; it must divide their number.
    tau: membrane time constant in steps, > 0.  alpha: share of the old potential that is added; the paper: 0.1 to 0.2.
    beta: scale of the carried input, not 0; the paper: 1.  v_reset: a number (this neuron has no soft reset).
    split_dim: of a step [N, *]: -1 is the paper's last dimension, 1 the channels (there, odd or 1-wide maps split too).
    surrogate_function, step_mode, store_v_seq, the memory `v`, reset: as in the framework. backend= is ignored.

    Output: real-valued float32 (float64 for float64 input), also under autocast and for half-precision input.
    Multi-step: [T, N, *] -> [T, N, *]; kept: the output, in the very storage that the next layer keeps anyway.
    Single-step: kept are the output and the potential before the step.
    Where the next layer does not keep its input (an addition), or keeps a half-precision copy (autocast), the output
    is memory of the neuron's own: 4 B per element and step.

    Raises MemextError: a constant out of range; when called: a dimension that groups do not divide. At the end of a
    backward pass: inputs beyond |beta x| < 127, where the output is not exact. In it: an output changed in place.
    """

    def __init__(self, groups: int = 2, tau: float = 2.0, alpha: float = 0.1, beta: float = 1.0,
                 v_threshold: float = 1.0, v_reset: float = 0.0,
                 surrogate_function=host_surrogate.Sigmoid(),  # noqa: B008  as in the framework
                 step_mode: str = "s", split_dim: int = -1, backend: str | None = None, store_v_seq: bool = False):
        core.Equations(groups, tau, alpha, beta, v_threshold, v_reset)  # says what is wrong with them
        super(neuron.LIFNode, self).__init__(float(v_threshold), float(v_reset), surrogate_function, False, step_mode,
                                             store_v_seq)  # LIFNode's own wants tau > 1
        self.groups, self.tau, self.alpha, self.beta = groups, float(tau), float(alpha), float(beta)
        self.split_dim, self.decay_input = split_dim, True


class ReversibleIFNode(_Reversible, neuron.IFNode):
    """What retrofit makes of an IFNode: a ReversibleLIFNode (with a tau, which IF has not) that still is an IFNode."""


class ReversibleOTTTLIFNode(ReversibleLIFNode):
    """RevOTTT: the reversible neuron with the online gradient of OTTT. Single-step only.

    In training mode it returns [output, trace], as the framework's OTTTLIFNode does, for layer.GradwithTrace and
    OTTTSequential: trace <- (1 - 1 / tau) trace + output, without a gradient. The potential before each step is a
    constant, so memory does not grow with time. Arguments: ReversibleLIFNode's.
    """

    _online = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.step_mode != "s":
            raise MemextError(f"{type(self).__name__}: step_mode is {self.step_mode!r}; OTTT steps through time: 's'")
        self.register_memory("trace", None)

    def supported_step_mode(self):
        return ("s",)

    def single_step_functional_forward(self, inputs, states, **kwargs):
        (y,), (v, *_) = super().single_step_functional_forward(inputs, states, **kwargs)
        if not self.training:
            return (y,), (v, states[1])
        with torch.no_grad():
            trace = states[1]
            fits = isinstance(trace, Tensor) and trace.shape == y.shape
            trace = trace.to(y) * (1.0 - 1.0 / self.tau) + y if fits else y.detach().clone()
        return (y, trace), (v, trace)

    def single_step_forward(self, x, *args, **kwargs):
        out = super().single_step_forward(x, *args, **kwargs)
        return list(out) if isinstance(out, tuple) else out
