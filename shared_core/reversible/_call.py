"""ctypes mirror of ReversibleCall (kernels/reversible.h), field by field, and how a call is filled. CPU and GPU."""
from __future__ import annotations

import ctypes
from ctypes import c_double, c_int, c_longlong, c_void_p

import torch
from torch import Tensor

from ..backends._call import MAX_SURROGATE_PARAMS, TYPES
from ..surrogate import Surrogate
from ._equations import Equations

__all__ = ["ReversibleCall", "filled"]

_TENSORS = ("x", "initial", "y", "final_state", "largest", "grad_y", "grad_final", "grad_x", "grad_initial", "anchors",
            "fired")


class ReversibleCall(ctypes.Structure):
    _fields_ = [
        ("steps", c_longlong), ("outer", c_longlong), ("groups", c_longlong), ("inner", c_longlong),
        ("compute", c_int), ("surrogate", c_int), ("strict", c_int), ("threads", c_int),
        ("tau", c_double), ("alpha", c_double), ("beta", c_double), ("v_th", c_double), ("v_reset", c_double),
        ("surrogate_params", c_double * MAX_SURROGATE_PARAMS),
        *((name, c_void_p) for name in _TENSORS),
    ]


def filled(eq: Equations, surrogate: Surrogate, sequence: Tensor, threads: int, **tensors: Tensor | None
           ) -> ReversibleCall:
    """A call on dense tensors; sequence: any [T, outer, groups, inner] of it. The caller keeps the tensors alive."""
    for name, t in tensors.items():
        if t is not None and not t.is_contiguous():
            raise AssertionError(f"reversible kernels: {name} is not dense: {tuple(t.shape)}, {t.stride()}")
    steps, outer, groups, inner = sequence.shape
    call = ReversibleCall(steps, outer, groups, inner, TYPES[sequence.dtype], surrogate.kernel_id, eq.strict, threads,
                          eq.tau, eq.alpha, eq.beta, eq.v_th, eq.v_reset)
    call.surrogate_params[:len(surrogate.params)] = surrogate.params
    for name, t in tensors.items():
        setattr(call, name, None if t is None else t.data_ptr())
    return call


def new_largest(like: Tensor) -> Tensor:
    """Where a kernel leaves the greatest |z| and |V|: two float32, kept as the integers of their bits."""
    return torch.zeros(2, dtype=torch.int32, device=like.device)
