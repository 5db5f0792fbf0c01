"""Backward time of the reversible neuron on the CPU, against plain autograd and against the usual reversible layer.

    python -m benchmarks.reversible_neuron_cpu [--rounds 9] [--threads 1 2] [--tiny]

    autograd       the same equations under Torch's autograd: every intermediate is kept (no memory is saved)
    conventional   what reversible layers usually do (RevSNN Section 4, middle of Fig. 4): inverse, then the forward
                   again with a graph, then backward through it; plain Torch
    ours, Torch    one walk back over the inverse, no forward graph; plain Torch
    ours           the same by the CPU kernel; "auto" runs it where the library is built

All in turns, in one process, each from the same output; medians, p20 and p80. The paper's claim is 20 to 30 % off the
conventional backward pass; asked of ours: at least 40 %.
"""
from __future__ import annotations

import argparse

import torch

from benchmarks._measure import in_turns, quantiles, ratio, save, table
from shared_core import surrogate
from shared_core.memory import measure
from shared_core.reversible import _native, _plain, _torch
from shared_core.reversible.neuron import Equations, multi_step

SHAPES = ((4, 16, 64, 32, 32), (8, 16, 64, 32, 32), (8, 16, 256, 8, 8))  # [T, N, C, H, W]
TINY = ((3, 2, 4, 4, 4),)
SURROGATE = surrogate.atan(alpha=2.0)
EQUATIONS = Equations(groups=2, tau=2.0, alpha=0.1)
ASKED = 0.6  # of the conventional backward's time


class Conventional(torch.autograd.Function):
    """Keeps its output; backward inverts it, runs the forward again with a graph and differentiates that."""

    @staticmethod
    def forward(ctx, x):
        y, _, _ = _torch.loop(EQUATIONS, x, _plain.start(EQUATIONS, x, None), SURROGATE)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx, grad):
        (y,) = ctx.saved_tensors
        x, _, _ = _torch.inverse(EQUATIONS, y, _plain.start(EQUATIONS, y, None), SURROGATE)
        with torch.enable_grad():
            x = x.requires_grad_()
            again, _, _ = _torch.loop(EQUATIONS, x, _plain.start(EQUATIONS, x, None), SURROGATE)
        return torch.autograd.grad(again, x, grad)[0]


def rivals(x: torch.Tensor) -> dict[str, tuple]:
    """name -> (forward, the leaf it starts from). x: [T, outer, groups, inner]; ours split its last dimension, flat."""
    flat = x.detach().flatten(2).requires_grad_()  # the same memory

    def ours(backend):
        return lambda: multi_step(EQUATIONS, flat, surrogate=SURROGATE, backend=backend)[0], flat

    found = {"autograd": ours("reference"), "conventional": (lambda: Conventional.apply(x), x),
             "ours, Torch": ours("torch")}
    return found | ({} if _native.unavailable() else {"ours": ours("native")})


def timed(makers: dict[str, tuple], grad: torch.Tensor, rounds: int
          ) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of forward and of backward, in turns. Forward of a round is run just before its backward."""
    waiting: dict[str, torch.Tensor] = {}

    def forward(name):
        waiting[name] = makers[name][0]()

    def backward(name):
        y = waiting.pop(name)
        torch.autograd.grad(y, makers[name][1], grad.view_as(y))

    turns = {}
    for name in makers:
        turns[f"{name} forward"] = lambda name=name: forward(name)
        turns[f"{name} backward"] = lambda name=name: backward(name)
    seconds = in_turns(turns, rounds)
    return tuple({name: seconds[f"{name} {part}"] for name in makers} for part in ("forward", "backward"))


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--tiny", action="store_true", help="a small shape, one round: does it run?")
    args = parser.parse_args(argv)
    if args.tiny:
        args.rounds, args.threads = 1, [1]
    if _native.unavailable():
        print(f"without the CPU kernel: {_native.unavailable()}")
    rows, asked = [], []
    for shape in TINY if args.tiny else SHAPES:
        torch.manual_seed(0)
        x = (torch.randn(shape[0], shape[1] * shape[2] * shape[3], 2, shape[4] // 2) * 0.7 + 0.3).requires_grad_()
        grad, makers = torch.randn(x.shape), rivals(x)
        gradients = {name: torch.autograd.grad(y := make(), leaf, grad.view_as(y))[0].flatten()
                     for name, (make, leaf) in makers.items()}
        worst = max((g - gradients["autograd"]).norm() / gradients["autograd"].norm() for g in gradients.values())
        assert worst < 1e-5, f"the rivals do not compute the same gradient: {worst}"
        kept = {name: measure(make, timeline=False).saved_bytes / x.numel() for name, (make, _) in makers.items()}
        for threads in args.threads:
            torch.set_num_threads(threads)
            forward, backward = timed(makers, grad, args.rounds)
            for name in makers:
                of = {part: quantiles([s * 1e9 / x.numel() for s in seconds[name]])
                      for part, seconds in (("forward", forward), ("backward", backward))}
                share = quantiles([a / b for a, b in zip(backward[name], backward["conventional"])])
                rows.append({"shape": list(shape), "threads": threads, "neuron": name,
                             "forward, ns": of["forward"]["median"], "backward, ns": of["backward"]["median"],
                             "backward, p20-p80": [of["backward"]["p20"], of["backward"]["p80"]],
                             "backward of conventional's": share["median"],
                             "autograd's backward, times": ratio(backward, "autograd", name)["median"],
                             "kept, B": kept[name]})
                if name.startswith("ours"):
                    asked.append({"shape": list(shape), "threads": threads, "neuron": name, "asked": ASKED,
                                  "found": share["median"], "met": share["median"] <= ASKED})
    table("reversible neuron, ns per element and step, float32", rows,
          ["shape", "threads", "neuron", "forward, ns", "backward, ns", "backward of conventional's",
           "autograd's backward, times", "kept, B"])
    for verdict in asked:
        if not verdict["met"]:
            print("NOT MET:", verdict)
    print("written:", save("reversible_neuron_cpu", rows, asked=asked, rounds=args.rounds, dtype="float32",
                           tiny=args.tiny).name)


if __name__ == "__main__":
    main()
