"""One layer of neurons, forward + backward, on the CPU: ours against the frameworks', every surrogate.

    python -m benchmarks.neurons_cpu [--rounds 7] [--threads 1 2] [--quick] [--tiny]

The distance to the limit is printed too: plain Torch operations that move the same bytes (read x, write spikes; read x
and the spikes' gradient, write x's gradient), into memory that is already there and into fresh memory.

A tensor of more than 32 MiB is new memory from the system every time, with glibc's defaults; mapping it costs more than
the kernels. `make bench` runs this twice: as a user has it, and with an allocator told to keep and reuse large blocks
(GLIBC_TUNABLES; results in neurons_cpu_reuse.json).
"""
from __future__ import annotations

import argparse
import inspect
import os

import snntorch as snn
import torch
from snntorch import surrogate as st_surrogate
from spikingjelly.activation_based import functional, neuron
from spikingjelly.activation_based import surrogate as sj_surrogate

from benchmarks._measure import in_turns, quantiles, ratio, save, table
from sj_memext.neuron import FusedLIFNode
from snntorch_memext.neurons import FusedLeaky

SHAPE = (8, 16, 64, 32, 32)  # [T, N, C, H, W]
TINY = (3, 2, 4, 5, 5)
SKIPPED = {
    "MultiLevelSpikeCount": "emits counts, not spikes",
    "PoissonPass": "draws random spikes; its argument must be a probability",
    "SurrogateFunctionBase": "abstract",
    "LSO": "crashes in snnTorch 1.0.0 itself",
    "custom_surrogate": "needs a user's function",
    "SSO": "draws random gradients; no kernel",
}


def spikingjelly_surrogates() -> list[object]:
    classes = [c for _, c in inspect.getmembers(sj_surrogate, inspect.isclass)
               if issubclass(c, sj_surrogate.SurrogateFunctionBase) and c.__module__ == sj_surrogate.__name__]
    return [c() for c in classes if c.__name__ not in SKIPPED]


def snntorch_surrogates() -> dict[str, object]:
    functions = {n: f for n, f in inspect.getmembers(st_surrogate, inspect.isfunction)
                 if f.__module__ == st_surrogate.__name__ and n not in SKIPPED}
    return {name: make() for name, make in functions.items()}


def spikingjelly_rivals(x, grad, surrogate) -> dict[str, object]:
    def step(node):
        def run():
            x.grad = None
            functional.reset_net(node)
            node(x).backward(grad)
        return run

    options = dict(surrogate_function=surrogate, step_mode="m")
    return {"framework": step(neuron.LIFNode(**options)), "ours": step(FusedLIFNode(**options))}


def snntorch_rivals(x, grad, surrogate) -> dict[str, object]:
    options = {} if surrogate is None else {"spike_grad": surrogate}
    native, ours = snn.Leaky(beta=0.9, **options), FusedLeaky(beta=0.9, **options)

    def loop(node):
        def run():
            x.grad = None
            mem, spikes = node.reset_mem(), []
            for x_t in x:
                spk, mem = node(x_t, mem)
                spikes.append(spk)
            torch.stack(spikes).backward(grad)
        return run

    def whole():
        x.grad = None
        ours.reset_mem()  # else it goes on from where the user's loop ended
        ours.multi_step(x)[0].backward(grad)

    return {"framework": loop(native), "ours": whole, "ours, user's loop": loop(ours)}


def limits(x, grad) -> dict[str, object]:
    source, spikes, grad_x = x.detach(), torch.empty_like(grad), torch.empty_like(grad)

    def in_place():
        spikes.copy_(source)
        torch.add(source, grad, out=grad_x)

    def fresh():
        kept = source.clone(), source + grad
        del kept

    return {"same bytes, memory there": in_place, "same bytes, fresh memory": fresh}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--quick", action="store_true", help="the default surrogates only")
    parser.add_argument("--tiny", action="store_true", help="a small shape, one round, one thread: does it run?")
    args = parser.parse_args(argv)
    shape = TINY if args.tiny else SHAPE
    if args.tiny:
        args.rounds, args.threads = 1, [1]

    torch.manual_seed(0)
    x = (torch.randn(shape) * 1.2).requires_grad_()
    grad = torch.randn(shape)
    per_element = 1e9 / x.numel()
    cases = [("SpikingJelly LIFNode", s._get_name(), spikingjelly_rivals(x, grad, s)) for s in spikingjelly_surrogates()
             if not args.quick or s._get_name() in ("Sigmoid", "ATan")]
    cases.append(("snnTorch Leaky", "default (atan)", snntorch_rivals(x, grad, None)))
    if not args.quick:
        cases += [("snnTorch Leaky", n, snntorch_rivals(x, grad, s)) for n, s in snntorch_surrogates().items()]

    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        for layer, surrogate, rivals in cases:
            seconds = in_turns({**rivals, **limits(x, grad)}, rounds=args.rounds)
            row = {"layer": layer, "surrogate": surrogate, "threads": threads,
                   "times faster": ratio(seconds, "framework", "ours")["median"]}
            for name in seconds:
                row[f"{name}, ns"] = quantiles(seconds[name])["median"] * per_element
                row[f"{name}, p20-p80"] = [q * per_element for q in list(quantiles(seconds[name]).values())[1:]]
            row["over the limit"] = ratio(seconds, "ours", "same bytes, memory there")["median"]
            rows.append(row)
    columns = ["layer", "surrogate", "threads", "framework, ns", "ours, ns", "times faster", "ours, user's loop, ns",
               "same bytes, memory there, ns", "same bytes, fresh memory, ns", "over the limit"]
    table(f"forward + backward, ns per element and step, {list(shape)} float32", rows, columns)
    allocator = os.environ.get("GLIBC_TUNABLES", "default")
    name = "neurons_cpu" if allocator == "default" else "neurons_cpu_reuse"
    print("written:", save(name, rows, shape=shape, dtype="float32", rounds=args.rounds, allocator=allocator).name)


if __name__ == "__main__":
    main()
