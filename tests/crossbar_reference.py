"""Crossbars written from the circuit and the equations, in loops and dense float64 matrices; and modules with one line
broken."""
from __future__ import annotations

import sys
import types
from pathlib import Path

import numpy as np
import torch

from shared_core.hardware import Crossbar


def column_by_equation(ohm: np.ndarray, volt: np.ndarray, wire_ohm: float) -> float:
    """x[n] of hardware's column equation: tridiagonal in the currents behind each row."""
    n = len(ohm)
    a, b = np.zeros((n, n)), np.zeros(n)
    for i in range(n):
        last = i == n - 1
        a[i, i] = -(ohm[i] + (0 if last else ohm[i + 1]) + wire_ohm)
        b[i] = -volt[i] if last else -(volt[i] - volt[i + 1])
        if i:
            a[i, i - 1] = ohm[i]
        if not last:
            a[i, i + 1] = ohm[i + 1]
    return np.linalg.solve(a, b)[-1]


def column_by_nodes(ohm: np.ndarray, volt: np.ndarray, wire_ohm: float) -> float:
    """Kirchhoff's law at every node of the column wire; the amplifier is a node at 0 V. wire_ohm > 0."""
    n = len(ohm)
    a, b = np.zeros((n, n)), np.zeros(n)
    for i in range(n):
        a[i, i] += 1 / ohm[i]
        b[i] += volt[i] / ohm[i]
        a[i, i] += 1 / wire_ohm  # to the next row, or to the amplifier
        if i + 1 < n:
            a[i, i + 1] -= 1 / wire_ohm
            a[i + 1, i] -= 1 / wire_ohm
            a[i + 1, i + 1] += 1 / wire_ohm
    return np.linalg.solve(a, b)[-1] / wire_ohm


def stored_of(q: int, crossbar: Crossbar, shift: int | None) -> int:
    if q >= 0:
        return q
    return q + 2 ** (crossbar.bits if crossbar.encoding == "twos-complement" else shift)


def ohm_of(number: int, crossbar: Crossbar) -> float:
    cell = crossbar.cell
    if cell.parallel:
        return 1 / sum(2 ** k / cell.on_ohm if number >> k & 1 else 1 / cell.off_ohm for k in range(cell.bits))
    high, low = 1 / cell.on_ohm, 1 / cell.off_ohm
    return 1 / (low + number / (2 ** cell.bits - 1) * (high - low))


def layer(weight: np.ndarray, x: np.ndarray, crossbar: Crossbar) -> np.ndarray:
    """[out] of one read: a linear layer, weight [out, in], x [in]; "twos-complement" or "shifted", without noise.

    Every number goes its way alone: quantised, sliced, set as a resistance, read as a column, converted, added.
    """
    scale = np.abs(weight).max() / (2 ** (crossbar.bits - 1) - 1) if crossbar.scale == "layer" else \
        2.0 ** (1 - crossbar.bits)
    q = [[round(w / scale) for w in row] for row in weight]
    lowest = -min(0, *(min(row) for row in q))
    shift = crossbar.shift if crossbar.shift is not None else next(p for p in range(9) if 2 ** p >= lowest)
    per_cell, size, inputs = crossbar.cell.bits, crossbar.size, len(x)
    unit = 1 / ohm_of(1, crossbar) - (0 if crossbar.cell.parallel else 1 / ohm_of(0, crossbar))
    if crossbar.cell.parallel:
        unit = 1 / crossbar.cell.on_ohm
    found = []
    for row in q:
        total = 0.0
        numbers = [stored_of(value, crossbar, shift) for value in row]
        for start in range(0, 8, per_cell):
            sliced = [number >> start & (2 ** per_cell - 1) for number in numbers]
            for top in range(0, inputs, size):
                part = sliced[top:top + size] + [0] * (size - len(sliced[top:top + size]))
                volt = np.array([*x[top:top + size], *[0.0] * size][:size])
                if not any(any(number >> start for number in map(lambda v: stored_of(v, crossbar, shift), other))
                           for other in q):
                    continue  # no weight needs this column
                current = column_by_equation(np.array([ohm_of(n, crossbar) for n in part]), volt, crossbar.wire_ohm)
                if crossbar.reference:
                    current -= column_by_equation(np.array([ohm_of(0, crossbar)] * size), volt, crossbar.wire_ohm)
                code = current / unit
                if crossbar.adc_bits is not None:
                    code = round(code / crossbar.adc_step)
                    code = min(max(code, 0), 2 ** crossbar.adc_bits - 1) * crossbar.adc_step
                total += 2 ** start * code
        added = crossbar.bits if crossbar.encoding == "twos-complement" else shift
        total -= 2 ** added * sum(v for value, v in zip(row, x) if value < 0)
        found.append(total * scale)
    return np.array(found)


def digital(module: torch.nn.Module, x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The quantised layer: whole numbers, then the scale, then the bias."""
    conv = isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d)
    along = (-1, *(1,) * (len(module.kernel_size) if conv else 0))
    q = q.to(x.dtype)
    total = module._conv_forward(x, q, None) if conv else torch.nn.functional.linear(x, q)
    total = total * scale.to(x.dtype).reshape(along)
    return total if module.bias is None else total + module.bias.detach().view(along)


def broken(module: types.ModuleType, old: str, new: str) -> types.ModuleType:
    """The module with one line changed, under a name of its own."""
    source = Path(module.__file__).read_text()
    assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {module.__name__}"
    made = types.ModuleType(module.__name__ + "_broken")
    made.__package__, made.__file__ = module.__package__, module.__file__
    sys.modules[made.__name__] = made  # dataclasses look their module up
    exec(compile(source.replace(old, new), module.__file__, "exec"), made.__dict__)
    return made
