"""One step at a time: the backward pass works from the step's trace, so the input is not kept."""
import ctypes

import pytest
import torch
from helpers import (
    ALL_NEURONS,
    assert_bit_equal,
    assert_fires,
    assert_gradients,
    driving,
    error,
    name_of,
    oracle,
    params_for,
    run,
    weights_for,
)

from shared_core import functional, surrogate
from shared_core.backends import fused, native
from shared_core.errors import MemextError

pytestmark = pytest.mark.skipif(native.unavailable() is not None, reason=str(native.unavailable()))
every_neuron = pytest.mark.parametrize("d", ALL_NEURONS, ids=name_of)
SHAPE = (3, 5, 67)


def states_for(d):
    return [torch.randn(SHAPE) * 0.4 for _ in d.states]


def saved_storages(out, *others):
    """Bytes of what the graph of `out` saved, by storage; those of `others` are left out."""
    known = {t.untyped_storage().data_ptr() for t in others}
    node = out.grad_fn
    while "SingleStep" not in node.name() and "MultiStep" not in node.name():
        node = node.next_functions[0][0]
    kept = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in node.saved_tensors if t is not None}
    return {p: size for p, size in kept.items() if p not in known}


@every_neuron
def test_the_python_side_knows_what_the_struct_needs(d):
    described = (ctypes.c_int * 7)()
    library, _ = native._library()
    assert library.memext_describe(fused.kernel_ids()[d.struct], d.variant, described) == 0
    _, states, params, traces, needs_input, needs_before, carry_needs_before = described
    assert (states, params, traces) == (len(d.states), len(d.params), d.traces)
    assert d.backward_reads(learn=False) == (bool(carry_needs_before), False)
    if d.params:
        assert d.backward_reads(learn=True) == (bool(needs_before), bool(needs_input))


@every_neuron
@pytest.mark.parametrize("learn", [False, True], ids=["fixed", "learning"])
def test_gradients_of_one_step(d, learn):
    params, state = params_for(d), states_for(d)
    x = driving(d, 1, SHAPE, params, state)
    truth = oracle(d, x, state, params)
    assert_fires(truth.out.spikes)
    if learn:
        got, plain = (run(d, x, state, params, backend=b) for b in ("native", "reference"))
        assert_gradients(got, plain, truth)
        return
    leaf_x, leaf_state = x.clone().requires_grad_(), [s.clone().requires_grad_() for s in state]
    out = functional.multi_step(d, leaf_x, leaf_state, params, surrogate=surrogate.atan(), backend="native")
    outputs = (out.spikes, *out.state)
    grads = torch.autograd.grad(outputs, [leaf_x, *leaf_state], weights_for(out))
    for i, (g, wanted) in enumerate(zip(grads, truth.grads)):
        assert error(g, wanted) <= 1e-5, f"gradient {i}: {error(g, wanted):.2e}"


@every_neuron
def test_steps_in_a_loop_equal_the_sequence(d):
    params = params_for(d)
    x = driving(d, 6, SHAPE, params).requires_grad_()
    whole = functional.multi_step(d, x, None, params, surrogate=surrogate.sigmoid(), backend="native")
    (whole_grad,) = torch.autograd.grad([whole.spikes, *whole.state], x, [torch.ones_like(whole.spikes),
                                        *(torch.full_like(s, 0.5) for s in whole.state)])
    state, spikes = None, []
    for x_t in x:
        out = functional.multi_step(d, x_t.unsqueeze(0), state, params, surrogate=surrogate.sigmoid(), backend="native")
        state = out.state
        spikes.append(out.spikes)
    loop = torch.cat(spikes)
    assert_fires(loop.detach())
    assert_bit_equal(loop.detach(), whole.spikes.detach(), "spikes")
    for a, b in zip(state, whole.state):
        assert_bit_equal(a.detach(), b.detach(), "state")
    (loop_grad,) = torch.autograd.grad([loop, *state], x, [torch.ones_like(loop),
                                       *(torch.full_like(s, 0.5) for s in state)])
    assert error(loop_grad, whole_grad) <= 1e-6  # the same operations; only the sums over branches may be reordered


@every_neuron
def test_bytes_kept(d):
    """The trace, which may be the state handed out; the state before only where the reset's gradient reads it."""
    params, state = params_for(d), states_for(d)
    x = driving(d, 1, SHAPE, params, state).requires_grad_()
    out = functional.multi_step(d, x, state, params, surrogate=surrogate.atan(), backend="native")
    kept = saved_storages(out.spikes, *state, *params)
    elements = x.numel()
    assert sum(kept.values()) == 4 * d.traces * elements
    assert x.untyped_storage().data_ptr() not in kept
    handed_out = {s.untyped_storage().data_ptr() for s in out.state}
    assert d.trace_is_state == (set(kept) == handed_out)


def test_the_input_is_kept_where_a_parameter_gradient_reads_it():
    d = next(d for d in ALL_NEURONS if d.name == "ParametricLIF" and d.decay_input)
    x = torch.randn(1, *SHAPE, requires_grad=True)
    q = torch.tensor(0.4, requires_grad=True)
    out = functional.multi_step(d, x, states_for(d), (q,), surrogate=surrogate.atan(), backend="native")
    assert x.untyped_storage().data_ptr() in saved_storages(out.spikes)


def test_double_backward_asks_for_the_inputs():
    d = ALL_NEURONS[0]
    x = torch.randn(1, *SHAPE, requires_grad=True)
    v = [torch.zeros(SHAPE)]
    run_once = lambda: functional.multi_step(d, x, v, surrogate=surrogate.atan(), backend="native").spikes  # noqa: E731
    with pytest.raises(MemextError, match="keep_inputs"):
        torch.autograd.grad(run_once().sum(), x, create_graph=True)
    with functional.keep_inputs():
        spikes = run_once()
    (first,) = torch.autograd.grad(spikes.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    wanted = functional.multi_step(d, x, v, surrogate=surrogate.atan(), backend="reference").spikes
    (plain,) = torch.autograd.grad(wanted.sum(), x, create_graph=True)
    (plain_second,) = torch.autograd.grad(plain.square().sum(), x)
    assert second.abs().sum() > 0
    assert error(second, plain_second) <= 1e-6  # one Torch graph, twice
