"""Networks of the papers for SpikingJelly, in step mode "m" unless asked otherwise.

_efficient_lif.py   EfficientLIF-Net: options that all of its networks take, the paper's neuron, what shares a membrane
vgg.py              vgg16
resnet.py           resnet19
activity.py         har_net: six 1-D convolutions for human activity recognition
rev_resnet.py       rev_spiking_resnet21, rev_spiking_resnet37: memory that does not grow with depth (S-RevSNN)
rev_spikformer.py   rev_spikformer: likewise
t_revsnn_net.py     t_revsnn: memory that does not grow with T (T-RevSNN)

Like those of spikingjelly.activation_based.model they take a neuron class and its options:

    net = model.resnet19(num_classes=10)                                         # the paper's LIF
    net = model.resnet19(num_classes=10, sharing="L+C#2")                        # EfficientLIF-Net
    net = model.resnet19(num_classes=10, spiking_neuron=neuron.IFNode, surrogate_function=surrogate.Sigmoid())
"""
from .activity import HARNet, har_net
from .resnet import ResNet19, resnet19
from .rev_resnet import RevSpikingResNet, rev_spiking_resnet21, rev_spiking_resnet37
from .rev_spikformer import RevSpikformer, rev_spikformer
from .t_revsnn_net import TRevSNN, t_revsnn
from .vgg import VGG16, vgg16

__all__ = ["VGG16", "HARNet", "ResNet19", "RevSpikformer", "RevSpikingResNet", "TRevSNN", "har_net", "resnet19",
           "rev_spikformer", "rev_spiking_resnet21", "rev_spiking_resnet37", "t_revsnn", "vgg16"]
