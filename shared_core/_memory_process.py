"""What the process and the CUDA allocator say: the readings printed beside the tensor count."""

from __future__ import annotations

import os
import threading

import torch

_STATM, _STATUS, _RESET = "/proc/self/statm", "/proc/self/status", "/proc/self/clear_refs"


def resident_now():
    """Resident bytes of this process now, or None where the system has no cheap way to tell."""
    try:
        with open(_STATM, "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def _high_water():
    """The kernel's own high-water mark of resident bytes."""
    with open(_STATUS, "rb") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(b"VmHWM:"))


def _reset_high_water():
    with open(_RESET, "w") as file:
        file.write("5")


_resident: list[ResidentWatch] = []
_resident_lock = threading.Lock()


class ResidentWatch:
    """High-water mark of resident bytes between `start` and `stop`.

    Linux keeps it exactly and lets a process reset it; as that mark is one for the whole process, what it said until a
    reset is first given to the watches already running. Where it cannot be reset, a thread samples every 5 ms.
    """

    def __init__(self, interval=0.005):
        self._interval = interval
        self._done = threading.Event()
        self._thread = None
        self._base = self._peak = None

    def start(self):
        with _resident_lock:
            try:
                mark = _high_water()
                _reset_high_water()
                for watch in _resident:
                    watch._peak = max(watch._peak, mark)
                _resident.append(self)
            except (OSError, StopIteration):
                pass
        self._base = self._peak = resident_now()
        if self._base is not None and self not in _resident:
            self._thread = threading.Thread(target=self._sample, name="memext-resident", daemon=True)
            self._thread.start()

    def stop(self):
        """Returns bytes over the value at `start`, or None where unknown."""
        self._done.set()
        if self._base is None:
            return None
        if self._thread is not None:
            self._thread.join()
        with _resident_lock:
            if self in _resident:
                self._peak = max(self._peak, _high_water())
                _resident.remove(self)
        return max(self._peak, resident_now() or 0) - self._base

    def _sample(self):
        while not self._done.wait(self._interval):
            self._peak = max(self._peak, resident_now() or 0)


_watching: list[CudaWatch] = []
_watching_lock = threading.Lock()


class CudaWatch:
    """Highest allocated and reserved bytes per CUDA device, over the values at `start`.

    The allocator keeps one high-water mark per device, so starting a watch resets it; what the mark said
    until then is first given to the watches already running, so that nested ones stay right.
    """

    def __init__(self):
        self._base, self._peak = {}, {}

    def start(self):
        if not _cuda_in_use():
            return
        with _watching_lock:
            for watch in _watching:
                watch._fold()
            for index in range(torch.cuda.device_count()):
                torch.cuda.synchronize(index)
                torch.cuda.reset_peak_memory_stats(index)
                self._base[index] = (torch.cuda.memory_allocated(index), torch.cuda.memory_reserved(index))
            _watching.append(self)

    def stop(self):
        """Returns {"cuda:0": (allocated, reserved)} in bytes over the base; empty where CUDA is unused."""
        if not _cuda_in_use():
            return {}
        with _watching_lock:
            for index in range(torch.cuda.device_count()):
                torch.cuda.synchronize(index)
            self._fold()
            if self in _watching:
                _watching.remove(self)
        over = {}
        for index, peak in self._peak.items():
            base = self._base.get(index, (0, 0))
            over[f"cuda:{index}"] = (peak[0] - base[0], peak[1] - base[1])
        return over

    def _fold(self):
        for index in range(torch.cuda.device_count()):
            now = (torch.cuda.max_memory_allocated(index), torch.cuda.max_memory_reserved(index))
            before = self._peak.get(index, (0, 0))
            self._peak[index] = (max(now[0], before[0]), max(now[1], before[1]))


def _cuda_in_use():
    # is_initialized() starts nothing: a CPU-only program must not get a CUDA context from being measured.
    return torch.cuda.is_available() and torch.cuda.is_initialized()
