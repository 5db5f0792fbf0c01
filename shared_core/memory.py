"""Measure what one training step keeps in memory, and for what; or predict it (plan.py).

    report = measure(lambda: loss_fn(net(x), y).backward(), model=net)
    print(report.table())
    print(plan(net, (4, 32, 3, 224, 224), budget="24GiB", optimizer="adamw").table())
"""

from __future__ import annotations

import dataclasses
import json
import platform
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from . import report as _render
from ._memory_graph import can_walk, tensors_in
from ._memory_hooks import active_trackers, running
from ._memory_process import CudaWatch, ResidentWatch
from ._memory_tracker import CATEGORIES, TimelinePoint, Tracker
from .errors import MemextError
from .lif_memory import LifMemory, lif_memory
from .plan import MemoryPlan, plan

__all__ = ["CATEGORIES", "LifMemory", "MemoryPlan", "MemoryReport", "TimelinePoint", "compare", "lif_memory", "measure",
           "plan", "tag"]

_TIMELINE_IN_JSON = 2000


@dataclass
class MemoryReport:
    """What `measure` found. All sizes in bytes; tensor sizes are storages, each counted once.

    Figures without a device in their name are those of `device`: the accelerator that held most tensor
    bytes, or "cpu" where none held any. So tensors moved to the host leave the figures of a CUDA run.

    peak_bytes: highest sum of live storages that were allocated during fn.
    saved_bytes: storages allocated during fn that the autograd graph holds at the moment the backward
        starts: saved by builtin and custom functions or by saved-tensor hooks, kept in attributes of a
        custom function's ctx, or kept by a checkpoint as its inputs. Parameters and whatever was alive
        before fn are left out. Not seen: what C++ functions save (a note names them) and what an in-place
        operation on a view saves. With several backward calls, the largest; without one, the graph behind
        what fn returned.
    held_bytes: all storages allocated during fn and alive at that same moment: saved_bytes plus outputs,
        states and losses that somebody still refers to. An upper bound of saved_bytes.
    retained_bytes: storages allocated during fn and alive after it returned (gradients, states, result).
    by_category: peak_bytes split by purpose, at the peak; sums to peak_bytes.
    base_by_category: weights, gradients and optimizer state that were alive before fn, of the model and
        optimizer given or met during fn; not part of peak_bytes.
    peak_by_device, saved_by_device: the same for every device that took part.
    peak_phase: phase of the peak: forward, backward, recompute (a module called inside the backward)
        or optimizer.
    resident_bytes: high-water mark of the process's resident memory over its value before fn, as
        Linux keeps it (elsewhere sampled every 5 ms); None where the system does not tell. Includes what
        allocators keep and kernels use.
    cuda_allocated_bytes, cuda_reserved_bytes: max_memory_allocated and max_memory_reserved over their
        values before fn, on `device`; None on the CPU.
    seconds: wall time of fn, tracking included.
    timeline: live bytes after each allocation and release on `device`; empty with timeline=False.
    notes: what could not be measured, in words.
    result: what fn returned.
    """

    peak_bytes: int
    saved_bytes: int
    held_bytes: int
    retained_bytes: int
    by_category: dict[str, int]
    base_by_category: dict[str, int]
    peak_by_device: dict[str, int]
    saved_by_device: dict[str, int]
    device: str
    peak_phase: str
    resident_bytes: int | None
    cuda_allocated_bytes: int | None
    cuda_reserved_bytes: int | None
    seconds: float
    timeline: list[TimelinePoint] = field(default_factory=list, repr=False)
    notes: list[str] = field(default_factory=list)
    result: Any = field(default=None, repr=False)

    def to_dict(self):
        """Everything but `result`, as JSON types. A long timeline is thinned to its local maxima."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "result"}
        values["timeline"] = [list(point) for point in _thin(self.timeline, _TIMELINE_IN_JSON)]
        values["versions"] = {"torch": torch.__version__, "python": platform.python_version()}
        return values

    def to_json(self, path):
        """Writes `to_dict()` to `path`. Raises OSError where that cannot be written."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def table(self):
        """The figures as lines of text."""
        return _render.table(self)

    def plot(self, path):
        """Draws live bytes over time to a PNG. Raises MemextError without a timeline or matplotlib."""
        _render.plot(self, path)


def measure(fn, *, model=None, optimizer=None, timeline=True):
    """Runs `fn()` once and reports the tensor memory it needed; see MemoryReport for every definition.

    fn: called without arguments, typically forward, loss and backward of one step. Its result is in the
        report; an exception it raises propagates, and nothing stays patched.
    model: a Module whose weights and gradients are told apart. Modules called during fn are found anyway;
        giving the model also finds those that are not.
    optimizer: likewise; any object with a `state` mapping.
    timeline: keep every change of live bytes (some 200 bytes of host memory per allocation).
    Returns: MemoryReport.
    Raises MemextError: fn is not callable, model is not a Module, optimizer has no state.

    Counted are storages made by Torch operators in this thread and in the backward it starts, not what was
    there before: gradients that fn frees and makes anew count as new. Not seen:
    memory that an operator uses inside itself (convolution workspaces), other threads, NumPy arrays.
    Code under torch.compile is measured as Torch runs it under a dispatch mode, that is, uncompiled.
    Calls may nest. The CUDA high-water marks are reset. Costs: 40 to 80 us per operator.
    """
    if not callable(fn):
        raise MemextError(f"measure: fn is {type(fn).__name__}; it must be callable without arguments. "
                          "Pass a function, e.g. measure(lambda: net(x).sum().backward()).")
    if model is not None and not isinstance(model, torch.nn.Module):
        raise MemextError(f"measure: model is {type(model).__name__}; allowed: torch.nn.Module or None.")
    if optimizer is not None and not hasattr(optimizer, "state"):
        raise MemextError(f"measure: optimizer is {type(optimizer).__name__} and has no 'state'; "
                          "pass a torch.optim optimizer or None.")
    tracker = Tracker(model, optimizer, timeline)
    cuda, resident = CudaWatch(), ResidentWatch()
    cuda.start()
    resident.start()
    try:
        with running(tracker):
            tracker.restart_clock()
            result = fn()
            seconds = tracker.elapsed()
            if not tracker.backwards:
                tracker.snapshot_saved(tensors_in(result))
            tracker.finish()
    finally:
        resident_bytes = resident.stop()
        cuda_peaks = cuda.stop()
    return _report(tracker, result, seconds, resident_bytes, cuda_peaks)


def tag(tensor, category):
    """Tells the measurements running now what `tensor`'s storage is for; without one, does nothing.

    category: one of CATEGORIES. The last tag of a storage wins over whatever is guessed.
    Returns: tensor.  Raises MemextError: unknown category.
    """
    if category not in CATEGORIES:
        raise MemextError(f"tag: category {category!r} is unknown; allowed: {', '.join(CATEGORIES)}.")
    for tracker in active_trackers():
        tracker.tag(tensor, category)
    return tensor


def compare(reports):
    """Several methods side by side, as lines of text; each figure also as a ratio to the first method's.

    reports: {method name: MemoryReport}, in the order to print.  Raises MemextError: empty.
    """
    if not reports:
        raise MemextError("compare: no reports were given; pass {name: MemoryReport, ...} with at least one.")
    return _render.compare(reports)


def _report(tracker, result, seconds, resident_bytes, cuda_peaks):
    accelerators = {device: peak[0] for device, peak in tracker.peak.items() if device != "cpu"}
    device = max(accelerators, key=accelerators.get) if accelerators else "cpu"
    peak, event, phase = tracker.peak.get(device, (0, 0, "forward"))
    allocated, reserved = cuda_peaks.get(device, (None, None))
    base = {category: sum(found.values()) for (where, category), found in tracker.base.items()
            if where == device}
    notes = []
    if tracker.opaque:
        names = ", ".join(sorted(tracker.opaque))
        notes.append(f"saved_bytes leaves out what C++ autograd functions save: {names}")
    if not can_walk:
        notes.append("this Torch does not show what the graph saved: saved_bytes equals held_bytes")
    return MemoryReport(
        peak_bytes=peak,
        saved_bytes=tracker.saved.get(device, 0),
        held_bytes=tracker.held.get(device, 0),
        retained_bytes=tracker.live.get(device, 0),
        by_category=tracker.by_category(device, event),
        base_by_category=base,
        peak_by_device={name: found[0] for name, found in tracker.peak.items()},
        saved_by_device=dict(tracker.saved),
        device=device,
        peak_phase=phase,
        resident_bytes=resident_bytes,
        cuda_allocated_bytes=allocated,
        cuda_reserved_bytes=reserved,
        seconds=seconds,
        timeline=[point for where, point in tracker.timeline or () if where == device],
        notes=notes,
        result=result,
    )


def _thin(points, most):
    """At most `most` points: of each run of neighbours the highest, so that the peak survives."""
    if len(points) <= most:
        return points
    step = -(-len(points) // most)
    return [max(points[i:i + step], key=lambda point: point.live_bytes) for i in range(0, len(points), step)]
