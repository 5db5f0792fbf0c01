"""Which old module answers with what, and the table that is printed once.

A module of the table is made of: names that this package defines, names that SpikingJelly 2.0.0 has under another
module, and names that are gone, with the reason. Which of the first two are the same and which differ is what the
golden values of tests/compat hold.
"""
from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["GONE", "MODULES", "ROWS", "Old"]

_CUPY = ("it belonged to the CuPy kernels, which SpikingJelly 2 does not have; the device of the input chooses the "
         "kernel")
_GOLD = "SpikingJelly 2 has no such class"


@dataclass(frozen=True)
class Old:
    """An old module. ours: modules of this package whose public names it has, first.  host: the module of SpikingJelly
    2 that has the rest, or None.  gone: name -> why it is not there ("*": any other name)."""

    ours: tuple[str, ...] = ()
    host: str | None = None
    gone: dict[str, str] = field(default_factory=dict)


def _ab(name: str) -> str:
    return f"spikingjelly.activation_based.{name}"


MODULES: dict[str, Old] = {
    "spikingjelly.clock_driven": Old(),
    "spikingjelly.clock_driven.base": Old(host=_ab("base")),
    "spikingjelly.clock_driven.neuron": Old(("neuron",), None, {"*": _GOLD}),
    "spikingjelly.clock_driven.layer": Old(("layer",), _ab("layer")),
    "spikingjelly.clock_driven.surrogate": Old(("surrogate",), _ab("surrogate"), {
        "check_cuda_grad": "it compared the CuPy kernels with the Python form, and there are none"}),
    "spikingjelly.clock_driven.functional": Old(("functional",), _ab("functional"), {
        "spike_cluster": "no release since 0.0.0.0.12 has it, nor anything like it; keep a copy of it with your code"}),
    "spikingjelly.clock_driven.encoding": Old(("encoding",), _ab("encoding")),
    "spikingjelly.clock_driven.rnn": Old(host=_ab("rnn")),
    "spikingjelly.clock_driven.monitor": Old(("monitor",)),
    "spikingjelly.clock_driven.spike_op": Old(("spike_op",)),
    "spikingjelly.clock_driven.model": Old(),
    "spikingjelly.clock_driven.model.spiking_resnet": Old(("model_resnet",)),
    "spikingjelly.clock_driven.model.sew_resnet": Old(("model_sew",)),
    "spikingjelly.clock_driven.model.spiking_vgg": Old(gone={
        "*": "since 0.0.0.0.13 the dropout of the spiking VGG keeps one mask for all steps, so it trains otherwise; "
             "use spikingjelly.activation_based.model.spiking_vgg and functional.set_step_mode(net, 'm')"}),
    "spikingjelly.clock_driven.model.parametric_lif_net": Old(gone={
        "*": "since 0.0.0.0.13 its nets have other parameter names, so no checkpoint would fit; use "
             "spikingjelly.activation_based.model.parametric_lif_net and functional.set_step_mode(net, 'm')"}),
    "spikingjelly.clock_driven.model.train_classify": Old(
        host="spikingjelly.activation_based.examples.common.train_classify"),
    "spikingjelly.clock_driven.ann2snn": Old(gone={
        "*": "its converter took other arguments; use spikingjelly.activation_based.ann2snn of SpikingJelly 2"}),
    "spikingjelly.clock_driven.lava_exchange": Old(gone={
        "*": "its functions took clock_driven nodes; use spikingjelly.activation_based.lava_exchange of SpikingJelly "
             "2"}),
    "spikingjelly.clock_driven.neuron_kernel": Old(gone={"*": _CUPY}),
    "spikingjelly.clock_driven.cu_kernel_opt": Old(gone={"*": _CUPY}),
    "spikingjelly.clock_driven.tensor_cache": Old(gone={
        "*": f"{_CUPY}; to keep spikes as bits use retrofit(net, 'compress')"}),
    "spikingjelly.event_driven": Old(),
    "spikingjelly.event_driven.neuron": Old(("event_driven",)),
    "spikingjelly.event_driven.encoding": Old(("event_driven",)),
    "spikingjelly.cext": Old(gone={"cal_fun_t": "it timed the CUDA extension"}),
    "spikingjelly.cext.neuron": Old(("cext",), None, {"*": "the CUDA extension is not there; use the node classes"}),
    "spikingjelly.cext.layer": Old(("cext_layer",)),
    "spikingjelly.cext.functional": Old(("cext_layer",)),
    _ab("spike_op"): Old(("spike_op",)),
    _ab("neuron_kernel"): Old(gone={"*": _CUPY}),
    _ab("cuda_utils"): Old(gone={"*": _CUPY}),
    _ab("auto_cuda"): Old(gone={"*": _CUPY}),
    _ab("tensor_cache"): Old(gone={"*": f"{_CUPY}; to keep spikes as bits use retrofit(net, 'compress')"}),
}

# Names that modules of SpikingJelly 2 had once: asked for, they say why they are not there.
GONE: dict[str, dict[str, str]] = {
    "spikingjelly.configure": dict.fromkeys(
        ("cuda_threads", "cuda_compiler_options", "cuda_compiler_backend", "save_spike_as_bool_in_neuron_kernel",
         "save_bool_spike_level"), _CUPY),
    _ab("surrogate"): {"check_cuda_grad": "it compared the CuPy kernels with the Python form, and there are none"},
    _ab("neuron"): {"MultiStep*": "it is of clock_driven: from spikingjelly.clock_driven.neuron import it",
                    "AdaptiveBaseNode": "it is AdaptBaseNode since 0.0.0.0.13"},
    _ab("layer"): {"STDPLearner": "it is spikingjelly.activation_based.learning.STDPLearner, with other arguments"},
    _ab("monitor"): {"Monitor": "it is spikingjelly.clock_driven.monitor.Monitor; since 0.0.0.0.13 there are "
                                "OutputMonitor and its like"},
}

# What is printed once: (old name, what it is now, what differs and how that is met).
ROWS = (
    ("clock_driven.neuron.MultiStepX, X", "neuron.X(step_mode='m'), 's'",
     "v_seq computed when read; reset() restores v_threshold; a state of another shape raises"),
    ("neuronal_charge/fire/reset overridden", "the same, step by step", "2.0.0 alone ignores them"),
    ("backend=, functional.set_backend", "kept as an attribute", "no effect; 'lava' rounded, which is not imitated"),
    ("cext.neuron.X", "neuron.X(surrogate ATan(alpha))", "tau 100, ATan by default; hard reset only"),
    ("layer.MultiStepDropout2d", "layer.Dropout2d(0.5, 'm')", "2.0.0's default is 0.2"),
    ("layer.SeqToANNContainer, MultiStepContainer", "the same", "multi-step children run as they did"),
    ("layer.StepModeContainer(stateful, *m)", "(stateful, 's', *m)", ""),
    ("surrogate.PiecewiseLeakyReLU", "its old gradient", "1/w inside, where 2.0.0 has 1/(2w)"),
    ("functional.fuse_convbn2d, ottt_/fptt_...", "here, and learning.online_learning", "spike_cluster is gone"),
    ("functional.reset_net", "the same, looked up anew", "2.0.0 remembers the modules of the first call"),
    ("model.multi_step_spiking_resnet18(T=...)", "spiking_resnet18, set_step_mode", "VGG and PLIF nets are refused"),
    ("monitor.Monitor, event_driven", "written anew here", "2.0.0's take other arguments"),
    ("rnn.SpikingLSTM/GRU/VanillaRNN", "2.0.0's", "stacked layers and LSTM's clamp differ: said when made"),
    ("cu_kernel_opt, neuron_kernel, cuda_code()", "an error that says so", "the device chooses the kernel"),
)
