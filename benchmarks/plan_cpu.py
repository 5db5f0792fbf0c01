"""Peaks that the planner predicts beside peaks that are measured, and how long planning takes.

    python -m benchmarks.plan_cpu [--quick]

Measured by memory.measure in a training step on the CPU: live tensors over what was there before. The last network is
planned only; no machine at hand could hold it.
"""
from __future__ import annotations

import argparse
import time

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from spikingjelly.activation_based.model import ms_resnet, sew_resnet, spike_driven_transformer, spiking_vgg
from torch import nn

from benchmarks._measure import save, table
from benchmarks._networks import SEW_RESNET18, SPIKFORMER, TINY, VGG11, Network
from shared_core.memory import measure, plan
from sj_memext import retrofit

GIB, MIB = 1 << 30, 1 << 20
_LIF = {"spiking_neuron": neuron.LIFNode, "surrogate_function": surrogate.ATan()}
_NONE = ((), lambda block: ())  # no blocks: memopt is not measured here


def _multi_step(net: nn.Module) -> nn.Module:
    functional.set_step_mode(net, "m")
    return net


def _vgg11_bn() -> nn.Module:
    """SpikingJelly's spiking_vgg11_bn with a classifier for 32x32 (its own, for 224x224, has 119 M parameters)."""
    net = spiking_vgg.spiking_vgg11_bn(num_classes=10, **_LIF)
    net.avgpool, net.classifier = layer.AdaptiveAvgPool2d((1, 1)), layer.Linear(512, 10)
    return _multi_step(net)


class Stepped(nn.Module):
    """A net in single-step mode, in a loop over time."""

    def __init__(self, net: nn.Module):
        super().__init__()
        functional.set_step_mode(net, "s")
        self.net = net

    def forward(self, x):
        return torch.stack([self.net(step) for step in x])


NETWORKS = (
    VGG11.at(4, 16), SEW_RESNET18, SPIKFORMER,
    Network("spiking_vgg11_bn", _vgg11_bn, (4, 8, 3, 32, 32), *_NONE),
    Network("spiking_vgg11_bn, step by step", lambda: Stepped(_vgg11_bn()), (4, 8, 3, 32, 32), *_NONE),
    Network("sew_resnet50", lambda: _multi_step(sew_resnet.sew_resnet50(num_classes=10, cnf="ADD", **_LIF)),
            (4, 4, 3, 64, 64), *_NONE),
    Network("ms_resnet18", lambda: _multi_step(ms_resnet.ms_resnet18(T=4, num_classes=10)), (4, 8, 3, 32, 32), *_NONE),
    Network("spike_driven_transformer", lambda: _multi_step(spike_driven_transformer.SpikeDrivenTransformer(
        T=4, num_classes=10, embed_dims=128, num_heads=8, depths=2)), (4, 8, 3, 32, 32), *_NONE),
)


def _sew152() -> nn.Module:
    with torch.device("meta"):
        return _multi_step(sew_resnet.sew_resnet152(num_classes=1000, cnf="ADD", **_LIF))


HUGE = Network("sew_resnet152", _sew152, (16, 64, 3, 224, 224), *_NONE)


def compared(network: Network) -> list[dict]:
    """One row per method: predicted and measured."""
    torch.manual_seed(0)
    x = torch.randn(network.shape)
    rows = []
    start = time.perf_counter()
    planned = plan(network.build(), x)
    seconds = time.perf_counter() - start
    for method in planned.methods:
        row = {"network": network.name, "method": method.name, "planned in, s": seconds / len(planned.methods)}
        if method.peak is None:
            rows.append({**row, "failed": method.problem})
            continue
        real = measured(network, x, method.method, method.options)
        rows.append({**row, "predicted, MiB": method.peak.step / MIB, "measured, MiB": real / MIB,
                     "off, %": 100 * (method.peak.step / real - 1)})
    return rows


def measured(network: Network, x: torch.Tensor, method: str, options: dict) -> int:
    torch.manual_seed(0)
    net = network.build()
    if method != "native":
        retrofit(net, method, **options)

    def step() -> None:
        out = net(x)
        out.float().mean().backward()

    step()  # libraries load, caches fill
    functional.reset_net(net)
    net.zero_grad(set_to_none=True)
    return measure(step, timeline=False).peak_bytes


def planned_only(network: Network, budget: str = "80GiB") -> tuple[list[dict], dict]:
    """Rows of peaks and largest batches for AdamW, and seconds: of planning, and with the largest batches."""
    net, seconds = network.build(), {}
    for what, more in (("plan", False), ("plan and largest batches", True)):
        start = time.perf_counter()
        found = plan(net, network.shape, budget, "adamw", max_batch=more)
        seconds[f"{what}, s"] = time.perf_counter() - start
    rows = [{"network": network.name, "method": m.name, "peak, GiB": m.peak.peak / GIB,
             "activations, GiB": m.peak.activations / GIB, "fits": m.peak.peak <= found.budget,
             "largest batch": m.largest_batch} for m in found.methods if m.peak is not None]
    return rows, {"network": network.name, "shape": list(network.shape), "budget": budget, **seconds}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="tiny networks, to show that it runs")
    quick = parser.parse_args(argv).quick
    rows = []
    for network in TINY if quick else NETWORKS:
        print(network.name, flush=True)
        rows += compared(network)
    table("predicted against measured", rows, ["network", "method", "predicted, MiB", "measured, MiB", "off, %"])
    largest, seconds = planned_only(TINY[0] if quick else HUGE)
    table(f"{seconds['network']} at {seconds['shape']} with AdamW and {seconds['budget']}", largest,
          ["method", "peak, GiB", "activations, GiB", "fits", "largest batch"])
    print(f"planned in {seconds['plan, s']:.1f} s, with the largest batches in "
          f"{seconds['plan and largest batches, s']:.1f} s")
    print(f"wrote {save('plan_cpu', rows, largest=largest, seconds=seconds)}")


if __name__ == "__main__":
    main()
