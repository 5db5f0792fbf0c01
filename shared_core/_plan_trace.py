"""One training step of a model on tensors without memory, and what it would have allocated when."""
from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from ._memory_graph import tensors_in
from ._plan_copy import remembers_shapes, reset_copy
from ._plan_ledger import BASE, END, Ledger, watch
from ._plan_opaque import stand_in
from ._planning import planning
from .chain._ownership import _expected

__all__ = ["Trace", "mean_of_outputs", "trace"]


def mean_of_outputs(out) -> Tensor:
    """The default loss: as small as any, so that what it keeps does not count."""
    means = [t.float().mean() for t in tensors_in(out) if t.requires_grad]
    return sum(means[1:], means[0]) if means else torch.zeros(())


@dataclass(frozen=True)
class Trace:
    """The ledger of one step. Arrays over storages; events count up from 0.

    nbytes; born (BASE: before the step); died (END: alive after it); gradient: is it a parameter's gradient?
    backward_at: event at which the backward began.  batch: of the traced input.
    weights_bytes, input_bytes: there before the step; in none of the arrays.
    parameter_sizes: bytes of each parameter that has a gradient.
    """

    nbytes: np.ndarray
    born: np.ndarray
    died: np.ndarray
    gradient: np.ndarray
    backward_at: int
    batch: int
    weights_bytes: int
    input_bytes: int
    parameter_sizes: tuple[int, ...]

    @cached_property
    def order(self) -> tuple[np.ndarray, np.ndarray]:
        """Births and deaths as they follow each other: their events, and which they are: storage i born is i, storage i
        released is len(nbytes) + i."""
        events = np.concatenate([self.born, self.died])
        order = np.argsort(events, kind="stable")
        order = order[:np.searchsorted(events[order], END)]
        return events[order], order


def trace(prepare: Callable[[], nn.Module], inputs: Callable[[], Sequence[Tensor]], batch: int,
          loss: Callable = mean_of_outputs, opaque: Callable[[nn.Module], Iterable[nn.Module]] = lambda model: (),
          device: str = "cpu", prepared: Callable[[nn.Module], None] = lambda model: None) -> Trace:
    """Runs forward, loss and backward. prepare, inputs: called under the mode; make the model and its arguments.

    opaque(model): neurons to be replayed, not run through, recorded on `device`: see _plan_opaque.py.
    prepared(model): called last before the step.
    What is traced is a step in the middle of a training, not the first.
    The output is held until the backward has ended, as by `out = net(x); loss(out).backward()`.
    """
    _expected()  # is measured once per process, and not on tensors without memory
    ledger = Ledger()
    # Nothing is drawn from the user's random generators.
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), planning(), watch(ledger, "cpu"), _one_message():
        model = prepare()
        stand_in(opaque(model), ledger, device)
        prepared(model)
        weights = _alive(ledger)
        given = inputs()
        input_bytes = _alive(ledger) - weights
        if remembers_shapes(model):
            with torch.no_grad():
                model(*given)
            reset_copy(model)
        ledger.before = False
        out = model(*given)
        scalar = loss(out)
        backward_at = ledger.events
        scalar.backward()
        learned = [p for p in model.parameters() if p.grad is not None]
        gradient = {ledger.line_of(p.grad) for p in learned}
        sizes = tuple(p.numel() * p.element_size() for p in learned)
    ledger.close()
    step = [i for i, born in enumerate(ledger.born) if born != BASE]
    pick = lambda values, dtype=np.int64: np.array([values[i] for i in step], dtype=dtype)  # noqa: E731
    return Trace(pick(ledger.nbytes), pick(ledger.born), pick(ledger.died),
                 np.array([i in gradient for i in step], dtype=bool), backward_at, batch, weights, input_bytes, sizes)


@contextlib.contextmanager
def _one_message():
    """A step that fails raises; Torch also logs it, with a traceback through its own files."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _alive(ledger: Ledger) -> int:
    return sum(n for n, died in zip(ledger.nbytes, ledger.died) if died == END)
