"""Trains an snnTorch network on human activities, step by step: plain BPTT, unroll(reverse), and SLTT.

    python examples/temporal_snntorch.py --out temporal_out            # under a minute on two cores
"""
from __future__ import annotations

import snntorch
import torch
from _activity import ACTIVITIES, CHANNELS
from _temporal import WIDTH, Task, main
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from shared_core.temporal import online_train_step, unroll


def build() -> nn.Sequential:
    """Its neurons hold their membranes; the last one never resets, and its membrane is the score of each step."""
    def leaky(**options) -> nn.Module:
        return snntorch.Leaky(beta=0.9, init_hidden=True, **options)

    return nn.Sequential(nn.Linear(WIDTH * CHANNELS, 64), leaky(), nn.Linear(64, 64), leaky(),
                         nn.Linear(64, len(ACTIVITIES)), leaky(output=True, reset_mechanism="none"))


def rest(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, snntorch.Leaky):
            module.reset_mem()


def scores(net: nn.Module, x_seq: Tensor) -> Tensor:
    return torch.stack([net(x)[1] for x in x_seq])


def plain(net: nn.Module, x_seq: Tensor, labels: Tensor) -> Tensor:
    """The time loop as snnTorch's tutorials have it."""
    loss = 0.0
    for x in x_seq:
        _, mem = net(x)
        loss = loss + cross_entropy(mem, labels) / len(x_seq)
    loss.backward()
    return loss.detach()


def reverse(net: nn.Module, x_seq: Tensor, labels: Tensor) -> Tensor:
    """The same gradient; the spikes are kept as bits, and every step is built again for its backward."""
    _, mem_rec = unroll(net, x_seq, method="reverse")
    loss = cross_entropy(mem_rec.flatten(0, 1), labels.repeat(len(x_seq)))
    loss.backward()
    return loss.detach()


def sltt(net: nn.Module, x_seq: Tensor, labels: Tensor) -> Tensor:
    """Another gradient: without the paths from step to step."""
    _, loss = online_train_step(net, x_seq, lambda out, t: cross_entropy(out[1], labels))
    return loss


TASK = Task("snnTorch", build, rest, scores, {"plain": plain, "reverse": reverse, "SLTT": sltt})

if __name__ == "__main__":
    main(TASK, __doc__.splitlines()[0])
