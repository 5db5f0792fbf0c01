"""multi_step(groups=N): channel groups that run through one membrane in turn (EfficientLIF-Net Eq. 7-11).

The compiled kernels and the text of the GPU kernels compiled as C++ read and write [T, N, C, *] in place. They are
compared with the ordinary neuron on T * groups steps, for which the input is copied into the order of the groups here.
"""
from __future__ import annotations

import dataclasses

import one_neuron
import pytest
import torch
from helpers import (
    ALL_NEURONS,
    DTYPES,
    GRADIENT,
    GRADIENT64,
    HALF,
    SURROGATES,
    assert_bit_equal,
    assert_fires,
    driving,
    error,
    name_of,
    params_for,
)
from one_neuron import Edit
from test_cuda_shim import Case, _problem, library  # noqa: F401  (library is a fixture)
from test_cuda_shim import run as shim_run  # noqa: F401  (a fixture)

from shared_core import _build, _operators, _tape, functional, spikes, surrogate
from shared_core.backends import _nvrtc, cuda, native
from shared_core.chain import neuron as chain
from shared_core.chain.policy import Policy
from shared_core.dynamics import IF, LIF, Leaky, ParametricLIF
from shared_core.errors import MemextError
from shared_core.layout import Layout, layout_of
from shared_core.spec import Spec

needs_kernels = pytest.mark.skipif(native.unavailable() is not None,
                                   reason=f"needs the CPU kernels: {native.unavailable()}")
FEW = [LIF(0.7, None, False, 3.0), ParametricLIF(0.7, -0.5), Leaky("zero", False)]
# (groups, shape of a step): runs of whole bytes, odd ones, of one value; T * groups under, at and over 32 steps
SHAPES = [(2, (3, 8)), (4, (2, 16, 3, 5)), (8, (3, 8, 7)), (2, (2, 130, 9, 8)), (4, (1, 4))]


def channels_last(x):
    last = (*(d for d in range(x.dim()) if d != 2), 2)
    back = sorted(range(x.dim()), key=last.__getitem__)
    return x.permute(last).contiguous().permute(back)


VIEWS = {"contiguous": lambda x: x, "channels_last": channels_last,
         "every other channel": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
         "time inside": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0)}


def drawn(d, groups, shape, steps, dtype=torch.float32, start=True, per_neuron=True):
    """Input [T, *shape] and state and parameters of the membrane."""
    membrane = (shape[0], shape[1] // groups, *shape[2:])
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    params = params_for(d, membrane if per_neuron else (), compute)
    state = tuple(torch.randn(membrane, dtype=compute) * 0.4 if start else None for _ in d.states)
    return side_by_side(driving(d, steps * groups, membrane, params, state, dtype), groups), state, params


def in_turn(x, groups):
    """[T, N, C, *] -> [T * groups, N, C / groups, *], written as the paper says it: split, one after the other."""
    return torch.stack([part for x_t in x for part in x_t.chunk(groups, 1)])


def side_by_side(x, groups):
    return torch.stack([torch.cat(list(x[t:t + groups]), 1) for t in range(0, len(x), groups)])


def gradients(outputs, inputs):
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(o.shape, generator=generator).to(o.dtype) for o in outputs]
    return torch.autograd.grad(outputs, inputs, weights)


def both(d, x, state, params, groups, backend, view=lambda x: x, **options):
    """((outputs, gradients) of groups=, the same of the ordinary neuron in the order of the groups)."""
    found = []
    for shared in (True, False):
        leaf = lambda t: t.detach().clone().requires_grad_()  # noqa: E731
        x0, s0, p0 = leaf(x), [None if s is None else leaf(s) for s in state], [leaf(p) for p in params]
        options = {"surrogate": SURROGATES[0], "record": True, **options}
        if shared:
            out = functional.multi_step(d, view(x0), s0, p0, groups=groups, backend=backend, **options)
            outputs = (out.spikes, *out.state, *out.sequence)
        else:
            plain = {k: v for k, v in options.items() if k != "bits"}
            out = functional.multi_step(d, in_turn(x0, groups), s0, p0, backend="native", **plain)
            outputs = (side_by_side(out.spikes, groups), *out.state, *(s[groups - 1::groups] for s in out.sequence))
        found.append((outputs, gradients(outputs, [x0, *(s for s in s0 if s is not None), *p0]), out.bits))
    return found


def assert_same(got, wanted, dtype=torch.float32):
    for a, b in zip(got[0], wanted[0], strict=True):
        assert_bit_equal(a, b)
    bound = GRADIENT64 if dtype == torch.float64 else max(GRADIENT, HALF.get(dtype, 0.0))
    for i, (a, b) in enumerate(zip(got[1], wanted[1], strict=True)):
        assert a.isfinite().all() and error(a, b) <= bound, (i, error(a, b))


@needs_kernels
@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
@pytest.mark.parametrize("groups, shape", SHAPES, ids=str)
def test_kernels_equal_the_ordinary_neuron_on_the_groups_in_turn(groups, shape, view):
    for d in FEW:
        for steps in (1, 5, 17):
            x, state, params = drawn(d, groups, shape, steps, start=steps > 1)
            got, wanted = both(d, x, state, params, groups, "native", view, bits=True)
            assert_same(got, wanted)
            if steps > 1 and x.numel() > 100:
                assert_fires(got[0][0])
            fired = (got[0][0] != 0).float()
            assert_bit_equal(spikes.unpack(got[2], layout_of(view(x))), fired, "bits: in the order of x")


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("d", ALL_NEURONS, ids=name_of)
def test_every_neuron_and_dtype(d, dtype):
    x, state, params = drawn(d, 2, (3, 12, 5), 9, dtype)
    assert_same(*both(d, x, state, params, 2, "native", channels_last), dtype)
    if dtype in (torch.float32, torch.float64):
        assert_same(*both(d, x, state, params, 2, "reference"), dtype)


@needs_kernels
def test_a_batch_that_several_threads_share():
    d = FEW[0]
    x, state, params = drawn(d, 4, (5, 64, 31, 9), 3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for view in VIEWS.values():
            got, wanted = both(d, x, state, params, 4, "native", view, bits=True)
            assert_same(got, wanted)
            assert_bit_equal(spikes.unpack(got[2], layout_of(view(x))), got[0][0].detach())
    finally:
        torch.set_num_threads(before)


@needs_kernels
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("d", FEW, ids=name_of)
def test_online_cuts_between_time_steps_and_not_between_groups(d, backend):
    groups = 4
    x, state, params = drawn(d, groups, (2, 8, 3), 10)
    leaf = lambda t: t.detach().clone().requires_grad_()  # noqa: E731
    x0, p0 = leaf(x), [leaf(p) for p in params]
    out = functional.multi_step(d, x0, state, p0, groups=groups, online=True, backend=backend, surrogate=SURROGATES[0])
    got = gradients((out.spikes,), [x0, *p0])
    x1, p1, now, one_by_one = leaf(x), [leaf(p) for p in params], state, []
    for x_t in x1:  # a time step at a time, from a state that is a constant
        step = functional.multi_step(d, x_t[None], [s.detach() for s in now], p1, groups=groups,
                                     surrogate=SURROGATES[0])
        now = step.state
        one_by_one.append(step.spikes[0])
    assert_bit_equal(out.spikes, torch.stack(one_by_one))
    full = functional.multi_step(d, leaf(x), state, params, groups=groups, surrogate=SURROGATES[0]).spikes
    assert_bit_equal(full, out.spikes)
    for a, b in zip(got, gradients((torch.stack(one_by_one),), [x1, *p1]), strict=True):
        assert error(a, b) <= GRADIENT


@needs_kernels
@pytest.mark.parametrize("groups, shape", SHAPES[:4], ids=str)
@pytest.mark.parametrize("d", FEW[:2], ids=name_of)
def test_backward_from_a_rebuilt_input(d, groups, shape):
    """Bits, a batch norm folded into the reading of the input, its sums, and the gradient written over the incoming."""
    x, state, params = drawn(d, groups, shape, 17)
    y, channels = torch.randn_like(x), shape[1]
    scale, shift = torch.rand(channels) + 0.5, torch.randn(channels) * 0.3
    for view in (VIEWS["contiguous"], channels_last):
        y = view(y)
        at = (-1, *(1,) * (len(shape) - 2))
        x = torch.empty_like(y).copy_(torch.addcmul(shift.view(at).double(), y.double(), scale.view(at).double()))
        spec = Spec(d, SURROGATES[0], bits=True, groups=groups)
        out = native.forward(spec, x, state, params, keep=True)
        g = torch.randn(x.shape).copy_(torch.randn(x.shape))
        g = view(g)
        rest = [torch.randn_like(s) for s in state], [None], True, [True], [True] * len(params)
        arguments = spec, x, state, params, out.anchors, g, *rest
        plain = native.backward(*arguments)
        again = native.backward(spec, y, *arguments[2:], bits=out.bits, affine=(scale, shift), into=g.clone(),
                                sums=True)
        wanted = native.backward(dataclasses.replace(spec, groups=1), in_turn(x, groups), *arguments[2:4],
                                 native.forward(dataclasses.replace(spec, groups=1), in_turn(x, groups), state, params,
                                                keep=True).anchors, in_turn(g, groups), *rest)
        grad_x = side_by_side(wanted[0], groups)
        other = [i for i in range(x.dim()) if i != 2]
        sums = torch.stack([grad_x.double().sum(other), (grad_x.double() * y.double()).sum(other)])
        for found in (plain, again):
            assert error(found[0], grad_x) <= GRADIENT
            for a, b in zip((*found[1], *found[2]), (*wanted[1], *wanted[2]), strict=True):
                assert error(a, b) <= GRADIENT
        # float32 partial sums over a row; the sums themselves cancel little
        assert error(again[3], sums) <= 1e-5


@needs_kernels
def test_the_gradient_may_be_written_over_the_incoming_one():
    d, groups = FEW[0], 2
    x, state, params = drawn(d, groups, (3, 8, 3), 5)
    spec = Spec(d, SURROGATES[0], bits=True, groups=groups)
    out, g = native.forward(spec, x, state, params, keep=True), torch.randn(x.shape)
    rest = [None], [None], True, [False], []
    wanted, *_ = native.backward(spec, x, state, params, out.anchors, g, *rest)
    mine = g.clone()
    found, *_ = native.backward(spec, x, state, params, out.anchors, mine, *rest, bits=out.bits, into=mine)
    assert found.data_ptr() == mine.data_ptr()
    assert_bit_equal(found, wanted)


@needs_kernels
@pytest.mark.skipif(_problem() is not None, reason=str(_problem()))
@pytest.mark.parametrize("groups, shape", SHAPES, ids=str)
def test_the_text_of_the_gpu_kernels(groups, shape, shim_run):  # noqa: F811
    for i, d in enumerate(FEW):
        for steps, bits in ((3, False), (9, True)):
            bits = bits and (shape[1] // groups * torch.Size(shape[2:]).numel()) % 8 == 0  # else packed in Torch
            x, state, params = drawn(d, groups, shape, steps, start=i != 1)
            if i == 2:
                x = channels_last(x)
                bits = False
            spec = Spec(d, SURROGATES[0], record=True, bits=bits, online=i == 1, groups=groups)
            Case(spec, x, state, params).check(shim_run, fires=x.numel() > 500)


@pytest.mark.skipif(_nvrtc.unavailable() is not None, reason=f"no NVRTC: {_nvrtc.unavailable()}")
@pytest.mark.parametrize("capability", [80, 90], ids=lambda c: f"sm_{c}")
def test_the_gpu_kernels_compile_and_stay_in_registers(capability):
    storage = ("float", "float", "float")
    for kernel in (cuda.Kernel("LIF", 3, *storage, shared=True),
                   cuda.Kernel("LIF", 3, *storage, "ATan", 32, True, True),
                   cuda.Kernel("Leaky", 0, *storage, "ATan", 32, shared=True)):
        found = cuda.compile(kernel, capability)
        assert kernel.name.encode() in found.image and kernel.name.endswith(("_shared", "float"))
        print(f"{kernel.name} sm_{capability}: {found.registers} registers")
        assert found.spilled_bytes == 0 and found.stack_bytes == 0 and found.registers <= 128, found.log
    call = cuda.Call(steps=10, neurons=5, neuron=1, groups=2)
    assert cuda.kernel_of(call, "forward").shared and cuda.kernel_of(call, "backward").shared


# ---- the tests can fail ------------------------------------------------------------------------------------------

MUTATIONS = {
    "groups in another order": ("call.h", "* c.groups + g)", "* c.groups + c.groups - 1 - g)"),
    "a row is one piece": ("places.h", "whole ? n : std::min(n - i, c.run - (lo + i) % c.run)", "n"),
    "a piece written where it was read from": ("places.h", "if (there && !whole)", "if (there && !whole && step == 0)"),
    "states recorded after the first group": ("places.h", "(step + 1) % c.groups == 0", "step % c.groups == 0"),
    "online cuts between groups": ("places.h", "return step % c.groups == 0", "return true"),
    "bits of the first time step": ("places.h", "c.bits + time_of(step)", "c.bits + 0"),
    "the affine of group 0": ("cpu.cpp", "if (c.groups > 1) rebuilt.read_channels(rows, t);", ""),
    "the sums of group 0": ("cpu.cpp", "if (c.groups > 1) rebuilt.add_sums(rows, t, width);",
                            "if (c.groups > 1) rebuilt.add_sums(rows, 0, width);"),
}
QUICK = ("untouched", "a row is one piece")


@needs_kernels
@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow)
                                  for n in ("untouched", *MUTATIONS)])
def test_a_broken_addressing_is_caught(name, tmp_path, monkeypatch):
    edits = () if name == "untouched" else (Edit(MUTATIONS[name][0], "", *MUTATIONS[name][1:]),)
    try:
        broken = native._load(one_neuron.library(tmp_path / "kernels", "LIF", edits))
    except _build.BuildError as problem:
        pytest.skip(str(problem))
    monkeypatch.setattr(native, "_library", lambda: (broken, "one neuron"))

    def check():
        d, (groups, shape) = FEW[0], SHAPES[1]
        x, state, params = drawn(d, 2, (3, 16, 5), 9)
        for view in (VIEWS["contiguous"], channels_last):
            got, wanted = both(d, x, state, params, 2, "native", view, bits=True)
            assert_same(got, wanted)
            assert_bit_equal(spikes.unpack(got[2], layout_of(view(x))), got[0][0].detach())
        test_online_cuts_between_time_steps_and_not_between_groups(d, "native")
        test_backward_from_a_rebuilt_input(d, groups, shape)

    if name == "untouched":
        check()
    else:
        with pytest.raises(AssertionError):
            check()


# ---- the other doors --------------------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("backend", ["native", "reference"])
@pytest.mark.parametrize("d", FEW[1:], ids=name_of)
def test_the_operator_equals_the_eager_call(d, backend):
    x, state, params = drawn(d, 4, (3, 8, 5), 10)
    every = [t.requires_grad_() for t in (x, *state, *params)]
    eager = functional.multi_step(d, x, state, params, surrogate=SURROGATES[0], record=True, bits=True, groups=4,
                                  backend=backend)
    out = _operators.run(d, SURROGATES[0], None, True, True, False, backend, x, state, params, groups=4)
    for a, b in zip((out.spikes, *out.final, *out.sequence, out.bits), (eager.spikes, *eager.state, *eager.sequence,
                                                                       eager.bits), strict=True):
        assert_bit_equal(a, b)
    for a, b in zip(gradients((out.spikes, *out.final, *out.sequence), every),
                    gradients((eager.spikes, *eager.state, *eager.sequence), every), strict=True):
        assert_bit_equal(a, b)
    text = Spec(d, SURROGATES[0], None, True, True, groups=4).to_json()
    forward = (channels_last(x.detach()).requires_grad_(), list(state), list(params), text, backend, [True], True)
    torch.library.opcheck(_operators.multi_step, forward, test_utils=("test_schema", "test_faketensor"))


@needs_kernels
def test_vmap_maps_whole_batches():
    d = FEW[0]
    x = torch.stack([drawn(d, 2, (3, 4, 5), 20)[0] for _ in range(3)])
    run = lambda x: functional.multi_step(d, x, surrogate=SURROGATES[0], groups=2, record=True)[:3]  # noqa: E731
    got = torch.func.vmap(run)(x)
    for i in range(3):
        one = run(x[i])
        assert_bit_equal(got[0][i], one[0])
        assert_bit_equal(got[1][0][i], one[1][0])
        assert_bit_equal(got[2][0][i], one[2][0])
    loss = lambda x: run(x)[0].cos().sum() + run(x)[1][0].sum()  # noqa: E731
    for a, x_i in zip(torch.func.vmap(torch.func.grad(loss))(x), x, strict=True):
        assert error(a, torch.func.grad(loss)(x_i)) <= GRADIENT


@needs_kernels
def test_double_backward():
    d = LIF(0.7, None, False, 3.0)
    x = drawn(d, 2, (2, 4), 6, torch.float64)[0].requires_grad_()
    shared = lambda x: functional.multi_step(d, x, surrogate=SURROGATES[0], groups=2).spikes  # noqa: E731
    plain = lambda x: side_by_side(functional.multi_step(d, in_turn(x, 2), surrogate=SURROGATES[0]).spikes, 2)  # noqa: E731
    found = []
    for f in (shared, plain):
        g, = torch.autograd.grad(f(x).mul(torch.arange(4.0)).sum(), x, create_graph=True)
        found += torch.autograd.grad(g.pow(2).sum(), x)
    assert found[0].norm() > 0 and error(found[0], found[1]) <= GRADIENT64


@needs_kernels
@pytest.mark.parametrize("shape", [(2, 8, 4), (2, 8, 5, 3)], ids=str)
def test_a_taped_step_is_rebuilt_from_its_bits(shape):
    d = FEW[0]
    x, state, _ = drawn(d, 2, shape, 1)
    tape = _tape.Tape()
    call = lambda x, s: functional.multi_step(d, x, s, surrogate=SURROGATES[0], groups=2)  # noqa: E731
    with tape.recording(), torch.no_grad():
        first = call(x, state)
    assert tape.calls == [None], "solving for the state before a step would divide once per group"
    every = [x.clone().requires_grad_(), state[0].clone().requires_grad_()]
    off = every[0] * (1 + 3e-7)  # rebuilt, an ulp or two off
    with tape.giving(0):
        again = call(off, every[1:])
    assert_bit_equal(again.spikes, first.spikes)
    wanted = call(every[0], every[1:])
    for a, b in zip(gradients((again.spikes, *again.state), every), gradients((wanted.spikes, *wanted.state), every),
                    strict=True):
        assert error(a, b) <= GRADIENT


@needs_kernels
@pytest.mark.parametrize("groups, shape", SHAPES[:3], ids=str)
def test_the_chain_keeps_bits_in_the_order_of_its_output(groups, shape):
    d = FEW[0]
    x, state, _ = drawn(d, groups, shape, 6)
    found = []
    for call, more in ((functional.multi_step, {}), (chain.multi_step, {"policy": Policy("recompute", "balanced")})):
        every = [x.clone().requires_grad_(), state[0].clone().requires_grad_()]
        out = call(d, every[0], every[1:], surrogate=SURROGATES[0], groups=groups, **more)
        found.append((out.spikes, *out.state, *gradients((out.spikes, *out.state), every)))
        if out.bits is not None:
            assert_bit_equal(spikes.unpack(out.bits, layout_of(x)), out.spikes.detach())
    for a, b in zip(*found, strict=True):
        assert_bit_equal(a, b)


def test_the_layout_of_a_membrane():
    whole = Layout((3, 8, 5, 2), (0, 2, 1, 3))  # [N, H, C, W] in memory
    membrane, run = whole.shared(4, 1)
    assert membrane == Layout((3, 2, 5, 2), (0, 2, 1, 3)) and run == 4
    assert whole.shared(1, 1) == (whole, 0)


# ---- what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape, groups, words", [
    ((4, 2, 6), 4, r"C = 6 channels .*groups=4"), ((4, 6), 2, r"rank 2 or more.*groups=2"),
    ((4, 2, 6), 0, "groups is 0"), ((4, 2, 6), -1, "groups is -1"), ((4, 2, 6), 2.0, "groups is 2.0"),
    ((4, 2, 6), True, "groups is True"),
])
def test_what_cannot_be_shared_is_refused(shape, groups, words):
    for call in (lambda x: functional.multi_step(IF(), x, surrogate=surrogate.atan(), groups=groups),
                 lambda x: chain.multi_step(IF(), x.requires_grad_(), (None,), surrogate=surrogate.atan(),
                                            policy=Policy("compress"), groups=groups)):
        with pytest.raises(MemextError, match=words):
            call(torch.randn(shape))


def test_a_state_of_the_whole_channels_is_refused():
    with pytest.raises(MemextError, match=r"shape \(2, 6\).*needs \(2, 3\)"):
        functional.multi_step(IF(), torch.randn(4, 2, 6), (torch.zeros(2, 6),), surrogate=surrogate.atan(), groups=2)
