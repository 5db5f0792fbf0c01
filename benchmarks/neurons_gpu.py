"""One layer of neurons on the GPU: time, bandwidth, agreement, surrogates and call overhead, against the frameworks.

    python -m benchmarks.neurons_gpu [--seconds 160]

Times are of CUDA events around one call with an empty L2, all rivals in turns. Bandwidth counts the bytes that must
move: forward reads x and writes spikes, backward reads x and the spikes' gradient and writes x's gradient; it is set
beside a plain device copy of as many elements in the same run. "forward" is without autograd.
"""
from __future__ import annotations

import sys
from collections.abc import Callable

import snntorch as snn
import torch
from spikingjelly.activation_based import functional as sj_functional
from spikingjelly.activation_based import neuron
from torch import Tensor

from benchmarks._gpu import Rivals, Run, spread, start
from benchmarks._measure import quantiles, ratio, table
from benchmarks.neurons_cpu import snntorch_surrogates, spikingjelly_surrogates
from shared_core import backends, functional, surrogate
from shared_core.dynamics import IF, LIF, Dynamics, Leaky, ParametricLIF
from sj_memext.neuron import FusedIFNode, FusedLIFNode, FusedParametricLIFNode
from snntorch_memext.neurons import FusedLeaky

ELEMENTS = 2**25  # T * N: 128 MiB in float32
STEPS = (4, 16, 32, 8, 128)  # in the order of interest, should time run out
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
NODES = {  # SpikingJelly's name of the implementation, its class, ours, and the same neuron for shared_core.functional
    "LIF": ("lif", neuron.LIFNode, FusedLIFNode, LIF(1.0, 0.0, False, 2.0, True)),
    "IF": ("if", neuron.IFNode, FusedIFNode, IF(1.0, 0.0, False)),
    "ParametricLIF": ("plif", neuron.ParametricLIFNode, FusedParametricLIFNode, ParametricLIF(1.0, 0.0, False, True)),
}
Layer = Callable[[Tensor], Tensor]


def drive(run: Run, steps: int, elements: int, dtype: torch.dtype) -> Tensor:
    """Input [steps, elements / steps] at which 10 to 50 % of the neurons fire per step."""
    if run.tiny:
        elements = 40 * steps
    return (torch.randn(steps, elements // steps, device=run.device) * 1.2 + 0.4).to(dtype)


# ---- layers: functions [T, N] -> spikes [T, N], with their parameters in `learns` ------------------------------------


def node_layer(node: torch.nn.Module) -> Layer:
    def layer(x):
        sj_functional.reset_net(node)
        return node(x)
    layer.learns = list(node.parameters())
    return layer


def loop_layer(leaky: snn.Leaky) -> Layer:
    """snnTorch's way: the user's loop over time."""
    def layer(x):
        mem, spikes = leaky.reset_mem(), []
        for x_t in x:
            spk, mem = leaky(x_t, mem)
            spikes.append(spk)
        return torch.stack(spikes)
    layer.learns = list(leaky.parameters())
    return layer


def whole_layer(leaky: FusedLeaky) -> Layer:
    def layer(x):
        leaky.reset_mem()
        return leaky.multi_step(x)[0]
    layer.learns = list(leaky.parameters())
    return layer


def layers(run: Run, name: str, spikes: object = None) -> dict[str, Layer]:
    """{"framework": ..., "ours": ...} of a neuron. spikes: the surrogate, else the framework's default."""
    if name == "Leaky":
        options = {} if spikes is None else {"spike_grad": spikes}
        return {"framework": loop_layer(snn.Leaky(beta=0.9, **options).to(run.device)),
                "ours": whole_layer(FusedLeaky(beta=0.9, **options).to(run.device))}
    options = {} if spikes is None else {"surrogate_function": spikes}
    _, host, ours, _ = NODES[name]
    return {"framework": node_layer(host(step_mode="m", **options).to(run.device)),
            "ours": node_layer(ours(step_mode="m", **options).to(run.device))}


def rivals(found: dict[str, Layer], x: Tensor, backward: bool) -> Rivals:
    """Calls to time: forward without autograd, or forward and backward to x and to what the layer learns."""
    def call(layer):
        def forward():
            with torch.no_grad():
                return layer(x)

        def both():
            return torch.autograd.grad(layer(leaf), [leaf, *layer.learns], weight)

        return both if backward else forward

    leaf = x.detach().requires_grad_()
    weight = torch.randn(x.shape, device=x.device, dtype=spike_dtype(found, x))
    return {name: call(layer) for name, layer in found.items()}


def spike_dtype(found: dict[str, Layer], x: Tensor) -> torch.dtype:
    """snnTorch's Leaky, and hence ours, emits float32 whatever it gets; SpikingJelly's nodes emit the input's dtype."""
    return found["ours"](x[:1, :1]).dtype


def implementation(run: Run, name: str, dtype: torch.dtype) -> str:
    """What SpikingJelly says it runs. It does not say so of half precision, where its fused path is left."""
    if name == "Leaky":
        return "snnTorch's loop"
    said = str(sj_functional.neuron_implementation(NODES[name][0], run.device)["implementation"])
    return said if dtype == torch.float32 else f"{said} for float32; half precision: see framework's launches"


def launches(run: Run, call: Callable[[], object]) -> int | None:
    """Kernels and copies that one call puts on the GPU; one fused kernel or a loop over time, this tells them apart."""
    from torch.profiler import ProfilerActivity, profile

    if not run.cuda:
        return None
    run.synchronize()
    try:
        with profile(activities=[ProfilerActivity.CUDA]) as seen:
            call()
            run.synchronize()
        return sum(event.count for event in seen.key_averages() if event.device_type == torch.autograd.DeviceType.CUDA)
    except RuntimeError as problem:  # a profiler may be refused; the times are what counts
        print("launches not counted:", problem)
        return None


# ---- sections -------------------------------------------------------------------------------------------------------


def copy_rates(run: Run) -> dict[torch.dtype, float]:
    """GB/s of a device copy of ELEMENTS elements, read and written bytes counted."""
    rates = {}
    for dtype in DTYPES:
        source = drive(run, 1, ELEMENTS, dtype)
        target = torch.empty_like(source)
        seconds, _ = run.in_turns({"copy": lambda s=source, t=target: t.copy_(s)})
        moved = 2 * source.numel() * source.element_size()
        rates[dtype] = moved / quantiles(seconds["copy"])["median"] / 1e9
    run.facts["copy, GB/s"] = {str(dtype)[6:]: rate for dtype, rate in rates.items()}
    return rates


def speed_figures(run: Run, found: dict[str, Layer], x: Tensor, backward: bool, copy_rate: float) -> dict:
    calls = rivals(found, x, backward)
    seconds, failed = run.in_turns(calls)
    row: dict[str, object] = {"shape": list(x.shape)}
    for name, taken in seconds.items():
        row |= spread(name, taken, 1e3, "ms")
    row |= {f"{name} failed": why for name, why in failed.items()}
    if "ours" in failed:
        return {**row, "failed": failed["ours"]}
    states = 2 * 4 * ((x.shape[0] - 1) // 32) / x.shape[0]  # one per 32 steps, written and read
    own, spike = x.element_size(), spike_dtype(found, x).itemsize
    moved = x.numel() * (own + spike + (2 * own + spike + states if backward else 0))
    row["ours, GB/s"] = moved / quantiles(seconds["ours"])["median"] / 1e9
    row["of the copy's GB/s"] = row["ours, GB/s"] / copy_rate
    if "framework" in seconds:
        row["times faster"] = ratio(seconds, "framework", "ours")["median"]
        if not backward:
            row["framework's launches"] = launches(run, calls["framework"])
    return row


def speed(run: Run, copy: dict[torch.dtype, float]) -> None:
    """The default surrogate of each framework."""
    for dtype in DTYPES:
        for steps in STEPS:
            for name in (*NODES, "Leaky"):
                for backward in (True, False):
                    x = drive(run, steps, ELEMENTS, dtype)
                    row = {"neuron": name, "T": steps, "dtype": str(dtype)[6:],
                           "pass": "forward + backward" if backward else "forward"}

                    def fill(name=name, x=x, backward=backward, dtype=dtype):
                        return {"framework runs": implementation(run, name, dtype),
                                **speed_figures(run, layers(run, name), x, backward, copy[dtype])}

                    row = run.add("rows", row, fill)
                    if (name, steps) in (("LIF", 4), ("LIF", 32), ("Leaky", 32)) and backward and "times faster" in row:
                        run.summarize(f"{name}, T={steps}, {row['dtype']}, {row['pass']}", row["framework, ms"],
                                      row["ours, ms"], row["times faster"], "ms")
        run.save()


def surrogates(run: Run, copy: dict[torch.dtype, float]) -> None:
    """Every surrogate with a kernel, forward + backward, float32, T = 16; the two defaults first."""
    x = drive(run, 16, ELEMENTS, torch.float32)
    first = ("ATan", "Sigmoid")
    kinds = sorted(spikingjelly_surrogates(), key=lambda s: s._get_name() not in first)
    cases = [("LIF", s._get_name(), s) for s in kinds] + [("Leaky", n, s) for n, s in snntorch_surrogates().items()]
    for name, label, spikes in cases:
        run.add("surrogates", {"neuron": name, "surrogate": label},
                lambda name=name, spikes=spikes: speed_figures(run, layers(run, name, spikes), x, True,
                                                               copy[torch.float32]))
    run.save()


def flips(a: Tensor, b: Tensor) -> float:
    """Spikes that differ, per 1e9 elements."""
    return (a.to(b.device) != b).sum().item() / a.numel() * 1e9


def distance(a: Tensor, b: Tensor) -> float:
    a, b = a.double().cpu(), b.double().cpu()
    return ((a - b).norm() / b.norm()).item()


def agreement(run: Run, name: str, dtype: torch.dtype) -> dict:
    """Spikes and x's gradients of our GPU kernels against our CPU kernels, eager Torch here, and the framework's."""
    kind: Dynamics = Leaky() if name == "Leaky" else NODES[name][3]
    spikes = surrogate.atan() if name == "Leaky" else surrogate.sigmoid()
    half = (torch.full((), 0.5),)  # SpikingJelly's ParametricLIF starts at 1/tau = sigmoid(0)
    params = {"Leaky": tuple(torch.tensor(v) for v in (0.9, 1.0, 1.0)), "ParametricLIF": half}.get(name, ())
    host = layers(run, name)["framework"]
    ours, on_cpu = ("cuda", "native") if run.cuda else ("native", "native")

    def run_ours(x, backend):
        there = tuple(p.to(x.device) for p in params)
        return functional.multi_step(kind, x, None, there, surrogate=spikes, backend=backend).spikes

    x = drive(run, 16, 2 * ELEMENTS, dtype)
    with torch.no_grad():
        got = run_ours(x, ours)
        found = {"elements": x.numel(), "firing rate": got.float().mean().item(),
                 "flips vs CPU kernels, per 1e9": flips(run_ours(x.cpu(), on_cpu), got),
                 "flips vs eager Torch, per 1e9": flips(run_ours(x, "reference"), got),
                 "flips vs framework, per 1e9": flips(host(x), got),
                 "framework ran": implementation(run, name, dtype)}
    small = drive(run, 16, 2**20, dtype)
    weight = torch.randn_like(small)

    def gradient(x, layer):
        x = x.detach().requires_grad_()
        out = layer(x)
        return torch.autograd.grad(out, x, weight.to(out))[0]

    mine = gradient(small, lambda x: run_ours(x, ours))
    found["gradient vs CPU kernels"] = distance(mine, gradient(small.cpu(), lambda x: run_ours(x, on_cpu)))
    found["gradient vs framework"] = distance(mine, gradient(small, host))
    return found


def exactness(run: Run) -> None:
    for dtype in DTYPES:
        for name in (*NODES, "Leaky"):
            row = run.add("exactness", {"neuron": name, "dtype": str(dtype)[6:]},
                          lambda name=name, dtype=dtype: agreement(run, name, dtype))
            if dtype == torch.float32 and "failed" not in row:
                run.summarize(f"{name}: spikes unlike the CPU kernels'", None, row["flips vs CPU kernels, per 1e9"],
                              None, "per 1e9")
    run.save()


def captured(call: Callable[[], object]) -> Callable[[], None]:
    """Replays `call` as a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


def overhead_figures(run: Run, name: str, backward: bool) -> dict:
    calls = rivals(layers(run, name), torch.randn(4, 100, device=run.device), backward)
    row: dict[str, object] = {}
    for who, call in calls.items():
        row |= spread(f"{who}, eager", run.wall(call), 1e6, "us")
        if not run.cuda:
            row[f"{who}, graph failed"] = "CUDA graphs need a CUDA device"
            continue
        try:
            row |= spread(f"{who}, graph", run.wall(captured(call)), 1e6, "us")
        except Exception as problem:  # some calls cannot be captured: a figure too
            run.synchronize()
            row[f"{who}, graph failed"] = f"{type(problem).__name__}: {problem}"[:200]
    row["times faster, eager"] = row["framework, eager, us"] / row["ours, eager, us"]
    return row


def overhead(run: Run) -> None:
    """What a call costs where the work is nothing: [4, 100] float32."""
    for name in (*NODES, "Leaky"):
        for backward in (False, True):
            what = "forward + backward" if backward else "forward"
            row = run.add("overhead", {"neuron": name, "pass": what},
                          lambda name=name, backward=backward: overhead_figures(run, name, backward))
            if name == "LIF" and "failed" not in row:
                run.summarize(f"one eager call on [4, 100], {what}", row["framework, eager, us"],
                              row["ours, eager, us"], row["times faster, eager"], "us")
    run.save()


def main(argv: list[str] | None = None) -> int:
    run = start("neurons_gpu", __doc__, argv, seconds=160)
    if run is None:
        return 0
    # A silent fallback would time the wrong thing: refused here.
    backends.choose(NODES["LIF"][3], surrogate.sigmoid(), run.device, "cuda" if run.cuda else "native")
    with run:
        run.facts["elements"] = ELEMENTS
        copy = copy_rates(run)
        exactness(run)
        overhead(run)
        speed(run, copy)
        surrogates(run, copy)
    rows = [row for row in run.sections["rows"] if row["pass"] != "forward" and "failed" not in row]
    if rows:
        table("one layer, forward + backward, ms", rows, ["neuron", "T", "dtype", "framework, ms", "ours, ms",
                                                          "times faster", "ours, GB/s", "of the copy's GB/s"])
    return 0


if __name__ == "__main__":
    sys.exit(main())
