"""Energy of one inference of a T-RevSNN by the paper's closed formula.

    E = E_MAC * FL(first convolution) + E_AC * sum over all other layers of FL * firing rate       T-RevSNN Eq. 13

(Eq. 13's factor T is in the sum: every column has layers of its own.) A layer whose input is no spikes because a linear
layer comes between, as the second convolution of each depth-wise pair, takes the rate of the spikes before that.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shared_core.errors import MemextError

from .t_revsnn_net import TRevSNN

__all__ = ["E_AC", "E_MAC", "Energy", "LayerEnergy", "energy"]

E_MAC, E_AC = 4.6, 0.9  # pJ, 45 nm, 32 bit (T-RevSNN, appendix B)


@dataclass(frozen=True)
class LayerEnergy:
    """name: of the module; a layer shared by columns appears once for each.  operations: multiply-adds for one sample.
    rate: share of inputs that count, 1 for the first layer.  mj: millijoules."""

    name: str
    operations: int
    rate: float
    mj: float


@dataclass(frozen=True)
class Energy:
    """mj: millijoules for one sample.  rate: mean firing rate of the spiking layers, weighted by their operations."""

    mj: float
    rate: float
    layers: tuple[LayerEnergy, ...]


@torch.no_grad()
def energy(net: TRevSNN, sample: Tensor, rate: float | None = None, e_mac: float = E_MAC, e_ac: float = E_AC) -> Energy:
    """Of one inference, with the firing rates on `sample`, or with the same given rate in every layer but the first.

    sample: as the net takes it; may lie on the meta device (as the net then must) if a rate is given.
    e_mac, e_ac: picojoules of a multiply-accumulate and of an addition.
    Raises MemextError: a rate outside 0 to 1; a sample on the meta device without a rate.
    """
    if rate is not None and not 0 <= rate <= 1:
        raise MemextError(f"energy: rate={rate}; allowed: None (measured on the sample), or from 0 to 1")
    if rate is None and sample.device.type == "meta":
        raise MemextError("energy: firing rates cannot be measured on the meta device; pass rate=, or a real sample")
    found: list[tuple[str, int, float]] = []
    first = None if net.kind.events else "stem.0"
    last = [1.0]  # rate of the spikes seen last

    def count(name: str, layer: nn.Module, args, out: Tensor) -> None:
        x = args[0]
        per_output = layer.in_features if isinstance(layer, nn.Linear) else layer.weight[0].numel()
        operations = out.numel() // len(out) * per_output
        if name == first:
            found.append((name, operations, 1.0))
            return
        if rate is None and not linear_before(name):
            last[0] = (x != 0).float().mean().item()
        found.append((name, operations, last[0] if rate is None else rate))

    def spiking(layer: nn.Module, args) -> None:
        if rate is None:
            last[0] = net.columns.neuron.spike(args[0]).mean().item()

    layers = {name: m for name, m in net.named_modules(remove_duplicate=True) if isinstance(m, nn.Conv2d | nn.Linear)}
    hooks = [m.register_forward_hook(lambda m, args, out, name=name: count(name, m, args, out))
             for name, m in layers.items()]
    mode, _ = net.training, net.eval()
    try:
        states = net.columns(net.encode(sample))
        spiking(net.head, (states[-1],))
        net.scores(states[-1])
    finally:
        net.train(mode)
        for hook in hooks:
            hook.remove()
    rows = [LayerEnergy(name, n, r, n * r * (e_mac if name == first else e_ac) * 1e-9) for name, n, r in found]
    spiked = [row for row in rows if not row.name.startswith("stem.")]
    total = sum(row.operations for row in spiked)
    return Energy(sum(row.mj for row in rows), sum(row.operations * row.rate for row in spiked) / total, tuple(rows))


def linear_before(name: str) -> bool:
    """Whether the layer's input comes straight from another linear layer: second of a depth-wise pair, or the head,
    whose pooled input is counted by the spikes before the pool."""
    return name.endswith((".first.1", ".last.1")) or name == "head"
