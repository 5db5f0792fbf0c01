"""Small synthetic images in MNIST's file format, where torchvision looks for them."""
import struct
from pathlib import Path

import numpy as np


def write(root, dataset="MNIST", train=128, test=64):
    """Ten blurred templates with noise; images and labels follow from a fixed seed."""
    random = np.random.default_rng(7)
    templates = random.random((10, 28, 28)) ** 3
    folder = Path(root, dataset, "raw")
    folder.mkdir(parents=True, exist_ok=True)
    for name, count in (("train", train), ("t10k", test)):
        labels = random.integers(0, 10, count).astype(np.uint8)
        images = (255 * np.clip(templates[labels] + 0.1 * random.standard_normal((count, 28, 28)), 0, 1))
        (folder / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 2051, count, 28, 28)
                                                          + images.astype(np.uint8).tobytes())
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels.tobytes())
