"""One retrofit method after another on the same net, and what the report says was decided."""
import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron

from shared_core.errors import MemextError
from sj_memext import report, restore, retrofit

METHODS = {"neuron": {}, "compress": {}, "recompute": {"prefer": "memory"}, "auto": {"budget": "1GiB"}}


def make():
    torch.manual_seed(0)
    net = torch.nn.Sequential(layer.Conv2d(2, 8, 3), layer.BatchNorm2d(8), neuron.LIFNode(), layer.Flatten(),
                              layer.Linear(8 * 36, 10), neuron.IFNode())
    functional.set_step_mode(net, "m")
    return net, torch.rand(4, 3, 2, 8, 8)


def apply(net, method, x):
    options = METHODS[method]
    return retrofit(net, method, **options, **({"sample": x} if method == "auto" else {}))


@pytest.mark.parametrize("then", METHODS)
@pytest.mark.parametrize("first", METHODS)
def test_another_method_takes_the_place_of_the_one_before(first, then):
    (net, x), (fresh, _) = make(), make()
    before = [type(m) for m in net]
    apply(apply(net, first, x), then, x)
    apply(fresh, then, x)
    assert [type(m) for m in net] == [type(m) for m in fresh]
    assert report(net).to_dict() == report(fresh).to_dict()
    assert [type(m) for m in restore(net)] == before
    assert vars(net).keys() == vars(make()[0]).keys()


@pytest.mark.parametrize(("method", "options"), [("auto", {"sample": (4, 3, 2, 8, 8), "budget": "1KiB"}), ("auto", {}),
                                                 ("neuron", {"skip": ["no such"]}), ("recompute", {"prefer": "x"})])
def test_a_refused_method_leaves_the_one_before(method, options):
    net, x = make()
    retrofit(net, "compress", skip=["5"])
    was, said = [type(m) for m in net], report(net).to_dict()
    loss = net(x).sum()
    with pytest.raises(MemextError):
        retrofit(net, method, **options)
    functional.reset_net(net)
    assert [type(m) for m in net] == was and report(net).to_dict() == said and net(x).sum() == loss


def test_a_part_that_was_retrofitted_by_itself_stays():
    net, _ = make()
    retrofit(net[2], "neuron")
    retrofit(net, "compress")
    retrofit(net, "recompute")
    assert type(net[2]).__name__ == "FusedLIFNode" and "ChainBatchNorm2d" in type(net[1]).__name__


def test_the_report_says_what_was_decided():
    net, x = make()
    assert report(retrofit(net, "recompute", prefer="speed")).notes == ["prefer='speed'"]
    (note,) = report(retrofit(net, "auto", sample=x, budget="1GiB")).notes
    assert note.startswith("auto: neuron; predicted peak") and "of 1024.0 MiB" in note
    with pytest.raises(MemextError, match="needs a sample and a budget"):
        retrofit(net, "auto", sample=x)


def test_layers_are_changed_where_no_neuron_can_be():
    net = torch.nn.Sequential(layer.Conv2d(2, 8, 3, step_mode="m"), neuron.QIFNode(step_mode="m"),
                              layer.Conv2d(8, 8, 3, step_mode="m"))
    found = report(retrofit(net, "recompute"))
    assert len(found.changed) == 2 and [name for name, *_ in found.skipped] == ["1"]
    with pytest.raises(MemextError, match="no neuron of this ReLU can be changed"):
        retrofit(torch.nn.ReLU(), "compress")
