"""Backward passes whose input was rebuilt: spikes from bits, a norm's affine, sums per channel, in place.

The CPU kernels and the text of the GPU kernels compiled as C++ ("shim"), against the Torch reference and float64
autograd.
"""
from __future__ import annotations

import ctypes
from fractions import Fraction
from functools import partial
from pathlib import Path

import pytest
import torch
from guards import fenced
from helpers import (
    ALL_NEURONS,
    DTYPES,
    GRADIENT,
    HALF,
    SURROGATES,
    TWICE,
    _Forced,
    assert_bit_equal,
    assert_fires,
    driving,
    error,
    name_of,
    params_for,
)
from test_cuda_shim import _problem, library  # noqa: F401  (a fixture)
from torch._subclasses.fake_tensor import FakeTensorMode

from shared_core.backends import fake, fused, native, reference
from shared_core.backends._call import BLOCK
from shared_core.dynamics import IF, KLIF, LIF, Leaky, ParametricLIF, Synaptic
from shared_core.errors import MemextError
from shared_core.layout import layout_of
from shared_core.spec import Spec
from shared_core.spikes import pack, unpack

pytestmark = pytest.mark.skipif(_problem() is not None, reason=str(_problem()))

STEPS = (1, 4, 33, 70)
SPIKING_JELLY = [d for d in ALL_NEURONS if not d.strict]
FEW = [IF(0.7, None), LIF(0.7, -0.5, tau=3.0), LIF(0.7, None, True, 1.7, False), ParametricLIF(0.7, -0.5),
       KLIF(0.7, -0.5, False, 3.0, True, True), Leaky("subtract", False), Synaptic("zero", True)]
SUMS = 1e-6  # float32 sums over at most 32 steps, then float64


@pytest.fixture(params=["native", "shim"])
def backward(request):
    """backward(spec, x, ...) of a kernel, as backends.native has it."""
    if request.param == "native":
        return native.backward
    shim = request.getfixturevalue("library")

    def run(call, direction):
        assert direction == "backward" and shim.memext_backward(call) == 0

    return partial(fused.backward, threads=0, run=run)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Case:
    """Inputs of one backward pass, its spikes and their bits.

    flip: share of the spikes that say the opposite of what the potential says.
    change: makes the input of another one.
    """

    def __init__(self, d, steps, shape, dtype=torch.float32, *, start=False, shared=True, flip=0.0, view=lambda t: t,
                 surrogate=SURROGATES[0], change=lambda x: x):
        compute = torch.float64 if dtype == torch.float64 else torch.float32
        self.spec = Spec(d, surrogate, bits=True)
        self.params = params_for(d, () if shared else shape, compute)
        self.state = tuple(torch.randn(shape, dtype=compute) * 0.3 if start else None for _ in d.states)
        self.x = change(view(driving(d, steps, shape, self.params, self.state, dtype)))
        out = native.forward(self.spec, self.x, self.state, self.params, keep=True)
        self.anchors, self.bits, self.spikes = out.anchors, out.bits, unpack(out.bits, layout_of(self.x), torch.bool)
        assert_fires(self.spikes, 0.02 if steps * self.x[0].numel() > 100 else 0.0)
        if flip:
            self.spikes = self.spikes ^ (torch.rand(self.x.shape) < flip)
            self.bits = pack(view(self.spikes))
            recorded = Spec(d, surrogate, record=True)
            states = reference.loop(recorded, self.x, self.state, self.params, self.spikes).sequence
            if self.anchors is not None:  # those of the spikes that are given
                self.anchors = torch.stack([torch.stack([s[t] for s in states])
                                            for t in range(BLOCK - 1, steps - 1, BLOCK)])
        self.grad = view(torch.randn(self.x.shape).to(dtype))
        self.ends = [torch.randn(shape, dtype=compute) for _ in d.states]

    @torch.no_grad()
    def __call__(self, backward, x=None, grad=None, learn=True, **rebuilt):
        """Gradients of x, states and parameters (, sums) by `backward`."""
        count = len(self.state)
        return backward(self.spec, self.x if x is None else x, self.state, self.params, self.anchors,
                        self.grad if grad is None else grad, self.ends, [None] * count, True,
                        [s is not None for s in self.state], [learn] * len(self.params), **rebuilt)

    def double(self) -> list[torch.Tensor]:
        """Gradients by float64 autograd with the spikes forced."""
        d, sg = self.spec.dynamics, self.spec.surrogate
        leaf = lambda t: t.detach().double().requires_grad_()  # noqa: E731
        x, params = leaf(self.x), [leaf(p) for p in self.params]
        state = [s if s is None else leaf(s) for s in self.state]
        now = tuple(torch.full(x.shape[1:], r, dtype=x.dtype) if s is None else s for s, r in zip(state, d.rest))
        emitted = []
        for x_t, fired in zip(x, self.spikes):
            s, now = d.step(x_t, now, params, lambda z, fired=fired: _Forced.apply(z, fired, sg))
            emitted.append(s)
        outputs = [(torch.stack(emitted) * self.grad.double()).sum()] + [(e * g).sum() for e, g in zip(now, self.ends)]
        return list(torch.autograd.grad(sum(outputs), [x, *(s for s in state if s is not None), *params]))


def flat(found) -> list[torch.Tensor]:
    return [g for g in (found[0], *found[1], *found[2], *found[3:]) if g is not None]


def assert_all_equal(got, wanted) -> None:
    for a, b in zip(flat(got), flat(wanted), strict=True):
        assert_bit_equal(a, b)


# ---- bits ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("d", ALL_NEURONS, ids=name_of)
def test_its_own_bits_change_nothing(d, backward):
    i = ALL_NEURONS.index(d)
    case = Case(d, STEPS[i % 4], (65,), start=i % 2 == 0, shared=i % 3 > 0)
    for learn in (True, False):
        assert_all_equal(case(backward, bits=case.bits, learn=learn), case(backward, learn=learn))


@pytest.mark.parametrize("d", SPIKING_JELLY, ids=name_of)
def test_the_spikes_are_the_bits(d, backward):
    """Every tenth bit is wrong on purpose, and believed."""
    for i, steps in enumerate(STEPS):
        case = Case(d, steps, ((65,), (3, 7), (2, 3, 5), (129,))[i], start=i % 2 == 1, shared=i % 3 > 0, flip=0.1,
                    surrogate=SURROGATES[i % 2])
        got, plain = case(backward, bits=case.bits), case(reference.backward, bits=case.bits)
        for a, b, truth in zip(flat(got), flat(plain), case.double(), strict=True):
            assert error(a, truth) <= max(GRADIENT, TWICE * error(b, truth)), (steps, error(a, truth))
        if steps > 1 or d.v_reset is not None:  # the bit of the only step decides nothing in a soft reset
            assert error(case(backward)[0], got[0]) > 1e-3, "the bits were not used"


@pytest.mark.parametrize("d", [d for d in ALL_NEURONS if d.strict], ids=name_of)
def test_snntorch_neurons_read_the_reset_off_the_state(d, backward):
    for steps, shared in ((4, True), (70, False)):
        case = Case(d, steps, (65,), start=True, shared=shared, flip=0.1)
        got, plain = case(backward, bits=case.bits), case(reference.backward, bits=case.bits)
        for a, b in zip(flat(got), flat(plain), strict=True):
            assert error(a, b) <= GRADIENT
        assert error(case(backward)[2][-1], got[2][-1]) > 1e-3, "the bits were not used"  # the gradient of the scale


# ---- affine -------------------------------------------------------------------------------------------------------

def channels_last(t):
    return t.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)


# shape of one step -> (dimension of the channels, memory order)
SHAPES = {
    "NC": ((7, 5), 1, lambda t: t),
    "NCHW": ((2, 5, 3, 7), 1, lambda t: t),
    "channels_last": ((2, 5, 3, 7), 1, channels_last),
    "one channel": ((6, 1, 3, 3), 1, lambda t: t),
    "last": ((3, 4, 9), 2, lambda t: t),
    "first": ((9, 11), 0, lambda t: t),
    "permuted": ((4, 5, 6), 1, lambda t: t.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1)),
    "several chunks": ((2, 5, 41, 37), 1, lambda t: t),  # of at most 2048 neurons
    "several chunks, channels_last": ((2, 5, 41, 37), 1, channels_last),
}


def behind_a_norm(d, steps, name, dtype=torch.float32, **options) -> tuple[Case, torch.Tensor, tuple]:
    """(case on the affine's output, its input y, the affine)"""
    shape, channel, view = SHAPES[name]
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    channels = shape[channel]
    scale = torch.rand(channels, dtype=compute) + 0.5
    scale = torch.where(torch.arange(channels) % 3 == 2, -scale, scale)
    shift = torch.randn(channels, dtype=compute) * 0.3
    along = [-1 if i == channel else 1 for i in range(len(shape))]
    scale, shift = scale.view(along), shift.view(along)
    made = []

    def there_and_back(x):
        made.append(((x.to(compute) - shift) / scale).to(dtype))
        return fma(made[0].to(compute), scale, shift).to(dtype)

    case = Case(d, steps, shape, dtype, view=view, change=there_and_back, **options)
    return case, made[0], (scale.flatten(), shift.flatten())


def fma(a, b, c):
    return reference._fused_multiply_add(a, b, c)


def test_the_references_fma_is_rounded_once():
    def exact(*values):
        return Fraction(values[0]) * Fraction(values[1]) + Fraction(values[2])

    for dtype in (torch.float32, torch.float64):
        bits = 24 if dtype == torch.float32 else 53
        a, b = torch.randn(2, 400, dtype=dtype)
        c = (-a * b + torch.randn(400, dtype=dtype) * 2.0 ** -torch.randint(0, bits, (400,))).to(dtype)
        # a b + c an odd multiple of half an ulp, and a little less or more: where two roundings go wrong
        one, ulp = torch.ones(3, dtype=dtype), 2.0 ** (1 - bits)
        a, b = torch.cat([a, one * (1 + ulp)]), torch.cat([b, one * (1 + ulp)])
        c = torch.cat([c, torch.tensor([ulp / 2 - ulp * ulp, ulp / 2, ulp / 2 - 2 * ulp * ulp], dtype=dtype)])
        got, doubly = fma(a, b, c), 0
        for i in range(len(got)):
            truth = exact(a[i].item(), b[i].item(), c[i].item())
            near = [torch.nextafter(got[i], torch.tensor(s * torch.inf, dtype=dtype)).item() for s in (-1, 1)]
            off = abs(Fraction(got[i].item()) - truth)
            assert all(off <= abs(Fraction(n) - truth) for n in near), (dtype, i)
            doubly += (a[i] * b[i] + c[i]).item() != got[i].item()
        assert doubly > 100, "a product rounded before the sum gives the same: nothing is tested"


@pytest.mark.parametrize("name", SHAPES)
def test_the_affine_is_an_fma(name, backward):
    """Bit for bit the gradients of a backward pass on the affine's output."""
    for i, d in enumerate(FEW):
        case, y, affine = behind_a_norm(d, (4, 33)[i % 2] if "chunks" not in name else 3, name, start=i % 2 == 0,
                                        shared="chunks" in name)
        given = dict(bits=case.bits, affine=affine, channel=SHAPES[name][1])
        wanted = case(backward)
        assert_all_equal(case(backward, x=y, **given), wanted)
        assert_all_equal(case(backward, x=y, affine=affine, channel=SHAPES[name][1]), wanted)
        plain = case(reference.backward, x=y, **given)
        for a, b in zip(flat(wanted), flat(plain), strict=True):
            assert error(a, b) <= GRADIENT


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["NCHW", "channels_last", "NC"])
def test_types(name, dtype, backward):
    """Half types: the affine's output is rounded to them, as Torch's norms round theirs."""
    bound = {torch.float32: GRADIENT, torch.float64: 1e-12} | HALF
    for i, d in enumerate(FEW):
        for steps in (1, 33):
            case, y, affine = behind_a_norm(d, steps, name, dtype, start=i % 2 == 1, shared=False, flip=0.05)
            got = case(backward, x=y, bits=case.bits, affine=affine, sums=True)
            wanted = case(reference.backward, x=y, bits=case.bits, affine=affine, sums=True)
            for a, b in zip(flat(got), flat(wanted), strict=True):
                assert error(a, b) <= bound[dtype], (d.name, error(a, b))
            assert got[0].dtype == dtype and got[0].stride() == y.stride()


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_it_is_what_batch_norm_computed(dtype, memory):
    y = (torch.randn(6, 5, 9, 7) * 2 + 3).to(dtype, memory_format=memory)
    weight, bias, mean, var = torch.rand(5) + 0.5, torch.randn(5), y.float().mean((0, 2, 3)), y.float().var((0, 2, 3))
    wanted = torch.nn.functional.batch_norm(y, mean, var, weight, bias, False, 0.0, 1e-5)
    scale = weight * (var + 1e-5).rsqrt()
    got = reference._through(y[None], (scale, fma(-mean, scale, bias)), 1, torch.float32)[0]
    assert_bit_equal(got, wanted)


# ---- sums ---------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", SHAPES)
def test_sums_of_channels(name, backward):
    for i, (d, steps) in enumerate(((FEW[0], 4), (FEW[1], 70), (FEW[4], 33))):
        case, y, affine = behind_a_norm(d, steps if "chunks" not in name else 3, name)
        channel = SHAPES[name][1]
        got = case(backward, x=y, bits=case.bits, affine=affine, channel=channel, sums=True, learn=i > 1)
        g, other = got[0].double(), [k for k in range(y.dim()) if k != 1 + channel]
        wanted = torch.stack([g.sum(other), (g * y.double()).sum(other)])
        assert got[3].dtype == torch.float64 and got[3].shape == (2, y.shape[1 + channel])
        for a, b in zip(got[3], wanted):
            assert error(a, b) <= SUMS
        again = case(backward, x=y, bits=case.bits, affine=affine, channel=channel, sums=True, learn=i > 1)
        assert torch.equal(again[3], got[3])
        assert_bit_equal(got[0], case(backward, x=y, bits=case.bits, affine=affine, channel=channel, learn=i > 1)[0])


def test_sums_of_two_threads():
    torch.set_num_threads(2)
    for name in ("several chunks", "several chunks, channels_last"):
        case, y, affine = behind_a_norm(FEW[1], 5, name)
        assert native._threads(y.numel()) == 2
        first, second = (case(native.backward, x=y, bits=case.bits, affine=affine, sums=True) for _ in range(2))
        assert torch.equal(first[3], second[3]), "the order of the sums depends on chance"
        assert error(first[3], case(reference.backward, x=y, bits=case.bits, affine=affine, sums=True)[3]) <= SUMS
        compiled = Path(native._library()[0]._name).read_bytes()
        if b"GOMP_parallel" not in compiled and b"__kmpc_fork" not in compiled:
            continue  # compiled without OpenMP: one thread
        parts = []

        def spy(call, direction):
            native._run(call, direction)
            parts.extend(sum(map(abs, part)) for part in (ctypes.c_double * 10 * 2).from_address(call.sums))  # noqa: B023

        case(partial(fused.backward, threads=2, run=spy, sums_in_kernel=True), x=y, affine=affine, sums=True)
        assert len(parts) == 2 and all(parts), "two threads, one place: they would overwrite each other's sums"


def test_no_gradient_no_sums(backward):
    case, y, affine = behind_a_norm(ParametricLIF(0.7), 4, "NCHW")
    arguments = (case.spec, y, case.state, case.params, None, case.grad, case.ends, [None], False, [False], [True])
    *_, sums = backward(*arguments, affine=affine, sums=True, bits=case.bits)
    assert sums is None and reference.backward(*arguments, affine=affine, sums=True, bits=case.bits)[3] is None


# ---- in place -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["NCHW", "channels_last", "several chunks"])
def test_the_gradient_may_be_written_over_the_incoming_one(name, dtype, backward):
    for i, d in enumerate(FEW):
        case, y, affine = behind_a_norm(d, 3 if "chunks" in name else STEPS[i % 4], name, dtype)
        for given in ({}, {"bits": case.bits}, {"bits": case.bits, "affine": affine, "sums": True}):
            wanted = case(backward, x=y, **given)
            grad = case.grad.clone()
            got = case(backward, x=y, grad=grad, into=grad, **given)
            assert got[0] is grad
            assert_all_equal(got, wanted)
            elsewhere = torch.full_like(grad, float("nan"))
            assert case(backward, x=y, into=elsewhere, **given)[0] is elsewhere
            assert_bit_equal(elsewhere, wanted[0])


def test_memory_beside_the_tensors_is_left_alone(backward):
    states = 0

    def guarded(*arguments, run, **options):
        return fused.backward(*arguments, run=fenced(run, states), **options)

    run = native._run if backward is native.backward else backward.keywords["run"]
    for i, d in enumerate(FEW):
        states = len(d.states)
        case, y, affine = behind_a_norm(d, STEPS[i % 4], ("NCHW", "channels_last", "NC", "one channel")[i % 4])
        got = case(partial(guarded, run=run, threads=1), x=y, bits=case.bits, affine=affine)
        assert_all_equal(got, case(backward, x=y, bits=case.bits, affine=affine))


# ---- refusals -----------------------------------------------------------------------------------------------------

Y, CHANNELS = torch.zeros(4, 2, 3, 5), (torch.ones(3), torch.ones(3))
REFUSED = {
    "bits of another length": (dict(bits=torch.zeros(4, 3).byte()), r"bits is .*\[4, 3\].*needed.*\[4, 4\]"),
    "bits of another type": (dict(bits=torch.zeros(4, 4)), "bits is torch.float32"),
    "affine of another length": (dict(affine=(torch.ones(3), torch.ones(2))), r"shift is torch.float32 \[2\].*\[3\]"),
    "affine of integers": (dict(affine=(torch.ones(3).int(), torch.ones(3))), "scale is torch.int32"),
    "channel": (dict(affine=CHANNELS, channel=3), "channel is 3; allowed: 0 to 2"),
    "sums of nothing": (dict(sums=True), "sums=True without affine"),
    "into of another type": (dict(into=Y.double()), "into is torch.float64"),
    "into in another order": (dict(into=torch.zeros(4, 5, 3, 2).permute(0, 3, 2, 1)), "into is .*memory order"),
    "into with gaps": (dict(into=torch.zeros(8, 2, 3, 5)[::2]), "into is .*without gaps"),
    "into is the input": (dict(into=Y), "into overlaps x"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_with_what_was_passed_and_what_is_needed(what):
    given, message = REFUSED[what]
    arguments = Spec(IF(), SURROGATES[0]), Y, (None,), (), None, torch.ones_like(Y), [None], [None], True, [False], []
    for run in (native.backward, fake.backward):
        if run is native.backward or what != "into is the input":  # nothing is known of the memory of fake tensors
            with pytest.raises(MemextError, match=message):
                run(*arguments, **given)


def test_into_may_not_overlap_the_gradient_otherwise():
    memory = torch.zeros(5, 2, 3, 5)
    arguments = Spec(IF(), SURROGATES[0]), Y, (None,), (), None
    rest = [None], [None], True, [False], []
    for grad in (memory[1:], memory[:1].expand(4, 2, 3, 5)):
        with pytest.raises(MemextError, match="into overlaps grad_spikes"):
            native.backward(*arguments, grad, *rest, into=memory[:4])
    # in another order it is copied first, and may then be written over
    native.backward(*arguments, memory[:4].view(4, 5, 3, 2).permute(0, 3, 2, 1), *rest, into=memory[:4])


# ---- outputs without kernels --------------------------------------------------------------------------------------

def described(found):
    if isinstance(found, torch.Tensor):
        return found.shape, found.stride(), found.dtype, found.device.type
    return tuple(map(described, found)) if isinstance(found, tuple | list) else found


@pytest.mark.parametrize("kind", ["fake", "meta"])
@pytest.mark.parametrize("name", ["NCHW", "channels_last", "NC"])
def test_fake_outputs_are_like_real_ones(kind, name):
    mode = FakeTensorMode()
    for i, d in enumerate(FEW):
        steps, dtype = STEPS[i % 4], DTYPES[i % 4]
        case, y, affine = behind_a_norm(d, steps, name, dtype, start=i % 2 == 0, shared=False)
        spec = Spec(d, SURROGATES[0], None, i % 2 == 0, True)

        def like(t):
            return t if t is None else mode.from_tensor(t) if kind == "fake" else t.to("meta")

        outputs = []
        for backend, to in ((native, lambda t: t), (fake, like)):
            x, *state = (to(t) for t in (y, *case.state))
            params = [to(p) for p in case.params]
            out = backend.forward(spec, x, state, params, keep=True)
            grad = to(case.grad)
            args = (spec, x, state, params, out.anchors, grad, [to(e) for e in case.ends], [None] * len(state), True,
                    [s is not None for s in state], [True] * len(params))
            back = backend.backward(*args, bits=out.bits, affine=tuple(map(to, affine)), into=grad, sums=True)
            assert back[0] is grad
            outputs.append((out.spikes, out.final, out.sequence, out.bits, out.anchors, back, backend.backward(*args)))
            if steps == 1 and not d.backward_reads(True)[1]:
                out = backend.forward(spec, x, state, params, keep=True, traces=True)
                step = backend.single_step_backward(spec, x.dtype, x.device, layout_of(x), out.traces, state, params,
                                                    args[5], args[6], True, args[9], args[10])
                outputs[-1] += (out.traces, step)
        real, made = map(described, outputs)
        if kind == "meta":
            made = eval(repr(made).replace("'meta'", "'cpu'"), {"torch": torch})
        assert made == real
    assert fake.unavailable() is None
