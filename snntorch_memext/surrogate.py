"""Surrogates: snnTorch's, read as ours; and the papers' own, as snnTorch `spike_grad` functions that can be pickled.

    lif = snn.Leaky(beta=0.9, spike_grad=snntorch_memext.surrogate.triangle(gamma=1.0))
"""
from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from snntorch import SpikingNeuron
from snntorch import surrogate as host
from torch import Tensor

from shared_core import surrogate as core
from shared_core.errors import MemextError
from shared_core.surrogate import Surrogate, opaque, spike

__all__ = ["SpikeGrad", "arctan", "from_snntorch", "rectangle", "register", "triangle"]

# snnTorch 1.0.0 function -> (our table's name, its closure variables in the order of our parameters).
# The closure is recognised by where it was defined: __qualname__ is "<function>.<locals>.inner".
_TABLE: dict[str, tuple[str, tuple[str, ...]]] = {
    "straight_through_estimator": ("straight_through", ()),
    "triangular": ("triangular", ("threshold",)),
    "fast_sigmoid": ("fast_sigmoid", ("slope",)),
    "atan": ("atan", ("alpha",)),
    "heaviside": ("heaviside", ()),
    "sigmoid": ("sigmoid", ("slope",)),
    "spike_rate_escape": ("spike_rate_escape", ("beta", "slope")),
    "SFS": ("sparse_fast_sigmoid", ("slope", "B")),
}

# Functions without a table entry: do they draw random numbers? LSO raises TypeError when called (it applies
# StochasticSpikeOperator with an argument missing), and so it does here. custom_surrogate holds your own code.
_OPAQUE: dict[str, bool] = {"SSO": True, "LSO": True, "custom_surrogate": True}


def from_snntorch(spike_grad) -> Surrogate:
    """The Surrogate that trains as `spike_grad` does: a table entry with a kernel, or opaque.

    surrogate_disable=True (SpikingNeuron._surrogate_bypass) has gradient zero. Opaque, i.e. called as it is: SSO, LSO,
    custom_surrogate, parameters that are not plain numbers or lie outside the table's range, and functions of your
    own. What those of your own emit is not known: they count as real-valued and random, unless they have attributes
    saying otherwise (`alphabet = "binary"`, `random = False`).
    """
    if type(spike_grad) is SpikeGrad:
        return spike_grad.surrogate
    if spike_grad is SpikingNeuron._surrogate_bypass:
        return core.none()
    factory = _factory(spike_grad)
    if factory in _OPAQUE:
        return opaque(spike_grad, name=factory, random=_OPAQUE[factory])
    if factory in _TABLE:
        name, variables = _TABLE[factory]
        cells = dict(zip(spike_grad.__code__.co_freevars, spike_grad.__closure__ or ()))
        values = tuple(cells[v].cell_contents for v in variables)
        if not all(type(v) in (int, float) for v in values):
            return opaque(spike_grad, name=factory)
        try:
            return _get(name, values)
        except MemextError:  # a value only the framework accepts: its own path trains as before
            return opaque(spike_grad, name=factory)
    label = getattr(spike_grad, "__qualname__", type(spike_grad).__name__)
    return opaque(spike_grad, name=label, alphabet=getattr(spike_grad, "alphabet", "real"),
                  random=bool(getattr(spike_grad, "random", True)))


@lru_cache(maxsize=256)  # called once per neuron and step
def _get(name: str, values: tuple[float, ...]) -> Surrogate:
    return Surrogate(name, values)


def _factory(spike_grad) -> str | None:
    """Name of the function of snntorch.surrogate that made this closure, or None."""
    if getattr(spike_grad, "__module__", None) != host.__name__:
        return None
    factory, _, inner = getattr(spike_grad, "__qualname__", "").partition(".<locals>.")
    return factory if inner == "inner" else None


@dataclass(frozen=True)
class SpikeGrad:
    """A `spike_grad` for snnTorch neurons: fires on x > 0 and returns float32, as snnTorch's do. Unlike those it can
    be pickled and compared."""

    surrogate: Surrogate

    def __call__(self, x: Tensor) -> Tensor:
        return spike(x, self.surrogate, strict=True).float()


def rectangle(gamma: float = 1.0) -> SpikeGrad:
    """ds/dU = 1/gamma if |U - threshold| < gamma/2, else 0.  Source: SLTT (Meng et al. 2023), Eq. 5."""
    return SpikeGrad(core.rectangle(gamma))


def triangle(gamma: float = 1.0) -> SpikeGrad:
    """ds/dU = max(0, gamma - |U - threshold|) / gamma^2.  Source: SLTT (Meng et al. 2023), Eq. 6.

    Not snnTorch's `triangular`, whose gradient is a constant, negative from the threshold on.
    """
    return SpikeGrad(core.triangle(gamma))


def arctan() -> SpikeGrad:
    """ds/dU = 1 / (1 + (pi (U - threshold))^2).  Source: EfficientLIF-Net (Kim et al. 2023), f(x) = arctan(pi x)/pi +
    1/2. The gradient of snnTorch's atan(alpha=2)."""
    return SpikeGrad(core.arctan())


def register() -> None:
    """Put rectangle, triangle and arctan into snntorch.surrogate. Calling it again is fine.

    Raises MemextError if one of the names is already taken; then none is added.
    """
    ours = (rectangle, triangle, arctan)
    for function in ours:
        taken = getattr(host, function.__name__, function)
        if taken is not function:
            owner = f"{getattr(taken, '__module__', '?')}.{getattr(taken, '__qualname__', taken)}"
            raise MemextError(f"snntorch_memext.surrogate.register: {host.__name__}.{function.__name__} is already "
                              f"{owner}; ours is {function.__module__}.{function.__qualname__}. Use ours from its own "
                              "module, or remove that.")
    for function in ours:
        setattr(host, function.__name__, function)
