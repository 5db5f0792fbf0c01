"""Batch-norm adaptation: running statistics of what the crossbars really give, weights as they are.

"Adapting the moving average and variance of the batch norm layers with respect to noisy activations, while keeping the
learnable parameters or weights frozen" ("Are SNNs Truly Energy-efficient?", Section IV, after Bhattacharjee et al.
2022 and 2023). It needs training images and no labels.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice

import torch
from torch import Tensor, nn

from ..._plan_copy import reset_copy, unwrapped
from ...errors import MemextError

__all__ = ["adapt_batch_norm"]


@torch.no_grad()
def adapt_batch_norm(net: nn.Module, loader: Iterable, *, batches: int | None = None, momentum: float | None = None,
                     run: Callable[[nn.Module, Tensor], object] | None = None) -> nn.Module:
    """Runs training images through `net` and takes over the mean and variance that its batch norms see; returns net.

    loader: batches of input, or of (input, ...): what `run` takes.  batches: how many of them; None: all.
    momentum: None, the statistics are the average over these batches, whatever they were; a number from 0 to 1, each
        batch moves them by this share, as in training.
    run: called as run(net, input); default: net(input). For networks that the caller steps through time or whose input
        is encoded.
    Batch norms use the batch's own statistics meanwhile, as in training; everything else is in evaluation mode. Neurons
    are at rest before each batch and after the last. Nothing but running_mean, running_var and num_batches_tracked
    changes; the modes are then as they were.
    Raises MemextError: no batch norm with running statistics, no batch; the network is then as it was, as it is when
        the network itself raises.
    """
    if not isinstance(net, nn.Module):
        raise MemextError(f"adapt_batch_norm: net is {type(net).__name__}; a torch.nn.Module is needed")
    if momentum is not None and not (isinstance(momentum, int | float) and 0 < momentum <= 1):
        raise MemextError(f"adapt_batch_norm: momentum is {momentum!r}; allowed: None, or a number in (0, 1]")
    if batches is not None and (not isinstance(batches, int) or isinstance(batches, bool) or batches < 1):
        raise MemextError(f"adapt_batch_norm: batches is {batches!r}; allowed: None, or whole numbers from 1 on")
    root = unwrapped(net)
    norms = [m for m in root.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.running_mean is not None]
    if not norms:
        raise MemextError(f"adapt_batch_norm: this {type(root).__name__} has no batch norm with running statistics, so "
                          "there is nothing to adapt")
    modes = [(module, module.training) for module in root.modules()]
    kept = [(m, m.momentum, {name: buffer.clone() for name, buffer in m.named_buffers(recurse=False)}) for m in norms]
    seen = 0
    try:
        net.eval()
        for norm in norms:
            if momentum is None:
                norm.reset_running_stats()
            norm.momentum = momentum  # None: the average over all batches
            norm.train()
        for batch in islice(loader, batches):
            reset_copy(root)
            x = batch[0] if isinstance(batch, list | tuple) else batch
            net(x) if run is None else run(net, x)
            seen += 1
        if not seen:
            raise MemextError("adapt_batch_norm: the loader gave no batch; statistics need at least one")
    except BaseException:
        for norm, _, buffers in kept:
            for name, value in buffers.items():
                getattr(norm, name).copy_(value)
        raise
    finally:
        for norm, was, _ in kept:
            norm.momentum = was
        for module, mode in modes:
            module.training = mode
        reset_copy(root)
    return net
