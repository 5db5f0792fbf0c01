"""The network and the methods of benchmarks.reversible_depth_cpu: reversible blocks in a row, F and G each neuron,
convolution, batch norm; T = 4, 2 x 32 channels, 16 x 16.

plain               the same network with everything kept, by Torch's own autograd (reversible=False)
torch checkpoint    the same, with torch.utils.checkpoint (not reentrant) around every block
recompute           the same, with sj_memext.retrofit(net, "recompute")
reversible          inputs brought back from outputs
reversible, fused   the same, with sj_memext.retrofit(net, "neuron")
Every method computes the same values; the sum of squares of the output is the loss.
"""
from __future__ import annotations

import json
import sys
from dataclasses import dataclass

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sj_memext
from benchmarks._resident import tell
from sj_memext.layer import ReversibleBlock, ReversibleSequence

PLAIN, CHECKPOINT, RECOMPUTE = "plain", "torch checkpoint", "recompute"
REVERSIBLE, FUSED = "reversible", "reversible, fused"
METHODS = (PLAIN, CHECKPOINT, RECOMPUTE, REVERSIBLE, FUSED)
RETROFIT = {RECOMPUTE: "recompute", FUSED: "neuron"}
STEPS, WIDTH, SIDE, BATCH = 4, 32, 16, 8


@dataclass(frozen=True)
class Case:
    """depth: blocks.  method: of METHODS.  width: channels of one half of the stream."""

    depth: int
    method: str
    batch: int = BATCH
    width: int = WIDTH
    threads: int = 2


def _branch(width: int) -> nn.Module:
    return nn.Sequential(neuron.IFNode(surrogate_function=surrogate.ATan(), detach_reset=True),
                         layer.Conv2d(width, width, 3, padding=1, bias=False), layer.BatchNorm2d(width))


class Training:
    """The network of a case with its input; `step()` is loss and gradients, from neurons at rest."""

    def __init__(self, case: Case):
        if case.method not in METHODS:
            raise ValueError(f"method {case.method!r}; allowed: {', '.join(METHODS)}")
        torch.manual_seed(0)  # the same weights and batch for every method
        self.case = case
        blocks = [ReversibleBlock(_branch(case.width), _branch(case.width), reversible=False)
                  for _ in range(case.depth)]
        for block in blocks:
            nn.init.constant_(block.f[2].weight, 0.5)  # the stream stays in the neurons' range
            nn.init.constant_(block.g[2].weight, 0.5)
        self.blocks = blocks
        self.net = ReversibleSequence(blocks, reversible=case.method in (REVERSIBLE, FUSED))
        functional.set_step_mode(self.net, "m")
        if case.method in RETROFIT:
            sj_memext.retrofit(self.net, RETROFIT[case.method])
        self.x = torch.randn(STEPS, case.batch, 2 * case.width, SIDE, SIDE).requires_grad_()  # as from a layer before

    def step(self) -> Tensor:
        self.rest()
        loss = self._forward().square().mean()
        loss.backward()
        return loss.detach()

    def _forward(self) -> Tensor:
        if self.case.method != CHECKPOINT:
            return self.net(self.x)
        x = self.x
        for block in self.blocks:  # reversible=False and step mode "m": a block leaves its neurons as they were
            x = checkpoint(block, x, use_reentrant=False)
        return x

    def rest(self) -> None:
        """No gradients, no states."""
        self.net.zero_grad(set_to_none=True)
        self.x.grad = None
        functional.reset_net(self.net)

    def gradients(self) -> list[Tensor]:
        """Of the last step."""
        return [self.x.grad.clone(), *(p.grad.clone() for p in self.net.parameters())]

    def firing_rate(self) -> float:
        rates: list[float] = []
        hooks = [m.register_forward_hook(lambda _m, _x, out: rates.append(out.mean().item()))
                 for m in self.net.modules() if isinstance(m, neuron.BaseNode)]
        with torch.no_grad():
            self.net(self.x)
        for hook in hooks:
            hook.remove()
        self.rest()
        return sum(rates) / len(rates)


# ---- as a process that does nothing else: resident memory ------------------------------------------------------------


def main(argument: str) -> None:
    case = Case(**json.loads(argument))
    torch.set_num_threads(case.threads)
    Training(Case(1, case.method, 2, 4)).step()  # threads, oneDNN and kernels are loaded
    training = Training(case)
    training.net.check = False  # the check of the first step is no part of a step
    tell(training.step)


if __name__ == "__main__":
    main(sys.argv[1])
