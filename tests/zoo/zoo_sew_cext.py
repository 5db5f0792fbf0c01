"""SEW-ResNet as its repository writes it for images: the neurons of `cext`, whose surrogate is named by a string."""
import torch.nn as nn
from spikingjelly.cext import neuron as cext_neuron
from spikingjelly.clock_driven import layer

__all__ = ["ResNetN"]


def conv3x3(in_channels, out_channels):
    return nn.Sequential(
        layer.SeqToANNContainer(nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
                                nn.BatchNorm2d(out_channels)),
        cext_neuron.MultiStepIFNode(detach_reset=True, surrogate_function="ATan", alpha=2.0))


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
        conv = [conv3x3(2, channels), layer.SeqToANNContainer(nn.MaxPool2d(2, 2))]
        for i, number in enumerate(blocks):
            conv += [SEWBlock(channels, channels, connect_f) for _ in range(number)]
            if i + 1 < len(blocks):
                conv.append(layer.SeqToANNContainer(nn.MaxPool2d(2, 2)))
        self.conv = nn.Sequential(*conv, layer.SeqToANNContainer(nn.AdaptiveAvgPool2d((2, 2))), nn.Flatten(2))
        self.out = nn.Linear(channels * 4, num_classes, bias=True)

    def forward(self, x):
        return self.out(self.conv(x)).mean(0)
