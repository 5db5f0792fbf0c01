"""One network under one method in a process of its own, which measures itself when asked.

    with Worker(case, returning_blocks()) as worker:
        row = worker.ask("peak")

A fresh process for a peak, because what an earlier method left behind would hide in the base; one process per method
for times, asked in turns, because that is the allocator that a user's program has.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch

from benchmarks._measure import HERE
from benchmarks._networks import BY_NAME, TINY, Network
from benchmarks._resident import HighWater
from benchmarks._training import NATIVE, OURS, Training, first_step
from shared_core.memory import measure

MIB = 1 << 20
PEAK_STEPS = 2  # the first from nothing; the second beside what a method keeps from one step to the next


@dataclass(frozen=True)
class Case:
    """What a worker trains. network: a key of `BY_NAME`."""

    network: str
    method: str
    steps: int
    batch: int
    threads: int

    def found(self) -> Network:
        return BY_NAME[self.network].at(self.steps, self.batch)


class Bench:
    """The training of one case, and what can be measured of it; every answer is a JSON-able dict.

    No optimizer state: the same for every method, it would only make their peaks look alike.
    alone: in a process of its own, whose threads it sets and which it warms up.
    """

    def __init__(self, case: Case, alone: bool = True):
        if alone:
            torch.set_num_threads(case.threads)
            for network in TINY[1:]:  # threads, oneDNN and our kernels are loaded before anything counts
                Training(network, NATIVE, momentum=0).step()
                Training(network, OURS[0], momentum=0).step()
        self.training = Training(case.found(), case.method, momentum=0)

    def answer(self, what: str, *arguments: str) -> dict:
        return getattr(self, what)(*arguments)

    def peak(self) -> dict:
        """Resident memory of steps over what there was with network and batch built, before the first step: gradients
        count, parameters and batch do not. To be asked first."""
        water = HighWater()
        water.start()
        for _ in range(PEAK_STEPS):
            self.training.step()
        return {"peak": water.stop(), "how": water.how}

    def kept(self) -> dict:
        """Bytes that a step keeps for its backward, and its peak of live tensors."""
        self.training.rest()
        found = measure(self.training.loss_and_gradients, timeline=False)
        return {"saved": found.saved_bytes, "tensors": found.peak_bytes}

    def gradients(self, path: str) -> dict:
        """Writes the gradients of the first step to a file, for a comparison."""
        loss, gradients = first_step(self.training)
        torch.save(gradients, path)
        return {"loss": loss}

    def step(self) -> dict:
        start = time.perf_counter()
        self.training.step()
        return {"seconds": time.perf_counter() - start}


class Here:
    """`Worker` without a process: quick, and no figures to be trusted."""

    def __init__(self, case: Case, environment: Mapping[str, str] | None = None):
        self._bench = Bench(case, alone=False)

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def close(self) -> None:
        self._bench = None

    def ask(self, what: str, *arguments: str) -> dict:
        return self._bench.answer(what, *arguments)


class Worker:
    """The bench of a case in a process with this environment. `ask` raises RuntimeError with the reason if it fails."""

    def __init__(self, case: Case, environment: Mapping[str, str]):
        self._log = tempfile.TemporaryFile("w+")
        self._process = subprocess.Popen([sys.executable, "-m", "benchmarks._worker", json.dumps(asdict(case))],
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True,
                                         env=dict(environment), cwd=HERE.parent)

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the process, which ends by itself when nobody can ask any more."""
        try:
            self._process.stdin.close()
        except BrokenPipeError:
            pass
        self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def ask(self, what: str, *arguments: str) -> dict:
        try:
            print(json.dumps([what, *arguments]), file=self._process.stdin, flush=True)
        except BrokenPipeError:
            pass  # it ended; what it said is told below
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._log.seek(0)
            said = self._log.read().strip().splitlines()
            raise RuntimeError(f"the process ended with status {code}: {said[-1] if said else 'it said nothing'}")
        answer = json.loads(line)
        if "failed" in answer:
            raise RuntimeError(answer["failed"])
        return answer


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", help="as JSON")
    case = Case(**json.loads(parser.parse_args(argv).case))
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print is no reply
    bench = Bench(case)
    for line in sys.stdin:
        try:
            answer = bench.answer(*json.loads(line))
        except Exception as problem:
            answer = {"failed": f"{type(problem).__name__}: {problem}"[:300]}
        print(json.dumps(answer), file=replies)


if __name__ == "__main__":
    main()
