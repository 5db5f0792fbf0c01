"""snnTorch's surrogates read as ours, and the papers' own inside snnTorch's neurons."""
import copy
import inspect
import pickle

import pytest
import torch

pytest.importorskip("snntorch")
import snntorch as snn
from snntorch import surrogate as host

from shared_core import surrogate as core
from shared_core.errors import MemextError
from snntorch_memext import surrogate as ours

# Every parameter differs from its default; edges are exact in float32.
OTHER = {
    "straight_through_estimator": {}, "triangular": {"threshold": 0.5}, "fast_sigmoid": {"slope": 7},
    "atan": {"alpha": 3.0}, "heaviside": {}, "sigmoid": {"slope": 3.5}, "spike_rate_escape": {"beta": 2, "slope": 3.0},
    "SFS": {"slope": 5, "B": -0.5},
}
TABLE = [pytest.param(name, params, id=f"{name}{params}") for name, other in OTHER.items() for params in ({}, other)]


def grid(dtype=torch.float64):
    edges = torch.tensor([0.5, 1.0, 2.0])
    edges = torch.cat([edges, torch.nextafter(edges, torch.tensor(9.0)), torch.nextafter(edges, torch.tensor(0.0))])
    extreme = torch.tensor([0.0, -0.0, 1e-38, -1e-38, 1e-6, -1e-6, 3.0, -3.0])
    return torch.cat([edges, -edges, extreme, torch.linspace(-3, 3, 401)]).to(dtype)


def gradient(fn, z):
    z = z.clone().requires_grad_()
    return torch.autograd.grad(fn(z).sum(), z)[0]


def test_every_function_of_the_installed_package_is_declared():
    """A new snnTorch function fails here until it has a table entry or is declared opaque."""
    own = {name for name, function in inspect.getmembers(host, inspect.isfunction)
           if function.__module__ == host.__name__}
    assert own == {*ours._TABLE, *ours._OPAQUE}
    assert set(OTHER) == set(ours._TABLE)


@pytest.mark.parametrize("name, params", TABLE)
def test_gradient_equals_the_frameworks(name, params):
    fn = getattr(host, name)(**params)
    surrogate = ours.from_snntorch(fn)
    assert surrogate.fn is None and surrogate.kernel_id is not None and surrogate.alphabet == "binary"
    for dtype, rtol in ((torch.float64, 1e-6), (torch.float32, 3e-6)):  # a float32 spike has a float32 gradient
        z = grid(dtype)
        # where sigmoid(25) is below 1e-15, snnTorch's exp overflows in the square and the gradient is 0
        torch.testing.assert_close(surrogate.grad(z), gradient(fn, z), rtol=rtol, atol=1e-15)
        assert torch.equal(core.spike(z, surrogate, strict=True).float(), fn(z))


def test_steep_sigmoid_is_finite_where_snntorchs_is_not():
    fn = host.sigmoid(25)
    z = torch.tensor([-3.6, -10.0])
    assert gradient(fn, z).isnan().all()
    assert (ours.from_snntorch(fn).grad(z) >= 0).all()


def test_triangular_keeps_the_sign_it_has():
    assert ours.from_snntorch(host.triangular(2)).grad(torch.tensor([-1.0, 0.0, 1.0])).tolist() == [2, -2, -2]


def test_default_and_disabled():
    assert ours.from_snntorch(snn.Leaky(beta=0.9).spike_grad) == core.atan(2.0)
    disabled = ours.from_snntorch(snn.Leaky(beta=0.9, surrogate_disable=True).spike_grad)
    assert disabled == core.none() and disabled.kernel_id is not None
    assert disabled.grad(grid()).count_nonzero() == 0


class Declared:
    alphabet, random = "binary", False

    def __call__(self, x):
        return (x > 0).float()


@pytest.mark.parametrize("fn, alphabet, random", [
    pytest.param(host.SSO(), "binary", True, id="SSO"),
    pytest.param(host.LSO(), "binary", True, id="LSO"),
    pytest.param(host.custom_surrogate(lambda x, grad, spikes: grad), "binary", True, id="custom_surrogate"),
    pytest.param(host.atan(torch.tensor(2.0)), "binary", False, id="atan-tensor"),
    pytest.param(host.atan(-2.0), "binary", False, id="atan-negative"),
    pytest.param(torch.sign, "real", True, id="function"),
    pytest.param(Declared(), "binary", False, id="own-class-declared"),
])
def test_opaque(fn, alphabet, random):
    surrogate = ours.from_snntorch(fn)
    assert surrogate.fn is fn and surrogate.kernel_id is None
    assert (surrogate.alphabet, surrogate.random) == (alphabet, random)


def test_lso_fails_as_it_does_in_snntorch():
    """snnTorch 1.0.0's LSO forgets an argument; a converted network must not hide that."""
    surrogate = ours.from_snntorch(host.LSO())
    with pytest.raises(TypeError, match="variance"):
        core.spike(torch.zeros(2), surrogate, strict=True)


def test_a_closure_with_the_same_name_from_elsewhere_is_opaque():
    def atan(alpha=2.0):
        def inner(x):
            return x * alpha
        return inner
    fn = atan()
    fn.__qualname__ = "atan.<locals>.inner"
    assert ours.from_snntorch(fn).fn is fn


# ---- the papers' own ------------------------------------------------------------------------------------------------

PAPERS = [
    pytest.param(ours.rectangle(gamma=0.5), core.rect(alpha=2.0), id="rectangle"),
    pytest.param(ours.triangle(gamma=2.0), core.piecewise_quadratic(alpha=0.5), id="triangle"),
    pytest.param(ours.arctan(), core.atan(alpha=2.0), id="arctan"),
]


@pytest.mark.parametrize("fn, same", PAPERS)
def test_papers_surrogates(fn, same):
    assert ours.from_snntorch(fn) == same
    z = grid(torch.float32)
    spikes = fn(z.double())
    assert spikes.dtype == torch.float32 and torch.equal(spikes, (z > 0).float())
    g = gradient(fn, z)
    assert (g >= 0).all() and (g > 0).any() and torch.equal(g, same.grad(z))
    assert pickle.loads(pickle.dumps(fn)) == fn == copy.deepcopy(fn)


@pytest.mark.parametrize("fn, same", PAPERS)
def test_papers_surrogates_in_snntorchs_own_neuron(fn, same):
    leaky = pickle.loads(pickle.dumps(fn)), fn
    grads = []
    for spike_grad in leaky:
        lif = snn.Leaky(beta=0.9, threshold=0.7, spike_grad=spike_grad)
        torch.manual_seed(0)
        x = torch.randn(6, 4, 8, requires_grad=True)
        mem, out = lif.reset_mem(), []
        for step in x:
            spk, mem = lif(step, mem)
            out.append(spk)
        out = torch.stack(out)
        assert 0.05 < out.mean() < 0.95
        grads.append(torch.autograd.grad((out * torch.linspace(0, 1, 8)).sum(), x)[0])
    assert grads[0].abs().sum() > 0 and torch.equal(*grads)


def test_papers_parameters_are_checked():
    for make in (ours.rectangle, ours.triangle):
        with pytest.raises(MemextError, match="gamma=0"):
            make(gamma=0)


def test_register(monkeypatch):
    for name in ("rectangle", "triangle", "arctan"):
        monkeypatch.delattr(host, name, raising=False)
    ours.register()
    ours.register()
    assert (host.rectangle, host.triangle, host.arctan) == (ours.rectangle, ours.triangle, ours.arctan)


def test_register_never_replaces_a_name(monkeypatch):
    for name in ("rectangle", "triangle", "arctan"):
        monkeypatch.delattr(host, name, raising=False)
    monkeypatch.setattr(host, "triangle", Declared, raising=False)
    with pytest.raises(MemextError) as error:
        ours.register()
    assert "Declared" in str(error.value) and "snntorch_memext.surrogate.triangle" in str(error.value)
    assert host.triangle is Declared and not hasattr(host, "rectangle")
