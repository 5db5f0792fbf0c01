"""T-RevSNN (Hu et al., ICML 2024): spiking networks that are reversible in time.

    net = t_revsnn(num_classes=1000)                                       # the paper's 15.2 M parameters, T = 4
    net = t_revsnn((96, 192, 384, 512))                                    # its 29.8 M
    net = t_revsnn((32, 64, 128, 192), 10, variant="cifar")
    net = t_revsnn((32, 64, 128, 256), 11, T=16, variant="events")         # x_seq [T, N, 2, H, W]
    cross_entropy(net(images), labels).backward()
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shared_core.errors import MemextError
from shared_core.reversible._column_state import TurnedOn
from shared_core.reversible.columns import Columns, window
from shared_core.reversible.coupling import sequences_checked
from shared_core.surrogate import Surrogate

from ..surrogate import from_spikingjelly
from .t_revsnn_parts import Block, EventStage, Stage, coupled_blocks, last_pair, stem

__all__ = ["TRevSNN", "t_revsnn"]


@dataclass(frozen=True)
class Variant:
    """channels of the input; (kernel size, stride) of the stem's convolutions; whether every step has an input."""

    inputs: int
    stem: tuple[tuple[int, int], ...]
    events: bool = False

    @property
    def stride(self) -> int:
        total = 1
        for _, stride in self.stem:
            total *= stride
        return total


VARIANTS = {"imagenet": Variant(3, ((7, 2), (3, 2))), "cifar": Variant(3, ((3, 1), (3, 2))),
            "mnist": Variant(1, ((3, 1), (3, 2))), "events": Variant(2, ((3, 2),), events=True)}
ENCODINGS = ("split", "same")


def t_revsnn(channels: Sequence[int] = (64, 128, 256, 384), num_classes: int = 1000, T: int = 4, *,
             variant: str = "imagenet", in_channels: int | None = None, encoding: str = "split", kernel_size: int = 5,
             v_threshold: float = 0.5, surrogate_function=None, decay: float = 0.5, rezero: float = 1.0,
             coupled: int | None = None, tolerance: float | None = None, reversible: bool = True) -> TRevSNN:
    """A T-RevSNN: T columns (time steps) of len(channels) stages, trained through the last column's output.

    variant: "imagenet" (7x7 and 3x3 stem, stride 4), "cifar" (stride 2), "mnist" (likewise, one input channel), or
        "events" (a 3x3 stem of stride 2 every step, x_seq [T, N, 2, H, W]).  in_channels: of the input; None: the
        variant's.
    encoding: of static images. "split": the stem runs once, and its channels are split into T groups, one a column,
        each repeated to the full width (the paper's text; T must divide channels[0]). "same": every column gets all
        (the published code).
    kernel_size: of the depth-wise convolutions, odd.
    v_threshold, surrogate_function: of all neurons. None: ds/dv = 1 for |v - v_threshold| <= 1/2, as published; or one
        of SpikingJelly's surrogates, or of shared_core.surrogate. The published one makes gradients grow 1.8-fold a
        column and was trained with adaptive gradient clipping, LAMB and auxiliary heads; without these,
        surrogate.ATan(1.0) keeps them level and learns several times faster (docs/design/t_revsnn.md).
    decay: where the learned decays start.  rezero: where the residual scales start.
    coupled: None: two blocks a stage, as published. A number: so many additive couplings (S-RevSNN) in their place,
        reversible in depth, so that a stage's memory does not grow with them either; channels must be even.
    tolerance, reversible: see shared_core.reversible.columns.Columns. reversible=False goes for couplings as well.
    Returns: TRevSNN, in training mode.
    Raises MemextError: an unknown variant or encoding, numbers out of range, T not dividing channels[0].
    """
    if variant not in VARIANTS:
        raise MemextError(f"t_revsnn: variant={variant!r}; allowed: {', '.join(VARIANTS)}")
    if encoding not in ENCODINGS:
        raise MemextError(f"t_revsnn: encoding={encoding!r}; allowed: {', '.join(ENCODINGS)}")
    numbers = {"num_classes": num_classes, "T": T, **{f"channels[{i}]": c for i, c in enumerate(channels)}}
    for name, value in numbers.items():
        if not isinstance(value, int) or value < 1:
            raise MemextError(f"t_revsnn: {name}={value!r}; allowed: a whole number, at least 1")
    if len(channels) < 2:
        raise MemextError(f"t_revsnn: channels={tuple(channels)}; at least two stages are needed")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise MemextError(f"t_revsnn: kernel_size={kernel_size}; allowed: odd numbers")
    if coupled is not None and (not isinstance(coupled, int) or isinstance(coupled, bool) or coupled < 1):
        raise MemextError(f"t_revsnn: coupled={coupled!r}; allowed: None, or a whole number of blocks, at least 1")
    odd = [c for c in channels if c % 2]
    if coupled is not None and odd:
        raise MemextError(f"t_revsnn: channels={tuple(channels)} with coupled={coupled}; {odd[0]} channels cannot be "
                          "split into two halves, even numbers are needed")
    kind = VARIANTS[variant]
    if encoding == "split" and not kind.events and channels[0] % T:
        fit = [t for t in range(1, channels[0] + 1) if channels[0] % t == 0]
        raise MemextError(f"t_revsnn: T={T} does not divide channels[0]={channels[0]}, so the encoded features cannot "
                          f"be split into T groups; allowed: T in {fit}, or encoding='same'")
    if surrogate_function is None:
        surrogate = window()
    else:
        given = isinstance(surrogate_function, Surrogate)
        surrogate = surrogate_function if given else from_spikingjelly(surrogate_function)
    return TRevSNN(tuple(channels), num_classes, T, kind, in_channels or kind.inputs, encoding, kernel_size,
                   TurnedOn(float(v_threshold), surrogate), decay, rezero, coupled, tolerance, reversible)


class TRevSNN(nn.Module):
    """See `t_revsnn`, which checks its arguments. Nothing is carried from one call to the next.

    forward: images [N, C, H, W], or x_seq [T, N, C, H, W] for events -> scores [N, num_classes].
    Raises MemextError: another rank, number of channels or of steps, images smaller than the strides reach.
    """

    def __init__(self, channels: tuple[int, ...], num_classes: int, T: int, kind: Variant, in_channels: int,
                 encoding: str, kernel_size: int, neuron: TurnedOn, decay: float, rezero: float, coupled: int | None,
                 tolerance: float | None, reversible: bool):
        super().__init__()
        self.T, self.kind, self.in_channels, self.encoding = T, kind, in_channels, encoding
        self.strides = [1] + [2] * (len(channels) - 2) + [1]  # the last stage stays at the size of the one before it
        shared = [last_pair(c if coupled is None else c // 2, kernel_size) for c in channels]

        def blocks(i: int) -> nn.Module:
            if coupled is not None:
                return coupled_blocks(channels[i], kernel_size, neuron, coupled, shared[i], reversible)
            return nn.Sequential(Block(channels[i], kernel_size, neuron, rezero),
                                 Block(channels[i], kernel_size, neuron, None, shared[i]))

        columns = [[self._stage(channels, i, t, blocks(i)) for i in range(len(channels))] for t in range(T)]
        if kind.events:
            self.stem = None
            for column in columns:
                column[0] = EventStage(stem(in_channels, channels[0], kind.stem), column[0])
        else:
            self.stem = stem(in_channels, channels[0], kind.stem)
        self.columns = Columns(columns, channels, decay=decay, v_threshold=neuron.v_threshold,
                               surrogate=neuron.surrogate, tolerance=tolerance, reversible=reversible)
        self.head = nn.Linear(channels[-1], num_classes)

    def _stage(self, channels, i: int, t: int, blocks: nn.Module) -> Stage:
        below = channels[i - 1] if i else None
        above = channels[i + 1] if t and i + 1 < len(channels) else None
        return Stage(channels[i], below, above, self.strides[i], blocks)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.columns(self.encode(x))[-1])

    def encode(self, x: Tensor) -> list[Tensor]:
        """What each of the T columns gets: its events, its group of the encoded image, or all of the encoded image."""
        self._check(x)
        if self.stem is None:
            return list(x.unbind(0))
        features = self.stem(x)
        return [features] * self.T if self.encoding == "same" else list(features.chunk(self.T, dim=1))

    def scores(self, v: Tensor) -> Tensor:
        """[N, num_classes] of the last stage's state [N, C, H, W]."""
        return self.head(self.columns.neuron.spike(v).mean((-2, -1)))

    def step(self, t: int, x: Tensor, states: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Events as they arrive: x [N, C, H, W] of step t -> states, for the next call and for `scores(states[-1])`.

        Raises MemextError: not a net for events; see Columns.step.
        """
        if self.stem is not None:
            raise MemextError("TRevSNN.step: this net encodes a whole image at once; call it, or build "
                              "variant='events'")
        return self.columns.step(t, x, states)

    def check_invertible(self, sample: Tensor) -> bool:
        """Are the gradients on this sample those of plain autograd (see Columns.check_invertible), and do the inputs of
        coupled blocks come back bit for bit (see ReversibleSequence.check_invertible)? Leaves nothing behind."""
        with torch.no_grad():
            inputs = self.encode(sample)
        with sequences_checked(self) as reasons:
            return self.columns.check_invertible(inputs) and not reasons

    def report(self) -> dict:
        """Which share of the states is kept, with the decays as they are now. See Columns.report."""
        return self.columns.report()

    def _check(self, x: Tensor) -> None:
        wanted = "x_seq [T, N, C, H, W]" if self.kind.events else "images [N, C, H, W]"
        least = self.kind.stride * 2 ** self.strides.count(2)
        rank = 5 if self.kind.events else 4
        if x.dim() != rank or x.shape[-3] != self.in_channels or (rank == 5 and x.shape[0] != self.T):
            steps = f"T={self.T} and " if self.kind.events else ""
            raise MemextError(f"TRevSNN: got input {tuple(x.shape)}; needed: {wanted} with {steps}C={self.in_channels}")
        if min(x.shape[-2:]) < least:
            raise MemextError(f"TRevSNN: got input {tuple(x.shape)}; its height and width must be at least {least}, "
                              "the stride from the input to the last stage. Use larger images, or another variant")
