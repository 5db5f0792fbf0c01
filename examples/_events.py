"""Events of moving digits (examples/data) through tonic: data set, transforms, caches, loaders.

The recordings come as tonic has them: one structured array of events (x, y, t in microseconds, p) each. Everything
after that is tonic's. spikingjelly.datasets, which has classes for events too, is not imported: it needs torchaudio,
and where torchaudio and torch do not fit together the import fails for every data set (docs/design/interop.md).
"""
from __future__ import annotations

from pathlib import Path

import numpy as np
import tonic
import torch
from tonic import transforms
from torch.utils.data import DataLoader

__all__ = ["CHANNELS", "CLASSES", "FILE", "SENSOR", "SIDE", "SaccadeDigits", "cached", "frames", "loader"]

FILE = Path(__file__).parent / "data" / "saccade_digits.npz"
SENSOR = (34, 34, 2)  # width, height, polarities
SIDE, CHANNELS, CLASSES = 17, 2, 10  # of a frame
WINDOW = 10_000  # microseconds: a time step
EVENT = np.dtype([("x", np.int16), ("y", np.int16), ("t", np.int64), ("p", bool)])  # as tonic.io makes them


class SaccadeDigits(tonic.Dataset):
    """1,500 (train) or 500 (test) digits, each moved once over a simulated event sensor.

    digits[i] -> (events [n] of dtype EVENT, sorted by t; label 0 to 9), after transform and target_transform.
    sensor_size: as tonic's transforms want it.  Raises SystemExit if the file is not there.
    """

    sensor_size = SENSOR
    classes = tuple(map(str, range(CLASSES)))

    def __init__(self, train: bool = True, transform=None, target_transform=None, file: Path = FILE):
        super().__init__(str(file.parent), transform, target_transform)
        if not file.exists():
            raise SystemExit(f"{file} is missing; it comes with the repository (see examples/data/README.md)")
        split = "train" if train else "test"
        with np.load(file) as arrays:
            part = {name: arrays[f"{split}_{name}"] for name in ("x", "y", "t", "p", "offsets", "labels")}
        events = np.empty(len(part["x"]), EVENT)
        for name in ("x", "y", "p"):
            events[name] = part[name]
        events["t"] = part["t"].astype(np.int64) * 1000  # the file counts milliseconds
        self.data = np.split(events, part["offsets"][1:-1])
        self.targets = part["labels"].astype(np.int64)

    def __getitem__(self, index: int):
        events, target = self.data[index], int(self.targets[index])
        if self.transform is not None:
            events = self.transform(events)
        if self.target_transform is not None:
            target = self.target_transform(target)
        return events, target

    def __len__(self):
        return len(self.data)


def frames() -> transforms.Compose:
    """Events of the sensor -> int16 [T, 2, 17, 17]: how many came in 10 ms, at half the resolution.

    T is what the recording has: the last event says, so recordings differ by a step or two.
    """
    return transforms.Compose([transforms.Downsample(spatial_factor=SIDE / SENSOR[0]),
                               transforms.ToFrame(sensor_size=(SIDE, SIDE, CHANNELS), time_window=WINDOW)])


def cached(train: bool, where: Path | None, count: int | None = None):
    """The frames of a split behind one of tonic's caches: in memory, or in HDF5 files in the folder `where`.

    count: the first so many only.
    """
    digits = SaccadeDigits(train, transform=frames())
    part = digits if count is None else torch.utils.data.Subset(digits, range(count))
    if where is None:
        return tonic.MemoryCachedDataset(part)
    folder = where / ("train" if train else "test") / f"{WINDOW}us_{SIDE}px"  # another transform: another folder
    return tonic.DiskCachedDataset(part, cache_path=str(folder))


def loader(data, size: int, seed: int | None = None) -> DataLoader:
    """Batches (x_seq float32 [T, N, 2, 17, 17], labels int64 [N]): short recordings end in empty frames.

    seed: of the order, and a short last batch is left out; None: in order, all of them.
    """
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return DataLoader(data, size, shuffle=seed is not None, drop_last=seed is not None, generator=generator,
                      collate_fn=tonic.collation.PadTensors(batch_first=False))
