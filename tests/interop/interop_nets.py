"""Small nets in every form that a user can get them in, for the tools of the two frameworks to look at."""
from __future__ import annotations

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

import sj_memext

METHODS = {"neuron": {}, "compress": {}, "recompute": {"prefer": "memory"}}
FORMS = ("fused", *METHODS)  # fused: built of our neurons; the others: built natively, then retrofitted
STEPS, BATCH, CHANNELS, SIDE, CLASSES = 5, 3, 2, 8, 5
GAIN = 4.0  # on the initial weights: a tenth to a third of all neurons fire


def build(step_mode: str = "m", norm: bool = True, **options) -> nn.Sequential:
    """Two convolutions, two linear layers; every kind of fused neuron; nothing at a default that would hide it."""
    torch.manual_seed(3)
    options = {"surrogate_function": surrogate.ATan(), **options}
    bn = [layer.BatchNorm2d(6)] if norm else []
    net = nn.Sequential(layer.Conv2d(CHANNELS, 6, 3, padding=1, bias=False), *bn,
                        neuron.LIFNode(tau=1.8, v_threshold=0.6, v_reset=-0.1, **options), layer.AvgPool2d(2),
                        layer.Conv2d(6, 4, 3, padding=1, bias=False),
                        neuron.ParametricLIFNode(init_tau=2.2, v_threshold=0.2, v_reset=0.0, **options),
                        layer.Flatten(), layer.Linear(4 * 16, 12, bias=False),
                        neuron.IFNode(v_threshold=0.5, v_reset=0.0, **options), layer.Linear(12, CLASSES, bias=False),
                        neuron.LIFNode(tau=2.5, decay_input=False, v_threshold=0.3, v_reset=0.0, **options))
    with torch.no_grad():
        for module in net:
            if isinstance(module, nn.Conv2d | nn.Linear):
                module.weight.mul_(GAIN)
    functional.set_step_mode(net, step_mode)
    return net


def plain(step_mode: str = "m") -> nn.Sequential:
    """What every energy model knows: convolutions, a linear layer, IF and LIF, a sigmoid's surrogate."""
    net = build(step_mode, norm=False, surrogate_function=surrogate.Sigmoid(), detach_reset=True)
    fires = neuron.IFNode(v_threshold=0.5, detach_reset=True, step_mode=step_mode)
    return nn.Sequential(net[0], net[1], net[3], fires, net[5],
                         layer.Linear(4 * SIDE * SIDE, CLASSES, bias=False, step_mode=step_mode), net[9])


def in_form(form: str | None, step_mode: str = "m", make=build, **options) -> nn.Sequential:
    """The net as `make` makes it, with our neurons in one of the FORMS; None: native."""
    if form == "fused":
        with sj_memext.substitute("neuron"):
            return make(step_mode, **options)
    net = make(step_mode, **options)
    return net if form is None else sj_memext.retrofit(net, form, **METHODS[form])


def sample(seed: int = 5) -> Tensor:
    """[T, N, 2, 8, 8]; every neuron of build() fires on it, and none always."""
    return torch.rand(STEPS, BATCH, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(seed)) * 3


def run(net: nn.Module, x_seq: Tensor) -> Tensor:
    """[T, N, 5], in the step mode that the net is in, from rest."""
    functional.reset_net(net)
    if net[0].step_mode == "m":
        return net(x_seq)
    return torch.stack([net(x) for x in x_seq])
