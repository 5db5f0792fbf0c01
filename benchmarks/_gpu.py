"""What the GPU benchmarks share: one run with a time limit, timing by CUDA events, peak memory, failures as rows.

Everything here also runs on the CPU with tiny sizes (`--device cpu --tiny`), so that tests walk through the same code.
"""
from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks._measure import quantiles, save
from shared_core import memory
from shared_core.backends import cuda

FLUSH_BYTES = 1 << 30  # L2 is emptied before every timed call; writing this much also hides the launch of what follows
Rivals = dict[str, Callable[[], object]]


class Run:
    """One benchmark: its device, its time limit, and its results, which are saved whatever happens."""

    def __init__(self, name: str, device: str, tiny: bool, seconds: float):
        self.name, self.device, self.tiny = name, torch.device(device), tiny
        self.cuda = self.device.type == "cuda"
        self.end = time.monotonic() + seconds
        self.sections: dict[str, list[dict]] = {"rows": [], "summary": []}
        self.facts: dict[str, object] = {"device": device, "tiny": tiny, "time limit, s": seconds}
        self.saved = time.monotonic()
        self._flush: torch.Tensor | None = None

    def __enter__(self) -> Run:
        torch.manual_seed(0)
        gc.freeze()  # what the imports made is not looked at again by every collection before a peak
        return self

    def __exit__(self, *problem: object) -> None:
        gc.unfreeze()
        print("written:", self.save().name, flush=True)

    def save(self) -> Path:
        self.saved = time.monotonic()
        return save(self.name, self.sections["rows"], **self.facts,
                    **{name: rows for name, rows in self.sections.items() if name != "rows"})

    def left(self) -> float:
        """Seconds until the limit."""
        return self.end - time.monotonic()

    def add(self, section: str, row: dict, fill: Callable[[], dict]) -> dict:
        """Appends `row` with what `fill()` adds; or with "failed", the reason, if it raises or time is up."""
        if self.left() <= 0:
            row = {**row, "failed": "not measured: out of time"}
        else:
            try:
                row = {**row, **fill()}
            except Exception as problem:
                row = {**row, "failed": reason(problem)}
            if "failed" in row:
                self._recover(row, section)
        self.sections.setdefault(section, []).append(row)
        if time.monotonic() - self.saved > 10:  # a run that is killed leaves its rows
            self.save()
        return row

    def summarize(self, what: str, framework: object, ours: object, ratio: float | None, unit: str) -> None:
        """A line of the table that the driver prints last. ratio: how many times better ours is."""
        self.sections["summary"].append({"benchmark": self.name, "what": what, "framework": framework, "ours": ours,
                                         "unit": unit, "times better": ratio})

    def _recover(self, row: dict, section: str) -> None:
        print(f"{self.name}: {row}", flush=True)
        gc.collect()  # the traceback held the tensors of the failed call
        if self.cuda:
            try:
                torch.cuda.synchronize()
                torch.cuda.empty_cache()
            except Exception:
                # After an illegal access every later call fails too: keep what there is, and end.
                self.sections.setdefault(section, []).append(row)
                raise

    # ---- measuring ----

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()

    def flush(self) -> None:
        if self.cuda:
            if self._flush is None:
                self._flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device=self.device)
            self._flush.zero_()

    def in_turns(self, rivals: Rivals, rounds: int = 25, limit_s: float = 1.5, flush: bool = True
                 ) -> tuple[dict[str, list[float]], dict[str, str]]:
        """(seconds of each rival in each round, why others could not run). Two warm-up calls each; all run in every
        round. At least five rounds, and no more once `limit_s` have passed. flush: with an empty L2 before each call.
        """
        failed = {}
        for name, call in rivals.items():
            try:
                call()
                call()
                self.synchronize()
            except Exception as problem:
                failed[name] = reason(problem)
        seconds = {name: [] for name in rivals if name not in failed}
        if self.tiny:
            rounds = 1
        start = time.monotonic()
        for turn in range(rounds):
            if turn >= 5 and time.monotonic() - start > limit_s:
                break
            for name, taken in seconds.items():
                taken.append(self._once(rivals[name], flush))
        return seconds, failed

    def _once(self, call: Callable[[], object], flush: bool) -> float:
        self.synchronize()
        if not self.cuda:
            start = time.perf_counter()
            call()
            return time.perf_counter() - start
        if flush:
            self.flush()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def wall(self, call: Callable[[], object], calls: int = 200, rounds: int = 7) -> list[float]:
        """Seconds per call by the host's clock, the device's end awaited once a round: what a call costs a program."""
        if self.tiny:
            calls, rounds = 2, 1
        taken = []
        for turn in range(rounds + 1):
            self.synchronize()
            start = time.perf_counter()
            for _ in range(calls):
                call()
            self.synchronize()
            if turn:
                taken.append((time.perf_counter() - start) / calls)
        return taken

    def peak(self, step: Callable[[], object]) -> int:
        """Peak bytes during `step()` over what was there before. CUDA: of the allocator; CPU: of live tensors."""
        gc.collect()
        if not self.cuda:
            return memory.measure(step, timeline=False).peak_bytes
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        base = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - base


def reason(problem: Exception) -> str:
    """One line for a row."""
    if isinstance(problem, torch.cuda.OutOfMemoryError):
        return "out of memory"
    first = str(problem).strip().splitlines()[0] if str(problem).strip() else ""
    return f"{type(problem).__name__}: {first}"[:200]


def spread(name: str, seconds: Sequence[float], scale: float, unit: str) -> dict[str, object]:
    """Columns for a list of timings: its median, and p20 and p80 together."""
    q = quantiles(list(seconds))
    return {f"{name}, {unit}": q["median"] * scale, f"{name}, p20-p80": [q["p20"] * scale, q["p80"] * scale]}


def start(name: str, doc: str, argv: list[str] | None, seconds: float) -> Run | None:
    """The run that the command line asks for; None, with the reason printed, where it cannot be."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=doc.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=seconds, help="stop measuring after so many (%(default)g)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.device == "cuda" and cuda.unavailable():
        print(f"{name}: skipped, {cuda.unavailable()}")
        return None
    return Run(name, args.device, args.tiny, args.seconds)
