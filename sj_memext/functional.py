"""Going through time step by step with SpikingJelly networks in step mode "s", in little memory.

    y_seq = multi_step_forward(x_seq, net)                      # exact gradients; spikes kept as bits, states rebuilt
    y_seq, loss = online_train_step(net, x_seq, loss_fn)        # SLTT: memory independent of T
"""
from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from shared_core.temporal import online_train_step, unroll

__all__ = ["multi_step_forward", "online_train_step"]


def multi_step_forward(x_seq: Tensor, single_step_module: nn.Module | Callable | Sequence[Callable],
                       method: str = "reverse", **options):
    """As spikingjelly's functional.multi_step_forward, with less kept for the backward pass.

    x_seq: [T, *].  single_step_module: a module in step mode "s", a function, or several, called one after the other.
    method, options: see shared_core.temporal.unroll.
    Returns [T, *], or a tuple of them where the module returns a tuple. Raises MemextError: as unroll, and for modules
    in step mode "m".
    """
    if isinstance(single_step_module, list | tuple):
        parts = single_step_module
        if all(isinstance(part, nn.Module) for part in parts):
            single_step_module = nn.Sequential(*parts)
        else:
            def single_step_module(x):
                for part in parts:
                    x = part(x)
                return x
    return unroll(single_step_module, x_seq, method, **options)
