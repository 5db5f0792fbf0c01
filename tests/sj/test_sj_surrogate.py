"""SpikingJelly's surrogates read as ours, and the papers' own inside SpikingJelly's nodes."""
import copy
import inspect
import pickle

import pytest
import torch

pytest.importorskip("spikingjelly")
from spikingjelly.activation_based import neuron
from spikingjelly.activation_based import surrogate as host

from shared_core import dynamics
from shared_core import surrogate as core
from shared_core.backends import why_not_fused
from shared_core.errors import MemextError
from sj_memext import surrogate as ours

NO_PRIMITIVE = {host.SuperSpike, host.FakeNumericalGradient}  # SpikingJelly has none for them
# Parameters whose edges are exact in float32; every parameter differs from its default.
OTHER = {
    host.Sigmoid: {"alpha": 2.5}, host.ATan: {"alpha": 3.0}, host.PiecewiseQuadratic: {"alpha": 0.5},
    host.PiecewiseExp: {"alpha": 3.0}, host.SoftSign: {"alpha": 3.0}, host.SuperSpike: {"alpha": 3.0},
    host.NonzeroSignLogAbs: {"alpha": 0.5}, host.Erf: {"alpha": 0.7}, host.PiecewiseLeakyReLU: {"w": 0.5, "c": 0.25},
    host.SquarewaveFourierSeries: {"n": 5, "T_period": 4.0}, host.S2NN: {"alpha": 2.0, "beta": 0.5},
    host.QPseudoSpike: {"alpha": 3.5}, host.LeakyKReLU: {"leak": 0.25, "k": 2.0},
    host.FakeNumericalGradient: {"alpha": 2.0}, host.LogTailedReLU: {"alpha": 0.125}, host.DeterministicPass: {},
    host.Rect: {"alpha": 0.25},
}
TABLE = [pytest.param(cls, params, id=f"{cls.__name__}{params}")
         for cls, other in OTHER.items() for params in ({}, other)]


def host_classes():
    return {cls for _, cls in inspect.getmembers(host, inspect.isclass)
            if issubclass(cls, host.SurrogateFunctionBase) and cls is not host.SurrogateFunctionBase}


def grid(dtype=torch.float64):
    edges = torch.tensor([0.25, 0.5, 1.0, 2.0, 4.0])
    edges = torch.cat([edges, torch.nextafter(edges, torch.tensor(9.0)), torch.nextafter(edges, torch.tensor(0.0))])
    extreme = torch.tensor([0.0, 1e-38, -1e-38, 1e-6, -1e-6, 30.0, -30.0, 1e6, -1e6])
    return torch.cat([edges, -edges, extreme, torch.linspace(-5, 5, 401)]).to(dtype)


def gradient(fn, z):
    z = z.clone().requires_grad_()
    return torch.autograd.grad(fn(z).sum(), z)[0]


def test_every_class_of_the_installed_package_is_declared():
    """A new SpikingJelly class fails here until it has a table entry or is declared opaque with its alphabet."""
    assert host_classes() - {ours.Rectangle, ours.Triangle, ours.Arctan} == {*ours._TABLE, *ours._OPAQUE}
    assert set(OTHER) == set(ours._TABLE)


@pytest.mark.parametrize("cls, params", TABLE)
def test_gradient_equals_the_frameworks(cls, params):
    fn = cls(**params)
    surrogate = ours.from_spikingjelly(fn)
    assert surrogate.fn is None and surrogate.kernel_id is not None and surrogate.alphabet == "binary"
    # a power or an exponential multiplies the rounding of its argument: some 25 float32 roundings; ample in float64
    for dtype, rtol in ((torch.float64, 1e-12), (torch.float32, 3e-6)):
        z = grid(dtype)
        if cls is host.SquarewaveFourierSeries:
            z = z[z.abs() < 100]  # the cosine of a rounded 1e6 is noise in both
        # s (1 - s) as SpikingJelly writes it loses all digits where s is near 1: one rounding of the largest value
        atol = torch.finfo(dtype).eps * 4 if cls is host.Sigmoid else 1e-30
        torch.testing.assert_close(surrogate.grad(z), gradient(fn, z), rtol=rtol, atol=atol)
        assert torch.equal(core.spike(z, surrogate, strict=False), fn(z))


@pytest.mark.parametrize("cls, params", [p for p in TABLE if p.values[0] not in NO_PRIMITIVE])
def test_gradient_is_the_derivative_of_the_primitive(cls, params):
    """Finite differences in float64, away from kinks. S2NN's primitive is log(x + 1 + 1e-5), hence 3e-5."""
    fn = cls(**params)
    z = torch.linspace(-3.9, 3.9, 500, dtype=torch.float64)
    z = z[(z.abs().unsqueeze(-1) - torch.tensor([0.0, 0.25, 0.5, 1.0, 2.0])).abs().amin(-1) > 1e-3]
    wanted = ours.from_spikingjelly(fn).grad(z)
    fn.set_spiking_mode(False)
    eps = 1e-6
    numeric = (fn(z + eps) - fn(z - eps)) / (2 * eps)
    # 1e-7, 1e-8: a central difference over 2e-6 of values near 1 carries 1e-16 / 1e-6 = 1e-10 of rounding, and less
    # than eps^2 times the third derivative (below 1e3) of truncation; S2NN: see above
    torch.testing.assert_close(wanted, numeric, rtol=3e-5 if cls is host.S2NN else 1e-7, atol=1e-8)


def test_fake_numerical_gradient_at_minus_zero():
    """The one value that differs: SpikingJelly returns -inf there, ours the limit."""
    z = torch.tensor([-0.0])
    assert gradient(host.FakeNumericalGradient(0.3), z).item() == -float("inf")
    assert ours.from_spikingjelly(host.FakeNumericalGradient(0.3)).grad(z).item() == pytest.approx(0.3)


class Untouched(host.ATan):
    pass


class OwnForward(host.ATan):
    def forward(self, x):
        return x.sign()


class OwnBackward(host.ATan):
    @staticmethod
    def spiking_function(x, alpha):
        return host.sigmoid.apply(x, alpha)


class Declared(torch.nn.Module):
    alphabet, random = "binary", False

    def forward(self, x):
        return host.heaviside(x)


def patched():
    fn = host.ATan()
    fn.forward = torch.sign
    return fn


@pytest.mark.parametrize("fn, alphabet, random", [
    pytest.param(host.MultiLevelSpikeCount(3), "integer", False, id="MultiLevelSpikeCount"),
    pytest.param(host.PoissonPass(), "binary", True, id="PoissonPass"),
    pytest.param(host.PoissonPass(spiking=False), "real", False, id="PoissonPass-not-spiking"),
    pytest.param(host.ATan(spiking=False), "real", False, id="ATan-not-spiking"),
    pytest.param(host.ATan(torch.tensor(2.0)), "binary", False, id="ATan-tensor"),
    pytest.param(host.ATan(torch.nn.Parameter(torch.tensor(2.0))), "binary", False, id="ATan-learnable"),
    pytest.param(host.ATan(-1.0), "binary", False, id="ATan-negative"),
    pytest.param(host.SquarewaveFourierSeries(0), "binary", False, id="no-terms"),
    pytest.param(OwnForward(), "real", True, id="own-forward"),
    pytest.param(OwnBackward(), "real", True, id="own-backward"),
    pytest.param(patched(), "real", True, id="patched"),
    pytest.param(torch.sign, "real", True, id="function"),
    pytest.param(Declared(), "binary", False, id="own-class-declared"),
])
def test_opaque(fn, alphabet, random):
    surrogate = ours.from_spikingjelly(fn)
    assert surrogate.fn is fn and surrogate.kernel_id is None
    assert (surrogate.alphabet, surrogate.random) == (alphabet, random)
    if not random:
        assert torch.equal(core.spike(grid(), surrogate, strict=False), fn(grid()))


@pytest.mark.parametrize("cls", [*ours._TABLE, *ours._PAPERS])
def test_module_hooks_leave_a_surrogate_what_it_is(cls):
    """Whoever hooks all modules of a net also hooks the default Sigmoid() that every node of the process shares."""
    fn = cls()
    before = ours.from_spikingjelly(fn)
    fn.register_forward_hook(lambda module, args, output: None)
    fn.register_forward_pre_hook(lambda module, args: None)
    fn.register_full_backward_hook(lambda module, grad_input, grad_output: None)
    assert ours.from_spikingjelly(fn) == before and before.kernel_id is not None


def test_a_surrogate_with_a_method_replaced_says_so():
    """Named ATan alone, the warning about the slow path would say that ATan has no kernel."""
    reason = why_not_fused(dynamics.LIF(), ours.from_spikingjelly(patched()), torch.device("cpu"))
    assert "'ATan with its forward replaced on the object' has no kernel" in reason
    assert "ATan with spiking=False" in ours.from_spikingjelly(host.ATan(spiking=False)).name


def test_subclass_that_changes_nothing_is_its_base():
    assert ours.from_spikingjelly(Untouched(3.0)) == core.atan(3.0)


def test_parameters_are_read_at_every_call():
    fn = host.ATan(2.0)
    assert ours.from_spikingjelly(fn) == core.atan(2.0)
    fn.alpha = 5.0
    assert ours.from_spikingjelly(fn) == core.atan(5.0)


# ---- the papers' own ------------------------------------------------------------------------------------------------

PAPERS = [
    pytest.param(ours.Rectangle(gamma=0.5), host.Rect(alpha=2.0), id="rectangle"),
    pytest.param(ours.Triangle(gamma=2.0), host.PiecewiseQuadratic(alpha=0.5), id="triangle"),
    pytest.param(ours.Arctan(), host.ATan(alpha=2.0), id="arctan"),
]


@pytest.mark.parametrize("fn, same", PAPERS)
@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_papers_surrogates_in_spikingjellys_own_node(fn, same, step_mode):
    def run(surrogate_function):
        node = neuron.LIFNode(tau=1.5, v_threshold=0.7, v_reset=-0.3, surrogate_function=surrogate_function,
                              step_mode=step_mode)
        torch.manual_seed(0)
        x = (torch.randn(6, 4, 8) * 2).requires_grad_()
        out = node(x) if step_mode == "m" else torch.stack([node(step) for step in x])
        assert 0.05 < out.mean() < 0.95
        return out, torch.autograd.grad((out * torch.linspace(0, 1, 8)).sum(), x)[0]

    (spikes, grad), (spikes_same, grad_same) = run(fn), run(same)
    assert torch.equal(spikes, spikes_same)
    # two ways to write one derivative, each with a few float32 roundings (6e-8) in every one of 6 steps; near an
    # edge of the surrogate the terms cancel, and what is left is as inexact as they were: 1e-7
    torch.testing.assert_close(grad, grad_same, rtol=1e-5, atol=1e-7)
    assert ours.from_spikingjelly(fn) == ours.from_spikingjelly(same)


@pytest.mark.parametrize("fn, same", PAPERS)
def test_papers_surrogates_are_whole_surrogate_functions(fn, same):
    z = grid()
    assert (gradient(fn, z) >= 0).all() and (gradient(fn, z) > 0).any()
    torch.testing.assert_close(fn.backward(torch.ones_like(z), z, **fn._sg_params), gradient(fn, z))
    assert pickle.loads(pickle.dumps(fn))._sg_params == fn._sg_params
    assert ours.from_spikingjelly(copy.deepcopy(fn)) == ours.from_spikingjelly(fn)
    smooth = copy.deepcopy(fn)
    smooth.set_spiking_mode(False)
    inside = torch.linspace(-1.9, 1.9, 301, dtype=torch.float64)
    inside = inside[(inside.abs() - 0.25).abs() > 1e-3]  # rectangle's edge
    torch.testing.assert_close(gradient(smooth, inside), gradient(fn, inside))
    same.set_spiking_mode(False)
    torch.testing.assert_close(smooth(inside), same(inside))
    same.set_spiking_mode(True)
    assert ours.from_spikingjelly(smooth).alphabet == "real"


def test_papers_parameters_are_checked():
    for make in (ours.Rectangle, ours.Triangle):
        with pytest.raises(MemextError, match="gamma=0"):
            make(gamma=0)


def test_register(monkeypatch):
    names = ("Rectangle", "Triangle", "Arctan")
    for name in names:
        monkeypatch.delattr(host, name, raising=False)
    before = host_classes()
    ours.register()
    ours.register()
    assert host_classes() - before == {ours.Rectangle, ours.Triangle, ours.Arctan}
    assert host.Triangle(2.0)(torch.zeros(1)).item() == 1.0


def test_register_never_replaces_a_name(monkeypatch):
    for name in ("Rectangle", "Triangle", "Arctan"):
        monkeypatch.delattr(host, name, raising=False)
    monkeypatch.setattr(host, "Triangle", OwnForward, raising=False)
    with pytest.raises(MemextError) as error:
        ours.register()
    assert "OwnForward" in str(error.value) and "sj_memext.surrogate.Triangle" in str(error.value)
    assert host.Triangle is OwnForward and not hasattr(host, "Rectangle")
