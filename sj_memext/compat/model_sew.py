"""spikingjelly.clock_driven.model.sew_resnet; see model.py."""
from .model import SEW_RESNET

globals().update(SEW_RESNET)
__all__ = list(SEW_RESNET)
