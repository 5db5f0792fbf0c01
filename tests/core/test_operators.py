"""The registered operators: the same results as the eager path, under compile, export, fake tensors and torch.func."""
from itertools import pairwise

import pytest
import torch
from helpers import SURROGATES, assert_bit_equal, assert_fires, driving, error, params_for
from torch._subclasses.fake_tensor import FakeTensorMode

from shared_core import _operators, surrogate
from shared_core.backends import native
from shared_core.dynamics import IF, LIF, Leaky, ParametricLIF, Synaptic
from shared_core.functional import MultiStep, multi_step
from shared_core.spec import Spec

pytestmark = pytest.mark.skipif(native.unavailable() is not None,
                                reason=f"needs the CPU kernels: {native.unavailable()}")
SG = SURROGATES[0]
PLIF, LEAKY = ParametricLIF(0.7, -0.5), Leaky("zero", False)
BOTH = pytest.mark.parametrize("d", [PLIF, LEAKY], ids=lambda d: d.name)


def leaves(d, steps=40, shape=(3, 5), dtype=torch.float32):
    params = params_for(d, shape[-1:], dtype)
    state = tuple(torch.randn(shape, dtype=dtype) * 0.4 for _ in d.states)
    return [t.requires_grad_() for t in (driving(d, steps, shape, params, state, dtype), *state, *params)]


def flat(d, *tensors, sg=SG, bits=True, **options):
    out = multi_step(d, tensors[0], tensors[1:2], tensors[2:], surrogate=sg, record=True, bits=bits, **options)
    return out.spikes, *out.state, *out.sequence, *((out.bits,) if bits else ())


def loss(d, *tensors, **options):
    spikes, final, sequence, *_ = flat(d, *tensors, **options)
    return spikes.mul(torch.arange(5.0)).sum() + final.pow(2).sum() + sequence.cos().sum()


def through_operator(d, *tensors, backend="auto"):
    out = _operators.run(d, SG, None, True, True, False, backend, tensors[0], tensors[1:2], tensors[2:])
    return out.spikes, *out.final, *out.sequence, out.bits


def assert_all_equal(got, wanted):
    for a, b in zip(got, wanted, strict=True):
        assert_bit_equal(a, b)


# ---- one implementation, two doors ------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("backend", ["native", "reference"])
def test_operator_equals_eager(d, backend):
    every = leaves(d)
    eager, operator = flat(d, *every, backend=backend), through_operator(d, *every, backend=backend)
    assert_fires(eager[0])
    assert_all_equal(operator, eager)
    pick = lambda out: out[0].sum() + out[1].cos().sum() + out[2].sin().sum()  # noqa: E731
    assert_all_equal(torch.autograd.grad(pick(operator), every), torch.autograd.grad(pick(eager), every))


@pytest.mark.parametrize("missing", [0, 1])
def test_two_states_of_which_one_is_given(missing):
    """The list of tensors given and its mask: neither values nor gradients may move to the other state."""
    d = Synaptic("subtract", False)
    params = params_for(d, (5,))
    x, given = driving(d, 40, (5,), params).requires_grad_(), torch.randn(5).mul(0.4).requires_grad_()
    state = tuple(None if i == missing else given for i in range(2))

    def gradients(run):
        out = run(x, state)
        return torch.autograd.grad(out.spikes.sum() + out[1][0].cos().sum() + out[1][1].sin().sum(), (x, given))

    named = lambda out: MultiStep(out.spikes, out.final, out.sequence, out.bits)  # noqa: E731
    eager = gradients(lambda x, s: multi_step(d, x, s, params, surrogate=SG))
    operator = gradients(lambda x, s: named(_operators.run(d, SG, None, False, False, False, "auto", x, s, params)))
    assert_all_equal(operator, eager)
    one = torch.func.vmap(lambda x, g: multi_step(d, x, tuple(None if i == missing else g for i in range(2)), params,
                                                  surrogate=SG).state, in_dims=(1, 0))
    got = one(x.detach().view(40, 1, 5).repeat(1, 3, 1), given.detach().repeat(3, 1))
    for a, b in zip(got, multi_step(d, x, state, params, surrogate=SG).state, strict=True):
        assert_bit_equal(a[2], b.detach())


def operator_arguments(d, steps, backend, layout=lambda x: x):
    x, v, *params = leaves(d, steps)
    text = Spec(d, SG, None, True, True).to_json()
    forward = (layout(x.detach()).requires_grad_(), [v], params, text, backend, [True], True)
    out = [t.detach() for t in _operators.multi_step(*forward)]
    upstream = [torch.randn_like(out[0]).requires_grad_(), torch.randn_like(out[2]).requires_grad_()]
    anchors = out[4] if len(out) > 4 else None
    return forward, (*forward[:3], anchors, upstream, text, backend, [True], [True, False, True],
                     [True] * (2 + len(params)))


FAST = ("test_schema", "test_autograd_registration", "test_faketensor")
TRACED = pytest.param((*FAST, "test_aot_dispatch_dynamic"), id="traced", marks=pytest.mark.slow)


@pytest.mark.parametrize("tests", [pytest.param(FAST, id="fast"), TRACED])
@pytest.mark.parametrize("steps, backend", [(40, "native"), (7, "native"), (7, "reference")])
def test_opcheck(steps, backend, tests):
    """Schema, fake kernel (shapes, strides, dtypes), autograd registration; slow: tracing with dynamic shapes."""
    forward, backward = operator_arguments(LEAKY, steps, backend)
    torch.library.opcheck(_operators.multi_step, forward, test_utils=tests)
    torch.library.opcheck(_operators.multi_step_backward, backward, test_utils=tests)


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_opcheck_of_a_permuted_input_without_a_state(backend):
    x = torch.randn(5, 4, 3).transpose(1, 2).requires_grad_()
    torch.library.opcheck(_operators.multi_step, (x, [], [], Spec(IF(), SG).to_json(), backend, [False], True),
                          test_utils=FAST)


# ---- fake and meta ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_fake_tensors_forward_and_backward(dtype):
    real = leaves(PLIF, dtype=dtype)
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(t) for t in real]
        out = flat(PLIF, *fake)
        grads = torch.autograd.grad(out[0].sum() + out[2].sum(), fake)
    wanted = flat(PLIF, *real)
    described = lambda ts: [(t.shape, t.dtype, t.stride()) for t in ts]  # noqa: E731
    assert described(out) == described(wanted)
    assert described(grads) == described(torch.autograd.grad(wanted[0].sum() + wanted[2].sum(), real))


def test_meta_tensors_need_no_data():
    x = torch.empty(40, 1 << 20, 1 << 12, device="meta", requires_grad=True)  # 640 GiB, had it any
    out = multi_step(IF(), x, surrogate=SG)
    (grad,) = torch.autograd.grad(out.spikes.sum(), x)
    assert grad.is_meta and grad.shape == x.shape


# ---- compile and export -----------------------------------------------------------------------------------------


@pytest.fixture
def compiled():
    torch._dynamo.reset()
    yield lambda f, **options: torch.compile(f, fullgraph=True, **{"backend": "aot_eager"} | options)
    torch._dynamo.reset()


@BOTH
def test_compile_in_one_graph_forward_and_backward(d, compiled):
    every = leaves(d)
    step = compiled(lambda *ts: flat(d, ts[0] * 2, *ts[1:]))
    got, wanted = step(*every), flat(d, every[0] * 2, *every[1:])
    assert_all_equal(got, wanted)
    pick = lambda out: out[0].sum() + out[1].cos().sum()  # noqa: E731
    assert_all_equal(torch.autograd.grad(pick(got), every), torch.autograd.grad(pick(wanted), every))


def test_compile_sees_a_changed_neuron(compiled):
    """What is written into the graph as a constant is guarded: a new threshold or surrogate compiles anew."""
    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dynamics, self.surrogate, self.v_th = LIF(0.7, -0.5), SG, 0.7

        def forward(self, x):
            one = multi_step(self.dynamics, x, surrogate=self.surrogate).spikes
            return one + 2 * multi_step(LIF(self.v_th, None), x, surrogate=surrogate.atan()).spikes

    layer, x = Layer(), driving(LIF(0.7, -0.5), 9, (20,))
    step, seen = compiled(layer), []
    for change in ({}, {"dynamics": LIF(0.4, -0.5)}, {"v_th": 0.9}, {"v_th": 0.3}):
        for name, value in change.items():
            setattr(layer, name, value)
        assert_bit_equal(step(x), layer(x))
        seen.append(layer(x))
    assert not any(torch.equal(a, b) for a, b in pairwise(seen)), "the changes change nothing: nothing is tested"
    y = x.clone().requires_grad_()
    for sg in (SG, SURROGATES[1]):
        layer.surrogate = sg
        assert_bit_equal(torch.autograd.grad(step(y).sum(), y)[0], torch.autograd.grad(layer(y).sum(), y)[0])


def test_compile_takes_any_number_of_steps(compiled):
    """Dynamic sizes: the steps on both sides of the first kept state, one graph each at most."""
    step = compiled(lambda x: multi_step(IF(0.7), x, surrogate=SG).spikes, dynamic=True)
    before = torch._dynamo.utils.counters["frames"]["ok"]  # of the whole process
    for steps in (5, 12, 40, 80):
        x = driving(IF(0.7), steps, (6,)).requires_grad_()
        got = step(x)
        assert_bit_equal(got, multi_step(IF(0.7), x, surrogate=SG).spikes)
        assert torch.autograd.grad(got.sum(), x)[0].shape == x.shape
    assert torch._dynamo.utils.counters["frames"]["ok"] - before <= 3


@pytest.mark.filterwarnings("ignore:memext:RuntimeWarning")
def test_compile_of_an_opaque_surrogate_traces_the_reference(compiled):
    sharp = surrogate.opaque(lambda z: (z >= 0).to(z.dtype) + z.tanh() - z.tanh().detach(), name="mine")
    x = driving(IF(0.7), 6, (9,)).requires_grad_()
    step = compiled(lambda x: multi_step(IF(0.7), x, surrogate=sharp).spikes)
    wanted = multi_step(IF(0.7), x, surrogate=sharp, backend="reference").spikes
    got = step(x)
    assert_bit_equal(got, wanted)
    assert error(torch.autograd.grad(got.sum(), x)[0], torch.autograd.grad(wanted.sum(), x)[0]) < 1e-6  # other order


@pytest.mark.slow
def test_compile_with_inductor(compiled):
    every = leaves(PLIF)
    step = compiled(lambda *ts: flat(PLIF, ts[0] * 2, *ts[1:]), backend="inductor")
    got, wanted = step(*every), flat(PLIF, every[0] * 2, *every[1:])
    assert_all_equal(got, wanted)
    for a, b in zip(torch.autograd.grad(got[0].sum(), every), torch.autograd.grad(wanted[0].sum(), every)):
        assert error(a, b) < 1e-6  # inductor may fuse the multiplication's gradient


def test_export():
    class Layer(torch.nn.Module):
        def forward(self, x):
            return multi_step(LIF(0.7, -0.5), x, surrogate=SG).spikes

    x = driving(LIF(0.7, -0.5), 9, (20,))
    program = torch.export.export(Layer(), (x,))
    assert "memext.multi_step" in program.graph_module.code
    assert_bit_equal(program.module()(x), Layer()(x))


# ---- torch.func -------------------------------------------------------------------------------------------------


@BOTH
def test_vmap_equals_a_loop_over_samples(d):
    size = 4
    x, v = torch.randn(size, 40, 3, 5) + 0.4, torch.randn(3, size, 5)
    params = [torch.rand(size, 5) for _ in d.params]
    got = torch.func.vmap(lambda *ts: flat(d, *ts), in_dims=(0, 1, *(0 for _ in params)))(x, v, *params)
    for i in range(size):
        assert_all_equal([t[i] for t in got], flat(d, x[i], v[:, i], *(p[i] for p in params)))
    shared = torch.func.vmap(lambda x: flat(d, x, v[:, 0], *(p[0] for p in params)))(x)
    assert_all_equal([t[2] for t in shared], flat(d, x[2], v[:, 0], *(p[0] for p in params)))
    one = torch.func.vmap(lambda p: flat(d, x[0], v[:, 0], *(p for _ in params)))(torch.rand(size, 1, 1))
    assert one[0].shape == (size, 40, 3, 5)


@BOTH
def test_per_sample_gradients(d):
    """vmap over grad: parameters shared in the forward, one gradient per sample."""
    x, v, *params = (t.detach() for t in leaves(d))
    batch = torch.stack([x, x * 0.5, x + 0.2])
    every = tuple(range(2 + len(params)))
    gradient = torch.func.grad(lambda *ts: loss(d, *ts), argnums=every)
    got = torch.func.vmap(gradient, in_dims=(0, *(None for _ in every[1:])))(batch, v, *params)
    for i, x in enumerate(batch):
        wanted = torch.autograd.grad(loss(d, *(ts := [t.clone().requires_grad_() for t in (x, v, *params)])), ts)
        for a, b in zip(got, wanted):
            assert error(a[i], b) < 1e-6  # sums over neurons in another order
        assert_bit_equal(got[0][i], wanted[0])


@BOTH
def test_second_derivative_through_torch_func_and_through_the_operator(d):
    every = [t.detach() for t in leaves(d, 6, dtype=torch.float64)]
    each = tuple(range(len(every)))

    def squared(grads):
        return sum(g.pow(2).sum() for g in grads)

    first = torch.func.grad(lambda *ts: loss(d, *ts), each)
    transformed = torch.func.grad(lambda *ts: squared(first(*ts)), each)(*every)
    results = []
    for outputs in (through_operator, lambda d, *ts: flat(d, *ts, backend="reference")):
        ts = [t.clone().requires_grad_() for t in every]
        spikes, final, sequence, _ = outputs(d, *ts)
        value = spikes.mul(torch.arange(5.0)).sum() + final.pow(2).sum() + sequence.cos().sum()
        results.append(torch.autograd.grad(squared(torch.autograd.grad(value, ts, create_graph=True)), ts))
    for a, b, c in zip(transformed, *results):
        assert c.norm() > 0 and error(a, c) < 1e-12 and error(b, c) < 1e-12  # float64, other order of the same sums


def test_jacobian():
    x = driving(IF(0.7, None), 5, (3,)).double()
    f = lambda x: multi_step(IF(0.7, None), x, surrogate=SG).state[0]  # noqa: E731
    assert error(torch.func.jacrev(f)(x), torch.autograd.functional.jacobian(f, x)) < 1e-12
