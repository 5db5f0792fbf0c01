"""Two networks as users of SpikingJelly and of snnTorch write them, and one description of how each is used.

Nothing in a network or in its loop over time knows of memext: `retrofit` gets the finished network, that is all.
"""
from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Task:
    """A network of one framework, and how to train it.

    build() makes the network.  loss(net, images, labels) runs all time steps.  scores(net, images) gives [N, 10], the
    largest for the digit seen.  forget(net) ends a sample: states back to rest.  retrofit(net, method) is the
    adapter's.  is_neuron(module) tells the spiking layers.
    """

    framework: str
    time_steps: int
    learning_rate: float
    build: Callable[[], nn.Module]
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    scores: Callable[[nn.Module, Tensor], Tensor]
    forget: Callable[[nn.Module], None]
    retrofit: Callable[[nn.Module, str], nn.Module]
    is_neuron: Callable[[nn.Module], bool]


def spikingjelly() -> Task:
    """Layer by layer: every layer gets all time steps at once, [T, N, C, H, W], as in SpikingJelly's own examples."""
    from spikingjelly.activation_based import functional, layer, neuron, surrogate

    import sj_memext

    T = 8

    def lif():
        return neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan())

    def build():
        net = nn.Sequential(
            layer.Conv2d(1, 16, 3, padding=1, bias=False), layer.BatchNorm2d(16), lif(), layer.MaxPool2d(2, 2),
            layer.Conv2d(16, 32, 3, padding=1, bias=False), layer.BatchNorm2d(32), lif(), layer.MaxPool2d(2, 2),
            layer.Flatten(), layer.Linear(32 * 7 * 7, 10, bias=False), layer.BatchNorm1d(10), lif(),
        )
        functional.set_step_mode(net, "m")
        return net

    def rates(net, images):
        return net(images.unsqueeze(0).repeat(T, 1, 1, 1, 1)).mean(0)

    def loss(net, images, labels):
        return F.mse_loss(rates(net, images), F.one_hot(labels, 10).float())

    return Task("spikingjelly", T, 3e-3, build, loss, rates, functional.reset_net, sj_memext.retrofit,
                lambda module: isinstance(module, neuron.BaseNode))


def snntorch() -> Task:
    """Step by step: the whole network is called once per time step, as in snnTorch's tutorial on convolutional nets."""
    import snntorch as snn
    from snntorch import functional as SF
    from snntorch import surrogate, utils

    import snntorch_memext

    num_steps, beta = 12, 0.9
    spike_grad = surrogate.atan(alpha=2.0)
    criterion = SF.ce_count_loss()

    def build():
        return nn.Sequential(
            nn.Conv2d(1, 12, 5), nn.MaxPool2d(2), snn.Leaky(beta=beta, spike_grad=spike_grad, init_hidden=True),
            nn.Conv2d(12, 32, 5), nn.MaxPool2d(2), snn.Leaky(beta=beta, spike_grad=spike_grad, init_hidden=True),
            nn.Flatten(), nn.Linear(32 * 4 * 4, 10),
            snn.Leaky(beta=beta, spike_grad=spike_grad, init_hidden=True, output=True),
        )

    def forward_pass(net, images):
        spk_rec = []
        utils.reset(net)
        for _ in range(num_steps):
            spk_out, _mem_out = net(images)
            spk_rec.append(spk_out)
        return torch.stack(spk_rec)

    def loss(net, images, labels):
        return criterion(forward_pass(net, images), labels)

    return Task("snntorch", num_steps, 4e-3, build, loss, lambda net, images: forward_pass(net, images).mean(0),
                utils.reset, snntorch_memext.retrofit, lambda module: isinstance(module, snn.SpikingNeuron))


FRAMEWORKS = {"spikingjelly": spikingjelly, "snntorch": snntorch}


def task(framework: str) -> Task:
    """The network of one framework.  Raises SystemExit, with what to install, if the framework is not there."""
    if importlib.util.find_spec(framework) is None:
        others = ",".join(name for name in FRAMEWORKS if name != framework)
        raise SystemExit(f"demo: {framework} is not installed. Use: pip install 'memext[{framework}]', or leave it out "
                         f"with --frameworks {others}")
    return FRAMEWORKS[framework]()
