"""SpikingJelly's converters for Lava and Lynxi on our neurons: the same blocks as of native nodes, or a refusal.

lava-dl does not install beside current Torch, so lava_exchange is imported once more here with a stand-in for slayer
that records what it is asked to build; all that the converters themselves do is real.
"""
import importlib.util
import sys
import types

import pytest
import torch
from interop_nets import METHODS
from spikingjelly.activation_based import functional, layer, lynxi_exchange, neuron
from torch import nn

import sj_memext
from shared_core.errors import MemextError
from sj_memext.neuron import FusedIFNode, FusedLIFNode, ReversibleLIFNode, SharedLIFNode


class Recorded:
    """A block of slayer: what it was built of, and the weights that were written into it."""

    def __init__(self, *args, **options):
        self.built, self.written = (args, options), []
        self.synapse = types.SimpleNamespace(weight=types.SimpleNamespace(data=self))
        self.neuron = types.SimpleNamespace(norm=None)

    def __setitem__(self, where, value):
        self.written.append(value.clone())


@pytest.fixture
def lava(monkeypatch):
    """lava_exchange as it is where lava-dl is installed."""
    kinds = {name: type(name, (Recorded,), {}) for name in ("Dense", "Conv", "Pool", "Flatten", "Neuron")}
    space = types.SimpleNamespace
    slayer = types.ModuleType("lava.lib.dl.slayer")
    slayer.block = space(cuba=space(**kinds))
    slayer.neuron, slayer.synapse = space(cuba=space(**kinds)), space(**kinds)
    for name in ("lava", "lava.lib", "lava.lib.dl"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "lava.lib.dl.slayer", slayer)
    sys.modules["lava.lib.dl"].slayer = slayer
    here = importlib.util.find_spec("spikingjelly.activation_based.lava_exchange")
    spec = importlib.util.spec_from_file_location("spikingjelly.activation_based._lava_exchange_here", here.origin)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build():
    """Lava takes v_reset = 0, no decay of the input, no bias."""
    torch.manual_seed(2)
    lif = {"tau": 1.8, "decay_input": False, "v_threshold": 0.7}
    net = nn.Sequential(layer.Conv2d(2, 4, 3, bias=False), neuron.IFNode(0.6), layer.Flatten(1),
                        layer.Linear(4 * 36, 9, bias=False), neuron.LIFNode(**lif), layer.Linear(9, 5, bias=False),
                        neuron.LIFNode(**lif))
    with torch.no_grad():
        for module in (net[0], net[3], net[5]):
            module.weight.mul_(4)
    functional.set_step_mode(net, "m")
    net[4].lava_s_cale = 32  # users tune it
    return net


def in_form(form):
    if form == "fused":
        with sj_memext.substitute("neuron"):
            return build()
    return sj_memext.retrofit(build(), form, **METHODS[form])


def assert_same_blocks(got, wanted):
    assert [type(block) for block in got] == [type(block) for block in wanted]
    for a, b in zip(got, wanted):
        assert a.built == b.built and all(map(torch.equal, a.written, b.written)) and len(a.written) == len(b.written)


@pytest.mark.parametrize("form", ["fused", *METHODS])
def test_blocks_are_those_of_the_native_net(lava, form):
    wanted, net = lava.to_lava_blocks(build()), in_form(form)
    assert_same_blocks(lava.to_lava_blocks(net), wanted)
    assert [type(block).__name__ for block in wanted] == ["Conv", "Flatten", "Dense", "Dense"]
    assert wanted[2].built[0][0]["scale"] == 32 and wanted[2].built[0][0]["voltage_decay"] == 1 / 1.8
    assert isinstance(net[1], FusedIFNode) and isinstance(net[4], FusedLIFNode)


@pytest.mark.parametrize("form", ["fused", *METHODS])
def test_block_containers_quantize_and_run_as_native_s(lava, form):
    x, found = torch.rand(5, 3, 9), []
    for net in (build(), in_form(form)):
        block = lava.BlockContainer(net[5], net[6], step_mode="m")
        found.append(block(x * 4))
        assert type(block.neuron) is lava.CubaLIFNode and block.neuron.scale == 64
    assert torch.equal(*found) and 0.05 < found[0].mean() < 0.95


def test_lava_s_own_neuron_is_left_as_it_is(lava):
    """CubaLIFNode is another neuron. Retrofitting a net of them says so."""
    from spikingjelly.activation_based import lava_exchange

    node = lava_exchange.CubaLIFNode(0.25, 0.25, 1.0, scale=64, step_mode="m")
    net = nn.Sequential(layer.Linear(8, 8, bias=False, step_mode="m"), node, neuron.LIFNode(step_mode="m"))
    x = torch.rand(4, 3, 8)
    wanted = net(x)
    functional.reset_net(net)
    sj_memext.retrofit(net)
    assert type(net[1]) is lava_exchange.CubaLIFNode and torch.equal(net(x), wanted)


def test_the_scale_is_kept_where_it_was():
    node = FusedLIFNode()
    assert node.lava_s_cale == 64 and vars(node)["lava_s_cale"] == 64
    node.lava_s_cale = 32
    assert node.lava_s_cale == vars(node)["lava_s_cale"] == 32
    net = sj_memext.retrofit(nn.Sequential(neuron.LIFNode()))
    net[0].lava_s_cale = 16
    assert sj_memext.restore(net)[0].lava_s_cale == 16


ANOTHER = {"reversible LIF": lambda: ReversibleLIFNode(),
           "reversible IF": lambda: sj_memext.retrofit(nn.Sequential(neuron.IFNode()), "reversible")[0],
           "shared": lambda: SharedLIFNode(2, decay_input=False),
           "share(channels)": lambda: sj_memext.share(
               nn.Sequential(layer.Linear(8, 8), neuron.IFNode()), channels=2)[1]}


@pytest.mark.parametrize("name", ANOTHER)
def test_neurons_that_lava_and_lynxi_have_not_are_refused(lava, name):
    """Natively an isinstance would take them for the IF or LIF that they derive from."""
    node = ANOTHER[name]()
    if isinstance(node, neuron.LIFNode):
        node.decay_input = False
    with pytest.raises(MemextError, match=r"lava_exchange: a \w+ cannot be exported"):
        lava.to_lava_blocks([layer.Linear(8, 8, bias=False), node])
    with pytest.raises(MemextError, match=r"to_lynxi_supported_module: a \w+ cannot be exported"):
        lynxi_exchange.to_lynxi_supported_modules([layer.Linear(8, 8), node], 4)


def test_one_group_is_an_ordinary_lif(lava):
    nodes = neuron.LIFNode(decay_input=False), SharedLIFNode(1, decay_input=False)
    assert lava.to_lava_neuron_param_dict(nodes[1]) == lava.to_lava_neuron_param_dict(nodes[0])


@pytest.mark.parametrize("form", ["fused", *METHODS])
def test_lynxi_gets_the_same_modules_as_from_the_native_net(form):
    x, found = torch.rand(4, 3, 2, 8, 8), []
    for net in (build(), in_form(form)):
        modules = lynxi_exchange.to_lynxi_supported_modules(net.eval(), T=4)
        assert not any("memext" in name for m in modules for name in vars(m))
        y = x.flatten(0, 1)
        for module in modules:
            y = module(y)
        found.append(([type(m) for m in modules], y))
    assert found[0][0] == found[1][0] and torch.equal(found[0][1], found[1][1]) and 0.02 < found[0][1].mean() < 0.98
