"""SpikingJelly's nir_exchange on our neurons: the same graph as of the native net, and back; or a refusal."""
import numpy as np
import pytest
import torch
from interop_nets import FORMS, METHODS, build, in_form, run, sample
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn

import sj_memext
from shared_core.errors import MemextError
from sj_memext.neuron import FusedIFNode, FusedLIFNode, FusedParametricLIFNode, ReversibleLIFNode, SharedLIFNode

nir = pytest.importorskip("nir")
pytest.importorskip("nirtorch")
from spikingjelly.activation_based import nir_exchange  # noqa: E402  needs both

OURS = (FusedIFNode, FusedLIFNode, FusedParametricLIFNode)


def net_of(form, mode):
    return in_form(form, mode, norm=False)  # NIR has no batch norm


def assert_same_graph(got, wanted):
    assert got.nodes.keys() == wanted.nodes.keys() and got.edges == wanted.edges
    for name, node in wanted.nodes.items():
        assert type(got.nodes[name]) is type(node)
        np.testing.assert_equal(got.nodes[name].to_dict(), node.to_dict())


def run_imported(net, x_seq, mode):
    """An imported net hands its states out and wants them back."""
    if mode == "m":
        return net(x_seq)[0]
    found, state = [], None
    for x in x_seq:
        y, state = net(x, state)
        found.append(y)
    return torch.stack(found)


@pytest.mark.parametrize("mode", "sm")
@pytest.mark.parametrize("form", FORMS)
def test_the_graph_is_that_of_the_native_net(form, mode):
    x = sample() if mode == "m" else sample()[0]
    wanted, net = nir_exchange.export_to_nir(build(mode, norm=False), x), net_of(form, mode)
    assert_same_graph(nir_exchange.export_to_nir(net, x), wanted)
    kinds = [type(node).__name__ for node in wanted.nodes.values()]
    assert kinds.count("LIF") == 3 and kinds.count("IF") == 1 and kinds.count("Conv2d") == 2


@pytest.mark.parametrize("mode", "sm")
@pytest.mark.parametrize("form", FORMS)
def test_there_and_back(form, mode, tmp_path):
    """Ours -> file -> the framework's own -> ours -> graph. The time constant goes through tau = dt / (1 / tau), so it
    may be one rounding apart: spikes are compared where no potential is that close to its threshold."""
    x, net = sample(), net_of(form, mode)
    wanted = run(net, x)
    assert 0.05 < wanted.mean() < 0.9
    functional.reset_net(net)
    nir_exchange.export_to_nir(net, x if mode == "m" else x[0], save_path=tmp_path / "net.nir")
    back = nir_exchange.import_from_nir(tmp_path / "net.nir", step_mode=mode)
    assert not any(isinstance(m, OURS) for m in back.modules())
    assert torch.equal(run_imported(back, x, mode), wanted)
    if form == "fused":
        with sj_memext.substitute("neuron"):
            again = nir_exchange.import_from_nir(tmp_path / "net.nir", step_mode=mode)
    else:
        again = sj_memext.retrofit(back, form, **METHODS[form])
    assert sum(isinstance(m, OURS) for m in again.modules()) == 4
    assert torch.equal(run_imported(again, x, mode), wanted)


@pytest.mark.parametrize("form", FORMS)
def test_an_imported_net_trains_with_native_s_gradient(form):
    x = sample()
    graph = nir_exchange.export_to_nir(build("m", norm=False), x)
    found = []
    for ours in (False, True):
        net = nir_exchange.import_from_nir(graph, step_mode="m")
        if ours:
            sj_memext.retrofit(net, *(["neuron"] if form == "fused" else [form]))
        net(x)[0].square().mean().backward()
        found.append(torch.cat([p.grad.flatten() for p in net.parameters()]))
    assert found[0].norm() > 0 and (found[0] - found[1]).norm() < 1e-5 * found[0].norm()  # float32 sums, other order


def test_an_export_leaves_states_alone():
    net, x = net_of("recompute", "m"), sample()
    run(net, x)
    before = [m.v.clone() for m in net if isinstance(m, OURS)]
    nir_exchange.export_to_nir(net, x)
    assert all(torch.equal(m.v, v) for m, v in zip((m for m in net if isinstance(m, OURS)), before, strict=True))


def shared_layers():
    """Two equal layers on one membrane."""
    net = nn.Sequential(layer.Linear(8, 8), neuron.LIFNode(), layer.Linear(8, 8), neuron.LIFNode())
    functional.set_step_mode(net, "m")
    return sj_memext.share(net, layers=[["1", "3"]])


REFUSED = {"reversible": lambda: nn.Sequential(layer.Linear(8, 8, step_mode="m"), ReversibleLIFNode(step_mode="m")),
           "retrofitted reversible": lambda: sj_memext.retrofit(
               nn.Sequential(layer.Linear(8, 8, step_mode="m"), neuron.IFNode(step_mode="m")), "reversible"),
           "shared channels": lambda: nn.Sequential(layer.Linear(8, 8, step_mode="m"), SharedLIFNode(2, step_mode="m")),
           "share(channels)": lambda: sj_memext.share(
               nn.Sequential(layer.Linear(8, 8, step_mode="m"), neuron.IFNode(step_mode="m")), channels=2),
           "share(layers)": shared_layers}


@pytest.mark.parametrize("name", REFUSED)
def test_what_nir_cannot_say_is_refused(name):
    net, x = REFUSED[name](), torch.rand(4, 3, 8)
    wanted = run(net, x)
    with pytest.raises(MemextError, match=r"cannot be exported: .*, which no neuron of .* has"):
        nir_exchange.export_to_nir(net, x)
    assert torch.equal(run(net, x), wanted)


def test_one_group_is_an_ordinary_lif():
    x = torch.rand(4, 3, 8)
    nets = [nn.Sequential(layer.Linear(8, 8, step_mode="m"), node(tau=1.8, step_mode="m"))
            for node in (neuron.LIFNode, lambda **options: SharedLIFNode(1, **options))]
    nets[1].load_state_dict(nets[0].state_dict())
    assert_same_graph(*(nir_exchange.export_to_nir(net, x) for net in nets))


@pytest.mark.parametrize("node", [neuron.SLTTLIFNode, neuron.KLIFNode, neuron.HalfThresholdIFNode])
def test_what_the_framework_cannot_export_is_not_exported_by_us(node):
    """It has no entry for them, traces some of them as if they were a container, and fails in words of its own."""
    with sj_memext.substitute("neuron"):
        ours = node()
    assert type(ours) is not type(node())
    for made in (node(), ours):
        with pytest.raises((KeyError, ValueError, torch.fx.proxy.TraceError)):
            nir_exchange.export_to_nir(nn.Sequential(layer.Linear(8, 8), made), torch.rand(3, 8))


def test_what_the_framework_refuses_stays_refused():
    for cls in (neuron.LIFNode, FusedLIFNode):
        with pytest.raises(NotImplementedError, match="soft reset"):
            nir_exchange.export_to_nir(nn.Sequential(layer.Linear(8, 8), cls(v_reset=None)), torch.rand(3, 8))


def test_a_class_of_the_user_s_stays_unknown():
    """Natively it is not in the table; retrofitting it does not bring it in."""
    class Mine(neuron.LIFNode):
        pass

    for net in (nn.Sequential(Mine()), sj_memext.retrofit(nn.Sequential(Mine()))):
        with pytest.raises(KeyError):
            nir_exchange.export_to_nir(nn.Sequential(layer.Linear(8, 8), *net), torch.rand(3, 8))
