"""Runs a kernel call on copies of its memory: poisoned, and fenced on both sides, so that a byte written too far, read
from outside or left unwritten cannot go unseen."""
from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator

from shared_core.backends._call import BLOCK, Call

FENCE = 64
_SIZE = {0: 4, 1: 8, 2: 2, 3: 2}  # bytes of a value, by Type of call.h
_NAN = 0xFF  # bytes of 0xFF are a NaN in every type: outside of an input, and in every output before the call


def regions(call: Call, states: int) -> Iterator[tuple[object, int | str, int, bool]]:
    """(holder, key, bytes, written) of every pointer of the call; states: how many the neuron has."""
    steps, n, r = call.steps // call.groups, call.neurons, _SIZE[call.compute]
    wide = n * call.groups  # values of a time step; n: of a state
    x, s = _SIZE[call.x_type], _SIZE[call.spike_type]
    forward = bool(call.spikes)
    yield call, "x", ((steps - 1) * call.x_stride + wide) * x, False
    yield call, "anchors", (call.steps - 1) // BLOCK * states * n * r, forward
    yield call, "spikes", steps * wide * s, True
    yield call, "bits", steps * ((wide + 7) // 8), forward
    yield call, "grad_spikes", ((steps - 1) * call.grad_spikes_stride + wide) * s, False
    yield call, "grad_x", steps * wide * x, True
    for p in (*call.params, call.x_scale, call.x_shift):
        yield p, "data", p.size * r, False
    for i in range(len(call.initial)):
        yield call.initial, i, n * r, False
        yield call.final_state, i, n * r, True
        yield call.states_seq, i, steps * n * r, True
        yield call.grad_final, i, n * r, False
        yield call.grad_seq, i, ((steps - 1) * call.grad_seq_stride[i] + n) * r, False
        yield call.grad_initial, i, n * r, True
    for i in range(len(call.grad_params)):
        yield call.grad_params, i, n * r, True


def fenced(run: Callable[[Call, str], None], states: int) -> Callable[[Call, str], None]:
    """`run` with every pointer of the call led to a fenced copy."""

    def guarded(call: Call, direction: str) -> None:
        mine, back = Call.from_buffer_copy(call), []
        for (holder, key, size, written), (other, *_) in zip(list(regions(mine, states)), list(regions(call, states))):
            get = getattr if isinstance(key, str) else lambda h, k: h[k]
            address = get(holder, key)
            if not address:
                continue
            memory = ctypes.create_string_buffer(bytes([_NAN]) * (size + 2 * FENCE), size + 2 * FENCE)
            inside = ctypes.addressof(memory) + FENCE
            if not written:
                ctypes.memmove(inside, address, size)
            (setattr if isinstance(key, str) else type(holder).__setitem__)(holder, key, inside)
            back.append((get(other, key), memory, size, written, key))
        run(mine, direction)
        for address, memory, size, written, key in back:
            fence = bytes([_NAN]) * FENCE
            assert memory.raw[:FENCE] == fence and memory.raw[FENCE + size:] == fence, f"{key}: written outside"
            inside = ctypes.addressof(memory) + FENCE
            if written:
                ctypes.memmove(address, inside, size)
            else:
                assert ctypes.string_at(inside, size) == ctypes.string_at(address, size), f"{key}: an input was changed"

    return guarded
