"""The text of the GPU kernels, compiled as C++ (kernels/shim.h), against the CPU kernels: bit for bit.

Blocks of 64 threads on a grid of at most four, so that tails, idle blocks and the grid-stride loop all run. Every call
runs on fenced, poisoned copies of its memory (guards.py). MEMEXT_SHIM=path tests another build of the library.
"""
from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from guards import fenced
from helpers import (
    ALL_NEURONS,
    SURROGATES,
    assert_bit_equal,
    assert_fires,
    driving,
    error,
    name_of,
    params_for,
)

from shared_core import _build, surrogate
from shared_core.backends import _nvrtc, cuda, fused, native
from shared_core.backends._call import Call
from shared_core.dynamics import IF, LIF, Leaky, ParametricLIF
from shared_core.errors import MemextError
from shared_core.layout import layout_of
from shared_core.spec import Spec
from shared_core.surrogate import Surrogate

STEPS = (1, 4, 5, 31, 32, 33, 70)  # block sizes 4 and 32, one fewer and one more than a block, more than two
WIDTHS = (1, 7, 33, 65, 1000)  # parts of a byte, of a warp, of a block; several rounds of the grid
# float32 is bit-equal today; the promise is this: the CPU kernels run the surrogate in another loop.
GRADIENT = {torch.float32: 1e-6, torch.float64: 1e-13, torch.float16: 1e-3, torch.bfloat16: 8e-3}  # half: one rounding
# -O0: the quickest to compile, and nothing of what a kernel does wrong is optimised away.
FLAGS = ["-O0", "-pthread"]


def _problem() -> str | None:
    if native.unavailable() is not None:
        return f"needs the CPU kernels: {native.unavailable()}"
    try:
        _build.compiler()
    except _build.BuildError as error:
        return str(error)
    return None


pytestmark = pytest.mark.skipif(_problem() is not None, reason=str(_problem()))


def build(folder: Path, extra: list[str]) -> Path:
    """Compiled once per state of the sources: it takes half a minute."""
    digest = hashlib.sha256(repr((FLAGS, extra)).encode())
    for path in sorted(_build.KERNELS.glob("*")):
        if path.suffix in (".h", ".cu") or path.name == "shim.cpp":
            digest.update(path.read_bytes())
    target = folder / digest.hexdigest()[:16]
    path = _build.library_path("base", target)
    return path if path.exists() else _build.build_one("base", target, extra=[*FLAGS, *extra],
                                                       source=_build.KERNELS / "shim.cpp")


@pytest.fixture(scope="session")
def library(request):
    given = os.environ.get("MEMEXT_SHIM")
    return native._load(Path(given) if given else build(request.config.cache.mkdir("memext_shim"), []))


@pytest.fixture
def run(library):
    def call_shim(call: Call, direction: str) -> None:
        kernel = library.memext_forward if direction == "forward" else library.memext_backward
        assert kernel(call) == 0, "the shim does not know this call"

    return call_shim


@dataclass
class Case:
    """Inputs of one forward and backward."""

    spec: Spec
    x: torch.Tensor
    state: tuple
    params: tuple
    grads: tuple | None = None  # of spikes, final states, sequences; None: drawn

    def check(self, run, fires: bool = True) -> None:
        run = fenced(run, len(self.spec.dynamics.states))
        out = fused.forward(self.spec, self.x, self.state, self.params, keep=True, threads=0, run=run)
        wanted = native.forward(self.spec, self.x, self.state, self.params, keep=True)
        assert_bit_equal(out.spikes, wanted.spikes, "spikes")
        for what in ("final", "sequence"):
            for a, b in zip(getattr(out, what), getattr(wanted, what), strict=True):
                assert_bit_equal(a, b, what)
        for what in ("bits", "anchors"):
            a, b = getattr(out, what), getattr(wanted, what)
            assert (a is None) == (b is None)
            if a is not None:
                assert_bit_equal(a, b, what)
        if fires:
            assert_fires(out.spikes)
        count = len(self.spec.dynamics.states)
        grads = self.grads or (torch.randn_like(out.spikes), [torch.randn_like(f) for f in out.final],
                               [torch.randn_like(s) for s in out.sequence] or [None] * count)
        arguments = (self.spec, self.x, self.state, self.params, wanted.anchors, *grads, True,
                     [s is not None for s in self.state], [True] * len(self.params))
        got = fused.backward(*arguments, threads=0, run=run)
        expected = native.backward(*arguments)
        for a, b in zip(_flat(got), _flat(expected), strict=True):
            assert a.isfinite().all()
            assert error(a, b) <= GRADIENT[a.dtype]


def _flat(found):
    return [g for g in (found[0], *found[1], *found[2]) if g is not None]


def case(d, steps, shape, *, kind=SURROGATES[0], dtype=torch.float32, start=False, shared=True, **options) -> Case:
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    params = params_for(d, () if shared else shape, compute)
    state = tuple(torch.randn(*shape, dtype=compute) * 0.3 if start else None for _ in d.states)
    return Case(Spec(d, kind, **options), driving(d, steps, shape, params, state, dtype), state, params)


@pytest.mark.parametrize("d", ALL_NEURONS, ids=name_of)
def test_every_neuron(d, run):
    for i, steps in enumerate(STEPS):
        width = WIDTHS[(i + ALL_NEURONS.index(d)) % len(WIDTHS)]
        case(d, steps, (width,), kind=SURROGATES[i % len(SURROGATES)], start=i % 2 == 0, shared=i % 3 > 0,
             record=i % 2 == 1, bits=width in (7, 33) and steps < 33).check(run, fires=steps * width > 100)


@pytest.mark.parametrize("steps, width", [(70, 1), (33, 7), (5, 33), (4, 65), (3, 1000), (1, 256)],
                         ids=lambda v: str(v))
def test_bits(steps, width, run):
    case(LIF(0.7, -0.5, tau=3.0), steps, (width,), bits=True).check(run, fires=steps * width > 100)
    case(Leaky("zero", False), steps, (width,), bits=True, record=True).check(run, fires=steps * width > 100)


@pytest.mark.parametrize("x_type, spike_type", [(torch.float64, None), (torch.float16, None), (torch.bfloat16, None),
                                                (torch.float16, torch.float32), (torch.bfloat16, torch.float32)],
                         ids=lambda t: str(t).removeprefix("torch."))
@pytest.mark.parametrize("d", [LIF(0.7, None, tau=3.0), ParametricLIF(0.7, -0.5), Leaky("subtract", False)],
                         ids=name_of)
def test_types(d, x_type, spike_type, run):
    for steps, width in ((4, 33), (70, 65)):
        case(d, steps, (width,), dtype=x_type, spike_dtype=spike_type, start=True, shared=False, record=True).check(run)


@pytest.mark.parametrize("name", [name for name, e in surrogate.SURROGATES.items() if e.kernel_id is not None])
def test_every_surrogate(name, run):
    declared = surrogate.entry(name)
    kind = Surrogate(name, tuple(p.default for p in declared.params))
    for dtype in (torch.float32, torch.float64):
        case(IF(0.7, None), 5, (65,), kind=kind, dtype=dtype).check(run)


def test_strided_and_expanded_time(run):
    d = LIF(0.7, None, tau=3.0)
    whole = driving(d, 70, (33,))
    for x in (whole[::2], whole[:1].expand(35, 33) * 1.0, whole[:1].expand(35, 33)):
        Case(Spec(d, SURROGATES[0], record=True), x, (None,), (),
             (torch.ones(1, 33).expand(35, 33), [torch.ones(())[None].expand(33)], [torch.randn(1, 33).expand(35, 33)])
             ).check(run, fires=False)
    assert layout_of(x).sequence(x)[1] == 0, "the expanded input was copied: stride 0 is not tested"


@pytest.mark.parametrize("d", ALL_NEURONS, ids=name_of)
def test_one_step_from_its_trace(run, d):
    """Traces bit-equal to native's; gradients from them, without the input, equal to native's from the input."""
    shape, spec = (3, 33), Spec(d, SURROGATES[0])
    params, state = params_for(d), [torch.randn(shape) * 0.4 for _ in d.states]
    x = driving(d, 1, shape, params, state)
    shimmed, plain = (fused.forward(spec, x, state, params, keep=True, threads=1, run=r, traces=True)
                      for r in (run, native._run))
    assert len(shimmed.traces) == d.traces
    for a, b in zip((shimmed.spikes, *shimmed.final, *shimmed.traces), (plain.spikes, *plain.final, *plain.traces)):
        assert torch.equal(a, b)
    reads_state, _ = d.backward_reads(learn=False)
    up, ends = torch.randn(1, *shape), [torch.randn(shape) for _ in d.states]
    needs = True, [reads_state] * len(state), [False] * len(params)
    got = fused.single_step_backward(spec, x.dtype, x.device, layout_of(x), shimmed.traces,
                                     state if reads_state else [None] * len(state), params, up, ends, *needs,
                                     threads=1, run=run)
    wanted = fused.backward(spec, x, state, params, None, up, ends, [None] * len(state), *needs, threads=1,
                            run=native._run)
    for a, b in zip([got[0], *got[1]], [wanted[0], *wanted[1]]):
        # 1e-6: the same operations, but the compilers may contract the surrogate's last sums differently
        assert a is b is None or (a - b).norm() <= 1e-6 * b.norm()


def test_gradients_that_do_not_arrive(run):
    d = Leaky("zero", True)
    absent = case(d, 33, (33,), start=True)
    for grads in ((None, [torch.ones(33)], [None]), (torch.ones(33, 33), [None], [None])):
        absent.grads = grads
        absent.check(run)


def test_parameters_of_a_channel_and_other_layouts(run):
    """inner and size of Param; a permuted step, whose neurons lie in another order."""
    for shape, of_params in (((3, 5, 7), (5, 1)), ((3, 5, 7), (3, 1, 1)), ((4, 6), (6,)), ((4, 6), (4, 1))):
        d = Leaky("subtract", True)
        params = params_for(d, of_params)
        x = driving(d, 9, shape, params)
        for at in (x, x.transpose(1, 2).contiguous().transpose(1, 2)):
            Case(Spec(d, SURROGATES[0], bits=True), at, (None,), params).check(run)


def test_what_the_library_does_not_know(library):
    call = Call(steps=1, neurons=1, neuron=99)
    assert library.memext_forward(call) == 1
    assert library.memext_backward(Call(steps=1, neurons=1, surrogate=99)) == 2
    assert library.memext_forward(Call(steps=1, neurons=1, x_type=0, spike_type=2)) == 4
    assert library.memext_forward(Call(steps=1, neurons=0)) == 0


@pytest.mark.skipif(_nvrtc.unavailable() is not None, reason=f"no NVRTC: {_nvrtc.unavailable()}")
def test_the_launch_hands_over_the_call(library, monkeypatch, tmp_path):
    """backends/cuda.py from the tensors to the launch, with the shim in the place of CuPy and the device."""
    launched = []

    class Module:
        def __init__(self, path):
            assert Path(path).read_bytes()[:4] == b"\x7fELF"

        def get_function(self, name):
            def launch(grid, block, arguments):
                (argument,) = arguments
                # What CuPy passes by value: a numpy array of one element, from its first byte.
                assert isinstance(argument, np.ndarray) and argument.size == 1
                call = Call.from_buffer_copy(argument.tobytes())
                launched.append(name)
                assert (grid, block) == (((call.neurons + 127) // 128,), (128,))
                assert (library.memext_backward if "backward" in name else library.memext_forward)(call) == 0

            launch.kernel = None
            return launch

    streams = SimpleNamespace(from_external=lambda handle: nullcontext(handle.__cuda_stream__()))
    cupy = SimpleNamespace(RawModule=Module, cuda=SimpleNamespace(Device=nullcontext, Stream=streams))
    monkeypatch.setattr(cuda, "_cupy", lambda: (cupy, None))
    monkeypatch.setattr(cuda, "_functions", {})
    monkeypatch.setattr(cuda, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=77))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (8, 0))
    d = LIF(0.7, -0.5)
    x = driving(d, 9, (300,))
    spec = Spec(d, SURROGATES[0])
    for _ in range(2):
        out = cuda.forward(spec, x, (None,), (), keep=True)
        assert_bit_equal(out.spikes, native.forward(spec, x, (None,), (), keep=True).spikes)
        arguments = (spec, x, (None,), (), None, torch.ones_like(x), [None], [None], True, [False], [])
        assert error(cuda.backward(*arguments)[0], native.backward(*arguments)[0]) <= GRADIENT[torch.float32]
    assert launched == ["memext_forward_lif3_float_float", "memext_backward16_atan_lif3_float_float"] * 2
    assert len(list(tmp_path.iterdir())) == 2, "one image a kernel"
    cuda.forward(spec, x[:, :0], (None,), (), keep=True)
    assert len(launched) == 4, "no neurons, no launch"
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    cuda.forward(spec, x, (None,), (), keep=True)
    with pytest.raises(MemextError, match="one iteration"):
        cuda.forward(Spec(IF(), SURROGATES[0]), x, (None,), (), keep=True)


@pytest.mark.slow
def test_under_the_address_and_undefined_behaviour_sanitizers(tmp_path):
    compiler = _build.compiler().split()[0]
    found = [subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True).stdout.strip()
             for name in ("libasan.so", "libubsan.so")]
    if not all(os.path.isabs(path) for path in found):
        pytest.skip(f"{compiler} has no sanitizer libraries")
    path = build(tmp_path, [*_build.SANITIZE, "-O0"])
    # Leaks are Python's own; Torch and the sanitizers both bring runtime symbols of the same names.
    env = {**os.environ, "MEMEXT_SHIM": str(path), "LD_PRELOAD": " ".join(found),
           "ASAN_OPTIONS": "detect_leaks=0:detect_odr_violation=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow", "-k", "shim",
               __file__, str(Path(__file__).with_name("test_kernel_rebuild.py"))]
    done = subprocess.run(command, env=env, capture_output=True, text=True,
                          cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "runtime error" not in done.stderr and "AddressSanitizer" not in done.stderr
