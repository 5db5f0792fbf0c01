"""Trains an snnTorch network on events that tonic loads: the usual loop, whole sequences, and unrolled.

    python examples/tonic_snntorch.py --out tonic_out                  # about a minute on one core
"""
from __future__ import annotations

import snntorch
import torch
from _events import CHANNELS, CLASSES
from _tonic import Form, main
from torch import Tensor, nn

from shared_core.temporal import unroll
from snntorch_memext.neurons import FusedLeaky


def build(leaky: type[nn.Module] = snntorch.Leaky) -> nn.Sequential:
    """Two convolutions, each halving the frame; the last neurons never reset, and their membranes are the scores."""
    def lif(**options) -> nn.Module:
        return leaky(beta=0.8, init_hidden=True, **options)

    return nn.Sequential(nn.Conv2d(CHANNELS, 16, 3, stride=2, padding=1), lif(),
                         nn.Conv2d(16, 32, 3, stride=2, padding=1), lif(),
                         nn.Flatten(), nn.Linear(32 * 5 * 5, CLASSES), lif(output=True, reset_mechanism="none"))


def rest(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, snntorch.Leaky):
            module.reset_mem()


def loop(net: nn.Module, x_seq: Tensor) -> Tensor:
    """As snnTorch's tutorials have it."""
    return torch.stack([net(x)[1] for x in x_seq]).mean(0)


def at_once(net: nn.Module, x_seq: Tensor) -> Tensor:
    """Layer by layer: a neuron gets its whole sequence, every other layer all steps as one batch."""
    *body, last = net
    steps = len(x_seq)
    for module in body:
        if isinstance(module, FusedLeaky):
            x_seq, _ = module.multi_step(x_seq)
        else:
            x_seq = module(x_seq.flatten(0, 1)).unflatten(0, (steps, -1))
    _, mem_seq = last.multi_step(x_seq, record=True)
    return mem_seq.mean(0)


def unrolled(net: nn.Module, x_seq: Tensor) -> Tensor:
    """Step by step, every step built again for its backward pass."""
    _, mem_seq = unroll(net, x_seq, method="reverse")
    return mem_seq.mean(0)


FORMS = {"loop": Form(build, rest, loop), "multi-step": Form(lambda: build(FusedLeaky), rest, at_once),
         "unrolled, reverse": Form(build, rest, unrolled)}

if __name__ == "__main__":
    main("snnTorch", FORMS, __doc__.splitlines()[0])
