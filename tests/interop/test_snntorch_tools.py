"""snnTorch's probes, encoders, losses and plots around our neurons: the same records, targets and pictures."""
import matplotlib
import matplotlib.pyplot as plt
import pytest
import snntorch as snn
import torch
from snntorch import functional as SF
from snntorch import spikegen, utils
from snntorch.functional import probe
from torch import nn

import snntorch_memext
from shared_core.temporal import unroll
from snntorch_memext.neurons import FusedLeaky, ReversibleLeaky, SharedLeaky

matplotlib.use("Agg")
FORMS = ("fused", "neuron")
MONITORS = {"output": lambda net: probe.OutputMonitor(net, snn.SpikingNeuron),
            "input": lambda net: probe.InputMonitor(net, snn.SpikingNeuron),
            "mem": lambda net: probe.AttributeMonitor("mem", False, net, snn.SpikingNeuron),
            "one class": lambda net: probe.OutputMonitor(net, snn.Synaptic),
            "gradient": lambda net: probe.GradOutputMonitor(net, snn.Leaky)}


def build():
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(16, 12), snn.Leaky(0.9, init_hidden=True, reset_mechanism="zero"), nn.Linear(12, 10),
                        snn.Synaptic(0.6, 0.8, init_hidden=True, learn_beta=True), nn.Linear(10, 4),
                        snn.Leaky(0.7, threshold=0.6, init_hidden=True, output=True))
    with torch.no_grad():
        for module in net[::2]:
            module.weight.mul_(4)
    return net


def in_form(form):
    if form == "fused":
        with snntorch_memext.substitute():
            return build()
    return snntorch_memext.retrofit(build())


def sample():
    """Rate-coded spikes of snnTorch's own encoder, [T, N, 16]."""
    torch.manual_seed(6)
    return spikegen.rate(torch.rand(3, 16), num_steps=8)


def run(net, x):
    utils.reset(net)
    spikes, mems = zip(*(net(step) for step in x))
    return torch.stack(spikes), torch.stack(mems)


def watched(net, x):
    found = {name: make(net) for name, make in MONITORS.items()}
    spikes, mems = run(net, x)
    loss = SF.ce_rate_loss()(spikes, torch.tensor([0, 1, 2])) + mems.square().mean()
    loss.backward()
    return found, loss


def assert_same(a, b, tolerance):
    a, b = ([v] if isinstance(v, torch.Tensor) else list(v) for v in (a, b))
    assert len(a) == len(b)
    for x, y in zip(a, b):
        if y is not None:
            assert x.shape == y.shape and (x.float() - y.float()).abs().max() <= tolerance * y.abs().max()


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.parametrize("form", FORMS)
def test_probes_see_what_they_see_natively(form):
    wanted, loss = watched(build(), sample())
    got, ours = watched(in_form(form), sample())
    assert torch.equal(ours, loss)
    for name, found in wanted.items():
        assert got[name].monitored_layers == found.monitored_layers
        assert got[name].name_records_index == found.name_records_index
        assert len(got[name].records) == len(found.records) > 0, name
        for a, b in zip(got[name].records, found.records):
            assert_same(a, b, 1e-6 if name == "gradient" else 0.0)  # float32, sums in another order
    assert wanted["output"].monitored_layers == ["1", "3", "5"] and wanted["one class"].monitored_layers == ["3"]
    assert 0.02 < torch.stack(wanted["output"]["1"]).mean() < 0.98


def test_unrolled_steps_are_recorded_again_when_they_are_run_again():
    x, found = sample(), {}
    for name in ("loop", "unroll"):
        net = build()
        monitor = MONITORS["output"](net)
        utils.reset(net)
        spikes, _ = unroll(net, x, method="reverse") if name == "unroll" else run(net, x)
        found[name] = list(monitor.records)
        monitor.disable()
        spikes.sum().backward()
        assert len(monitor.records) == len(found[name])
    assert len(found["loop"]) == len(found["unroll"]) == 24
    for a, b in zip(found["loop"], found["unroll"]):
        assert_same(a, b, 0.0)


def test_whole_sequences_have_no_steps_for_a_forward_hook():
    """multi_step says so; its return values have them all."""
    lif, x = FusedLeaky(0.9), torch.rand(6, 3, 8)
    monitor = probe.OutputMonitor(lif)
    spikes, mems = lif.multi_step(x, record=True)
    assert monitor.records == []
    lif.reset_mem()
    for step in x:
        lif(step)
    assert torch.equal(torch.stack([spk for spk, _ in monitor.records]), spikes)
    assert torch.equal(torch.stack([mem for _, mem in monitor.records]), mems)


@pytest.mark.parametrize("make", [lambda: SharedLeaky(2, beta=0.8), lambda: ReversibleLeaky(0.5)])
def test_shared_and_reversible_neurons_are_seen(make):
    net = nn.Sequential(nn.Linear(16, 8), make())
    outputs, mems = probe.OutputMonitor(net, snn.Leaky), probe.AttributeMonitor("mem", False, net, snn.Leaky)
    spk, mem = net(sample()[0])
    assert outputs.monitored_layers == ["1"] and outputs["1"][0][0] is spk and mems["1"][0] is mem


ENCODED = {"rate": lambda x: spikegen.rate(x, num_steps=9),
           "latency": lambda x: spikegen.latency(x, num_steps=9, normalize=True, linear=True),
           "delta": lambda x: spikegen.delta(x, threshold=0.1)}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ENCODED)
def test_encoded_inputs_run_through_kernels_as_natively(name, form):
    """They are float, of 0 and 1 (delta: -1 too), and may be views."""
    torch.manual_seed(8)
    x = ENCODED[name](torch.rand(5, 16))
    found = []
    for net in (build(), in_form(form)):
        found.append(run(net, x * 2))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    assert found[0][0].sum() > 0


LOSSES = {"rate": SF.ce_rate_loss, "count": SF.ce_count_loss, "max membrane": SF.ce_max_membrane_loss,
          "mse count": SF.mse_count_loss, "mse time": SF.mse_temporal_loss, "ce time": SF.ce_temporal_loss,
          "mse membrane": SF.mse_membrane_loss}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_accuracies(name, form):
    labels, found = torch.tensor([0, 1, 2]), []
    for net in (build(), in_form(form)):
        spikes, mems = run(net, sample())
        of_mems = "membrane" in name
        loss = LOSSES[name]()(mems if of_mems else spikes, labels)
        if loss.requires_grad:
            loss.sum().backward()
        gradient = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None] or [torch.ones(1)])
        found.append((loss, gradient, SF.accuracy_rate(spikes, labels)))
    (wanted, gradient, accuracy), (loss, got, ours) = found
    assert torch.equal(loss, wanted) and accuracy == ours
    assert (got - gradient).norm() <= 1e-5 * gradient.norm()  # float32, sums in another order


def test_pictures_are_native_s():
    pytest.importorskip("pandas")  # spikeplot imports it
    from snntorch import spikeplot

    found = []
    for net in (build(), in_form("neuron")):
        spikes, mems = run(net, sample())
        figure, axes = plt.subplots(figsize=(4, 3), dpi=40)
        spikeplot.raster(spikes[:, 0].detach(), axes, s=4, c="black")
        figure.canvas.draw()
        drawn = [bytes(figure.canvas.buffer_rgba())]
        spikeplot.traces(mems[:, 0].detach(), spk=spikes[:, 0].detach(), dim=(2, 2))
        plt.gcf().set_dpi(40)
        plt.gcf().canvas.draw()
        drawn.append(bytes(plt.gcf().canvas.buffer_rgba()))
        plt.close("all")
        found.append(drawn)
    assert found[0] == found[1]
