"""Reversible blocks for snnTorch: memory that does not grow with depth. The maths: shared_core.reversible.coupling.

    branch = lambda c: torch.nn.Sequential(snn.Leaky(beta=0.9, init_hidden=True), torch.nn.Conv2d(c, c, 3, padding=1))
    net = ReversibleSequence([ReversibleBlock(branch(32), branch(32)) for _ in range(48)])
    for x in x_seq:                 # [N, 64, H, W]: one step
        y = net(x)                  # kept for the backward pass: y, and the membranes, as ever

Neurons hold their own membranes (init_hidden=True) and return spikes only (output=False). Steps of a network that does
not fit otherwise: shared_core.temporal.unroll(net, x_seq).
"""
from shared_core.reversible import ReversibleBlock, ReversibleSequence

__all__ = ["ReversibleBlock", "ReversibleSequence"]
