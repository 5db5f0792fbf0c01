"""sj_memext.compat: what is refused and what is said, our nodes under the old names, and how it comes and goes."""
from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
import warnings
import weakref

import pytest
import torch
from legacy_grid import data, fill
from spikingjelly.activation_based import functional as new_functional
from spikingjelly.activation_based import layer as new_layer
from spikingjelly.activation_based import neuron as new_neuron
from torch import nn

import sj_memext
from shared_core.errors import MemextError
from sj_memext import compat
from sj_memext.compat import _mapping, _modules, _patches


@pytest.fixture(autouse=True)
def old_names():
    compat.install(quiet=True)
    _patches._said.clear()
    yield
    compat.uninstall()


def old():
    from spikingjelly.clock_driven import functional, layer, neuron, surrogate
    return neuron, layer, functional, surrogate


def make_net():
    neuron, layer, _, surrogate = old()
    return fill(nn.Sequential(
        layer.SeqToANNContainer(nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)),
        neuron.MultiStepLIFNode(tau=1.7, v_threshold=0.4, detach_reset=True, backend="cupy"),
        layer.SeqToANNContainer(nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)),
        neuron.MultiStepIFNode(v_threshold=0.4, surrogate_function=surrogate.ATan(), v_reset=None),
        layer.SeqToANNContainer(nn.Flatten(), nn.Linear(96, 5)),
        neuron.MultiStepParametricLIFNode(init_tau=1.7, v_threshold=4.0)))


def make_new_net():
    """The same, as one writes it for SpikingJelly 2."""
    from spikingjelly.activation_based import surrogate
    return fill(nn.Sequential(
        new_layer.SeqToANNContainer(nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)),
        new_neuron.LIFNode(tau=1.7, v_threshold=0.4, detach_reset=True, step_mode="m"),
        new_layer.SeqToANNContainer(nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)),
        new_neuron.IFNode(v_threshold=0.4, surrogate_function=surrogate.ATan(), v_reset=None, step_mode="m"),
        new_layer.SeqToANNContainer(nn.Flatten(), nn.Linear(96, 5)),
        new_neuron.ParametricLIFNode(init_tau=1.7, v_threshold=4.0, step_mode="m")))


X = data(1, 4, 3, 2, 4, 4)


def step(net):
    old()[2].reset_net(net)
    net.zero_grad()
    y = net(X)
    (y * data(7, *y.shape)).sum().backward()
    old()[2].reset_net(net)
    return y.detach(), [p.grad.clone() for p in net.parameters()]


# ---- our nodes under the old names ------------------------------------------------------------------------------

@pytest.mark.parametrize("method", ["neuron", "compress", "recompute"])
def test_retrofit_serves_old_names(method):
    neuron = old()[0]
    net = make_net()
    keys, y, grads = list(net.state_dict()), *step(net)
    ours = sj_memext.retrofit(copy.deepcopy(net), method)
    assert [row[0] for row in sj_memext.report(ours).changed if "Fused" in row[2]] == ["1", "3", "5"]
    got_y, got = step(ours)
    assert torch.equal(got_y, y) and 0.05 < float(y.detach().mean()) < 0.95
    for a, b in zip(got, grads, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm().clamp(min=1e-3)  # float32 sums in another order
    assert isinstance(ours[1], neuron.MultiStepLIFNode) and isinstance(ours[1], neuron.LIFNode)
    assert isinstance(ours[5], neuron.BaseNode) and ours[1].backend == "cupy"
    assert ours[1].extra_repr() == net[1].extra_repr() == (
        "v_threshold=0.4, v_reset=0.0, detach_reset=True, tau=1.7, backend=cupy")
    assert list(ours.state_dict()) == keys
    back = pickle.loads(pickle.dumps(sj_memext.restore(ours)))
    assert type(back[1]) is neuron.MultiStepLIFNode and torch.equal(step(back)[0], y)


def saved_bytes(net):
    """Bytes that autograd keeps for the backward pass, each storage once, parameters not."""
    seen = {}

    def pack(tensor):
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    old()[2].reset_net(net)
    held = {p.untyped_storage().data_ptr() for p in net.parameters()} | {X.untyped_storage().data_ptr()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = net(X)
    old()[2].reset_net(net)
    return sum(nbytes for pointer, nbytes in seen.items() if pointer not in held) if y.requires_grad else 0


def test_retrofit_saves_memory_under_old_names():
    sizes, new = {"native": saved_bytes(make_net())}, {"native": saved_bytes(make_new_net())}
    for method in ("neuron", "compress", "recompute"):
        sizes[method] = saved_bytes(sj_memext.retrofit(make_net(), method))
        new[method] = saved_bytes(sj_memext.retrofit(make_new_net(), method))
    assert sizes == new  # not a byte more than the net of SpikingJelly 2
    assert sizes["recompute"] < sizes["compress"] < sizes["neuron"] < sizes["native"], sizes


def test_substitute_makes_old_nodes_ours():
    neuron = old()[0]
    with sj_memext.substitute() as report:
        node = neuron.MultiStepLIFNode(3.0, backend="cupy")
        with pytest.warns(RuntimeWarning, match="backend='cupy' is ignored"):  # our node's own word on it
            sj_memext.neuron._said.discard("backend")
            new = new_neuron.LIFNode(3.0, True, 1.0, 0.0, backend="cupy", step_mode="m")
    assert [row[1:] for row in report.changed] == [("MultiStepLIFNode", "FusedLIFNode"), ("LIFNode", "FusedLIFNode")]
    assert node.tau == 3.0 and node.step_mode == "m" and new.tau == 3.0 and node.extra_repr().endswith("backend=cupy")


def test_nets_of_0_0_0_0_14_are_retrofitted():
    def make(**backend):
        net = fill(nn.Sequential(new_layer.Linear(5, 7), new_neuron.LIFNode(1.7, v_threshold=0.4, **backend),
                                 new_layer.Linear(7, 4), new_neuron.ParametricLIFNode(v_threshold=0.4, **backend)))
        new_functional.set_step_mode(net, "m")
        return net

    x = data(1, 6, 3, 5)
    wanted = make()(x)
    for method in ("neuron", "compress", "recompute"):
        net = sj_memext.retrofit(make(backend="cupy"), method)
        assert torch.equal(net(x), wanted) and 0.05 < float(wanted.detach().mean()) < 0.95
        assert net[1].backend == "cupy" and isinstance(net[1], sj_memext.neuron.FusedLIFNode)


def test_encoders_of_0_0_0_0_14_set_their_spikes():
    from spikingjelly.activation_based import encoding

    class Mine(encoding.StatefulEncoder):
        def single_step_encode(self, x):
            self.spike = torch.stack([x, 1 - x])

    encoder, x = Mine(2), data(1, 3)
    for _ in range(2):
        for wanted in (x, 1 - x, x):
            assert torch.equal(encoder(x), wanted)
        encoder.reset()
        x = data(2, 3)


def test_neurons_with_equations_of_their_own_are_not_retrofitted():
    neuron = old()[0]

    class Mine(neuron.MultiStepLIFNode):
        def neuronal_charge(self, x):
            self.v = 0.5 * self.v + x

    class Plain(neuron.MultiStepLIFNode):
        pass

    net = nn.Sequential(Mine(), Plain(), neuron.LIAFNode(torch.relu, True), neuron.QIFNode())
    found = sj_memext.report(sj_memext.retrofit(net))
    assert [row[0] for row in found.changed] == ["1"]
    assert "neuronal_charge" in found.skipped[0][2] and "forward" in found.skipped[1][2]


def test_a_user_class_of_ours_gives_no_warning_for_what_the_framework_got_back():
    with warnings.catch_warnings():
        warnings.simplefilter("error")

        class Fine(sj_memext.neuron.FusedLIFNode):
            pass

    with pytest.warns(RuntimeWarning, match="neuronal_charge, which SpikingJelly 2 never calls"):
        class Ignored(sj_memext.neuron.FusedLIFNode):
            def neuronal_charge(self, x):
                self.v = x

    assert Fine().v == Ignored().v == 0.0


def test_old_and_new_nodes_in_one_net():
    """As with the 0.0.0.0.14 wheel, which had both: set_step_mode reaches the new ones only."""
    neuron = old()[0]
    net = nn.Sequential(neuron.LIFNode(), new_neuron.LIFNode())
    with pytest.warns(RuntimeWarning, match="LIFNode of clock_driven keeps step mode 's'"):
        new_functional.set_step_mode(net, "m")
    assert [m.step_mode for m in net] == ["s", "m"]


# ---- v_seq ------------------------------------------------------------------------------------------------------

def test_v_seq_is_computed_when_it_is_read():
    neuron = old()[0]
    node, x = neuron.MultiStepLIFNode(1.7, v_threshold=0.5), data(2, 4, 3, 5).requires_grad_()
    assert node.v_seq is None
    node(x)
    assert not node.store_v_seq
    seen = node.v_seq  # of the first call, from its input
    assert seen.shape == x.shape and torch.equal(seen[-1], node.v) and node.store_v_seq
    grad, = torch.autograd.grad(seen.sum(), x)
    assert grad.norm() > 0
    node(x)
    assert torch.equal(node.v_seq[-1], node.v)
    node.reset()
    assert node.v_seq is None


@torch.no_grad()
def test_v_seq_of_the_first_call_needs_nobody_else_to_keep_the_input():
    neuron = old()[0]
    node = neuron.MultiStepEIFNode()
    node(data(2, 4, 3, 5))
    assert torch.equal(node.v_seq[-1], node.v)


def test_v_seq_that_nobody_reads_costs_nothing():
    neuron = old()[0]
    node = neuron.MultiStepIFNode()
    for call in range(3):
        node.reset()
        x = data(call, 4, 3, 5)
        node(x)
        alive = weakref.ref(x)
        del x
        assert (alive() is not None) == (call == 0)  # the first call's input is held until the next
    with pytest.raises(MemextError, match=r"v_seq was not read after the first call.*store_v_seq = True"):
        _ = node.v_seq
    node.store_v_seq = True
    node.reset()
    node(data(1, 4, 3, 5))
    assert node.v_seq.shape == (4, 3, 5)


@pytest.mark.parametrize("change, why", [
    (lambda node, x: x.add_(1.0), "changed in place"),
    (lambda node, x: setattr(node, "v_threshold", 2.0), "parameters"),
    (lambda node, x: torch.nn.init.constant_(node.w, 0.4), "parameters")])
def test_v_seq_refuses_what_it_cannot_compute_again(change, why):
    neuron = old()[0]
    node, x = neuron.MultiStepParametricLIFNode(), data(1, 4, 3, 5)
    node(x)
    change(node, x)
    with pytest.raises(MemextError, match=why):
        _ = node.v_seq


def test_a_node_with_a_call_behind_it_is_copied_and_pickled():
    neuron = old()[0]
    node = neuron.MultiStepLIFNode()
    with torch.no_grad():
        node(data(1, 4, 3, 5))
        node(data(2, 4, 3, 5))
    for other in (copy.deepcopy(node), pickle.loads(pickle.dumps(node))):
        assert torch.equal(other.v, node.v) and other.step_mode == "m"


# ---- refused, or said ---------------------------------------------------------------------------------------------

@pytest.mark.parametrize("make, what", [
    (lambda n: n.LIFNode(tau=2), r"LIFNode: tau is 2 \(int\); a float is needed.*write tau=2\.0"),
    (lambda n: n.LIFNode(tau=1.0), r"tau is 1\.0; a time constant above 1\.0"),
    (lambda n: n.MultiStepIFNode(v_threshold=1), r"MultiStepIFNode: v_threshold is 1"),
    (lambda n: n.IFNode(v_reset=0), r"v_reset is 0 \(int\)"),
    (lambda n: n.IFNode(detach_reset=1), r"detach_reset is 1; True or False"),
    (lambda n: n.QIFNode(v_threshold=-1.0), r"QIFNode: SpikingJelly refuses these arguments.*v_threshold=-1\.0"),
    (lambda n: n.MultiStepLIFNode(backend="cuda"), r"backend is 'cuda'; allowed: 'torch', 'cupy', 'lava'"),
    (lambda n: n.AdaptiveBaseNode(), r"AdaptiveBaseNode.*could not be used"),
    (lambda n: n.MultiStepGeneralNode(1.0, 1.0, 0.0), r"GeneralNode.*could not be used"),
    (lambda n: n.check_backend("gpu"), r"backend is 'gpu'"),
    (lambda n: new_neuron.LIFNode(tau=2, backend="torch"), r"LIFNode: tau is 2 \(int\)"),
    (lambda n: new_neuron.IFNode(backend="gpu"), r"IFNode: backend is 'gpu'"),
    (lambda n: n.MultiStepIFNode()(torch.zeros(3)), r"the input is \[3\]; \[T, N, \*\] is needed"),
])
def test_bad_arguments_say_what_is_wrong(make, what):
    with pytest.raises(MemextError, match=what):
        make(old()[0])


def test_a_state_of_another_shape_is_refused_as_it_was():
    neuron = old()[0]
    node = neuron.MultiStepLIFNode()
    node(data(1, 4, 3, 5))
    for other in (data(1, 4, 2, 5), data(1, 4, 1, 5)):  # 0.0.0.0.12: an error, and a silent broadcast
        with pytest.raises(MemextError, match=r"the state is \[3, 5\].*reset_net"):
            node(other)
    new = new_neuron.LIFNode(step_mode="m")
    new(data(1, 4, 3, 5))
    with pytest.warns(RuntimeWarning, match=r"starts from rest; 0\.0\.0\.0\.14 raised"):
        new(data(1, 4, 2, 5))


def test_lava_and_set_backend_say_that_they_do_nothing():
    neuron = old()[0]
    with pytest.warns(RuntimeWarning, match="fixed point"):
        node = neuron.MultiStepLIFNode(backend="lava")
    with pytest.warns(RuntimeWarning, match="no effect on SpikingJelly 2"):
        assert new_functional.set_backend(nn.Sequential(node), "cupy") is None
    assert node.backend == "cupy"
    with pytest.raises(MemextError, match="lava_exchange"):
        node.to_lava()


def test_eval_mode_of_overridden_equations_is_said():
    class Mine(new_neuron.LIFNode):
        def neuronal_charge(self, x):
            self.v = x

    with pytest.warns(RuntimeWarning, match="in eval mode"):
        Mine().eval()(data(1, 3, 5))


def test_stacked_rnns_and_containers_of_multi_step_nodes_are_said():
    from spikingjelly.clock_driven import rnn
    neuron, layer, _, _ = old()
    with pytest.warns(RuntimeWarning, match="2 layers.*other results"):
        rnn.SpikingGRU(3, 4, 2)
    with pytest.warns(RuntimeWarning, match="clamps the cell state"):
        rnn.SpikingLSTM(3, 4, 1)
    with pytest.warns(RuntimeWarning, match="first dimension inside the container for the time"):
        layer.SeqToANNContainer(neuron.MultiStepLIFNode())
    with pytest.raises(ValueError, match="step_mode must be 's'"):  # the new container is as strict as it was
        new_layer.SeqToANNContainer(new_neuron.IFNode(step_mode="m"))


@pytest.mark.parametrize("code, why", [
    ("from spikingjelly.clock_driven.cu_kernel_opt import cal_blocks", "CuPy kernels"),
    ("from spikingjelly.clock_driven import neuron_kernel as k; k.MultiStepLIFNodePTT", "CuPy kernels"),
    ("from spikingjelly.activation_based.auto_cuda import base", "CuPy kernels"),
    ("from spikingjelly.clock_driven.tensor_cache import BoolTensorCache", "retrofit"),
    ("from spikingjelly.clock_driven.functional import spike_cluster", "keep a copy"),
    ("from spikingjelly.clock_driven.ann2snn import Converter", "ann2snn of SpikingJelly 2"),
    ("from spikingjelly.clock_driven.surrogate import check_cuda_grad", "CuPy"),
    ("from spikingjelly.clock_driven.neuron import GLIFNode", "no such class"),
    ("import spikingjelly.configure as c; c.cuda_threads", "CuPy kernels"),
    ("from spikingjelly.activation_based import neuron; neuron.MultiStepLIFNode", "clock_driven.neuron"),
    ("from spikingjelly.activation_based.layer import STDPLearner", "learning.STDPLearner"),
    ("from spikingjelly.activation_based.monitor import Monitor", "OutputMonitor"),
    ("from spikingjelly.clock_driven import surrogate as s; s.ATan().cuda_code('x', 'y')", "no CuPy kernels"),
    ("from spikingjelly.timing_based.neuron import Tempotron; Tempotron(3, 2, T=10)", "event_driven"),
    ("import torch; from spikingjelly.timing_based.encoding import GaussianTuning as G\n"
     "G(2, 5, torch.zeros(2), torch.ones(2)).encode(3)", "event_driven.encoding"),
    ("from spikingjelly.clock_driven.model.spiking_vgg import spiking_vgg11", "one mask"),
    ("from spikingjelly.clock_driven.model.parametric_lif_net import MNISTNet", "other parameter names"),
    ("from spikingjelly.cext.neuron import LIFNode; LIFNode(v_reset=None)", "no soft reset"),
    ("from spikingjelly.cext.neuron import IFNode; IFNode(surrogate_function='Erf')", "'ATan', 'Sigmoid'"),
    ("from spikingjelly.cext.neuron import LIF_hard_reset_fptt", "CUDA extension"),
])
def test_names_without_a_counterpart_say_why(code, why):
    with pytest.raises(MemextError, match=why):
        exec(code, {})


def test_modules_that_the_old_ones_imported():
    from spikingjelly.clock_driven import neuron, surrogate
    assert neuron.surrogate is surrogate and neuron.base.MemoryModule


def test_unknown_names_are_attribute_errors():
    from spikingjelly.clock_driven import layer
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = layer.Nothing
    with pytest.raises(ModuleNotFoundError):
        import spikingjelly.clock_driven.nothing  # noqa: F401


def test_checkpoints_that_hold_alpha_load():
    """0.0.0.0.4 kept the surrogate's alpha as a buffer."""
    neuron = old()[0]
    net = nn.Sequential(nn.Linear(3, 3), neuron.MultiStepLIFNode())
    state = {**net.state_dict(), "1.surrogate_function.alpha": torch.tensor(4.0)}
    net.load_state_dict(state)
    with pytest.raises(MemextError, match=r"alpha is 2\.0 in this checkpoint, and 4\.0 in the model"):
        net.load_state_dict({**state, "1.surrogate_function.alpha": torch.tensor(2.0)})


# ---- cext: the extension ran on CUDA only, so its equations are written out here

def by_hand(x_seq, tau, v_th, v_reset, alpha, detach, kind):
    derivative = {"ATan": lambda z: alpha / 2 / (1 + (torch.pi / 2 * alpha * z) ** 2),
                  "Sigmoid": lambda z: (s := (alpha * z).sigmoid()) * (1 - s) * alpha}[kind]

    class Fire(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return (z >= 0).to(z)

        @staticmethod
        def backward(ctx, g):
            return g * derivative(ctx.saved_tensors[0])

    v, spikes = torch.full_like(x_seq[0], v_reset), []
    for x in x_seq:
        h = v + (x - (v - v_reset)) / tau if tau else v + x
        s = Fire.apply(h - v_th)
        reset = s.detach() if detach else s
        v = reset * v_reset + (1 - reset) * h
        spikes.append(s)
    return torch.stack(spikes), v


@pytest.mark.parametrize("kind", ["ATan", "Sigmoid"])
@pytest.mark.parametrize("detach", [False, True])
@pytest.mark.parametrize("name", ["LIFNode", "IFNode"])
def test_cext_has_its_own_defaults_and_equations(name, detach, kind):
    from spikingjelly.cext import neuron
    tau = 1.7 if name == "LIFNode" else None
    options = {"v_threshold": 0.6, "v_reset": -0.2, "alpha": 1.5, "detach_reset": detach, "surrogate_function": kind}
    if tau:
        options["tau"] = tau
    x = data(4, 5, 3, 4).double().requires_grad_()
    wanted, v = by_hand(x, tau, 0.6, -0.2, 1.5, detach, kind)
    grad, = torch.autograd.grad((wanted * data(5, 5, 3, 4)).sum() + v.sum(), x)
    for multi in (True, False):
        node = getattr(neuron, ("MultiStep" if multi else "") + name)(**options)
        y = node(x) if multi else torch.stack([node(step) for step in x])
        got, = torch.autograd.grad((y * data(5, 5, 3, 4)).sum() + node.v.sum(), x)
        assert torch.equal(y, wanted) and torch.allclose(got, grad, rtol=1e-10)  # float64
        assert isinstance(node, neuron.BaseNode)
    assert sj_memext.report(sj_memext.retrofit(nn.Sequential(node))).changed


def test_cext_defaults():
    from spikingjelly.cext import layer, neuron
    node = neuron.MultiStepLIFNode()
    assert (node.tau, type(node.surrogate_function).__name__, node.alpha) == (100.0, "ATan", 2.0)
    assert neuron.LIFNode(2).extra_repr().endswith("surrogate_function=ATan, alpha=2.0 tau=2.0")
    assert neuron.MultiStepParametricLIFNode(init_tau=2.0, detach_reset=True).detach_reset
    assert isinstance(layer.AutoSparseLinear(3, 2)(torch.ones(1, 3)), torch.Tensor)


# ---- how it comes and goes -----

def test_everything_is_taken_back():
    compat.uninstall()
    before = {cls: dict(vars(cls)) for cls in vars(new_neuron).values() if isinstance(cls, type)}
    compat.install(quiet=True)
    old()
    assert any(dict(vars(cls)) != names for cls, names in before.items())
    compat.uninstall()
    assert all(dict(vars(cls)) == names for cls, names in before.items())
    with pytest.raises(ModuleNotFoundError):
        import spikingjelly.clock_driven  # noqa: F401
    with pytest.raises(TypeError):
        new_neuron.LIFNode(backend="cupy")


def test_substitute_and_install_in_any_order():
    compat.uninstall()
    with sj_memext.substitute():
        compat.install(quiet=True)
        assert type(new_neuron.LIFNode(backend="cupy")).__name__ == "FusedLIFNode"
    assert new_neuron.LIFNode(2.0, True, 1.0, 0.0, new_neuron.LIFNode().surrogate_function, False, "m", "cupy",
                              True).store_v_seq
    compat.uninstall()
    with sj_memext.substitute() as seen:  # the wrapper that came back with compat's going is nobody's
        type("Own", (new_neuron.LIFNode,), {"neuronal_charge": lambda self, x: None})()
    assert [kind for _, kind, _ in seen.skipped] == ["Own"]


def test_a_real_module_is_never_covered(tmp_path):
    """A package on the path that has clock_driven is the one that is imported."""
    (tmp_path / "spikingjelly" / "clock_driven").mkdir(parents=True)
    (tmp_path / "spikingjelly" / "clock_driven" / "__init__.py").write_text("real = True\n")
    import spikingjelly
    spikingjelly.__path__.append(str(tmp_path / "spikingjelly"))
    try:
        from spikingjelly import clock_driven
        assert clock_driven.real and "spikingjelly.clock_driven" not in _modules.made()
    finally:
        spikingjelly.__path__.remove(str(tmp_path / "spikingjelly"))
        del sys.modules["spikingjelly.clock_driven"], spikingjelly.clock_driven


def test_every_module_of_the_table_can_be_imported():
    for name, module in _mapping.MODULES.items():
        made = __import__(name, fromlist=["_"])
        assert made.__name__ == name
        for public in getattr(made, "__all__", ()):
            assert hasattr(made, public), (name, public)
        assert module.host is None or dir(made)


def test_the_table_is_printed_once_and_datasets_stay_away():
    code = """
import sys
import sj_memext.compat, sj_memext.compat
from spikingjelly.clock_driven import neuron, layer, functional, surrogate, encoding, monitor, rnn
from spikingjelly.clock_driven import *
from spikingjelly.clock_driven.neuron import *
import spikingjelly.cext.neuron, spikingjelly.event_driven.neuron
assert "spikingjelly.datasets" not in sys.modules
print(MultiStepLIFNode(backend="cupy"))
"""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("MultiStepLIFNode(")
    assert done.stderr.count("sj_memext.compat: names of SpikingJelly") == 1
    assert all(row[0] in done.stderr for row in compat.mapping())


def test_other_ranks_print_nothing(monkeypatch, capsys):
    compat.uninstall()
    monkeypatch.setattr(compat, "_printed", False)
    monkeypatch.setenv("RANK", "1")
    compat.install()
    assert not capsys.readouterr().err
    compat.uninstall()
    monkeypatch.setenv("RANK", "0")
    compat.install()
    assert "clock_driven.neuron" in capsys.readouterr().err


def test_a_multi_step_resnet_needs_its_steps():
    from spikingjelly.clock_driven.model import spiking_resnet
    neuron = old()[0]
    net = spiking_resnet.multi_step_spiking_resnet18(multi_step_neuron=neuron.MultiStepIFNode, num_classes=3)
    with pytest.raises(MemextError, match="T is None"):
        net(torch.zeros(1, 3, 32, 32))
