"""A network whose neurons can leave out the gradient from step to step, layer by layer, and the gradients to compare.

    h[t] = v[t-1] + (x[t] - v[t-1]) / tau;   temporal gradient: through v[t-1];  spatial gradient: through x[t] alone
"""
from __future__ import annotations

from collections.abc import Iterable

import torch
from spikingjelly.activation_based import functional, neuron, surrogate
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from sj_memext.functional import multi_step_forward, online_train_step

STAGES, LAYERS, CLASSES = 3, 2, 10  # of convolution, norm, neuron


class Node(neuron.LIFNode):
    """LIFNode, soft reset without gradient. temporal: whether the gradient goes through the state of before."""

    def __init__(self, tau: float):
        super().__init__(tau=tau, v_reset=None, detach_reset=True, step_mode="s",
                         surrogate_function=surrogate.PiecewiseQuadratic(alpha=1.0))  # the triangle, as wide as v_th
        self.temporal = True

    def single_step_forward(self, x: Tensor) -> Tensor:
        if not self.temporal and isinstance(self.v, Tensor):
            self.v = self.v.detach()
        return super().single_step_forward(x)


def build(tau: float, width: int = 8) -> nn.Sequential:
    """Stages of convolutions at one size each, for [N, 1, 28, 28]."""
    parts: list[nn.Module] = []
    inputs = 1
    for stage in range(STAGES):
        outputs = width * 2**stage
        for _ in range(LAYERS):
            parts += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), Node(tau)]
            inputs = outputs
        parts.append(nn.AvgPool2d(2))
    return nn.Sequential(*parts, nn.Flatten(), nn.Linear(inputs * 9, CLASSES))


def nodes(net: nn.Module) -> list[Node]:
    return [m for m in net.modules() if isinstance(m, Node)]


def weights(net: nn.Module) -> list[nn.Parameter]:
    """Of the convolutions. (The last layer's gradient has no temporal part: no neuron comes after it.)"""
    return [m.weight for m in net.modules() if isinstance(m, nn.Conv2d)]


def case(number: int) -> list[bool]:
    """Which neurons keep their temporal gradient. 1: only the last of each stage; 2: all but these."""
    last = [(i + 1) % LAYERS == 0 for i in range(STAGES * LAYERS)]
    return last if number == 1 else [not keep for keep in last]


def bptt(net: nn.Module, x_seq: Tensor, labels: Tensor, temporal: Iterable[bool] | None = None) -> float:
    """Adds the gradient to `.grad`; temporal: which neurons keep their temporal gradient, None: all. The loss."""
    for node, keep in zip(nodes(net), temporal if temporal is not None else [True] * STAGES * LAYERS):
        node.temporal = keep
    functional.reset_net(net)
    out = multi_step_forward(x_seq, net, method="store")
    loss = cross_entropy(out.flatten(0, 1), labels.repeat(len(x_seq)))
    loss.backward()
    functional.reset_net(net)
    for node in nodes(net):
        node.temporal = True
    return loss.item()


def spatial(net: nn.Module, x_seq: Tensor, labels: Tensor) -> None:
    """Adds the gradient without any temporal part to `.grad` (SLTT)."""
    functional.reset_net(net)
    online_train_step(net, x_seq, lambda out, t: cross_entropy(out, labels))
    functional.reset_net(net)


def gradients(net: nn.Module, x_seq: Tensor, labels: Tensor) -> dict[str, list[Tensor]]:
    """Of each convolution, all from these weights and this batch: BPTT, spatial, and the two cases."""
    ways = {"BPTT": lambda: bptt(net, x_seq, labels), "spatial": lambda: spatial(net, x_seq, labels),
            "case 1": lambda: bptt(net, x_seq, labels, case(1)), "case 2": lambda: bptt(net, x_seq, labels, case(2))}
    buffers, found = {name: b.clone() for name, b in net.named_buffers()}, {}
    for name, way in ways.items():
        net.zero_grad()
        way()
        found[name] = [p.grad.clone() for p in weights(net)]
    net.zero_grad()
    with torch.no_grad():
        for name, b in net.named_buffers():  # statistics of batch norm have not moved
            b.copy_(buffers[name])
    return found


def compared(found: dict[str, list[Tensor]]) -> dict:
    """Cosine similarities with BPTT's gradient.

    "spatial", "case 1", "case 2": one per layer.  "... of means": of the vectors of every layer's mean gradient
    (T-RevSNN, Eq. 12), for the two cases.
    """
    wanted = found["BPTT"]
    row: dict = {name: [cosine_similarity(a.flatten().double(), b.flatten().double(), dim=0).item()
                        for a, b in zip(found[name], wanted)] for name in ("spatial", "case 1", "case 2")}
    for name in ("case 1", "case 2"):
        means = [torch.stack([g.double().mean() for g in found[way]]) for way in (name, "BPTT")]
        row[f"{name} of means"] = cosine_similarity(*means, dim=0).item()
    return row
