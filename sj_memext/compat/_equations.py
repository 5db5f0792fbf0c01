"""The overridable equations of SpikingJelly 0.0.0.0.x: charge, fire, reset on `self.v`, for who overrides them.

Until 0.0.0.0.14 a neuron's step was `neuronal_charge(x)`, `neuronal_fire()`, `neuronal_reset(spike)`, and people
changed a neuron by overriding one of them. SpikingJelly 2.0.0 never calls these names, and says nothing. Here the
framework's classes get them back, with the equations of their own class (for `super().neuronal_charge(x)`), and every
class or object that has one of its own is stepped in the old way, in both step modes. All others run as they did.

Source of the equations: SpikingJelly 0.0.0.0.14, activation_based/neuron.py; 0.0.0.0.12 has the same.
"""
from __future__ import annotations

import torch
from torch import Tensor

from sj_memext._host import base, neuron

from ._patches import PATCHES, say

__all__ = ["EQUATIONS", "equation", "install", "is_own", "old_sequence", "old_step", "own_equations",
           "takes_old_way"]

EQUATIONS = ("neuronal_charge", "neuronal_adaptation", "neuronal_fire", "neuronal_reset", "jit_hard_reset",
             "jit_soft_reset")
_THEIRS = ("spikingjelly.", "sj_memext.", "shared_core.")


def equation(function):
    """Marks a function of this package as what the framework's class computes anyway."""
    function._memext_equation = True
    return function


def is_own(function) -> bool:
    """Did a user write this method, rather than the framework or this package?"""
    if function is None or getattr(function, "_memext_equation", False):
        return False
    return not (getattr(function, "__module__", None) or "").startswith(_THEIRS)


def own_equations(node) -> list[str]:
    """Names of the equations that this node has of its own: from a subclass, on the object, or patched into a class."""
    return [name for name in EQUATIONS if is_own(node.__dict__.get(name) or getattr(type(node), name, None))]


def takes_old_way(node) -> bool:
    """Is this node to be stepped by its equations, because it has its own, or because 2.0.0's compute something else:
    they refuse a threshold per element (functional.set_threshold_margin), and Izhikevich's hard reset is detached with
    detach_reset, where the old one was only half."""
    if isinstance(node, neuron.AdaptBaseNode) and node.detach_reset and node.v_reset:
        return True
    return bool(_per_element(node.v_threshold) or _per_element(node.v_reset) or own_equations(node))


def _per_element(value) -> bool:
    return isinstance(value, Tensor) and (value.numel() > 1 or value.requires_grad)


def _steps_itself(node) -> bool:
    """A subclass with a single_step_forward of its own, which 0.0.0.0.14 called for every step of a sequence."""
    cls = type(node)
    return is_own(cls.single_step_forward) and not any(
        is_own(getattr(cls, name)) for name in ("single_step_functional_forward", "multi_step_functional_forward"))


# ---- one step, a sequence -----------------------------------------------------------------------------------------

def old_step(node, x: Tensor) -> Tensor:
    """x [N, *] -> spikes [N, *]; the state is `node.v`."""
    node.v_float_to_tensor(x)
    node.neuronal_charge(x)
    if isinstance(node, neuron.AdaptBaseNode):
        node.neuronal_adaptation()
    out = None
    if isinstance(node, neuron.LIAFNode):
        out = node.act(node.v - node.v_threshold if node.threshold_related else node.v)
    spike = node.neuronal_fire()
    node.neuronal_reset(spike)
    return spike if out is None else out


def old_sequence(node, x_seq: Tensor) -> Tensor:
    """x_seq [T, N, *] -> spikes [T, N, *], step by step through node.single_step_forward."""
    if isinstance(node, neuron.BaseNode) and node.store_v_seq:
        node.store_v_seq, spikes, seen = False, [], []  # single steps would append to it, too
        try:
            for x in x_seq:
                spikes.append(node.single_step_forward(x))
                seen.append(node.v)
        finally:
            node.store_v_seq = True
        node.v_seq = torch.stack(seen)
        return torch.stack(spikes)
    return torch.stack([node.single_step_forward(x) for x in x_seq])


# ---- what the framework's classes compute --------------------------------------------------------------------------

@equation
def _v_float_to_tensor(self, x: Tensor) -> None:
    for name in ("v", "w"):
        if isinstance(self._memories.get(name), float):
            self._memories[name] = torch.full_like(x.data, self._memories[name])


@equation
def _no_charge(self, x):
    raise NotImplementedError(f"{type(self).__name__} defines no neuronal_charge(x)")


@equation
def _fire(self):
    return self.surrogate_function(self.v - self.v_threshold)


@equation
def _hard(v, spike, v_reset):
    return (1.0 - spike) * v + spike * v_reset


@equation
def _soft(v, spike, v_threshold):
    return v - spike * v_threshold


@equation
def _reset(self, spike):
    fired = spike.detach() if self.detach_reset else spike
    if self.v_reset is None:
        self.v = self.jit_soft_reset(self.v, fired, self.v_threshold)
    else:
        self.v = self.jit_hard_reset(self.v, fired, self.v_reset)


@equation
def _if_charge(self, x):
    self.v = self.v + x


def _rest(self) -> float:
    return 0.0 if self.v_reset is None else self.v_reset


@equation
def _lif_charge(self, x):
    rest, share = _rest(self), 1.0 / self.tau
    if self.decay_input:
        self.v = self.v + (x - (self.v - rest if rest else self.v)) / self.tau
    else:
        self.v = self.v - (self.v - rest) / self.tau + x if rest else self.v * (1.0 - share) + x


@equation
def _plif_charge(self, x):
    rest, share = _rest(self), self.w.sigmoid()
    if self.decay_input:
        self.v = self.v + (x - (self.v - rest if rest else self.v)) * share
    else:
        self.v = self.v - (self.v - rest) * share + x if rest else self.v * (1.0 - share) + x


@equation
def _qif_charge(self, x):
    self.v = self.v + (x + self.a0 * (self.v - self.v_rest) * (self.v - self.v_c)) / self.tau


@equation
def _eif_charge(self, x):
    if not isinstance(self.v, Tensor):
        self.v = torch.as_tensor(self.v, device=x.device)
    rise = self.delta_T * torch.exp((self.v - self.theta_rh) / self.delta_T)
    self.v = self.v + (x + self.v_rest - self.v + rise) / self.tau


@equation
def _klif_charge(self, x):
    rest = _rest(self)
    charged = self.v + (x - (self.v - rest)) / self.tau if self.decay_input else \
        self.v - (self.v - rest) / self.tau + x
    self.v = torch.relu(self.k * charged)


@equation
def _klif_reset(self, spike):
    fired = spike.detach() if self.detach_reset else spike
    scale = self.k if self.scale_reset else 1.0
    if self.v_reset is None:
        self.v = self.jit_soft_reset(self.v, fired, self.v_threshold) / scale
    else:
        self.v = self.jit_hard_reset(self.v / scale, fired, self.v_reset)


@equation
def _izhikevich_charge(self, x):
    self.v = self.v + (x + self.a0 * (self.v - self.v_rest) * (self.v - self.v_c) - self.w) / self.tau


@equation
def _adaptation(self):
    self.w = self.w + 1.0 / self.tau_w * (self.a * (self.v - self.v_rest) - self.w)


@equation
def _adapt_hard(v, w, spike_d, v_reset, b, spike):
    return (1.0 - spike_d) * v + spike * v_reset, w + b * spike


@equation
def _adapt_soft(v, w, spike_d, v_threshold, b, spike):
    return v - spike_d * v_threshold, w + b * spike


@equation
def _adapt_reset(self, spike):
    fired = spike.detach() if self.detach_reset else spike
    if self.v_reset is None:
        self.v, self.w = self.jit_soft_reset(self.v, self.w, fired, self.v_threshold, self.b, spike)
    else:
        self.v, self.w = self.jit_hard_reset(self.v, self.w, fired, self.v_reset, self.b, spike)


_OF_CLASS = {
    neuron.BaseNode: {"neuronal_charge": _no_charge, "neuronal_fire": _fire, "neuronal_reset": _reset,
                      "v_float_to_tensor": _v_float_to_tensor, "w_float_to_tensor": _v_float_to_tensor,
                      "jit_hard_reset": staticmethod(_hard), "jit_soft_reset": staticmethod(_soft)},
    neuron.IFNode: {"neuronal_charge": _if_charge},
    neuron.LIFNode: {"neuronal_charge": _lif_charge},
    neuron.ParametricLIFNode: {"neuronal_charge": _plif_charge},
    neuron.QIFNode: {"neuronal_charge": _qif_charge},
    neuron.EIFNode: {"neuronal_charge": _eif_charge},
    neuron.KLIFNode: {"neuronal_charge": _klif_charge, "neuronal_reset": _klif_reset},
    neuron.AdaptBaseNode: {"neuronal_adaptation": _adaptation, "neuronal_reset": _adapt_reset,
                           "jit_hard_reset": staticmethod(_adapt_hard), "jit_soft_reset": staticmethod(_adapt_soft)},
    neuron.IzhikevichNode: {"neuronal_charge": _izhikevich_charge},
}


# ---- where the old way is taken ----------------------------------------------------------------------------------

def install() -> None:
    """Gives the framework's classes their equations back, and steps in the old way who has equations of its own."""
    for cls, functions in _OF_CLASS.items():
        for name, function in functions.items():
            PATCHES.add(cls, name, function)
    PATCHES.set(neuron.BaseNode, "single_step_forward", _single(neuron.BaseNode.single_step_forward))
    PATCHES.add(neuron.BaseNode, "functional_forward", _functional_forward)
    for cls in (base.MemoryModule, *(c for c in vars(neuron).values() if isinstance(c, type))):
        theirs = cls.__module__.startswith("spikingjelly.")  # ours are in that namespace, too
        if theirs and issubclass(cls, base.MemoryModule) and "multi_step_forward" in vars(cls):
            PATCHES.set(cls, "multi_step_forward", _multi(vars(cls)["multi_step_forward"]))


def _single(original):
    @equation
    def single_step_forward(self, x, *args, **kwargs):
        if not takes_old_way(self):
            return original(self, x, *args, **kwargs)
        spike = _old(self, x)
        if self.store_v_seq and isinstance(self.v, Tensor):
            self._append_v_seq(self.v)
        return spike

    single_step_forward.__doc__ = original.__doc__
    return single_step_forward


def _multi(original):
    @equation
    def multi_step_forward(self, x_seq, *args, **kwargs):
        if (isinstance(self, neuron.BaseNode) and takes_old_way(self)) or (_steps_itself(self) and not args):
            return old_sequence(self, x_seq, **kwargs)
        return original(self, x_seq, *args, **kwargs)

    multi_step_forward.__doc__ = original.__doc__
    return multi_step_forward


def _old(node, x):
    own = own_equations(node)
    if own and not node.training and isinstance(node, neuron.IFNode | neuron.LIFNode):
        say(f"eval {type(node).__qualname__}",
            f"{type(node).__name__} overrides {', '.join(own)}, and is stepped with them in eval mode, "
            "too; 0.0.0.0.14 ran its own jitted IF and LIF equations there (0.0.0.0.12 did not)")
    return old_step(node, x)


@equation
def _functional_forward(self, inputs, states, **kwargs):
    """With explicit states, for memopt and base.to_functional_forward: the old equations work on the memories."""
    if not (takes_old_way(self) or (self.step_mode == "m" and _steps_itself(self))):
        return base.MemoryModule.functional_forward(self, inputs, states, **kwargs)
    kept = dict(self._memories)
    try:
        self._memories.update(zip(kept, states, strict=True))
        out = self.forward(*inputs, **kwargs)
        return (out,), tuple(self._memories.values())
    finally:
        self._memories.update(kept)
