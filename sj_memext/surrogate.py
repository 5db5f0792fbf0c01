"""Surrogates: SpikingJelly's, read as ours; and the papers' own, as SpikingJelly classes.

    node = neuron.LIFNode(surrogate_function=sj_memext.surrogate.Triangle(gamma=1.0))
"""
from __future__ import annotations

import math
from functools import lru_cache

import torch
from spikingjelly.activation_based import surrogate as host
from torch import Tensor

from shared_core.errors import MemextError
from shared_core.surrogate import Surrogate, get, opaque, rectangle, spike, triangle

from ._host import IS_2

__all__ = ["Arctan", "Rectangle", "Triangle", "from_spikingjelly", "register"]

# SpikingJelly 2.0.0 class -> (our table's name, its attributes, which our parameters are named after).
_TABLE: dict[type, tuple[str, tuple[str, ...]]] = {
    host.Sigmoid: ("sigmoid", ("alpha",)),
    host.ATan: ("atan", ("alpha",)),
    host.PiecewiseQuadratic: ("piecewise_quadratic", ("alpha",)),
    host.PiecewiseExp: ("piecewise_exp", ("alpha",)),
    host.SoftSign: ("soft_sign", ("alpha",)),
    host.SuperSpike: ("super_spike", ("alpha",)),
    host.NonzeroSignLogAbs: ("nonzero_sign_log_abs", ("alpha",)),
    host.Erf: ("erf", ("alpha",)),
    host.PiecewiseLeakyReLU: ("piecewise_leaky_relu", ("w", "c")),
    host.SquarewaveFourierSeries: ("squarewave_fourier_series", ("n", "T_period")),
    host.S2NN: ("s2nn", ("alpha", "beta")),
    host.QPseudoSpike: ("q_pseudo_spike", ("alpha",)),
    host.LeakyKReLU: ("leaky_k_relu", ("leak", "k")),
    host.FakeNumericalGradient: ("fake_numerical_gradient", ("alpha",)),
    host.LogTailedReLU: ("log_tailed_relu", ("alpha",)),
    host.DeterministicPass: ("straight_through", ()),
    host.Rect: ("rect", ("alpha",)),
}

if not IS_2:  # 0.0.0.0.14's gradient within |x| < w is 1/w, twice the table's
    del _TABLE[host.PiecewiseLeakyReLU]

# Classes without a table entry: (what they emit, whether they draw random numbers).
_OPAQUE: dict[type, tuple[str, bool]] = {
    host.MultiLevelSpikeCount: ("integer", False),
    host.PoissonPass: ("binary", True),
}


def from_spikingjelly(surrogate_function) -> Surrogate:
    """The Surrogate that trains as `surrogate_function` does: a table entry with a kernel, or opaque.

    Opaque, i.e. called as it is: `spiking=False`, MultiLevelSpikeCount, PoissonPass, parameters that are not plain
    numbers or lie outside the table's range, a method replaced on the object (`fn.forward = ...`), and classes or
    functions of your own. What those of your own emit is not known: they count as real-valued and random, unless they
    have attributes saying otherwise (`alphabet = "binary"`, `random = False`). Attributes are read at every call: do
    not keep the result while annealing alpha.

    Module hooks on a surrogate of the table do not run: it is read, not called. SpikingJelly's IF, LIF and PLIF nodes
    do not run them either for the surrogates it has kernels for (Sigmoid, ATan, Erf, PiecewiseExp, PiecewiseQuadratic,
    SoftSign, SuperSpike); for the others, and in KLIF, it does. Replace `forward` to change what a surrogate emits.
    """
    known = _behaves_as(surrogate_function)
    if known is None:
        label = getattr(surrogate_function, "__name__", type(surrogate_function).__name__)
        replaced = _replaced(surrogate_function) if isinstance(surrogate_function, tuple(_KNOWN)) else []
        if replaced:  # without it the message would say that ATan has no kernel
            label += f" with its {', '.join(replaced)} replaced on the object"
        return opaque(surrogate_function, name=label, random=bool(getattr(surrogate_function, "random", True)),
                      alphabet=getattr(surrogate_function, "alphabet", "real"))
    label = type(surrogate_function).__name__
    if not surrogate_function.spiking:
        return opaque(surrogate_function, name=f"{label} with spiking=False", alphabet="real")
    if known in _OPAQUE:
        alphabet, random = _OPAQUE[known]
        return opaque(surrogate_function, name=label, alphabet=alphabet, random=random)
    name, attributes = _TABLE[known] if known in _TABLE else _PAPERS[known]
    values = tuple(getattr(surrogate_function, a) for a in attributes)
    try:
        if not all(type(v) in (int, float) for v in values):
            return opaque(surrogate_function, name=label)
        return _get(name, attributes, values)
    except MemextError:  # a value only the framework accepts: its own path trains as before
        return opaque(surrogate_function, name=label)


@lru_cache(maxsize=256)  # called once per neuron and forward pass
def _get(name: str, attributes: tuple[str, ...], values: tuple[float, ...]) -> Surrogate:
    return get(name, **dict(zip(attributes, values)))


def _behaves_as(surrogate_function) -> type | None:
    """The known class whose calls this object makes: its own, or a base none of whose behaviour it overrides."""
    cls = type(surrogate_function)
    known = cls if cls in _KNOWN else next((c for c in cls.__mro__ if c in _KNOWN), None)
    if known is None or (known is not cls and any(getattr(cls, n) is not getattr(known, n) for n in _BEHAVIOUR)):
        return None
    return None if _replaced(surrogate_function) else known


def _replaced(surrogate_function) -> list[str]:
    """Methods set on this object alone. Module hooks are not among them: hooking every module of a net, as profilers
    and memopt.optimize_memory do, reaches the one default Sigmoid() that all nodes of a process share."""
    return [name for name in _BEHAVIOUR if name in vars(surrogate_function)]


_BEHAVIOUR = ("__call__", "forward", "spiking_function", "primitive_function", "_sg_params")


class Rectangle(host.SurrogateFunctionBase):
    """ds/dh = 1/gamma if |x| < gamma/2, else 0, with x = h - v_threshold.  Source: SLTT (Meng et al. 2023), Eq. 5."""

    def __init__(self, gamma: float = 1.0, spiking: bool = True):
        rectangle(gamma)  # checks gamma
        super().__init__(spiking=spiking, gamma=gamma)

    @staticmethod
    def spiking_function(x: Tensor, gamma: float) -> Tensor:
        return spike(x, rectangle(gamma), strict=False)

    @staticmethod
    def primitive_function(x: Tensor, gamma: float) -> Tensor:
        return (x / gamma + 0.5).clamp(0.0, 1.0)

    @staticmethod
    def backward(grad_output: Tensor, x: Tensor, gamma: float) -> Tensor:
        return grad_output * rectangle(gamma).grad(x)


class Triangle(host.SurrogateFunctionBase):
    """ds/dh = max(0, gamma - |x|) / gamma^2, with x = h - v_threshold.  Source: SLTT (Meng et al. 2023), Eq. 6."""

    def __init__(self, gamma: float = 1.0, spiking: bool = True):
        triangle(gamma)  # checks gamma
        super().__init__(spiking=spiking, gamma=gamma)

    @staticmethod
    def spiking_function(x: Tensor, gamma: float) -> Tensor:
        return spike(x, triangle(gamma), strict=False)

    @staticmethod
    def primitive_function(x: Tensor, gamma: float) -> Tensor:
        u = (x / gamma).clamp(-1.0, 1.0)
        return 0.5 + u - u * u.abs() / 2

    @staticmethod
    def backward(grad_output: Tensor, x: Tensor, gamma: float) -> Tensor:
        return grad_output * triangle(gamma).grad(x)


class Arctan(host.SurrogateFunctionBase):
    """ds/dh = 1 / (1 + (pi x)^2), x = h - v_threshold.  Source: EfficientLIF-Net (Kim et al. 2023), f(x) =
    arctan(pi x)/pi + 1/2. The gradient of SpikingJelly's ATan(alpha=2)."""

    def __init__(self, spiking: bool = True):
        super().__init__(spiking=spiking)

    @staticmethod
    def spiking_function(x: Tensor) -> Tensor:
        return spike(x, get("arctan"), strict=False)

    @staticmethod
    def primitive_function(x: Tensor) -> Tensor:
        return torch.atan(math.pi * x) / math.pi + 0.5

    @staticmethod
    def backward(grad_output: Tensor, x: Tensor) -> Tensor:
        return grad_output * get("arctan").grad(x)


_PAPERS: dict[type, tuple[str, tuple[str, ...]]] = {
    Rectangle: ("rectangle", ("gamma",)),
    Triangle: ("triangle", ("gamma",)),
    Arctan: ("arctan", ()),
}
_KNOWN = {*_TABLE, *_OPAQUE, *_PAPERS}


def register() -> None:
    """Put Rectangle, Triangle and Arctan into spikingjelly.activation_based.surrogate. Calling it again is fine.

    Raises MemextError if one of the names is already taken; then none is added.
    """
    for cls in _PAPERS:
        taken = getattr(host, cls.__name__, cls)
        if taken is not cls:
            owner = f"{getattr(taken, '__module__', '?')}.{getattr(taken, '__qualname__', taken)}"
            raise MemextError(f"sj_memext.surrogate.register: {host.__name__}.{cls.__name__} is already {owner}; ours "
                              f"is {cls.__module__}.{cls.__qualname__}. Use ours from its own module, or remove that.")
    for cls in _PAPERS:
        setattr(host, cls.__name__, cls)
