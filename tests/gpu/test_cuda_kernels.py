"""The GPU kernels on a GPU. The referee is the CPU result: spikes, states and bits the same, bit for bit."""
from __future__ import annotations

import functools

import pytest
import torch
from helpers import ALL_NEURONS, SURROGATES, assert_bit_equal, assert_fires, driving, error, name_of, params_for

from shared_core import functional, surrogate
from shared_core.backends import cuda, native
from shared_core.dynamics import IF, LIF, Leaky, ParametricLIF
from shared_core.errors import MemextError
from shared_core.surrogate import Surrogate

pytestmark = pytest.mark.gpu

STEPS = (1, 4, 5, 8, 13, 16, 31, 32, 33, 70)  # every block size, at its edge and inside
WIDTHS = (1, 7, 33, 129, 10_007)
# The same operations in the same order; float64 calls each platform's exp and pow. Half: rounded once on the way out.
GRADIENT = {torch.float32: 1e-6, torch.float64: 1e-12, torch.float16: 1e-3, torch.bfloat16: 8e-3}


@pytest.fixture(autouse=True)
def kernels_are_there():
    if cuda.unavailable() or native.unavailable():
        pytest.skip(f"{cuda.unavailable() or native.unavailable()}")


def run(device, d, x, state, params, view=lambda x: x, **options):
    """Outputs and gradients of x, states and parameters, all on the CPU. view: applied to x on the device."""
    backend = "cuda" if device == "cuda" else "native"
    leaf = lambda t: None if t is None else t.detach().to(device).requires_grad_()  # noqa: E731
    x, state, params = leaf(x), [leaf(s) for s in state], [leaf(p) for p in params]
    out = functional.multi_step(d, view(x), state, params, backend=backend, **options)
    outputs = (out.spikes, *out.state, *out.sequence)
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(o.shape, generator=generator).to(device, o.dtype) for o in outputs]
    grads = torch.autograd.grad(outputs, [t for t in (x, *state, *params) if t is not None], weights)
    kept = [t.detach().cpu() for t in (*outputs, *(() if out.bits is None else (out.bits,)))]
    return kept, [g.cpu() for g in grads]


def compare(d, x, state=None, params=(), fires=True, same_gradients=False, **options):
    state = state or (None,) * len(d.states)
    options = {"surrogate": SURROGATES[0], **options}
    (got, got_grads), (wanted, wanted_grads) = (run(device, d, x, state, params, **options)
                                                for device in ("cuda", "cpu"))
    for a, b in zip(got, wanted, strict=True):
        assert_bit_equal(a, b, d.name)
    if fires:
        assert_fires(got[0])
    for a, b in zip(got_grads, wanted_grads, strict=True):
        assert a.isfinite().all() and error(a, b) <= GRADIENT[a.dtype], (d.name, error(a, b))
        assert not same_gradients or torch.equal(a, b)


@pytest.mark.parametrize("d", ALL_NEURONS, ids=name_of)
def test_every_neuron(d):
    for i, steps in enumerate(STEPS):
        width = WIDTHS[(i + ALL_NEURONS.index(d)) % len(WIDTHS)]
        params = params_for(d, () if i % 3 else (width,))
        state = tuple(torch.randn(width) * 0.3 if i % 2 else None for _ in d.states)
        compare(d, driving(d, steps, (width,), params, state), state, params, fires=steps * width > 100,
                surrogate=SURROGATES[i % len(SURROGATES)], record=i % 2 == 0, bits=i % 3 != 1)


@pytest.mark.parametrize("name", [name for name, e in surrogate.SURROGATES.items() if e.kernel_id is not None])
def test_every_surrogate(name):
    kind = Surrogate(name, tuple(p.default for p in surrogate.entry(name).params))
    for dtype in (torch.float32, torch.float64):
        d = IF(0.7, None)
        compare(d, driving(d, 5, (4099,), dtype=dtype), surrogate=kind)


@pytest.mark.parametrize("spikes", [None, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_types(dtype, spikes):
    for d in (LIF(0.7, -0.5, tau=3.0), ParametricLIF(0.7, None), Leaky("zero", False)):
        params = params_for(d, (1001,), torch.float64 if dtype == torch.float64 else torch.float32)
        x = driving(d, 37, (1001,), params, dtype=dtype)
        compare(d, x, None, params, spike_dtype=spikes, record=True, bits=True)


def test_subnormal_numbers_are_kept():
    d = LIF(0.7, None, tau=1.7, decay_input=False)
    x = driving(d, 40, (1001,)) * 0
    x[0] = torch.linspace(-1e-38, 1e-38, 1001)  # decays through the subnormal range
    compare(d, x, fires=False, record=True)
    half = torch.full((9, 1001), 2.0**-24, dtype=torch.float16)  # the smallest float16
    compare(IF(2.0**-22, 0.0), half, record=True, fires=False)


def test_half_conversions_are_those_of_the_cpu():
    """Every finite value in, and a rounded sum of two numbers out."""
    d = IF(float("inf"), None, detach_reset=True)  # never fires: h is the input, its gradient gs + e
    for dtype in (torch.float16, torch.bfloat16):
        every = torch.arange(-2**15, 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
        every = every[every.isfinite()]
        compare(d, every[None], fires=False, same_gradients=True, record=True, surrogate=surrogate.straight_through())


@pytest.mark.parametrize("view", [
    lambda x: x.contiguous(memory_format=torch.channels_last_3d),
    lambda x: x.transpose(2, 3),
    lambda x: x[::2],
    lambda x: x[:, :, :, ::2],
    lambda x: x[:1].expand_as(x),
], ids=["channels_last", "transposed", "every other step", "holes", "expanded"])
def test_layouts(view):
    d = Leaky("subtract", True)
    x = driving(d, 10, (3, 5, 5, 9), params_for(d))
    compare(d, x, None, params_for(d, (5, 1, 1)), bits=True, fires=False, view=view)


def test_gradients_expanded_over_time_and_absent_ones():
    d = LIF(0.7, -0.5)
    x = driving(d, 40, (1001,))
    found = []
    for device, backend in (("cuda", "cuda"), ("cpu", "native")):
        leaf = x.to(device).requires_grad_()
        out = functional.multi_step(d, leaf, surrogate=SURROGATES[0], backend=backend)
        found.append((torch.autograd.grad(out.spikes.sum(), leaf, retain_graph=True)[0].cpu(),
                      torch.autograd.grad(out.state[0].sum(), leaf)[0].cpu()))
    for a, b in zip(*found, strict=True):
        assert error(a, b) <= GRADIENT[torch.float32] and a.norm() > 0


def test_scalar_parameter_on_the_cpu():
    d = Leaky("subtract", True)
    params = params_for(d)
    x = driving(d, 9, (100,), params).cuda()
    out = functional.multi_step(d, x, None, params, surrogate=SURROGATES[0], backend="cuda")
    wanted = functional.multi_step(d, x.cpu(), None, params, surrogate=SURROGATES[0], backend="native")
    assert_bit_equal(out.spikes.cpu(), wanted.spikes)


def test_no_neurons():
    x = torch.zeros(3, 0, 5, device="cuda")
    out = functional.multi_step(IF(), x, surrogate=SURROGATES[0], bits=True, backend="cuda")
    assert out.spikes.shape == (3, 0, 5) and out.bits.shape == (3, 0)


def test_a_stream_of_the_users_own():
    """The kernel waits for what the stream's earlier work writes, and later work waits for the kernel."""
    d = LIF(0.7, None, tau=3.0)
    x = driving(d, 16, (200_003,))
    wanted, _ = run("cpu", d, x, (None,), (), surrogate=SURROGATES[0])
    source, stream = x.cuda(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        late = torch.full_like(source, float("nan"))
        torch.cuda._sleep(50_000_000)
        late.copy_(source)
        out = functional.multi_step(d, late, surrogate=SURROGATES[0], backend="cuda")
        late.fill_(float("nan"))  # after the kernel, on the same stream
        copy = out.spikes.clone()
    stream.synchronize()
    assert_bit_equal(copy.cpu(), wanted[0])


def test_the_second_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    d = LIF(0.7, None)
    x = driving(d, 9, (1001,))
    out = functional.multi_step(d, x.to("cuda:1"), surrogate=SURROGATES[0], backend="cuda")
    assert out.spikes.device.index == 1 and torch.cuda.current_device() == 0
    assert_bit_equal(out.spikes.cpu(), functional.multi_step(d, x, surrogate=SURROGATES[0]).spikes)


def test_autocast():
    torch.backends.cudnn.deterministic = True
    net = torch.nn.Conv2d(3, 8, 3).cuda()
    image = torch.randn(6, 3, 16, 16, device="cuda")
    for dtype in (torch.float16, torch.bfloat16):
        with torch.autocast("cuda", dtype):
            current = net(image)
            out = functional.multi_step(LIF(0.2, 0.0), current.view(3, 2, 8, 14, 14), surrogate=SURROGATES[0],
                                        backend="cuda")
        assert current.dtype == out.spikes.dtype == dtype and out.state[0].dtype == torch.float32
        wanted = functional.multi_step(LIF(0.2, 0.0), current.detach().cpu().view(3, 2, 8, 14, 14),
                                       surrogate=SURROGATES[0])
        assert_bit_equal(out.spikes.detach().cpu(), wanted.spikes)
        assert_fires(wanted.spikes, 0.01)
        out.spikes.float().sum().backward()
        assert net.weight.grad.isfinite().all() and net.weight.grad.norm() > 0


def test_a_cuda_graph():
    d = ParametricLIF(0.7, -0.5)
    q = torch.tensor(0.4, device="cuda", requires_grad=True)
    data = [driving(d, 40, (10_007,), (q.detach().cpu(),)).cuda() for _ in range(2)]
    x = data[0].clone().requires_grad_()

    def step():
        out = functional.multi_step(d, x, None, (q,), surrogate=SURROGATES[0], bits=True, backend="cuda")
        return out.spikes, out.bits, *torch.autograd.grad(out.spikes.sum(), (x, q))

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(data[1])
    graph.replay()
    torch.cuda.synchronize()
    for a, b in zip(captured, step(), strict=True):
        assert torch.equal(a, b)
    assert_fires(captured[0])


def test_a_graph_without_a_warm_up_is_refused_with_the_remedy():
    x = torch.randn(3, 50, device="cuda", dtype=torch.float64)
    cuda._functions.clear()
    with pytest.raises(MemextError, match="one iteration"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        functional.multi_step(LIF(0.123), x, surrogate=SURROGATES[0], backend="cuda")
    torch.cuda.synchronize()


def test_more_than_two_to_the_31_elements():
    steps, width = 4, 2**29 + 37
    if torch.cuda.get_device_properties(0).total_memory < 32 << 30:
        pytest.skip("needs 32 GiB on the device")
    d = LIF(0.7, -0.5)
    x = torch.empty(steps, width, dtype=torch.float16, device="cuda").normal_(0.7, 0.8).requires_grad_()
    out = functional.multi_step(d, x, surrogate=SURROGATES[0], bits=True, backend="cuda")
    (grad,) = torch.autograd.grad(out.spikes, x, torch.ones((), device="cuda", dtype=torch.float16).expand_as(x))
    for part in (slice(0, 4096), slice(width - 4099, width)):
        at = x[:, part].detach().cpu().requires_grad_()
        wanted = functional.multi_step(d, at, surrogate=SURROGATES[0])
        assert_bit_equal(out.spikes[:, part].detach().cpu(), wanted.spikes.detach())
        (expected,) = torch.autograd.grad(wanted.spikes.sum(), at)
        assert error(grad[:, part].cpu(), expected) <= GRADIENT[torch.float16]
    unused = -width % 8
    assert (out.bits[:, -1] >> (8 - unused) == 0).all()


# ---- against the frameworks' own GPU code: reported, and asserted where the rounding is known to agree -----------


def flips(got, wanted) -> float:
    """Differing spikes per 1e9."""
    return (got != wanted).sum().item() / got.numel() * 1e9


# Eager Torch on CUDA multiplies by the reciprocal of tau, which is exact for a power of two only.
EXACT = [IF(0.7, 0.0), IF(0.7, None), LIF(0.7, 0.0, tau=2.0), LIF(0.7, None, tau=2.0, decay_input=False)]
REPORTED = [LIF(0.7, -0.5, tau=3.0), LIF(0.7, None, tau=1.7, decay_input=False), ParametricLIF(0.7, 0.0),
            Leaky("subtract", True), Leaky("zero", False)]


@pytest.mark.parametrize("d", [*EXACT, *REPORTED], ids=name_of)
def test_flips_against_eager_torch(d, record_property):
    params = [p.cuda() for p in params_for(d)]
    x = torch.randn(16, 1_000_003, device="cuda") * 0.8 + 0.35
    call = functools.partial(functional.multi_step, d, x, None, params, surrogate=SURROGATES[0])
    found = flips(call(backend="cuda").spikes, call(backend="reference").spikes)
    record_property("flips_per_1e9", found)
    print(f"{name_of(d)}: {found:.1f} flips per 1e9 spikes against eager Torch on CUDA")
    if d in EXACT:
        assert found == 0


@pytest.mark.parametrize("d", [*EXACT, LIF(0.7, -0.5, tau=3.0)], ids=name_of)
def test_flips_against_spikingjelly(d, record_property):
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    options = {"v_threshold": d.v_th, "v_reset": d.v_reset, "step_mode": "m"}
    if isinstance(d, LIF):
        options |= {"tau": d.tau, "decay_input": d.decay_input}
    node = (neuron.LIFNode if isinstance(d, LIF) else neuron.IFNode)(**options).cuda()
    x = torch.randn(16, 1_000_003, device="cuda") * 0.8 + 0.35
    with torch.no_grad():
        theirs = node(x)
    found = flips(functional.multi_step(d, x, surrogate=SURROGATES[0], backend="cuda").spikes, theirs)
    record_property("flips_per_1e9", found)
    print(f"{name_of(d)}: {found:.1f} flips per 1e9 spikes against SpikingJelly on CUDA")
    if d in EXACT:
        assert found == 0
