"""OTTT's VGG (online training through time) for SpikingJelly's `activation_based`: nodes that hand on a trace beside
their spikes, weight-standardised convolutions, and a backward pass in every step.
"""
import torch.nn as nn
from spikingjelly.activation_based import layer, neuron, surrogate

__all__ = ["OnlineVGG"]


class Scale(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def forward(self, x):
        return x * self.scale


class OnlineVGG(nn.Module):
    def __init__(self, cfg=(16, "M", 32, "M", 32), num_classes=10):
        super().__init__()
        layers, in_channels = [], 3
        for v in cfg:
            if v == "M":
                layers += [layer.AvgPool2d(kernel_size=2, stride=2)]
            else:
                layers += [layer.WSConv2d(in_channels, v, kernel_size=3, padding=1),
                           neuron.OTTTLIFNode(tau=2.0, decay_input=False, v_threshold=1.0, v_reset=None,
                                              surrogate_function=surrogate.Sigmoid(alpha=4.0), detach_reset=True),
                           Scale(2.74)]
                in_channels = v
        self.features = layer.OTTTSequential(*layers)
        self.avgpool = layer.AdaptiveAvgPool2d((1, 1))
        self.classifier = layer.OTTTSequential(layer.Flatten(), layer.Linear(in_channels, num_classes))

    def forward(self, x):
        x = self.features(x)
        x = layer.OTTTSequential(self.avgpool)(x)
        x = self.classifier(x)
        return x[0] if isinstance(x, list) else x
