"""SpikingJelly 0.0.0.0.14, given the names of 2.0.0 that this adapter is written against.

`install()` adds to the framework's classes and modules what they do not have, and replaces nothing but the constructor
and the call of its surrogates' base class, which take both forms then. With it retrofit's methods "neuron", "compress"
and "recompute" work on IFNode, LIFNode, ParametricLIFNode and KLIFNode in both step modes. Classes that 0.0.0.0.14
does not have stand in as names only: making one raises MemextError.

The explicit-state functions are 0.0.0.0.14's own steps, with the state put in before and taken out after.
"""
from __future__ import annotations

import functools as tools
import inspect

import torch
from torch import Tensor, nn

from shared_core.errors import MemextError

__all__ = ["SUPPORTED", "install"]

SUPPORTED = ("retrofit(net, 'neuron'), 'compress' and 'recompute', restore, report and substitute, for IFNode, "
             "LIFNode, ParametricLIFNode and KLIFNode in both step modes")
_NEURONS = {"SLTTLIFNode": "LIFNode", "OTTTLIFNode": "LIFNode", "HalfThresholdIFNode": "IFNode"}
_SURROGATES = ("SuperSpike", "Rect", "DeterministicPass", "PoissonPass", "MultiLevelSpikeCount")


def install(base, functional, layer, neuron, surrogate) -> None:
    """Fills the modules of spikingjelly.activation_based 0.0.0.0.14 up. Once."""
    _add(base, SingleStepModule=base.SingleModule)
    _add(base.MemoryModule, multi_step_functional_forward=_sequence, functional_forward=_functional,
         materialize_states=lambda self, inputs, states, step_mode: states)
    _add(neuron.BaseNode, materialize_states=_materialize, single_step_functional_forward=_step(neuron),
         _neuron_precision=None, _v_seq_source=lambda self: self.v, _append_v_seq=lambda self, v: None)
    _add(functional, invalidate_reset_cache=lambda net: None, if_multi_step=_if, lif_multi_step=_lif,
         plif_multi_step=_plif)
    for name, like in _NEURONS.items():
        _add(neuron, **{name: _absent(name, getattr(neuron, like), neuron)})
    for name in _SURROGATES:
        _add(surrogate, **{name: _absent(name, surrogate.SurrogateFunctionBase, surrogate)})
    _add(layer, SpikingSelfAttention=_absent("SpikingSelfAttention", nn.Module, layer, _ssa_kernel_torch=None))
    for cls in (surrogate.SurrogateFunctionBase, surrogate.MultiArgsSurrogateFunctionBase):
        _add(cls, _sg_params=property(_parameters), spiking_function=None, primitive_function=None)
    _both_forms(surrogate.SurrogateFunctionBase)


def _add(owner, **names) -> None:
    for name, value in names.items():
        if name not in vars(owner):
            setattr(owner, name, value)


def _absent(name: str, like: type, module, **names) -> type:
    """A class that can be derived from, registered and asked about with isinstance, and not made."""
    def __init__(self, *args, **kwargs):
        raise MemextError(f"{type(self).__name__}: SpikingJelly 0.0.0.0.14 has no {name}; sj_memext does there: "
                          f"{SUPPORTED}. Use: pip install 'spikingjelly>=2.0.0,<3'")

    __init__.__signature__ = inspect.Signature([inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)])
    return type(name, (like,), {"__init__": __init__, "__module__": module.__name__, **names})


# ---- explicit states -----------------------------------------------------------------------------------------------

def _materialize(self, inputs, states, step_mode):
    x = inputs[0][0] if step_mode == "m" else inputs[0]
    v = states[0]
    if not isinstance(v, Tensor):
        v = torch.full_like(x, v, requires_grad=False)
    elif v.shape != x.shape:
        v = torch.full_like(x, 0.0 if self.v_reset is None else self.v_reset, requires_grad=False)
    elif v.dtype != x.dtype or v.device != x.device:
        v = v.to(dtype=x.dtype, device=x.device)
    return (v, *states[1:])


def _step(neuron):
    def single_step_functional_forward(self, inputs, states, **kwargs):
        kept = dict(self._memories)
        self._memories.update(zip(kept, states, strict=True))
        try:
            spike = neuron.BaseNode.single_step_forward(self, inputs[0])
            return (spike,), tuple(self._memories.values())
        finally:
            self._memories.update(kept)

    return single_step_functional_forward


def _sequence(self, inputs, states, **kwargs):
    steps = []
    for t in range(inputs[0].shape[0]):
        outputs, states = self.single_step_functional_forward(tuple(x[t] for x in inputs), states, **kwargs)
        steps.append(outputs)
    return tuple(torch.stack(parts) for parts in zip(*steps)), states


def _functional(self, inputs, states, **kwargs):
    states = self.materialize_states(inputs, states, self.step_mode)
    run = self.single_step_functional_forward if self.step_mode == "s" else self.multi_step_functional_forward
    return run(inputs, states, **kwargs)


# ---- sequences by equation ------------------------------------------------------------------------------------------

def _loop(x_seq, v, charge, v_threshold, v_reset, surrogate_function, detach_reset, store_v_seq):
    spikes, seen = [], []
    for x in x_seq:
        h = charge(x, v)
        spike = surrogate_function(h - v_threshold)
        fired = spike.detach() if detach_reset else spike
        v = h - fired * v_threshold if v_reset is None else (1.0 - fired) * h + fired * v_reset
        spikes.append(spike)
        seen.append(v)
    return torch.stack(spikes), v, torch.stack(seen) if store_v_seq else None


def _if(x_seq, v, *tail, neuron_storage=None, neuron_fwd=None, neuron_bwd=None):
    return _loop(x_seq, v, lambda x, v: v + x, *tail)


def _leaky(x_seq, v, share, decay_input, tail):
    rest = tail[1] or 0.0
    if decay_input:
        return _loop(x_seq, v, lambda x, v: v + (x - (v - rest)) * share, *tail)
    return _loop(x_seq, v, lambda x, v: v - (v - rest) * share + x, *tail)


def _lif(x_seq, v, tau, decay_input, *tail, neuron_storage=None, neuron_fwd=None, neuron_bwd=None):
    return _leaky(x_seq, v, 1.0 / tau, decay_input, tail)


def _plif(x_seq, v, w, decay_input, *tail, neuron_storage=None, neuron_fwd=None, neuron_bwd=None):
    return _leaky(x_seq, v, w.sigmoid(), decay_input, tail)


# ---- surrogates ------------------------------------------------------------------------------------------------------

def _parameters(self) -> dict:
    """name -> value of what the surrogate was made with."""
    named = self.__dict__.get("_sg_param_names")
    if named is None:
        named = [name for name in ("alpha", "beta", "w", "c", "n", "T_period", "leak", "k") if hasattr(self, name)]
    return {name: getattr(self, name) for name in named}


def _both_forms(cls) -> None:
    """(alpha, spiking), as in 0.0.0.0.14, and 2.0.0's (spiking=, **parameters), which our own surrogates use."""
    made, called = cls.__init__, cls.forward

    @tools.wraps(made)
    def __init__(self, *args, **kwargs):
        if args or "alpha" in kwargs or not set(kwargs) - {"spiking"}:
            made(self, *args, **kwargs)
            return
        nn.Module.__init__(self)
        self.spiking = kwargs.pop("spiking", True)
        self._sg_param_names = tuple(kwargs)
        for name, value in kwargs.items():
            setattr(self, name, value)

    @tools.wraps(called)
    def forward(self, x):
        if "_sg_param_names" not in self.__dict__:
            return called(self, x)
        return (self.spiking_function if self.spiking else self.primitive_function)(x, **self._sg_params)

    cls.__init__, cls.forward = __init__, forward
