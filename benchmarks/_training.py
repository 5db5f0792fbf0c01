"""The ways to train a network that the benchmarks compare, and one training step.

native       SpikingJelly as it is
ours         every method of sj_memext.retrofit, once per `prefer` where it has that; not "auto", which picks one
memopt 1-4   SpikingJelly's memopt.optimize_memory at that level, keeping as bits the block inputs that its probe finds
             binary. Levels 2 to 4 search on a CUDA device.
memopt 1 + stem  likewise, where most of the memory is in a stem that SpikingJelly's own builder leaves out
checkpoint   torch.utils.checkpoint per block, stem included, set up so that it is right (see `checkpoint_blocks`)
"""
from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable, Iterator, Mapping

import torch
from spikingjelly.activation_based import functional, memopt, neuron
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

import sj_memext
from benchmarks._networks import Network
from shared_core._plan_methods import keeps_network
from sj_memext.retrofit import METHODS

NATIVE, CHECKPOINT = "native", "checkpoint"
MEMOPT = tuple(f"memopt {level}" for level in (1, 2, 3, 4))
MEMOPT_STEM = "memopt 1 + stem"
PREFER = ("balanced", "memory", "speed")


def ours(methods: Mapping[str, Callable]) -> dict[str, tuple[str, dict[str, str]]]:
    """Name of each rival -> what it passes to retrofit."""
    found = {}
    for method, function in methods.items():
        options = inspect.signature(function).parameters
        if method == "auto" or not keeps_network(method, function):
            continue
        if "prefer" in options:
            found |= {f"{method} {prefer}": (method, {"prefer": prefer}) for prefer in PREFER}
        else:
            found[method] = method, {}
    return found


_RETROFIT = ours(METHODS)
OURS = tuple(_RETROFIT)


def rivals(network: Network) -> tuple[str, ...]:
    """All but memopt's levels 2 to 4, native first."""
    return NATIVE, *OURS, MEMOPT[0], *([MEMOPT_STEM] if network.stem else []), CHECKPOINT


class OutOfTime(RuntimeError):
    """A search that has had its share."""


def _can_chunk(module: nn.Module) -> bool:
    return isinstance(module, (nn.Conv1d, nn.Conv2d, neuron.BaseNode))


def checkpoint_blocks(net: nn.Module, blocks: tuple[type, ...]) -> None:
    """Every outermost module of these classes keeps its input and runs again in the backward.

    A plain checkpoint around SpikingJelly's neurons gives wrong gradients without an error: the second run would start
    from the state that the first one left. So a block resets its neurons itself before either run (a step starts from
    reset neurons, so nothing is lost), and again after the second, whose states would keep the rebuilt graph. The
    second run must also leave the running statistics of batch norm alone: they have moved once.
    """
    def enter(module: nn.Module) -> None:
        if isinstance(module, blocks):
            module.forward = _checkpointed(module)
        else:
            for child in module.children():
                enter(child)

    enter(net)


def _checkpointed(block: nn.Module) -> Callable[[Tensor], Tensor]:
    plain = block.forward
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]

    def run(x: Tensor) -> Tensor:
        functional.reset_net(block)
        return plain(x)

    @contextlib.contextmanager
    def again() -> Iterator[None]:
        kept = [(norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
        for norm in norms:
            norm.momentum = 0.0
        try:
            yield
        finally:
            for norm, (momentum, batches) in zip(norms, kept):
                norm.momentum = momentum
                norm.num_batches_tracked.copy_(batches)
            functional.reset_net(block)

    return lambda x: checkpoint(run, x, use_reentrant=False, context_fn=lambda: (contextlib.nullcontext(), again()))


class Training:
    """A network under one method, on a device, with its batch and optimizer; `step()` is one training step.

    momentum: of SGD; 0 for no optimizer state at all.  search_s: for memopt's search.
    """

    def __init__(self, network: Network, method: str, device: torch.device | str = "cpu", autocast: bool = False,
                 search_s: float = 30.0, momentum: float = 0.9):
        torch.manual_seed(0)  # the same weights and batch for every method
        device = torch.device(device)
        self.network, self.autocast, self.device = network, autocast, device
        with device:
            self.net = network.build()
        images = torch.randn(network.shape[1:], device=device)
        self.x = images.unsqueeze(0).repeat(network.shape[0], 1, 1, 1, 1)
        self.labels = torch.randint(network.classes, (network.shape[1],), device=device)
        self.search = 0.0
        if method in _RETROFIT:
            name, options = _RETROFIT[method]
            sj_memext.retrofit(self.net, name, **options)
        elif method in MEMOPT:
            self._memopt(int(method[-1]), network.blocks, search_s)
        elif method == MEMOPT_STEM:
            self._memopt(1, network.blocks + network.stem, search_s)
        elif method == CHECKPOINT:
            checkpoint_blocks(self.net, network.blocks + network.stem)
        elif method != NATIVE:
            raise ValueError(f"method {method!r}; allowed: {(NATIVE, *OURS, *MEMOPT, MEMOPT_STEM, CHECKPOINT)}")
        self.optimizer = torch.optim.SGD(self.net.parameters(), lr=1e-3, momentum=momentum)

    def _memopt(self, level: int, blocks: tuple[type, ...], search_s: float) -> None:
        start = time.monotonic()

        def forward(net):
            if time.monotonic() - start > search_s:
                raise OutOfTime(f"its search took more than {search_s:.0f} s")
            functional.reset_net(net)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                out = net(self.x)
            functional.reset_net(net)
            return out

        memopt.optimize_memory(self.net, blocks, forward, level=level, compress=True,
                               split_fn=self.network.split, can_chunk=_can_chunk)
        functional.invalidate_reset_cache(self.net)
        self.search = time.monotonic() - start

    def loss_and_gradients(self) -> Tensor:
        functional.reset_net(self.net)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss = cross_entropy(self.net(self.x).mean(0).float(), self.labels)
        loss.backward()
        return loss.detach()

    def step(self) -> None:
        self.loss_and_gradients()
        self.optimizer.step()
        functional.reset_net(self.net)

    def rest(self) -> None:
        """Between steps: no gradients, no states."""
        self.optimizer.zero_grad(set_to_none=True)
        functional.reset_net(self.net)


def first_step(training: Training) -> tuple[float, list[Tensor]]:
    """Loss and gradients, with the same dropout for every method."""
    torch.manual_seed(1)
    loss = training.loss_and_gradients().item()
    return loss, [p.grad.detach() for p in training.net.parameters() if p.grad is not None]


def distance(gradients: list[Tensor], wanted: list[Tensor]) -> float | None:
    """Norm-relative difference of all gradients together; None if there is nothing to compare."""
    if len(gradients) != len(wanted) or any(a.shape != b.shape for a, b in zip(gradients, wanted)):
        return None
    off = sum((a.double() - b.to(a.device).double()).square().sum().item() for a, b in zip(gradients, wanted))
    size = sum(b.double().square().sum().item() for b in wanted)
    return (off / size) ** 0.5 if size else None
