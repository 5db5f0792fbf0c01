"""spikingjelly.clock_driven.model.spiking_resnet; see model.py."""
from .model import SPIKING_RESNET

globals().update(SPIKING_RESNET)
__all__ = list(SPIKING_RESNET)
