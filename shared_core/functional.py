"""The public maths: a whole sequence through one layer of spiking neurons, fused, with an exact gradient.

`multi_step` runs any neuron of dynamics.py; the named functions below it are the same call with the usual arguments.
Saved for backward: the input at its own dtype, the initial state if one was given, and for T > 32 one state per 32
steps. The potentials are recomputed in the backward pass, block by block, and never stored. A single step (T = 1)
from a given state keeps its potential, 4 B per element, instead of both; keep_inputs has the exception.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import _operators, _tape, backends
from ._autograd import keep_inputs, run
from ._groups import check_groups, membrane_shape
from .dynamics import IF, LIF, Dynamics, Leaky, ParametricLIF
from .errors import MemextError
from .spec import Spec
from .surrogate import Surrogate

__all__ = ["MultiStep", "if_multi_step", "keep_inputs", "leaky_multi_step", "lif_multi_step", "multi_step",
           "plif_multi_step"]


class MultiStep(NamedTuple):
    """spikes [T, *shape]; state: final state(s), each [*shape]; sequence: the state(s) after every step, each
    [T, *shape], or (); bits: the spikes packed (see spikes.py), or None."""

    spikes: Tensor
    state: tuple[Tensor, ...]
    sequence: tuple[Tensor, ...]
    bits: Tensor | None


def multi_step(dynamics: Dynamics, x: Tensor, state: Sequence[Tensor | None] | None = None,
               params: Sequence[Tensor] = (), *, surrogate: Surrogate, spike_dtype: torch.dtype | None = None,
               record: bool = False, bits: bool = False, online: bool = False, groups: int = 1, backend: str = "auto"
               ) -> MultiStep:
    """T steps of one layer of neurons.

    x: [T, *shape], T >= 1, float16/bfloat16/float32/float64, any strides. Half types are computed in float32.
    state: one tensor [*shape] (or None: at rest) per name in dynamics.states; None: all at rest.
    params: one tensor broadcastable to [*shape] per name in dynamics.params.
    spike_dtype: dtype of the emitted values; None: x's.  record: return the state after every step.
    bits: return the spikes packed as bits, written by the same kernel.
    online: the gradient of SLTT (Meng et al. 2023, Eq. 12 and 13): the state before each step, the given one included,
        is a constant, so nothing flows back in time.
    groups: the channels (dimension 1 of a step [N, C, *]) are split into so many groups, which one membrane serves in
        turn (EfficientLIF-Net Eq. 7-11, see _groups.py): states are [N, C / groups, *], and parameters broadcastable to
        that; those recorded are the states after each time step, when its last group has run.
    backend: "auto", "native" (CPU), "cuda" or "reference"; one asked for by name never falls back.

    Gradients: x, state, params; double backward through the reference. Forward-mode differentiation is refused.
    Raises MemextError: wrong rank, dtype, device, shape or count; unknown backend; a backend that cannot serve this.
    """
    if not isinstance(dynamics, Dynamics):
        raise MemextError(f"functional.multi_step: dynamics is {dynamics!r}; a description from shared_core.dynamics "
                          "is needed, for example LIF(tau=2.0)")
    where = f"functional.multi_step({dynamics.name})"
    if not isinstance(surrogate, Surrogate):
        raise MemextError(f"{where}: surrogate is {surrogate!r}; one from shared_core.surrogate is needed, for example "
                          "surrogate.atan(), or surrogate.opaque(your_function, name=...)")
    if state is None:
        state = (None,) * len(dynamics.states)
    check(where, dynamics, x, state, params, spike_dtype, groups)
    if online:
        state = tuple(s if s is None else s.detach() for s in state)
        online = x.shape[0] > 1  # of a single step, that was all
    # A single value may live on another device, as Torch allows it to.
    params = tuple(p if p.device == x.device else p.to(x.device) for p in params)
    tape = _tape.current()
    if tape is not None and not bits:  # a step of temporal.unroll
        out = tape.step(dynamics, surrogate, spike_dtype, record, online, groups, x, state, params)
        if out is not None:
            return MultiStep(out.spikes, out.final, out.sequence, None)
    if _operators.wanted((x, *state, *params)):
        out = _operators.run(dynamics, surrogate, spike_dtype, record, bits, online, backend, x, state, params,
                             groups=groups)
    else:
        spec = Spec(dynamics, surrogate, spike_dtype, record, bits, online, groups)
        module = backends.choose(dynamics, surrogate, x.device, backend)
        out = run(spec, module, x, tuple(state), params)
    return MultiStep(out.spikes, out.final, out.sequence, out.bits)


FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check(where: str, dynamics: Dynamics, x: Tensor, state: Sequence[Tensor | None], params: Sequence[Tensor],
           spike_dtype: torch.dtype | None, groups: int = 1) -> None:
    check_groups(where, groups)
    if not isinstance(x, Tensor):
        raise MemextError(f"{where}: x is {type(x).__name__}; a Tensor [T, *] is needed")
    if x.dim() < 1:
        raise MemextError(f"{where}: x has rank 0; [T, *] is needed, time first (x.unsqueeze(0) makes one step)")
    if x.layout != torch.strided:
        raise MemextError(f"{where}: x has layout {x.layout}; a strided (dense) tensor is needed (x.to_dense())")
    if x.dtype not in FLOATS:
        raise MemextError(f"{where}: x is {x.dtype}; float16, bfloat16, float32 or float64 is needed (x.float())")
    if x.shape[0] == 0:
        raise MemextError(f"{where}: x has T = 0 steps, shape {tuple(x.shape)}; at least one step is needed")
    step = membrane_shape(where, x.shape[1:], groups)
    if spike_dtype is not None and spike_dtype not in FLOATS:
        raise MemextError(f"{where}: spike_dtype is {spike_dtype!r}; float16, bfloat16, float32, float64 or None (that "
                          "of x) is needed (for packed spikes pass bits=True)")
    if len(state) != len(dynamics.states):
        raise MemextError(f"{where}: {len(state)} states given; {len(dynamics.states)} needed: {dynamics.states}")
    if len(params) != len(dynamics.params):
        raise MemextError(f"{where}: {len(params)} parameters given; {len(dynamics.params)} needed: {dynamics.params}")
    for name, s in zip(dynamics.states, state):
        if s is None:
            continue
        if not isinstance(s, Tensor) or not s.is_floating_point():
            raise MemextError(f"{where}: state {name!r} is {_kind(s)}; a floating-point Tensor "
                              f"{tuple(step)}, or None (at rest), is needed")
        if s.shape != step:
            raise MemextError(f"{where}: state {name!r} has shape {tuple(s.shape)}; x {tuple(x.shape)} needs "
                              f"{tuple(step)} (was the state of another batch kept? reset it)")
        if s.device != x.device:
            raise MemextError(f"{where}: state {name!r} is on {s.device}, x on {x.device}; move one to the other")
    for name, p in zip(dynamics.params, params):
        if not isinstance(p, Tensor) or not p.is_floating_point():
            raise MemextError(f"{where}: parameter {name!r} is {_kind(p)}; a floating-point Tensor is needed "
                              "(torch.tensor(0.5) makes one of a number)")
        if p.device != x.device and p.dim() > 0:
            raise MemextError(f"{where}: parameter {name!r} is on {p.device}, x on {x.device}; move one to the other")
        if p.numel() == 1:
            continue
        shape = tuple(step)
        try:
            fits = torch.broadcast_shapes(p.shape, shape) == shape
        except RuntimeError:
            fits = False
        if not fits:
            raise MemextError(f"{where}: parameter {name!r} has shape {tuple(p.shape)}; one value, or a shape "
                              f"broadcastable to {shape} is needed")


def _kind(value) -> str:
    return f"a Tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__


def if_multi_step(x: Tensor, v: Tensor | None = None, *, surrogate: Surrogate, v_th: float = 1.0,
                  v_reset: float | None = 0.0, detach_reset: bool = False, backend: str = "auto"
                  ) -> tuple[Tensor, Tensor]:
    """Integrate-and-fire (dynamics.IF). x [T, *], v [*] or None (at rest) -> spikes [T, *], final v [*]."""
    out = multi_step(IF(v_th, v_reset, detach_reset), x, (v,), surrogate=surrogate, backend=backend)
    return out.spikes, out.state[0]


def lif_multi_step(x: Tensor, v: Tensor | None = None, *, surrogate: Surrogate, tau: float = 2.0,
                   decay_input: bool = True, v_th: float = 1.0, v_reset: float | None = 0.0,
                   detach_reset: bool = False, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Leaky integrate-and-fire (dynamics.LIF). x [T, *], v [*] or None -> spikes [T, *], final v [*]."""
    dynamics = LIF(v_th, v_reset, detach_reset, tau, decay_input)
    out = multi_step(dynamics, x, (v,), surrogate=surrogate, backend=backend)
    return out.spikes, out.state[0]


def plif_multi_step(x: Tensor, v: Tensor | None, w: Tensor, *, surrogate: Surrogate, decay_input: bool = True,
                    v_th: float = 1.0, v_reset: float | None = 0.0, detach_reset: bool = False,
                    backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Parametric LIF (dynamics.ParametricLIF), 1/tau = sigmoid(w), w learnable, one value or broadcastable to [*]."""
    dynamics = ParametricLIF(v_th, v_reset, detach_reset, decay_input)
    if not isinstance(w, Tensor):
        raise MemextError(f"functional.plif_multi_step: w is {type(w).__name__}; a Tensor is needed "
                          "(1 / tau = sigmoid(w))")
    out = multi_step(dynamics, x, (v,), (w.sigmoid(),), surrogate=surrogate, backend=backend)
    return out.spikes, out.state[0]


def leaky_multi_step(x: Tensor, mem: Tensor | None = None, *, surrogate: Surrogate, beta: Tensor | float,
                     threshold: Tensor | float = 1.0, scale: Tensor | float = 1.0,
                     reset_mechanism: str = "subtract", reset_delay: bool = True, backend: str = "auto"
                     ) -> tuple[Tensor, Tensor]:
    """snnTorch's Leaky (dynamics.Leaky). x [T, *], mem [*] or None -> spikes [T, *], final mem [*].

    beta is clamped to [0, 1]; beta, threshold and scale are one value or broadcastable to [*], and may learn.
    """
    as_tensor = lambda p: p if isinstance(p, Tensor) else torch.tensor(float(p), device=x.device)  # noqa: E731
    params = (as_tensor(beta).clamp(0, 1), as_tensor(threshold), as_tensor(scale))
    out = multi_step(Leaky(reset_mechanism, reset_delay), x, (mem,), params, surrogate=surrogate, backend=backend)
    return out.spikes, out.state[0]
