"""A whole sequence through one layer: the compiled kernels against the Torch reference, bit for bit, forward."""
import inspect

import pytest
import torch
from helpers import (
    ALL_NEURONS,
    DTYPES,
    NEURONS,
    STEPS,
    SURROGATES,
    assert_bit_equal,
    assert_fires,
    assert_gradients,
    driving,
    name_of,
    oracle,
    params_for,
    run,
)

from shared_core import dynamics, functional, layout, spikes, surrogate
from shared_core.backends import native
from shared_core.dynamics import IF, LIF, Leaky, ParametricLIF
from shared_core.errors import MemextError

pytestmark = pytest.mark.skipif(native.unavailable() is not None,
                                reason=f"needs the CPU kernels: {native.unavailable()}")


def assert_same(got, wanted):
    assert_bit_equal(got.spikes, wanted.spikes, "spikes")
    for i, (a, b) in enumerate(zip(got.state, wanted.state, strict=True)):
        assert_bit_equal(a, b, f"final state {i}")
    for i, (a, b) in enumerate(zip(got.sequence, wanted.sequence, strict=True)):
        assert_bit_equal(a, b, f"sequence of state {i}")


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Every output starts as NaN: a value that a kernel forgets to write cannot look right by chance."""
    empty = layout.Layout.empty

    def poisoned(self, *lead, dtype, device):
        return empty(self, *lead, dtype=dtype, device=device).fill_(float("nan"))

    monkeypatch.setattr(layout.Layout, "empty", poisoned)


def test_every_neuron_of_the_package_is_in_the_table():
    ours = {n for n, c in dynamics.DYNAMICS.items() if c.__module__.startswith("shared_core.")}
    with_kernel = {n for n in ours if dynamics.DYNAMICS[n].struct}
    assert with_kernel <= set(NEURONS), f"add {with_kernel - set(NEURONS)} to NEURONS in tests/helpers.py"


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("d", ALL_NEURONS, ids=name_of)
def test_native_equals_reference_and_gradients_equal_the_oracle(d, dtype):
    """All step counts, parameters of one value and per neuron, with and without a start state, bits, sequences."""
    for i, steps in enumerate(STEPS):
        if dtype != torch.float32 and steps not in (1, 33):
            continue  # the other types differ in how rows are read and written, not in the loop over time
        shape = (65,) if i % 2 else (3, 5)
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        params = params_for(d, shape if i % 2 else (), compute)
        state = tuple(torch.randn(shape, dtype=compute) * 0.4 for _ in d.states) if i % 3 else None
        x = driving(d, steps, shape, params, state, dtype)
        sg = SURROGATES[i % len(SURROGATES)]
        got = run(d, x, state, params, backend="native", surrogate=sg, record=True, bits=True)
        wanted = run(d, x, state, params, backend="reference", surrogate=sg, record=True, bits=True)
        assert_same(got.out, wanted.out)
        assert_bit_equal(got.out.bits, wanted.out.bits, "bits")
        if steps > 1:
            assert_fires(got.out.spikes)
        truth = oracle(d, x, state, params, sg, record=True)
        assert_gradients(got, wanted, truth, dtype)


def _channels_last(x):
    return x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


VIEWS = {
    "rank1": lambda: torch.randn(9),
    "one neuron": lambda: torch.randn(9, 1),
    "rank2": lambda: torch.randn(9, 65),
    "rank3": lambda: torch.randn(9, 3, 5),
    "rank4": lambda: torch.randn(9, 2, 3, 5),
    "rank5": lambda: torch.randn(9, 2, 3, 4, 5),
    "empty batch": lambda: torch.randn(9, 0, 5),
    "channels_last": lambda: _channels_last(torch.randn(9, 2, 3, 4, 5)),
    "permuted": lambda: torch.randn(9, 4, 3, 5).permute(0, 3, 1, 2),
    "batch first": lambda: torch.randn(3, 9, 5).transpose(0, 1),
    "strided in time": lambda: torch.randn(18, 3, 5)[::2],
    "strided slice": lambda: torch.randn(9, 6, 10)[:, ::2, 1::2],
    "size one, odd stride": lambda: torch.randn(9, 5, 7, 3)[:, :, 2:3],
    "expanded in time": lambda: torch.randn(1, 3, 5).expand(9, 3, 5),
    "expanded in space": lambda: torch.randn(9, 3, 1).expand(9, 3, 5),
    "one value": lambda: torch.randn(()).expand(9, 3, 5),
}


@pytest.mark.parametrize("d", [IF(0.7, -0.5), LIF(0.7, -0.5, tau=3.0), ParametricLIF(0.7, None), Leaky("zero", False)],
                         ids=name_of)
@pytest.mark.parametrize("view", VIEWS)
def test_any_shape_and_strides(d, view):
    x = VIEWS[view]() + 0.5
    for shape in ((), x.shape[1:], (1,) * (x.dim() - 2) + x.shape[-1:] if x.dim() > 2 else ()):
        params = params_for(d, shape)
        for state in (None, tuple(torch.randn(x.shape[1:]) for _ in d.states)):
            got = run(d, x, state, params, backend="native", record=True, bits=True)
            wanted = run(d, x, state, params, backend="reference", record=True)
            assert_same(got.out, wanted.out)
            assert torch.equal(got.out.bits, spikes.pack(got.out.spikes)), "bits are in the memory order of the spikes"
            assert_gradients(got, wanted, oracle(d, x, state, params, record=True))


def test_a_dense_permutation_is_kept_and_not_copied():
    x = _channels_last(torch.randn(4, 2, 3, 5, 7)).requires_grad_()
    out = functional.multi_step(IF(0.7), x, surrogate=SURROGATES[0])
    assert out.spikes.stride() == x.stride()
    (grad,) = torch.autograd.grad(out.spikes.sum(), x)
    assert grad.stride() == x.stride()


@pytest.mark.parametrize("p", [torch.tensor(0.6), torch.tensor([0.6]), torch.tensor([[[[0.6]]]])],
                         ids=["0d", "1d", "4d"])
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_one_value_of_any_rank_is_a_parameter(p, backend):
    """It does not change the shape of the result, and its gradient has its own shape."""
    x = torch.randn(5, 3)
    got = run(ParametricLIF(0.7), x, None, (p,), backend=backend)
    wanted = run(ParametricLIF(0.7), x, None, (torch.tensor(0.6),), backend=backend)
    assert_same(got.out, wanted.out)
    assert got.grads[1].shape == p.shape and got.grads[1].sum() == wanted.grads[1]


def test_a_parameter_on_another_device_is_moved_if_it_is_one_value(monkeypatch):
    """A kernel must never be handed a pointer of another device."""
    operator, seen = functional._operators.run, []
    monkeypatch.setattr(functional._operators, "run", lambda *a, **k: seen.extend(a[-1]) or operator(*a, **k))
    x, q = torch.randn(4, 3, device="meta"), torch.tensor(0.5, requires_grad=True)
    out = functional.multi_step(ParametricLIF(0.7), x, params=(q,), surrogate=SURROGATES[0])
    assert out.spikes.is_meta and out.spikes.shape == (4, 3) and seen[0].device == x.device and seen[0].requires_grad


@pytest.mark.parametrize("spike_dtype", DTYPES, ids=str)
def test_spike_dtype(spike_dtype):
    x = driving(IF(0.7), 40, (33,), dtype=torch.float16)
    got = run(IF(0.7), x, None, (), backend="native", spike_dtype=spike_dtype)
    wanted = run(IF(0.7), x, None, (), backend="reference", spike_dtype=spike_dtype)
    assert got.out.spikes.dtype == spike_dtype and got.out.state[0].dtype == torch.float32
    assert got.grads[0].dtype == torch.float16
    assert_same(got.out, wanted.out)


def test_named_functions_are_multi_step_with_the_usual_arguments():
    x, v, w = driving(LIF(), 20, (8,)), torch.randn(8), torch.tensor(0.3)
    sg = SURROGATES[0]
    both = lambda d, p=(): functional.multi_step(d, x, (v,), p, surrogate=sg)  # noqa: E731
    pairs = [
        (functional.if_multi_step(x, v, surrogate=sg, v_th=0.7, v_reset=-0.5, detach_reset=True),
         both(IF(0.7, -0.5, True))),
        (functional.lif_multi_step(x, v, surrogate=sg, tau=3.0, decay_input=False, v_th=0.7, v_reset=None),
         both(LIF(0.7, None, False, 3.0, False))),
        (functional.plif_multi_step(x, v, w, surrogate=sg, decay_input=False, v_th=0.7, v_reset=-0.5),
         both(ParametricLIF(0.7, -0.5, False, False), (w.sigmoid(),))),
        (functional.leaky_multi_step(x, v, surrogate=sg, beta=1.3, threshold=0.8, scale=2.0, reset_mechanism="zero",
                                     reset_delay=False),
         both(Leaky("zero", False), (torch.tensor(1.0), torch.tensor(0.8), torch.tensor(2.0)))),
    ]
    for (s, state), wanted in pairs:
        assert_fires(s)
        assert_bit_equal(s, wanted.spikes)
        assert_bit_equal(state, wanted.state[0])


def test_two_halves_equal_the_whole():
    """The state carries everything: T steps at once, or in two calls."""
    d, x = LIF(0.7, -0.5, tau=3.0), driving(LIF(0.7, -0.5, tau=3.0), 70, (19,))
    whole = functional.multi_step(d, x, surrogate=SURROGATES[0])
    first = functional.multi_step(d, x[:41], surrogate=SURROGATES[0])
    second = functional.multi_step(d, x[41:], first.state, surrogate=SURROGATES[0])
    assert_bit_equal(torch.cat([first.spikes, second.spikes]), whole.spikes)
    assert_bit_equal(second.state[0], whole.state[0])


# ---- bad input: each refusal says where, what was passed, and what is needed -------------------------------------

X = torch.zeros(4, 3)
REFUSED = {
    "not a tensor": (dict(x=[1.0]), "x is list"),
    "rank 0": (dict(x=torch.tensor(1.0)), "x has rank 0"),
    "sparse": (dict(x=X.to_sparse()), "layout torch.sparse_coo"),
    "integers": (dict(x=X.int()), "x is torch.int32"),
    "no steps": (dict(x=X[:0]), "T = 0"),
    "spike_dtype": (dict(spike_dtype=torch.uint8), "spike_dtype is torch.uint8"),
    "states too many": (dict(state=(X[0], X[0])), "2 states given; 1 needed"),
    "params too few": (dict(params=()), "0 parameters given; 1 needed"),
    "state is a number": (dict(state=(0.0,)), "state 'v' is float"),
    "state of integers": (dict(state=(X[0].int(),)), "state 'v' is a Tensor of torch.int32"),
    "state of another batch": (dict(state=(torch.zeros(5),)), r"state 'v' has shape \(5,\).*reset it"),
    "state elsewhere": (dict(state=(torch.zeros(3, device="meta"),)), "state 'v' is on meta, x on cpu"),
    "param is a number": (dict(params=(0.5,)), "parameter 'q' is float"),
    "param elsewhere": (dict(params=(torch.zeros(3, device="meta"),)), "parameter 'q' is on meta, x on cpu"),
    "param of another shape": (dict(params=(torch.zeros(2),)),
                               r"parameter 'q' has shape \(2,\).*broadcastable to \(3,\)"),
    "param would widen": (dict(params=(torch.zeros(2, 3),)), r"parameter 'q' has shape \(2, 3\)"),
    "backend": (dict(backend="cpu"), "backend is 'cpu'; allowed: auto"),
    "backend of another device": (dict(backend="cuda"), "backend='cuda' was asked for, but"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_what_was_passed_and_what_is_needed(case):
    changed, message = REFUSED[case]
    call = dict(x=X, params=(torch.tensor(0.5),), surrogate=SURROGATES[0]) | changed
    with pytest.raises(functional.MemextError, match=message):
        functional.multi_step(ParametricLIF(), **call)


def test_every_branch_of_the_check_has_a_case():
    """A refusal added to functional.check without a case above turns this red."""
    shared = {"state of integers", "param would widen", "backend", "backend of another device"}  # same branch, or later
    assert inspect.getsource(functional.check).count("raise MemextError") == len(set(REFUSED) - shared)


def test_a_backend_asked_for_by_name_never_falls_back():
    opaque = functional.Surrogate("mine", fn=lambda z: (z >= 0).to(z.dtype))
    with pytest.raises(functional.MemextError, match="surrogate 'mine' has no kernel"):
        functional.multi_step(IF(), X, surrogate=opaque, backend="native")
    with pytest.warns(RuntimeWarning, match="slower Torch path"):
        from shared_core import backends
        backends._said.clear()
        functional.multi_step(IF(), X, surrogate=opaque)


# ---- more elements than a 32-bit index reaches ------------------------------------------------------------------


@pytest.mark.slow
def test_more_than_two_to_the_31_elements():
    """Time rows beyond 2^31 elements. The input is one row seen T times (stride 0) and the output float16: 4.3 GB.

    Every row of spikes has its own 64-bit offset; the rows at the far end must equal a short run's.
    """
    neurons, steps = 1 << 24, (1 << 7) + 2
    free = torch.empty(0)
    try:
        free = torch.empty(steps * neurons, dtype=torch.float16)
    except RuntimeError:
        pytest.skip("needs 4.5 GB of memory")
    del free
    row = torch.zeros(1, neurons, dtype=torch.float16)
    row[0, -64:] = torch.linspace(0.1, 2.0, 64)  # only the last neurons differ: what lies furthest out
    out = functional.multi_step(LIF(0.7, -0.5, tau=3.0), row.expand(steps, neurons), surrogate=SURROGATES[0],
                                backend="native")
    small = functional.multi_step(LIF(0.7, -0.5, tau=3.0), row[:, -64:].expand(steps, 64), surrogate=SURROGATES[0],
                                  backend="reference")
    assert out.spikes.numel() > 2**31
    assert_bit_equal(out.spikes[:, -64:], small.spikes)
    assert out.spikes[-1, :-64].sum() == 0
    assert_fires(small.spikes)


@pytest.mark.parametrize("make, said", [
    (lambda: LIF(tau=0.0), "tau is 0.0; a time constant above 0"),
    (lambda: LIF(tau=-3.0), "tau is -3.0"),
    (lambda: LIF(tau="2"), "tau is '2'; a number is needed"),
    (lambda: IF(v_th=float("nan")), "v_th is nan"),
    (lambda: IF(v_reset="hard"), "v_reset is 'hard'.*or None"),
    (lambda: Leaky("subtracted"), "reset_mechanism is 'subtracted'; allowed: subtract, zero, none"),
    (lambda: functional.multi_step("LIF", torch.ones(2, 3), surrogate=surrogate.atan()), "dynamics is 'LIF'"),
    (lambda: functional.lif_multi_step(torch.ones(2, 3), surrogate="atan"), r"surrogate is 'atan'.*surrogate.atan\(\)"),
    (lambda: functional.lif_multi_step(torch.ones(2, 3), surrogate=None), "surrogate is None"),
    (lambda: functional.plif_multi_step(torch.ones(2, 3), None, 0.5, surrogate=surrogate.atan()), "w is float"),
], ids=lambda v: v if isinstance(v, str) else "")
def test_bad_options_say_what_is_wrong(make, said):
    with pytest.raises(MemextError, match=said):
        make()
