"""SpikingJelly's monitors and plots on our neurons: the same layers, the same records in the same order."""
import matplotlib
import pytest
import torch
from interop_nets import FORMS, build, in_form, run, sample
from spikingjelly import visualizing
from spikingjelly.activation_based import functional, layer, monitor, neuron

import sj_memext
from sj_memext.functional import multi_step_forward
from sj_memext.neuron import FusedLIFNode, SharedLIFNode

matplotlib.use("Agg")
GRADIENT = 1e-6  # of the largest: float32, sums in another order
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")
FORWARD = {"output": lambda net: monitor.OutputMonitor(net, neuron.BaseNode),
           "input": lambda net: monitor.InputMonitor(net, neuron.BaseNode),
           "v after": lambda net: monitor.AttributeMonitor("v", False, net, neuron.BaseNode),
           "v before": lambda net: monitor.AttributeMonitor("v", True, net, neuron.BaseNode),
           "v_seq": lambda net: monitor.AttributeMonitor("v_seq", False, net, neuron.BaseNode),
           "one class": lambda net: monitor.OutputMonitor(net, neuron.LIFNode),
           "layers": lambda net: monitor.OutputMonitor(net, (layer.Conv2d, layer.Linear)),
           "function": lambda net: monitor.OutputMonitor(net, neuron.BaseNode, lambda s: s.mean().item())}
BACKWARD = {"gradient of outputs": lambda net: monitor.GradOutputMonitor(net, neuron.BaseNode),
            "gradient of inputs": lambda net: monitor.GradInputMonitor(net, neuron.BaseNode),
            "gradient of layers": lambda net: monitor.GradOutputMonitor(net, layer.Conv2d)}


def watched(net, monitors, x):
    """{name: monitor} after a training step, and its output."""
    found = {name: make(net) for name, make in monitors.items()}
    out = run(net, x)
    out.square().sum().backward()
    return found, out


def assert_same_records(got, wanted, tolerance=0.0):
    assert got.monitored_layers == wanted.monitored_layers and got.name_records_index == wanted.name_records_index
    assert len(got.records) == len(wanted.records) > 0
    for a, b in zip(got.records, wanted.records):
        if isinstance(b, torch.Tensor):
            assert a.shape == b.shape and a.dtype == b.dtype and (a - b).abs().max() <= tolerance * b.abs().max()
        else:
            assert a == b


@pytest.mark.parametrize("mode", "ms")
@pytest.mark.parametrize("form", FORMS)
def test_monitors_of_the_forward_pass(form, mode):
    wanted, out = watched(build(mode, store_v_seq=True), FORWARD, sample())
    assert all(0.02 < record.mean() < 0.9 for record in wanted["output"].records[:4])
    got, ours = watched(in_form(form, mode, store_v_seq=True), FORWARD, sample())
    assert torch.equal(ours, out)
    for name, found in wanted.items():
        assert_same_records(got[name], found)
    assert got["one class"].monitored_layers == ["2", "10"]


@pytest.mark.parametrize("mode", "ms")
@pytest.mark.parametrize("form", FORMS)
def test_monitors_of_the_backward_pass(form, mode):
    wanted, _ = watched(build(mode), BACKWARD, sample())
    got, _ = watched(in_form(form, mode), BACKWARD, sample())
    for name, found in wanted.items():
        assert_same_records(got[name], found, GRADIENT)
        assert all(record.abs().max() > 0 for record in found.records)


def test_a_monitor_put_on_before_the_retrofit_stays():
    net = build()
    found = FORWARD["output"](net)
    sj_memext.retrofit(net, "recompute")
    run(net, sample())
    wanted, _ = watched(build(), {"output": FORWARD["output"]}, sample())
    assert_same_records(found, wanted["output"])
    found.close()
    sj_memext.restore(net)
    run(net, sample())
    assert len(found.records) == 4


def test_unrolled_steps_are_recorded_again_when_they_are_run_again():
    """Before the backward pass the records are native's; what it rebuilds comes after them, unless it is disabled."""
    x = sample()
    wanted, _ = watched(build("s"), {"output": FORWARD["output"]}, x)
    net = build("s")
    found = FORWARD["output"](net)
    functional.reset_net(net)
    out = multi_step_forward(x, net, method="reverse")
    assert_same_records(found, wanted["output"])
    found.disable()
    out.square().sum().backward()
    assert_same_records(found, wanted["output"])

    found.enable()
    found.clear_recorded_data()
    functional.reset_net(net)
    multi_step_forward(x, net, method="reverse").square().sum().backward()
    assert len(found.records) > len(wanted["output"].records)
    assert all(torch.equal(a, b) for a, b in zip(found.records, wanted["output"].records))


def test_shared_and_reversible_neurons_are_seen():
    shared = torch.nn.Sequential(layer.Linear(8, 8, step_mode="m"), SharedLIFNode(2, step_mode="m", store_v_seq=True))
    reversible = sj_memext.retrofit(build(), "reversible", split_dim=1, skip=["10"])
    x = torch.rand(5, 3, 8)
    spikes = monitor.OutputMonitor(shared, neuron.LIFNode)
    v = monitor.AttributeMonitor("v_seq", False, shared, neuron.LIFNode)
    gradients = monitor.GradOutputMonitor(shared, neuron.LIFNode)
    out = run(shared, x)
    (2 * out).sum().backward()
    assert torch.equal(spikes["1"][0], out) and v["1"][0].shape == (5, 3, 4)  # the membrane of a channel group
    assert torch.equal(gradients["1"][0], torch.full_like(out, 2.0))
    found = monitor.OutputMonitor(reversible, neuron.BaseNode)
    out = run(reversible, sample())
    assert found.monitored_layers == ["2", "5", "8", "10"] and torch.equal(found["10"][0], out)
    assert isinstance(reversible[8], neuron.IFNode) and not torch.equal(found["8"][0], found["8"][0].round())


def pictures(net):
    """Spikes and potentials of the last layer as SpikingJelly draws them: the pixels of each figure."""
    watching, _ = watched(net, {name: FORWARD[name] for name in ("output", "v_seq")}, sample())
    spikes, v = (watching[name]["10"][0][:, 0].detach().numpy() for name in ("output", "v_seq"))
    small = {"figsize": (4, 3), "dpi": 40}
    figures = [visualizing.plot_1d_spikes(spikes, "spikes", "step", "neuron", **small),
               visualizing.plot_one_neuron_v_s(v[:, 0], spikes[:, 0], net[10].v_threshold, net[10].v_reset, **small)]
    drawn = []
    for figure, *_ in figures:
        figure.canvas.draw()
        drawn.append(bytes(figure.canvas.buffer_rgba()))
    matplotlib.pyplot.close("all")
    return drawn


def test_pictures_of_spikes_and_potentials_are_native_s():
    wanted = pictures(build(store_v_seq=True))
    assert len(set(wanted)) == 2 and pictures(in_form("recompute", store_v_seq=True)) == wanted


def test_the_records_of_a_fused_neuron_by_hand():
    node = FusedLIFNode(tau=2.0, v_threshold=1.0, step_mode="m", store_v_seq=True)
    spikes, v = monitor.OutputMonitor(node), monitor.AttributeMonitor("v_seq", False, node)
    node(torch.tensor([1.5, 1.5, 0.0])[:, None])  # h = 0.75, 1.125, 0
    assert spikes.records[0].flatten().tolist() == [0, 1, 0] and v.records[0].flatten().tolist() == [0.75, 0.0, 0.0]
