"""SpikingJelly's IFNode, LIFNode and ParametricLIFNode, run by the fused kernels of shared_core.

    from sj_memext.neuron import FusedLIFNode
    node = FusedLIFNode(tau=2.0, detach_reset=True, step_mode="m")   # wherever neuron.LIFNode(...) stood

Each class is a subclass of the framework's own and holds no equation: it reads the node's attributes when it is
called, hands them to shared_core.functional.multi_step, and keeps the state in the node's own memory `v`. Nothing is
needed that only __init__ creates, so `node.__class__ = FusedLIFNode` turns an existing node into a fused one.

Saved for backward per element and step: the input at its own dtype (the framework: 8 to 16 bytes), plus the initial
state if it is not at rest, and for T > 32 one state per 32 steps.

Differs from SpikingJelly 2.0.0: for float16 and bfloat16 input the membrane is float32, within a call and between
calls (there: the input's dtype); spikes have the input's dtype in both. A sequence may be [T] (there: rank 2 or more).
Changing the input in place before the backward pass, `s = lif(h); h += s`, raises Torch's error about a variable
modified by an inplace operation, because the input is what is kept (there: a potential of its own); write `h = h + s`.
Module hooks on a shipped surrogate function do not run (see surrogate.from_spikingjelly). surrogate_function=None is
refused (there: Sigmoid() on some paths).
All else is the same; on the CPU in float32, bit for bit.

The framework's own equations are used, unchanged, where the kernels cannot say what the node says (and a warning says
so once): a precision set through spikingjelly.activation_based.precision, a threshold, reset value or tau that learns
or has several elements, a surrogate function that learns, input that is not floating point, an op_counter that counts.
"""
from __future__ import annotations

import inspect
import warnings
import weakref
from dataclasses import fields
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor, nn

from shared_core import dynamics
from shared_core._again import fork
from shared_core._groups import in_turn, membrane_shape, side_by_side
from shared_core.chain import neuron as chain
from shared_core.chain.method import NEURON_POLICY
from shared_core.errors import MemextError
from shared_core.functional import multi_step
from shared_core.surrogate import Surrogate

from ._exchange import AskedByLava, operations_are_counted
from ._host import functional, neuron
from ._host import surrogate as host_surrogate
from .surrogate import from_spikingjelly

__all__ = ["FusedIFNode", "FusedLIFNode", "FusedParametricLIFNode", "ReversibleLIFNode", "ReversibleOTTTLIFNode",
           "SLTTLIFNode", "SharedLIFNode", "overrides"]

# What a subclass may define that changes what the neuron computes. The neuronal_* methods are of SpikingJelly
# 0.0.0.0.x; 2.0.0 never calls them on these classes.
_LEGACY = ("neuronal_charge", "neuronal_adaptation", "neuronal_fire", "neuronal_reset")
_FUNCTIONAL = ("materialize_states", "single_step_functional_forward", "multi_step_functional_forward")
_EQUATIONS = (*_LEGACY, "apply_hard_reset", "apply_soft_reset", *_FUNCTIONAL,
              "functional_forward", "single_step_forward", "multi_step_forward", "forward")
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_said: set[str] = set()


def overrides(cls: type, host_cls: type) -> list[str]:
    """Names of the equation methods that `cls`, a subclass of the framework's `host_cls`, defines in its own way.

    Our fused classes do not count. [] means that the fused class of `host_cls` computes what `cls` computes. The old
    neuronal_* methods are listed too, though SpikingJelly 2.0.0 ignores them: who wrote one meant something by it.
    """
    return [name for name in _EQUATIONS
            if not _ours(_definer(cls, name)) and _definer(cls, name) not in (None, _definer(host_cls, name))]


def _ours(cls: type | None) -> bool:
    """A class that names its dynamics, in this module or in another; not what users derive from it."""
    return cls is _Fused or "_kind" in vars(cls or object)


def _definer(cls: type, name: str) -> type | None:
    return next((c for c in cls.__mro__ if name in c.__dict__), None)


class _Fused(AskedByLava):
    """What the fused classes share. Stands before the framework's class in the MRO."""

    _kind: ClassVar[type[dynamics.Dynamics]]
    _online: ClassVar[bool] = False  # the gradient of SLTT (sltt.py)
    _groups: ClassVar[int] = 1  # channel groups that share a membrane (shared.py)

    def __init__(self, *args, backend: str | None = None, **kwargs):
        if backend is not None:
            _say("backend", f"{type(self).__name__}: backend={backend!r} is ignored; the device of the input chooses "
                            "the kernel (SpikingJelly 2 has no such argument either)")
        super().__init__(*args, **kwargs)

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "_kind" in vars(cls) and "__init__" not in vars(cls):  # the signature of the framework's class, the last
            own = [p for p in list(inspect.signature(cls.__bases__[-1].__init__).parameters.values())[1:]
                   if p.name != "backend"]  # 0.0.0.0.14 has one of its own
            backend = inspect.Parameter("backend", inspect.Parameter.KEYWORD_ONLY, default=None)
            cls.__signature__ = inspect.Signature([*own, backend])
        # sj_memext.compat gives them back to the framework's classes; only the user's own are ignored here.
        ignored = [name for name in _LEGACY
                   if hasattr(cls, name) and not _definer(cls, name).__module__.startswith(neuron.__name__)]
        if ignored:
            warnings.warn(f"{cls.__qualname__} defines {', '.join(ignored)}, which SpikingJelly 2 never calls on such "
                          "nodes: the equations stay those of the base class. Define single_step_functional_forward "
                          "and multi_step_functional_forward, or derive from neuron.SimpleLIFNode", RuntimeWarning,
                          stacklevel=2)

    # ---- what each class says about itself ----

    def _options(self) -> tuple:
        """Fields of the dynamics after (v_th, v_reset, detach_reset)."""
        return ()

    def _params(self) -> tuple[Tensor, ...]:
        """Tensor parameters of the dynamics."""
        return ()

    def _framework_steps(self, x_seq: Tensor, v: Tensor, tail: tuple, **kwargs):
        """The framework's own function for a sequence: spikes, final v, v after every step or None."""
        raise NotImplementedError

    # ---- the framework's interface ----

    def materialize_states(self, inputs, states, step_mode):
        if self._plan(inputs[0], step_mode) is None:
            return super().materialize_states(inputs, states, step_mode)
        x = inputs[0][0] if step_mode == "m" else inputs[0]
        rest = 0.0 if self.v_reset is None else float(self.v_reset)
        v = self._initial(states[0], x, rest)
        if v is None:
            v = torch.full(self._membrane(x), rest, dtype=_state_dtype(x), device=x.device)
        return (v, *states[1:])

    def functional_forward(self, inputs, states, **kwargs):
        if self.step_mode == "s":
            return self.single_step_functional_forward(inputs, self._given(inputs, states), **kwargs)
        if self.step_mode == "m":
            return self.multi_step_functional_forward(inputs, self._given(inputs, states), **kwargs)
        raise ValueError(self.step_mode)

    def single_step_functional_forward(self, inputs, states, **kwargs):
        plan = self._plan(inputs[0], "s")
        if plan is None:
            return self._framework_step(inputs, states, **kwargs)
        spikes, v, _ = self._run(plan, inputs[0].unsqueeze(0), states[0], record=False)
        return (spikes.squeeze(0),), (v, *states[1:])

    def multi_step_functional_forward(self, inputs, states, **kwargs):
        spikes, v, _ = self._steps(inputs[0], states[0], record=False)
        return (spikes,), (v, *states[1:])

    def single_step_forward(self, x, *args, **kwargs):
        inputs = (x, *args)
        states = self._given(inputs, tuple(self._memories.values()))
        outputs, states = self.single_step_functional_forward(inputs, states, **kwargs)
        for name, value in zip(self._memories, states, strict=True):
            self._memories[name] = value
        if self.store_v_seq:
            self._append_v_seq(self._v_seq_source())
        return outputs[0] if len(outputs) == 1 else outputs

    def multi_step_forward(self, x_seq, *args, **kwargs):
        cls = type(self)
        if any(getattr(cls, name) is not getattr(_Fused, name) for name in _FUNCTIONAL):
            return super().multi_step_forward(x_seq, *args, **kwargs)  # a subclass with equations of its own
        spikes, self._memories["v"], self.v_seq = self._steps(x_seq, self._memories["v"], record=self.store_v_seq)
        return spikes

    def _framework_step(self, inputs, states, **kwargs):
        """One step by the framework's own equations, one channel group after the other."""
        x, *more = inputs
        if self._groups == 1:
            states = super().materialize_states(inputs, states, "s")
            return super().single_step_functional_forward(inputs, states, **kwargs)
        self._membrane(x)
        spikes = []
        for part in in_turn(x.unsqueeze(0), self._groups):
            states = super().materialize_states((part, *more), states, "s")
            (s,), states = super().single_step_functional_forward((part, *more), states, **kwargs)
            spikes.append(s)
        return (side_by_side(torch.stack(spikes), self._groups).squeeze(0),), states

    # ---- one call ----

    def _steps(self, x_seq: Tensor, v, record: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """x_seq [T, *], v a number or [*] -> spikes [T, *], final v [*], v after every step [T, *] or None."""
        plan = self._plan(x_seq, "m")
        if plan is not None:
            return self._run(plan, x_seq, v, record)
        if self._groups > 1:
            self._membrane(x_seq[0])
            x_seq = in_turn(x_seq, self._groups)
        (v,) = super().materialize_states((x_seq,), (v,), "m")
        storage, forward, backward = self._neuron_precision or (None, "fp32", "fp32")
        tail = (self.v_threshold, self.v_reset, self.surrogate_function, self.detach_reset, record)
        spikes, v, seen = self._framework_steps(x_seq, v, tail, neuron_storage=storage, neuron_fwd=forward,
                                                neuron_bwd=backward)
        if self._groups > 1:
            spikes = side_by_side(spikes, self._groups)
            seen = None if seen is None else seen[self._groups - 1::self._groups]
        return spikes, v, seen

    def _run(self, plan: tuple[dynamics.Dynamics, Surrogate], x_seq: Tensor, v, record: bool):
        kind, surrogate = plan
        if x_seq.dim() and x_seq.shape[0]:  # else multi_step says what is wrong with it
            v = self._initial(v, x_seq[0], kind.resting)
        policy = self.__dict__.get(NEURON_POLICY)  # set by the retrofit methods "compress" and "recompute"
        if policy is None:
            out = multi_step(kind, x_seq, (v,), self._params(), surrogate=surrogate, record=record,
                             online=self._online, groups=self._groups)
        else:
            out = chain.multi_step(kind, x_seq, (v,), self._params(), surrogate=surrogate, record=record, policy=policy,
                                   online=self._online, groups=self._groups)
        return out.spikes, out.state[0], out.sequence[0] if record else None

    def _given(self, inputs, states):
        """States as they are: one at rest stays a number, which costs nothing to keep for the backward pass."""
        if type(self).materialize_states is _Fused.materialize_states:
            return states
        return self.materialize_states(inputs, states, self.step_mode)

    def _membrane(self, x: Tensor) -> torch.Size:
        """Shape of the state, for a step on x."""
        return membrane_shape(type(self).__name__, x.shape, self._groups)

    def _initial(self, v, x: Tensor, rest: float) -> Tensor | None:
        """The state before a step on x [*]: None if at rest, else a tensor. As in the framework, a state of
        another shape starts again from rest, and one of another dtype or device is moved."""
        shape = x.shape if self._groups == 1 else self._membrane(x)
        if isinstance(v, Tensor):
            if v.shape != shape:
                return None
            dtype = _state_dtype(x)
            if v.dtype != dtype or v.device != x.device:
                v = v.to(device=x.device, dtype=dtype)
            if v.is_inference() and not torch.is_inference_mode_enabled():
                v = v.clone()  # what inference_mode left cannot be saved for backward
            return v
        if not isinstance(v, (int, float)):
            raise MemextError(f"{type(self).__name__}: the memory v is {v!r}; a number or a tensor is needed. "
                              "Set it back with functional.reset_net(net)")
        return None if v == rest else torch.full(shape, float(v), dtype=_state_dtype(x), device=x.device)

    def _plan(self, x: Tensor, step_mode: str) -> tuple[dynamics.Dynamics, Surrogate] | None:
        """What multi_step is to run, from the attributes as they are now; None: the framework's own equations."""
        function = self.surrogate_function
        if not isinstance(x, Tensor):
            raise MemextError(f"{type(self).__name__}: the input is {type(x).__name__} {x!r:.60}; a tensor is needed. "
                              "Use torch.as_tensor(...)")
        if not callable(function):
            raise MemextError(f"{type(self).__name__}: surrogate_function is {function!r}; allowed: a surrogate of "
                              f"{host_surrogate.__name__} or sj_memext.surrogate, or a function from h - v_threshold "
                              "to spikes. Set it, for example node.surrogate_function = surrogate.Sigmoid()")
        values = (self.v_threshold, self.v_reset, self.detach_reset, *self._options())
        reason = None
        if step_mode == "m" and self._neuron_precision is not None:  # single steps ignore it in the framework, too
            reason = "a neuron precision is set"
        elif x.dtype not in _FLOATS:
            reason = f"the input is {x.dtype}"
        elif operations_are_counted():
            reason = "its operations are being counted"
        elif any(isinstance(v, Tensor) for v in values):
            if any(isinstance(v, Tensor) and (v.requires_grad or v.numel() != 1) for v in values):
                reason = "a threshold, reset value or tau is a tensor that learns or has several elements"
            else:
                values = tuple(v.item() if isinstance(v, Tensor) else v for v in values)
        if reason is None:
            surrogate = from_spikingjelly(function)
            if surrogate.fn is None or not _learns(function, x, x.shape[1:] if step_mode == "m" else x.shape):
                return _dynamics(self._kind, *values), surrogate
            reason = "the surrogate function learns, or takes part in a gradient of its own"
        _say(reason, f"{type(self).__name__}: running on SpikingJelly's own equations: {reason}")
        return None


class FusedIFNode(_Fused, neuron.IFNode):
    """Integrate-and-fire. Arguments, attributes and memories: neuron.IFNode's; backend= is accepted and ignored.

    Equation: shared_core.dynamics.IF. Source: SpikingJelly 2.0.0, neuron.IFNode.
    """

    _kind = dynamics.IF

    def _framework_steps(self, x_seq, v, tail, **kwargs):
        return functional.if_multi_step(x_seq, v, *tail, **kwargs)


class FusedLIFNode(_Fused, neuron.LIFNode):
    """Leaky integrate-and-fire. Arguments, attributes and memories: neuron.LIFNode's; backend= is ignored.

    Equation: shared_core.dynamics.LIF. Source: SpikingJelly 2.0.0, neuron.LIFNode.
    """

    _kind = dynamics.LIF

    def _options(self):
        return self.tau, self.decay_input

    def _framework_steps(self, x_seq, v, tail, **kwargs):
        return functional.lif_multi_step(x_seq, v, self.tau, self.decay_input, *tail, **kwargs)


class FusedParametricLIFNode(_Fused, neuron.ParametricLIFNode):
    """LIF with a learnable time constant, 1/tau = sigmoid(w). Arguments, attributes, parameter `w` and memories:
    neuron.ParametricLIFNode's; backend= is ignored. `w` may also have a shape broadcastable to one step's.

    Equation: shared_core.dynamics.ParametricLIF. Source: SpikingJelly 2.0.0, neuron.ParametricLIFNode.
    """

    _kind = dynamics.ParametricLIF

    def _options(self):
        return (self.decay_input,)

    def _params(self):
        w = self.w
        return ((w.float() if w.dtype in (torch.float16, torch.bfloat16) else w).sigmoid(),)

    def _framework_steps(self, x_seq, v, tail, **kwargs):
        return functional.plif_multi_step(x_seq, v, self.w, self.decay_input, *tail, **kwargs)


def _learns(function, x: Tensor, shape: torch.Size) -> bool:
    """Would a gradient flow into something inside this surrogate? The replay in the backward pass would lose it.

    shape: of what the function is called on. dtype and device: those of the state for an input like `x`.
    """
    if not torch.is_grad_enabled():
        return False
    if type(function).__module__ == host_surrogate.__name__ and "forward" not in vars(function):
        return any(isinstance(p, Tensor) and p.requires_grad for p in function._sg_params.values())
    if isinstance(function, nn.Module) and any(p.requires_grad for p in function.parameters()):
        return True
    known = _asked.get(id(function))
    if known is None:
        known = _asked[id(function)] = _answer(function, x, shape)
        try:  # an id is the next object's once this one is gone
            weakref.finalize(function, _asked.pop, id(function), None).atexit = False
        except TypeError:  # cannot be watched: asked again at the next call
            del _asked[id(function)]
    return known


# id of a function -> what it answered, asked once: it is the user's code, and calling it may cost time or be counted.
# What starts to learn later is found by shared_core where a module, closure or attribute holds it.
_asked: dict[int, bool] = {}


def _answer(function, x: Tensor, shape: torch.Size) -> bool:
    """Anything may hide in a closure: the answer to a constant has a gradient only if it comes from inside. One element
    is enough, unless the function needs the whole shape. Random generators stay as they were."""
    ask = torch.zeros([1] * len(shape), dtype=_state_dtype(x), device=x.device)
    with fork(x.device):
        try:
            return function(ask).requires_grad
        except Exception:  # whatever a function raises that looks at sizes; its own mistakes come again below
            return function(ask.new_zeros(shape)).requires_grad


def _state_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


@lru_cache(maxsize=1024)
def _dynamics(kind: type[dynamics.Dynamics], *values) -> dynamics.Dynamics:
    """Users write 1 for 1.0 and numpy's numbers; the description holds Python's floats and bools."""
    return kind(*(v if v is None else (bool if f.type == "bool" else float)(v)
                  for v, f in zip(values, fields(kind), strict=True)))


def _say(key: str, text: str) -> None:
    if key not in _said:
        _said.add(key)
        warnings.warn(text, RuntimeWarning, stacklevel=4)


from .reversible import ReversibleLIFNode, ReversibleOTTTLIFNode  # noqa: E402
from .shared import SharedLIFNode  # noqa: E402  they are made of what stands above
from .sltt import SLTTLIFNode  # noqa: E402
