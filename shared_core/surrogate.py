"""Surrogate gradients: what stands in for ds/dh when a spike s = H(h - theta) is differentiated.

    from shared_core import surrogate
    sg = surrogate.atan(alpha=2.0)
    s = surrogate.spike(h - theta, sg, strict=False)

z = h - theta throughout. Each table entry holds the derivative in plain Torch, written from the equation; the kernels
have their own copy in kernels/surrogate.h under the same name and id, and a test holds the two against each other.
Anything not in the table is `opaque`: a function z -> spikes that brings its own backward and runs in Torch.
"""
from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import MemextError

ALPHABETS = ("binary", "integer", "real")


@dataclass(frozen=True)
class Parameter:
    """A parameter of a surrogate. domain: "any" finite number, "> 0", ">= 0", "> 1" or "integer >= 1"."""

    name: str
    default: float
    domain: str = "> 0"

    def check(self, where: str, value) -> float:
        """`value` as a float, or MemextError."""
        number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if number and math.isfinite(value) and _DOMAINS[self.domain](value):
            return float(value)
        allowed = "a finite number" if self.domain == "any" else f"a finite number {self.domain}".replace(
            "number integer", "integer")
        do = "Choose a value in that range." if number else "Convert it to float, or wrap your function with opaque()."
        raise MemextError(f"surrogate {where!r}: got {self.name}={value!r}; allowed: {allowed} "
                          f"(default {self.default:g}). {do}")


_DOMAINS: dict[str, Callable[[float], bool]] = {
    "any": lambda x: True,
    "> 0": lambda x: x > 0,
    ">= 0": lambda x: x >= 0,
    "> 1": lambda x: x > 1,
    "integer >= 1": lambda x: x >= 1 and x == int(x),
}


@dataclass(frozen=True)
class Entry:
    """A row of the table. kernel_id None: no kernel, the Torch path runs it."""

    name: str
    params: tuple[Parameter, ...]
    grad: Callable[..., Tensor]  # grad(z, *params) -> ds/dh, differentiable, dtype-preserving
    source: str
    kernel_id: int | None = None
    owner: str = __name__


SURROGATES: dict[str, Entry] = {}
ALIASES: dict[str, Callable[..., Surrogate]] = {}  # a second name for an entry, with the paper's own parameters


@dataclass(frozen=True)
class Surrogate:
    """A surrogate with its parameters: compares by value, prints itself, pickles (opaque ones if `fn` does).

    name: table entry, or the user's label.  params: in the order of the table entry.
    fn: opaque function z -> spikes with a backward of its own; None for table surrogates.
    alphabet: what the spikes are: "binary" {0, 1}, "integer", or "real" (never packed into bits).
    random: forward or backward draws random numbers, which a recomputation must draw again.
    Raises MemextError: name not in the table, number or domain of the parameters.
    """

    name: str
    params: tuple[float, ...] = ()
    fn: Callable[[Tensor], Tensor] | None = None
    alphabet: str = "binary"
    random: bool = False

    def __post_init__(self):
        if self.alphabet not in ALPHABETS:
            raise MemextError(f"surrogate {self.name!r}: got alphabet={self.alphabet!r}; allowed: {list(ALPHABETS)}.")
        if self.fn is not None:
            if not callable(self.fn):
                raise MemextError(f"surrogate {self.name!r}: got fn={self.fn!r}; needed: a function z -> spikes.")
            return
        declared = entry(self.name).params
        if len(self.params) != len(declared):
            wanted = ", ".join(p.name for p in declared) or "none"
            raise MemextError(f"surrogate {self.name!r}: got {len(self.params)} parameters {tuple(self.params)}; "
                              f"needed: {len(declared)} ({wanted}). Use surrogate.get(name, ...) for the defaults.")
        checked = tuple(p.check(self.name, value) for p, value in zip(declared, self.params))
        object.__setattr__(self, "params", checked)

    @property
    def kernel_id(self) -> int | None:
        """Id of the struct in kernels/surrogate.h; None if only the Torch path can run this surrogate."""
        return None if self.fn is not None else entry(self.name).kernel_id

    def grad(self, z: Tensor) -> Tensor:
        """ds/dh at z = h - theta, dtype and shape of z, differentiable. Raises MemextError for opaque surrogates."""
        if self.fn is not None:
            raise MemextError(f"surrogate {self.name!r} is opaque: its gradient is known only to the autograd of its "
                              "function. Differentiate spike(z, surrogate, strict=...), or register() a gradient.")
        return entry(self.name).grad(z, *self.params)


def entry(name: str) -> Entry:
    """The table's entry, or MemextError naming those there are."""
    if name not in SURROGATES:
        raise MemextError(f"no surrogate named {name!r}; available: {sorted([*SURROGATES, *ALIASES])}. "
                          "Use one of these, register() yours, or wrap it with opaque().")
    return SURROGATES[name]


def get(name: str, **params: float) -> Surrogate:
    """A table surrogate or alias by name; parameters left out take their defaults.

    assert get("atan") == atan(alpha=2.0)
    """
    if name in ALIASES:
        allowed = list(inspect.signature(ALIASES[name]).parameters)
        _refuse_unknown(name, params, allowed)
        return ALIASES[name](**params)
    declared = entry(name).params
    _refuse_unknown(name, params, [p.name for p in declared])
    return Surrogate(name, tuple(params.get(p.name, p.default) for p in declared))


def _refuse_unknown(name: str, params: Mapping[str, float], allowed: list[str]) -> None:
    unknown = [p for p in params if p not in allowed]
    if unknown:
        raise MemextError(f"surrogate {name!r}: got unknown parameters {unknown}; it has {allowed or 'none'}.")


def register(name: str, *, grad: Callable[..., Tensor], params: tuple[Parameter, ...] = (), source: str = "",
             owner: str | None = None) -> Callable[..., Surrogate]:
    """Add a surrogate of your own to the table; it runs on the Torch path. Returns its constructor.

    grad: (z, *params) -> ds/dh in differentiable Torch, dtype and shape of z.  owner: who to name in a clash,
    by default the module of `grad`. Registering the same function again is fine.
    Raises MemextError: the name is taken.
    """
    owner = owner or getattr(grad, "__module__", None) or "unknown"
    _refuse_taken(name, owner, grad)
    return _add(Entry(name, tuple(params), grad, source, None, owner))


def _refuse_taken(name: str, owner: str, grad) -> None:
    if name in ALIASES:
        raise MemextError(f"surrogate {name!r} of {owner}: the name is taken by {__name__}. Choose another name.")
    if name in SURROGATES and SURROGATES[name].grad is not grad:
        raise MemextError(f"surrogate {name!r} of {owner}: the name is taken by {SURROGATES[name].owner}. "
                          "Choose another name.")


def _add(new: Entry) -> Callable[..., Surrogate]:
    SURROGATES[new.name] = new
    names = [p.name for p in new.params]
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(p.name, kind, default=p.default) for p in new.params])

    def construct(*args: float, **kwargs: float) -> Surrogate:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return Surrogate(new.name, tuple(bound.arguments[n] for n in names))

    construct.__name__ = construct.__qualname__ = new.name
    construct.__signature__ = signature
    construct.__doc__ = f"ds/dh = {(new.grad.__doc__ or '').strip()}\n\nSource: {new.source}"
    return construct


def opaque(fn: Callable[[Tensor], Tensor], *, name: str, alphabet: str = "binary", random: bool = False) -> Surrogate:
    """A surrogate known only as a function z -> spikes with its own backward (autograd.Function, module, closure).

    It runs on the Torch path, exactly as `fn` would. Declare what its spikes are (`alphabet`) and whether forward or
    backward draws random numbers, so that nothing is packed into bits or recomputed wrongly.
    """
    return Surrogate(name, (), fn, alphabet, random)


class _Spike(torch.autograd.Function):
    """H(z) with the surrogate's derivative; backward is plain Torch, so it can be differentiated again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z, surrogate, strict):
        return (z > 0 if strict else z >= 0).to(z.dtype)

    @staticmethod
    def setup_context(ctx, inputs, output):
        z, ctx.surrogate, _ = inputs
        ctx.save_for_backward(z)

    @staticmethod
    def backward(ctx, grad_output):
        (z,) = ctx.saved_tensors
        return grad_output * ctx.surrogate.grad(z), None, None


def spike(z: Tensor, surrogate: Surrogate, *, strict: bool) -> Tensor:
    """The reference spike: H(z), backward grad_output * surrogate.grad(z), twice differentiable.

    z: h - theta, any floating dtype; the spikes have the same one (an opaque surrogate decides for itself).
    strict: fire on z > 0 (snnTorch) instead of z >= 0 (SpikingJelly). Ignored by opaque surrogates.
    """
    if surrogate.fn is not None:
        return surrogate.fn(z)
    return _Spike.apply(z, surrogate, strict)


def _kind(kernel_id: int, name: str, *params: Parameter, source: str):
    def decorate(grad: Callable[..., Tensor]) -> Callable[..., Surrogate]:
        return _add(Entry(name, params, grad, source, kernel_id))
    return decorate


# ---- the table: SJ is SpikingJelly 2.0.0, ST is snnTorch 1.0.0 ---------------------------------------------------
# Each function is the derivative; the decorator replaces it by the constructor of the same name.


@_kind(0, "sigmoid", Parameter("alpha", 4.0), source="SJ Sigmoid, ST sigmoid (slope=25)")
def sigmoid(z, alpha):
    """alpha s (1 - s), s = 1 / (1 + exp(-alpha z)); as s(alpha z) s(-alpha z), which neither overflows nor cancels"""
    return alpha * torch.sigmoid(alpha * z) * torch.sigmoid(-alpha * z)


@_kind(1, "atan", Parameter("alpha", 2.0), source="SJ ATan, ST atan")
def atan(z, alpha):
    """alpha/2 / (1 + (pi/2 alpha z)^2)"""
    return alpha / 2 / (1 + (math.pi / 2 * alpha * z) ** 2)


@_kind(2, "piecewise_quadratic", Parameter("alpha", 1.0), source="SJ PiecewiseQuadratic")
def piecewise_quadratic(z, alpha):
    """alpha - alpha^2 |z| where that is positive, else 0"""
    return (alpha - alpha**2 * z.abs()).clamp_min(0)


@_kind(3, "piecewise_exp", Parameter("alpha", 1.0), source="SJ PiecewiseExp")
def piecewise_exp(z, alpha):
    """alpha/2 exp(-alpha |z|)"""
    return alpha / 2 * torch.exp(-alpha * z.abs())


@_kind(4, "soft_sign", Parameter("alpha", 2.0), source="SJ SoftSign")
def soft_sign(z, alpha):
    """1 / (2 alpha (1/alpha + |z|)^2)"""
    return (1 / alpha + z.abs()) ** -2 / (2 * alpha)


@_kind(5, "super_spike", Parameter("alpha", 1.0), source="SJ SuperSpike")
def super_spike(z, alpha):
    """alpha / (1 + |z|)^2"""
    return alpha * (1 + z.abs()) ** -2


@_kind(6, "nonzero_sign_log_abs", Parameter("alpha", 1.0), source="SJ NonzeroSignLogAbs")
def nonzero_sign_log_abs(z, alpha):
    """1 / (1/alpha + |z|)"""
    return 1 / (1 / alpha + z.abs())


@_kind(7, "erf", Parameter("alpha", 2.0), source="SJ Erf")
def erf(z, alpha):
    """alpha/sqrt(pi) exp(-(alpha z)^2)"""
    return alpha / math.sqrt(math.pi) * torch.exp(-((alpha * z) ** 2))


@_kind(8, "piecewise_leaky_relu", Parameter("w", 1.0), Parameter("c", 0.01, "any"), source="SJ PiecewiseLeakyReLU")
def piecewise_leaky_relu(z, w, c):
    """1/(2w) if |z| < w, else c"""
    return torch.full_like(z, c).masked_fill(z.abs() < w, 1 / (2 * w))


@_kind(9, "squarewave_fourier_series", Parameter("n", 2, "integer >= 1"), Parameter("T_period", 8.0),
       source="SJ SquarewaveFourierSeries")
def squarewave_fourier_series(z, n, T_period):
    """4/T sum_{k=1}^{n-1} cos((2k - 1) 2 pi z / T)"""
    total = torch.zeros_like(z)
    for k in range(1, int(n)):
        total = total + torch.cos((2 * k - 1) * (2 * math.pi / T_period) * z)
    return 4 / T_period * total


@_kind(10, "s2nn", Parameter("alpha", 4.0), Parameter("beta", 1.0, "any"), source="SJ S2NN")
def s2nn(z, alpha, beta):
    """alpha s (1 - s), s = 1 / (1 + exp(-alpha z)), if z < 0; beta / (z + 1) otherwise"""
    below = alpha * torch.sigmoid(alpha * z) * torch.sigmoid(-alpha * z)
    above = beta / (z.clamp_min(0) + 1)  # clamped: the branch not taken must not put a NaN into a second derivative
    return torch.where(z < 0, below, above)


@_kind(11, "q_pseudo_spike", Parameter("alpha", 2.0, "> 1"), source="SJ QPseudoSpike")
def q_pseudo_spike(z, alpha):
    """(1 + 2/(alpha - 1) |z|)^(-alpha)"""
    return (1 + 2 / (alpha - 1) * z.abs()) ** -alpha


@_kind(12, "leaky_k_relu", Parameter("leak", 0.0, "any"), Parameter("k", 1.0, "any"), source="SJ LeakyKReLU")
def leaky_k_relu(z, leak, k):
    """k if z >= 0, else leak"""
    return torch.full_like(z, leak).masked_fill(z >= 0, k)


@_kind(13, "fake_numerical_gradient", Parameter("alpha", 0.3), source="SJ FakeNumericalGradient")
def fake_numerical_gradient(z, alpha):
    """min(1/|z|, alpha)"""
    return 1 / z.abs().clamp_min(1 / alpha)


@_kind(14, "log_tailed_relu", Parameter("alpha", 0.0, "any"), source="SJ LogTailedReLU")
def log_tailed_relu(z, alpha):
    """alpha if z <= 0, 1 if 0 < z <= 1, 1/z above"""
    return torch.where(z <= 0, alpha, 1 / z.clamp_min(1))


@_kind(15, "straight_through", source="SJ DeterministicPass, ST straight_through_estimator")
def straight_through(z):
    """1"""
    return torch.ones_like(z)


@_kind(16, "rect", Parameter("alpha", 1.0), source="SJ Rect")
def rect(z, alpha):
    """alpha if |z| < 1/(2 alpha), else 0"""
    return torch.zeros_like(z).masked_fill(z.abs() < 0.5 / alpha, alpha)


@_kind(17, "fast_sigmoid", Parameter("slope", 25.0, ">= 0"), source="ST fast_sigmoid")
def fast_sigmoid(z, slope):
    """1 / (slope |z| + 1)^2"""
    return (slope * z.abs() + 1) ** -2


@_kind(18, "triangular", Parameter("threshold", 1.0, "any"),
       source="ST triangular; its sign is kept so that a converted network trains as before, see `triangle`")
def triangular(z, threshold):
    """threshold if z < 0, -threshold otherwise"""
    return torch.full_like(z, threshold).masked_fill(z >= 0, -threshold)


@_kind(19, "heaviside", source="ST heaviside")
def heaviside(z):
    """1 if z > 0, else 0"""
    return (z > 0).to(z.dtype)


@_kind(20, "spike_rate_escape", Parameter("beta", 1.0, ">= 0"), Parameter("slope", 25.0, "any"),
       source="ST spike_rate_escape")
def spike_rate_escape(z, beta, slope):
    """slope exp(-beta |z - 1|)"""
    return slope * torch.exp(-beta * (z - 1).abs())


@_kind(21, "sparse_fast_sigmoid", Parameter("slope", 25.0, ">= 0"), Parameter("B", 1.0, "any"), source="ST SFS")
def sparse_fast_sigmoid(z, slope, B):
    """1 / (slope |z| + 1)^2 if z > B, else 0"""
    return torch.where(z > B, (slope * z.abs() + 1) ** -2, 0.0)


@_kind(22, "none", source="ST neurons with surrogate_disable=True")
def none(z):
    """0"""
    return torch.zeros_like(z)


# ---- the papers' own: names for entries above, not a second formula -----------------------------------------------


def _alias(make: Callable[..., Surrogate]) -> Callable[..., Surrogate]:
    ALIASES[make.__name__] = make
    return make


@_alias
def rectangle(gamma: float = 1.0) -> Surrogate:
    """ds/dh = 1/gamma if |z| < gamma/2, else 0.  Source: SLTT (Meng et al. 2023), Eq. 5. The same as rect(1/gamma)."""
    return rect(alpha=1 / Parameter("gamma", 1.0).check("rectangle", gamma))


@_alias
def triangle(gamma: float = 1.0) -> Surrogate:
    """ds/dh = max(0, gamma - |z|) / gamma^2.  Source: SLTT, Eq. 6. The same as piecewise_quadratic(1/gamma)."""
    return piecewise_quadratic(alpha=1 / Parameter("gamma", 1.0).check("triangle", gamma))


@_alias
def arctan() -> Surrogate:
    """ds/dh = 1 / (1 + (pi z)^2), the derivative of arctan(pi z)/pi + 1/2.  Source: EfficientLIF-Net (Kim et al.
    2023), neuron model. The same as atan(2)."""
    return atan(alpha=2.0)
