"""Training steps of the framework's own net, written down, and of the same net after a retrofit, compared with them.

    record = native_run(net, x, loss=classify)    # three steps, each with its parameters, outputs and gradients
    check(net, "balanced", record, loss=classify) # the same three steps after retrofit(net, "recompute", ...)
"""
from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass

import pytest
import torch
from helpers import TWICE, error
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn
from torch.nn import functional as F

from shared_core._entering import plain_type
from sj_memext import restore, retrofit
from sj_memext.retrofit import METHODS as AVAILABLE

METHODS: dict[str, tuple[str, dict]] = {
    "neuron": ("neuron", {}),
    "compress": ("compress", {}),
    "balanced": ("recompute", {"prefer": "balanced"}),
    "memory": ("recompute", {"prefer": "memory"}),
    "speed": ("recompute", {"prefer": "speed"}),
}
METHOD_PARAMS = [pytest.param(name, marks=pytest.mark.skipif(method not in AVAILABLE, reason="no such method yet"))
                 for name, (method, _) in METHODS.items()]

# Norm-relative, per tensor, against native: the same sums in another order, some thousand values in a few layers.
# Where terms cancel, native itself is further from the truth. Then, as in helpers: TWICE native's own error against a
# float64 run that fires alike, where native's error is the largest of ROUNDINGS + 1 runs (one alone may be lucky).
GRADIENT = {torch.float32: 1e-5, torch.float64: 1e-10}
ROUNDINGS = 8
# The gradient of a bias in front of batch norm is zero but for rounding: of the terms that add up to it, which are of
# the size of the gradient of the layer's weight. It is measured against that if it is this much smaller.
NOTHING = 1e-4


@pytest.fixture(autouse=True)
def one_thread():
    """Nets this small spend their time waiting for a second thread. Imported by the tests that use this module."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def convert(net: nn.Module, method: str) -> nn.Module:
    name, options = METHODS[method]
    return retrofit(net, name, **options)


def neurons(net: nn.Module) -> list[neuron.BaseNode]:
    return [m for m in net.modules() if isinstance(m, neuron.BaseNode)]


# ---- one step ---------------------------------------------------------------------------------------------------

@dataclass
class Step:
    """One training step: what went in, and everything that came out."""

    params: dict[str, Tensor]
    x: Tensor
    y: Tensor
    loss: Tensor
    states: list[Tensor | float]
    grads: dict[str, Tensor | None]  # of the parameters by name, and of the "input"
    buffers: dict[str, Tensor]
    truth: tuple[dict, dict] | None = None  # native_error's answer, once it was asked for


def weighted(y: Tensor) -> Tensor:
    """A loss whose gradient is different everywhere, and a full tensor."""
    generator = torch.Generator().manual_seed(11)
    w = torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype)
    return (y * w).sum() / y[0].numel() ** 0.5


def classify(y: Tensor) -> Tensor:
    """Cross entropy of the mean over time: its gradient reaches the net as an expanded tensor."""
    y = y.mean(0) if y.dim() == 3 else y
    return F.cross_entropy(y, torch.arange(y.shape[0]) % y.shape[1])


def train_step(net: nn.Module, x: Tensor, seed: int = 0, loss: Callable = weighted, grad_x: bool = True,
               context: Callable = nullcontext) -> Step:
    """Forward and backward from rest; random masks come from `seed`."""
    functional.reset_net(net)
    net.zero_grad()
    params = {name: p.detach().clone() for name, p in net.named_parameters()}
    leaf = x.detach().clone(memory_format=torch.preserve_format).requires_grad_(grad_x)
    torch.manual_seed(seed)
    with context():
        y = net(leaf)
        value = loss(y)
    states = [v.detach().clone() if isinstance(v := m.v, Tensor) else v for m in neurons(net)]
    value.backward()
    functional.reset_net(net)
    grads = {name: None if p.grad is None else p.grad.clone() for name, p in net.named_parameters()}
    return Step(params, x, y.detach().clone(), value.detach(), states, grads | {"input": leaf.grad},
                {name: b.clone() for name, b in net.named_buffers()})


def native_run(net: nn.Module, x: Tensor | list[Tensor], steps: int = 3, rate: float = 0.02, **how) -> list[Step]:
    """Training steps of a copy of the net, each from where a step of normed SGD led. x: one input, or one per step."""
    net, record = copy.deepcopy(net), []
    for i in range(steps):
        record.append(train_step(net, x[i] if isinstance(x, list) else x, seed=i, **how))
        with torch.no_grad():
            for p in net.parameters():
                if p.grad is not None:
                    p -= rate * p.grad / (p.grad.norm() + 1e-6)
    return record


# ---- the comparison ---------------------------------------------------------------------------------------------

def check(net: nn.Module, method: str, record: list[Step], prepare: Callable = lambda net: net, **how) -> nn.Module:
    """Retrofits a copy of the net and compares it with the record, from identical parameters in every step.

    Buffers are not copied: that the batch-norm statistics still agree in the last step is part of the comparison.
    prepare: what is done to the copy after the retrofit. Returns the retrofitted copy.
    """
    ours = copy.deepcopy(net)
    keys, classes = list(ours.state_dict()), [plain_type(m) for m in ours.modules()]
    ours = prepare(convert(ours, method))
    assert list(ours.state_dict()) == keys
    for i, wanted in enumerate(record):
        set_params(ours, wanted.params)
        assert_same_step(train_step(ours, wanted.x, seed=i, **how), wanted, f"{method}, step {i}",
                         lambda i=i, wanted=wanted: native_error(net, wanted, i, **how))
    assert list(ours.state_dict()) == keys
    restored = restore(copy.deepcopy(ours))
    assert [plain_type(m) for m in restored.modules()] == classes
    native = copy.deepcopy(net)
    native.load_state_dict(ours.state_dict())
    y, y2 = (train_step(n, record[-1].x, **how).y for n in (native, restored))
    assert_equal(y2, y, "after restore: output")
    return ours


def set_params(net: nn.Module, params: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.copy_(params[name])


def assert_same_step(got: Step, wanted: Step, where: str, doubt: Callable | None = None) -> None:
    """Values of the forward pass and buffers bit for bit; gradients: see assert_same_gradients."""
    assert_equal(got.y, wanted.y, f"{where}: output")
    assert error(got.loss, wanted.loss) <= 1e-5, f"{where}: loss"  # summed in the order of the output's strides
    for i, (v, v2) in enumerate(zip(got.states, wanted.states, strict=True)):
        if isinstance(v2, Tensor):
            assert_equal(v, v2, f"{where}: membrane of neuron {i}")
    assert got.buffers.keys() == wanted.buffers.keys()
    for name, b in wanted.buffers.items():
        assert_equal(got.buffers[name], b, f"{where}: buffer {name}")
    assert_same_gradients(got.grads, wanted.grads, where, doubt)


def assert_equal(got: Tensor, wanted: Tensor, what: str) -> None:
    assert got.dtype == wanted.dtype and got.shape == wanted.shape, (what, got.dtype, got.shape, wanted.shape)
    assert torch.equal(got, wanted), (f"{what}: {(got != wanted).sum().item()} of {got.numel()} differ, by up to "
                                      f"{(got - wanted).abs().max().item():.2e}")


def assert_same_gradients(got: dict, wanted: dict, where: str = "", doubt: Callable | None = None) -> None:
    """The same ones are None; the others are within GRADIENT of native's, or no further from the truth than native is.

    doubt: gives (true gradients, native's error of each); it is asked only if some are not within GRADIENT.
    """
    assert got.keys() == wanted.keys()
    assert any(g is not None and g.count_nonzero() for g in wanted.values()), f"{where}: no gradient at all"
    off = {}
    for name, g in wanted.items():
        ours = got[name]
        assert (ours is None) == (g is None), f"{where}: {name} is None only {'here' if ours is None else 'natively'}"
        if g is not None:
            assert ours.dtype == g.dtype and ours.shape == g.shape, (where, name, ours.dtype, g.dtype, ours.shape)
            distance = error(ours, g) / _scale(name, wanted)
            if not distance <= GRADIENT[g.dtype]:  # also NaN
                off[name] = f"{name} {tuple(g.shape)}: {distance:.1e} from native"
    if off and doubt is not None:
        exact, native = doubt()
        for name in list(off):
            ours = error(got[name], exact[name])
            if ours <= TWICE * native[name]:
                del off[name]
            else:
                off[name] += f", {ours:.1e} from the truth (native {native[name]:.1e})"
    assert not off, f"{where}: {len(off)} of {len(wanted)} gradients differ: {'; '.join([*off.values()][:12])}"


def _scale(name: str, grads: dict) -> float:
    """1, or for a bias whose gradient is nothing but rounding: how much larger that of the weight beside it is."""
    weight, norm = grads.get(name.removesuffix("bias") + "weight"), grads[name].double().norm().item()
    if not name.endswith("bias") or weight is None or norm >= NOTHING * weight.double().norm().item():
        return 1.0
    return weight.double().norm().item() / (norm or 1.0)


# ---- the truth --------------------------------------------------------------------------------------------------

class _Replayed(nn.Module):
    """A surrogate function that fires as it is told, step by step; its derivative is the one of `function`."""

    def __init__(self, function: nn.Module):
        super().__init__()
        self.function, self.spikes = function, []

    def forward(self, z: Tensor) -> Tensor:
        s = self.function(z)
        return s + (self.spikes.pop(0).to(z.dtype) - s).detach()


def native_error(net: nn.Module, step: Step, seed: int, **how) -> tuple[dict, dict[str, float]]:
    """(gradients of the native step in float64, firing as it did in its own dtype; native's largest error of each)."""
    if step.truth is None:
        exact = _true_gradients(net, step, seed, **how)
        runs = [step.grads, *(_rounded_otherwise(net, step, seed, k, **how) for k in range(ROUNDINGS))]
        worst = {name: max(error(run[name], g) for run in runs) for name, g in exact.items() if g is not None}
        step.truth = exact, worst
    return step.truth


def _true_gradients(net: nn.Module, step: Step, seed: int, **how) -> dict[str, Tensor | None]:
    net = copy.deepcopy(net)
    set_params(net, step.params)
    spikes = [[] for _ in neurons(net)]
    handles = [node.register_forward_hook(lambda m, args, out, kept=kept: kept.extend(
        (out if m.step_mode == "m" else out[None]).detach().bool())) for node, kept in zip(neurons(net), spikes)]
    train_step(copy.deepcopy(net), step.x, seed, **how)
    for handle in handles:
        handle.remove()
    net = net.double()
    for node, kept in zip(neurons(net), spikes):
        node.surrogate_function = _Replayed(node.surrogate_function)
        node.surrogate_function.spikes = kept
    exact = train_step(net, step.x.double(), seed, **how)
    assert not any(spikes) and error(exact.y, step.y) < 1e-3, "the float64 run is that of another net"
    return exact.grads


def _rounded_otherwise(net: nn.Module, step: Step, seed: int, run: int, **how) -> dict[str, Tensor | None]:
    """Native's gradients when each one that arrives at a module's output is off by up to one unit in the last place."""
    net, generator = copy.deepcopy(net), torch.Generator().manual_seed(run)
    set_params(net, step.params)

    def nudge(g: Tensor) -> Tensor:
        r = torch.rand(g.shape, generator=generator, dtype=g.dtype) * 2 - 1
        return g * (1 + torch.finfo(g.dtype).eps * r)

    def watch(module: nn.Module, args: tuple, out: Tensor) -> None:
        if out.requires_grad:
            out.register_hook(nudge)

    for module in net.modules():
        if not [*module.children()] or isinstance(module, neuron.BaseNode):
            module.register_forward_hook(watch)
    return train_step(net, step.x, seed, **how).grads
