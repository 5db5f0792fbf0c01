"""One of two processes of tests/sj/test_reversible_ddp.py: python reversible_worker.py RANK RENDEZVOUS OUT

All cases, one after the other: most of the time goes into importing the framework.
"""
import sys

import torch
from reversible_nets import weighted
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import sj_memext
from sj_memext.layer import ReversibleBlock, ReversibleSequence

CASES = ("plain", "no_sync", "unused", "static", "recompute")


def branch(width):
    return nn.Sequential(neuron.LIFNode(1.5, False, 0.75, None, surrogate.ATan()),
                         layer.Conv2d(width, width, 3, padding=1, bias=False), layer.BatchNorm2d(width))


class Net(nn.Module):
    def __init__(self, case):
        super().__init__()
        torch.manual_seed(0)
        self.stem = layer.Conv2d(2, 8, 3, padding=1)
        self.body = ReversibleSequence([ReversibleBlock(branch(4), branch(4)) for _ in range(3)])
        if case == "unused":
            self.extra = nn.Parameter(torch.ones(3))
            self.body.blocks[1].f.register_parameter("idle", nn.Parameter(torch.ones(2)))
        functional.set_step_mode(self, "m")

    def forward(self, x):
        return self.body(self.stem(x))


def data(rank):
    return torch.randn(4, 2, 2, 6, 6, generator=torch.Generator().manual_seed(rank))


def train(net, rank, case, sync=lambda net: net.no_sync()):
    """Two passes; gradients of both added up."""
    seen = []
    for name, p in net.named_parameters():
        p.register_hook(lambda grad, name=name: seen.append(name))
    for step in range(2):
        functional.reset_net(net)
        if case == "no_sync" and step == 0:
            with sync(net):
                weighted(net(data(rank))).backward()
        else:
            weighted(net(data(rank))).backward()
    return seen


def distributed(rank, case):
    net = Net(case)
    if case == "recompute":
        sj_memext.retrofit(net, "recompute")
    ddp = DistributedDataParallel(net, find_unused_parameters=case == "unused", static_graph=case == "static")
    seen = train(ddp, rank, case)
    return {"grads": {name: p.grad for name, p in net.named_parameters()}, "seen": seen,
            "buffers": dict(net.named_buffers())}


def main(rank, rendezvous, out):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=int(rank), world_size=2)
    torch.save({case: distributed(int(rank), case) for case in CASES}, out)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
