"""ANN conversion: SpikingJelly's recipes on a net trained on digits give the same outputs with our neurons, whether
those were there when it was converted or came afterwards; and the converted net trains on with native's gradient."""
import copy
import json
import pickle
from pathlib import Path

import pytest
import torch
from spikingjelly.activation_based import ann2snn, functional, layer, neuron
from torch import nn
from torch.nn.functional import cross_entropy

import sj_memext
from sj_memext.functional import multi_step_forward
from sj_memext.half_threshold import FusedHalfThresholdIFNode
from sj_memext.neuron import FusedIFNode

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
RECIPES = ("rate coding, max", "rate coding, 99.9%", "rate coding, max / 2", "rate coding, per channel",
           "local threshold balancing", "QCFS")
METHODS = ("neuron", "compress", "recompute")
OURS = (FusedIFNode, FusedHalfThresholdIFNode)
STEPS, BATCH, TEST = 6, 16, 150
GRADIENT = 1e-5  # of the norm: float32, sums over time in another order
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*tostring")


@pytest.fixture(scope="module")
def example():
    """examples/ann2snn.py and examples/_data.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXAMPLES))
        import _data
        import ann2snn as module
        yield module, _data


@pytest.fixture(scope="module")
def digits(example):
    return example[1].load()


@pytest.fixture(scope="module")
def anns(example, digits):
    """(net of ReLUs, net of QCFS activations), after seconds of training, and 8 batches to calibrate with."""
    module, data = example
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    batches = data.batches(digits[0], 32, 60, 0)
    torch.manual_seed(0)
    found = [module.train(module.build(kind), batches) for kind in (nn.ReLU, module.Qcfs)]
    torch.set_num_threads(threads)
    return *found, [(batch.images, batch.labels) for batch in batches[:8]]


def convert(example, anns, name):
    module, _ = example
    relu, quantized, loader = anns
    if name == "QCFS":
        return module.convert_qcfs(quantized)
    return module.convert(relu, module.recipes(loader)[name])


def outputs(net, images, mode):
    """[T, n, 10] from rest, without a gradient."""
    functional.set_step_mode(net, mode)
    functional.reset_net(net)
    with torch.no_grad():
        if mode == "m":
            return net(images.expand(STEPS, *images.shape))
        return torch.stack([net(images) for _ in range(STEPS)])


def accuracy(out, test):
    return (out.sum(0).argmax(1) == test.labels).float().mean().item()


def neurons(net):
    return [m for m in net.modules() if isinstance(m, neuron.BaseNode)]


# A module's own step mode does not reach nn.Conv2d; the recipes wrap what needs it, a Sequential of ours does not.
def modes(name):
    return "s" if name == "QCFS" else "sm"


@pytest.mark.parametrize("name", RECIPES)
def test_our_neurons_after_the_conversion(example, anns, digits, name):
    snn, test = convert(example, anns, name), digits[1][:TEST]
    for mode in modes(name):
        wanted = outputs(snn, test.images, mode)
        assert accuracy(wanted, test) > 0.7  # chance is 0.1; the net itself: 0.85 after these seconds
        rates = [m.v.isfinite().all() for m in neurons(snn)]
        assert len(rates) == 2 and all(rates)
        for method in METHODS:
            ours = sj_memext.retrofit(copy.deepcopy(snn), method)
            assert all(isinstance(m, OURS) for m in neurons(ours)) and not sj_memext.report(ours).skipped
            out = outputs(ours, test.images, mode)
            assert torch.equal(out, wanted) and accuracy(out, test) == accuracy(wanted, test)
            assert all(torch.equal(a.v, b.v) for a, b in zip(neurons(ours), neurons(snn)))
            assert list(ours.state_dict()) == list(snn.state_dict())


@pytest.mark.parametrize("name", RECIPES)
def test_our_neurons_at_the_conversion(example, anns, digits, name):
    test = digits[1][:TEST]
    wanted = outputs(convert(example, anns, name), test.images, "s")
    with sj_memext.substitute("neuron"):
        ours = convert(example, anns, name)
    assert all(isinstance(m, OURS) for m in neurons(ours)) and len(neurons(ours)) == 2
    assert torch.equal(outputs(ours, test.images, "s"), wanted)
    restored = sj_memext.restore(ours)
    assert not any(isinstance(m, OURS) for m in neurons(restored))
    assert torch.equal(outputs(restored, test.images, "s"), wanted)


def test_a_neuron_factory_of_ours(anns, digits):
    """The recipe's own door for other neurons; the threshold is the layer's scale."""
    relu, _, loader = anns
    found = []
    for cls in (neuron.IFNode, FusedIFNode):
        recipe = ann2snn.RateCodingRecipe(loader, mode="99.9%", neuron_factory=lambda scale, cls=cls: cls(scale, None))
        snn = ann2snn.FXConverter(recipe).convert(copy.deepcopy(relu))
        assert [type(m) for m in neurons(snn)] == [cls] * 2
        found.append(outputs(snn, digits[1][:TEST].images, "s"))
    assert torch.equal(*found) and accuracy(found[0], digits[1][:TEST]) > 0.7


@pytest.mark.parametrize("method", METHODS)
def test_a_converted_net_is_copied_and_pickled_with_our_neurons(example, anns, digits, method):
    snn, images = convert(example, anns, "local threshold balancing"), digits[1][:8].images
    wanted = outputs(snn, images, "m")
    sj_memext.retrofit(snn, method)
    for other in (copy.deepcopy(snn), pickle.loads(pickle.dumps(snn))):
        assert all(isinstance(m, OURS) for m in neurons(other)) and torch.equal(outputs(other, images, "m"), wanted)


# ---- training on ----

def step(net, forward, batch):
    """(loss, gradient) of a training step from rest."""
    functional.reset_net(net)
    net.zero_grad()
    loss = cross_entropy(forward(net, batch.images.expand(STEPS, *batch.images.shape)).mean(0), batch.labels)
    loss.backward()
    functional.reset_net(net)
    return loss.item(), torch.cat([p.grad.flatten() for p in net.parameters()])


WAYS = {"neuron": ("m", lambda net, x: net(x), "neuron"), "compress": ("m", lambda net, x: net(x), "compress"),
        "recompute": ("m", lambda net, x: net(x), "recompute"),
        "reverse": ("s", lambda net, x: multi_step_forward(x, net, method="reverse"), None),
        "reverse, neuron": ("s", lambda net, x: multi_step_forward(x, net, method="reverse"), "neuron")}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["rate coding, max / 2", "local threshold balancing"])
def test_fine_tuning_has_native_s_gradient(example, anns, digits, name, way):
    """At three points of a training run, each from the native net's weights."""
    mode, forward, method = WAYS[way]
    native = convert(example, anns, name)
    functional.set_step_mode(native, mode)
    plain = (lambda net, x: net(x)) if mode == "m" else (lambda net, x: functional.multi_step_forward(x, net))
    ours = copy.deepcopy(native)
    if method is not None:
        sj_memext.retrofit(ours, method)
    optimizer = torch.optim.SGD(native.parameters(), 0.1)
    losses = []
    for batch in example[1].batches(digits[0], BATCH, 3, 5):
        ours.load_state_dict(native.state_dict())
        wanted, gradient = step(native, plain, batch)
        loss, got = step(ours, forward, batch)
        assert abs(loss - wanted) <= 1e-6 * wanted and gradient.norm() > 0
        assert (got - gradient).norm() < GRADIENT * gradient.norm()
        optimizer.step()
        losses.append(wanted)
    assert len(set(losses)) == 3


def test_the_gradient_comparison_sees_a_cut_in_time(example, anns, digits):
    """Without the paths from step to step the gradient is another one by far: the bound above would say so."""
    native = convert(example, anns, "local threshold balancing")
    batch, = example[1].batches(digits[0], BATCH, 1, 5)
    _, gradient = step(native, lambda net, x: functional.multi_step_forward(x, net), batch)

    def cut(net, x_seq):
        found = []
        for x in x_seq:
            for m in neurons(net):
                if isinstance(m.v, torch.Tensor):
                    m.v = m.v.detach()
            found.append(net(x))
        return torch.stack(found)

    _, other = step(native, cut, batch)
    assert (other - gradient).norm() > 1000 * GRADIENT * gradient.norm()


def test_signed_qcfs_sequences_pass_through_retrofitted_layers():
    """ann2snn's QCFS encoder has neurons that are not ours to change: left, and the net around it is changed."""
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc1, self.fc2 = layer.Linear(12, 8, step_mode="m"), layer.Linear(8, 5, step_mode="m")
            self.encode = ann2snn.SignedQCFSSequenceEncoder(torch.full((8,), 0.3), 4)
            self.lif = neuron.IFNode(0.3, None, step_mode="m")

        def forward(self, x_seq):
            return self.lif(self.fc2(self.encode(self.fc1(x_seq))))

    torch.manual_seed(0)
    native, x = Net(), torch.randn(3, 6, 12)
    wanted = native(x)
    statistics = native.encode.statistics()
    assert 0.02 < wanted.mean() < 0.98 and statistics["positive_spike_count"] > 0
    functional.reset_net(native)
    for method in METHODS:
        net = sj_memext.retrofit(copy.deepcopy(native), method)
        assert torch.equal(net(x), wanted) and net.encode.statistics() == statistics
        left = {name for name, *_ in sj_memext.report(net).skipped}
        assert left == {"encode.positive_neuron", "encode.negative_neuron"} and isinstance(net.lif, FusedIFNode)


def test_the_example(example, tmp_path, capsys):
    found = example[0].main(["--quick", "--out", str(tmp_path / "new")])
    printed = capsys.readouterr().out
    assert json.loads((tmp_path / "new" / "ann2snn.json").read_text(encoding="utf-8"))["rows"][0]["equal"] is True
    assert [row["name"] for row in found["rows"]] == list(RECIPES)
    for row in found["rows"]:
        assert row["equal"] and row["accuracy"] == row["of_ours"] and f"{row['accuracy'][16]:.1%}" in printed
    methods = {row["method"]: row for row in found["fine_tuning"]}
    assert list(methods) == ["native", "recompute", "loop", "reverse"]
    assert methods["recompute"]["peak_mib"] < 0.8 * methods["native"]["peak_mib"]
    assert methods["reverse"]["peak_mib"] < 0.6 * methods["loop"]["peak_mib"]
    with pytest.raises(SystemExit):
        example[0].main(["--steps", "3", "--out", str(tmp_path)])
    assert "at least 10" in capsys.readouterr().err
