"""What the doctor says of published code: T and N, the neurons, and what matters of each family."""
from functools import partial

import pytest
from zoo_families import BATCH, FAMILIES, T, is_neuron

from shared_core import explain

# Family -> (how time is stepped, class, class it becomes, keys of findings)
STEPS, LOOP = "multi-step", "step by step, Python loop"
RESET = {"needs reset"}
SEEN = {
    "spikformer": (STEPS, "MultiStepLIFNode", RESET),
    "spike-driven transformer, PLIF": (STEPS, "MultiStepParametricLIFNode", RESET),
    "QKFormer": (STEPS, "MultiStepLIFNode", RESET),
    "SEW-ResNet ADD, activation_based": (STEPS, "IFNode", RESET),
    "SEW-ResNet ADD, clock_driven": (STEPS, "MultiStepIFNode", RESET),
    "SEW-ResNet ADD, cext": (STEPS, "MultiStepIFNode", RESET),
    "membrane-shared VGG": (LOOP, "LIFNode", RESET | {"shared", "looped"}),
    "reversible ResNet": (STEPS, "MultiStepIFNode", RESET),
    "PLIF net, static": (LOOP, "ParametricLIFNode", RESET | {"looped"}),
    "PLIF net, events": (LOOP, "ParametricLIFNode", RESET | {"looped"}),
    "MS-ResNet, mem_update": ("by hand, Python loop", "mem_update", {"by hand"}),
    "integer neurons, mem_update": ("by hand, Python loop", "mem_update", {"by hand"}),
    "TET VGG, LIFSpike": ("by hand, Python loop", "LIFSpike", {"by hand"}),
}


@pytest.mark.parametrize("name", SEEN)
def test_what_is_seen_of_a_family(name):
    mode, kind, keys = SEEN[name]
    net, batches = FAMILIES[name].make()
    found = explain(net, batches[0][0], plan=False)
    assert (found.T, found.N) == (T, BATCH)
    assert {n.name for n in found.neurons} == {n for n, m in net.named_modules() if is_neuron(m)}
    assert {n.kind for n in found.neurons} == {kind} and mode in found.text()
    assert {f.key for f in found.findings} == keys and not found.problems
    assert all((n.ours is None) == (n.framework == "by hand") for n in found.neurons)


def test_parameters_inside_a_function_that_runs_its_own_backward_have_a_gradient():
    """RevSNN's blocks are behind one node of the graph, whose modules are found on its ctx."""
    net, batches = FAMILIES["reversible ResNet"].make()
    found = explain(net, batches[0][0], plan=False)
    assert not {"unused", "no gradient"} & {f.key for f in found.findings}


def test_a_shared_membrane_is_said_to_be_one():
    net, batches = FAMILIES["membrane-shared VGG"].make()
    found = explain(net, batches[0][0], plan=False)
    assert {n.name: n.per_step for n in found.neurons} == {"lif1": 1, "lif2": 1, "lif3": 2, "lif5": 3}


def test_ottt_is_stepped_from_outside_and_its_nodes_are_left():
    net, batches = FAMILIES["OTTT VGG, activation_based"].make()
    found = explain(net, batches[0][0], steps=T, plan=False)
    assert found.T == T and {n.kind for n in found.neurons} == {"OTTTLIFNode"}
    left, = [f for f in found.findings if f.key == "left"]
    assert len(left.modules) == 3 and "computes something else" in left.text


@pytest.mark.parametrize("name", ["SEW-ResNet ADD, clock_driven", *(pytest.param(name, marks=pytest.mark.slow) for name
                                  in ("spikformer", "membrane-shared VGG", "MS-ResNet, mem_update"))])
def test_what_is_advised_saves_what_was_expected(name):
    """The step is run with the advice and without. The prediction also counts parameters and the input."""
    import sj_memext
    from shared_core import checkpoint
    from shared_core.memory import measure

    family = FAMILIES[name]
    net, batches = family.make()
    found = explain(net, batches[0][0])
    best = min(found.methods, key=lambda m: m.peak)
    assert found.advice.startswith(best.call) and best.of_native < 0.6
    peaks = []
    for call in ("net", best.call.replace("shared_core.checkpoint.", "checkpoint.")):
        net, batches = family.make()
        net = eval(call, {"net": net, "sj_memext": sj_memext, "checkpoint": checkpoint})
        family.step(net, *batches[0])
        net.zero_grad()
        peaks.append(measure(partial(family.step, net, *batches[0]), timeline=False).peak_bytes)
    shares = peaks[1] / peaks[0], best.of_native
    print(f"{name}: {shares[0]:.2f} of native's peak measured, {shares[1]:.2f} expected")
    assert abs(shares[0] - shares[1]) < 0.1
