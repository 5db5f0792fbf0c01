"""Trains a SpikingJelly network on events that tonic loads: native, multi-step with recompute, and unrolled.

    python examples/tonic_spikingjelly.py --out tonic_out              # about a minute on one core
"""
from __future__ import annotations

from _events import CHANNELS, CLASSES
from _tonic import Form, main
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

import sj_memext
from sj_memext.functional import multi_step_forward


def build(step_mode: str) -> nn.Sequential:
    """Two convolutions, each halving the frame; the score of a class is the mean of its output over time."""
    def lif() -> nn.Module:
        return neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(), detach_reset=True)

    net = nn.Sequential(layer.Conv2d(CHANNELS, 16, 3, stride=2, padding=1, bias=False), layer.GroupNorm(4, 16), lif(),
                        layer.Conv2d(16, 32, 3, stride=2, padding=1, bias=False), layer.GroupNorm(4, 32), lif(),
                        layer.Flatten(), layer.Linear(32 * 5 * 5, CLASSES))
    functional.set_step_mode(net, step_mode)
    return net


def small() -> nn.Module:
    return sj_memext.retrofit(build("m"), "recompute")  # the one line that the second form adds


def at_once(net: nn.Module, x_seq: Tensor) -> Tensor:
    """Step mode "m": all time steps, layer by layer."""
    return net(x_seq).mean(0)


def unrolled(net: nn.Module, x_seq: Tensor) -> Tensor:
    """Step mode "s": step by step, every step built again for its backward pass."""
    return multi_step_forward(x_seq, net, method="reverse").mean(0)


FORMS = {"native": Form(lambda: build("m"), functional.reset_net, at_once),
         "multi-step, recompute": Form(small, functional.reset_net, at_once),
         "unrolled, reverse": Form(lambda: build("s"), functional.reset_net, unrolled)}

if __name__ == "__main__":
    main("SpikingJelly", FORMS, __doc__.splitlines()[0])
