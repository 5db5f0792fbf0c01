"""Trains a SpikingJelly network on human activities in step mode "s": plain BPTT, reverse, and SLTT.

    python examples/temporal_spikingjelly.py --out temporal_out        # under a minute on two cores
"""
from __future__ import annotations

from _activity import ACTIVITIES, CHANNELS
from _temporal import WIDTH, Task, main
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sj_memext.functional import multi_step_forward, online_train_step


def build() -> nn.Sequential:
    """The last layer is linear: its output is the score of each step."""
    def lif() -> nn.Module:
        return neuron.LIFNode(tau=2.0, surrogate_function=surrogate.ATan(), step_mode="s")

    return nn.Sequential(nn.Linear(WIDTH * CHANNELS, 64), nn.BatchNorm1d(64), lif(),
                         nn.Linear(64, 64), nn.BatchNorm1d(64), lif(), nn.Linear(64, len(ACTIVITIES)))


def scores(net: nn.Module, x_seq: Tensor) -> Tensor:
    net.eval()
    found = functional.multi_step_forward(x_seq, net)
    net.train()
    return found


def of_all_steps(y_seq: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(y_seq.flatten(0, 1), labels.repeat(len(y_seq)))


def plain(net: nn.Module, x_seq: Tensor, labels: Tensor) -> Tensor:
    """SpikingJelly's own loop."""
    loss = of_all_steps(functional.multi_step_forward(x_seq, net), labels)
    loss.backward()
    return loss.detach()


def reverse(net: nn.Module, x_seq: Tensor, labels: Tensor) -> Tensor:
    """The same gradient; the spikes are kept as bits, and every step is built again for its backward."""
    loss = of_all_steps(multi_step_forward(x_seq, net, method="reverse"), labels)
    loss.backward()
    return loss.detach()


def sltt(net: nn.Module, x_seq: Tensor, labels: Tensor) -> Tensor:
    """Another gradient: without the paths from step to step."""
    _, loss = online_train_step(net, x_seq, lambda out, t: cross_entropy(out, labels))
    return loss


TASK = Task("SpikingJelly", build, functional.reset_net, scores, {"plain": plain, "reverse": reverse, "SLTT": sltt})

if __name__ == "__main__":
    main(TASK, __doc__.splitlines()[0])
