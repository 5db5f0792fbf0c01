"""What was asked of each method on the CPU, to be printed beside what was measured."""
from __future__ import annotations

from dataclasses import dataclass

from benchmarks._training import MEMOPT, MEMOPT_STEM, NATIVE

PEAK, TIME = "peak", "time"
RIVALS = {NATIVE: "native's", MEMOPT[0]: "memopt's", MEMOPT_STEM: "memopt + stem's"}  # as a row's columns call them


@dataclass(frozen=True)
class Bound:
    """`figure` of `method` on `network`, at every number of time steps, is at most (`under`: less than) so many times
    the rival's. What holds for memopt must hold for it with a stem too, where there is one."""

    network: str
    method: str
    figure: str
    rival: str
    most: float
    under: bool = False

    def met(self, ratio: float) -> bool:
        return ratio < self.most if self.under else ratio <= self.most

    def __str__(self) -> str:
        return f"{'under' if self.under else 'at most'} {self.most:g}x"


_M = MEMOPT[0]
BOUNDS = (
    Bound("vgg11", "recompute balanced", PEAK, NATIVE, 0.28),
    Bound("vgg11", "recompute balanced", PEAK, _M, 0.4),
    Bound("vgg11", "recompute balanced", TIME, NATIVE, 1.0),
    Bound("vgg11", "recompute memory", PEAK, NATIVE, 0.22),
    Bound("vgg11", "recompute memory", TIME, NATIVE, 1.3),
    Bound("vgg11", "recompute speed", PEAK, NATIVE, 0.35),
    Bound("vgg11", "recompute speed", TIME, NATIVE, 0.95),
    Bound("sew_resnet18", "recompute balanced", PEAK, NATIVE, 0.45),
    Bound("sew_resnet18", "recompute balanced", PEAK, _M, 1.0, under=True),
    Bound("sew_resnet18", "recompute balanced", TIME, NATIVE, 1.0),
    Bound("sew_resnet18", "recompute memory", PEAK, NATIVE, 0.4),
    Bound("sew_resnet18", "recompute memory", PEAK, _M, 0.6),
    Bound("sew_resnet18", "recompute memory", TIME, NATIVE, 1.3),
    Bound("sew_resnet18", "recompute memory", TIME, _M, 1.0, under=True),
    Bound("spikformer", "recompute balanced", PEAK, NATIVE, 0.5),
    Bound("spikformer", "recompute balanced", PEAK, _M, 1.0, under=True),
    Bound("spikformer", "recompute balanced", TIME, _M, 1.0, under=True),
    *(bound for network in ("vgg11", "sew_resnet18", "spikformer") for bound in (
        Bound(network, "compress", PEAK, NATIVE, 1.0, under=True),
        Bound(network, "compress", TIME, NATIVE, 1.05),
        Bound(network, "neuron", TIME, NATIVE, 1.0, under=True))),
)


def verdicts(rows: list[dict], bounds: tuple[Bound, ...] = BOUNDS) -> list[dict]:
    """A row per bound and number of time steps; "measured" and "met" are None where there is no figure.

    rows: with "network", "T", "method" and columns "peak of native's", "time of memopt's" and so on.
    """
    measured = {(row["network"], row["T"], row["method"]): row for row in rows}
    found = []
    for bound in bounds:
        for steps in sorted({row["T"] for row in rows if row["network"] == bound.network}):
            stem = bound.rival == MEMOPT[0] and (bound.network, steps, MEMOPT_STEM) in measured
            for rival in (bound.rival, MEMOPT_STEM) if stem else (bound.rival,):
                figure = f"{bound.figure} of {RIVALS[rival]}"
                ratio = measured.get((bound.network, steps, bound.method), {}).get(figure)
                met = None if ratio is None else bound.met(ratio)
                found.append({"network": bound.network, "T": steps, "method": bound.method, "figure": figure,
                              "asked": str(bound), "measured": ratio, "met": met})
    return found


def passed(verdict: dict) -> str:
    """For a table."""
    return {True: "yes", False: "NO", None: "not measured"}[verdict["met"]]
