"""kernels/math.h against float64: every 2053rd float there is, denormals, overflow, NaN; same bits on each -march."""
import ctypes
import math
import subprocess

import numpy as np
import pytest
import torch

from shared_core._build import FLAGS, KERNELS, BuildError, compiler, instruction_sets

# Largest error in ulp. math.h promises 2 (2.5 for the two parts of surrogates); these are what was measured over
# every 61st of the 2^32 floats, rounded up.
BOUNDS = {"exp": 1.0, "log": 1.0, "tanh": 1.5, "erf": 1.5, "sigmoid": 1.5, "sinpi_reduced": 2.5, "exp2_decay": 2.5}
REFERENCE = {
    "exp": torch.exp, "log": torch.log, "tanh": torch.tanh, "erf": torch.erf, "exp2_decay": torch.exp2,
    "sigmoid": lambda x: torch.exp(-torch.relu(-x)) / (1 + torch.exp(-x.abs())),
    "sinpi_reduced": lambda x: torch.sin(math.pi * x),
}
STRIDE = 2053  # a prime: the low bits of the floats take all values
SOURCE = '#include "math.h"\n' + "\n".join(
    f'extern "C" void mx_{name}(const float* __restrict x, float* __restrict y, long n)'
    f" {{ for (long i = 0; i < n; i++) y[i] = memext::{name}(x[i]); }}" for name in [*BOUNDS, "rint"]
) + """
extern "C" void mx_pow(const float* __restrict x, const float* __restrict p, float* __restrict y, long n)
{ for (long i = 0; i < n; i++) y[i] = memext::pow(x[i], p[i]); }
"""


def build(folder, march):
    source, target = folder / "math.cpp", folder / f"math{len(march)}{''.join(march)}.so"
    source.write_text(SOURCE)
    try:
        command = [*compiler().split(), *FLAGS, *march, f"-I{KERNELS}", str(source), "-o", str(target)]
    except BuildError as error:
        pytest.skip(str(error))
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(target))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    return build(tmp_path_factory.mktemp("math"), instruction_sets()["base"])


def call(library, name, *inputs):
    out = np.full_like(inputs[0], np.nan)
    pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*inputs, out)]
    getattr(library, f"mx_{name}")(*pointers, ctypes.c_long(out.size))
    return out


def all_floats():
    return np.arange(0, 2**32, STRIDE, dtype=np.uint32).view(np.float32)


def ulp_error(got, exact):
    """|got - exact| in units of float's spacing at exact; inf counts as 2^128, the next value there would be."""
    got, exact = got.astype(np.float64), np.clip(exact, -(2.0**128), 2.0**128)
    got = np.clip(got, -(2.0**128), 2.0**128)
    exponent = np.frexp(np.abs(exact))[1]
    return np.abs(got - exact) / np.ldexp(1.0, np.maximum(exponent - 24, -149).clip(max=104))


@pytest.mark.parametrize("name", BOUNDS)
def test_error_in_ulp(library, name):
    x = all_floats()
    if name == "sinpi_reduced":
        x = x[np.abs(x) <= 0.5]
    if name == "exp2_decay":  # flushes to 0 below 2^-126
        x = x[(x <= 0) & (x >= -126)]
    got = call(library, name, x)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        exact = REFERENCE[name](torch.from_numpy(x.astype(np.float64))).numpy()
    assert np.array_equal(np.isnan(got), np.isnan(exact))
    error = ulp_error(got, exact)[~np.isnan(exact)]
    infinite = np.isinf(exact)
    assert np.array_equal(got[infinite], exact[infinite].astype(np.float32))
    print(f"{name}: {error.max():.3f} ulp over {error.size} floats")
    assert error.max() <= BOUNDS[name]


@pytest.mark.parametrize("name, x, y", [
    ("exp", [0, -0.0, np.inf, -np.inf, 88.7228, 88.73, -103.9, -104.1], [1, 1, np.inf, 0, None, np.inf, 1e-45, 0]),
    ("log", [1, 0, -0.0, np.inf, -1, 1e-45], [0, -np.inf, -np.inf, np.inf, np.nan, None]),
    ("tanh", [0, np.inf, -np.inf, 1e-45, -20], [0, 1, -1, 1e-45, -1]),
    ("erf", [0, np.inf, -np.inf, 1e-45, -5], [0, 1, -1, 1e-45, -1]),
    ("sigmoid", [0, np.inf, -np.inf, -103.9], [0.5, 1, 0, 1e-45]),
    ("exp2_decay", [0, -1, -126, -126.5, -1e30, -np.inf], [1, 0.5, 2.0**-126, 0, 0, 0]),
    ("rint", [0.5, 1.5, -2.5, 2.4999998, 4194303.5, 8388609, -1e30, np.inf],
     [0, 2, -2, 2, 4194304, 8388609, -1e30, np.inf]),
])
def test_special_values(library, name, x, y):
    x = np.array([*x, np.nan], dtype=np.float32)
    got = call(library, name, x)
    assert np.isnan(got[-1])
    for value, result, wanted in zip(x, got, y):
        assert wanted is None or np.array_equal(np.float32(wanted), result, equal_nan=True), (value, result)
        assert wanted is not None or np.isfinite(result), (value, result)


def test_odd_functions_keep_the_sign_of_zero(library):
    x = np.array([-0.0], dtype=np.float32)
    for name in ("tanh", "erf"):
        assert np.signbit(call(library, name, x))[0], name


def test_pow_error_in_ulp(library):
    rng = np.random.default_rng(0)
    x = rng.integers(1, 0x7F800000, 400_000, dtype=np.uint32).view(np.float32)  # all positive floats
    x[::2] = rng.uniform(0.25, 4.0, x[::2].size)                                # and where log2 is small
    with np.errstate(divide="ignore", over="ignore"):
        power = (rng.uniform(-155, 132, x.size) / np.log2(x.astype(np.float64))).astype(np.float32)
    keep = np.isfinite(power)
    x, power = x[keep], power[keep]
    got = call(library, "pow", x, power)
    with np.errstate(over="ignore", under="ignore"):
        exact = np.power(x.astype(np.float64), power.astype(np.float64))
    error = ulp_error(got, exact)
    print(f"pow: {error.max():.3f} ulp, {np.mean(exact < 2.0**-126):.1%} of the results denormal")
    assert error.max() <= 1.5


@pytest.mark.parametrize("x, p, y", [
    (0, 2, 0), (0, -2, np.inf), (0, 0, 1), (np.inf, 2, np.inf), (np.inf, -1, 0), (np.inf, 0, 1), (1, 1e30, 1),
    (2, 1e30, np.inf), (2, -1e30, 0), (-1, 2, np.nan), (np.nan, 1, np.nan), (2, np.nan, np.nan), (0, np.nan, np.nan),
    (1e-45, 1, 1e-45), (3, 1, 3), (0.5, 149, 1e-45),
])
def test_pow_special_values(library, x, p, y):
    got = call(library, "pow", np.array([x], dtype=np.float32), np.array([p], dtype=np.float32))
    assert np.array_equal(got, np.array([y], dtype=np.float32), equal_nan=True)


def test_same_bits_on_every_instruction_set(library, tmp_path):
    """The GPU's sums are these, too: no result may depend on vector width or on a fused multiply-add."""
    with open("/proc/cpuinfo") as file:
        flags = file.read()
    if "avx2" not in instruction_sets() or " avx2 " not in flags or " fma " not in flags:
        pytest.skip("needs an x86 CPU with AVX2 and FMA")
    wide = build(tmp_path, instruction_sets()["avx2"])
    x = all_floats()[::7]
    for name in BOUNDS:
        a, b = call(library, name, x), call(wide, name, x)
        same = a.view(np.uint32) == b.view(np.uint32)
        assert np.all(same | (np.isnan(a) & np.isnan(b))), name
