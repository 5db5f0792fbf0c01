"""coding.py: what is packed comes back bit for bit, in the smallest kind; what cannot be packed is left alone."""
from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from helpers import DTYPES, assert_fires, driving
from hypothesis import given
from hypothesis import strategies as st
from tensor_backends import kernels  # noqa: F401  a fixture
from torch._subclasses.fake_tensor import FakeTensorMode

from shared_core import coding, functional, spikes, surrogate
from shared_core.backends import _tensor_native, _tensor_torch, tensor
from shared_core.dynamics import LIF
from shared_core.errors import MemextError

# name: (kind, scale, values of a shape)
VALUES = {
    "spikes": ("bits", 1.0, lambda s: (torch.rand(s) < 0.3).double()),
    "dropout": ("bits", 1.25, lambda s: (torch.rand(s) < 0.3).double() * 1.25),
    "sums": ("nibble", 1.0, lambda s: torch.randint(0, 16, s).double()),
    "averages 2x2": ("nibble", 0.25, lambda s: torch.randint(0, 5, s).double() / 4),
    "averages 4x4": ("int8", 0.0625, lambda s: torch.randint(0, 17, s).double() / 16),
    "signed": ("int8", 1.0, lambda s: torch.randint(-128, 128, s).double()),
}
SHAPES = [(), (0,), (1,), (7,), (8,), (63,), (4, 5, 13), (3, 0, 2), (3, 2, 5, 7), (2, 16, 16, 17), (5, 1, 1700)]
LAYOUTS = {
    "contiguous": lambda t: t,
    "transposed": lambda t: t.transpose(0, -1) if t.dim() > 1 else t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t,
    "inside": lambda t: torch.cat((t.flatten(), t.flatten()))[t.numel():].view(t.shape),
    "with gaps": lambda t: torch.stack((t, t), -1)[..., 0],
}


def assert_same_bits(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert got.dtype == wanted.dtype and got.shape == wanted.shape
    view = {2: torch.int16, 4: torch.int32, 8: torch.int64}[wanted.element_size()]
    assert torch.equal(got.contiguous().view(view), wanted.contiguous().view(view))


def meaningful_strides(t: torch.Tensor) -> list[int]:
    return [s for s, n in zip(t.stride(), t.shape) if n > 1]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", VALUES)
def test_round_trip_in_the_smallest_kind(name, dtype, kernels):  # noqa: F811
    kind, scale, draw = VALUES[name]
    for shape in SHAPES:
        for layout in LAYOUTS.values():
            t = layout(draw(shape).to(dtype))
            found = coding.encode(t)
            assert found is not None, (shape, layout)
            data, code = found
            if t.numel() > 60:
                assert (code.kind, code.scale) == (kind, scale), shape
            assert data.numel() == data.nbytes == code.nbytes == math.ceil(t.numel() / coding.PER_BYTE[code.kind])
            flat = coding._in_memory_order(t)[0]
            assert torch.equal(data, _tensor_torch.pack(flat, code.kind, code.scale)), "unused bits are 0"
            back = coding.decode(data, code)
            assert_same_bits(back, t)
            if coding.is_dense(t) and t.numel() > 0:
                assert meaningful_strides(back) == meaningful_strides(t)


@given(st.lists(st.sampled_from([0.0, 1.0, 2.0, 15.0, 0.25, 0.0625, -1.0, 127.0, -128.0, 128.0, 1.25, 1e-3, 1e-45, 1e30,
                                 -0.0, math.inf, -math.inf, math.nan]), max_size=6), st.integers(0, 9000))
def test_what_comes_back_is_what_was_given_or_nothing_is_packed(some, at):
    """Also where the odd value lies far behind the first ones; and both implementations say the same."""
    t = torch.zeros(at + len(some))
    t[at:] = torch.tensor(some)
    found, plain = coding.encode(t), _tensor_torch.pack_checked(t)
    assert (found is None) == (plain is None)
    if found is not None:
        assert_same_bits(coding.decode(*found), t)
        assert torch.equal(found[0], plain[0]) and (found[1].kind, found[1].scale) == plain[1:]


REFUSED = {"NaN": math.nan, "infinite": math.inf, "-infinite": -math.inf, "minus zero": -0.0, "real": 0.3, "128": 128.0}


@pytest.mark.parametrize("at", [0, 63, 4095, 4096, 19_999])
@pytest.mark.parametrize("odd", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_value_that_does_not_fit_anywhere(dtype, odd, at, kernels):  # noqa: F811
    t = (torch.rand(20_000) < 0.3).to(dtype)
    t[10] = 1
    t[at] = odd
    assert coding.encode(t) is None


@pytest.mark.parametrize("values, kind, scale", [
    ((1.0, 2.0), "nibble", 1.0), ((1.0, 0.25), "nibble", 0.25), ((1.0, 0.0625), "int8", 0.0625),
    ((1.0, -1.0), "int8", 1.0), ((3.0, 127.0, 0.5), None, None), ((1.25, 1.0), "nibble", 0.25),
    ((1.1, 1.0), None, None), ((1.0, 2.0, 16.0, -3.0), "int8", 1.0), ((1.0, 16.0, 0.25), "int8", 0.25),
    ((-1.0,), "int8", 1.0)])
def test_values_that_show_late_widen_the_kind(values, kind, scale, kernels):  # noqa: F811
    t = torch.zeros(40_000)
    for i, value in enumerate(values):
        t[i * 9000 + 5::1111] = value
    found = coding.encode(t)
    assert (found is None) == (kind is None)
    if found is not None:
        assert (found[1].kind, found[1].scale) == (kind, scale)
        assert_same_bits(coding.decode(*found), t)


def test_the_format(kernels):  # noqa: F811
    t = torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 0, 0, 1])
    assert coding.encode(t)[0].tolist() == [0b1001, 0b10]
    assert coding.encode(t * 3 + torch.arange(10) % 2)[0].tolist() == [0x13, 0x40, 0x10, 0x10, 0x40]
    assert tensor.pack(torch.tensor([-2.0, 0.5]), "int8", 0.25).tolist() == [-8, 2]


def test_real_numbers_cost_nothing(monkeypatch):
    if _tensor_native.library() is None:
        pytest.skip("needs the CPU kernels")
    monkeypatch.setattr(tensor, "_packed", lambda flat, kind: pytest.fail("memory was taken for real numbers"))
    assert coding.encode(torch.randn(1_000_000)) is None
    assert coding.encode(torch.randn(3)) is None


def test_threads_do_not_change_the_result(kernels):  # noqa: F811
    t = (torch.rand(200_003) < 0.3).float()
    t[150_000:] *= 2
    one, threads = coding.encode(t), torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        four = coding.encode(t)
        assert_same_bits(coding.decode(*four), t)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one[0], four[0]) and one[1] == four[1]


@pytest.mark.parametrize("n", [0, 1, 7, 64, 65, 4097])
@pytest.mark.parametrize("kind", coding.PER_BYTE)
def test_nothing_is_written_beside_the_output(kind, n, kernels):  # noqa: F811
    if kernels is None:
        pytest.skip("Torch operators")
    for dtype in DTYPES:
        t = (torch.rand(n) < 0.5).to(dtype)
        size = -(-n // coding.PER_BYTE[kind])
        data = torch.full((size + 128,), 77, dtype=torch.uint8)
        assert kernels.pack(t, kind, 1.0, data[64:64 + size]) == -1
        assert (data[:64] == 77).all() and (data[64 + size:] == 77).all()
        out = torch.full((n + 128,), 77.0, dtype=dtype)
        kernels.unpack(data[64:64 + size], kind, 1.0, out[64:64 + n])
        assert (out[:64] == 77).all() and (out[64 + n:] == 77).all() and torch.equal(out[64:64 + n], t)


# ---- out=, views, bad input ----

def test_into_a_given_tensor():
    t = (torch.rand(3, 4, 5, 7) < 0.3).float()
    data, code = coding.encode(t)
    for out in (torch.full_like(t, math.nan), torch.full_like(t, math.nan, memory_format=torch.channels_last),
                torch.full((3, 4, 5, 14), math.nan)[..., ::2]):
        assert coding.decode(data, code, out) is out
        assert torch.equal(out, t)


def test_a_code_serves_views_of_the_tensor():
    t = (torch.rand(6, 4, 5, 7) < 0.3).float()
    data, code = coding.encode(t)
    for view in (t.flatten(0, 1), t.permute(3, 0, 1, 2), t.view(2, 3, 140)):
        back = coding.decode(data, replace(code, shape=tuple(view.shape), stride=view.stride()))
        assert torch.equal(back, view) and back.stride() == view.stride()


def test_a_graph_is_neither_needed_nor_made():
    t = torch.zeros(4, 9, requires_grad=True)
    data, code = coding.encode(t * 1)
    assert not data.requires_grad and not coding.decode(data, code).requires_grad


def test_other_types_are_left_alone():
    for t in (torch.ones(3, dtype=torch.int64), torch.ones(3, dtype=torch.bool), torch.ones(3, dtype=torch.complex64)):
        assert coding.encode(t) is None


def test_bad_input_is_named():
    data, code = coding.encode(torch.ones(3, 5))
    with pytest.raises(MemextError, match=r"coding.decode: data has shape \(1,\).*2 contiguous bytes"):
        coding.decode(data[:1], code)
    with pytest.raises(MemextError, match=r"out is \(5, 3\), torch.float32, cpu; allowed: \(3, 5\)"):
        coding.decode(data, code, torch.empty(5, 3))
    with pytest.raises(MemextError, match=r"bits are torch.uint8 \(3, 2\); allowed for spikes \(3, 5\): .*\(3, 1\)"):
        coding.from_step_bits(torch.zeros(3, 2, dtype=torch.uint8), torch.ones(3, 5))


# ---- hints ----

def test_on_the_cpu_a_hint_is_not_believed():
    assert coding.encode(torch.randn(100), coding.Alphabet(1)) is None
    assert coding.encode(torch.full((9,), 3.0), coding.Alphabet(1))[1] == coding.encode(torch.full((9,), 3.0))[1]


@pytest.mark.parametrize("alphabet, kind", [
    (coding.Alphabet(1), "bits"), (coding.Alphabet(1, 1.25), "bits"), (coding.Alphabet(2), "nibble"),
    (coding.Alphabet(15), "nibble"), (coding.Alphabet(16, 0.25), "int8"), (coding.Alphabet(127), "int8"),
    (coding.Alphabet(128), None)], ids=str)
def test_fake_tensors_are_packed_as_the_hint_says(alphabet, kind):
    with FakeTensorMode():
        t = torch.empty(4, 3, 5, 7).to(memory_format=torch.channels_last)
        assert coding.is_fake(t) and coding.encode(t) is None
        found = coding.encode(t, alphabet)
    assert (found is None) == (kind is None)
    if found is not None:
        data, code = found
        assert (code.kind, code.scale, data.numel()) == (kind, alphabet.scale, code.nbytes) and coding.is_fake(data)
        back = coding.decode(data, code)
        assert coding.is_fake(back) and (back.shape, back.stride()) == (t.shape, t.stride())


# ---- bits of the neuron kernels ----

@pytest.mark.parametrize("shape", [(6, 8), (6, 5, 16), (6, 5, 3, 4), (6, 7), (6, 3, 5), (1, 13), (6, 0)], ids=str)
def test_bits_of_a_neuron(shape):
    s = (torch.rand(shape) < 0.3).float()
    bits = spikes.pack(s)
    data, code = coding.from_step_bits(bits, s)
    assert torch.equal(data, coding.encode(s)[0])
    assert_same_bits(coding.decode(data, code), s)
    assert_same_bits(coding.decode_step_bits(bits, code), s)
    neurons = math.prod(shape[1:])
    if neurons % 8 == 0 and bits.numel():
        assert data.data_ptr() == bits.data_ptr(), "a copy where a view would do"


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("channels", [8, 3])
def test_bits_that_the_kernels_wrote(channels, last):
    d = LIF(0.7, -0.5, tau=3.0)
    x = driving(d, 9, (2, channels, 3, 5))
    if last:
        x = x.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    out = functional.multi_step(d, x, surrogate=surrogate.atan(), bits=True)
    assert_fires(out.spikes)
    data, code = coding.from_step_bits(out.bits, out.spikes)
    assert_same_bits(coding.decode(data, code), out.spikes)
    assert torch.equal(data, coding.encode(out.spikes)[0])


def test_levels():
    assert coding.encode(torch.ones(9))[1].levels == 1
    assert coding.encode(torch.arange(9.0))[1].levels == 15
    assert coding.encode(torch.arange(9.0) / 4)[1].levels is None
    assert coding.encode(torch.arange(-2.0, 9.0))[1].levels is None
