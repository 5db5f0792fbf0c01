"""Builds the CPU kernels: one shared library per instruction set, from SOURCES and the headers beside them.

Plain C ABI, no Torch headers, so the libraries survive Torch upgrades. Run by `pip install` (setup.py loads this file
by path, before the package can be imported) and by `python -m shared_core._build`; the tests build sanitized copies
with it. This module imports the standard library only.
"""
from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

KERNELS = Path(__file__).resolve().parent / "kernels"
SOURCES = (KERNELS / "cpu.cpp", KERNELS / "tensor_cpu.cpp", KERNELS / "reversible_cpu.cpp")
LIBRARIES = Path(__file__).resolve().parent / "_lib"

# -ffp-contract=off: the frameworks round after every operation; a fused multiply-add flips spikes.
# -fno-trapping-math, -fno-math-errno: allow selects to be vectorised; neither changes a value.
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-shared", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"]
SANITIZE = ["-g", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
X86 = {"base": "-march=x86-64-v2", "avx2": "-march=x86-64-v3", "avx512": "-march=x86-64-v4"}


class BuildError(RuntimeError):
    """No compiler, or it refused; the message holds what it printed."""


def instruction_sets() -> dict[str, list[str]]:
    """Names and compiler flags of the instruction sets built on this machine's architecture, narrowest first."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        return {name: [flag] for name, flag in X86.items()}
    return {"base": []}


def compiler() -> str:
    """The C++ compiler: $CXX, or the first of c++, g++, clang++ on the path. Raises BuildError if there is none."""
    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        if shutil.which(name.split()[0]):
            return name
    raise BuildError("no C++ compiler found (looked for $CXX, c++, g++, clang++); install one, or set CXX to one")


def library_path(isa: str, folder: Path = LIBRARIES) -> Path:
    return Path(folder) / f"libmemext_{isa}.so"


def build_one(isa: str, folder: Path = LIBRARIES, *, extra: list[str] = (), source: Path | None = None) -> Path:
    """Compile one library. OpenMP is used if the compiler has it; without it the library runs on one thread.

    source: one file in the place of SOURCES.
    """
    target = library_path(isa, folder)
    target.parent.mkdir(parents=True, exist_ok=True)
    building = target.with_name(f"{target.name}.{os.getpid()}")  # renamed when whole: never a half-written library
    problem = ""
    for openmp in (["-fopenmp"], []):
        flags = [*FLAGS, *instruction_sets()[isa], *openmp, *extra]
        command = [*compiler().split(), *flags, *map(str, SOURCES if source is None else [source]), "-o", str(building)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode == 0:
            os.replace(building, target)
            return target
        problem = problem or f"{' '.join(command)}\n{done.stderr[-4000:]}"
    raise BuildError(problem)


def runs_here(isa: str) -> bool:
    """Whether this processor has an instruction set, as far as the operating system tells; True where it does not."""
    needed = {"avx2": {"avx2", "fma", "bmi2"}, "avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"}}
    try:
        flags = next(line for line in open("/proc/cpuinfo") if line.startswith("flags")).split(":")[1].split()
    except (OSError, StopIteration):
        return True
    return needed.get(isa, set()) <= set(flags)


def build(folder: Path = LIBRARIES, *, extra: list[str] = (), every: bool | None = None) -> list[Path]:
    """Compile the libraries for this architecture; those the compiler cannot build are left out if `base` works.

    every: also those this processor cannot run, for a package that travels; None: if $MEMEXT_BUILD is "all".
    """
    every = os.environ.get("MEMEXT_BUILD") == "all" if every is None else every
    names = [name for name in instruction_sets() if every or runs_here(name)]
    with ThreadPoolExecutor(max_workers=min(len(names), os.cpu_count() or 1)) as pool:
        jobs = {name: pool.submit(build_one, name, folder, extra=list(extra)) for name in names}
    return [job.result() for name, job in jobs.items() if name == "base" or job.exception() is None]


if __name__ == "__main__":
    for path in build(extra=sys.argv[1:]):
        print(path)
