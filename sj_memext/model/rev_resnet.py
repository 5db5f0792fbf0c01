"""RevSResNet-21 and -37: spiking ResNets of reversible blocks (Zhang and Zhang 2024)."""
from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from shared_core.errors import MemextError

from .._host import layer, neuron, surrogate
from ..layer import ReversibleBlock, ReversibleSequence
from ._rev import Invertible, Neurons, conv_norm, finished, over_time

__all__ = ["RevSpikingResNet", "rev_spiking_resnet21", "rev_spiking_resnet37"]

PLANES = (64, 128, 256, 448)  # channels of one half of the stream, stage by stage


class RevSpikingResNet(Invertible):
    """stem: convolution and norm, for a still image once; stages: a reversible sequence each, with `down` between them;
    neuron, mean over height and width, linear layer.

    F and G are each neuron, convolution, norm, neuron, convolution, norm on half the channels.
    """

    def __init__(self, blocks: Sequence[int], planes: Sequence[int], num_classes: int, in_channels: int, steps: int,
                 neurons: Neurons, options: dict):
        super().__init__()
        self.steps = steps
        self.stem = nn.Sequential(*conv_norm(in_channels, 2 * planes[0]))
        self.stages, self.downs = nn.ModuleList(), nn.ModuleList()
        for i, (count, half) in enumerate(zip(blocks, planes)):
            if i:
                self.downs.append(nn.Sequential(neurons(), layer.AvgPool2d(3, 2, 1),
                                                *conv_norm(2 * planes[i - 1], 2 * half, 1)))
            self.stages.append(ReversibleSequence(
                [ReversibleBlock(self._branch(half, neurons), self._branch(half, neurons)) for _ in range(count)],
                **options))
        self.neuron = neurons()
        self.pool = layer.AdaptiveAvgPool2d(1)
        self.flatten = layer.Flatten()
        self.head = layer.Linear(2 * planes[-1], num_classes)

    @staticmethod
    def _branch(width: int, neurons: Neurons) -> nn.Module:
        return nn.Sequential(neurons(), *conv_norm(width, width), neurons(), *conv_norm(width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages[0](over_time(self.stem, x, self.steps))
        for down, stage in zip(self.downs, self.stages[1:]):
            x = stage(down(x))
        return self.head(self.flatten(self.pool(self.neuron(x))))


def rev_spiking_resnet21(num_classes: int = 10, in_channels: int = 3, T: int = 4, **options) -> RevSpikingResNet:
    """RevSResNet-21: [T, N, in_channels, H, W], or images [N, in_channels, H, W] shown T times -> [T, N, num_classes];
    class scores are the mean over T. 10,967,690 parameters with 10 classes, 11,048,420 with 100 (the paper's 11.05 M).

    options: planes: channels of half the stream in the four stages. spiking_neuron, and options for it: class of every
    neuron; default: IFNode with hard reset, ATan and a detached reset, as the authors'. grid, carry_state, reversible,
    check: of ReversibleSequence.
    Differs from the authors' code: sums are exact (see shared_core.reversible.coupling); norms count a step once.
    """
    return _build("rev_spiking_resnet21", (1, 1, 1, 1), num_classes, in_channels, T, **options)


def rev_spiking_resnet37(num_classes: int = 10, in_channels: int = 3, T: int = 4, **options) -> RevSpikingResNet:
    """RevSResNet-37: as rev_spiking_resnet21. 23,510,154 parameters with 10 classes, 23,590,884 with 100."""
    return _build("rev_spiking_resnet37", (1, 2, 3, 2), num_classes, in_channels, T, **options)


def _build(name: str, blocks: Sequence[int], num_classes: int, in_channels: int, steps: int, *,
           planes: Sequence[int] = PLANES, spiking_neuron: Callable[..., nn.Module] | None = None,
           grid: float | None = 2**-14, carry_state: bool | None = None, reversible: bool = True, check: bool = True,
           **kwargs) -> RevSpikingResNet:
    counts = {"num_classes": num_classes, "in_channels": in_channels, "T": steps,
              **{f"planes[{i}]": c for i, c in enumerate(planes)}}
    for what, value in counts.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise MemextError(f"{name}: {what} is {value!r}; a positive whole number is needed")
    if len(planes) != len(blocks):
        raise MemextError(f"{name}: planes has {len(planes)} entries; one for each of {len(blocks)} stages is needed")
    neurons = Neurons(spiking_neuron, neuron.IFNode, {"surrogate_function": surrogate.ATan(), "detach_reset": True},
                      kwargs)
    options = {"grid": grid, "carry_state": carry_state, "reversible": reversible, "check": check}
    return finished(RevSpikingResNet(blocks, planes, num_classes, in_channels, steps, neurons, options))
