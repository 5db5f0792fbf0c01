"""Bytes that one layer of neurons keeps for its backward pass, per element and time step, measured.

    python -m benchmarks.saved_bytes [--tiny]
"""
from __future__ import annotations

import argparse

import snntorch as snn
import torch
from spikingjelly.activation_based import functional, neuron

from benchmarks._measure import save, table
from shared_core.memory import measure
from sj_memext.neuron import FusedIFNode, FusedLIFNode, FusedParametricLIFNode
from snntorch_memext.neurons import FusedLeaky


def saved_by(run) -> int:
    """Bytes that the graph behind what `run` returns keeps for its backward pass; parameters are not counted.

    What is there before `run` is not counted either, so `run` makes the neurons' input itself, as a layer before would.
    """
    return measure(run, timeline=False).saved_bytes


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="few neurons and steps: does it run?")
    tiny = parser.parse_args(argv).tiny

    rows = []
    for steps in (2,) if tiny else (8, 64):
        for dtype in (torch.float32, torch.bfloat16):
            given = torch.randn(steps, 16, 64 if tiny else 4096).to(dtype).requires_grad_()
            elements = given.numel()
            pairs = [("IFNode", neuron.IFNode, FusedIFNode), ("LIFNode", neuron.LIFNode, FusedLIFNode),
                     ("ParametricLIFNode", neuron.ParametricLIFNode, FusedParametricLIFNode)]
            for name, host, ours in pairs:
                sizes = []
                for cls in (host, ours):
                    node = cls(step_mode="m")
                    sizes.append(saved_by(lambda node=node, given=given: node(given * 1)) / elements)
                    functional.reset_net(node)
                rows.append({"layer": f"SpikingJelly {name}", "dtype": str(dtype)[6:], "T": steps,
                             "framework, B": sizes[0], "ours, B": sizes[1]})
            native, fused = snn.Leaky(beta=0.9), FusedLeaky(beta=0.9)

            def loop(native=native, given=given):
                x = given * 1
                mem, out = torch.zeros_like(x[0]), []
                for x_t in x:
                    spk, mem = native(x_t, mem)
                    out.append(spk)
                return out

            rows.append({"layer": "snnTorch Leaky", "dtype": str(dtype)[6:], "T": steps,
                         "framework, B": saved_by(loop) / elements,
                         "ours, B": saved_by(lambda fused=fused, given=given: fused.multi_step(given * 1)) / elements})
    table("bytes kept for backward, per element and step", rows, ["layer", "dtype", "T", "framework, B", "ours, B"])
    print("written:", save("saved_bytes", rows).name)


if __name__ == "__main__":
    main()
