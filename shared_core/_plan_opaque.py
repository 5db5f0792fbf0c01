"""A framework's own multi-step neuron as one step of the ledger, so that a trace need not run through its loop over T.

On the CPU SpikingJelly's neurons are some thirty Torch operators per time step, and a deep network at T = 16 is 70,000
of them. All that the ledger needs of a neuron is when it allocates and releases how much: that is recorded once, from
the neuron itself on tensors without memory, and replayed for every other neuron with the same settings, in proportion
to its size.

Recorded on the device "meta", SpikingJelly's neurons are one operator that keeps what their Triton kernels keep on a
GPU (a float32 h, the input and the initial v); on fake CPU tensors, they are the loop that they are on a CPU.
"""
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from ._memory_graph import held_by_graph
from ._plan_copy import fake_copy
from ._plan_ledger import Ledger, default_device, watch
from .chain._links import VIEWS
from .chain._ownership import sole_owner
from .reversible import is_rebuilding

__all__ = ["mark_spikes", "stand_in"]

_PLAIN = (str, int, float, bool, type(None), torch.dtype)
_VIEWS = VIEWS | {"SelectBackward0", "UnbindBackward0"}  # between a neuron's spikes and the node that made them
_SMALL = 64  # bytes; lines up to this size are numbers, not data


@dataclass
class _Recording:
    """events: (line, is it a birth?) of the forward and of the backward. sizes: bytes of each line.

    spikes, grad_spikes, grad_x: the lines that are these.  keeps_x, keeps_spikes: does the graph hold them?
    elements: of the input that was recorded.
    """

    forward: list[tuple[int, bool]]
    backward: list[tuple[int, bool]]
    sizes: list[int]
    spikes: int
    grad_spikes: int | None
    grad_x: int | None
    grad_params: dict[int, int]
    keeps_x: bool
    keeps_spikes: bool
    elements: int
    steps: int

    def bytes(self, line: int, elements: int) -> int:
        """Of this line for an input of so many elements; lines smaller than a byte per neuron do not grow."""
        size = self.sizes[line]
        return size if size * self.steps < self.elements else size * elements // self.elements


def stand_in(modules: Iterable[nn.Module], ledger: Ledger, device: str) -> None:
    """Gives each of these neurons (of a fake copy, never of the user's model) a forward that replays recordings.

    device: "cpu" or "meta", where the recordings are made.
    """
    recordings: dict[tuple, _Recording | None] = {}
    for module in modules:
        module.forward = _forward_of(module, module.forward, recordings, ledger, device)


def mark_spikes(modules: Iterable[nn.Module]) -> None:
    """Lets readers of these neurons' output (of a fake copy) know that it is spikes, where only its values would tell.

    For steps on the CPU, which look at values: chain/stamps.py.
    """
    for module in modules:
        module.forward = _marking(module.forward)


def _marking(original):
    def forward(*args, **kwargs):
        out = original(*args, **kwargs)
        spikes = out[0] if isinstance(out, tuple) else out
        node = spikes.grad_fn if isinstance(spikes, Tensor) else None
        while node is not None and node.name() in _VIEWS:
            node = node.next_functions[0][0]
        spec = getattr(node, "spec", None)
        if spec is not None and spec.surrogate.alphabet == "binary":
            node.levels = 1  # of its first output, as stamps.alphabet reads it
        return out

    return forward


def _forward_of(module: nn.Module, original, recordings: dict, ledger: Ledger, device: str):
    def forward(*args, **kwargs):
        x = args[0] if len(args) == 1 and not kwargs else None
        if not _opaque(module, x):
            return original(*args, **kwargs)
        key = _signature(module, x)
        if key not in recordings:
            outermost = vars(module).pop("forward")  # the copy made for the recording runs the neuron's own
            try:
                recordings[key] = _record(module, x, device)
            finally:
                module.forward = outermost
        found = recordings[key]
        if found is None:
            return original(*args, **kwargs)
        return _Replay.apply(found, ledger, x, *module.parameters())

    return forward


def _opaque(module: nn.Module, x) -> bool:
    return (isinstance(x, Tensor) and getattr(module, "step_mode", None) == "m" and x.dim() > 1 and x.shape[0] > 1
            and x.is_floating_point() and x.is_contiguous() and torch.is_grad_enabled() and x.requires_grad
            and not module._forward_hooks and not module._forward_pre_hooks)


def _signature(module: nn.Module, x: Tensor) -> tuple:
    """What decides how much a neuron keeps; two with the same one differ in their size alone."""
    found: list = [type(module), x.shape[0], x.dtype, module.training]
    for part in module.modules():
        for name, value in (*vars(part).items(), *vars(part).get("_memories", {}).items()):
            found.append((name, value if isinstance(value, _PLAIN) else type(value)))
        for name, p in part.named_parameters(recurse=False):
            found.append((name, tuple(p.shape), p.requires_grad))
    return tuple(found)


def _record(module: nn.Module, x: Tensor, device: str) -> _Recording | None:
    """None: it does not map a sequence to spikes of the same shape, or leaves gradients out."""
    ledger = Ledger()
    with _disable_current_modes(), watch(ledger, device), default_device(device):
        probe = fake_copy(module, device)
        given = torch.empty(x.shape, dtype=x.dtype, device=device, requires_grad=True)
        ledger.before = False
        spikes = probe(given)
        if not isinstance(spikes, Tensor) or spikes.shape != x.shape or not spikes.is_contiguous():
            return None
        held = set(held_by_graph([spikes])[0])  # not the storages, which would live on
        keeps = [t.untyped_storage()._cdata in held for t in (given, spikes)]
        spikes_line, turn = ledger.line_of(spikes), ledger.events
        grad: list[int] = []
        _Fresh.apply(spikes, grad, ledger).backward()
        if given.grad is None or not given.grad.is_contiguous():
            return None
        params = {i: ledger.line_of(p.grad) for i, p in enumerate(probe.parameters()) if p.grad is not None}
        events = ledger.events_of(lambda line, nbytes: nbytes > _SMALL or line == spikes_line)
        found = _Recording([e[1:] for e in events if e[0] <= turn], [e[1:] for e in events if e[0] > turn],
                           ledger.nbytes[:], spikes_line, grad[0], ledger.line_of(given.grad), params, *keeps,
                           x.numel(), x.shape[0])
    ledger.close()
    return found


class _Fresh(torch.autograd.Function):
    """A loss whose gradient belongs to nobody but the engine, as it does inside a network."""

    @staticmethod
    def forward(ctx, spikes, seen, ledger):
        ctx.like, ctx.seen, ctx.ledger = (spikes.shape, spikes.dtype), seen, ledger
        return spikes.new_empty(())

    @staticmethod
    def backward(ctx, grad):
        shape, dtype = ctx.like
        made = torch.empty(shape, dtype=dtype, device=grad.device)
        ctx.seen.append(ctx.ledger.line_of(made))
        return made, None, None


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx, recording, ledger, x, *params):
        ctx.recording, ctx.ledger, ctx.like = recording, ledger, (x.shape, x.dtype)
        ctx.passing = is_rebuilding()
        ctx.params = [(p.shape, p.dtype) for p in params]
        ctx.lines, made = {}, {}
        for line, birth in recording.forward:
            if line == recording.spikes:
                made[line] = torch.empty(x.shape, dtype=x.dtype, device=x.device)
            else:
                _turn(ctx, line, birth)
        spikes = made[recording.spikes]
        ctx.save_for_backward(x if recording.keeps_x else None, spikes if recording.keeps_spikes else None)
        return spikes

    @staticmethod
    def backward(ctx, *grads):
        # The neuron itself lets go of its gradient before its end; of this node's, the engine holds on to the last.
        alone = sole_owner(grads)
        recording, device = ctx.recording, grads[0].device
        owned = {recording.grad_x: (0, *ctx.like),
                 **{line: (1 + i, *ctx.params[i]) for i, line in recording.grad_params.items()}}
        made: list[Tensor | None] = [None] * (1 + len(ctx.params))
        for line, birth in recording.backward:
            if line in owned and birth:
                at, shape, dtype = owned[line]
                made[at] = torch.empty(shape, dtype=dtype, device=device)
            elif line == recording.grad_spikes and alone and not birth:
                ctx.ledger.release(grads[0])
            elif line not in owned and line not in (recording.grad_spikes, recording.spikes):
                _turn(ctx, line, birth)
        if ctx.passing:  # left is the neuron's state, and who runs a block again puts the one before it back
            for line in ctx.lines.values():
                ctx.ledger.free(line)
        ctx.lines.clear()
        for at, shape, dtype in owned.values():  # as small as a number: not among the events
            if made[at] is None:
                made[at] = torch.empty(shape, dtype=dtype, device=device)
        return None, None, *made


def _turn(ctx, line: int, birth: bool) -> None:
    if birth:
        ctx.lines[line] = ctx.ledger.add(ctx.recording.bytes(line, ctx.like[0].numel()))
    elif line in ctx.lines:
        ctx.ledger.free(ctx.lines.pop(line))
