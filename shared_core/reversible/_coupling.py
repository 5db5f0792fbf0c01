"""One pass through a sequence of additive couplings: every F and G run, checked, and run again; the sums."""
from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from .._again import fork, random_state, set_random_state
from ..coding import is_fake
from ..errors import MemextError
from ..temporal._captured import leaves_of
from ..temporal._hosts import Cell
from ..temporal._program import leaf, unchanged_mode
from ._grid import Rounded, largest, limit, rounded, stream_dtype
from ._parts import Call, Part, aside, key

__all__ = ["Coupling", "own"]

_HALF = (torch.float16, torch.bfloat16)
# A graph that is thrown away at once is nobody's business: torch.utils.checkpoint counts what is saved.
_UNHOOKED = partial(torch.autograd.graph.saved_tensors_hooks, lambda t: t, lambda t: t)


@dataclass
class Coupling:
    """One pass of one input through the blocks.

    where: for messages.  dim: of the channels.  dtype: of the stream.  carry: neurons keep their states; else each F
    and G leaves them as it found them.  keep: for a backward pass.  check: run each F and G once more.
    real: there are values (the planner's tensors have none).
    calls: what backward needs.  peaks: max |z| of the input, and after every addition.
    """

    where: str
    parts: list[Part]
    dim: int
    grid: float | None
    carry: bool
    dtype: torch.dtype
    device: torch.device
    real: bool = True
    keep: bool = False
    check: bool = False
    calls: list[Call] = field(default_factory=list)
    peaks: list[Tensor] = field(default_factory=list)
    mode: object = None
    training: dict[nn.Module, bool] = field(default_factory=dict)

    @classmethod
    def of(cls, where: str, parts: list[Part], x: Tensor, dim: int, grid: float | None, carry: bool) -> Coupling:
        """Raises MemextError if x has no two halves."""
        if not isinstance(x, Tensor):
            raise MemextError(f"{where}: the input is {type(x).__name__}; a tensor is needed")
        if x.dim() <= dim:
            raise MemextError(f"{where}: the input has shape {tuple(x.shape)}, and channels are to be split in "
                              f"dimension {dim}; at least {dim + 1} dimensions are needed ([T, N, C, ...] with split "
                              "dimension 2, [N, C, ...] with 1)")
        if x.shape[dim] % 2 or not x.shape[dim]:
            raise MemextError(f"{where}: {x.shape[dim]} channels (dimension {dim} of {tuple(x.shape)}) cannot be split "
                              "into two halves; an even number is needed")
        if not x.is_floating_point():
            raise MemextError(f"{where}: the input is {x.dtype}; a floating-point tensor is needed, use x.float()")
        return cls(where, parts, dim, grid, carry, stream_dtype(x), x.device, real=not (x.is_meta or is_fake(x)))

    def parameters(self) -> list[Tensor]:
        """Those that learn, each once."""
        return list({id(p): p for part in self.parts for p in part.parameters}.values())

    def cells(self) -> list[Cell]:
        """Hidden states, each once."""
        return list({key(cell): cell for part in self.parts for cell in part.cells}.values())

    # ---- one F or G ----

    def branch(self, part: Part, z: Tensor) -> Tensor:
        """What it adds, on the grid. No graph."""
        before = [cell.get() for cell in part.cells]
        keep = self.keep and self.real  # without values, nothing is drawn and nothing can be compared
        drawn = random_state(self.device) if keep else None
        out = self.run(part, z)
        if self.keep:
            call = Call(part, before)
            if keep and not all(map(torch.equal, drawn, random_state(self.device))):
                call.random = drawn
            self.calls.append(call)
            if keep and self.check:
                why = self.unlike(call, z, out)
                if why is not None:
                    raise MemextError(why)
        if not self.carry:
            for cell, value in zip(part.cells, before):
                cell.set(value)
        return self.on_grid(out)

    def run(self, part: Part, z: Tensor) -> Tensor:
        version = None if z.is_inference() else z._version
        out = part.module(z)
        if not isinstance(out, Tensor):
            raise MemextError(f"{part.name}: returned {type(out).__name__}; one tensor of the shape of its input, "
                              f"{tuple(z.shape)}, is needed, for it is added to the other half")
        if out.shape != z.shape:
            raise MemextError(f"{part.name}: took {tuple(z.shape)} and returned {tuple(out.shape)}; what is added to "
                              "the other half must have its shape. Change sizes between sequences, not inside")
        if out.dtype != self.dtype and out.dtype not in _HALF:
            raise MemextError(f"{part.name}: returned {out.dtype}; {self.dtype} (or a half precision) is needed, for "
                              "it is added to the other half")
        if version is not None and z._version != version:
            raise MemextError(f"{part.name}: changed its input in place, which the other half still needs; use the "
                              "layer's inplace=False")
        return out

    def again(self, call: Call, before: list, z: Tensor) -> Tensor:
        """The call once more, as it was. Inside `aside`."""
        for cell, value in zip(call.part.cells, before):
            cell.set(value)
        if call.random is not None:
            set_random_state(self.device, call.random)
        with self.mode():
            return self.run(call.part, z)

    def unlike(self, call: Call, z: Tensor, out: Tensor) -> str | None:
        """Why this call cannot be run again; None if it can. Leaves no trace."""
        with aside([call.part]) as aliases, fork(self.device), torch.enable_grad(), _UNHOOKED():
            before, x = [leaf(s) for s in call.before], leaf(z)
            found = self.again(call, before, x)
            strange = leaves_of([found]) - {id(x), *map(id, aliases.values()), *map(id, before)}
            found = found.detach()
            same = found.dtype == out.dtype and bool(((found == out) | (found.isnan() & out.isnan())).all())
        if strange:
            return (f"{call.part.name} uses a tensor that needs a gradient and is no parameter of it; register it as "
                    "an nn.Parameter of the module that uses it")
        if not same:
            return (f"{call.part.name} gives another output when it is run again on the same input, so its input "
                    "cannot be brought back. It holds a state that its framework does not know of (a tensor in a plain "
                    "attribute or buffer: register it as a memory), draws from a random generator of its own, or runs "
                    "on kernels that do not repeat (torch.use_deterministic_algorithms(True)). check=False skips "
                    "this test")
        return None

    # ---- all of them ----

    def halves(self, x: Tensor) -> list[Tensor]:
        return list(x.chunk(2, self.dim))

    def on_grid(self, out: Tensor) -> Tensor:
        return rounded(out, self.grid, self.dtype)

    def start(self, x: Tensor) -> list[Tensor]:
        """x's halves as the stream has them, in memory of their own."""
        return [own(self.on_grid(half), x) for half in self.halves(x.detach())]

    def forward(self, x: Tensor) -> Tensor:
        """[*] to [*], without a graph. With `keep`, calls and peaks are left."""
        self.mode = unchanged_mode(self.device)
        self.training = {m: m.training for part in self.parts for m in part.modules} if self.keep else {}
        z = self.start(x)
        watched = self.keep and self.real and self.grid is not None
        if watched:
            self.peaks = [torch.maximum(*map(largest, z))]
        with torch.no_grad(), self.mode():
            for i, part in enumerate(self.parts):
                z[i % 2].add_(self.branch(part, z[1 - i % 2]))
                if watched:
                    self.peaks.append(largest(z[i % 2]))
        if self.peaks:
            self.peaks = [torch.stack(self.peaks)]
        return torch.cat(z, self.dim)

    def unrepeatable(self, x: Tensor) -> list[str]:
        """Of every F and G that cannot be run again, why. Inside `aside`, after `forward`."""
        found, z = [], self.start(x)
        for i, call in enumerate(self.calls):
            with torch.no_grad():
                out = self.again(call, call.before, z[1 - i % 2])
            found.append(self.unlike(call, z[1 - i % 2], out))
            z[i % 2].add_(self.on_grid(out))
        return [why for why in found if why is not None]

    def plain(self, x: Tensor) -> Tensor:
        """The same values and gradients under Torch's own autograd, which keeps everything."""
        z = [Rounded.apply(half, self.grid, self.dtype) for half in self.halves(x)]
        for i, part in enumerate(self.parts):
            before = [cell.get() for cell in part.cells]
            out = self.run(part, z[1 - i % 2])
            if not self.carry:
                for cell, value in zip(part.cells, before):
                    cell.set(value)
            z[i % 2] = z[i % 2] + Rounded.apply(out, self.grid, self.dtype)
        return _Joined.apply(self.dim, *z)

    def in_range(self) -> str | None:
        """Why the additions were not exact; None if they were. Waits for the device, once."""
        if not self.peaks:
            return None
        most = limit(self.grid, self.dtype)
        for i, peak in enumerate(self.peaks[0].tolist()):
            if not peak < most:
                at = "in the input" if i == 0 else f"after {self.parts[i - 1].name.split(': ')[-1]}"
                return (f"{self.where}: the largest value {at} is {peak:.4g}; below {most:g} additions are exact "
                        f"({self.dtype}, grid 2^{round(math.log2(self.grid))}). Make smaller what F and G add (the "
                        "weight of their last norm), or use a coarser grid: grid=2**-12 has four times the range")
        return None


class _Joined(torch.autograd.Function):
    """cat, which hands back gradients of their own memory: on slices, kernels add in another order."""

    @staticmethod
    def forward(ctx, dim, *halves):
        ctx.dim = dim
        return torch.cat(halves, dim)

    @staticmethod
    def backward(ctx, grad):
        return None, *(half.contiguous() for half in grad.chunk(2, ctx.dim))


def own(t: Tensor, other: Tensor) -> Tensor:
    """t, or a copy where it is memory of `other`."""
    return t.clone() if t.untyped_storage()._cdata == other.untyped_storage()._cdata else t
