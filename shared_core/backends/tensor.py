"""Work on whole tensors beside the neurons: packing of spikes (see coding.py), batch norm, pooling.

The compiled CPU kernels, the CUDA kernels, or plain Torch where there are none; on fake tensors (planner) only empty
outputs. Channels are dimension 1.
"""
from __future__ import annotations

from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import coding
from . import _tensor_native, _tensor_torch, cuda
from ._call import TYPES
from ._tensor_torch import PER_BYTE

__all__ = ["finds_maxima", "folded", "max_pool2d", "max_pool2d_backward", "max_pool2d_from", "norm_backward",
           "norm_sums", "normalise", "pack", "pack_checked", "unpack"]


def _kernels(t: Tensor) -> ModuleType | None:
    """The module whose kernels serve this tensor; None: plain Torch."""
    if t.dtype not in TYPES:
        return None
    if t.device.type == "cpu":
        return _tensor_native if _tensor_native.library() is not None else None
    if t.device.type == "cuda" and cuda.unavailable() is None:
        from . import _tensor_cuda
        return _tensor_cuda
    return None


# ---- packing ----

def pack(flat: Tensor, kind: str, scale: float) -> Tensor:
    """flat [n], dense, values that the kind holds (believed) -> packed bytes."""
    if coding.is_fake(flat):
        return _packed(flat, kind)
    kernels = _kernels(flat)
    if kernels is None:
        return _tensor_torch.pack(flat, kind, scale)
    out = _packed(flat, kind)
    kernels.pack(flat, kind, scale, out)
    return out


def pack_checked(flat: Tensor) -> tuple[Tensor, str, float] | None:
    """flat [n], dense, on the CPU -> (packed bytes, kind, scale) of the smallest kind, or None."""
    if _kernels(flat) is not _tensor_native:
        return _tensor_torch.pack_checked(flat)
    seen = _tensor_native.levels(flat, 256)  # enough to tell real numbers from spikes
    while seen is not None and seen.code is not None:
        data = _packed(flat, seen.code[0])
        at = _tensor_native.pack(flat, *seen.code, data)
        if at < 0:
            return data, *seen.code
        more = _tensor_native.levels(flat[at:], _tensor_native.BLOCK)
        before, seen = seen, None if more is None else seen.join(more)
        if seen == before:  # cannot be: what did not fit is new. But then it would never end
            return None
    return None


def _packed(flat: Tensor, kind: str) -> Tensor:
    return flat.new_empty(-(-flat.numel() // PER_BYTE[kind]), dtype=torch.int8 if kind == "int8" else torch.uint8)


def unpack(data: Tensor, kind: str, scale: float, out: Tensor) -> None:
    """The inverse of pack, into out [n], dense."""
    if not coding.is_fake(out):
        (_kernels(out) or _tensor_torch).unpack(data, kind, scale, out)


# ---- batch norm ----

def folded(mean: Tensor, invstd: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """(scale, shift) [C], float32 (float64 for float64), such that normalise gives (y - mean) * invstd * weight + bias.

    scale = invstd * weight;  shift = fma(-mean, scale, bias), as Torch's CPU kernel folds them.
    """
    wide = torch.float64 if mean.dtype == torch.float64 else torch.float32
    mean, invstd = mean.to(wide), invstd.to(wide)
    scale = invstd.clone() if weight is None else invstd * weight.to(wide)
    if coding.is_fake(mean):
        return scale, torch.empty_like(mean)
    bias = torch.zeros_like(mean) if bias is None else bias.to(wide)
    fma = (_kernels(mean) or _tensor_torch).fma
    return scale, fma((-mean).contiguous(), scale.contiguous(), bias.contiguous())


def normalise(y: Tensor, scale: Tensor, shift: Tensor, out: Tensor | None = None) -> Tensor:
    """fma(y, scale[c], shift[c]) for y [N, C, *], rounded once more to y's dtype if that is a half type.

    out: written and returned; may be y.
    """
    out = torch.empty_like(y) if out is None else out
    if coding.is_fake(y) or y.numel() == 0:
        return out
    kernels = _kernels(y)
    if kernels is None:
        return _tensor_torch.normalise(y, scale, shift, out)
    if not coding.is_dense(y) or not coding.same_order(y, out):
        return out.copy_(normalise(y.contiguous(), scale, shift))
    return kernels.normalise(y, scale.contiguous(), shift.contiguous(), out)


def norm_sums(grad: Tensor, y: Tensor) -> Tensor:
    """[2, C] float64: per channel the sums of grad and of grad * y, both [N, C, *]."""
    if coding.is_fake(y):
        return y.new_empty((2, y.shape[1]), dtype=torch.float64)
    return _tensor_torch.norm_sums(grad, y, y.new_zeros(y.shape[1], dtype=torch.float64))


def norm_backward(grad: Tensor, y: Tensor, mean: Tensor, invstd: Tensor, weight: Tensor | None, *, training: bool,
                  into: Tensor | None = None, sums: Tensor | None = None, count: int | None = None
                  ) -> tuple[Tensor, Tensor, Tensor]:
    """(grad_y, grad_weight, grad_bias) of batch norm on y [N, C, *], sums in float64.

    mean, invstd: [C], as the forward used them.  training: they are the batch's own, so they depend on y.
    into: where grad_y goes; may be grad.  sums: [2, C] float64, sum of g and of g * y, if already known.
    count: values per channel that the sums are over, where grad and y are only a part of the batch.
    """
    kind = mean.dtype if weight is None else weight.dtype
    if coding.is_fake(y):
        out = torch.empty_like(y) if into is None else into
        return out, y.new_empty(y.shape[1], dtype=kind), y.new_empty(y.shape[1], dtype=kind)
    mean, invstd, weight = (None if v is None else v.double().contiguous() for v in (mean, invstd, weight))
    known = sums is not None
    if known:
        sums = torch.stack((sums[0], sums[1] - mean * sums[0]))
    total = sums
    if known and count is not None:  # the kernels divide by what they see
        sums = sums * (y.numel() // y.shape[1] / count)
    kernels = _kernels(y)
    if kernels is not None and y.numel() > 0:
        y = y if coding.is_dense(y) else y.contiguous()
        if grad.dtype != y.dtype or not coding.same_order(grad, y):
            grad = torch.empty_like(y).copy_(grad)
        out = into if into is not None and coding.same_order(into, y) and into.dtype == y.dtype else torch.empty_like(y)
        sums = y.new_empty(2, y.shape[1], dtype=torch.float64) if sums is None else sums
        kernels.norm_backward(grad, y, mean, invstd, weight, sums, training, known, out)
        out = out if into is None or out is into else into.copy_(out)
    else:
        sums = _tensor_torch.norm_sums(grad, y, mean) if sums is None else sums
        out = _tensor_torch.norm_apply(grad, y, mean, invstd, weight, sums, training, into)
    total = sums if total is None else total
    return out, (total[1] * invstd).to(kind), total[0].to(kind)


# ---- pooling ----

def max_pool2d(x: Tensor, kernel, stride, padding, dilation, ceil_mode: bool) -> Tensor:
    """As torch.nn.functional.max_pool2d on x [N, C, H, W], without a gradient; the arguments are pairs."""
    window = _window(x, kernel, stride, padding, dilation, ceil_mode)
    if window is not None and not (x.requires_grad and torch.is_grad_enabled()):
        if coding.is_fake(x):
            return x.new_empty(*x.shape[:2], *((s + window - 2) // 2 for s in x.shape[2:]))
        return _tensor_native.max_pool(x, window)
    return F.max_pool2d(x, kernel, stride, padding, dilation, ceil_mode)


def finds_maxima(x: Tensor, kernel, stride, padding, dilation, ceil_mode: bool) -> bool:
    """Whether our kernels pool x, and find its maxima again in the backward."""
    return _window(x, kernel, stride, padding, dilation, ceil_mode) is not None


def _window(x: Tensor, kernel, stride, padding, dilation, ceil_mode: bool) -> int | None:
    """Size of the windows, if our kernels on values serve them."""
    window = {((2, 2), (0, 0)): 2, ((3, 3), (1, 1)): 3}.get((tuple(kernel), tuple(padding)))
    if (window is not None and tuple(stride) == (2, 2) and tuple(dilation) == (1, 1) and not ceil_mode and x.dim() == 4
            and x.dtype in (torch.float32, torch.float64) and _kernels(x) is _tensor_native and x.is_contiguous()
            and x.numel() > 0 and min(x.shape[2:]) >= 2 and x.shape[3] <= _tensor_native.WIDEST):
        return window
    return None


def max_pool2d_from(grad: Tensor, x: Tensor, kernel, stride, padding, dilation, ceil_mode: bool) -> Tensor:
    """Gradient of max_pool2d at x, whose first maxima are found again."""
    window = _window(x, kernel, stride, padding, dilation, ceil_mode)
    if window is not None and grad.dtype == x.dtype:
        return torch.empty_like(x) if coding.is_fake(x) else _tensor_native.max_pool_from(x, window, grad.contiguous())
    _, indices = torch.ops.aten.max_pool2d_with_indices(x, kernel, stride, padding, dilation, ceil_mode)
    return torch.ops.aten.max_pool2d_with_indices_backward(grad, x, kernel, stride, padding, dilation, ceil_mode,
                                                           indices)


def max_pool2d_backward(grad: Tensor, data: Tensor, code: coding.Code, kernel, stride, padding, dilation,
                        ceil_mode: bool) -> Tensor:
    """Gradient of max_pool2d at the input [N, C, H, W] that coding.encode packed as (data, code).

    From bits directly: the first spike of a window is its first maximum, and where there is none the first value is.
    """
    if coding.is_fake(grad):
        return coding.empty(code, grad)
    kernels = _kernels(grad)
    if (code.kind == "bits" and tuple(dilation) == (1, 1) and len(code.shape) == 4 and grad.dtype == code.dtype
            and grad.numel() > 0 and kernels is not None):
        out = coding.empty(code, grad)
        pairs = [(_tensor_native.c_longlong * 2)(*v) for v in (code.shape[2:], grad.shape[2:], kernel, stride, padding)]
        fours = [(_tensor_native.c_longlong * 4)(*t.stride()) for t in (out, grad)]
        return kernels.max_pool_backward(_tensor_native.Pool(*code.shape[:2], *pairs, *fours), data, grad, out)
    return _tensor_torch.max_pool2d_backward(grad, coding.decode(data, code), kernel, stride, padding, dilation,
                                             ceil_mode)
