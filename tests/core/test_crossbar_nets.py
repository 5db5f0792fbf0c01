"""Whole networks on crossbars and back: of both frameworks, plain, retrofitted, with shared membranes, reversible."""
import copy
import pickle

import pytest
import torch
from torch import nn

from shared_core._entering import Change
from shared_core.errors import MemextError
from shared_core.hardware import Crossbar

ROUGH = Crossbar(wire_ohm=3.0, read_noise=0.1, variation=0.1, adc_bits=5)


@pytest.fixture(scope="module")
def sj():
    return pytest.importorskip("sj_memext")


@pytest.fixture(scope="module")
def snn():
    pytest.importorskip("snntorch_memext")
    return pytest.importorskip("snntorch")


def spiking_jelly(step_mode="m"):
    from spikingjelly.activation_based import functional, layer, neuron
    torch.manual_seed(0)
    net = nn.Sequential(layer.Conv2d(1, 8, 3, padding=1, bias=False), layer.BatchNorm2d(8), neuron.LIFNode(tau=1.5),
                        layer.Conv2d(8, 8, 3, stride=2, padding=1), layer.BatchNorm2d(8), neuron.LIFNode(tau=1.5),
                        layer.Flatten(), layer.Linear(8 * 16, 10))
    functional.set_step_mode(net, step_mode)
    for norm in (net[1], net[4]):
        norm.running_var.fill_(0.05)  # so that neurons fire
    return net.eval()


def scores(net, x_seq):
    from spikingjelly.activation_based import functional
    functional.reset_net(net)
    fired = []
    hooks = [m.register_forward_hook(lambda m, i, o: fired.append(o.mean().item())) for m in (net[2], net[5])]
    found = net(x_seq) if net[0].step_mode == "m" else torch.stack([net(x) for x in x_seq])
    for hook in hooks:
        hook.remove()
    assert all(0.02 < sum(fired[i::2]) / len(fired[i::2]) < 0.9 for i in (0, 1)), fired
    functional.reset_net(net)
    return found


X = torch.rand(4, 3, 1, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("method", [None, "neuron", "compress", "recompute"])
def test_spikingjelly(sj, method):
    """The same result with native, fused and retrofitted layers, as names and seeds are the same; all comes back."""
    wanted_net = ROUGH.convert(spiking_jelly())
    wanted = scores(wanted_net, X)
    net = spiking_jelly()
    before = scores(net, X)
    if method:
        sj.retrofit(net, method)
    classes, keys = [type(m) for m in net.modules()], list(net.state_dict())
    objects = list(net.modules())
    assert ROUGH.convert(net) is net and list(net.modules()) == objects and list(net.state_dict()) == keys
    assert all(isinstance(m, cls) for m, cls in zip(net.modules(), classes))
    again = copy.deepcopy(net)
    found = scores(net, X)
    assert torch.equal(found, wanted) and not torch.equal(found, before) and not found.requires_grad
    assert torch.equal(scores(again, X), wanted)
    report = Crossbar.report(net)
    assert [(row.name, row.reads, row.digital) for row in report.layers] == [("0", 0, 1), ("3", 1, 0), ("7", 1, 0)]
    assert [row.kind for row in report.layers] == ["Conv2d", "Conv2d", "Linear"] and "0.6" in report.table()
    assert Crossbar.restore(net) is net and [type(m) for m in net.modules()] == classes
    assert torch.equal(scores(net, X), before)
    assert not any("crossbar" in key for m in net.modules() for key in m.__dict__)
    assert all("Crossbar" not in type(m).__name__ for m in net.modules())


@pytest.mark.parametrize("method", [None, "neuron", "compress", "recompute"])
def test_pickle_and_checkpoints(sj, method):
    net = spiking_jelly()
    plain = copy.deepcopy(net.state_dict())
    if method:
        sj.retrofit(net, method)
    ROUGH.convert(net)
    through = pickle.loads(pickle.dumps(net))
    wanted = scores(net, X)
    assert torch.equal(scores(through, X), wanted)
    Crossbar.restore(through)
    assert torch.equal(scores(through, X), scores(spiking_jelly(), X))
    with torch.no_grad():
        net[3].weight.mul_(0)
    through = ROUGH.convert(spiking_jelly())
    scores(through, X)  # one call behind, so that the numbers of reads agree
    assert not torch.equal(net(X), scores(through, X))
    net.load_state_dict(plain)  # a plain checkpoint loads, and the weights are written anew
    fresh = ROUGH.convert(spiking_jelly())
    for placed in (net, fresh):
        for name in ("0", "3", "7"):
            placed[int(name)].__dict__["_memext_on_crossbar"].reads = 0
    assert torch.equal(scores(net, X), scores(fresh, X))


def test_step_by_step_is_the_same_network(sj):
    """Without noise, step mode "s" gives what "m" gives."""
    crossbar = Crossbar(wire_ohm=3.0, variation=0.1, adc_bits=5)
    found = [scores(crossbar.convert(spiking_jelly(mode)), X) for mode in "ms"]
    # Sums of other lengths, and batch norm's: float32 rounding. Counts of the ADC are whole numbers and do not differ.
    assert torch.allclose(*found, atol=1e-5)


@pytest.mark.parametrize("made", ["snnTorch", "retrofitted"])
@torch.no_grad()
def test_snntorch(snn, made):
    import snntorch_memext

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv1d(2, 6, 3, padding=1), nn.BatchNorm1d(6)
            self.first = snn.Leaky(beta=0.8, threshold=0.3, init_hidden=True)
            self.head = nn.Linear(6 * 12, 5)
            self.last = snn.Leaky(beta=0.8, threshold=0.3, init_hidden=True, output=True)

        def forward(self, x_seq):
            self.first.reset_mem()
            self.last.reset_mem()
            return torch.stack([self.last(self.head(self.first(self.norm(self.conv(x))).flatten(1)))[1]
                                for x in x_seq])

    def build():
        torch.manual_seed(0)
        return Net().eval()

    x = (torch.rand(4, 3, 2, 12, generator=torch.Generator().manual_seed(1)) < 0.4).float()
    wanted = ROUGH.convert(build())(x)
    net = build()
    if made != "snnTorch":
        snntorch_memext.retrofit(net, "neuron")
    ideal = net(x)
    keys = list(net.state_dict())
    ROUGH.convert(net)
    assert list(net.state_dict()) == keys
    copied = copy.deepcopy(net)
    assert torch.allclose(net(x), wanted, atol=1e-6) and not torch.allclose(wanted, ideal, atol=1e-3)
    assert torch.allclose(copied(x), wanted, atol=1e-6)
    assert [(row.name, row.reads) for row in Crossbar.report(net).layers] == [("conv", 4), ("head", 4)]
    assert torch.equal(Crossbar.restore(net)(x), ideal)


def test_plain_layers_after_compress(sj):
    """Layers that keep spikes as bits run on crossbars, with a gradient to come and without; and they pickle."""
    from spikingjelly.activation_based import neuron
    net = nn.Sequential(nn.Linear(6, 6), neuron.LIFNode(), nn.Linear(6, 3))
    sj.retrofit(net, "compress")
    ROUGH.convert(net)
    x = torch.ones(2, 6)
    through = pickle.loads(pickle.dumps(net))
    assert torch.equal(through[0](x), net[0](x))
    x.requires_grad_()
    assert not net[0](x).requires_grad, "Torch's operator ran instead of the crossbars"
    with pytest.raises(MemextError, match=r"'0' cannot be restored: the adapter of Crossbar changed it afterwards"):
        sj.restore(net)
    Crossbar.restore(net)
    sj.restore(net)
    assert type(net[0]) is nn.Linear


@pytest.mark.parametrize("sharing", ["L", "C#2", "L+C#2"])
def test_shared_membranes(sj, sharing):
    from spikingjelly.activation_based import functional
    torch.manual_seed(0)
    net = sj.model.vgg16(sharing=sharing, widths=(4, 4, 4, 4, 4)).eval()
    before = net(X.expand(4, 3, 3, 8, 8).repeat(1, 1, 1, 4, 4))
    ROUGH.convert(net)
    functional.reset_net(net)
    found = net(X.expand(4, 3, 3, 8, 8).repeat(1, 1, 1, 4, 4))
    assert found.shape == before.shape and len(Crossbar.report(net).layers) == 14
    assert all(row.reads or row.digital for row in Crossbar.report(net).layers)
    functional.reset_net(Crossbar.restore(net))
    assert torch.equal(net(X.expand(4, 3, 3, 8, 8).repeat(1, 1, 1, 4, 4)), before)


@pytest.mark.parametrize("name", ["rev_spikformer", "t_revsnn"])
def test_reversible_networks(sj, name):
    """Convolutions of all kinds: 1-D, depthwise, transposed to no one, weights that are standardised in every call."""
    from spikingjelly.activation_based import functional
    torch.manual_seed(0)
    net = (sj.model.rev_spikformer(T=2, width=24, depth=1, heads=2) if name == "rev_spikformer" else
           sj.model.t_revsnn((8, 16, 24, 32), 10)).eval()
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        before = net(x)
        before = before[0] if isinstance(before, tuple) else before
        functional.reset_net(net)
        Crossbar(bits=8).convert(net)
        found = net(x)
        found = found[0] if isinstance(found, tuple) else found
    rows = Crossbar.report(net).layers
    assert len(rows) >= 10 and sum(row.reads > 0 for row in rows) > len(rows) / 2
    assert all(row.reads + row.digital for row in rows) and found.shape == before.shape
    functional.reset_net(Crossbar.restore(net))
    with torch.no_grad():
        after = net(x)
    assert torch.equal(after[0] if isinstance(after, tuple) else after, before)


def test_weights_made_in_every_call(sj):
    """A layer that standardises its weights (T-RevSNN's) hands over those, and they are what is written."""
    from sj_memext.model.t_revsnn_parts import ScaledConv2d
    conv = ScaledConv2d(4, 3, 3)
    x = (torch.rand(1, 4, 5, 5) < 0.5).float()
    with torch.no_grad():
        wanted = conv(x)
    Crossbar(bits=8).convert(nn.Sequential(conv))
    step = conv.standardised().abs().max().item() / 127
    assert (conv(x) - wanted).abs().max() <= step / 2 * 36 + 1e-5 and not torch.equal(conv(x), wanted)


def test_parametrized_weights():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(6, 3))
    x = torch.ones(1, 6)
    wanted = layer(x)
    Crossbar(bits=8).convert(nn.Sequential(layer))
    assert torch.allclose(layer(x), wanted, atol=0.05) and not layer(x).requires_grad
    Crossbar.restore(layer)
    assert torch.equal(layer(x), wanted)


# ---- what is refused, and changes nothing ----

class Own(nn.Linear):
    def forward(self, x):
        return torch.nn.functional.linear(x, self.weight * 2)


class Polite(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def replaced():
    layer = nn.Linear(3, 3)
    layer.forward = lambda x: x
    return layer


@pytest.mark.parametrize("odd, words", [
    (lambda: nn.ConvTranspose2d(3, 3, 2), r"'1' \(ConvTranspose2d\): a ConvTranspose2d is not simulated; name it"),
    (lambda: nn.Conv3d(3, 3, 2), "a Conv3d is not simulated"), (lambda: nn.Bilinear(3, 3, 3), "Bilinear is not"),
    (lambda: nn.MultiheadAttention(4, 2), r"'1' \(MultiheadAttention\): a MultiheadAttention is not simulated"),
    (lambda: nn.LazyLinear(3), "it has no weights yet; run the net once"),
    (Own, "computes something of its own; name it in skip"), (replaced, "its forward was replaced on this object"),
], ids=["transposed", "3-D", "bilinear", "attention", "lazy", "own", "replaced"])
def test_layers_that_cannot_be(odd, words):
    net = nn.Sequential(nn.Linear(3, 3), odd(3, 3) if odd is Own else odd())
    classes = [type(m) for m in net.modules()]
    with pytest.raises(MemextError, match=words):
        Crossbar().convert(net)
    assert [type(m) for m in net.modules()] == classes
    Crossbar().convert(net, skip=["1"])
    report = Crossbar.report(net)
    assert [row.name for row in report.layers] == ["0"] and report.skipped == ("1: named in skip",)
    assert [type(m) for m in Crossbar.restore(net).modules()] == classes


def test_subclasses_that_call_super_run_on_crossbars():
    layer = Polite(4, 3)
    x = torch.ones(2, 4)
    Crossbar(bits=8).convert(nn.Sequential(layer))
    plain = Polite.__base__.forward(copy.deepcopy(Crossbar.restore(layer)), x).detach() * 2
    Crossbar(bits=8).convert(layer)
    assert torch.allclose(layer(x), plain, atol=0.1) and not torch.equal(layer(x), plain)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), layer(x))


@pytest.mark.parametrize("call, words", [
    (lambda net: Crossbar().convert("net"), "Crossbar.convert: net is str; a torch.nn.Module is needed"),
    (lambda net: Crossbar().convert(nn.ReLU()), "no layer of this ReLU can be .*no convolution and no linear layer"),
    (lambda net: Crossbar().convert(net, skip="1"), r"skip is '1'; a list of names or patterns"),
    (lambda net: Crossbar().convert(net, skip=["x*"]), r"skip='x\*' fits no layer; the layers are: 0"),
    (lambda net: Crossbar().convert(net, skip=["*"]), "no layer of this Sequential can be put .*0: named in skip"),
    (lambda net: Crossbar.restore(net), "Crossbar.restore: no layer of this Sequential is on crossbars"),
    (lambda net: Crossbar.report(net), "Crossbar.report: no layer"),
    (lambda net: Crossbar().convert(Crossbar().convert(net)), r"'0' \(.*\): it is on crossbars already; call"),
])
def test_bad_calls(call, words):
    with pytest.raises(MemextError, match=words):
        call(nn.Sequential(nn.Linear(3, 3)))


def test_weights_that_cannot_be_stored_are_named():
    net = nn.ModuleDict({"head": nn.Linear(3, 3)})
    Crossbar().convert(net)
    with torch.no_grad():
        net["head"].weight[0, 0] = float("inf")
    with pytest.raises(MemextError, match="Crossbar: 'head': a weight is infinite or not a number"):
        net["head"](torch.ones(1, 3))


def test_somebody_changed_the_class_afterwards():
    net = nn.Sequential(nn.Linear(3, 3))
    Crossbar().convert(net)
    was = type(net[0])
    net[0].__class__ = type("Later", (was,), {})
    with pytest.raises(MemextError, match="'0' cannot be taken back: it was made"):
        Crossbar.restore(net)
    net[0].__class__ = was
    Crossbar.restore(net)


def test_a_failure_half_way_changes_nothing(monkeypatch):
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    apply, calls = Change.apply, []

    def second_fails(self, *args):
        calls.append(self.name)
        if len(calls) == 2:
            raise RuntimeError("no")
        return apply(self, *args)

    monkeypatch.setattr(Change, "apply", second_fails)
    with pytest.raises(MemextError, match=r"changing '1' failed \(RuntimeError: no\); the model is as it was"):
        Crossbar().convert(net)
    assert [type(m) for m in net] == [nn.Linear] * 2 and all("memext" not in key for m in net for key in vars(m))


def test_one_layer_used_twice_and_inner_modules_of_wrappers():
    layer = nn.Linear(4, 4)
    net = nn.DataParallel(nn.Sequential(layer, nn.Threshold(0.0, 0.0), layer))
    Crossbar().convert(net, skip=())
    assert [row.name for row in Crossbar.report(net).layers] == ["0"]
    with pytest.raises(MemextError, match="no layer of this Sequential can be put"):
        Crossbar().convert(Crossbar.restore(net), skip=["2"])
