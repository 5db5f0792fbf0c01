"""Copies of a model that share its parameters' memory, have gradients of their own, and leave everything else alone."""
from __future__ import annotations

import contextlib
import copy
import io
import random
import sys
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from .._again import put_back
from .._memory_graph import tensors_in
from .._plan_copy import unwrapped

__all__ = ["aside", "copied", "unwrapped"]

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def copied(net: nn.Module) -> nn.Module:
    """Parameters are aliases (same values, own gradients); buffers and states are copies, without a graph; hooks that
    are not Torch's own (monitors of the program) are left out."""
    memo: dict[int, object] = {}
    for module in net.modules():
        for p in module._parameters.values():
            if p is not None and id(p) not in memo:
                memo[id(p)] = nn.Parameter(p.detach(), p.requires_grad)
        for name in _HOOKS:
            hooks = getattr(module, name, None)
            if hooks:
                memo[id(hooks)] = OrderedDict((key, hook) for key, hook in hooks.items()
                                              if type(hook).__module__.startswith("torch."))
        for t in tensors_in([value for name, value in vars(module).items() if name != "_parameters"]):
            if id(t) not in memo and not t.is_leaf:
                memo[id(t)] = t.detach().clone()
    return copy.deepcopy(net, memo)


@contextlib.contextmanager
def aside(device: torch.device, keep: Sequence[nn.Module]) -> Iterator[None]:
    """What runs inside draws no random numbers of the program's, prints nothing, and leaves the states of the modules
    in `keep` as they were (snnTorch resets whole classes of neurons at once)."""
    before = [(module, _plain(module), dict(module._buffers)) for module in keep]
    drawn, numpy = random.getstate(), sys.modules.get("numpy")
    numpy_state = None if numpy is None else numpy.random.get_state()
    devices = [device] if device.type == "cuda" else []
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            random.setstate(drawn)
            if numpy_state is not None:
                numpy.random.set_state(numpy_state)
            for module, attributes, buffers in before:
                put_back(module, attributes, buffers)


def _plain(module: nn.Module) -> dict[str, object]:
    """Its attributes, with SpikingJelly's dictionary of states copied: states are exchanged inside it."""
    kept = dict(module.__dict__)
    if isinstance(kept.get("_memories"), dict):
        kept["_memories"] = dict(kept["_memories"])
    return kept


def device_of(net: nn.Module) -> torch.device:
    return next((t.device for t in (*net.parameters(), *net.buffers())), torch.device("cpu"))


def is_tensor(value) -> bool:
    return isinstance(value, Tensor)
