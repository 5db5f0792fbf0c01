"""What tells the trackers of `memory.measure` about modules, optimizers, backwards and resized storages.

Installed once while any tracker runs, so that nested and concurrent measurements cannot leave a patch behind.
"""

from __future__ import annotations

import contextlib
import threading

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from ._memory_tracker import Tracker

_active: list[Tracker] = []
_install_lock = threading.Lock()
_undo = contextlib.ExitStack()


def active_trackers():
    """Trackers running now, outermost first."""
    return tuple(_active)


@contextlib.contextmanager
def running(tracker):
    """Runs a block under `tracker`; whatever happens inside, nothing stays patched after the last one."""
    with _install_lock:
        if not _active:
            _install()
        _active.append(tracker)
    try:
        with tracker:
            yield tracker
    finally:
        tracker.close()
        with _install_lock:
            _active.remove(tracker)
            if not _active:
                _undo.close()


def _install():
    def before_module(module, args):
        for tracker in active_trackers():
            tracker.before_module(module, args)

    def after_module(module, args, output):
        for tracker in active_trackers():
            tracker.after_module(module, output)

    def before_optimizer(optimizer, args, kwargs):
        for tracker in active_trackers():
            tracker.before_optimizer(optimizer)

    def after_optimizer(optimizer, args, kwargs):
        for tracker in active_trackers():
            tracker.after_optimizer(optimizer)

    run_backward = torch.autograd._engine_run_backward

    def counted_run_backward(t_outputs, *args, **kwargs):
        mine = [tracker for tracker in active_trackers() if tracker.thread == threading.get_ident()]
        for tracker in mine:
            tracker.before_backward(t_outputs)
        try:
            return run_backward(t_outputs, *args, **kwargs)
        finally:
            for tracker in mine:
                tracker.after_backward()

    resize = torch.UntypedStorage.resize_

    def counted_resize(storage, size):
        result = resize(storage, size)
        for tracker in active_trackers():
            tracker.resized(storage)
        return result

    for handle in (register_module_forward_pre_hook(before_module),
                   register_module_forward_hook(after_module, always_call=True),
                   register_optimizer_step_pre_hook(before_optimizer),
                   register_optimizer_step_post_hook(after_optimizer)):
        _undo.callback(handle.remove)
    # Tensor.backward, autograd.backward and autograd.grad, also where imported by name, end in this call.
    _patch(torch.autograd, "_engine_run_backward", counted_run_backward)
    # The dispatcher does not see a storage being resized.
    _patch(torch.UntypedStorage, "resize_", counted_resize)


def _patch(owner, name, replacement):
    missing = object()
    own = owner.__dict__.get(name, missing)
    setattr(owner, name, replacement)

    def restore():
        if owner.__dict__.get(name) is not replacement:
            return  # somebody patched over us and keeps our pass-through; taking it out would undo theirs
        if own is missing:
            delattr(owner, name)
        else:
            setattr(owner, name, own)

    _undo.callback(restore)
