"""Data of accuracy_sharing: human activities, MNIST and CIFAR-10 from a data folder, split for training."""
from __future__ import annotations

import io
import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from benchmarks._measure import HERE

sys.path.insert(0, str(HERE.parent / "examples"))  # examples are programs, not a package
import _activity

__all__ = ["BY_SUBJECT", "PARTS", "RANDOM", "Part", "Split", "activities", "images"]

PARTS = (0.64, 0.16, 0.20)  # training, validation and test, as in the paper (Section V-D)
RANDOM, BY_SUBJECT = "at random", "by subject"
LENGTH, GAIN = 128, 300
FILES = {"motionsense": "motionsense/motionsense.npz", "mnist": "MNIST/raw", "cifar10": "cifar10_jpeg"}


class Part(NamedTuple):
    """x: [n, ...], float32 windows or uint8 images.  y: int64 [n]."""

    x: Tensor
    y: Tensor

    def __len__(self):
        return len(self.y)

    def __getitem__(self, index) -> Part:
        return Part(self.x[index], self.y[index])


class Split(NamedTuple):
    train: Part
    validation: Part
    test: Part


def activities(folder: Path | None, how: str, seed: int, most: int | None = None) -> Split:
    """Windows [n, 6, 128], each channel as asinh(300 x), standard deviation 1 over the training ones.

    Sitting and standing are nearly still, and differ by movements of a hundredth of those of a walk: without the asinh
    no network tells them apart.

    folder: with motionsense/motionsense.npz; None: the windows of examples/data (a ninth of them).
    how: RANDOM: windows drawn without regard to who they are of; BY_SUBJECT: nobody is in two parts.
    most: training windows to keep; validation and test windows go down in proportion.
    Windows that overlap are not used: half of one would be in the training set and half in the test set.
    """
    windows, labels, subjects = _windows(folder)
    generator = torch.Generator().manual_seed(seed)
    units = subjects if how == BY_SUBJECT else torch.arange(len(labels))
    names = units.unique()
    names = names[torch.randperm(len(names), generator=generator)]
    ends = [round(len(names) * sum(PARTS[:i])) for i in range(4)]
    where = [torch.isin(units, names[a:b]).nonzero()[:, 0] for a, b in pairwise(ends)]
    where = [index[torch.randperm(len(index), generator=generator)] for index in where]
    if most is not None and most < len(where[0]):
        where = [index[:max(1, round(len(index) * most / len(where[0])))] for index in where]
    windows = torch.asinh(windows / windows[where[0]].std((0, 2), keepdim=True) * GAIN)
    scale = windows[where[0]].std((0, 2), keepdim=True)
    return Split(*(Part(windows[index] / scale, labels[index]) for index in where))


def _windows(folder: Path | None) -> tuple[Tensor, Tensor, Tensor]:
    if folder is None:
        both = _activity.load()
        windows = [torch.cat([getattr(part, name) for part in both]) for name in ("samples", "labels", "subjects")]
        return windows[0].transpose(1, 2).contiguous(), windows[1], windows[2]
    with np.load(_there(folder, "motionsense")) as arrays:
        apart = arrays["start"] % LENGTH == 0
        x = torch.from_numpy(arrays["x"][apart].astype(np.float32)).transpose(1, 2).contiguous()
        return x, torch.from_numpy(arrays["activity"][apart]).long(), torch.from_numpy(arrays["subject"][apart]).long()


def images(folder: Path, task: str, seed: int, most: int | None = None) -> Split:
    """MNIST or CIFAR-10: uint8 [n, C, H, W]. A tenth of the training images are for validation.

    most: of the training images, and a fifth as many test images."""
    load = {"mnist": _mnist, "cifar10": _cifar10}[task]
    x, y = load(folder, "train", most)
    test = load(folder, "test", most and max(1, most // 5))
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    held = len(y) // 10
    return Split(Part(x, y)[order[held:]], Part(x, y)[order[:held]], Part(*test))


def _there(folder: Path, name: str) -> Path:
    path = folder / FILES[name]
    if not path.exists():
        raise SystemExit(f"accuracy_sharing: {path} is missing; --data DIR needs {FILES[name]} for this task")
    return path


def _mnist(folder: Path, split: str, most: int | None) -> tuple[Tensor, Tensor]:
    """The four IDX files, uncompressed."""
    prefix = _there(folder, "mnist") / ("train" if split == "train" else "t10k")
    pixels = np.fromfile(f"{prefix}-images-idx3-ubyte", np.uint8)[16:].reshape(-1, 1, 28, 28)
    labels = np.fromfile(f"{prefix}-labels-idx1-ubyte", np.uint8)[8:]
    return torch.from_numpy(pixels[:most]), torch.from_numpy(labels[:most]).long()


def _cifar10(folder: Path, split: str, most: int | None) -> tuple[Tensor, Tensor]:
    """train.npz, test.npz: `blob`, all JPEG files end to end; `offsets` of each; `labels`."""
    from PIL import Image

    with np.load(_there(folder, "cifar10") / f"{split}.npz") as arrays:
        blob, offsets, labels = arrays["blob"].tobytes(), arrays["offsets"], arrays["labels"][:most]
    pixels = np.stack([np.asarray(Image.open(io.BytesIO(blob[a:b])).convert("RGB"))
                       for a, b in pairwise(offsets[:len(labels) + 1])])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels).long()
