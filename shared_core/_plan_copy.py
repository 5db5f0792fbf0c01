"""A model without memory: the same modules, every tensor with its shape, dtype and strides, and no values behind it."""
from __future__ import annotations

import copy
import sys

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ._memory_graph import tensors_in
from .errors import MemextError

__all__ = ["fake_copy", "fake_like", "framework_reset", "remembers_shapes", "reset_copy", "unwrapped"]

# What sets the states of a model's neurons back, by the framework's own function; the module is used only if loaded.
_RESETS = (("spikingjelly.activation_based.functional", "reset_net"), ("snntorch.utils", "reset"))


def framework_reset(model: nn.Module) -> None:
    """Clears neuron states the way the model's own framework does, if it has been imported."""
    for module_name, function in _RESETS:
        framework = sys.modules.get(module_name)
        if framework is not None:
            getattr(framework, function)(model)


def reset_copy(model: nn.Module) -> None:
    """As framework_reset, for a fake copy.

    snnTorch's reset goes through a list of all neurons ever built, the user's own among them, and not through the
    model; a copy is not in that list. So each neuron is asked by itself.
    """
    spikingjelly, function = _RESETS[0]
    if spikingjelly in sys.modules:
        getattr(sys.modules[spikingjelly], function)(model)
    for module in _of_snntorch(model):
        module.reset_mem()


def remembers_shapes(model: nn.Module) -> bool:
    """Does a reset leave states that are as large as those of the step before, so that the first step is not like the
    others? snnTorch's neurons go back to zeros of their last shape; SpikingJelly's to a number."""
    return bool(_of_snntorch(model))


def _of_snntorch(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules()
            if hasattr(m, "reset_mem") and any(cls.__module__.startswith("snntorch") for cls in type(m).__mro__)]


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module inside torch.compile and DistributedDataParallel."""
    while True:
        inner = "_orig_mod" if "_orig_mod" in model._modules else "module" if _is_wrapper(model) else None
        if inner is None:
            return model
        model = model._modules[inner]


def _is_wrapper(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.") and list(module._modules) == ["module"]


def fake_like(t: Tensor, device: str) -> Tensor:
    """t without its memory. To be called under a FakeTensorMode, or with device "meta".

    One number that is no parameter keeps its value where it has one, so that code may ask for it (`.item()`).
    """
    if t.layout is not torch.strided:
        raise MemextError(f"a tensor of the model has layout {t.layout}; only dense tensors are planned")
    if isinstance(t, nn.Parameter):
        made = nn.Parameter(torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device=device), t.requires_grad)
        made.__dict__.update(vars(t))
        return made
    if t.numel() == 1 and device == "cpu" and not t.is_meta and not isinstance(t, FakeTensor):
        return torch.tensor(t.tolist(), dtype=t.dtype)
    return torch.empty_strided(t.size(), t.stride(), dtype=t.dtype, device=device).requires_grad_(t.requires_grad)


def fake_copy(model: nn.Module, device: str) -> nn.Module:
    """A copy that shares no tensor with `model` and needs no memory; modules and tensors used twice stay one.

    Raises MemextError: the model cannot be copied.
    """
    memo: dict[int, object] = {}
    for module in model.modules():
        for t in tensors_in([*vars(module).values(), *_of_hooks(module)]):  # parameters, buffers, states, tables, masks
            if id(t) not in memo:
                memo[id(t)] = fake_like(t if t.is_leaf else t.detach(), device)
    try:
        return copy.deepcopy(model, memo)
    except Exception as problem:
        raise MemextError(f"this {type(model).__name__} cannot be copied ({type(problem).__name__}: {problem}); "
                          "copy.deepcopy(model) has to work; do this before hooks or handles that cannot be copied are "
                          "attached") from problem


def _of_hooks(module: nn.Module) -> list[dict]:
    """Attributes of hooks that are objects, as the masks of torch.nn.utils.prune."""
    hooks = [hook for held in (module._forward_pre_hooks, module._forward_hooks) for hook in held.values()]
    return [dict(vars(hook)) for hook in hooks if hasattr(hook, "__dict__") and not isinstance(hook, nn.Module)]
