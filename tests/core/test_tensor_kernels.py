"""backends/tensor.py on every kind of kernel: batch norm against Torch (forward: bit for bit) and float64 autograd,
pooling against Torch, value for value."""
from __future__ import annotations

import itertools
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tensor_backends
import torch
import torch.nn.functional as F
from helpers import DTYPES, assert_bit_equal, error
from tensor_backends import kernels  # noqa: F401  a fixture
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from shared_core import _build, coding
from shared_core.backends import _nvrtc, _tensor_cuda, _tensor_native, cuda, tensor

# Sums are float64, each value is rounded a few times in float32; half types once more, to 2^-11 and 2^-8.
GRADIENT = {torch.float32: 1e-6, torch.float64: 1e-12, torch.float16: 1e-3, torch.bfloat16: 8e-3}

LAST = torch.channels_last
NORM_SHAPES = [(4, 3, 8, 8), (8, 32, 12, 12), (3, 5, 7), (33, 9), (8, 16, 3, 3), (2, 6, 3, 5, 2), (1, 4, 37, 29),
               (16, 24, 2, 2), (5, 1, 4, 4), (2, 3, 1, 1), (70, 20, 1, 1)]


def laid_out(t: Tensor, last: bool) -> Tensor:
    return t.contiguous(memory_format=LAST) if last and t.dim() == 4 else t


class Norm:
    """A batch norm on shape [N, C, *]: Torch's own forward, and what our functions need of it."""

    def __init__(self, shape, dtype=torch.float32, *, last=False, affine=True, training=True, params=None, eps=1e-5):
        channels, wide = shape[1], torch.float64 if dtype == torch.float64 else torch.float32
        params = params or wide
        self.training, self.eps = training, eps
        self.y = laid_out((torch.randn(shape, dtype=torch.float64) * 3 + 1.7).to(dtype), last)
        self.grad = laid_out(torch.randn(shape, dtype=torch.float64).to(dtype), last)
        self.weight = torch.randn(channels, dtype=torch.float64).to(params) if affine else None
        self.bias = torch.randn(channels, dtype=torch.float64).to(params) if affine else None
        running = torch.randn(channels, dtype=wide).to(params), (torch.rand(channels, dtype=wide) + 0.5).to(params)
        self.running = tuple(r.clone() for r in running)
        self.z, self.mean, self.invstd = torch.native_batch_norm(self.y, self.weight, self.bias, *running, training,
                                                                 0.1, eps)
        if not training:
            self.mean, self.invstd = self.running[0].to(wide), (self.running[1].to(wide) + eps).rsqrt()

    def truth(self) -> tuple[Tensor, ...]:
        """Gradients of y, weight and bias by float64 autograd."""
        leaf = lambda t: None if t is None else t.double().requires_grad_()  # noqa: E731
        y, weight, bias = leaf(self.y), leaf(self.weight), leaf(self.bias)
        z = F.batch_norm(y, *(r.double() for r in self.running), weight, bias, self.training, 0.1, self.eps)
        return torch.autograd.grad(z, [t for t in (y, weight, bias) if t is not None], self.grad.double())

    def backward(self, grad=None, **options) -> tuple[Tensor, Tensor, Tensor]:
        return tensor.norm_backward(self.grad if grad is None else grad, self.y, self.mean, self.invstd, self.weight,
                                    training=self.training, **options)


# ---- batch norm forward -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("training, affine, last", list(itertools.product((True, False), repeat=3)))
def test_normalise_is_torchs_batch_norm_bit_for_bit(training, affine, last, kernels):  # noqa: F811
    for shape in NORM_SHAPES:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            if shape[0] * math.prod(shape[2:]) < 2:
                continue
            norm = Norm(shape, dtype, last=last, affine=affine, training=training)
            out = tensor.normalise(norm.y, *tensor.folded(norm.mean, norm.invstd, norm.weight, norm.bias))
            assert_bit_equal(out, norm.z, f"{shape} {dtype}")
            assert coding.same_order(out, norm.y)


@pytest.mark.parametrize("training", [True, False], ids=["training", "eval"])
def test_normalise_in_float64_and_with_half_parameters(training, kernels):  # noqa: F811
    for shape in NORM_SHAPES[:4]:
        norm = Norm(shape, torch.float64, training=training)
        out = tensor.normalise(norm.y, *tensor.folded(norm.mean, norm.invstd, norm.weight, norm.bias))
        if kernels is None:
            assert error(out, norm.z) <= 1e-15  # Torch operators round a float64 product before the sum
        else:
            assert_bit_equal(out, norm.z)
        norm = Norm(shape, torch.bfloat16, training=training, params=torch.bfloat16)
        out = tensor.normalise(norm.y, *tensor.folded(norm.mean, norm.invstd, norm.weight, norm.bias))
        assert error(out, norm.z) <= 8e-3  # the operator returns its mean and 1 / std rounded to bfloat16


# (a, b, c, a * b + c): the sum lies within 2^-53 of the middle of two floats, or of zero, or overflows.
EXACT_SUMS = [
    (1 + 2**-23, 2**-24 * (1 - 2**-23), 1 + 2**-23, 1 + 2**-23),
    (1 - 2**-23, 2**-24 * (1 + 2**-23), 1 + 2**-23, 1 + 2**-23),
    (4097 * 2.0**-12, 16773121 * 2.0**-48, 1.0, 1 + 2**-23),
    (-4097 * 2.0**-12, 16773121 * 2.0**-48, -1.0, -1 - 2**-23),
    (-1 - 2**-23, 2**-24 * (1 - 2**-23), -1 - 2**-23, -1 - 2**-23),
    (1 + 2**-12, 1 - 2**-12, -1.0, -2**-24), (3.0, 0.5, -1.5, 0.0), (2.0**100, 2.0**100, 1.0, math.inf),
    (math.inf, 1.0, 1.0, math.inf), (2.0**-100, 2.0**-40, 2.0**-126, 2.0**-126 + 2.0**-140),
    (2.0**-75, 2.0**-75, 0.0, 0.0), (2.0**-75, 2.0**-74 * 1.5, 0.0, 2.0**-148),
]


def test_a_product_and_a_sum_rounded_once(kernels):  # noqa: F811
    a, b, c, wanted = torch.tensor(EXACT_SUMS, dtype=torch.float32).unbind(1)
    fma = (tensor._kernels(a) or tensor._tensor_torch).fma
    assert_bit_equal(fma(a.contiguous(), b.contiguous(), c.contiguous()), wanted)
    nan = torch.tensor([math.nan, math.inf, math.inf])
    assert fma(nan, torch.tensor([1.0, 0.0, 1.0]), torch.tensor([1.0, 1.0, -math.inf])).isnan().all()


def test_a_product_and_a_sum_against_integer_arithmetic(kernels):  # noqa: F811
    """Where the product and c are of one size, so that leading digits cancel, and where one of them nearly vanishes."""
    a, b, c = (torch.randint(-2**24, 2**24, (1500,)).float() for _ in range(3))
    c = torch.where(torch.arange(1500) % 3 == 0, -a * b, c * 2.0 ** torch.randint(-6, 54, (1500,)))
    got = (tensor._kernels(a) or tensor._tensor_torch).fma(a, b, c)
    exact = [int(x) * int(y) * 64 + int(z * 64) for x, y, z in zip(a.tolist(), b.tolist(), c.tolist())]
    assert torch.equal(got, torch.tensor([_to_float(v) / 64 for v in exact]))
    assert (got != a * b + c).float().mean() > 0.1, "rounding twice would have done"


def _to_float(value: int) -> float:
    """Rounded to 24 bits, to nearest even."""
    drop = max(abs(value).bit_length() - 24, 0)
    kept, lost = divmod(abs(value), 1 << drop)
    kept += 2 * lost + kept % 2 > 1 << drop
    return math.copysign(math.ldexp(kept, drop), value)


def test_normalise_into_a_given_tensor(kernels):  # noqa: F811
    norm = Norm((4, 6, 5, 7))
    scale, shift = tensor.folded(norm.mean, norm.invstd, norm.weight, norm.bias)
    wanted = tensor.normalise(norm.y, scale, shift)
    for y in (norm.y, laid_out(norm.y, True), torch.stack((norm.y, norm.y), -1)[..., 1]):
        for out in (torch.full_like(norm.y, math.nan), torch.full_like(norm.y, math.nan, memory_format=LAST)):
            assert tensor.normalise(y, scale, shift, out) is out
            assert_bit_equal(out, wanted)
    own = norm.y.clone()
    assert tensor.normalise(own, scale, shift, own) is own
    assert_bit_equal(own, wanted)
    assert tensor.normalise(norm.y[:0], scale, shift).shape == (0, 6, 5, 7)


# ---- batch norm backward ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("training, affine, last", list(itertools.product((True, False), repeat=3)))
def test_norm_backward_against_float64(training, affine, last, dtype, kernels):  # noqa: F811
    for shape in NORM_SHAPES:
        if shape[0] * math.prod(shape[2:]) < 3:  # two values a channel: the gradient of y is 0 but for eps
            continue
        norm = Norm(shape, dtype, last=last, affine=affine, training=training)
        got, wanted = norm.backward(), norm.truth()
        assert got[0].dtype == dtype and coding.same_order(got[0], norm.y)
        assert got[1].dtype == got[2].dtype == (norm.mean if norm.weight is None else norm.weight).dtype
        for g, w in zip(got, wanted):
            bound = max(GRADIENT[g.dtype], 1e-12 if dtype == torch.float64 else 1e-6)
            assert error(g, w) <= bound, (shape, error(g, w))


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_norm_backward_in_place_and_with_known_sums(last, kernels):  # noqa: F811
    for shape in NORM_SHAPES[:6]:
        norm = Norm(shape, last=last)
        wanted = norm.backward()
        over = [d for d in range(len(shape)) if d != 1]
        g, y = norm.grad.double(), norm.y.double()
        own, sums = norm.grad.clone(), torch.stack((g.sum(over), (g * y).sum(over)))
        got = norm.backward(own, into=own, sums=sums)
        assert got[0] is own
        for a, b in zip(got, wanted):
            assert error(a, b) <= GRADIENT[torch.float32]
        own = norm.grad.clone()
        assert norm.backward(own, into=own)[0] is own
        assert_bit_equal(own, wanted[0])
        got = norm.backward(sums=torch.zeros_like(sums))  # believed: these are the sums, so nothing depends on y
        norm.training = False
        assert_bit_equal(got[0], norm.backward()[0])
        assert not got[1].any() and not got[2].any()


def test_norm_backward_of_other_layouts(kernels):  # noqa: F811
    """Gradients that are expanded, strided or laid out otherwise than y, and a y with gaps."""
    norm = Norm((4, 6, 5, 7))
    wanted = norm.backward()
    for grad in (laid_out(norm.grad, True), torch.stack((norm.grad, norm.grad), -1)[..., 0]):
        assert_bit_equal(norm.backward(grad)[0], wanted[0])
        into = torch.full_like(norm.y, math.nan, memory_format=LAST)
        assert norm.backward(grad, into=into)[0] is into
        assert_bit_equal(into, wanted[0])
    ones = torch.ones(()).expand(norm.y.shape)
    for a, b in zip(norm.backward(ones), norm.backward(ones.contiguous())):
        assert_bit_equal(a, b)
    norm.y = torch.stack((norm.y, norm.y), -1)[..., 0]
    assert_bit_equal(norm.backward()[0], wanted[0])


def test_threads_do_not_change_the_sums(kernels):  # noqa: F811
    threads = torch.get_num_threads()
    try:
        for last in (False, True):
            norm = Norm((8, 16, 24, 24), last=last)
            found = []
            for count in (1, 3):
                torch.set_num_threads(count)
                found.append(norm.backward())
            if kernels is not None:  # Torch's own sums are no promise of ours
                for a, b in zip(*found):
                    assert_bit_equal(a, b)
    finally:
        torch.set_num_threads(threads)


def test_nothing_of_no_values(kernels):  # noqa: F811
    empty = torch.empty(0, 3, 4)
    grad_y, grad_weight, grad_bias = tensor.norm_backward(empty, empty, torch.zeros(3), torch.ones(3), torch.ones(3),
                                                          training=False)
    assert grad_y.shape == empty.shape and not grad_weight.any() and not grad_bias.any()


# ---- max pooling ------------------------------------------------------------------------------------------------

POOL_SHAPES = [(2, 3, 8, 8), (1, 2, 7, 9), (2, 5, 16, 33), (2, 34, 6, 5), (1, 1, 31, 64), (1, 2, 5, 130), (3, 4, 1, 16)]
WINDOWS = [((2, 2), (2, 2), (0, 0)), ((3, 3), (2, 2), (1, 1)), ((2, 2), (1, 1), (1, 0)), ((1, 2), (1, 2), (0, 0)),
           ((3, 2), (2, 3), (1, 1)), ((5, 5), (3, 2), (2, 2)), ((1, 20), (1, 7), (0, 3)), ((2, 2), (2, 60), (0, 0))]


def pools(shapes=POOL_SHAPES):
    for shape, (kernel, stride, padding), ceil_mode in itertools.product(shapes, WINDOWS, (False, True)):
        if all(n + 2 * p >= k for n, p, k in zip(shape[2:], padding, kernel)):
            yield shape, (kernel, stride, padding, (1, 1), ceil_mode)


@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pooling_backward_from_bits_is_torchs(dtype, last, kernels, monkeypatch):  # noqa: F811
    if kernels is not None:
        monkeypatch.setattr(coding, "decode", lambda *a: pytest.fail("unpacked"))
    ties = 0
    for shape, options in pools():
        x = laid_out((torch.rand(shape) < 0.25).to(dtype) * 1.25, last).requires_grad_()
        y = F.max_pool2d(x, *options)
        grad = laid_out(torch.randn_like(y), last)
        wanted, = torch.autograd.grad(y, x, grad)
        flat = coding._in_memory_order(x.detach())[0]
        code = coding.Code("bits", 1.25, shape, x.stride(), dtype)
        got = tensor.max_pool2d_backward(grad, tensor.pack(flat, "bits", 1.25), code, *options)
        assert_bit_equal(got, wanted, f"{shape} {options}")
        assert coding.same_order(got, x)
        ties += ((y == 0) & (grad != 0)).sum().item()
    assert ties > 100, "no window without a spike"


def test_pooling_backward_of_other_gradients_and_codes(kernels):  # noqa: F811
    options = ((2, 2), (2, 2), (0, 0), (1, 1), False)
    for x in ((torch.rand(2, 3, 8, 20) < 0.3).float(), torch.randint(0, 3, (2, 3, 8, 20)).float()):
        x.requires_grad_()
        y = F.max_pool2d(x, *options)
        data, code = coding.encode(x.detach())
        grads = torch.ones(()).expand(y.shape), torch.randn(2, 3, 4, 20)[..., ::2], laid_out(torch.randn(y.shape), True)
        for grad in grads:
            wanted, = torch.autograd.grad(y, x, grad, retain_graph=True)
            assert_bit_equal(tensor.max_pool2d_backward(grad, data, code, *options), wanted)
        dilated = ((2, 2), (2, 2), (1, 1), (2, 3), True)
        y = F.max_pool2d(x, *dilated)
        wanted, = torch.autograd.grad(y.sum(), x)
        assert_bit_equal(tensor.max_pool2d_backward(torch.ones_like(y), data, code, *dilated), wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_pooling_forward_is_torchs(dtype, kernels):  # noqa: F811
    """Also in the sign of zero, and where a window holds NaN or nothing above -infinity."""
    served = 0
    for shape, options in pools():
        for last in (False, True):
            x = torch.randn(shape).round().to(dtype)
            for odd, share in ((math.nan, 0.02), (-0.0, 0.2), (-math.inf, 0.3)):
                x[torch.rand(shape) < share] = odd
            x = laid_out(x, last)
            wanted, got = F.max_pool2d(x, *options), tensor.max_pool2d(x, *options)
            bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()]
            assert torch.equal(got.contiguous().view(bits), wanted.contiguous().view(bits)), (shape, options)
            assert coding.same_order(got, wanted)
            served += wanted.isnan().any().item() and (wanted == 0).any().item()
    assert served > 10


def test_the_compiled_pooling_is_used(kernels, monkeypatch):  # noqa: F811
    if kernels is not _tensor_native:
        pytest.skip("there is none")
    monkeypatch.setattr(F, "max_pool2d", lambda *a: pytest.fail("Torch's pooling ran"))
    for shape, window in (((2, 3, 8, 8), 2), ((2, 3, 7, 33), 3)):
        kernel, padding = (window,) * 2, (window // 3,) * 2
        assert tensor.max_pool2d(torch.randn(shape), kernel, (2, 2), padding, (1, 1), False).shape[:2] == shape[:2]


# ---- fake tensors, GPU sources, sanitizers ----------------------------------------------------------------------

def test_fake_tensors_give_empty_outputs():
    with FakeTensorMode():
        y = torch.empty(4, 3, 8, 8).to(memory_format=LAST)
        channel = torch.empty(3)
        scale, shift = tensor.folded(channel, channel, channel, channel)
        out = tensor.normalise(y, scale, shift)
        grads = tensor.norm_backward(torch.empty_like(y), y, channel, channel, channel, training=True)
        data, code = coding.encode(y, coding.Alphabet(1))
        pool = ((2, 2), (2, 2), (0, 0), (1, 1), False)
        pooled = tensor.max_pool2d(y, *pool)
        back = tensor.max_pool2d_backward(pooled, data, code, *pool)
    assert all(coding.is_fake(t) for t in (scale, shift, out, *grads, pooled, back))
    assert out.stride() == grads[0].stride() == back.stride() == y.stride() and pooled.shape == (4, 3, 4, 4)


needs_nvrtc = pytest.mark.skipif(_nvrtc.unavailable() is not None, reason=f"no NVRTC: {_nvrtc.unavailable()}")


@needs_nvrtc
@pytest.mark.parametrize("capability", [pytest.param(c, id=f"sm_{c}") for c in (75, 80, 90, 100, 120)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gpu_kernels_compile(dtype, capability):
    if capability not in _nvrtc.architectures():
        pytest.skip(f"NVRTC {_nvrtc.version()} does not know sm_{capability}")
    found = _tensor_cuda.compile(dtype, capability)
    assert all(name.encode() in found.image for name in _tensor_cuda.NAMES) and "warning" not in found.log
    assert found.spilled_bytes == 0 and found.registers <= 128


@needs_nvrtc
def test_gpu_kernels_round_products_and_sums_as_they_say():
    """One fused multiply-add where it is asked for, none elsewhere, and subnormals stay."""
    text = _tensor_cuda.compile(torch.float32, 990).image.decode()
    bodies = dict(re.findall(r"\.entry (\w+)\((.*?)\n}", text, re.DOTALL))
    assert sorted(bodies) == sorted(_tensor_cuda.NAMES) and ".ftz" not in text
    fused = {name for name, body in bodies.items() if "fma.rn.f32" in body}
    assert fused == {"memext_fused", "memext_normalise"}


@needs_nvrtc
def test_images_are_kept_and_found(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMEXT_CACHE", str(tmp_path))
    cuda.cache_folder.cache_clear()
    try:
        first = _tensor_cuda._image(torch.float16, 80)
        assert first.parent == tmp_path and first.read_bytes()[:4] == b"\x7fELF"
        monkeypatch.setattr(_tensor_cuda, "compile", lambda *a: pytest.fail("compiled twice"))
        assert _tensor_cuda._image(torch.float16, 80) == first and list(tmp_path.iterdir()) == [first]
    finally:
        cuda.cache_folder.cache_clear()


@pytest.mark.slow
def test_under_the_address_and_undefined_behaviour_sanitizers(tmp_path):
    try:
        compiler = _build.compiler().split()[0]
        cpu = _build.build_one("base", tmp_path, extra=_build.SANITIZE, source=_build.KERNELS / "tensor_cpu.cpp")
        shim = tensor_backends.build_shim(tmp_path, [*_build.SANITIZE, *tensor_backends.SHIM_FLAGS])
    except _build.BuildError as problem:
        pytest.skip(str(problem))
    found = [subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
             for name in ("libasan.so", "libubsan.so", "libstdc++.so")]
    if not all(os.path.isabs(path) for path in found):
        pytest.skip(f"{compiler} has no sanitizer libraries")
    env = os.environ | {"MEMEXT_TENSOR_LIB": str(cpu), "MEMEXT_TENSOR_SHIM": str(shim), "LD_PRELOAD": " ".join(found),
                        "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0"}
    here = Path(__file__).parent
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", "-k",
                           "base or gpu", str(here / "test_coding.py"), __file__], env=env, capture_output=True,
                          text=True, cwd=here.parents[1])
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert "runtime error" not in done.stderr and "AddressSanitizer" not in done.stderr
