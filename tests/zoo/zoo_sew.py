"""SEW-ResNet for SpikingJelly's `activation_based`: layers with a step mode, set once for the whole network."""
import torch.nn as nn
from spikingjelly.activation_based import functional, layer, neuron, surrogate

__all__ = ["ResNetN"]


def conv3x3(in_channels, out_channels):
    return nn.Sequential(layer.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
                         layer.BatchNorm2d(out_channels),
                         neuron.IFNode(surrogate_function=surrogate.ATan(), detach_reset=True))


class SEWBlock(nn.Module):
    def __init__(self, in_channels, mid_channels, connect_f=None):
        super().__init__()
        self.connect_f = connect_f
        self.conv = nn.Sequential(conv3x3(in_channels, mid_channels), conv3x3(mid_channels, in_channels))

    def forward(self, x):
        out = self.conv(x)
        if self.connect_f == "ADD":
            out = out + x
        elif self.connect_f == "AND":
            out = out * x
        elif self.connect_f == "IAND":
            out = x * (1.0 - out)
        else:
            raise NotImplementedError(self.connect_f)
        return out


class ResNetN(nn.Module):
    def __init__(self, channels=16, blocks=(1, 1), num_classes=10, connect_f="ADD"):
        super().__init__()
        conv = [conv3x3(2, channels), layer.MaxPool2d(2, 2)]
        for i, number in enumerate(blocks):
            conv += [SEWBlock(channels, channels, connect_f) for _ in range(number)]
            if i + 1 < len(blocks):
                conv.append(layer.MaxPool2d(2, 2))
        self.conv = nn.Sequential(*conv, layer.AdaptiveAvgPool2d((2, 2)), layer.Flatten())
        self.out = layer.Linear(channels * 4, num_classes)
        functional.set_step_mode(self, step_mode="m")

    def forward(self, x):
        return self.out(self.conv(x)).mean(0)
