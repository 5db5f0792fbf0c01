"""FusedKLIFNode against neuron.KLIFNode: values bit for bit, gradients within its own error, and in and out of models.

What all fused nodes share is tested in test_neuron_exact.py, test_neuron_contract.py and test_retrofit.py.
"""
from __future__ import annotations

import copy
import inspect
import itertools
import pickle
import warnings

import pytest
import torch
from helpers import GRADIENT, TWICE, assert_bit_equal, assert_fires, driving, error, oracle, weights_for
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import nn

from shared_core import dynamics, registry
from shared_core.functional import MultiStep
from sj_memext import report, restore, retrofit, substitute
from sj_memext.klif import FusedKLIFNode
from sj_memext.neuron import overrides
from sj_memext.surrogate import from_spikingjelly

NEURONS = 53  # prime: no vector width divides it
STEPS = 37    # more than a block of 32
TAUS = (2.0, 3.0)  # a power of two, whose division is exact, and another
RESETS = {"soft": None, "hard0": 0.0, "hard-0.5": -0.5}
CASES = [pytest.param(v_reset, decay, scale,
                      id=f"{name}-{'decay' if decay else 'plain'}-{'scaled' if scale else 'as-is'}")
         for name, v_reset in RESETS.items() for decay in (True, False) for scale in (False, True)]
cases = pytest.mark.parametrize("v_reset, decay, scale", CASES)


def make(cls, k=1.0, **options):
    node = cls(**{"v_threshold": 0.7, "tau": 3.0, "surrogate_function": surrogate.ATan(2.0), **options})
    with torch.no_grad():
        node.k.fill_(k) if isinstance(k, float) else setattr(node, "k", nn.Parameter(k))
    return node


def describe(node) -> dynamics.KLIF:
    return dynamics.KLIF(node.v_threshold, node.v_reset, node.detach_reset, node.tau, node.decay_input,
                         node.scale_reset)


def drive(node, steps=STEPS, shape=(NEURONS,), v=None):
    return driving(describe(node), steps, shape, (node.k.detach(),), None if v is None else (v,))


def run(node, x):
    return node(x) if node.step_mode == "m" else torch.stack([node(step) for step in x])


# ---- values -------------------------------------------------------------------------------------------------------


@cases
@pytest.mark.parametrize("k", (1.0, 1.7, 0.6))
def test_values_are_the_frameworks_bit_for_bit(v_reset, decay, scale, k):
    """Spikes, final v and v_seq, both step modes, from rest and carried on; with and without a graph."""
    for tau, detach in itertools.product(TAUS, (False, True)):
        options = {"tau": tau, "v_reset": v_reset, "decay_input": decay, "scale_reset": scale, "detach_reset": detach,
                   "store_v_seq": True}
        host = make(neuron.KLIFNode, k, step_mode="m", **options)
        x = drive(host)
        with torch.no_grad():
            spikes, v, v_seq = host(x), host.v, host.v_seq
            then = host(x.flip(0)), host.v
        assert_fires(spikes)
        assert ((v_seq == 0) & (spikes == 0)).any(), "the relu cuts nothing off"
        for mode in "ms":
            ours = make(FusedKLIFNode, k, step_mode=mode, **options)
            with torch.set_grad_enabled(detach):
                got = run(ours, x)
                assert got.requires_grad == detach  # k learns
                assert_bit_equal(got, spikes, "spikes"), assert_bit_equal(ours.v, v, "v")
                assert_bit_equal(ours.v_seq, v_seq, "v_seq")
                assert_bit_equal(run(ours, x.flip(0)), then[0], "carried on"), assert_bit_equal(ours.v, then[1])


def test_inputs_sit_on_the_threshold():
    """The case above is about something: some first inputs bring h to the threshold exactly, others one ulp beside."""
    node = make(neuron.KLIFNode, 1.7, v_reset=-0.5, step_mode="m")
    x = drive(node)[0].double()
    d, seen = describe(node), []
    d.step(x, (torch.full_like(x, -0.5),), (node.k.detach().double(),), lambda z: seen.append(z) or (z >= 0).double())
    near = seen[0].abs() < 1e-6
    assert near.sum() > 10 and 0 < node(x[None].float())[0][near].mean() < 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_dtypes(dtype):
    """float64: the framework's. Half input: spikes of its dtype, computed as the framework computes it in float32."""
    x = drive(make(neuron.KLIFNode, 1.7)).to(dtype)
    host = make(neuron.KLIFNode, 1.7, step_mode="m")
    ours = make(FusedKLIFNode, 1.7, step_mode="m")
    spikes = host(x if dtype == torch.float64 else x.float())
    assert_fires(spikes)
    assert_bit_equal(ours(x), spikes.to(dtype))
    assert_bit_equal(ours.v, host.v)


@pytest.mark.parametrize("scale", [False, True], ids=["as-is", "scaled"])
def test_k_per_neuron(scale):
    k = torch.linspace(0.6, 1.7, NEURONS)
    host, ours = (make(c, k, scale_reset=scale, v_reset=None, step_mode="m") for c in (neuron.KLIFNode, FusedKLIFNode))
    x = drive(host, shape=(3, NEURONS))
    out = [node(x) for node in (host, ours)]
    assert_fires(out[0])
    assert_bit_equal(out[1], out[0]), assert_bit_equal(ours.v, host.v)
    for spikes in out:
        (spikes * torch.linspace(-1, 1, NEURONS)).sum().backward()
    assert ours.k.grad.shape == (NEURONS,) and ours.k.grad.norm() > 0
    assert error(ours.k.grad, host.k.grad) < 1e-5  # two float32 sums over 37 steps x 3, in different order


# ---- gradients ----------------------------------------------------------------------------------------------------


def gradients(node, x, v0):
    """(spikes, gradients of x, v0 and k), of everything the node returns, weighted as the oracle weights it."""
    x, v0 = x.clone().requires_grad_(), v0.clone().requires_grad_()
    node.v, node.store_v_seq = v0, True
    spikes = run(node, x)
    outputs = (spikes, node.v, node.v_seq)
    weights = weights_for(MultiStep(spikes, (node.v,), (node.v_seq,), None))
    return spikes.detach(), torch.autograd.grad(outputs, (x, v0, node.k), weights)


@cases
def test_gradients(v_reset, decay, scale):
    """x, v0 and k within max(1e-5, twice the framework's own error) of float64 with the float32 run's spikes."""
    for (k, steps), detach in itertools.product(((1.0, 33), (1.7, 12), (0.6, STEPS)), (False, True)):
        options = {"v_reset": v_reset, "decay_input": decay, "scale_reset": scale, "detach_reset": detach}
        host = make(neuron.KLIFNode, k, step_mode="m", **options)
        v0 = 0.3 * torch.randn(NEURONS)
        x = drive(host, steps, v=v0)
        spikes, theirs = gradients(host, x, v0)
        assert_fires(spikes)
        truth = oracle(describe(host), x, (v0,), (host.k.detach(),), from_spikingjelly(host.surrogate_function),
                       record=True)
        assert torch.equal(truth.out.spikes.float(), spikes)
        for mode in "ms":
            got, found = gradients(make(FusedKLIFNode, k, step_mode=mode, **options), x, v0)
            assert_bit_equal(got, spikes)
            for name, mine, host_grad, wanted in zip(("x", "v0", "k"), found, theirs, truth.grads, strict=True):
                assert wanted.norm() > 0, f"gradient of {name} is zero: nothing is tested"
                bound = max(GRADIENT, TWICE * error(host_grad, wanted))
                assert error(mine, wanted) <= bound, f"{name} k={k} {mode}: {error(mine, wanted):.1e} > {bound:.1e}"


def test_bytes_kept_for_backward():
    """The input, a float32 state for every 32 steps after the first 32, and k; the framework keeps every step."""
    x, kept = torch.randn(64, 4096).requires_grad_(), {}

    def pack(t):
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    for cls, low, high in ((FusedKLIFNode, 4 + 4 / 64, 4.08), (neuron.KLIFNode, 12, 100)):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            make(cls, step_mode="m")(x)
        assert low <= sum(kept.values()) / x.numel() <= high, cls.__name__


# ---- the framework's equations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", [False, True])
def test_a_neuron_precision_takes_the_frameworks_steps(store):
    x, found = drive(make(neuron.KLIFNode, 1.7, scale_reset=True, v_reset=-0.3)), []
    for cls in (neuron.KLIFNode, FusedKLIFNode):
        node = make(cls, 1.7, step_mode="m", scale_reset=True, v_reset=-0.3, store_v_seq=store)  # not a float16
        node._neuron_precision = (torch.float16, "fp32", "fp32")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ours says that it leaves the kernels
            found.append((node(x), node.v, node.v_seq))
    assert_fires(found[0][0])
    for a, b in zip(*found):
        assert (a is None and b is None) if a is None else (a.dtype == b.dtype and torch.equal(a, b))
    assert (found[1][2] is not None) == store


def test_a_threshold_per_neuron_takes_the_frameworks_steps():
    host, ours = make(neuron.KLIFNode, 1.7, step_mode="m"), make(FusedKLIFNode, 1.7, step_mode="m")
    x = drive(host)
    host.v_threshold = ours.v_threshold = torch.linspace(0.5, 1.0, NEURONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got = ours(x)
    assert_fires(got)
    assert_bit_equal(got, host(x)), assert_bit_equal(ours.v, host.v)


# ---- a class like the framework's ------------------------------------------------------------------------------------


def test_is_the_frameworks_class_with_its_signature():
    theirs, mine = inspect.signature(neuron.KLIFNode).parameters, inspect.signature(FusedKLIFNode).parameters
    assert list(mine) == [*theirs, "backend"] and neuron.FusedKLIFNode is FusedKLIFNode
    assert all(mine[name].default is theirs[name].default for name in theirs)
    assert vars(FusedKLIFNode()).keys() == vars(neuron.KLIFNode()).keys()
    assert repr(FusedKLIFNode()) == repr(neuron.KLIFNode()).replace("KLIFNode", "FusedKLIFNode")


def test_overrides_names_what_a_subclass_changed():
    class Steep(neuron.KLIFNode):
        def single_step_functional_forward(self, inputs, states, **kwargs):
            return super().single_step_functional_forward((2 * inputs[0],), states, **kwargs)

    class SteepOfOurs(FusedKLIFNode):
        single_step_functional_forward = Steep.single_step_functional_forward

    assert overrides(FusedKLIFNode, neuron.KLIFNode) == [] == overrides(neuron.KLIFNode, neuron.KLIFNode)
    for cls in (Steep, SteepOfOurs):
        assert overrides(cls, neuron.KLIFNode) == ["single_step_functional_forward"]


def net():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 20), make(neuron.KLIFNode, 1.7, v_reset=-0.5), nn.Linear(20, 5),
                          make(neuron.KLIFNode, 1.2, scale_reset=True, v_reset=None, v_threshold=0.1))
    functional.set_step_mode(model, "m")
    return model


def step(model, x):
    functional.reset_net(model)
    model.zero_grad()
    y = model(x)
    (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum().backward()
    return y.detach(), [p.grad for p in model.parameters()]


def test_in_and_out_of_a_model():
    model, x = net(), 2 * torch.randn(9, 4, 6)
    y, grads = step(model, x)
    assert_fires(y)
    keys, objects = list(model.state_dict()), [id(p) for p in model.parameters()]
    assert retrofit(model, "neuron") is model and len(report(model).changed) == 2
    assert [type(m) for m in model][1::2] == [FusedKLIFNode] * 2
    assert list(model.state_dict()) == keys and [id(p) for p in model.parameters()] == objects
    y2, grads2 = step(model, x)
    assert torch.equal(y, y2)
    assert all(error(a, b) <= GRADIENT for a, b in zip(grads2, grads, strict=True))
    functional.reset_net(model)  # Torch copies no tensor that hangs in a graph
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(step(copied, x)[0], y) and type(restore(copied)[1]) is neuron.KLIFNode
    assert type(restore(model)[1]) is neuron.KLIFNode and torch.equal(step(model, x)[0], y)


def test_checkpoints_of_either_load_into_the_other():
    host, ours = make(neuron.KLIFNode, 1.7), make(FusedKLIFNode, 0.6)
    assert list(host.state_dict()) == list(ours.state_dict()) == ["k"]
    ours.load_state_dict(host.state_dict())
    assert ours.k.item() == host.k.item()
    make(neuron.KLIFNode, 1.0).load_state_dict(ours.state_dict())


def test_substitute_and_registry():
    with substitute("neuron"):
        node = neuron.KLIFNode(tau=3.0)
    assert type(node) is FusedKLIFNode
    row, = [row for row in registry.neurons("spikingjelly") if row.name == "FusedKLIFNode"]
    assert row.backends == ("reference", "native", "cuda") and row.alphabet == "binary"
    assert row.host is neuron.KLIFNode
