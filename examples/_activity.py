"""Human activities, recorded with a phone in the trouser pocket (examples/data), as input for spiking networks.

Every time step gives the network a frame: the newest samples of all channels, side by side.
"""
from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

FILE = Path(__file__).parent / "data" / "activity_windows.npz"
ACTIVITIES = ("downstairs", "upstairs", "walking", "jogging", "standing", "sitting")
TEST_SUBJECTS = range(19, 25)
CHANNELS = 6


class Windows(NamedTuple):
    """samples: float32 [n, 128, 6] (2.56 s at 50 Hz), standard deviation 1 over the training subjects.
    labels: int64 [n], index into ACTIVITIES.  subjects: int64 [n], 1 to 24."""

    samples: Tensor
    labels: Tensor
    subjects: Tensor

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index) -> Windows:
        return Windows(*(part[index] for part in self))


def load(file: Path = FILE) -> tuple[Windows, Windows]:
    """(2,052 windows of subjects 1 to 18, 684 of subjects 19 to 24).  Raises SystemExit if the file is not there."""
    if not file.exists():
        raise SystemExit(f"{file} is missing; it comes with the repository (see examples/data/README.md)")
    with np.load(file) as arrays:
        samples = torch.from_numpy(arrays["windows"] * arrays["step"])
        labels, subjects = (torch.from_numpy(arrays[name]).long() for name in ("labels", "subjects"))
    test = torch.isin(subjects, torch.tensor(list(TEST_SUBJECTS)))
    scale = samples[~test].std((0, 1))
    return tuple(Windows(samples[part] / scale, labels[part], subjects[part]) for part in (~test, test))


def frames(samples: Tensor, width: int = 16, hop: int = 1) -> Tensor:
    """[T, n, width * 6]: step t sees samples t * hop to t * hop + width - 1; T = (128 - width) // hop + 1."""
    return samples.unfold(1, width, hop).flatten(2).transpose(0, 1).contiguous()


def steps(width: int, hop: int = 1, length: int = 128) -> int:
    return (length - width) // hop + 1


def batches(windows: Windows, size: int, epochs: int, seed: int) -> Iterator[Windows]:
    """The windows in a new random order every epoch; a short last batch of an epoch is left out."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for index in torch.randperm(len(windows), generator=generator).split(size):
            if len(index) == size:
                yield windows[index]
