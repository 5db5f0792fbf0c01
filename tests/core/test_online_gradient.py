"""multi_step(online=True), the gradient of SLTT: nothing flows from a step to the one before it.

Compiled kernels, the text of the GPU kernels compiled as C++, the reference and the operators, against float64 autograd
with detached states.
"""
from __future__ import annotations

import one_neuron
import pytest
import torch
from helpers import (
    ALL_NEURONS,
    DTYPES,
    STEPS,
    SURROGATES,
    assert_bit_equal,
    assert_fires,
    assert_gradients,
    driving,
    error,
    name_of,
    oracle,
    params_for,
    run,
)
from one_neuron import Edit
from test_cuda_shim import _problem, case, library  # noqa: F401  (library is a fixture)
from test_cuda_shim import run as shim_run  # noqa: F401  (a fixture)

from shared_core import _build, _operators, _tape, functional
from shared_core.backends import native
from shared_core.chain import neuron as chain
from shared_core.chain.policy import Policy
from shared_core.dynamics import LIF, Leaky, ParametricLIF, Synaptic
from shared_core.spec import Spec

needs_kernels = pytest.mark.skipif(native.unavailable() is not None,
                                   reason=f"needs the CPU kernels: {native.unavailable()}")
PLIF = ParametricLIF(0.7, -0.5)
FEW = [LIF(0.7, None, False, 3.0), PLIF, Synaptic("zero", False)]


def inputs(d, steps, shape, dtype=torch.float32, shared=True):
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    params = params_for(d, () if shared else shape, compute)
    state = tuple(torch.randn(shape, dtype=compute) * 0.4 for _ in d.states)
    return driving(d, steps, shape, params, state, dtype), state, params


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("d", ALL_NEURONS, ids=name_of)
def test_kernels_and_reference_equal_autograd_with_detached_states(d, dtype):
    for i, steps in enumerate(STEPS if dtype == torch.float32 else (33,)):
        # One parameter value per neuron: the gradient of a shared one is a sum that may cancel.
        x, state, params = inputs(d, steps, (65,) if i % 2 else (3, 5), dtype, shared=False)
        options = dict(surrogate=SURROGATES[i % len(SURROGATES)], record=i % 3 > 0)
        got, plain = (run(d, x, state, params, backend=b, online=True, **options) for b in ("native", "reference"))
        full = run(d, x, state, params, backend="native", **options)
        for a, b, c in zip(*((r.out.spikes, *r.out.state, *r.out.sequence) for r in (got, plain, full)), strict=True):
            assert_bit_equal(a, b), assert_bit_equal(a, c, "the gradient alone is another")
        truth = oracle(d, x, state, params, options["surrogate"], options["record"], online=True)
        assert_gradients(got, plain, truth, dtype)
        assert all(not g.any() for g in got.grads[1:1 + len(state)]), "the first state is a constant, too"
        if steps > 1:
            assert_fires(got.out.spikes)
            assert error(got.grads[0], full.grads[0]) > 0.01, "the temporal path carries nothing here"


@pytest.mark.skipif(_problem() is not None, reason=str(_problem()))
@pytest.mark.parametrize("d", ALL_NEURONS, ids=name_of)
def test_the_text_of_the_gpu_kernels(d, shim_run):  # noqa: F811
    """Against the CPU kernels: gradients of the input, of the first state (zero) and of the parameters."""
    for i, steps in enumerate(STEPS):
        case(d, steps, (33,), start=i % 2 == 0, shared=i % 3 > 0, record=i % 2 == 1, online=True).check(
            shim_run, fires=steps > 3)


@needs_kernels
@pytest.mark.parametrize("d", FEW, ids=name_of)
def test_a_sequence_equals_its_steps_with_detached_states(d):
    x, state, params = inputs(d, 40, (33,))
    params = [p.requires_grad_() for p in params]
    weight = torch.randn(40, 33)
    whole_x, stepped_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    whole = functional.multi_step(d, whole_x, state, params, surrogate=SURROGATES[0], online=True)
    found = torch.autograd.grad((whole.spikes * weight).sum(), (whole_x, *params), allow_unused=True)
    total, now = 0, state
    for t in range(40):
        now = tuple(s.detach() for s in now)
        out = functional.multi_step(d, stepped_x[t:t + 1], now, params, surrogate=SURROGATES[0])
        assert_bit_equal(out.spikes[0], whole.spikes[t])
        total, now = total + (out.spikes * weight[t]).sum(), out.state
    wanted = torch.autograd.grad(total, (stepped_x, *params), allow_unused=True)
    assert_bit_equal(found[0], wanted[0])
    for a, b in zip(found[1:], wanted[1:]):
        assert a is b is None or error(a, b) < 1e-5  # float32 sums over 40 steps in another order


@needs_kernels
@pytest.mark.parametrize("online", [False, True], ids=["bptt", "online"])
def test_one_step_is_the_ordinary_one_from_a_detached_state(online):
    """The same node, which keeps the trace; also when a tape records, as temporal.unroll does."""
    x, state, _ = inputs(FEW[0], 1, (33,))
    x, state = x.requires_grad_(), tuple(s.requires_grad_() for s in state)
    tape = _tape.Tape()
    with tape.recording():
        taped = functional.multi_step(FEW[0], x.detach(), state, surrogate=SURROGATES[0], online=online)
    with tape.giving(0):
        taped = functional.multi_step(FEW[0], x, state, surrogate=SURROGATES[0], online=online)
    plain = functional.multi_step(FEW[0], x, state, surrogate=SURROGATES[0], online=online)
    assert type(plain.spikes.grad_fn).__name__ == "_SingleStepBackward"
    for out in (plain, taped):
        of_x, of_state = torch.autograd.grad(out.spikes.sum(), (x, *state), allow_unused=True)
        assert of_x.any() and (of_state is None) == online


@needs_kernels
@pytest.mark.parametrize("d", FEW, ids=name_of)
def test_operators_compile_chain_and_double_backward(d):
    x, state, params = inputs(d, 9, (7,))
    call = lambda x, f=functional.multi_step, **o: f(d, x, state, params, surrogate=SURROGATES[0],  # noqa: E731
                                                     online=True, **o).spikes
    x.requires_grad_()
    weight = torch.randn(9, 7)
    grad = lambda f, **o: torch.autograd.grad((f(x) * weight).sum(), x, **o)[0]  # noqa: E731
    wanted = grad(call)
    operator = lambda x: _operators.run(d, SURROGATES[0], None, False, False, True, "auto", x, state,  # noqa: E731
                                        params).spikes
    assert_bit_equal(grad(operator), wanted)
    chained = lambda x: call(x, chain.multi_step, policy=Policy())  # noqa: E731
    assert_bit_equal(grad(chained), wanted)
    assert_bit_equal(torch.func.grad(lambda x: (call(x) * weight).sum())(x.detach()), wanted)
    again = lambda f: torch.autograd.grad(grad(f, create_graph=True).square().sum(), x)[0]  # noqa: E731
    assert error(again(call), again(lambda x: call(x, backend="reference"))) < 1e-5  # float32, the same loop twice
    text = Spec(d, SURROGATES[0], None, True, False, True).to_json()
    assert Spec.from_json(text) == Spec(d, SURROGATES[0], None, True, False, True)


@pytest.mark.slow
def test_compiled_graphs_know_the_difference():
    d, x = LIF(0.7, -0.5, False, 3.0), driving(LIF(0.7, -0.5, False, 3.0), 9, (7,)).requires_grad_()

    @torch.compile(fullgraph=True)
    def f(x, online):
        return functional.multi_step(d, x, surrogate=SURROGATES[0], online=online).spikes

    for online in (True, False):
        out = functional.multi_step(d, x, surrogate=SURROGATES[0], online=online).spikes
        weight = torch.randn_like(out)
        assert_bit_equal(torch.autograd.grad((f(x, online) * weight).sum(), x)[0],
                         torch.autograd.grad((out * weight).sum(), x)[0])


def test_a_kernel_that_carries_the_gradient_on_is_caught(tmp_path, monkeypatch):
    try:
        _build.compiler()
    except _build.BuildError as problem:
        pytest.skip(str(problem))
    edit = Edit("cpu.cpp", "", "if (c.flags & kOnline &&", "if (false &&")
    broken = native._load(one_neuron.library(tmp_path / "kernels", "Leaky", (edit,)))
    monkeypatch.setattr(native, "_library", lambda: (broken, "one neuron"))
    with pytest.raises(AssertionError, match="gradient"):
        d = Leaky("subtract", True)
        x, state, params = inputs(d, 9, (65,), shared=False)
        got, plain = (run(d, x, state, params, backend=b, online=True) for b in ("native", "reference"))
        assert_gradients(got, plain, oracle(d, x, state, params, online=True))
