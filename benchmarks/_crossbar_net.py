"""The small spiking network of crossbar_accuracy: training on MNIST, accuracy, and a folder that keeps its weights."""
from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import sj_memext
from benchmarks._sharing_data import Part, Split

__all__ = ["T", "accuracy", "batches", "build", "run", "trained"]

T = 4
WIDTHS = (16, 32, 64)
RATE, BATCH = 3e-3, 64


def build(widths: tuple[int, ...] = WIDTHS) -> nn.Module:
    """Three times convolution, batch norm, LIF and pooling, then a linear layer: 28 x 28 pixels to 10 scores."""
    parts: list[nn.Module] = []
    for inputs, outputs in zip((1, *widths), widths):
        parts += [layer.Conv2d(inputs, outputs, 3, padding=1, bias=False), layer.BatchNorm2d(outputs),
                  neuron.LIFNode(surrogate_function=surrogate.ATan()), layer.MaxPool2d(2)]
    net = nn.Sequential(*parts, layer.Flatten(), layer.Linear(widths[-1] * 9, 10))
    functional.set_step_mode(net, "m")
    return sj_memext.retrofit(net, "neuron")


def run(net: nn.Module, images: Tensor) -> Tensor:
    """Scores [N, 10]: the image is shown T times (direct encoding), the output is averaged."""
    functional.reset_net(net)
    scores = net((images.float() / 255).expand(T, *images.shape)).mean(0)
    functional.reset_net(net)
    return scores


def batches(part: Part, size: int = BATCH) -> Iterator[Tensor]:
    """Images in the order in which they are, for adapt_batch_norm."""
    return (part.x[i:i + size] for i in range(0, len(part), size))


@torch.no_grad()
def accuracy(net: nn.Module, part: Part, size: int = 100) -> float:
    net.eval()
    right = sum((run(net, x).argmax(1) == y).sum().item()
                for x, y in (part[i:i + size] for i in range(0, len(part), size)))
    return right / len(part)


def trained(split: Split, seed: int, epochs: int, widths: tuple[int, ...] = WIDTHS) -> tuple[nn.Module, float | None]:
    """A trained network, and the seconds that took: None where its weights were in the folder already."""
    torch.manual_seed(seed)
    net = build(widths)
    folder = Path(os.environ.get("MEMEXT_CACHE") or Path(tempfile.gettempdir()) / "memext_crossbar")
    kept = folder / f"mnist_{'_'.join(map(str, widths))}_{len(split.train)}x{epochs}_seed{seed}.pt"
    if kept.exists():
        net.load_state_dict(torch.load(kept))
        return net.eval(), None
    start = time.perf_counter()
    _train(net, split.train, seed, epochs)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(net.state_dict(), kept)
    return net.eval(), time.perf_counter() - start


def _train(net: nn.Module, part: Part, seed: int, epochs: int) -> None:
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * max(1, len(part) // BATCH))
    generator = torch.Generator().manual_seed(seed)
    net.train()
    for _ in range(epochs):
        for index in torch.randperm(len(part), generator=generator).split(BATCH):
            if len(index) < min(BATCH, len(part)):
                continue  # batch norm wants whole batches
            x, y = part[index]
            optimizer.zero_grad()
            cross_entropy(run(net, x), y).backward()
            optimizer.step()
            schedule.step()
