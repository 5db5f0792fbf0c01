"""Membranes that channel groups share, on a GPU: the CPU kernels' results, bit for bit, in every memory layout."""
from __future__ import annotations

import pytest
import torch
from helpers import SURROGATES, assert_bit_equal, assert_fires, driving, error, name_of, params_for

from shared_core import functional
from shared_core.backends import cuda, native
from shared_core.dynamics import LIF, Leaky, ParametricLIF
from shared_core.spec import Spec

pytestmark = pytest.mark.gpu

SHAPES = [(2, (3, 8)), (4, (2, 16, 3, 5)), (8, (3, 8, 7)), (2, (2, 130, 9, 8)), (4, (1, 4))]
# The same operations in the same order. Half: rounded once on the way out.
GRADIENT = {torch.float32: 1e-6, torch.float64: 1e-12, torch.float16: 1e-3, torch.bfloat16: 8e-3}
VIEWS = {"contiguous": lambda x: x,
         "channels_last": lambda x: x.movedim(2, -1).contiguous().movedim(-1, 2),
         "strided channels": lambda x: x.repeat_interleave(2, 2)[:, :, ::2]}


@pytest.fixture(autouse=True)
def kernels_are_there():
    if cuda.unavailable() or native.unavailable():
        pytest.skip(f"{cuda.unavailable() or native.unavailable()}")


def run(device, d, x, state, params, view, **options):
    """Outputs and gradients of x, states and parameters, all on the CPU."""
    leaf = lambda t: None if t is None else t.detach().to(device).requires_grad_()  # noqa: E731
    x, state, params = leaf(x), [leaf(s) for s in state], [leaf(p) for p in params]
    out = functional.multi_step(d, view(x), state, params, surrogate=SURROGATES[0],
                                backend="cuda" if device == "cuda" else "native", **options)
    outputs = (out.spikes, *out.state, *out.sequence)
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(o.shape, generator=generator).to(device, o.dtype) for o in outputs]
    grads = torch.autograd.grad(outputs, [t for t in (x, *state, *params) if t is not None], weights)
    return [t.detach().cpu() for t in (*outputs, *(() if out.bits is None else (out.bits,)))], [g.cpu() for g in grads]


def compare(d, groups, shape, steps, view, dtype=torch.float32, start=True, **options):
    membrane = (shape[0], shape[1] // groups, *shape[2:])
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    params = params_for(d, membrane, compute)
    state = tuple(torch.randn(membrane, dtype=compute) * 0.4 if start else None for _ in d.states)
    x = driving(d, steps * groups, membrane, params, state, dtype)
    x = torch.stack([torch.cat(list(x[t:t + groups]), 1) for t in range(0, len(x), groups)])
    (got, grads), (wanted, wanted_grads) = (run(device, d, x, state, params, view, groups=groups, **options)
                                            for device in ("cuda", "cpu"))
    for a, b in zip(got, wanted, strict=True):
        assert_bit_equal(a, b, name_of(d))
    if x.numel() > 100:
        assert_fires(got[0])
    for a, b in zip(grads, wanted_grads, strict=True):
        assert a.isfinite().all() and error(a, b) <= GRADIENT[a.dtype], (name_of(d), error(a, b))


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("groups, shape", SHAPES, ids=str)
def test_every_layout(groups, shape, view):
    for i, d in enumerate((LIF(0.7, None, False, 3.0), ParametricLIF(0.7, -0.5), Leaky("zero", False))):
        for steps in (1, 5, 17):  # T * groups under, at and over 32 steps
            compare(d, groups, shape, steps, view, start=steps > 1, record=i > 0, bits=True, online=i == 2)


@pytest.mark.parametrize("dtype", GRADIENT, ids=lambda d: str(d).removeprefix("torch."))
def test_types(dtype):
    for d in (LIF(0.7, -0.5, False, 3.0), Leaky("subtract")):
        compare(d, 4, (2, 16, 5, 3), 9, VIEWS["contiguous"], dtype, record=True)


def test_backward_from_a_rebuilt_input():
    d, groups, x = LIF(0.7, None, False, 3.0), 2, torch.randn(9, 3, 8, 5)
    spec, scale, shift = Spec(d, SURROGATES[0], bits=True, groups=groups), torch.rand(8) + 0.5, torch.randn(8) * 0.3
    found = []
    for backend, device in ((native, "cpu"), (cuda, "cuda")):
        at = lambda t, device=device: t.to(device)  # noqa: E731
        y = torch.addcmul(shift.double().view(-1, 1), x.double(), scale.double().view(-1, 1)).float()
        out = backend.forward(spec, at(y), (None,), (), keep=True)
        g = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
        grad, _, _, sums = backend.backward(spec, at(x), (None,), (), out.anchors, at(g), [None], [None], True, [False],
                                            [], bits=out.bits, affine=(at(scale), at(shift)), sums=True)
        found.append((grad.cpu(), sums.cpu()))
    for a, b in zip(*found, strict=True):
        assert error(a, b) <= 1e-5
