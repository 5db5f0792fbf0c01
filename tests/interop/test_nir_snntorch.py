"""snnTorch's NIR exchange on our neurons: the same graph as of the native net, and back; or a refusal.

snnTorch 1.0.0 exports neither the reset mechanism nor its delay, and imports reset="zero" without delay: nets of that
kind come back equal. With the installed NIR it needs beta and threshold per neuron.
"""
import numpy as np
import pytest
import snntorch as snn
import torch
from snntorch import utils
from torch import nn

import snntorch_memext
from shared_core.errors import MemextError
from snntorch_memext.neurons import FusedLeaky, FusedSynaptic, ReversibleLeaky, SharedLeaky

pytest.importorskip("nir")
pytest.importorskip("nirtorch")
from snntorch.export_nir import export_to_nir
from snntorch.import_nir import import_from_nir

FORMS = ("fused", "neuron")
ZERO = {"reset_mechanism": "zero", "reset_delay": False, "init_hidden": True}
pytestmark = pytest.mark.filterwarnings("ignore:nirtorch.extract_nir_graph is being deprecated")


def build(**options):
    torch.manual_seed(1)
    options, each = {**ZERO, **options}, lambda value, n: torch.full((n,), value)
    net = nn.Sequential(nn.Linear(16, 8), snn.Leaky(each(0.9, 8), each(0.5, 8), **options), nn.Linear(8, 6, bias=False),
                        snn.Synaptic(each(0.6, 6), each(0.8, 6), each(0.4, 6), **options), nn.Linear(6, 5),
                        snn.Leaky(each(0.7, 5), each(0.3, 5), **options))
    with torch.no_grad():
        for module in net[::2]:
            module.weight.mul_(3)
    return net


def in_form(form, **options):
    if form == "fused":
        with snntorch_memext.substitute():
            return build(**options)
    return snntorch_memext.retrofit(build(**options))


def sample():
    return torch.rand(6, 3, 16, generator=torch.Generator().manual_seed(2)) * 2


def run(net, x_seq):
    """Nets that were imported return (output, states), and hold their membranes as well."""
    utils.reset(net)
    for module in net.modules():  # utils.reset sees what stands in the framework's list
        if isinstance(module, snn.SpikingNeuron):
            module.reset_mem()
    found = [net(x) for x in x_seq]
    return torch.stack([y[0] if isinstance(y, tuple) else y for y in found])


def export(net):
    return export_to_nir(net, sample()[0], ignore_dims=[0])


@pytest.mark.parametrize("form", FORMS)
def test_the_graph_is_that_of_the_native_net(form):
    wanted, got = export(build()), export(in_form(form))
    assert got.nodes.keys() == wanted.nodes.keys() and sorted(got.edges) == sorted(wanted.edges)
    for name, node in wanted.nodes.items():
        assert type(got.nodes[name]) is type(node)
        np.testing.assert_equal(got.nodes[name].to_dict(), node.to_dict())
    kinds = [type(node).__name__ for node in wanted.nodes.values()]
    assert kinds.count("LIF") == 2 and kinds.count("CubaLIF") == 1


@pytest.mark.parametrize("form", FORMS)
def test_there_and_back(form):
    """beta goes through tau = dt / (1 - beta), in float32."""
    x, net = sample(), in_form(form)
    wanted = run(net, x)
    assert 0.05 < wanted.mean() < 0.95
    graph = export(net)
    back = import_from_nir(graph)
    assert not any(isinstance(m, FusedLeaky | FusedSynaptic) for m in back.modules())
    native = run(back, x)
    assert torch.equal(native, wanted)
    if form == "fused":
        with snntorch_memext.substitute():
            again = import_from_nir(graph)
    else:
        again = snntorch_memext.retrofit(back)
    assert sum(isinstance(m, FusedLeaky | FusedSynaptic) for m in again.modules()) == 3
    assert torch.equal(run(again, x), wanted)


def test_an_imported_net_trains_with_native_s_gradient():
    graph, found = export(build()), []
    for ours in (False, True):
        net = import_from_nir(graph)
        if ours:
            snntorch_memext.retrofit(net)
        run(net, sample()).square().mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert found[0].norm() > 0 and (found[0] - found[1]).norm() < 1e-5 * found[0].norm()  # float32 sums, other order


def test_recurrent_neurons_are_exported_beside_ours():
    """They are not ours, and the exporter asks itself for their weights."""
    nets = [nn.Sequential(nn.Linear(16, 4), snn.RLeaky(0.9, V=torch.rand(4), all_to_all=False, **ZERO),
                          nn.Linear(4, 5), snn.Leaky(torch.full((5,), 0.7), torch.full((5,), 1.0), **ZERO))
            for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    wanted, got = export(nets[0]), export(snntorch_memext.retrofit(nets[1]))
    assert sorted(got.nodes) == sorted(wanted.nodes) and "1.lif" in got.nodes


def joined():
    net = nn.Sequential(nn.Linear(16, 8), snn.Leaky(0.9, init_hidden=True), nn.Linear(8, 8),
                        snn.Leaky(0.9, init_hidden=True))
    return snntorch_memext.share(net, layers=[["1", "3"]])


REFUSED = {"reversible": lambda: nn.Sequential(nn.Linear(16, 8), ReversibleLeaky(0.5, init_hidden=True)),
           "shared channels": lambda: nn.Sequential(nn.Linear(16, 8), SharedLeaky(2, beta=0.5, init_hidden=True)),
           "share(channels)": lambda: snntorch_memext.share(
               nn.Sequential(nn.Linear(16, 8), snn.Leaky(0.5, init_hidden=True)), channels=2),
           "share(layers)": joined}


@pytest.mark.parametrize("name", REFUSED)
def test_what_nir_cannot_say_is_refused(name):
    """Natively each of them would be exported as the Leaky that it derives from, without a word."""
    with pytest.raises(MemextError, match=r"cannot be exported: .*, which no neuron of snnTorch .* has"):
        export(REFUSED[name]())


def test_one_group_is_an_ordinary_leaky():
    nets = [nn.Sequential(nn.Linear(16, 5), make(beta=torch.full((5,), 0.7), threshold=torch.full((5,), 1.0), **ZERO))
            for make in (snn.Leaky, lambda **options: SharedLeaky(1, **options))]
    nets[1].load_state_dict(nets[0].state_dict())
    wanted, got = map(export, nets)
    for name, node in wanted.nodes.items():
        np.testing.assert_equal(got.nodes[name].to_dict(), node.to_dict())
