"""The autograd node: which gradients, what is saved, second derivatives, hooks, opaque surrogates, refusals."""
import functools

import pytest
import torch
from helpers import SURROGATES, assert_bit_equal, assert_fires, driving, error, params_for, run
from torch.autograd import forward_ad

from shared_core import surrogate
from shared_core.backends import native
from shared_core.dynamics import IF, LIF, Leaky, ParametricLIF
from shared_core.errors import MemextError
from shared_core.functional import multi_step

pytestmark = pytest.mark.skipif(native.unavailable() is not None,
                                reason=f"needs the CPU kernels: {native.unavailable()}")
SG = SURROGATES[0]
PLIF = ParametricLIF(0.7, -0.5)
FOUR = pytest.mark.parametrize("d", [IF(0.7, -0.5), LIF(0.7, None, tau=3.0), PLIF, Leaky("zero", False)],
                               ids=lambda d: d.name)


def leaves(d, steps=7, shape=(5,), dtype=torch.float32):
    params = params_for(d, shape, dtype)
    state = tuple(torch.randn(shape, dtype=dtype) * 0.4 for _ in d.states)
    return [t.requires_grad_() for t in (driving(d, steps, shape, params, state, dtype), *state, *params)]


def call(d, tensors, **options):
    count = len(d.states)
    return multi_step(d, tensors[0], tensors[1:1 + count], tensors[1 + count:], **{"surrogate": SG} | options)


# ---- which inputs, which outputs --------------------------------------------------------------------------------


@pytest.mark.parametrize("which", range(5))
def test_only_what_is_asked_for_gets_a_gradient_and_it_is_the_same(which):
    """Each input alone, a state whose x needs none included; the positions of the gradients must not shift."""
    d = Leaky("subtract", False)
    every = leaves(d)
    full = torch.autograd.grad(call(d, every).spikes.sum(), every)
    alone = [t.detach().requires_grad_(i == which) for i, t in enumerate(every)]
    call(d, alone).spikes.sum().backward()
    assert [t.grad is not None for t in alone] == [i == which for i in range(5)]
    assert_bit_equal(alone[which].grad, full[which])


@pytest.mark.parametrize("output", ["spikes", "state", "sequence"])
@pytest.mark.parametrize("steps", [7, 70])
def test_each_output_alone(output, steps):
    every = leaves(PLIF, steps)
    grads = []
    for backend in ("native", "reference"):
        out = call(PLIF, every, backend=backend, record=True)
        chosen = {"spikes": out.spikes, "state": out.state[0], "sequence": out.sequence[0]}[output]
        grads.append(torch.autograd.grad(chosen.cos().sum() + chosen.sum(), every))
    for got, wanted in zip(*grads):
        assert wanted.norm() > 0
        assert error(got, wanted) < 1e-5  # float32 sums in another order


def test_bits_need_no_gradient_and_no_graph_is_kept_without_one():
    every = leaves(PLIF)
    out = call(PLIF, every, bits=True)
    assert out.spikes.requires_grad and not out.bits.requires_grad
    with torch.no_grad():
        assert not call(PLIF, every).spikes.requires_grad
    with torch.inference_mode():
        inside = call(PLIF, every)
    assert_bit_equal(inside.spikes, out.spikes.detach())


def test_gradients_have_the_dtype_and_strides_of_their_tensors():
    x = driving(PLIF, 5, (2, 3, 4), params_for(PLIF)).half().transpose(1, 3).requires_grad_()
    v = torch.zeros(4, 3, 2, dtype=torch.float64, requires_grad=True)
    q = torch.tensor([[0.4], [0.5], [0.6]], dtype=torch.bfloat16, requires_grad=True)
    call(PLIF, (x, v, q)).spikes.sum().backward()
    assert [t.grad.dtype for t in (x, v, q)] == [torch.float16, torch.float64, torch.bfloat16]
    assert x.grad.stride() == x.stride() and q.grad.shape == q.shape


def test_an_expanded_gradient_and_no_gradient_at_all():
    every = leaves(PLIF)
    one = torch.autograd.grad(call(PLIF, every).spikes, every, torch.ones(()).expand(7, 5))
    two = torch.autograd.grad(call(PLIF, every).spikes, every, torch.ones(7, 5))
    for a, b in zip(one, two):
        assert_bit_equal(a, b)
    out = call(PLIF, every)
    (out.state[0].detach().sum() + every[0].sum()).backward()
    assert_bit_equal(every[0].grad, torch.ones(7, 5))


# ---- more than one backward -------------------------------------------------------------------------------------


def test_retain_graph_gives_the_same_twice_and_hooks_see_the_gradient():
    every, seen = leaves(PLIF, 40), []
    every[0].register_hook(seen.append)
    loss = call(PLIF, every).spikes.sum()
    first = torch.autograd.grad(loss, every, retain_graph=True)
    second = torch.autograd.grad(loss, every)
    for a, b in zip(first, second):
        assert_bit_equal(a, b)
    assert len(seen) == 2 and torch.equal(seen[0], first[0])
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, every)


@FOUR
def test_gradgradcheck_of_the_smooth_part(d):
    """Away from the thresholds the gradient is a smooth function of everything; its derivative is checked in float64.

    A spike's step is not seen by finite differences, so no upstream gradient goes into the spikes: the surrogate's
    part is covered by the comparison with plain autograd below.
    """
    every = leaves(d, 4, (3,), torch.float64)
    with torch.no_grad():
        every[0].mul_(0.3)
    quiet = surrogate.none()
    assert torch.autograd.gradgradcheck(
        lambda *t: tuple(call(d, t, surrogate=quiet, record=True).sequence), every, atol=1e-6)


@FOUR
def test_double_backward_equals_plain_autograd(d):
    """create_graph=True through the fused node, against the reference loop left to autograd alone."""
    from shared_core.backends.reference import loop
    from shared_core.spec import Spec

    every = leaves(d, 9, (4,), torch.float64)

    def second(out):
        value = out.spikes.mul(torch.linspace(-1, 1, 36).view(9, 4)).sum() + out.sequence[0].pow(2).sum()
        grads = torch.autograd.grad(value, every, create_graph=True, allow_unused=True)
        return torch.autograd.grad(sum(g.pow(2).sum() for g in grads if g is not None), every, allow_unused=True)

    fused = second(call(d, every, record=True))
    plain = second(loop(Spec(d, SG, record=True), every[0], every[1:2], every[2:]))
    assert any(g is not None and g.norm() > 0 for g in plain)
    for got, wanted in zip(fused, plain):
        assert (got is None and wanted is None) or error(got, wanted) < 1e-12  # the same float64 graph, built later


def test_double_backward_of_inputs_that_depend_on_each_other():
    """x computed from the state, and one tensor used as two parameters: neither path may be counted twice."""
    v = torch.randn(5, dtype=torch.float64, requires_grad=True)
    p = torch.tensor(0.9, dtype=torch.float64, requires_grad=True)
    beta = torch.tensor(0.6, dtype=torch.float64)

    def first(create_graph):
        x = torch.outer(torch.linspace(0.2, 1.5, 8, dtype=torch.float64), 1 + v)
        out = call(Leaky("subtract", False), (x, v, beta, p, p))
        return torch.autograd.grad(out.spikes.sum() + out.state[0].sum(), (v, p), create_graph=create_graph)

    for plain, differentiable in zip(first(False), first(True)):
        assert differentiable.requires_grad and error(differentiable.detach(), plain) < 1e-12  # float64, other order


def test_forward_mode_is_refused_not_dropped():
    x = torch.randn(4, 3)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        for needs in (False, True):
            with pytest.raises(MemextError, match="forward-mode"):
                multi_step(IF(), dual.requires_grad_() if needs else dual, surrogate=SG)
        multi_step(IF(), x, surrogate=SG)  # a plain tensor inside a dual level is no forward-mode call
    with pytest.raises(MemextError, match="forward-mode"):
        torch.func.jvp(lambda x: multi_step(IF(), x, surrogate=SG).spikes, (x,), (torch.ones_like(x),))


# ---- what is saved ----------------------------------------------------------------------------------------------


def saved_bytes(d, x, state=None, params=()):
    kept = {}

    def pack(t):
        kept[t.data_ptr()] = t.numel() * t.element_size()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        multi_step(d, x, state, params, surrogate=SG)
    return sum(kept.values())


@pytest.mark.parametrize("dtype, size", [(torch.float32, 4), (torch.float16, 2), (torch.float64, 8)], ids=str)
@pytest.mark.parametrize("steps", [1, 32, 33, 64, 65, 100])
def test_saved_bytes_by_formula(dtype, size, steps):
    """The input at its own dtype; for T > 32 one state, in the arithmetic's dtype, per further 32 steps; no more."""
    x = torch.randn(steps, 50).to(dtype).requires_grad_()
    arithmetic = 8 if dtype == torch.float64 else 4
    anchors = (steps - 1) // 32 * 50 * arithmetic
    assert saved_bytes(LIF(), x) == steps * 50 * size + anchors
    with_state = saved_bytes(LIF(), x, (torch.zeros(50, dtype=dtype),))
    # A single step from a given state keeps its potential, in the arithmetic's dtype, instead of input and state.
    assert with_state == (50 * arithmetic if steps == 1 else steps * 50 * size + anchors + 50 * size)


def test_modifying_the_input_after_the_forward_is_torchs_own_error():
    x = torch.randn(4, 3, requires_grad=True)
    y = x * 1
    out = multi_step(IF(), y, surrogate=SG)
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.spikes.sum().backward()


@pytest.mark.parametrize("only", ["x", "anchors", "both"])
def test_a_hook_that_changes_strides_changes_no_gradient(only):
    """Saving to the CPU or compressing gives contiguous tensors back: the input or the kept states, or both."""
    x = driving(LIF(), 70, (3, 4, 5)).permute(0, 3, 1, 2).requires_grad_()
    plain = torch.autograd.grad(multi_step(LIF(), x, surrogate=SG).spikes.sum(), x)[0]

    def unpack(t):
        chosen = only == "both" or (t.shape[0] == 70) == (only == "x")
        return t.contiguous() if chosen else t

    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
        out = multi_step(LIF(), x, surrogate=SG)
    assert_bit_equal(torch.autograd.grad(out.spikes.sum(), x)[0].contiguous(), plain.contiguous())


# ---- opaque surrogates ------------------------------------------------------------------------------------------


class Window(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return (z >= 0).to(z.dtype)

    @staticmethod
    def backward(ctx, g):
        return g * (ctx.saved_tensors[0].abs() < 0.4).to(g.dtype)


class Poisson(torch.autograd.Function):
    """Fires at random; the gradient passes."""

    @staticmethod
    def forward(ctx, z):
        return torch.bernoulli(z.sigmoid())

    @staticmethod
    def backward(ctx, g):
        return g


class Learned(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.width = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, z):
        soft = (self.width * z).sigmoid()
        return (z >= 0).to(z.dtype) + soft - soft.detach()


def by_hand(d, x, fn, v=None):
    v, spikes = torch.zeros_like(x[0]) if v is None else v, []
    for x_t in x:
        s, (v,) = d.step(x_t, (v,), (), fn)
        spikes.append(s)
    return torch.stack(spikes)


@pytest.mark.filterwarnings("ignore:memext:RuntimeWarning")
@pytest.mark.parametrize("fn, random", [(Window.apply, False), (Poisson.apply, True), (Learned(), False)],
                         ids=["function", "random", "learned"])
def test_opaque_surrogates_equal_direct_autograd(fn, random):
    d = LIF(0.7, None, tau=3.0)
    x = driving(d, 12, (7,)).requires_grad_()
    weights = torch.randn(12, 7)
    torch.manual_seed(3)
    spikes = multi_step(d, x, surrogate=surrogate.opaque(fn, name="mine", random=random)).spikes
    torch.manual_seed(99)  # the replay must not depend on where the generator is now ...
    got = torch.autograd.grad((spikes * weights).sum(), x)[0]
    after = torch.rand(1)
    torch.manual_seed(99)
    assert torch.equal(after, torch.rand(1))  # ... nor move it
    torch.manual_seed(3)
    plain = by_hand(d, x, fn)
    assert_fires(plain)
    assert_bit_equal(spikes.detach(), plain.detach())
    assert_bit_equal(got, torch.autograd.grad((plain * weights).sum(), x)[0])


@pytest.mark.filterwarnings("ignore:memext:RuntimeWarning")
@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: m.forward, lambda m: (lambda z: m(z)),
                                  lambda m: functools.partial(Learned.forward, m)],
                         ids=["module", "method", "closure", "partial"])
def test_what_learns_inside_an_opaque_surrogate_gets_its_gradient(wrap):
    d, module = IF(0.7, -0.5), Learned()
    x = driving(d, 6, (5,))
    rest = torch.full((5,), -0.5)
    multi_step(d, x, (rest,), surrogate=surrogate.opaque(wrap(module), name="mine")).spikes.sum().backward()
    got, module.width.grad = module.width.grad, None
    by_hand(d, x, module, rest).sum().backward()
    assert got is not None and got != 0
    assert_bit_equal(got, module.width.grad)


def test_two_threads_at_once():
    """Forward and backward from several Python threads: no shared scratch, no shared state."""
    from concurrent.futures import ThreadPoolExecutor

    inputs = [driving(PLIF, 40, (300,), (torch.tensor(0.4),)) for _ in range(8)]
    job = lambda x: run(PLIF, x, None, (torch.tensor(0.4),), backend="native").grads  # noqa: E731
    alone = [job(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for got, wanted in zip(pool.map(job, inputs), alone):
            assert_bit_equal(got[0], wanted[0])
