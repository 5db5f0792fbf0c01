"""The surrogate table: kernels against Torch formulas, ids, the reference spike, errors."""
import copy
import ctypes
import pickle
import re
import subprocess

import numpy as np
import pytest
import torch

from shared_core import surrogate as sg
from shared_core._build import FLAGS, KERNELS, BuildError, compiler, instruction_sets
from shared_core.errors import MemextError

KINDS = [(int(i), struct, name) for i, struct, name in
         re.findall(r'X\((\d+), (\w+), "(\w+)"\)', (KERNELS / "surrogate.h").read_text())]
# Parameters other than the defaults; exact in float32, so that both precisions put the edges at the same z.
OTHER = {
    "sigmoid": (25.0,), "atan": (0.5,), "piecewise_quadratic": (4.0,), "piecewise_exp": (8.0,), "soft_sign": (0.25,),
    "super_spike": (3.0,), "nonzero_sign_log_abs": (0.5,), "erf": (0.75,), "piecewise_leaky_relu": (0.5, 0.125),
    "squarewave_fourier_series": (7, 2.0), "s2nn": (2.0, 0.5), "q_pseudo_spike": (100.0,),
    "leaky_k_relu": (0.25, -2.0), "fake_numerical_gradient": (4.0,), "log_tailed_relu": (0.125,), "rect": (0.25,),
    "fast_sigmoid": (5.0,), "triangular": (0.5,), "spike_rate_escape": (0.5, 3.0), "sparse_fast_sigmoid": (2.0, -0.5),
}
CASES = [pytest.param(name, params, id=f"{name}{list(params)}") for _, _, name in KINDS
         for params in [sg.get(name).params, *([OTHER[name]] if name in OTHER else [])]]


def build(folder, march, *extra, reals=("float", "double")):
    """One function per surrogate and precision, a line each. Returns library, source and the compiler's report."""
    lines = ['#include "surrogate.h"']
    for real in reals:
        for _, struct, name in KINDS:
            lines.append(f'extern "C" void {name}_{real}(const {real}* __restrict z, {real}* __restrict g, long n, '
                         f"const {real}* a) {{ {real} p[4]; for (int k = 0; k < 4; k++) p[k] = a[k]; "
                         f"for (long i = 0; i < n; i++) g[i] = memext::{struct}::grad(z[i], p); }}")
    cpp, target = folder / "surrogates.cpp", folder / "surrogates.so"
    cpp.write_text("\n".join(lines))
    try:
        command = [*compiler().split(), *FLAGS, *march, f"-I{KERNELS}", *extra, str(cpp), "-o", str(target)]
    except BuildError as error:
        pytest.skip(str(error))
    report = subprocess.run(command, check=True, capture_output=True, text=True).stderr
    return target, cpp, report


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return ctypes.CDLL(str(build(tmp_path_factory.mktemp("surrogates"), instruction_sets()["base"])[0]))


def kernel(library, name, params, z):
    """The compiled gradient, in the precision of z (numpy array)."""
    real = {np.dtype(np.float32): "float", np.dtype(np.float64): "double"}[z.dtype]
    a, out = np.zeros(4, z.dtype), np.full_like(z, np.nan)
    a[:len(params)] = params
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (z, out, a)]
    getattr(library, f"{name}_{real}")(pointers[0], pointers[1], ctypes.c_long(z.size), pointers[2])
    return out


def grid():
    """Dense around the threshold, every edge of CASES and the floats beside it, zero of both signs, tiny, large."""
    edges = np.float32([0.125, 0.25, 0.5, 1, 2, 4])
    edges = np.concatenate([edges, np.nextafter(edges, np.float32(9)), np.nextafter(edges, np.float32(0))])
    edges = np.concatenate([edges, -edges, np.float32([0.0, -0.0, 3e-45, -1e-44, 1e-30, -1e-30])])
    return np.concatenate([edges, np.linspace(-6, 6, 2401, dtype=np.float32), np.float32([-90, -37.5, 33, 77])])


# ---- one table, two languages --------------------------------------------------------------------------------------


def test_ids_and_names_agree_with_the_header():
    assert len(KINDS) > 20
    table = {name: entry.kernel_id for name, entry in sg.SURROGATES.items() if entry.owner == sg.__name__}
    assert table == {name: i for i, _, name in KINDS}
    assert [i for i, _, _ in KINDS] == list(range(len(KINDS)))


def test_parameter_counts_agree_with_the_header():
    text = (KERNELS / "surrogate.h").read_text()
    counts = dict(re.findall(r"struct (\w+) \{\s*static constexpr int kParams = (\d+);", text))
    for _, struct, name in KINDS:
        assert int(counts[struct]) == len(sg.SURROGATES[name].params), name


@pytest.mark.parametrize("name, params", CASES)
def test_kernel_against_torch(library, name, params):
    z = grid()
    exact = sg.Surrogate(name, params).grad(torch.from_numpy(z).double()).numpy()
    double = kernel(library, name, params, z.astype(np.float64))
    single = kernel(library, name, params, z)
    norm = np.linalg.norm(exact)
    assert norm > 0 or name == "none"
    assert np.linalg.norm(double - exact) <= 1e-13 * norm
    assert np.linalg.norm(single - exact) <= 1e-6 * norm
    assert np.all(np.abs(single - exact) <= 2e-6 * np.abs(exact).max())  # no single point hides in the norm


@pytest.mark.parametrize("name, params", CASES)
def test_kernel_is_finite_for_every_finite_z(library, name, params):
    z = np.random.default_rng(1).integers(0, 2**32, 200_000, dtype=np.uint32).view(np.float32)
    z = np.concatenate([z[np.isfinite(z)], grid(), np.float32([3.4e38, -3.4e38])])
    assert np.isfinite(kernel(library, name, params, z)).all()


def test_steep_sigmoid_is_finite_where_the_textbook_formula_is_not(library):
    """slope exp(-slope z) / (exp(-slope z) + 1)^2 is inf / inf below -3.55 at slope 25 (snnTorch 1.0.0)."""
    z = np.float32([-3.4, -3.6, -10, 10])
    assert np.all(kernel(library, "sigmoid", (25.0,), z) >= 0)
    assert torch.isfinite(sg.sigmoid(25.0).grad(torch.from_numpy(z))).all()


@pytest.mark.parametrize("name", ["atan", "sigmoid", "piecewise_quadratic", "erf", "fast_sigmoid", "q_pseudo_spike"])
def test_nan_stays_nan(library, name):
    assert np.isnan(kernel(library, name, sg.get(name).params, np.float32([np.nan]))).all()


def test_every_float_loop_is_vectorised(tmp_path):
    """gcc's own report. A loop left scalar costs about 4 to 8 times the time."""
    if "clang" in subprocess.run([*compiler().split(), "--version"], capture_output=True, text=True).stdout:
        pytest.skip("the report read here is gcc's")
    if "avx2" not in instruction_sets():
        pytest.skip("looks for the vectors of x86")
    for isa in ("base", "avx2"):
        _, cpp, report = build(tmp_path, instruction_sets()[isa], "-fopt-info-vec-optimized", reals=("float",))
        width = {"base": 16, "avx2": 32}[isa]
        lines = {int(n) for n in re.findall(rf"{cpp.name}:(\d+):\d+: optimized: loop vectorized using {width}", report)}
        scalar = [name for i, (_, _, name) in enumerate(KINDS) if 2 + i not in lines]
        assert scalar == ["none"], isa  # becomes a memset


# ---- the Torch side --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", sg.SURROGATES)
def test_grad_keeps_dtype_and_shape(name, dtype):
    z = torch.linspace(-2, 2, 12, dtype=dtype).reshape(3, 4)
    g = sg.get(name).grad(z)
    assert g.dtype == dtype and g.shape == z.shape and torch.isfinite(g).all()


@pytest.mark.parametrize("strict, at_threshold", [(False, 1.0), (True, 0.0)])
def test_spike_fires_at_the_threshold_unless_strict(strict, at_threshold):
    z = torch.tensor([-1.0, 0.0, -0.0, 1e-45, 2.0], dtype=torch.float16 if strict else torch.float64)
    s = sg.spike(torch.tensor([-1.0, 0.0, -0.0, 1e-30, 2.0]), sg.atan(), strict=strict)
    assert s.tolist() == [0.0, at_threshold, at_threshold, 1.0, 1.0]
    assert sg.spike(z, sg.atan(), strict=strict).dtype == z.dtype


@pytest.mark.parametrize("name", sg.SURROGATES)
def test_spike_backward_and_double_backward(name):
    surrogate = sg.get(name)
    z = torch.tensor([-1.7, -0.9, -0.4, -0.1, 0.05, 0.3, 0.7, 1.3], dtype=torch.float64, requires_grad=True)
    upstream = torch.arange(1.0, 9.0, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(sg.spike(z, surrogate, strict=False), z, upstream, create_graph=True)
    assert torch.equal(grad, upstream * surrogate.grad(z))
    if not surrogate.grad(z).requires_grad:  # a step: the second derivative is 0
        return
    (second,) = torch.autograd.grad(grad.sum(), z)
    eps = 1e-6
    numeric = upstream * (surrogate.grad(z + eps) - surrogate.grad(z - eps)) / (2 * eps)
    torch.testing.assert_close(second, numeric, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", sg.SURROGATES)
def test_second_derivative_has_no_nan(name):
    """torch.where passes 0 * inf on from the branch not taken; formulas must keep that branch finite."""
    z = torch.tensor([-1.0, 0.0, -0.0, 1.0, 1e-38, 300.0], requires_grad=True)
    g = sg.get(name).grad(z)
    if g.requires_grad:
        assert torch.isfinite(torch.autograd.grad(g.sum(), z)[0]).all()


def test_spike_under_vmap():
    z = torch.randn(3, 5)
    grad = torch.func.vmap(torch.func.grad(lambda z: sg.spike(z, sg.atan(), strict=False).sum()))(z)
    torch.testing.assert_close(grad, sg.atan().grad(z))


@pytest.mark.parametrize("name, params, primitive", [
    ("rectangle", {"gamma": 0.5}, lambda z: (z / 0.5 + 0.5).clamp(0, 1)),
    ("triangle", {"gamma": 1.5}, lambda z: 0.5 + z / 1.5 - z * z.abs() / (2 * 1.5**2)),
    ("arctan", {}, lambda z: torch.atan(torch.pi * z) / torch.pi + 0.5),
])
def test_papers_surrogates_are_derivatives_of_their_primitives(name, params, primitive):
    z = torch.linspace(-1.49, 1.49, 401, dtype=torch.float64)
    z = z[(z.abs() - 0.25).abs() > 1e-3].requires_grad_()
    torch.testing.assert_close(sg.get(name, **params).grad(z), torch.autograd.grad(primitive(z).sum(), z)[0])


def test_papers_surrogates_at_the_papers_values():
    z = torch.tensor([-1.0, -0.5, 0.0, 0.25, 0.5, 1.0], dtype=torch.float64)
    assert sg.rectangle(1.0).grad(z).tolist() == [0, 0, 1, 1, 0, 0]        # SLTT Eq. 5: |u - V_th| < gamma / 2
    assert sg.triangle(1.0).grad(z).tolist() == [0, 0.5, 1, 0.75, 0.5, 0]  # SLTT Eq. 6
    torch.testing.assert_close(sg.arctan().grad(z), 1 / (1 + (torch.pi * z) ** 2))
    assert sg.triangle(2.0) == sg.piecewise_quadratic(0.5) and sg.rectangle(2.0) == sg.rect(0.5)


# ---- values, names, errors -------------------------------------------------------------------------------------------


def test_a_surrogate_is_a_value():
    a = sg.get("fast_sigmoid", slope=10)
    assert a == sg.fast_sigmoid(10.0) and hash(a) == hash(sg.fast_sigmoid(10.0)) and a != sg.fast_sigmoid(11)
    assert pickle.loads(pickle.dumps(a)) == a == copy.deepcopy(a)
    assert a.params == (10.0,) and a.kernel_id == 17 and a.fn is None and a.alphabet == "binary"
    assert sg.get("sigmoid") == sg.sigmoid() == sg.Surrogate("sigmoid", (4.0,))


@pytest.mark.parametrize("call, words", [
    (lambda: sg.atan(-1.0), ["atan", "alpha=-1.0", "> 0"]),
    (lambda: sg.atan(float("nan")), ["alpha=nan"]),
    (lambda: sg.atan(True), ["alpha=True"]),
    (lambda: sg.atan(torch.tensor(2.0)), ["opaque"]),
    (lambda: sg.q_pseudo_spike(1.0), ["> 1"]),
    (lambda: sg.squarewave_fourier_series(2.5), ["n=2.5", "integer >= 1"]),
    (lambda: sg.triangle(0.0), ["triangle", "gamma=0.0"]),
    (lambda: sg.get("atn"), ["'atn'", "'atan'", "'triangle'"]),
    (lambda: sg.get("atan", beta=2.0), ["beta", "alpha"]),
    (lambda: sg.get("triangle", alpha=2.0), ["alpha", "gamma"]),
    (lambda: sg.Surrogate("atan"), ["0 parameters", "alpha"]),
    (lambda: sg.opaque(None, name="mine"), ["mine"]),
    (lambda: sg.opaque(torch.sign, name="mine", alphabet="ternary"), ["ternary", "integer"]),
    (lambda: sg.opaque(torch.sign, name="mine").grad(torch.zeros(1)), ["mine", "opaque"]),
])
def test_errors_say_what_was_passed_and_what_is_allowed(call, words):
    with pytest.raises(MemextError) as error:
        call()
    for word in words:
        assert word in str(error.value)


def test_opaque_runs_the_function_itself():
    mine = sg.opaque(lambda z: z.sign(), name="ternary", alphabet="integer")
    assert mine.kernel_id is None
    assert sg.spike(torch.tensor([-2.0, 0.0, 3.0]), mine, strict=True).tolist() == [-1, 0, 1]


def test_register(monkeypatch):
    monkeypatch.setattr(sg, "SURROGATES", dict(sg.SURROGATES))

    def halved(z, alpha):
        """alpha/2"""
        return torch.full_like(z, alpha / 2)

    make = sg.register("halved", grad=halved, params=(sg.Parameter("alpha", 3.0),))
    assert make(alpha=1.0) == sg.get("halved", alpha=1.0) and make().params == (3.0,)
    assert make().kernel_id is None and make().grad(torch.zeros(2)).tolist() == [1.5, 1.5]
    sg.register("halved", grad=halved, params=(sg.Parameter("alpha", 3.0),))  # the same again is fine
    for taken, owner in (("halved", __name__), ("atan", sg.__name__), ("triangle", sg.__name__)):
        with pytest.raises(MemextError) as error:
            sg.register(taken, grad=lambda z: z, owner="another_package")
        assert owner in str(error.value) and "another_package" in str(error.value)
