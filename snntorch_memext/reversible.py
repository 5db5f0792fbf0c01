"""RevSNN's reversible neuron for snnTorch ("Towards Zero Memory Footprint SNN Training", Eq. 1-6).

    lif = ReversibleLeaky(beta=0.5, groups=2)        # called as snn.Leaky is
    spk, mem = lif(x, mem)
    spk_seq, mem = lif.multi_step(x_seq)             # all steps at once: this is what keeps its output only
    x_seq = lif.invert(spk_seq)
"""
from __future__ import annotations

import torch
from torch import Tensor

from shared_core.errors import MemextError
from shared_core.reversible import neuron as core

from . import _host
from ._instances import hold_new_weakly
from .surrogate import from_snntorch

__all__ = ["ReversibleLeaky"]


class ReversibleLeaky(_host.Leaky):
    """The reversible neuron with snnTorch's conventions: nothing is kept for a sequence's backward pass but its output.

        M[1] = mem[1] + (1 - beta) (X[1] - mem[1]),   M[g] = mem[g] + (1 - beta) (Y[g-1] - mem[g])
        Y[g] = H(M[g] - threshold) + scale X[g+1]      (the last group carries X[1]; H(0) = 0, as in snnTorch)
        mem[g] <- (1 - Y[g]) M[g] + Y[g] reset_value + alpha mem[g]
    Source: RevSNN Eq. 1-6, with 1 / tau = 1 - beta and the paper's beta called scale. It is a neuron of its own: "spk"
    is real-valued, as it carries the input of a neighbouring group. shared_core.reversible.neuron.Equations has the
    exact form: inputs are rounded to 2^-16 / scale on entry.

    beta: share of the potential kept per step, 0 <= beta < 1, one value that does not learn; likewise threshold.
    groups, split_dim: the elements of dimension split_dim of a step [N, *] (-1: the last; 1: the channels) are split
        into so many contiguous groups.  alpha, scale, reset_value: numbers; scale is not 0.
    spike_grad, surrogate_disable, init_hidden, output, reset_mem, `mem`, utils.reset, state_dict: as snntorch.Leaky's.
    A state of another shape starts from zeros. spk and mem are float32 (float64 for float64 input).

    Raises MemextError: a constant out of range; when called: a dimension that groups do not divide. In and at the end
    of a backward pass: see shared_core.reversible.neuron.multi_step.
    """

    def __init__(self, beta, threshold=1.0, groups: int = 2, alpha: float = 0.1, scale: float = 1.0,
                 reset_value: float = 0.0, spike_grad=None, surrogate_disable: bool = False, init_hidden: bool = False,
                 output: bool = False, split_dim: int = -1):
        try:
            super().__init__(beta, threshold, spike_grad, surrogate_disable, init_hidden, reset_mechanism="none",
                             output=output)
        finally:
            hold_new_weakly(self)
        self.groups, self.split_dim = groups, split_dim
        self.alpha, self.scale, self.reset_value = alpha, scale, reset_value
        self._eq()  # says what is wrong with the constants

    def forward(self, input_: Tensor, mem: Tensor | None = None):
        """One step. input_ [N, *] float; mem [N, *] or None: go on from `self.mem`.

        Returns (spk, mem), or spk alone with init_hidden=True and output=False. Kept for the backward pass: spk, and
        the mem before the step. Raises TypeError: mem passed with init_hidden=True.
        """
        if mem is not None:
            self._refuse_mem_if_hidden()
            self.mem = mem
        spk, self.mem = self._run(input_.unsqueeze(0), self.mem)
        spk = spk.squeeze(0)
        return spk if self.init_hidden and not self.output else (spk, self.mem)

    def multi_step(self, x_seq: Tensor, mem: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """All steps of a sequence at once: x_seq [T, N, *] -> (spk_seq [T, N, *], mem [N, *] after the last step).

        mem: as in forward. Kept for the backward pass: spk_seq, and mem if it is not at rest.
        """
        if mem is not None:
            self._refuse_mem_if_hidden()
        spk_seq, self.mem = self._run(x_seq, self.mem if mem is None else mem)
        return spk_seq, self.mem

    def invert(self, spk_seq: Tensor, mem: Tensor | None = None, potentials: bool = False):
        """Inputs [T, N, *] (as rounded to the grid, bit for bit) of the outputs spk_seq; mem: before the first step,
        None: at rest. With potentials=True also those before each step."""
        if mem is None:
            mem = self._start(torch.zeros(0), spk_seq)
        x_seq, before = core.invert(self._eq(), spk_seq, mem, surrogate=from_snntorch(self.spike_grad),
                                    split_dim=self.split_dim, name="ReversibleLeaky")
        return (x_seq, before) if potentials else x_seq

    def check_invertible(self, sample: Tensor) -> bool:
        """Whether the inputs `sample` [T, N, *] come back bit for bit. Leaves `mem` as it is."""
        return core.is_invertible(self._eq(), sample, self._start(torch.zeros(0), sample),
                                  surrogate=from_snntorch(self.spike_grad), split_dim=self.split_dim,
                                  name="ReversibleLeaky")

    def extra_repr(self):
        return f"groups={self.groups}, alpha={self.alpha}, scale={self.scale}, split_dim={self.split_dim}"

    # ---- inside ----

    def _eq(self) -> core.Equations:
        """The constants as they are now; read from the buffers once per change that Torch counts."""
        beta, threshold = self.beta, self.threshold
        key = (*((id(t), t.data_ptr(), 0 if t.is_inference() else t._version) for t in (beta, threshold)), self.groups,
               self.alpha, self.scale, self.reset_value)
        known = self.__dict__.get("_memext_equations")
        if known is None or known[0] != key or beta.is_cpu:
            known = self.__dict__["_memext_equations"] = (key, self._new_equations(beta, threshold))
        return known[1]

    def _new_equations(self, beta: Tensor, threshold: Tensor) -> core.Equations:
        for name, value in (("beta", beta), ("threshold", threshold)):
            if value.numel() != 1 or value.requires_grad:
                learns = ", learnable" if value.requires_grad else ""
                raise MemextError(f"ReversibleLeaky: {name} is {tuple(value.shape)}{learns}; one number is needed, and "
                                  "it cannot learn (the inverse would change under the stored output)")
        kept = float(beta)
        if not 0.0 <= kept < 1.0:
            raise MemextError(f"ReversibleLeaky: beta is {kept}; 0 <= beta < 1 is needed (1 / tau = 1 - beta: at 1 the "
                              "neuron would take in nothing)")
        return core.Equations(self.groups, 1.0 / (1.0 - kept), self.alpha, self.scale, float(threshold),
                              self.reset_value, strict=True)

    def _run(self, x_seq: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        return core.multi_step(self._eq(), x_seq, self._start(mem, x_seq), surrogate=from_snntorch(self.spike_grad),
                               split_dim=self.split_dim, name="ReversibleLeaky")

    def _start(self, mem: Tensor, x_seq: Tensor) -> Tensor | None:
        """The potential before a sequence: None where v_reset is what rest is (0)."""
        dtype = torch.float64 if x_seq.dtype == torch.float64 else torch.float32
        if mem.shape == x_seq.shape[1:]:
            return mem.to(device=x_seq.device, dtype=dtype)
        return None if self.reset_value == 0 else torch.zeros(x_seq.shape[1:], dtype=dtype, device=x_seq.device)

    def _refuse_mem_if_hidden(self) -> None:
        if self.init_hidden:
            raise TypeError("`mem` should not be passed as an argument while `init_hidden=True`")

    def __getstate__(self):
        state = {name: value for name, value in self.__dict__.items() if not name.startswith("_memext_")}
        if "spike_grad" in state:  # a module is not in __dict__
            state["spike_grad"] = _host.PicklableClosure.wrap(state["spike_grad"])
        return state

    def __setstate__(self, state):
        spike_grad = state.get("spike_grad")
        if isinstance(spike_grad, _host.PicklableClosure):
            state = {**state, "spike_grad": spike_grad.closure}
        super().__setstate__(state)
