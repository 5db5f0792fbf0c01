"""How a node of the chain finds the node that made its input, and what it keeps of that input.

A Python autograd Function's `grad_fn` is its own ctx, so whoever sees a tensor can walk from `x.grad_fn` back over view
nodes to the node that made it. If that node is one of ours (`Chained`) it can rebuild its output in the backward pass,
and the consumer keeps the node instead of the tensor. Anything in between that is not a view (a hook's node, an
addition, a copy, DDP) makes another `grad_fn`, and then there is no link: no special cases.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import coding
from ..coding import is_dense, is_fake
from ..errors import MemextError
from .stamps import code_of

__all__ = ["Chained", "Kept", "Made", "keep", "link_to", "made", "refuse_double_backward", "seen_as", "value_of"]

VIEWS = frozenset(("ViewBackward0", "ReshapeAliasBackward0", "UnsafeViewBackward0", "AliasBackward0", "TBackward0",
                   "PermuteBackward0", "TransposeBackward0", "SqueezeBackward0", "SqueezeBackward1",
                   "SqueezeBackward2", "UnsqueezeBackward0"))


class Chained(torch.autograd.Function):
    """A Function whose node can rebuild its first output. Its ctx has `made: Made` and may have `rebuilt`."""

    @staticmethod
    def rebuild(ctx) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True)
class Made:
    """The first output of a node, described so that views of it are recognised."""

    address: int
    version: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @staticmethod
    def of(t: Tensor) -> Made:
        return Made(address(t), t._version, tuple(t.shape), t.stride())

    def is_seen_through(self, x: Tensor) -> bool:
        """Is x all of this output, as another shape or in another order of dimensions, and unchanged?"""
        count = 1
        for n in self.shape:
            count *= n
        return (address(x) == self.address and x._version == self.version and x.numel() == count
                and is_dense(x))


def address(t: Tensor) -> int:
    """Where t's values begin; 0 for fake tensors, which have no memory (their grad_fn then decides alone)."""
    return 0 if is_fake(t) else t.data_ptr()


def link_to(x: Tensor):
    """The node that made x and can rebuild it, or None."""
    node, number = x.grad_fn, x.output_nr
    while node is not None:
        cls = getattr(type(node), "_forward_cls", None)
        if cls is not None:
            ours = issubclass(cls, Chained) and number == 0 and node.made is not None
            return node if ours and node.made.is_seen_through(x) and not hooked() else None
        if node.name() not in VIEWS:
            return None
        node, number = node.next_functions[0]
    return None


def made(t: Tensor) -> Made | None:
    """The description of an output under which consumers may link to its node; None where they may not."""
    return None if hooked() else Made.of(t)


def hooked() -> bool:
    """Inside saved_tensors_hooks (checkpoint, save_on_cpu) the user decides where saved tensors live, and a forward may
    run a second time in another graph: nodes then keep values, never each other."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    return top is None or top(True) is not None


@dataclass
class Kept:
    """What a node keeps of one input: another node, or a tensor in `slot` of its saved tensors, coded or as it is."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    link: object = None
    code: coding.Code | None = None
    slot: int = -1

    @property
    def there(self) -> bool:
        """Is the value kept, or only its shape?"""
        return self.link is not None or self.slot >= 0


def keep(x: Tensor, tensors: list[Tensor], *, link=None, spikes: bool = True, needed: bool = True) -> Kept:
    """Decides how x is kept, and appends to `tensors` (for save_for_backward) what has to be saved.

    link: a node that may stand for x.  spikes: try to keep x as bits or small integers.  needed: False: keep x only if
    that costs next to nothing.
    """
    kept = Kept(tuple(x.shape), x.stride())
    if spikes:
        coded = code_of(x)
        if coded is not None:
            data, kept.code = coded
            kept.slot = len(tensors)
            tensors.append(data)
            return kept
    if link is not None:
        kept.link = link
        return kept
    if not needed:
        return kept
    kept.slot = len(tensors)
    tensors.append(x)
    return kept


def value_of(kept: Kept, saved: Sequence[Tensor]) -> Tensor:
    """The input again, bit for bit.

    saved: the node's ctx.saved_tensors, which a node reads once in a backward pass: checkpoint runs its part again at
    the first reading, and refuses a second one.
    """
    if kept.link is not None:
        return seen_as(type(kept.link)._forward_cls.rebuild(kept.link), kept.link.made, kept)
    data = saved[kept.slot]
    return data if kept.code is None else coding.decode(data, kept.code)


def seen_as(out: Tensor, made: Made, kept: Kept) -> Tensor:
    """A rebuilt output, shaped and ordered as its consumer saw it."""
    if tuple(out.shape) == kept.shape and out.stride() == kept.stride:
        return out
    if out.stride() != made.stride:
        out = torch.empty_strided(made.shape, made.stride, dtype=out.dtype, device=out.device).copy_(out)
    return out.as_strided(kept.shape, kept.stride)


def refuse_double_backward(what: str) -> None:
    """Called first in every backward: gradients of gradients need values that are not kept here."""
    if torch.is_grad_enabled():
        raise MemextError(f"{what}: double backward (create_graph=True) was asked for; retrofit methods 'compress' and "
                          "'recompute' keep too little for it. Use restore(net), or the method 'neuron', for it.")
