"""The digits of examples/data as tensors."""
from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

FILE = Path(__file__).parent / "data" / "mnist_subset.npz"


class Digits(NamedTuple):
    """images: float32 [n, 1, 28, 28] in 0..1.  labels: int64 [n] in 0..9."""

    images: Tensor
    labels: Tensor

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index) -> Digits:
        return Digits(self.images[index], self.labels[index])


def load(file: Path = FILE) -> tuple[Digits, Digits]:
    """(10,000 training digits, 2,000 test digits).  Raises SystemExit if the file is not there."""
    if not file.exists():
        raise SystemExit(f"demo: {file} is missing; it comes with the repository (see examples/data/README.md)")
    with np.load(file) as arrays:
        return tuple(Digits(torch.from_numpy(arrays[f"{split}_images"]).unsqueeze(1).float() / 255,
                            torch.from_numpy(arrays[f"{split}_labels"]).long()) for split in ("train", "test"))


def batches(digits: Digits, size: int, steps: int, seed: int) -> list[Digits]:
    """`steps` batches: the digits in a new random order every epoch, a short last batch of an epoch left out."""
    if not 1 <= size <= len(digits):
        raise SystemExit(f"demo: the batch size is {size}; allowed: 1 to {len(digits)}")
    generator = torch.Generator().manual_seed(seed)
    found: list[Digits] = []
    while len(found) < steps:
        order = torch.randperm(len(digits), generator=generator)
        found += [digits[index] for index in order.split(size) if len(index) == size]
    return found[:steps]
