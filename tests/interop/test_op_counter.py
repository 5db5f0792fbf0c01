"""SpikingJelly's op_counter counts the same on our neurons as on its own: every operator, state access and module."""
import dataclasses
import warnings

import pytest
import torch
from interop_nets import FORMS, build, in_form, plain, run, sample
from spikingjelly.activation_based import functional, layer, neuron, op_counter

import sj_memext
from sj_memext._exchange import operations_are_counted
from sj_memext.neuron import FusedLIFNode, ReversibleLIFNode, SharedLIFNode

COUNTERS = {cls.__name__: cls for cls in (op_counter.FlopCounter, op_counter.MACCounter, op_counter.ACCounter,
                                          op_counter.SynOpCounter, op_counter.MemoryAccessCounter,
                                          op_counter.NeuronStateCounter)}
pytestmark = pytest.mark.filterwarnings("ignore:.*SpikingJelly's own equations")


def counted(net, x, counter, backward=False):
    """{module: {operator: count}}, without what costs nothing (views)."""
    functional.reset_net(net)
    counter = counter()
    with torch.set_grad_enabled(backward), op_counter.DispatchCounterMode([counter]):
        out = net(x)
        if backward:
            out.sum().backward()
    return {name: {operator: n for operator, n in of.items() if n} for name, of in counter.get_counts().items()}


@pytest.mark.parametrize("mode", "ms")
@pytest.mark.parametrize("name", COUNTERS)
def test_every_counter_counts_what_it_counts_natively(name, mode):
    """Per module and operator, not only in total."""
    x = sample() if mode == "m" else sample()[0]
    wanted = counted(build(mode), x, COUNTERS[name])
    # MACs and synaptic operations are of layers; the others must have seen operators of neurons, or say nothing here
    of_neurons = any(operators and type(module) is neuron.LIFNode
                     for path, operators in wanted.items() for module in [module_at(build(mode), path)])
    assert of_neurons or name in ("MACCounter", "SynOpCounter")
    for form in FORMS:
        assert counted(in_form(form, mode), x, COUNTERS[name]) == wanted, form


def module_at(net, path):
    """op_counter calls modules 'Sequential.1'."""
    try:
        return net.get_submodule(path.partition(".")[2])
    except AttributeError:
        return None


@pytest.mark.parametrize("name", ["FlopCounter", "MemoryAccessCounter", "NeuronStateCounter"])
def test_training_steps_count_the_same_where_nothing_is_run_again(name):
    wanted = counted(build(), sample(), COUNTERS[name], True)
    for form in ("fused", "compress"):
        assert counted(in_form(form), sample(), COUNTERS[name], True) == wanted, form


def test_what_recompute_runs_again_is_counted():
    """Convolutions are run a second time, and their multiplications happen."""
    native = counted(build(), sample(), op_counter.MACCounter, True)
    again = counted(in_form("recompute"), sample(), op_counter.MACCounter, True)
    total = lambda found: sum(found["Global"].values())  # noqa: E731
    assert total(native) < total(again) <= 2 * total(native)


def energy(estimate, net, x):
    functional.reset_net(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return dataclasses.asdict(estimate(net, x, **LENIENT.get(estimate.__name__, {})))


LENIENT = {"estimate_lemaire_energy": {"config": op_counter.LemaireEnergyConfig(strict=False)}}  # it has no Flatten


@pytest.mark.parametrize("mode", "ms")
@pytest.mark.parametrize("name", ["simple", "lemaire", "spikesim"])
def test_energy_of_an_inference_is_native_s(name, mode):
    estimate = getattr(op_counter, f"estimate_{name}_energy")
    x = sample() if mode == "m" else sample()[0]
    wanted = energy(estimate, plain(mode).eval(), x)
    assert wanted.get("energy_total_pj", wanted.get("total_pj")) > 0
    for form in FORMS:
        assert energy(estimate, in_form(form, mode, plain).eval(), x) == wanted, form


def neuromc(net):
    functional.reset_net(net)
    profiler, x = op_counter.NeuroMCEnergyProfiler(), sample().requires_grad_()
    profiler.bind_model(net)
    with profiler:
        net(x.flatten(2)).sum().backward()
    return dataclasses.asdict(profiler.get_report())


def of_ifs(step_mode):
    """NeuroMC knows no subtraction's backward, so it has no LIF's."""
    torch.manual_seed(3)
    net = torch.nn.Sequential(layer.Linear(128, 16, bias=False), neuron.IFNode(0.5, detach_reset=True),
                              layer.Linear(16, 5, bias=False), neuron.IFNode(0.2, detach_reset=True))
    functional.set_step_mode(net, step_mode)
    return net


def test_neuromc_knows_our_neurons_and_refuses_our_layers():
    """It knows a list of operators of training, and says which it met that are not in it."""
    wanted = neuromc(of_ifs("m"))
    assert sum(v for k, v in wanted.items() if "energy" in k and isinstance(v, float)) > 0
    for form in ("fused", "neuron"):
        assert neuromc(in_form(form, make=of_ifs)) == wanted
    with pytest.raises(ValueError, match="does not support these aten ops"):
        neuromc(in_form("compress", make=of_ifs))


def test_values_do_not_change_while_they_are_counted():
    for form in FORMS:
        net, x = in_form(form), sample()
        wanted = run(net, x)
        with op_counter.DispatchCounterMode([op_counter.FlopCounter()]):
            assert operations_are_counted() and torch.equal(run(net, x), wanted)
        assert not operations_are_counted()


def test_shared_and_reversible_neurons_are_counted_operator_by_operator():
    x = torch.rand(4, 3, 8)
    for node in (SharedLIFNode(2, step_mode="m"), ReversibleLIFNode(step_mode="m")):
        found = [counted(torch.nn.Sequential(node), x[:steps], op_counter.FlopCounter)["Global"] for steps in (2, 4)]
        assert 0 < 2 * sum(found[0].values()) <= sum(found[1].values()) + 1, (type(node), found)
        assert sum(found[1].values()) >= 4 * x[0].numel()  # at least one operation a step and neuron


def test_no_other_mode_takes_the_kernels_away(monkeypatch):
    """Only a counter does: what measures memory must see what really runs."""
    from torch.utils.flop_counter import FlopCounterMode

    node = FusedLIFNode(step_mode="m")
    monkeypatch.setattr(FusedLIFNode, "_framework_steps", None)
    with FlopCounterMode(display=False):
        assert not operations_are_counted() and node(torch.rand(4, 3, 8)).shape == (4, 3, 8)
    with pytest.raises(TypeError), op_counter.DispatchCounterMode([op_counter.FlopCounter()]):
        node(torch.rand(4, 3, 8))


def test_why_counting_is_slower_is_said_once(monkeypatch):
    monkeypatch.setattr("sj_memext.neuron._said", set())
    net = torch.nn.Sequential(layer.Linear(8, 8, step_mode="m"), FusedLIFNode(step_mode="m"))
    with pytest.warns(RuntimeWarning, match="own equations: its operations are being counted") as said:
        for _ in range(2):
            with op_counter.DispatchCounterMode([op_counter.FlopCounter()]):
                run(net, torch.rand(4, 3, 8))
    assert len([w for w in said if "being counted" in str(w.message)]) == 1


def test_a_restored_net_counts_as_before():
    wanted = counted(build(), sample(), op_counter.FlopCounter)
    net = sj_memext.restore(in_form("recompute"))
    assert counted(net, sample(), op_counter.FlopCounter) == wanted
