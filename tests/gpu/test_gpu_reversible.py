"""The reversible neuron on a GPU: bit for bit the CPU's outputs, inverse exact, gradients the CPU's, no memory."""
from __future__ import annotations

import pytest
import torch
from helpers import assert_bit_equal, error

from shared_core import surrogate
from shared_core.errors import MemextError
from shared_core.reversible.neuron import Equations, invert, is_invertible, multi_step

pytestmark = pytest.mark.gpu
GRADIENT = {torch.float32: 1e-5, torch.float64: 1e-12}  # the same operations; surrogates in the kernel's own form
EQUATIONS = [Equations(2, 1.7, 0.13, 0.8, 0.4, -0.1), Equations(3, 2.0, 0.1, 1.0, 0.5, 0.0, strict=True),
             Equations(6, 1.3, 0.2, -1.3, 0.4, -0.2)]
ATAN = surrogate.atan(alpha=2.0)


def both(eq, x, v, sg=ATAN, dim=-1):
    found = []
    for device, backend in (("cpu", "torch"), ("cuda", "cuda")):
        leaves = [t.to(device).detach().requires_grad_() for t in (x, v)]
        y, final = multi_step(eq, *leaves, surrogate=sg, split_dim=dim, backend=backend)
        w = torch.linspace(-1, 1, y.numel(), dtype=y.dtype, device=device).view(y.shape)
        grads = torch.autograd.grad((y * w).sum() + final.sum(), leaves)
        found.append([t.cpu() for t in (y, final, *grads)])
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("eq", EQUATIONS, ids=lambda eq: f"g{eq.groups}")
@pytest.mark.parametrize("steps", [1, 4, 5, 16, 32, 33, 70])
def test_the_cpus_outputs_and_gradients(steps, eq, dtype):
    for shape, dim in (((3, 5, 12), -1), ((2, 12, 5, 7), 1), ((1, 6), -1), ((1000, 12), -1)):
        x = torch.randn(steps, *shape, dtype=dtype) * 0.8 + 0.3
        cpu, gpu = both(eq, x, torch.randn(shape, dtype=dtype) * 0.3, dim=dim)
        assert_bit_equal(gpu[0], cpu[0])
        assert_bit_equal(gpu[1], cpu[1])
        assert all(error(g, w) <= GRADIENT[dtype] for g, w in zip(gpu[2:], cpu[2:]))


@pytest.mark.parametrize("name", list(surrogate.SURROGATES))
def test_each_surrogate(name):
    sg = surrogate.get(name)
    if sg.kernel_id is None:
        pytest.skip("has no kernel")
    cpu, gpu = both(EQUATIONS[0], torch.randn(6, 40, 12), torch.zeros(40, 12), sg)
    assert_bit_equal(gpu[0], cpu[0])
    assert error(gpu[2], cpu[2]) <= 1e-5


def test_the_inverse_is_exact():
    """In plain Torch on the GPU, after the kernel's forward pass."""
    eq, x = EQUATIONS[0], torch.randn(100, 64, 128) * 0.7 + 0.3
    y, _ = multi_step(eq, x.cuda(), surrogate=ATAN, backend="cuda")
    found, before = invert(eq, y, surrogate=ATAN)
    wanted, potentials = invert(eq, multi_step(eq, x, surrogate=ATAN, backend="torch")[0], surrogate=ATAN)
    assert_bit_equal(found.cpu(), wanted)
    assert_bit_equal(before.cpu(), potentials)
    assert is_invertible(eq, x.cuda(), surrogate=ATAN)


def test_memory_is_the_output():
    eq, x = EQUATIONS[0], torch.randn(8, 32, 64, 32, 32, device="cuda", requires_grad=True)
    multi_step(eq, x, surrogate=ATAN)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    y, v = multi_step(eq, x, surrogate=ATAN)
    grown = torch.cuda.memory_allocated() - before
    assert grown <= (y.numel() + v.numel()) * 4 + 4096  # the two outputs, and a block of the allocator for eight bytes
    torch.cuda.reset_peak_memory_stats()
    y.sum().backward()
    assert torch.cuda.max_memory_allocated() - before <= 4 * x.numel() * 4


def test_out_of_range_is_an_error_and_half_precision_gives_float32():
    x = torch.full((3, 4, 8), 130.0, device="cuda", requires_grad=True)
    y, _ = multi_step(Equations(), x, surrogate=ATAN)
    with pytest.raises(MemextError, match="127"):
        y.sum().backward()
    half = torch.randn(3, 4, 8, device="cuda", dtype=torch.float16, requires_grad=True)
    y, _ = multi_step(Equations(), half, surrogate=ATAN)
    assert y.dtype == torch.float32
    y.sum().backward()
    assert half.grad.dtype == torch.float16


def test_a_stream_of_its_own():
    x = torch.randn(20, 64, 128, device="cuda", requires_grad=True)
    wanted, _ = multi_step(EQUATIONS[0], x, surrogate=ATAN)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y, _ = multi_step(EQUATIONS[0], x, surrogate=ATAN)
        y.sum().backward()
    torch.cuda.current_stream().wait_stream(stream)
    assert_bit_equal(y, wanted)
