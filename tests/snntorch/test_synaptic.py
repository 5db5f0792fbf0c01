"""FusedSynaptic against snntorch.Synaptic: values bit by bit, gradients against a float64 oracle, in models.

What it shares with FusedLeaky (snntorch_memext/_fused.py) is tested at length in test_neurons_exact.py and
test_neurons_contract.py; here is what two states change.
"""
from __future__ import annotations

import copy
import itertools
import pickle
import sys
from pathlib import Path

import pytest
import snntorch as snn
import torch
from helpers import GRADIENT, TWICE, assert_bit_equal, assert_fires, driving, error, oracle, weights_for
from snntorch import utils
from snntorch.surrogate import atan
from torch import nn

from shared_core import dynamics, registry
from shared_core.errors import MemextError
from shared_core.functional import MultiStep
from shared_core.memory import measure
from snntorch_memext import report, restore, retrofit, substitute
from snntorch_memext.neurons import FusedSynaptic, overrides, why_host_path
from snntorch_memext.surrogate import from_snntorch

sys.path.insert(0, str(Path(__file__).parent))
from leaky_cases import SHAPE

STEPS = 35  # more than a block of 32
resets = pytest.mark.parametrize("reset", ["subtract", "zero", "none"])
delays = pytest.mark.parametrize("delay", [True, False], ids=["delay", "same-step"])


def vector(low: float, high: float, seed: int) -> torch.Tensor:
    return low + (high - low) * torch.rand(SHAPE[-1], generator=torch.Generator().manual_seed(seed))


DECAYS = {  # beyond [0, 1] too: the host clamps
    "fixed": dict(alpha=0.6, beta=0.8), "ends": dict(alpha=0.0, beta=1), "over": dict(alpha=-0.2, beta=1.3),
    "vector": dict(alpha=vector(-0.1, 1.0, 1), beta=vector(0.1, 1.1, 2)),
    "learn": dict(alpha=0.6, beta=0.8, learn_alpha=True, learn_beta=True),
    "learn-vector": dict(alpha=vector(0.1, 0.9, 3), beta=0.7, learn_alpha=True),
}
THRESHOLDS = {
    "0.7": dict(threshold=0.7), "vector": dict(threshold=vector(0.4, 1.4, 4)),
    "learn": dict(threshold=1.1, learn_threshold=True),
}


def pair(**options):
    return snn.Synaptic(**options), FusedSynaptic(**options)


def params(host):
    return (host.alpha.detach().clamp(0, 1), host.beta.detach().clamp(0, 1), host.threshold.detach(),
            host.graded_spikes_factor.detach())


def drive(host, steps=STEPS, states=None):
    """Inputs [steps, *SHAPE] from helpers.driving, weaker the longer a neuron remembers, so that it does not always
    fire; the first step sits on the threshold."""
    d = dynamics.Synaptic(host.reset_mechanism, host.reset_delay)
    x = driving(d, steps, SHAPE, [p.expand(SHAPE).float() for p in params(host)], states)
    memory = (1.25 - params(host)[0]) * (1.25 - params(host)[1])
    x[1:] = (x[1:] - 0.3) * 1.6 * memory + 0.1 * memory
    return x


def start(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(syn, mem), a third of mem above the thresholds."""
    random = torch.Generator().manual_seed(seed)
    return 0.3 * torch.randn(SHAPE, generator=random), 0.6 + 0.6 * torch.randn(SHAPE, generator=random)


def loop(lif, x, syn=None, mem=None):
    """What a user writes: (spk, syn, mem), each [T, N, *], of a neuron called step by step."""
    seen = []
    for x_t in x:
        spk, syn, mem = lif(x_t, syn, mem)
        seen.append((spk, syn, mem))
    return tuple(map(torch.stack, zip(*seen)))


# ---- values --------------------------------------------------------------------------------------------------------


@resets
@delays
def test_sequences_equal_the_hosts_steps(reset, delay):
    """Every alpha and beta x threshold x factor: sequence and single steps are the host's loop, bit by bit."""
    for seed, (decay, threshold, factor) in enumerate(itertools.product(DECAYS, THRESHOLDS, (1.0, 1.7))):
        case = f"{decay} threshold={threshold} factor={factor}"
        host, ours = pair(**DECAYS[decay], **THRESHOLDS[threshold], reset_mechanism=reset, reset_delay=delay)
        for lif in (host, ours):
            lif.graded_spikes_factor.fill_(factor)  # the constructor has no argument for it
        assert why_host_path(ours) is None
        syn, mem = start(seed)
        x = drive(host, STEPS if seed % 3 == 0 else 6, (syn, mem))
        with torch.no_grad():
            wanted = loop(host, x, syn, mem)
            assert_fires(wanted[0], high=0.95)
            recorded = ours.multi_step(x, syn, mem, record=True)
            last = ours.multi_step(x, syn, mem)
            stepped = loop(ours, x, syn, mem)
        for name, a, b, c in zip(("spk", "syn", "mem"), wanted, recorded, stepped, strict=True):
            assert_bit_equal(b, a, f"{case} {name}"), assert_bit_equal(c, a, f"{case} {name} stepped")
        assert_bit_equal(last[0], wanted[0])
        for name, a, b in zip(("syn", "mem"), wanted[1:], last[1:], strict=True):
            assert_bit_equal(b, a[-1], f"{case} last {name}")
            assert torch.equal(getattr(ours, name), a[-1])


def test_inputs_sit_on_the_threshold():
    """The case above is about something: first inputs bring mem to the threshold exactly, others one ulp beside."""
    host = snn.Synaptic(0.6, 0.8, threshold=0.7)
    syn, mem = start(0)
    spk, _, after = host(drive(host, 1, (syn, mem))[0], syn, mem)
    near = (after - 0.7).abs() < 1e-6
    assert near.sum() > 10 and 0 < spk[near].mean() < 1


@resets
@delays
@pytest.mark.parametrize("hidden, output", list(itertools.product([False, True], repeat=2)))
def test_every_way_of_calling_equals_the_host(reset, delay, hidden, output):
    """Return values, `syn`, `mem` and `reset` after every call, with and without states passed; then a sequence in
    one piece and in two."""
    options = dict(alpha=0.6, beta=0.8, threshold=0.7, reset_mechanism=reset, reset_delay=delay, init_hidden=hidden,
                   output=output)
    x = drive(snn.Synaptic(0.6, 0.8, threshold=0.7, reset_mechanism=reset, reset_delay=delay), 7)
    for given in ((), ("syn",), ("mem",), ("syn", "mem")):
        if hidden and given:
            continue
        (host, ours), seen = pair(**options), []
        states = dict(zip(("syn", "mem"), start(1)))
        for x_t in x:
            a, b = (lif(x_t, **{name: states[name] for name in given}) for lif in (host, ours))
            assert type(a) is type(b)
            for p, q in zip(a if isinstance(a, tuple) else (a,), b if isinstance(b, tuple) else (b,), strict=True):
                assert_bit_equal(q, p)
            for name in ("syn", "mem", "reset"):
                assert_bit_equal(getattr(ours, name), getattr(host, name), name)
            seen.append((a[0] if isinstance(a, tuple) else a, host.syn, host.mem))
        spk, syn, mem = map(torch.stack, zip(*seen))
        assert_fires(spk)
        if given:
            continue
        whole = FusedSynaptic(**options)
        for got, wanted in zip(whole.multi_step(x), (spk, syn[-1], mem[-1]), strict=True):
            assert_bit_equal(got, wanted)
        whole.reset_mem()
        first, second = whole.multi_step(x[:3], record=True), whole.multi_step(x[3:], record=True)
        for a, b, wanted in zip(first, second, (spk, syn, mem), strict=True):
            assert_bit_equal(torch.cat([a, b]), wanted)


@resets
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(reset, dtype):
    """spk is float32 always. float64: the host's. Half input: the host's float32 run on the upcast input."""
    host, ours = pair(alpha=0.6, beta=0.8, threshold=0.7, reset_mechanism=reset)
    x = drive(host).to(dtype)
    wanted = loop(host, x if dtype == torch.float64 else x.float())
    assert_fires(wanted[0])
    for got in (ours.multi_step(x, record=True), loop(FusedSynaptic(0.6, 0.8, 0.7, reset_mechanism=reset), x)):
        for a, b in zip(got, wanted, strict=True):
            assert_bit_equal(a, b)


def test_what_the_kernels_cannot_do_is_the_hosts():
    """Options, parameters and states that leave the kernels: the same values and dtypes through the host's steps."""
    wide = vector(0.1, 0.9, 5).double()
    x = drive(snn.Synaptic(0.6, 0.8), 6)
    syn, mem = start(2)
    cases = [
        (dict(alpha=wide, beta=0.8), x, syn, mem), (dict(alpha=0.6, beta=wide), x, syn, mem),
        (dict(alpha=0.6, beta=0.8), x, syn.double(), mem), (dict(alpha=0.6, beta=0.8), x, syn, mem.double()),
        (dict(alpha=0.6, beta=0.8), (x > 0).long(), syn, mem), (dict(alpha=0.6, beta=0.8), x, None, mem.double()),
        (dict(alpha=vector(0, 1, 6), beta=0.8), x[..., :1], syn[..., :1], mem[..., :1]),
        (dict(alpha=0.6, beta=0.8, state_quant=lambda s: (s * 8).round() / 8), x, syn, mem),
        (dict(alpha=0.6, beta=0.8, spike_grad=lambda z: torch.sigmoid(4 * z)), x, syn, mem),
    ]
    for options, x_seq, *states in cases:
        host, ours = pair(**options)
        wanted = loop(host, x_seq, *states)
        for got in (loop(ours, x_seq, *states), FusedSynaptic(**options).multi_step(x_seq, *states, record=True)):
            for a, b in zip(wanted, got, strict=True):
                assert a.dtype == b.dtype and torch.equal(a, b), options
    with pytest.warns(UserWarning, match="Inhibition"):
        host, ours = pair(alpha=0.6, beta=0.8, inhibition=True)
    for a, b in zip(loop(host, x), ours.multi_step(x, record=True), strict=True):
        assert torch.equal(a, b)


def test_equations_of_the_user_are_kept():
    class Quiet(FusedSynaptic):
        def _base_state_reset_zero(self, input_):
            return 0, 0.5 * self.mem

    class QuietHost(snn.Synaptic):
        _base_state_reset_zero = Quiet._base_state_reset_zero

    options = dict(alpha=0.6, beta=0.8, threshold=0.7, reset_mechanism="zero")
    host, ours, own = QuietHost(**options), Quiet(**options), FusedSynaptic(**options)
    own._base_state_reset_zero = lambda x: (0, 0.5 * own.mem)
    assert overrides(Quiet, snn.Synaptic) == ["_base_state_reset_zero", "forward"]
    x = drive(snn.Synaptic(**options))
    for lif in (ours, own):
        assert "_base_state_reset_zero" in why_host_path(lif)
        for a, b in zip(loop(host, x), lif.multi_step(x, record=True), strict=True):
            assert torch.equal(a, b)
        host.reset_mem()
    assert not torch.equal(ours.multi_step(x)[0], FusedSynaptic(**options).multi_step(x)[0])


# ---- gradients -----------------------------------------------------------------------------------------------------

NAMES = ("x", "syn", "mem", "alpha", "beta", "threshold", "factor")


def gradients(lif, x, states, whole):
    """Gradients of everything that is returned, weighted as the oracle weights it."""
    x, *states = (t.clone().requires_grad_() for t in (x, *states))
    spk, syn, mem = lif.multi_step(x, *states, record=True) if whole else loop(lif, x, *states)
    out = MultiStep(spk, (syn[-1], mem[-1]), (syn, mem), None)
    leaves = [x, *states, lif.alpha, lif.beta, lif.threshold, lif.graded_spikes_factor]
    return spk.detach(), torch.autograd.grad((spk, syn[-1], mem[-1], syn, mem), leaves, weights_for(out))


@resets
@delays
@pytest.mark.parametrize("alpha, beta", [(0.6, 0.8), (vector(0.1, 0.9, 7), vector(0.2, 0.9, 8))],
                         ids=["scalar", "vector"])
def test_gradients(reset, delay, alpha, beta):
    """All seven, single steps and the sequence, within max(1e-5, twice the host's own error) of float64 with the spikes
    of the float32 run."""
    options = dict(alpha=alpha, beta=beta, threshold=vector(0.6, 1.2, 9), learn_alpha=True, learn_beta=True,
                   learn_threshold=True, reset_mechanism=reset, reset_delay=delay, spike_grad=atan(alpha=3.0))
    host, ours = pair(**options)
    for lif in (host, ours):
        lif.graded_spikes_factor = nn.Parameter(lif.__dict__["_buffers"].pop("graded_spikes_factor").fill_(1.3))
    states = start(3)
    x = drive(host, STEPS, states)
    spk, theirs = gradients(host, x, states, whole=False)
    assert_fires(spk)
    truth = oracle(dynamics.Synaptic(reset, delay), x, states, params(host), from_snntorch(host.spike_grad),
                   record=True)
    assert torch.equal(truth.out.spikes.float(), spk)
    for whole in (False, True):
        got, found = gradients(ours, x, states, whole)
        assert_bit_equal(got, spk)
        for name, mine, host_grad, wanted in zip(NAMES, found, theirs, truth.grads, strict=True):
            assert wanted.norm() > 0, f"gradient of {name} is zero: nothing is tested"
            bound = max(GRADIENT, TWICE * error(host_grad, wanted))
            assert mine.shape == wanted.shape
            assert error(mine, wanted) <= bound, f"{name} whole={whole}: {error(mine, wanted):.1e} > {bound:.1e}"


def test_the_clamp_has_torchs_gradient():
    """alpha and beta beyond [0, 1] get none, as in the host."""
    x = drive(snn.Synaptic(0.6, 0.8), 9)
    for lif in pair(alpha=-0.2, beta=1.3, learn_alpha=True, learn_beta=True):
        _, syn, mem = loop(lif, x)
        assert [g.item() for g in torch.autograd.grad((syn + mem).sum(), [lif.alpha, lif.beta])] == [0, 0]


def test_saved_bytes():
    """The input and two float32 states per 32 steps (8 B / 32 = 0.25 B); the host keeps the potential of every step."""
    given = torch.randn(128, 4, 512).requires_grad_()
    ours, host = (measure(call, timeline=False).saved_bytes / given.numel() for call in (
        lambda: FusedSynaptic(0.6, 0.8).multi_step(given * 1), lambda: loop(snn.Synaptic(0.6, 0.8), given * 1)))
    assert 4 + 8 * 3 / 128 <= ours <= 4.26, ours
    assert host >= 4, host


# ---- inside snnTorch -------------------------------------------------------------------------------------------------


def net(cls=snn.Synaptic):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 20), cls(0.5, 0.8, threshold=0.5, init_hidden=True, learn_alpha=True),
                         nn.Linear(20, 4), cls(0.5, 0.8, threshold=0.2, init_hidden=True, output=True,
                                               reset_mechanism="zero", learn_threshold=True))


def step(model, x):
    utils.reset(model)
    model.zero_grad()
    spk, syn, mem = (torch.stack(t) for t in zip(*[model(x_t) for x_t in x]))
    (spk * torch.linspace(-1, 1, spk.numel()).view_as(spk) + syn * mem.cos()).sum().backward()
    return [spk.detach(), syn.detach(), mem.detach()], [p.grad for p in model.parameters()]


def test_in_and_out_of_a_model():
    model, x = net(), 2 * torch.randn(9, 3, 6)
    values, grads = step(model, x)
    assert_fires(values[0])
    keys, objects = list(model.state_dict()), [id(p) for p in model.parameters()]
    attributes = [set(vars(m)) for m in model.modules()]
    assert retrofit(model, "neuron") is model and len(report(model).changed) == 2
    assert [type(m) for m in model][1::2] == [FusedSynaptic] * 2
    assert list(model.state_dict()) == keys and [id(p) for p in model.parameters()] == objects
    values2, grads2 = step(model, x)
    for a, b in zip(values2, values, strict=True):
        assert_bit_equal(a, b)
    assert all(error(a, b) <= GRADIENT for a, b in zip(grads2, grads, strict=True))
    assert [type(m) for m in restore(model)][1::2] == [snn.Synaptic] * 2
    assert [set(vars(m)) for m in model.modules()] == attributes
    assert torch.equal(step(model, x)[0][0], values[0])


def test_reset_and_detach_find_both_states():
    model = retrofit(net())
    model(torch.ones(2, 6))
    lif = model[1]
    assert lif.syn.requires_grad and lif.syn.any() and lif.mem.requires_grad
    utils.reset(model)
    assert not lif.syn.any() and not lif.mem.any() and not lif.syn.requires_grad and lif.syn.shape == (2, 20)
    model(torch.ones(2, 6))
    snn.Synaptic.detach_hidden()
    assert lif.syn.any() and not lif.syn.requires_grad and not lif.mem.requires_grad
    lif.multi_step(torch.ones(3, 2, 20, requires_grad=True))
    snn.Synaptic.detach_hidden()  # in place, which Torch forbids for views
    assert not lif.syn.requires_grad and not lif.mem.requires_grad
    assert lif.init_synaptic()[0] is lif.syn and not lif.syn.any()
    del model, lif
    snn.Synaptic.reset_hidden()  # passes over the places of the dead


def test_states_with_init_hidden_are_the_hosts_error():
    x = torch.ones(2, 3)
    for given in (dict(syn=x), dict(mem=x), dict(syn=x, mem=x)):
        host, ours = pair(alpha=0.6, beta=0.8, init_hidden=True)
        with pytest.raises(TypeError) as expected:
            host(x, **given)
        with pytest.raises(TypeError) as single:
            ours(x, **given)
        fresh = FusedSynaptic(0.6, 0.8, init_hidden=True)
        with pytest.raises(TypeError) as whole:
            fresh.multi_step(x[None], **given)
        assert str(expected.value) == str(single.value) == str(whole.value) and fresh.syn.numel() == 0
    with pytest.raises(MemextError, match=r"FusedSynaptic.multi_step: x_seq is \(0, 3\)"):
        fresh.multi_step(x[:0])


@pytest.mark.parametrize("how", [copy.deepcopy, lambda lif: pickle.loads(pickle.dumps(lif))],
                         ids=["deepcopy", "pickle"])
def test_copies(how):
    x = drive(snn.Synaptic(0.6, 0.8, threshold=0.7), 5)
    lif = FusedSynaptic(0.6, 0.8, threshold=0.7, learn_alpha=True, reset_mechanism="zero")
    with torch.no_grad():
        loop(lif, x[:3])
    again = how(lif)
    assert type(again) is FusedSynaptic and again.alpha is not lif.alpha and again.state_function.__self__ is again
    for name in ("syn", "mem", "reset"):
        assert_bit_equal(getattr(again, name), getattr(lif, name))
    for a, b in zip(again.multi_step(x), lif.multi_step(x), strict=True):
        assert_bit_equal(a, b)
    assert again.multi_step(x)[0].any()


def test_state_dict_both_ways():
    host, ours = pair(alpha=vector(0, 1, 1), beta=0.7, learn_beta=True, threshold=0.8)
    ours(torch.ones(SHAPE))
    assert list(host.state_dict()) == list(ours.state_dict())
    other = FusedSynaptic(vector(0, 1, 2), 0.1, learn_beta=True)
    other.load_state_dict(host.state_dict())
    snn.Synaptic(vector(0, 1, 2), 0.1, learn_beta=True).load_state_dict(ours.state_dict())
    x = drive(host, 5)
    wanted = loop(host, x)
    assert_fires(wanted[0])
    for a, b in zip(other.multi_step(x, record=True), wanted, strict=True):
        assert_bit_equal(a, b)


def test_compile_in_one_graph():
    host, ours = pair(alpha=0.6, beta=0.8)
    x, (syn, mem) = torch.randn(SHAPE), start(4)
    for a, b in zip(torch.compile(ours, backend="eager", fullgraph=True)(x, syn, mem), host(x, syn, mem), strict=True):
        assert torch.equal(a, b)


def test_nir_export():
    nir = pytest.importorskip("nir")
    pytest.importorskip("nirtorch")
    from snntorch.export_nir import export_to_nir
    nodes = []
    for cls in (snn.Synaptic, FusedSynaptic):
        torch.manual_seed(0)
        lif = cls(alpha=0.6 * torch.ones(20), beta=0.8 * torch.ones(20), threshold=torch.ones(20), init_hidden=True)
        graph = export_to_nir(nn.Sequential(nn.Linear(8, 20), lif), torch.randn(2, 8), ignore_dims=[0])
        nodes.append(next(node for node in graph.nodes.values() if isinstance(node, nir.CubaLIF)))
    for field in ("tau_syn", "tau_mem", "r", "v_leak", "v_threshold", "w_in"):
        assert (getattr(nodes[0], field) == getattr(nodes[1], field)).all()


def test_substitute_and_registry():
    with substitute("neuron"):
        lif = snn.Synaptic(alpha=0.6, beta=0.8)
    assert type(lif) is FusedSynaptic is snn.FusedSynaptic
    row, = [row for row in registry.neurons("snntorch") if row.name == "FusedSynaptic"]
    assert row.backends == ("reference", "native", "cuda") and row.host is snn.Synaptic
