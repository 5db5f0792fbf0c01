"""What the benchmarks of T-RevSNN train on: digits, photographs and events, read from a folder of data.

    DIR/MNIST/raw/                the four standard files, uncompressed
    DIR/cifar10_jpeg/             train.npz, test.npz: JPEG files end to end (blob, offsets, labels)
    DIR/mnist_saccade_events/     train.npz, test.npz: events (x, y, t in us, p), offsets, labels; 34 x 34
"""
from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from torch import Tensor

SIZE = 34  # of the events' sensor


@dataclass
class Split:
    """x: uint8 [n, C, H, W], or [n, T, 2, H, W] of event counts.  labels: int64 [n]."""

    x: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


def mnist(folder: Path, split: str, limit: int | None, steps: int) -> Split:
    start = folder / "MNIST" / "raw" / ("train" if split == "train" else "t10k")
    images = numpy.fromfile(f"{start}-images-idx3-ubyte", numpy.uint8)[16:].reshape(-1, 1, 28, 28)[:limit]
    labels = numpy.fromfile(f"{start}-labels-idx1-ubyte", numpy.uint8)[8:][:limit]
    return Split(torch.from_numpy(images), torch.from_numpy(labels).long())


def cifar10(folder: Path, split: str, limit: int | None, steps: int) -> Split:
    from PIL import Image

    with numpy.load(folder / "cifar10_jpeg" / f"{split}.npz") as stored:
        blob, offsets, labels = stored["blob"].tobytes(), stored["offsets"], stored["labels"][:limit]
    images = numpy.stack([numpy.asarray(Image.open(io.BytesIO(blob[offsets[i]:offsets[i + 1]])).convert("RGB"))
                          for i in range(len(labels))])
    return Split(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels).long())


def events(folder: Path, split: str, limit: int | None, steps: int) -> Split:
    """Counts of events in `steps` equal time bins, by tonic's ToFrame; the first bin is the first step."""
    import tonic

    with numpy.load(folder / "mnist_saccade_events" / f"{split}.npz") as stored:
        found, offsets, labels = stored["events"], stored["offsets"], stored["labels"][:limit]
    recording = numpy.empty(len(found), tonic.io.events_struct)
    for name in ("x", "y", "t", "p"):
        recording[name] = found[name]
    frames = tonic.transforms.ToFrame(sensor_size=(SIZE, SIZE, 2), n_time_bins=steps)
    x = numpy.stack([frames(recording[offsets[i]:offsets[i + 1]]) for i in range(len(labels))])
    return Split(torch.from_numpy(x.clip(0, 255).astype(numpy.uint8)), torch.from_numpy(labels).long())


@dataclass(frozen=True)
class Task:
    """read(folder, split, limit, T) -> Split.  The rest: of the network and of its training."""

    read: Callable[[Path, str, int | None, int], Split]
    variant: str
    channels: tuple[int, ...]
    T: int
    mean: float
    std: float
    epochs: float
    shift: int = 0
    flip: bool = False

    def batch(self, split: Split, at: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """(x as the network takes it, labels); shifted and flipped at random where a generator is given."""
        x = (split.x[at].float() / (1 if split.x.dim() == 5 else 255) - self.mean) / self.std
        if generator is not None and self.shift:
            x = self._shifted(x, generator)
        if generator is not None and self.flip:
            turn = torch.rand(len(x), generator=generator) < 0.5
            x = torch.where(turn.view(-1, 1, 1, 1), x.flip(-1), x)
        if x.dim() == 5:
            return x.transpose(0, 1), split.labels[at]
        return x.contiguous(memory_format=torch.channels_last), split.labels[at]

    def _shifted(self, x: Tensor, generator: torch.Generator) -> Tensor:
        edge = self.shift
        padded = torch.nn.functional.pad(x, (edge,) * 4, value=-self.mean / self.std)
        at = torch.randint(0, 2 * edge + 1, (len(x), 2), generator=generator).tolist()
        height, width = x.shape[-2:]
        return torch.stack([p[..., i:i + height, j:j + width] for p, (i, j) in zip(padded, at)])


TASKS = {
    "mnist": Task(mnist, "mnist", (8, 16, 32, 48), 4, 0.13, 0.31, 2.0),
    "cifar10": Task(cifar10, "cifar", (16, 32, 48, 64), 4, 0.47, 0.25, 2.0, shift=2, flip=True),
    "events": Task(events, "events", (8, 16, 32, 48), 6, 0.0, 1.0, 12.0),
}


def batches(split: Split, size: int, epochs: float, seed: int) -> Iterator[tuple[Tensor, torch.Generator]]:
    """Indices of each batch, in a new order every epoch, until `epochs` of the data have been seen."""
    generator = torch.Generator().manual_seed(seed)
    left = int(epochs * len(split)) // size
    while left > 0:
        for at in torch.randperm(len(split), generator=generator).split(size)[:len(split) // size][:left]:
            yield at, generator
        left -= len(split) // size
