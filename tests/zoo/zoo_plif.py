"""A PLIF net as the repository of the learnable membrane time constant writes it: single steps, time looped in
forward, the static convolution outside of the loop, firing rates as the output.
"""
import torch.nn as nn
from spikingjelly.clock_driven import layer, neuron, surrogate

__all__ = ["NeuromorphicNet", "StaticNet"]


def create_conv_sequential(in_channels, out_channels, number_layer, init_tau):
    conv = []
    for i in range(number_layer):
        conv += [nn.Conv2d(in_channels if i == 0 else out_channels, out_channels, 3, padding=1, bias=False),
                 nn.BatchNorm2d(out_channels),
                 neuron.ParametricLIFNode(init_tau=init_tau, surrogate_function=surrogate.ATan(), detach_reset=True),
                 nn.MaxPool2d(2, 2)]
    return nn.Sequential(*conv)


def create_fc(in_features, num_classes, init_tau):
    return nn.Sequential(
        nn.Flatten(), layer.Dropout(0.5), nn.Linear(in_features, 64, bias=False),
        neuron.ParametricLIFNode(init_tau=init_tau, surrogate_function=surrogate.ATan(), detach_reset=True),
        layer.Dropout(0.5), nn.Linear(64, num_classes * 10, bias=False),
        neuron.ParametricLIFNode(init_tau=init_tau, surrogate_function=surrogate.ATan(), detach_reset=True))


class StaticNet(nn.Module):
    def __init__(self, T=4, init_tau=2.0, channels=16, number_layer=2, num_classes=10, size=16):
        super().__init__()
        self.T = T
        self.static_conv = nn.Sequential(nn.Conv2d(3, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels))
        self.conv = nn.Sequential(
            neuron.ParametricLIFNode(init_tau=init_tau, surrogate_function=surrogate.ATan(), detach_reset=True),
            nn.MaxPool2d(2, 2), create_conv_sequential(channels, channels, number_layer - 1, init_tau))
        self.fc = create_fc(channels * (size // 2 ** number_layer) ** 2, num_classes, init_tau)
        self.boost = nn.AvgPool1d(10, 10)

    def forward(self, x):
        x = self.static_conv(x)
        out_spikes_counter = self.boost(self.fc(self.conv(x)).unsqueeze(1)).squeeze(1)
        for _ in range(1, self.T):
            out_spikes_counter += self.boost(self.fc(self.conv(x)).unsqueeze(1)).squeeze(1)
        return out_spikes_counter / self.T


class NeuromorphicNet(nn.Module):
    def __init__(self, init_tau=2.0, channels=16, number_layer=2, num_classes=10, size=16):
        super().__init__()
        self.conv = create_conv_sequential(2, channels, number_layer, init_tau)
        self.fc = create_fc(channels * (size // 2 ** number_layer) ** 2, num_classes, init_tau)
        self.boost = nn.AvgPool1d(10, 10)

    def forward(self, x):
        x = x.permute(1, 0, 2, 3, 4)  # [T, N, 2, H, W]
        out_spikes_counter = self.boost(self.fc(self.conv(x[0])).unsqueeze(1)).squeeze(1)
        for t in range(1, x.shape[0]):
            out_spikes_counter += self.boost(self.fc(self.conv(x[t])).unsqueeze(1)).squeeze(1)
        return out_spikes_counter / x.shape[0]
