"""The reversible neuron's kernels: CPU, and the GPU's text run as C++, against plain Torch; compiled for GPUs."""
from __future__ import annotations

import ctypes

import pytest
import torch
from helpers import assert_bit_equal, error

from shared_core import _build, surrogate
from shared_core.backends import _nvrtc, cuda
from shared_core.reversible import _cuda, _native, _plain
from shared_core.reversible._call import ReversibleCall, filled, new_largest
from shared_core.reversible._cuda import BLOCK_SIZES, Kernel
from shared_core.reversible.neuron import Equations

ATAN = surrogate.atan(alpha=2.0)
GRADIENT = {torch.float32: 1e-6, torch.float64: 1e-14}  # the same operations; the surrogate is in its kernel's form
EQ = {g: Equations(groups=g, tau=1.7, alpha=0.13, beta=0.8, v_th=0.4, v_reset=-0.1, strict=g == 3) for g in (2, 3, 5)}


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    try:
        path = _build.build_one("base", tmp_path_factory.mktemp("shim"), extra=["-O0", "-pthread"],
                                source=_build.KERNELS / "reversible_shim.cpp")
    except _build.BuildError as problem:
        pytest.skip(str(problem))
    return _native.prepared(ctypes.CDLL(str(path)))


@pytest.fixture(scope="module")
def cpu():
    if _native.unavailable():
        pytest.skip(_native.unavailable())
    return _native._library()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("library", ["shim", "cpu"])
@pytest.mark.parametrize("steps", [1, 4, 5, 32, 70])
def test_kernels_against_plain_torch(library, steps, dtype, request):
    """On poisoned memory: what is not written is NaN, and is found."""
    lib = request.getfixturevalue(library)
    nan = lambda t: torch.full_like(t, float("nan"))  # noqa: E731
    for groups, outer, inner in ((2, 3, 13), (3, 40, 1), (5, 2, 64), (2, 9, 8)):
        eq = EQ[groups]
        x = torch.randn(steps, outer, groups, inner, dtype=dtype) + 0.3
        start, grad_v = (torch.randn(outer, groups, inner, dtype=dtype) for _ in range(2))
        grad_y, largest = torch.randn_like(x), new_largest(x)
        for v in (None, start):
            y, end, wanted, wanted_end = nan(x), nan(start), nan(x), nan(start)
            assert lib.memext_reversible_forward(filled(eq, ATAN, x, 1, x=x, initial=v, y=y, final_state=end,
                                                        largest=largest.zero_())) == 0
            most = _plain.forward(eq, x, v, ATAN, wanted, wanted_end)
            assert_bit_equal(y, wanted)
            assert_bit_equal(end, wanted_end)
            assert_bit_equal(largest.view(torch.float32), most)
            for upstream, at_end in ((grad_y, None), (None, grad_v), (grad_y, grad_v)):
                gx, gv, wanted_gx, wanted_gv = nan(x), nan(start), nan(x), nan(start)
                _, anchors, fired = _cuda.workspace(y)
                assert lib.memext_reversible_backward(filled(
                    eq, ATAN, y, 1, y=y, initial=v, grad_y=upstream, grad_final=at_end, grad_x=gx, grad_initial=gv,
                    anchors=anchors, fired=fired)) == 0
                _plain.backward(eq, y, v, ATAN, upstream, at_end, wanted_gx, wanted_gv)
                assert error(gx, wanted_gx) <= GRADIENT[dtype] and error(gv, wanted_gv) <= GRADIENT[dtype]


def test_threads_give_the_same(cpu):
    eq, x = EQ[2], torch.randn(6, 50, 2, 100)
    out = []
    for threads in (1, 3):
        y, end, largest = torch.empty_like(x), torch.empty_like(x[0]), new_largest(x)
        cpu.memext_reversible_forward(filled(eq, ATAN, x, threads, x=x, y=y, final_state=end, largest=largest))
        gx, gv = torch.empty_like(x), torch.empty_like(end)
        cpu.memext_reversible_backward(filled(eq, ATAN, y, threads, y=y, grad_y=x, grad_x=gx, grad_initial=gv))
        out.append((y, end, largest, gx, gv))
    for a, b in zip(*out):
        assert_bit_equal(a, b)


def test_unknown_surrogate_is_refused(cpu):
    x = torch.randn(2, 1, 2, 4)
    call = filled(EQ[2], ATAN, x, 1, y=x, grad_y=x, grad_x=torch.empty_like(x), grad_initial=torch.empty_like(x[0]))
    call.surrogate = 999
    assert cpu.memext_reversible_backward(call) == 2


# ---- compiled for GPUs that are not here ----------------------------------------------------------------------------

needs_nvrtc = pytest.mark.skipif(_nvrtc.unavailable() is not None, reason=f"no NVRTC: {_nvrtc.unavailable()}")


@needs_nvrtc
@pytest.mark.parametrize("capability", [80, *(pytest.param(c, marks=pytest.mark.slow) for c in (75, 90, 100, 120))])
def test_each_architecture(capability, record_property):
    if capability not in _nvrtc.architectures():
        pytest.skip(f"NVRTC {_nvrtc.version()} does not know sm_{capability}")
    for kernel in (Kernel("float"), Kernel("float", "ATan", 32)):
        found = _cuda.compile(kernel, capability)
        assert found.image[:4] == b"\x7fELF" and kernel.name.encode() in found.image and "warning" not in found.log
        record_property(kernel.name, found.registers)
        assert found.registers <= 128 and found.spilled_bytes <= 64, found.log  # sm_120 spills 16 bytes


@needs_nvrtc
def test_each_type_and_block_size():
    kernels = [Kernel("double"), Kernel("double", "Sigmoid", 16), Kernel("float", "FastSigmoid", 4),
               Kernel("float", "ATan", 8)]
    for kernel in kernels:
        assert _cuda.compile(kernel, 80).image
    assert len({k.name for k in kernels}) == len(kernels) and ctypes.sizeof(ReversibleCall) < 4096


@needs_nvrtc
@pytest.mark.slow
def test_every_surrogate():
    _, surrogates = cuda._names()
    for name in surrogates.values():
        for steps in BLOCK_SIZES:
            assert _cuda.compile(Kernel("float", name, steps), 90).image


@needs_nvrtc
def test_no_fused_multiply_add():
    """A fused multiply-add would flip spikes against the CPU, and the backward's against the forward's."""
    text = _cuda.compile(Kernel("float", "ATan", 4), 990).image.decode()
    assert "fma.rn.f32" not in text and ".ftz" not in text and "div.rn.f32" in text
