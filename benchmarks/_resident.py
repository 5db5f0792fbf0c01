"""Peak resident memory of this process, exactly, and the two allocators that the CPU figures are taken with."""
from __future__ import annotations

import ctypes
import gc
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict

from shared_core._memory_process import ResidentWatch

# Blocks of 64 KiB and more go back to the system when they are freed, so that resident memory means live memory. (With
# glibc's defaults the threshold grows up to 32 MiB, and freed blocks below it may stay.)
RETURNS_BLOCKS = {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=65536:glibc.malloc.trim_threshold=65536"}
_ALLOCATOR = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_",
              "MALLOC_ARENA_MAX", "LD_PRELOAD")


def as_a_user_has_it() -> dict[str, str]:
    """The environment without settings for the allocator."""
    return {name: value for name, value in os.environ.items() if name not in _ALLOCATOR}


def returning_blocks() -> dict[str, str]:
    """The environment in which peaks are measured."""
    return {**as_a_user_has_it(), **RETURNS_BLOCKS}


class HighWater:
    """Resident bytes at their highest between `start` and `stop`, over their value at `start`, with nothing left over
    from before. `how` says whether the kernel's own mark was read, which misses nothing, or samples were taken.
    """

    def start(self) -> None:
        gc.collect()
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except (AttributeError, OSError):
            pass  # another C library
        self._watch = ResidentWatch()
        self._watch.start()
        self.how = "samples every 5 ms" if self._watch._thread else "the kernel's high-water mark"

    def stop(self) -> int:
        peak = self._watch.stop()
        if peak is None:
            raise RuntimeError("this system does not tell the resident memory of a process")
        return peak


def resident(module: str, case, run: Callable) -> dict:
    """{"resident": highest bytes of a step over those with network and batch built, "how": as in HighWater}, from a
    process that does nothing else: `python -m module CASE`, which calls `tell`.

    case: a dataclass.  run: as subprocess.run. Raises RuntimeError: the process failed.
    """
    done = run([sys.executable, "-m", module, json.dumps(asdict(case))])
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise RuntimeError(f"the process ended with status {done.returncode}: {said[-1] if said else 'nothing said'}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def tell(step: Callable[[], None]) -> None:
    """Prints what `resident` reads, of one call of step."""
    water = HighWater()
    water.start()
    step()
    print(json.dumps({"resident": water.stop(), "how": water.how}))
