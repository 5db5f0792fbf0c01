"""Training the networks of EfficientLIF-Net with and without shared membranes. Used by accuracy_sharing."""
from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from spikingjelly.activation_based import functional, neuron
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

import sj_memext
from benchmarks._sharing_data import LENGTH, Part, Split
from sj_memext import model

__all__ = ["HARD", "LATE", "MULTI_STEP", "OUTERMOST", "SOFT", "TASKS", "VARIANTS", "Setting", "train"]

MULTI_STEP, OUTERMOST = "native, multi-step", "native, time outermost"
# variant: (sharing, the native form that it differs from by sharing alone). [C#2] runs whole sequences layer by layer,
# so batch norm sees whole sequences; with [L] it sees single steps, as where time is outermost.
VARIANTS = {MULTI_STEP: (None, MULTI_STEP), OUTERMOST: (None, OUTERMOST), "[L]": ("L", OUTERMOST),
            "[C#2]": ("C#2", MULTI_STEP), "[L+C#2]": ("L+C#2", OUTERMOST)}
SOFT, HARD = "soft", "hard"
LATE = "not measured: out of time"


@dataclass(frozen=True)
class Setting:
    """steps: T.  widths: of the network.  epochs: None: as many training steps as fit the time that a run has.
    most: training samples to use; None: all."""

    steps: int
    widths: tuple[int, ...]
    epochs: int | None = None
    batch: int = 64
    rate: float = 3e-3
    most: int | None = None


# The paper's widths are 128 for activities, and 128, 128, 256, 512, 512 for VGG16; these are for a CPU.
TASKS = {"activities": Setting(4, (32,), epochs=5, most=4000), "mnist": Setting(4, (8, 16, 32, 32, 32), rate=1e-2),
         "cifar10": Setting(4, (8, 16, 32, 32, 32), rate=1e-2)}


def build(task: str, variant: str, reset: str, setting: Setting, seed: int) -> nn.Module:
    """The network of one variant; all variants of a seed start from the same weights.

    Where time is outermost the whole network is in step mode "s", stepped by a plain loop: the gradient is the same as
    in step mode "m", where the part that shares membranes runs each step again to save memory.
    """
    torch.manual_seed(seed)
    options = {"sharing": VARIANTS[variant][0], "step_mode": "m" if VARIANTS[variant][1] == MULTI_STEP else "s",
               "v_reset": None if reset == SOFT else 0.0}
    if task == "activities":
        net = model.har_net(6, 6, width=setting.widths[0], **options)
    else:
        net = model.vgg16(10, 1 if task == "mnist" else 3, widths=setting.widths, **options)
    return net if options["sharing"] else sj_memext.retrofit(net, "neuron")


def encode(x: Tensor, steps: int) -> Tensor:
    """[T, N, ...]: a window is cut into T pieces; an image is shown T times."""
    if x.dim() == 3:
        return x.unflatten(-1, (steps, LENGTH // steps)).movedim(-2, 0).contiguous()
    return x.expand(steps, *x.shape)


def scores(net: nn.Module, x_seq: Tensor) -> Tensor:
    """[N, classes]: the mean over time. The neurons are at rest before and after."""
    functional.reset_net(net)
    stepped = all(m.step_mode == "s" for m in net.modules() if isinstance(m, neuron.BaseNode))
    found = sum(net(x) for x in x_seq) / len(x_seq) if stepped else net(x_seq).mean(0)
    functional.reset_net(net)
    return found


@torch.no_grad()
def accuracy(net: nn.Module, part: Part, setting: Setting, size: int = 256) -> float:
    net.eval()
    right = sum((scores(net, encode(prepared(x), setting.steps)).argmax(1) == y).sum().item()
                for x, y in (part[i:i + size] for i in range(0, len(part), size)))
    net.train()
    return right / len(part)


@torch.no_grad()
def spike_rate(net: nn.Module, part: Part, setting: Setting) -> float:
    """Share of neurons and time steps that fire, over all layers (Fig. 7)."""
    counts = [0.0, 0]

    def count(module: nn.Module, inputs: tuple, out: Tensor) -> None:
        counts[0] += out.sum().item()
        counts[1] += out.numel()

    hooks = [m.register_forward_hook(count) for m in net.modules() if isinstance(m, neuron.BaseNode)]
    accuracy(net, part[:256], setting)
    for hook in hooks:
        hook.remove()
    return counts[0] / counts[1]


def prepared(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Images as floats around 0; with a generator, moved by up to two pixels (and, in colour, mirrored) at random."""
    if x.dtype != torch.uint8:
        return x
    if generator is not None:
        down, right, mirror = torch.randint(0, 5, (3,), generator=generator).tolist()
        height, width = x.shape[-2:]
        x = pad(x, (2, 2, 2, 2))[..., down:down + height, right:right + width]
        x = x.flip(-1) if x.shape[1] == 3 and mirror > 2 else x
    return x.float() / 127.5 - 1


def batches(part: Part, size: int, total: int, seed: int):
    """`total` batches: in a new random order every epoch, a short last batch of an epoch left out."""
    generator = torch.Generator().manual_seed(seed)
    while total > 0:
        for index in torch.randperm(len(part), generator=generator).split(size):
            if len(index) == min(size, len(part)) and total > 0:
                x, y = part[index]
                yield prepared(x, generator), y
                total -= 1


def train(task: str, variant: str, reset: str, seed: int, split: Split, setting: Setting, total: int,
          late: Callable[[], bool] = lambda: False) -> dict:
    """One run of `total` training steps. Test accuracy is that of the epoch with the best validation accuracy."""
    net = build(task, variant, reset, setting, seed)
    optimizer = torch.optim.Adam(net.parameters(), setting.rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, total)
    per_epoch = max(1, len(split.train) // setting.batch)
    epochs, start, spent = [], time.perf_counter(), 0.0
    for i, (x, y) in enumerate(batches(split.train, setting.batch, total, seed), 1):
        if late():
            return {"failed": LATE}
        begun = time.perf_counter()
        optimizer.zero_grad()
        loss = cross_entropy(scores(net, encode(x, setting.steps)), y)
        loss.backward()
        optimizer.step()
        schedule.step()
        spent += time.perf_counter() - begun
        if i % per_epoch == 0 or i == total:
            epochs.append({"validation": accuracy(net, split.validation, setting),
                           "test": accuracy(net, split.test, setting), "loss": loss.item()})
    best = max(epochs, key=lambda epoch: epoch["validation"])
    return {"accuracy": best["test"], "validation": best["validation"], "epoch": epochs.index(best) + 1,
            "epochs": epochs, "training steps": total, "spike rate": spike_rate(net, split.test, setting),
            "step, ms": spent / total * 1e3, "seconds": time.perf_counter() - start}


def step_seconds(task: str, split: Split, setting: Setting) -> dict[str, float]:
    """Seconds that a training step of each variant takes, here and now: the fastest of three."""
    return {variant: min(train(task, variant, SOFT, 0, Split(split.train, split.validation[:1], split.test[:1]),
                               replace(setting, epochs=None), 1)["step, ms"] for _ in range(3)) / 1e3
            for variant in VARIANTS}
