"""Which layers share a membrane and where time is stepped: decided here without any framework."""
from __future__ import annotations

import pytest
import torch
from torch import nn

from shared_core.errors import MemextError
from shared_core.retrofit import Framework
from shared_core.sharing import SharingHost, Together, _groups, _stepped
from shared_core.sharing._layers import Layer, layers_of, observe
from shared_core.sharing._regions import regions
from shared_core.sharing._stepped import PREFER, TimeOutermost, training_norms


class Toy(nn.Module):
    """A neuron: hands on what it gets."""

    def __init__(self, tau: float = 2.0):
        super().__init__()
        self.tau = tau

    def forward(self, x):
        return x


class Block(nn.Module):
    def __init__(self, width: int = 4):
        super().__init__()
        self.a, self.fire_a, self.b, self.fire_b = nn.Linear(width, width), Toy(), nn.Linear(width, width), Toy()

    def forward(self, x):
        return self.fire_b(self.b(self.fire_a(self.a(x))) + x)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(3, 4), Toy())
        self.stage = nn.Sequential(Block(), Block(), Block())
        self.features = nn.Sequential(nn.Linear(4, 4), Toy(), nn.Linear(4, 4), Toy(), nn.Linear(4, 2), Toy(),
                                      nn.Linear(2, 2), Toy(tau=3.0))

    def forward(self, x):
        return self.features(self.stage(self.stem(x)))


HOST = SharingHost(Framework("toy", "toy_memext", lambda m: isinstance(m, Toy), lambda cls, host: []),
                   lambda m: (Toy, None), lambda m: (Toy, None) if m.tau < 9 else (None, "it is slow"),
                   lambda m: {"tau": m.tau}, lambda m, n: {}, lambda ms, names: [{} for _ in ms])


def auto(net: nn.Module, per_stage: int | None = None):
    ran = observe(HOST, net, layers_of(HOST, net), torch.ones(2, 3))
    return _groups.found(HOST, net, ran, per_stage, lambda layer: HOST.joined_class(layer.neuron)[1])


# ---- groups ----------------------------------------------------------------------------------------------------------

def test_layers_are_seen_in_the_order_in_which_they_run():
    net = nn.ModuleDict({"later": Toy(), "first": Toy(), "never": Toy()})
    net.forward = None
    net.__class__ = type("Net", (nn.ModuleDict,), {"forward": lambda self, x: self["later"](self["first"](x)[..., :2])})
    del net.__dict__["forward"]
    ran = observe(HOST, net, layers_of(HOST, net), (5, 3))
    assert [(layer.name, layer.size) for layer in ran] == [("first", (3,)), ("later", (2,))]


def test_auto_goes_by_stage_size_and_parameters():
    groups, alone = auto(Net())
    assert groups == [["stage.0.fire_a", "stage.1.fire_a", "stage.2.fire_a"],
                      ["stage.0.fire_b", "stage.1.fire_b", "stage.2.fire_b"], ["features.1", "features.3"]]
    assert set(alone) == {"stem.1", "features.5", "features.7"}  # the only one of its stage; its size; its tau


def test_auto_with_one_membrane_a_stage_and_with_three():
    net = Net()
    assert auto(net, 1)[0][0] == [f"stage.{i}.fire_{which}" for i in range(3) for which in "ab"]
    flat = nn.Sequential(*(m for _ in range(4) for m in (nn.Linear(3, 3), Toy())))
    assert auto(flat)[0] == [["1", "3", "5", "7"]]
    assert auto(flat, 2)[0] == [["1", "5"], ["3", "7"]]
    assert auto(flat, 3)[0] == [["1", "7"]]


def test_auto_leaves_out_what_cannot_share_and_does_not_reach_across_it():
    net = nn.Sequential(Toy(), Toy(), Toy(tau=10.0), Toy(), Toy())
    groups, alone = auto(net)
    assert groups == [["0", "1"], ["3", "4"]] and alone == {"2": "it is slow"}


def test_lists_of_names_and_patterns():
    net = Net()
    layers = layers_of(HOST, net)
    assert _groups.listed("share", net, layers, ["stem.1", "features.1"]) == [["stem.1", "features.1"]]
    assert _groups.listed("share", net, layers, [["stage.*.fire_a"], ("features.1", "features.3")]) == [
        ["stage.0.fire_a", "stage.1.fire_a", "stage.2.fire_a"], ["features.1", "features.3"]]


@pytest.mark.parametrize(("wanted", "message"), [
    ([["stem.1", "stage.0.a"]], "'stage.0.a', which is no neuron but Linear"),
    ([["stem.1", "stem.9"]], "'stem.9', and the net has no module of that name; its neurons are stem.1, stage.0"),
    ([["stem.1", "stem.1"]], "'stem.1' is in layers.0. and layers.0."),
    ([["stage.*.fire_a"], ["stage.0.*"]], "'stage.0.fire_a' is in layers.0. and layers.1."),
    ([[]], "layers.0. is empty"),
    ([["stem.1"]], "layers.0. names 'stem.1' only"),
    ([["stem.1", 3]], "layers holds 3"),
    ([["stem.1", "features.1"], 3], "layers.1. is 3"),
    (3, "layers is 3; allowed: 'auto'"),
])
def test_lists_that_are_refused(wanted, message):
    net = Net()
    with pytest.raises(MemextError, match=message):
        _groups.listed("share", net, layers_of(HOST, net), wanted)


def test_layers_that_cannot_share_are_named_with_the_reason():
    def look(*layers):
        _groups.check(HOST, "share", {layer.name: layer for layer in layers}, [layer.name for layer in layers])

    look(Layer("a", Toy(), (4,)), Layer("b", Toy(), (4,)), Layer("c", Toy()))
    for other, message in ((Layer("b", Toy(3.0), (4,)), r"'a' and 'b' differ in tau \(2.0 and 3.0\)"),
                           (Layer("b", Toy(), (5,)), r"'a' has activations of size \(4,\), 'b' of \(5,\)"),
                           (Layer("b", Toy(10.0), (4,)), r"'b' \(Toy\) cannot share .*: it is slow")):
        with pytest.raises(MemextError, match=message):
            look(Layer("a", Toy(), (4,)), other)


# ---- where time is stepped -------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("groups", "wanted"), [
    ([["features.1", "features.3"]], [("features", (0, 4))]),
    ([["features.3", "features.5"]], [("features", (2, 6))]),  # from behind the neuron before
    ([["features.1", "features.3"], ["features.5", "features.7"]], [("features", (0, 4)), ("features", (4, 8))]),
    ([["features.1", "features.5"], ["features.3", "features.7"]], [("features", (0, 8))]),
    ([["stage.1.fire_a", "stage.1.fire_b"]], [("stage.1", None)]),
    ([["stage.1.fire_a", "stage.2.fire_a"], ["stage.1.fire_b", "stage.2.fire_b"]], [("stage", (1, 3))]),
    ([["stage.0.fire_a", "stage.0.fire_b"], ["stage.0.fire_a", "stage.2.fire_b"]], [("stage", (0, 3))]),
    ([["stage.0.fire_a", "stage.0.fire_b"], ["stage.1.fire_a", "stage.2.fire_b"]], [("stage.0", None),
                                                                                   ("stage", (1, 3))]),
    ([["stem.1", "stage.0.fire_a"]], [("", None)]),
    ([["stem.1", "stage.0.fire_a"], ["features.1", "features.3"]], [("", None)]),
])
def test_the_smallest_part_that_holds_a_group(groups, wanted):
    assert [(region.path, region.run) for region in regions(HOST, Net(), groups)] == wanted


def test_a_list_of_modules_has_no_forward_to_step():
    net = nn.Module()
    net.layers = nn.ModuleList([Toy(), Toy()])
    assert [(r.path, r.run) for r in regions(HOST, net, [["layers.0", "layers.1"]])] == [("", None)]


def test_norms_that_would_see_one_step():
    net = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2, track_running_stats=False), nn.LayerNorm(2))
    assert training_norms([net]) == [net[0], net[1]]
    assert training_norms([net.eval()]) == [net[1]]


def test_states_kept_per_preference():
    assert [_stepped._EVERY[name](5) for name in ("memory", "balanced", "speed")] == [5, None, 1]
    assert PREFER == ("memory", "balanced", "speed", "graph")


def test_a_part_is_called_with_one_sequence():
    host = SharingHost(**{**vars(HOST), "on_sequences": lambda m: True})
    TimeOutermost.hosts["toy"] = host
    try:
        block = Block()
        stepped = TimeOutermost("toy", "stage.0", block, None, block.fire_a, True, "balanced")
        assert stepped.notes() == ["stage.0: sequences are stepped through time here"]
        for arguments, keywords in (((torch.ones(2, 4), 1), {}), ((), {}), ((torch.ones(2, 4),), {"y": 1}), ((1,), {})):
            with pytest.raises(MemextError, match=r"'stage.0' is called with"):
                stepped(*arguments, **keywords)
    finally:
        del TimeOutermost.hosts["toy"]


# ---- the membrane's size ---------------------------------------------------------------------------------------------

def test_a_membrane_of_another_size_is_an_error_unless_at_rest():
    together = Together(("a", "b", "c"))
    for state in (0.0, torch.zeros(0), torch.zeros(2, 5), torch.ones(7, 4)):
        together.check(0, state, (4,))
    with pytest.raises(MemextError, match=r"'b' shares with 'a', 'c' has size \(5,\), and its activations need \(4,\)"):
        together.check(1, torch.ones(2, 5), (4,))
