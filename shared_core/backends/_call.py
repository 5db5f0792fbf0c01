"""ctypes mirror of kernels/call.h, field by field, and the types it speaks of. Used by the CPU and by the GPU."""
from __future__ import annotations

import ctypes
from ctypes import c_double, c_int, c_longlong, c_void_p

import torch

BLOCK = 32  # kBlock
ONLINE = 1  # kOnline
MAX_STATES, MAX_PARAMS, MAX_CONSTANTS, MAX_SURROGATE_PARAMS, MAX_TRACE = 4, 8, 8, 4, 4
TYPES = {torch.float32: 0, torch.float64: 1, torch.float16: 2, torch.bfloat16: 3}


class Param(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("inner", c_longlong), ("size", c_longlong)]


class Call(ctypes.Structure):
    _fields_ = [
        ("steps", c_longlong), ("neurons", c_longlong),
        ("neuron", c_int), ("variant", c_int), ("surrogate", c_int), ("compute", c_int),
        ("x_type", c_int), ("spike_type", c_int), ("threads", c_int), ("flags", c_int),
        ("constants", c_double * MAX_CONSTANTS),
        ("surrogate_params", c_double * MAX_SURROGATE_PARAMS),
        ("rest", c_double * MAX_STATES),
        ("x", c_void_p), ("x_stride", c_longlong),
        ("initial", c_void_p * MAX_STATES),
        ("params", Param * MAX_PARAMS),
        ("spikes", c_void_p), ("bits", c_void_p),
        ("final_state", c_void_p * MAX_STATES), ("states_seq", c_void_p * MAX_STATES), ("anchors", c_void_p),
        ("grad_spikes", c_void_p), ("grad_spikes_stride", c_longlong),
        ("grad_final", c_void_p * MAX_STATES),
        ("grad_seq", c_void_p * MAX_STATES), ("grad_seq_stride", c_longlong * MAX_STATES),
        ("grad_x", c_void_p), ("grad_initial", c_void_p * MAX_STATES), ("grad_params", c_void_p * MAX_PARAMS),
        ("traces", c_void_p * MAX_TRACE),
        ("x_scale", Param), ("x_shift", Param), ("sums", c_void_p),
        ("groups", c_longlong), ("run", c_longlong),
    ]


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Arithmetic of a kernel: float64 for float64 input, float32 for all others (half types included)."""
    return torch.float64 if dtype == torch.float64 else torch.float32
