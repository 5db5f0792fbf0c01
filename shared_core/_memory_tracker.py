"""The ledger behind `memory.measure`: one line per tensor storage, opened at birth, closed at death."""

from __future__ import annotations

import threading
import time
import weakref
from typing import NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ._memory_graph import can_walk, held_by_graph, storages_of, tensors_in

CATEGORIES = ("weights", "gradients", "optimizer", "spikes", "membrane", "norm inputs",
              "activation gradients", "other")
_NORMS = (torch.nn.modules.batchnorm._NormBase, torch.nn.LayerNorm, torch.nn.GroupNorm)
# torch.tensor(...) fills its storage unseen and then passes it through here: the only input that is new.
_MAKERS = {torch.ops.aten.lift_fresh.default}
_MUTABLE: dict = {}  # operator -> may it write into or resize what it is given


class TimelinePoint(NamedTuple):
    """Live bytes after one allocation or release. seconds: since fn started."""

    seconds: float
    live_bytes: int
    phase: str


class _Line:
    """One storage. `base` bytes were there before fn and are not counted."""

    __slots__ = ("base", "born", "category", "device", "died", "nbytes", "ref", "sizes", "tagged")

    def __init__(self, nbytes, base, device, category, born):
        self.nbytes, self.base, self.device, self.category = nbytes, base, device, category
        self.tagged, self.born, self.died, self.sizes = False, born, None, None

    @property
    def counted(self):
        return max(0, self.nbytes - self.base)

    def counted_at(self, event):
        """Counted bytes right after the given event."""
        if event < self.born or (self.died is not None and event >= self.died):
            return 0
        counted = self.counted
        for when, before in reversed(self.sizes or ()):
            if when > event:
                counted = before
        return counted


class _Ref(weakref.ref):
    __slots__ = ("key", "line")


class Tracker(TorchDispatchMode):
    """Counts live tensor storages while it is active (`with tracker:`).

    A storage's Python object lives as long as the C++ storage does (Torch revives it while C++ still owns
    it), so a weak reference to it fires exactly when the memory is released, whoever held it last.
    """

    def __init__(self, model=None, optimizer=None, timeline=True):
        super().__init__()
        self.lock = threading.RLock()  # CUDA backward threads allocate too; releases come from any thread
        self.lines, self.history = {}, []
        self.live, self.peak, self.events = {}, {}, 0
        self.timeline = [] if timeline else None
        self.started = time.perf_counter()
        self.thread = threading.get_ident()
        self.backward_depth, self.in_optimizer, self.neurons = 0, False, 0
        # Weak, and by identity: comparing tensors compares their elements.
        self.modules, self.roles = [], {}
        self.parameters, self.optimizers = WeakIdKeyDictionary(), WeakIdKeyDictionary()
        self.base = {}
        self.saved, self.held, self.opaque, self.backwards = {}, {}, set(), 0
        if model is not None:
            for module in model.modules():
                self._meet_module(module)
        if optimizer is not None:
            self._meet_optimizer(optimizer)

    def restart_clock(self):
        self.started = time.perf_counter()

    def elapsed(self):
        return time.perf_counter() - self.started

    # -- storages ----------------------------------------------------------------------------------------

    supports_higher_order_operators = True

    @classmethod
    def _should_skip_dynamo(cls):
        # Otherwise Torch imports its compiler (seconds) at the first operator and wraps every call.
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        inputs = tensors_in(args)
        if kwargs:
            tensors_in(kwargs, inputs)
        lines = self.lines
        for tensor in inputs:
            for storage in storages_of(tensor):
                if storage._cdata not in lines and func not in _MAKERS:
                    self._open(storage, tensor, base=storage.nbytes())
        mutable = _MUTABLE.get(func)
        if mutable is None:
            mutable = _MUTABLE[func] = getattr(func, "_schema", None) is None or func._schema.is_mutable
        if mutable:
            for arg in args:  # set_(storage): may bring in memory from before fn
                if isinstance(arg, torch.UntypedStorage) and arg._cdata not in lines:
                    self._open(arg, None, base=arg.nbytes())
        out = func(*args, **(kwargs or {}))
        for tensor in tensors_in(out):
            for storage in storages_of(tensor):
                if storage._cdata not in lines:
                    self._open(storage, tensor)
        for tensor in inputs:
            if mutable:
                for storage in storages_of(tensor):
                    self.resized(storage)
            if hasattr(tensor, "_memext_alphabet"):
                self._mark(tensor, "spikes")
        return out

    def _open(self, storage, tensor, base=0):
        device = str(storage.device if tensor is None else tensor.device)
        if device == "meta":  # a shape, and no memory
            return
        with self.lock:
            self.events += 1
            category = "other" if base else self._category_of_newborn(tensor)
            line = _Line(storage.nbytes(), base, device, category, self.events)
            ref = _Ref(storage, self._close)
            ref.line, ref.key, line.ref = line, storage._cdata, ref
            self.lines[storage._cdata] = line
            self.history.append(line)
            self._changed(line, line.counted)

    def _close(self, ref):
        with self.lock:
            line = ref.line
            if self.lines.get(ref.key) is line:
                del self.lines[ref.key]
            self.events += 1
            line.died, line.ref = self.events, None
            self._changed(line, -line.counted)

    def resized(self, storage):
        """Takes note of a storage whose size may have changed (out=, resize_, untyped_storage().resize_)."""
        line = self.lines.get(storage._cdata)
        if line is None or line.nbytes == storage.nbytes():
            return
        with self.lock:
            self.events += 1
            before, line.nbytes = line.counted, storage.nbytes()
            line.sizes = [*(line.sizes or ()), (self.events, before)]
            self._changed(line, line.counted - before)

    def _changed(self, line, difference):
        if not difference:
            return
        device, phase = line.device, self.phase
        live = self.live[device] = self.live.get(device, 0) + difference
        if live > self.peak.get(device, (0,))[0]:
            self.peak[device] = (live, self.events, phase)
        if self.timeline is not None:
            self.timeline.append((device, TimelinePoint(self.elapsed(), live, phase)))

    # -- what a storage is for ---------------------------------------------------------------------------

    @property
    def phase(self):
        """forward, backward, recompute (a module called inside the backward) or optimizer."""
        if self.in_optimizer:
            return "optimizer"
        if self.backward_depth:
            return "recompute" if self.modules else "backward"
        return "forward"

    def _category_of_newborn(self, tensor):
        if self.in_optimizer:
            return "optimizer"
        if self.neurons:
            # What a neuron keeps as integers or truth values are spikes or bits of spikes.
            return "membrane" if tensor is None or tensor.is_floating_point() else "spikes"
        return "activation gradients" if self.backward_depth and not self.modules else "other"

    def _mark(self, tensor, category, over=("other", "membrane", "activation gradients"), tag=False):
        for storage in storages_of(tensor):
            line = self.lines.get(storage._cdata)
            if line is not None and (tag or (not line.tagged and line.category in over)):
                line.category, line.tagged = category, tag or line.tagged

    def tag(self, tensor, category):
        self._mark(tensor, category, tag=True)

    def _meet_module(self, module):
        ref, role = self.roles.get(id(module), (None, None))
        if ref is None or ref() is not module:
            role = _role(module)
            self.roles[id(module)] = (weakref.ref(module), role)
            for parameter in module._parameters.values():
                if parameter is not None:
                    self.parameters[parameter] = True
                    self._note_base("weights", parameter)
                    if parameter.grad is not None:
                        self._note_base("gradients", parameter.grad)
            for buffer in module._buffers.values():
                if buffer is not None:
                    self._note_base("weights", buffer)
        return role

    def _meet_optimizer(self, optimizer):
        if optimizer not in self.optimizers:
            self.optimizers[optimizer] = True
            for state in list(optimizer.state.values()):
                for tensor in tensors_in(state):
                    self._note_base("optimizer", tensor)

    def _note_base(self, category, tensor):
        for storage in storages_of(tensor):
            line = self.lines.get(storage._cdata)
            if line is None or line.base:
                self.base.setdefault((str(tensor.device), category), {})[storage._cdata] = storage.nbytes()
            elif category == "weights":
                self._mark(tensor, "weights")

    # -- what the hooks report ---------------------------------------------------------------------------

    def before_module(self, module, args):
        role = self._meet_module(module)
        self.modules.append((weakref.ref(module), role))
        self.neurons += role == "neuron"
        if role == "norm":
            for tensor in tensors_in(args):
                self._mark(tensor, "norm inputs", over=("other",))

    def after_module(self, module, output):
        while self.modules:  # a forward that raised below us never reported its end
            ref, role = self.modules.pop()
            self.neurons -= role == "neuron"
            if ref() is module:
                break
        outputs = tensors_in(output)
        if self._meet_module(module) == "neuron" and outputs:
            self._mark(outputs[0], "spikes")  # both hosts return (spikes, states...) or spikes alone
            for tensor in outputs[1:]:
                self._mark(tensor, "membrane", over=("other",))
        for tensor in outputs:
            if hasattr(tensor, "_memext_alphabet"):
                self._mark(tensor, "spikes")

    def before_optimizer(self, optimizer):
        self._meet_optimizer(optimizer)
        self.in_optimizer = True

    def after_optimizer(self, optimizer):
        self.in_optimizer = False

    def before_backward(self, roots):
        if not self.backward_depth:
            self.in_optimizer = False
            self.backwards += 1
            self.snapshot_saved(roots)
        self.backward_depth += 1

    def after_backward(self):
        self.backward_depth -= 1
        if not self.backward_depth:
            self._mark_gradients()

    def snapshot_saved(self, roots):
        """Keeps, of all snapshots, the one with most bytes saved for a backward from `roots`."""
        held = {}
        for line in list(self.lines.values()):
            held[line.device] = held.get(line.device, 0) + line.counted
        if can_walk:
            kept, opaque = held_by_graph(roots)
            self.opaque |= opaque
            saved = {}
            for key in kept:
                line = self.lines.get(key)
                if line is not None and line.category != "weights":
                    saved[line.device] = saved.get(line.device, 0) + line.counted
        else:
            saved = held
        if sum(saved.values()) >= sum(self.saved.values()):
            self.saved, self.held = saved, held

    def _mark_gradients(self):
        for parameter in list(self.parameters):
            if parameter.grad is not None:
                self._mark(parameter.grad, "gradients", over=CATEGORIES)

    def finish(self):
        """Last categories, after fn has returned."""
        self._mark_gradients()
        for optimizer in list(self.optimizers):
            for state in list(optimizer.state.values()):
                for tensor in tensors_in(state):
                    self._mark(tensor, "optimizer", over=CATEGORIES)

    def close(self):
        """Stops following the storages that are still alive."""
        with self.lock:
            for line in self.lines.values():
                line.ref = None

    def by_category(self, device, event):
        """Counted bytes on `device` right after `event`, per category."""
        found = dict.fromkeys(CATEGORIES, 0)
        for line in self.history:
            if line.device == device:
                found[line.category] += line.counted_at(event)
        return found


def _looks_like_neuron(module):
    return hasattr(module, "v_threshold") or (hasattr(module, "threshold") and hasattr(module, "spike_grad"))


def _role(module):
    if _looks_like_neuron(module):
        # A network that keeps its neurons' threshold in an attribute is not itself a neuron.
        inner = (child for child in module.modules() if child is not module)
        return "other" if any(_looks_like_neuron(child) for child in inner) else "neuron"
    return "norm" if isinstance(module, _NORMS) else "other"
