"""What FusedLeaky and FusedSynaptic share: which calls the kernels serve, one step, a sequence, copies.

A public class stands in neurons.py and says four things: its equations (`_kind`), the framework's class that it
extends (its last base), and the signatures of `forward` and `multi_step`. The names of its states and parameters are
those of the equations: `Synaptic.states` is ("syn", "mem"), and so are the framework's attributes.
"""
from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from shared_core import functional
from shared_core._groups import in_turn, membrane_shape, side_by_side
from shared_core.dynamics import Dynamics
from shared_core.errors import MemextError
from shared_core.surrogate import Surrogate

from . import _host
from ._instances import hold_new_weakly
from .surrogate import from_snntorch

__all__ = ["Fused", "overrides", "why_host_path"]

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# Called on self by the framework's steps: an instance may have its own.
_HOOKS = ("fire", "mem_reset", "_base_state_function", "_base_state_reset_zero")
_SERVED: dict[type, type[Fused]] = {}  # the framework's class -> ours


def overrides(cls: type, host_cls: type) -> list[str]:
    """Names of the methods with `host_cls`'s equations that `cls` defines anew; a kernel would ignore them.

    assert overrides(snntorch.Leaky, snntorch.Leaky) == []
    """
    named = ("forward", "fire", "fire_inhibition", "mem_reset", "state_function")
    equations = [n for n in dir(host_cls) if n in named or n.startswith("_base_")]
    return [n for n in equations if getattr(cls, n, None) is not getattr(host_cls, n)]


def why_host_path(neuron: nn.Module) -> str | None:
    """None if the kernels can run this neuron of snnTorch's or ours, else why snnTorch's own steps will.

    It judges the neuron's options. Single calls leave the kernels, too: under torch.compile, if the input is not a
    float tensor, if a float64 state or vector parameter meets narrower input, or if a parameter does not broadcast to
    the input.
    """
    return _plan(neuron).reason


class _Plan(NamedTuple):
    """A neuron's options, converted. key: the attributes it was made from."""

    key: tuple
    dynamics: Dynamics | None
    surrogate: Surrogate | None
    reason: str | None


def _key(neuron) -> tuple:
    get = neuron.__dict__.get
    # neuron.spike_grad would be slower; a module is not in __dict__, and is always refused
    return (type(neuron), get("spike_grad"), get("state_function"), get("reset_delay"), get("state_quant"),
            get("inhibition"))


def _plan(neuron) -> _Plan:
    key = _key(neuron)
    try:
        dynamics, surrogate = _convert(neuron)
        return _Plan(key, dynamics, surrogate, None)
    except MemextError as refusal:
        return _Plan(key, None, None, str(refusal))


def _convert(neuron) -> tuple[Dynamics, Surrogate]:
    host = next((cls for cls in type(neuron).__mro__ if cls in _SERVED), None)
    if host is None:
        raise MemextError(f"there are kernels for {', '.join(cls.__name__ for cls in _SERVED)}, none for "
                          f"{type(neuron).__name__}")
    if neuron.state_quant:
        raise MemextError("state_quant rounds the state inside the step")
    if neuron.inhibition:
        raise MemextError("inhibition couples the neurons of a layer")
    changed = [n for n in overrides(type(neuron), host) if n != "forward"]
    changed += [n for n in _HOOKS if n in neuron.__dict__]
    resets = {host._base_sub: "subtract", host._base_zero: "zero", host._base_int: "none"}
    mechanism = resets.get(getattr(neuron.state_function, "__func__", None))
    if changed or mechanism is None:
        raise MemextError(f"the equations are the user's own: {', '.join(changed) or 'state_function'}")
    surrogate = _convert_surrogate(neuron.spike_grad)
    return _SERVED[host]._kind(mechanism, bool(neuron.reset_delay)), surrogate


def _convert_surrogate(spike_grad: Callable[[Tensor], Tensor]) -> Surrogate:
    surrogate = from_snntorch(spike_grad)
    if surrogate.alphabet != "binary":
        raise MemextError(f"surrogate {surrogate.name!r} is not known to return 0 and 1")
    if surrogate.random:  # a replay cannot draw the numbers that the host would draw in its backward pass
        raise MemextError(f"surrogate {surrogate.name!r} draws random numbers, or may")
    if surrogate.fn is None:
        return surrogate
    if isinstance(spike_grad, nn.Module):  # may keep state or learn; the recomputing backward sees neither
        raise MemextError(f"surrogate {type(spike_grad).__name__} is a module")
    problem = _probe(spike_grad)
    if problem:
        raise MemextError(f"surrogate {surrogate.name!r} {problem}")
    return surrogate


def _probe(spike_grad: Callable[[Tensor], Tensor]) -> str | None:
    """None if an unknown function behaves as the recomputing Torch path needs it: 0 or 1 in float32, nothing learns."""
    z = torch.tensor([-1.5, -0.5, -1e-3, 0.0, 1e-3, 0.5, 1.5])
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        try:
            s = spike_grad(z)
        except Exception as problem:  # the host's own call is to fail, and in its own words
            return f"fails: {problem}"
    if not isinstance(s, Tensor) or s.shape != z.shape or s.dtype != torch.float32:
        return "does not return float32 of its input's shape"
    if s.requires_grad:
        return "has learnable parameters inside"
    return None if bool(((s == 0) | (s == 1)).all()) else "returns other values than 0 and 1"


class Fused:
    """Mixed in before the framework's class. Nothing is needed that only __init__ creates."""

    _kind: ClassVar[type[Dynamics]]            # its states and parameters are attributes of the neuron
    _public: ClassVar[type[Fused]]             # the class that sets _kind; users may derive from it
    _states: ClassVar[tuple[str, ...]]
    _decays: ClassVar[tuple[str, ...]]         # the parameters before threshold and scale: clamped to [0, 1]
    _groups: ClassVar[int] = 1                 # channel groups that share a membrane (shared.py)

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "_kind" in vars(cls):
            cls._public, cls._states, cls._decays = cls, cls._kind.states, cls._kind.params[:-2]
            _SERVED[cls.__bases__[-1]] = cls
            cls.__init__ = _constructor(cls)

    def _step(self, input_, *given):
        """forward of the public classes; given: one state or None per name in `_states`."""
        names = self._states
        for name, value in zip(names, given):
            if value is not None:
                if self.init_hidden:
                    return super().forward(input_, *given)  # raises
                setattr(self, name, value)
        shape = input_.shape if self._groups == 1 else membrane_shape(type(self).__name__, input_.shape, self._groups)
        # A state of another shape: the host starts from zeros; at rest, nothing needs to be saved.
        states = tuple([s if s.shape == shape else None for s in [getattr(self, name) for name in names]])
        call = self._call(input_, shape, states)
        if call is None:
            return super().forward(input_) if self._groups == 1 else self._host_step(input_)
        out = functional.multi_step(call[0], input_.unsqueeze(0), states, call[2], surrogate=call[1],
                                    spike_dtype=torch.float32, groups=self._groups)
        # Not a view: users may detach_() spikes, as snntorch.SpikingNeuron.detach does.
        spk = torch.ops.aten._unsafe_view.default(out.spikes, input_.shape)
        if call[1].name == "none":
            spk = spk.detach()
        for name, value in zip(names, out.state):
            setattr(self, name, value)
        self._keep_before(shape, input_, states[-1])
        return spk if self.init_hidden and not self.output else (spk, *out.state)

    def _host_step(self, input_: Tensor):
        """One step by the host's own equations, one channel group after the other."""
        out = [super(Fused, self).forward(x) for x in in_turn(input_.unsqueeze(0), self._groups)]
        parts = torch.stack([o[0] if isinstance(o, tuple) else o for o in out])
        spk = side_by_side(parts, self._groups).squeeze(0)
        return (spk, *out[-1][1:]) if isinstance(out[-1], tuple) else spk

    def _sequence(self, x_seq: Tensor, given: Sequence[Tensor | None], record: bool) -> tuple[Tensor, ...]:
        """multi_step of the public classes."""
        names = self._states
        if self.init_hidden and any(value is not None for value in given):
            listed = " or ".join(f"`{name}`" for name in reversed(names))
            raise TypeError(f"{listed} should not be passed as an argument while `init_hidden=True`")
        if not isinstance(x_seq, Tensor) or x_seq.dim() == 0 or x_seq.shape[0] == 0:
            got = tuple(x_seq.shape) if isinstance(x_seq, Tensor) else type(x_seq).__name__
            raise MemextError(f"{self._public.__name__}.multi_step: x_seq is {got}; a tensor [T, N, *] with T >= 1 is "
                              "needed, time first (call the layer itself for one step)")
        shape = membrane_shape(type(self).__name__, x_seq.shape[1:], self._groups)
        own_forward = type(self).forward is not self._public.forward  # may take states of another shape than x_seq[t]
        for name, value in zip(names, given):
            if value is not None:
                self._check_start(name, value, x_seq.shape, None if own_forward else shape)
        starts = [getattr(self, name) if value is None else value for name, value in zip(names, given)]
        states = tuple(s if s.shape == shape else None for s in starts)
        call = None if own_forward else self._call(x_seq, shape, states)
        if call is None:
            return self._loop(x_seq, given, record)
        out = functional.multi_step(call[0], x_seq, states, call[2], surrogate=call[1], spike_dtype=torch.float32,
                                    record=record, groups=self._groups)
        for name, value in zip(names, out.state):
            setattr(self, name, value)
        self.__dict__.pop("reset", None)
        self.__dict__.pop("_memext_before", None)
        spikes = out.spikes.detach() if call[1].name == "none" else out.spikes
        return spikes, *(out.sequence if record else out.state)

    def _check_start(self, name: str, value: Tensor, x_shape: torch.Size, shape: torch.Size | None) -> None:
        where = f"{self._public.__name__}.multi_step: {name}"
        if not isinstance(value, Tensor):
            raise MemextError(f"{where} is {type(value).__name__}; a tensor [N, *], or None to go on from "
                              f"`self.{name}`, is needed")
        # (0,) is what reset_mem() and init_leaky() return before the first step: at rest
        if shape is not None and value.shape != shape and bool(value.any()):
            raise MemextError(f"{where} has shape {tuple(value.shape)}, and x_seq {tuple(x_shape)} is a sequence of "
                              f"steps with states of shape {tuple(shape)}; pass a state of that shape, or call "
                              "reset_mem() and pass none to start at rest")

    def _loop(self, x_seq: Tensor, given: Sequence[Tensor | None], record: bool) -> tuple[Tensor, ...]:
        spikes, seen = [], []
        for t, x in enumerate(x_seq):
            started = t == 0 and any(value is not None for value in given)
            out = self.forward(x, *given) if started else self.forward(x)
            spikes.append(out[0] if isinstance(out, tuple) else out)
            if record:
                seen.append([getattr(self, name) for name in self._states])
        last = [getattr(self, name) for name in self._states]
        return torch.stack(spikes), *(map(torch.stack, zip(*seen)) if record else last)

    # ---- what a call needs, or None for the host's path ------------------------------------------------------------

    def _call(self, x: Tensor, shape: torch.Size, states: tuple[Tensor | None, ...]
              ) -> tuple[Dynamics, Surrogate, tuple[Tensor, ...]] | None:
        """(dynamics, surrogate, parameters); shape: that of the states."""
        if torch.compiler.is_compiling():
            return None  # reading a surrogate's closure cannot be traced; the host's step can, without a graph break
        attributes = self.__dict__
        plan = attributes.get("_memext_plan")
        if plan is None or plan.key != _key(self):
            plan = attributes["_memext_plan"] = _plan(self)
        if plan.reason is not None or x.dtype not in _FLOATS or x.layout is not torch.strided:
            return None
        if torch._C._get_tracing_state() is not None:
            return None  # torch.jit.trace and the ONNX exporter built on it record Torch operators only
        for name in _HOOKS:
            if name in attributes:
                return None
        decays = [getattr(self, name) for name in self._decays]
        threshold, scale = self.threshold, self.graded_spikes_factor
        compute = torch.float64 if x.dtype == torch.float64 else torch.float32
        for p in (*decays, threshold):
            if not _fits(p, compute, shape):
                return None
        if not _fits(scale, torch.float32, shape):
            return None
        for state in states:
            if state is not None and state.dtype is not compute and state.dtype is not x.dtype:
                return None  # the host promotes, or rounds in the narrower type
        if plan.surrogate.fn is not None and x.dtype is not torch.float32:
            return None  # what an unknown function does to other types is its own affair
        if plan.surrogate.name == "none" and scale.requires_grad:
            return None  # spikes without a gradient times a factor with one
        if not plan.dynamics.reset_delay and not self._same_step_is_exact(plan.dynamics, scale):
            return None
        # Clamped by Torch, so that a learnable decay has Torch's gradient; and in every call, because Torch does not
        # count all changes of a tensor (`beta.data.fill_`, a numpy array that shares its memory).
        params = *[p.clamp(0, 1) for p in decays], threshold, scale
        # integers, as beta=1 makes them, promote as in Torch
        return plan.dynamics, plan.surrogate, tuple([p if p.is_floating_point() else p.to(compute) for p in params])

    def _same_step_is_exact(self, dynamics: Dynamics, scale: Tensor) -> bool:
        """reset_delay=False divides the spikes by their factor and reads the mechanism from a buffer: whether the
        kernels, which do neither, give the same. Read in every call on the CPU. On a GPU reading waits for it, so
        there it is read once per change that Torch counts: a factor set to 0, inf or NaN, or another mechanism,
        written through `.data` in place is not seen there."""
        mechanism = self.reset_mechanism_val
        if scale.is_cpu and mechanism.is_cpu:
            return _divides_out(scale) and _host.SpikingNeuron.reset_dict[dynamics.reset_mechanism] == int(mechanism)
        key = dynamics.reset_mechanism, *[f(t) for t in (scale, mechanism) for f in (id, _version, Tensor.data_ptr)]
        known = self.__dict__.get("_memext_exact")
        if known is None or known[0] != key:
            exact = _divides_out(scale)
            exact = exact and _host.SpikingNeuron.reset_dict[dynamics.reset_mechanism] == int(mechanism)
            # the tensors are kept with their ids, which Python may give to others once they are gone
            known = self.__dict__["_memext_exact"] = (key, exact, (scale, mechanism))
        return known[1]

    # ---- host attributes and copies --------------------------------------------------------------------------------

    def _keep_before(self, shape: torch.Size, x: Tensor, mem: Tensor | None) -> None:
        attributes = self.__dict__
        attributes.pop("reset", None)
        attributes["_memext_before"] = (shape, x.dtype, x.device) if mem is None else mem.detach()

    @property
    def reset(self) -> Tensor:
        """H(mem - threshold) of the state that the last single step began with, as snnTorch keeps it; with the
        threshold as it is when this is read."""
        before = self.__dict__.get("_memext_before")
        if before is not None:
            if isinstance(before, tuple):
                before = torch.zeros(before[0], dtype=before[1], device=before[2])
            return self.mem_reset(before)
        try:
            return self.__dict__["reset"]
        except KeyError:
            raise AttributeError("reset: there was no single step yet, or the last call was multi_step, which does "
                                 "not keep it") from None

    @reset.setter
    def reset(self, value: Tensor) -> None:
        self.__dict__.pop("_memext_before", None)
        self.__dict__["reset"] = value

    def _forget_caches(self) -> None:
        """Takes off the object what only our class understands, so that the framework's class can have it back."""
        if "_memext_before" in self.__dict__:
            self.reset = self.reset  # computed when read; the framework's class keeps it
        for name in [name for name in self.__dict__ if name.startswith("_memext_")]:
            del self.__dict__[name]

    def __getstate__(self):
        state = {name: value for name, value in self.__dict__.items() if not name.startswith("_memext_")}
        if "_memext_before" in self.__dict__:
            state["reset"] = self.reset
        if "spike_grad" in state:
            state["spike_grad"] = _host.PicklableClosure.wrap(state["spike_grad"])
        return state

    def __setstate__(self, state):
        spike_grad = state.get("spike_grad")
        if isinstance(spike_grad, _host.PicklableClosure):
            state = {**state, "spike_grad": spike_grad.closure}
        super().__setstate__(state)


def _constructor(cls: type[Fused]) -> Callable[..., None]:
    """The framework's constructor, with its signature; the framework's list does not keep a neuron made by it alive."""
    @functools.wraps(cls.__bases__[-1].__init__)
    def __init__(self, *args, **kwargs):
        try:
            super(cls, self).__init__(*args, **kwargs)
        finally:  # the list has it from the first line on, also if a later one raises
            hold_new_weakly(self)
    __init__.__qualname__ = f"{cls.__qualname__}.__init__"
    __init__.__module__ = cls.__module__
    return __init__


def _fits(p: Tensor, compute: torch.dtype, shape: torch.Size) -> bool:
    """Whether a parameter leaves the host's results in `compute` and in the input's shape.

    Torch promotes by dtype only among tensors of rank >= 1: a 0-dim float64 beta (numpy's floats make one) does not.
    """
    if p.dtype is not compute:
        if p.dtype in (torch.bool, torch.complex64, torch.complex128):
            return False
        if (p.dim() or not shape) and torch.promote_types(p.dtype, compute) != compute:
            return False
    if p.dim() == 0:
        return True
    return p.dim() <= len(shape) and all(n in (1, m) for n, m in zip(reversed(p.shape), reversed(shape)))


def _divides_out(scale: Tensor) -> bool:
    """Whether (s * scale) / scale is s, for s in {0, 1}, in the float32 of the spikes."""
    factor = scale.detach().float()
    if factor.numel() == 1:  # the usual case, in a tenth of the time
        value = factor.item()
        return math.isfinite(value) and value != 0
    return bool((torch.isfinite(factor) & (factor != 0)).all())


def _version(t: Tensor) -> float:
    """Counts the in-place changes of a tensor; NaN, equal to nothing, where Torch does not count them."""
    return math.nan if t.is_inference() else t._version
