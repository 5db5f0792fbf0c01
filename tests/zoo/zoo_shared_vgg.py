"""A VGG as EfficientLIF-Net's repository writes it: time is a loop in forward, and one neuron object serves several
layers, one after the other in every step, so that they share its membrane.
"""
import torch.nn as nn
from spikingjelly.clock_driven import neuron, surrogate

__all__ = ["SNN_VGG_layershare"]


class SNN_VGG_layershare(nn.Module):
    def __init__(self, total_timestep=4, leak=0.75, threshold=1.0, width=16, num_class=10):
        super().__init__()
        self.total_timestep = total_timestep
        tau = 1.0 / leak
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.lif1 = neuron.LIFNode(v_threshold=threshold, v_reset=0.0, tau=tau,
                                   surrogate_function=surrogate.ATan(), detach_reset=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.lif2 = neuron.LIFNode(v_threshold=threshold, v_reset=0.0, tau=tau,
                                   surrogate_function=surrogate.ATan(), detach_reset=True)
        self.pool1 = nn.AvgPool2d(kernel_size=2)
        self.conv3 = nn.Conv2d(width, 2 * width, 3, 1, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(2 * width)
        self.conv4 = nn.Conv2d(2 * width, 2 * width, 3, 1, 1, bias=False)
        self.bn4 = nn.BatchNorm2d(2 * width)
        self.lif3 = neuron.LIFNode(v_threshold=threshold, v_reset=None, tau=tau,
                                   surrogate_function=surrogate.ATan(), detach_reset=True)
        self.pool2 = nn.AvgPool2d(kernel_size=2)
        self.conv5 = nn.Conv2d(2 * width, 2 * width, 3, 1, 1, bias=False)
        self.bn5 = nn.BatchNorm2d(2 * width)
        self.conv6 = nn.Conv2d(2 * width, 2 * width, 3, 1, 1, bias=False)
        self.bn6 = nn.BatchNorm2d(2 * width)
        self.conv7 = nn.Conv2d(2 * width, 2 * width, 3, 1, 1, bias=False)
        self.bn7 = nn.BatchNorm2d(2 * width)
        self.lif5 = neuron.LIFNode(v_threshold=threshold, v_reset=None, tau=tau,
                                   surrogate_function=surrogate.ATan(), detach_reset=True)
        self.avg = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(2 * width, num_class)

    def forward(self, input):
        u_out = []
        static_x = self.bn1(self.conv1(input))
        for _ in range(self.total_timestep):
            x = self.lif1(static_x)
            x = self.lif2(self.bn2(self.conv2(x)))
            x = self.pool1(x)
            x = self.lif3(self.bn3(self.conv3(x)))
            x = self.lif3(self.bn4(self.conv4(x)))
            x = self.pool2(x)
            x = self.lif5(self.bn5(self.conv5(x)))
            x = self.lif5(self.bn6(self.conv6(x)))
            x = self.lif5(self.bn7(self.conv7(x)))
            x = self.avg(x).flatten(1)
            u_out += self.fc(x),
        return sum(u_out) / self.total_timestep
