"""snnTorch's neurons on the fused kernels: same constructor, same calls, same numbers, one kernel per call.

    lif = FusedLeaky(beta=0.9)                       # wherever snn.Leaky stands
    spk, mem = lif(x, mem)                           # one step, as ever
    spk_seq, mem = lif.multi_step(x_seq)             # or all steps at once: this is what saves memory and time

No equation stands here: `shared_core.dynamics` has them, snnTorch's own class keeps what the kernels cannot do.
"""
from __future__ import annotations

from torch import Tensor

from shared_core import dynamics

from . import _host
from ._fused import Fused, overrides, why_host_path

__all__ = ["FusedLeaky", "FusedSynaptic", "ReversibleLeaky", "SharedLeaky", "overrides", "why_host_path"]


class FusedLeaky(Fused, _host.Leaky):
    """snntorch.Leaky on fused kernels, with `multi_step` for whole sequences.  Source: snnTorch 1.0.0, Leaky.

    Constructor, return values, `init_hidden`, `output`, `mem`, `utils.reset`, `backprop`, NIR export and state_dict
    are the host's. Spikes and potentials are the host's bit for bit (CPU, float32 and float64), and so are gradients
    up to rounding. `snntorch_memext.neurons.why_host_path(lif)` says when the host's own steps run instead.

    Differs: float16 and bfloat16 input is computed with a float32 state under every reset mechanism, also if a half
    `mem` is passed (the host keeps a half state under "none" with a scalar beta); the "sigmoid" surrogate has no NaN
    far below the threshold; objects can be pickled; `reset` is computed when it is read, with the threshold of
    that moment, and not kept by `multi_step`; a neuron constructed or retrofitted as this one is in
    `SpikingNeuron.instances` as a weak proxy, so that a deleted network is freed. The states that a single step
    returns are those kept for backward: changing one in place before backward, as `mem.mul_(0.5)` does, can raise
    Torch's in-place error where the host allows it, also in a retrofitted model; `mem = mem * 0.5` always works.
    """

    _kind = dynamics.Leaky

    def forward(self, input_, mem=None):
        """One step. input_ [N, *] float; mem [N, *] or None: go on from `self.mem`.

        Returns what snntorch.Leaky returns: (spk, mem), or spk alone with init_hidden=True and output=False. spk is
        float32; mem float32, or float64 for float64 input; also kept as `self.mem`.
        Raises TypeError: mem passed with init_hidden=True.
        """
        return self._step(input_, mem)

    def multi_step(self, x_seq: Tensor, mem: Tensor | None = None, *, record: bool = False) -> tuple[Tensor, Tensor]:
        """All steps of a sequence at once, as if called on x_seq[0], x_seq[1], ... and the results stacked.

            spk_rec, mem_rec = [], []                            # the same as
            for x in x_seq:                                      # spk_seq, mem_seq = lif.multi_step(
                spk, mem = lif(x, mem)                           #     x_seq, mem, record=True)
                spk_rec.append(spk); mem_rec.append(mem)

        x_seq: [T, N, *], T >= 1, float16/bfloat16/float32/float64, any strides.
        mem: [N, *], state to start from, or empty, as reset_mem() returns it at first: start at rest.  None: go on from
            `self.mem`, zeros if that is empty or of another shape, as the host does when the batch size changes.
            With init_hidden=True the layer starts from and leaves `self.mem`, and mem must be None.
        record: return the state after every step (costs 4 B per element and step), not the last one only.
        Returns: (spk_seq [T, N, *] float32, mem [N, *]), mem the state after the last step, so that a long sequence
            can be split: pass it on, or rely on `self.mem`, which is it.  With record=True: (spk_seq, mem_seq
            [T, N, *]).  The same for every init_hidden and output.
        Saved for backward: x_seq and, for T > 32, one state per 32 steps. Potentials are recomputed.
        Forward hooks of the layer do not see the steps. Where the kernels cannot serve (`why_host_path`), this is a
        loop over `forward`, with the host's memory.
        Raises TypeError: mem passed with init_hidden=True.  MemextError: x_seq is not a tensor or has T = 0; mem is not
            a tensor or, where `forward` is this class's, has another shape.
        """
        return self._sequence(x_seq, (mem,), record)


class FusedSynaptic(Fused, _host.Synaptic):
    """snntorch.Synaptic on fused kernels, with `multi_step` for whole sequences.  Source: snnTorch 1.0.0, Synaptic.

    Everything said of FusedLeaky holds, for the two states `syn` (the synaptic current) and `mem`. As in the host,
    the reset "zero" leaves `syn` as it is, and the constructor has no graded_spikes_factor, though its buffer exists.

    Differs: as FusedLeaky; for float16 and bfloat16 input both states are float32 under every reset mechanism (the
    host keeps a half `syn` with a scalar alpha, and a half `mem` under "zero").
    """

    _kind = dynamics.Synaptic

    def forward(self, input_, syn=None, mem=None):
        """One step. input_ [N, *] float; syn, mem [N, *] or None: go on from `self.syn`, `self.mem`.

        Returns what snntorch.Synaptic returns: (spk, syn, mem), or spk alone with init_hidden=True and output=False.
        spk is float32; the states float32, or float64 for float64 input; also kept as `self.syn`, `self.mem`.
        Raises TypeError: syn or mem passed with init_hidden=True.
        """
        return self._step(input_, syn, mem)

    def multi_step(self, x_seq: Tensor, syn: Tensor | None = None, mem: Tensor | None = None, *,
                   record: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """All steps of a sequence at once; FusedLeaky.multi_step with two states.

        x_seq: [T, N, *], T >= 1, float16/bfloat16/float32/float64, any strides.
        syn, mem: [N, *], states to start from, or empty: at rest.  None: go on from `self.syn`, `self.mem`, zeros if
            empty or of another shape.  With init_hidden=True both must be None.
        record: return the states after every step (costs 8 B per element and step), not the last ones only.
        Returns: (spk_seq [T, N, *] float32, syn [N, *], mem [N, *]).  With record=True: (spk_seq, syn_seq [T, N, *],
            mem_seq [T, N, *]).  The same for every init_hidden and output.
        Saved for backward: x_seq and, for T > 32, both states once per 32 steps. Potentials are recomputed.
        Raises TypeError: syn or mem passed with init_hidden=True.  MemextError: x_seq is not a tensor or has T = 0; syn
            or mem is not a tensor or, where `forward` is this class's, has another shape.
        """
        return self._sequence(x_seq, (syn, mem), record)


from .reversible import ReversibleLeaky  # noqa: E402
from .shared import SharedLeaky  # noqa: E402  it is made of what stands above
