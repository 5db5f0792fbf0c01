"""What users of SpikingJelly do with a node beside calling it must work with ours: every test does it to both."""
from __future__ import annotations

import copy
import gc
import inspect
import pickle
import warnings

import pytest
import torch
from spikingjelly.activation_based import ann2snn, base, functional, layer, memopt, monitor, neuron, surrogate
from torch import nn

from shared_core.errors import MemextError
from sj_memext import _host
from sj_memext import neuron as ours
from sj_memext.neuron import FusedIFNode, FusedLIFNode, FusedParametricLIFNode, overrides

PAIRS = [(neuron.IFNode, FusedIFNode), (neuron.LIFNode, FusedLIFNode),
         (neuron.ParametricLIFNode, FusedParametricLIFNode)]
both = pytest.mark.parametrize("host_cls, fused_cls", PAIRS, ids=["IF", "LIF", "PLIF"])
modes = pytest.mark.parametrize("mode", "ms")


def inputs(*shape, seed=0):
    return 1 + torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same(a, b):
    """Equal, and not trivially so."""
    assert torch.equal(a, b)
    assert 0 < a.detach().float().mean() < 1, "nothing fired, or everything"


def net(node_cls, mode="m", **options):
    """Conv, neuron, pool, linear, neuron; the same weights every time."""
    torch.manual_seed(0)
    model = nn.Sequential(layer.Conv2d(2, 4, 3, padding=1), layer.BatchNorm2d(4), node_cls(**options),
                          layer.MaxPool2d(2), layer.Flatten(), layer.Linear(36, 5), node_cls(**options))
    functional.set_step_mode(model, mode)
    return model


# ---- construction and identity --------------------------------------------------------------------------------------


@both
def test_is_the_frameworks_class_with_its_signature(host_cls, fused_cls):
    node = fused_cls()
    assert isinstance(node, host_cls) and isinstance(node, base.MemoryModule)
    theirs, mine = inspect.signature(host_cls).parameters, inspect.signature(fused_cls).parameters
    assert list(mine) == [*theirs, "backend"]
    assert all(mine[name].default is theirs[name].default for name in theirs)
    assert repr(node) == repr(host_cls()).replace(host_cls.__name__, fused_cls.__name__)
    assert vars(node).keys() == vars(host_cls()).keys()  # nothing of ours that a restored node would carry along


def test_positional_arguments_and_refusals():
    node = FusedLIFNode(3.0, False, 0.7, None, surrogate.ATan(), True, "m", True)
    assert (node.tau, node.decay_input, node.v_threshold, node.v_reset) == (3.0, False, 0.7, None)
    assert node.detach_reset is True
    assert node.step_mode == "m" and node.store_v_seq
    with pytest.raises(AssertionError):
        FusedLIFNode(tau=1.0)  # the framework's own check
    with pytest.raises(ValueError, match="step_mode"):
        FusedIFNode(step_mode="x")


def test_backend_argument_is_ignored_and_said_once(monkeypatch):
    monkeypatch.setattr(ours, "_said", set())
    with pytest.warns(RuntimeWarning, match="backend='cupy' is ignored") as caught:
        FusedLIFNode(tau=2.0, backend="cupy")
        FusedIFNode(backend="torch")
    assert len(caught) == 1


@both
def test_an_existing_node_changes_class_and_back(host_cls, fused_cls):
    x = inputs(8, 3, 5)
    expected, node = host_cls(step_mode="m"), host_cls(step_mode="m")
    same(expected(x), node(x))
    attributes = set(vars(node))
    node.__class__ = fused_cls  # with a state
    same(expected(x), node(x))
    assert torch.equal(expected.v, node.v) and set(vars(node)) == attributes
    node.__class__ = host_cls
    same(expected(x), node(x))
    assert torch.equal(expected.v, node.v)


@both
def test_attributes_are_read_at_every_call(host_cls, fused_cls):
    x = inputs(8, 3, 5).requires_grad_()
    nodes = [cls(step_mode="m") for cls in (host_cls, fused_cls)]

    def change(node, step):
        if step == 1:
            node.v_threshold = 0.7
        elif step == 2:
            node.v_reset, node.detach_reset = None, True
        elif step == 3:
            node.surrogate_function = surrogate.ATan(3.0)
        elif step == 4:
            node.surrogate_function.alpha = 1.0
        elif step == 5 and hasattr(node, "tau"):
            node.tau = 5.0
        elif step == 5 and hasattr(node, "w"):
            node.w.data.fill_(-1.0)
        elif step == 6:
            node.decay_input = False
        elif step == 7:
            node.v_threshold = torch.tensor(0.8)  # a constant tensor is a number

    seen = []
    for step in range(8):
        found = []
        for node in nodes:
            change(node, step)
            functional.reset_net(node)
            out = node(x)
            found.append((out, torch.autograd.grad((out * inputs(8, 3, 5, seed=1)).sum(), x)[0]))
        same(found[0][0], found[1][0])
        # norm-relative 1e-5: two float32 backward passes of 8 steps
        assert (found[0][1] - found[1][1]).norm() < 1e-5 * found[0][1].norm()
        seen.append(found[1][1])
    needed = (1, 2, 3, 4, 7) if host_cls is neuron.IFNode else (1, 2, 3, 4, 5, 6, 7)
    assert all(not torch.equal(seen[i - 1], seen[i]) for i in needed), "a change had no effect: nothing is tested"


# ---- state ----------------------------------------------------------------------------------------------------------


@modes
def test_in_a_network_reset_detach_and_step_mode(mode):
    models = [net(cls, mode, tau=1.5, v_threshold=0.1) for cls in (neuron.LIFNode, FusedLIFNode)]
    assert all(m.step_mode == mode for m in models[1] if hasattr(m, "step_mode"))
    x = inputs(5, 2, 2, 6, 6)
    for epoch in range(2):
        outs = []
        for model in models:
            out = model(x) if mode == "m" else torch.stack([model(step) for step in x])
            functional.detach_net(model)  # a window of truncated BPTT
            assert not model[2].v.requires_grad
            second = model(x.flip(0)) if mode == "m" else torch.stack([model(step) for step in x.flip(0)])
            (out.mean() + second.square().mean()).backward()
            outs += [torch.cat([out, second]), [p.grad for p in model.parameters()]]
            functional.reset_net(model)
            assert model[2].v == 0.0 and isinstance(model[2].v, float)
        same(outs[0], outs[2])
        for a, b in zip(outs[1], outs[3]):
            assert (a - b).norm() <= 1e-5 * a.norm() + 1e-7, epoch  # 1e-7: a bias before a batch norm
                # has no gradient but rounding. 1e-5: two float32 backward passes of 10 steps


def test_gradient_flows_through_the_state_between_calls():
    x = inputs(9, 4, 7).requires_grad_()
    w = inputs(9, 4, 7, seed=1)
    whole, parts, steps = FusedLIFNode(step_mode="m"), FusedLIFNode(step_mode="m"), FusedLIFNode()
    outs = (whole(x), torch.cat([parts(x[:4]), parts(x[4:])]), torch.stack([steps(step) for step in x]))
    grads = [torch.autograd.grad((out * w).sum(), x)[0] for out in outs]
    same(outs[0], outs[1]), same(outs[0], outs[2])
    # 1e-6: the same float32 steps, only cut elsewhere; 1e-3: what is cut is terms, not rounding
    assert all((g - grads[0]).norm() < 1e-6 * grads[0].norm() for g in grads[1:])
    cut = FusedLIFNode(step_mode="m")
    first = cut(x[:4])
    cut.detach()
    other = torch.autograd.grad((torch.cat([first, cut(x[4:])]) * w).sum(), x)[0]
    assert (other - grads[0]).norm() > 1e-3 * grads[0].norm()  # and detaching does cut it


@modes
@pytest.mark.parametrize("v", [0.25, torch.full((3, 5), 0.25), torch.full((3, 5), 0.25, dtype=torch.float64),
                               torch.full((7,), 0.25)], ids=["number", "tensor", "float64", "other-shape"])
def test_a_state_put_in_by_hand(mode, v):
    x = inputs(6, 3, 5)
    found = []
    for cls in (neuron.LIFNode, FusedLIFNode):
        node = cls(v_reset=-0.5, step_mode=mode)
        node.v = v
        out = node(x) if mode == "m" else torch.stack([node(step) for step in x])
        found.append((out, node.v))
    same(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1]) and found[1][1].dtype == torch.float32


def test_a_state_that_is_none_is_refused_with_a_way_out():
    node = FusedLIFNode()
    node.v = None
    with pytest.raises(MemextError, match="reset_net"):
        node(inputs(3))


def test_a_resting_number_that_is_not_the_reset_value_is_kept():
    """v_reset changed after construction: the memory still starts from the old one, in the framework and here."""
    nodes = [cls(v_reset=0.0, step_mode="m") for cls in (neuron.LIFNode, FusedLIFNode)]
    for node in nodes:
        node.v_reset = -0.5
    x = inputs(6, 3, 5)
    same(nodes[0](x), nodes[1](x))
    assert torch.equal(nodes[0].v, nodes[1].v)


@both
def test_shapes_change_between_calls(host_cls, fused_cls):
    host, fused = host_cls(), fused_cls()
    for shape in ((4, 3), (4, 3), (2, 3), (), (), (7,), (0, 3), (2, 3, 4, 5, 6)):
        x = inputs(*shape)
        a, b = host(x), fused(x)
        assert torch.equal(a, b) and a.shape == b.shape == x.shape, shape
        assert torch.equal(host.v, fused.v) and fused.v.shape == x.shape, shape


def test_one_node_called_twice_per_step_shares_its_membrane():
    found = []
    for cls in (neuron.LIFNode, FusedLIFNode):
        node, x = cls(), inputs(6, 3, 5).requires_grad_()
        out = torch.stack([node(node(step) * 2 + 0.3) for step in x])
        found.append((out, torch.autograd.grad((out * inputs(6, 3, 5, seed=1)).sum(), x)[0]))
    same(found[0][0], found[1][0])
    # 1e-5: two float32 backward passes of 12 steps
    assert (found[0][1] - found[1][1]).norm() < 1e-5 * found[0][1].norm()


def test_no_grad_inference_mode_and_then_training():
    for context in (torch.no_grad, torch.inference_mode):
        host, fused = (cls(step_mode="m", store_v_seq=True) for cls in (neuron.LIFNode, FusedLIFNode))
        x = inputs(6, 3, 5)
        with context():
            same(host(x), fused(x))
            assert torch.equal(host.v_seq, fused.v_seq)
        leaf = x.clone().requires_grad_()
        fused(leaf).sum().backward()  # the framework cannot save an inference tensor; ours is copied
        assert leaf.grad.norm() > 0


def test_spikes_may_be_changed_in_place():
    for mode in "ms":
        x = inputs(4, 5).requires_grad_()
        node = FusedLIFNode(step_mode=mode)
        (expected,) = torch.autograd.grad((node(x) * 3).sum(), x)
        node.reset()
        out = node(x)
        out.mul_(3)
        assert torch.equal(torch.autograd.grad(out.sum(), x)[0], expected)


@both
@modes
def test_v_seq(host_cls, fused_cls, mode):
    x = inputs(6, 3, 5)
    nodes = host_cls(step_mode=mode), fused_cls(step_mode=mode)
    for store in (True, False, True):
        found = []
        for node in nodes:
            node.store_v_seq = store
            assert node.v_seq is None
            leaf = x.clone().requires_grad_()
            _ = node(leaf) if mode == "m" else [node(step) for step in leaf]
            if store:
                found.append((node.v_seq, torch.autograd.grad(node.v_seq.square().sum(), leaf)[0]))
            else:
                assert node.v_seq is None
            functional.detach_net(node)
        if store:
            assert found[0][0].shape == x.shape and torch.equal(found[0][0], found[1][0])
            # 1e-5: two float32 backward passes of 6 steps
            assert (found[0][1] - found[1][1]).norm() < 1e-5 * found[0][1].norm()
    nodes[1].reset()
    assert nodes[1].v_seq is None


# ---- explicit state, checkpointing, monitors, conversion ------------------------------------------------------------


@both
@modes
def test_explicit_state_functions(host_cls, fused_cls, mode):
    x = inputs(6, 3, 5) if mode == "m" else inputs(3, 5)
    host, fused = host_cls(step_mode=mode), fused_cls(step_mode=mode)
    for v in (0.0, 0.25, torch.full((3, 5), 0.25), torch.zeros(2)):
        results = [base.to_functional_forward(node)((x,), (v,)) for node in (host, fused)]
        same(results[0][0][0], results[1][0][0])
        assert torch.equal(results[0][1][0], results[1][1][0])
        given = fused.materialize_states((x,), (v,), mode)
        assert torch.equal(given[0], host.materialize_states((x,), (v,), mode)[0])
        name = "multi_step_functional_forward" if mode == "m" else "single_step_functional_forward"
        same(getattr(fused, name)((x,), given)[0][0], results[0][0][0])
    assert fused.v == 0.0 and isinstance(fused.v, float)  # the module's own memory is untouched


def test_explicit_state_of_a_network():
    x = inputs(5, 2, 2, 6, 6)
    results = []
    for cls in (neuron.LIFNode, FusedLIFNode):
        model = net(cls, v_threshold=0.1)
        results.append(base.to_functional_forward(model)((x,), tuple(base.extract_memories(model))))
    same(results[0][0][0], results[1][0][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1]))


@pytest.mark.parametrize("chunks", [1, 3])
def test_the_frameworks_checkpointing_around_ours(chunks):
    x = inputs(6, 3, 5)
    found = []
    for cls, wrap in ((neuron.LIFNode, False), (FusedLIFNode, True)):
        node = cls(step_mode="m")
        module = memopt.checkpoint_module(node, chunks=chunks) if wrap else node
        leaf = x.clone().requires_grad_()
        out = torch.cat([module(leaf), module(leaf.flip(0))])  # the second call carries the state on
        (out * inputs(12, 3, 5, seed=1)).sum().backward()
        found.append((out, node.v, leaf.grad))
    same(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    # 1e-5: two float32 backward passes of 12 steps; a lost state would be an error of order 1
    assert (found[0][2] - found[1][2]).norm() < 1e-5 * found[0][2].norm()


def test_optimize_memory():
    x = inputs(4, 2, 2, 6, 6)
    results = []
    for cls, wrap in ((neuron.LIFNode, False), (FusedLIFNode, True)):
        model = net(cls, v_threshold=0.1)
        if wrap:
            model = memopt.optimize_memory(model, FusedLIFNode, lambda m: m(x), level=1)
            assert isinstance(model[2]._checkpoint_wrapped_module, FusedLIFNode)
        out = model(x)
        out.sum().backward()
        results.append((out, [p.grad for p in model.parameters()]))
    same(results[0][0], results[1][0])
    # 1e-5: float32 rounding through 4 steps and 5 layers. The second is left out: a bias before a batch norm, whose
    # gradient is rounding only
    errors = [((a - b).norm() / a.norm()).item() for a, b in zip(results[0][1], results[1][1])]
    assert max(errors[:1] + errors[2:]) < 1e-5, errors


def test_monitors():
    x = inputs(4, 2, 2, 6, 6)
    records = []
    for cls in (neuron.LIFNode, FusedLIFNode):
        model = net(cls, v_threshold=0.1, store_v_seq=True)
        watchers = [monitor.OutputMonitor(model, neuron.LIFNode), monitor.InputMonitor(model, neuron.LIFNode),
                    monitor.AttributeMonitor("v_seq", False, model, neuron.LIFNode),
                    monitor.GradOutputMonitor(model, neuron.LIFNode),
                    monitor.GradInputMonitor(model, neuron.LIFNode)]
        model(x).sum().backward()
        records.append([w.records for w in watchers])
        assert all(len(w.records) == 2 for w in watchers)
    for theirs, mine in zip(*records):
        for a, b in zip(theirs, mine):  # 1e-5: the gradients round on their own, over 4 steps and 5 layers
            assert (a - b).norm() <= 1e-5 * a.norm()
    same(records[0][0][0], records[1][0][0])


def test_a_converted_network():
    """ann2snn makes IF nodes with soft reset; they become ours by their class."""
    torch.manual_seed(0)
    ann = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4), nn.ReLU())
    data = [(torch.rand(16, 6, generator=torch.Generator().manual_seed(1)), torch.zeros(16))]
    model = ann2snn.Converter(dataloader=data, mode="max")(ann) if "dataloader" in inspect.signature(
        ann2snn.Converter).parameters else ann2snn.Converter(ann2snn.RateCodingRecipe(data, mode="max")).convert(ann)
    other = copy.deepcopy(model)
    nodes = [m for m in other.modules() if isinstance(m, neuron.IFNode)]
    assert nodes and all(type(n) is neuron.IFNode for n in nodes)
    for node in nodes:
        node.__class__ = FusedIFNode
    x = data[0][0]
    with torch.no_grad():
        for _ in range(8):
            assert torch.equal(model(x), other(x))
    theirs = [m for m in model.modules() if isinstance(m, neuron.IFNode)]
    assert all(torch.equal(a.v, b.v) and a.v.abs().sum() > 0 for a, b in zip(theirs, nodes, strict=True))


# ---- copies and files -----------------------------------------------------------------------------------------------


@both
def test_deepcopy_and_pickle_keep_everything(host_cls, fused_cls, tmp_path):
    x = inputs(6, 3, 5)
    node = fused_cls(v_reset=None, v_threshold=0.7, step_mode="m", store_v_seq=True)
    with torch.no_grad():
        node(x)
        torch.save(node, tmp_path / "node.pt")
        copies = [copy.deepcopy(node), pickle.loads(pickle.dumps(node)),
                  torch.load(tmp_path / "node.pt", weights_only=False)]
        out = node(x)
        for other in copies:
            assert type(other) is fused_cls
            same(other(x), out)
            assert torch.equal(other.v, node.v) and torch.equal(other.v_seq, node.v_seq)


def test_state_dicts_are_interchangeable():
    host, fused = net(neuron.ParametricLIFNode), net(FusedParametricLIFNode)
    with torch.no_grad():
        host[2].w.fill_(0.3), fused[6].w.fill_(-0.2)
    assert host.state_dict().keys() == fused.state_dict().keys()
    fused.load_state_dict(host.state_dict(), strict=True)
    assert fused[2].w.item() == host[2].w.item()
    with torch.no_grad():
        fused[6].w.fill_(0.9)
    host.load_state_dict(fused.state_dict(), strict=True)
    assert host[6].w.item() == fused[6].w.item() == pytest.approx(0.9)


# ---- dtypes ---------------------------------------------------------------------------------------------------------


@both
@modes
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["float16", "bfloat16"])
def test_half_precision_input_has_a_float32_membrane(host_cls, fused_cls, mode, dtype):
    """Bit-equal to the framework in float32 on the same numbers: more exact than the framework's half membrane."""
    x = inputs(6, 3, 50).to(dtype)
    exact, fused, theirs = (cls(v_threshold=0.7, step_mode=mode, store_v_seq=True)
                            for cls in (host_cls, fused_cls, host_cls))
    run = lambda node, x: node(x) if mode == "m" else torch.stack([node(step) for step in x])  # noqa: E731
    for _ in range(2):
        spikes = run(fused, x)
        same(spikes.float(), run(exact, x.float()))
        assert spikes.dtype == dtype and fused.v.dtype == fused.v_seq.dtype == torch.float32
        assert torch.equal(fused.v, exact.v) and torch.equal(fused.v_seq, exact.v_seq)
        run(theirs, x)
    assert theirs.v.dtype == dtype and not torch.equal(theirs.v.float(), exact.v)  # the difference is real
    leaf = x.clone().requires_grad_()
    run(fused, leaf).sum().backward()
    assert leaf.grad.dtype == dtype and leaf.grad.norm() > 0


@both
@modes
def test_float64(host_cls, fused_cls, mode):
    x = inputs(40, 3, 5).double()
    found = []
    for cls in (host_cls, fused_cls):
        node, leaf = cls(v_threshold=0.7, step_mode=mode).double(), x.clone().requires_grad_()
        out = node(leaf) if mode == "m" else torch.stack([node(step) for step in leaf])
        (out * inputs(40, 3, 5, seed=1)).sum().backward()
        found.append((out, node.v, leaf.grad))
    same(found[0][0], found[1][0])
    assert found[1][1].dtype == torch.float64 and torch.equal(found[0][1], found[1][1])
    assert (found[0][2] - found[1][2]).norm() < 1e-12 * found[0][2].norm()  # float64 rounding over 40 steps


def test_autocast_on_the_cpu():
    """The convolution delivers bfloat16; the membrane stays float32, and all weights get gradients."""
    model = net(FusedLIFNode, v_threshold=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(inputs(5, 2, 2, 6, 6))
    assert model[6].v.dtype == torch.float32 and out.dtype == torch.bfloat16
    out.float().sum().backward()
    assert 0 < out.float().mean() < 1 and all(p.grad is not None for p in model.parameters())


def test_module_half_converts_a_parametric_neuron():
    """w in half: its sigmoid is still taken in float32."""
    node = FusedParametricLIFNode(init_tau=3.0, step_mode="m").half()
    exact = neuron.ParametricLIFNode(init_tau=3.0, step_mode="m")
    exact.w.data = node.w.data.float()
    x = inputs(6, 3, 50).half()
    out = node(x)
    same(out.float(), exact(x.float()))
    assert torch.equal(node.v, exact.v)
    out.sum().backward()
    assert node.w.grad.dtype == torch.float16 and node.w.grad != 0


# ---- what goes to the framework's own equations ---------------------------------------------------------------------


@pytest.fixture
def fresh_warnings(monkeypatch):
    monkeypatch.setattr(ours, "_said", set())


@modes
@pytest.mark.parametrize("case", ["vector", "learns", "integers"])
def test_what_the_kernels_cannot_say_runs_as_in_the_framework(case, mode, fresh_warnings):
    """With a surrogate of the user's own, the framework's loop accepts thresholds that are tensors."""
    theta = torch.linspace(0.5, 1.5, 5).requires_grad_(case == "learns") if case != "integers" else 1.0
    x = inputs(6, 3, 5) if case != "integers" else torch.randint(0, 3, (6, 3, 5))
    found = []
    for cls in (neuron.LIFNode, FusedLIFNode):
        node = cls(surrogate_function=lambda z: surrogate.atan.apply(z, 2.0), step_mode=mode, store_v_seq=True)
        node.v_threshold = theta
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            out = node(x) if mode == "m" else torch.stack([node(step) for step in x])
            if cls is FusedLIFNode:
                assert sum("SpikingJelly's own equations" in str(w.message) for w in caught) == 1
        grad = torch.autograd.grad(out.sum(), theta)[0] if case == "learns" else torch.zeros(1)
        found.append((out, node.v_seq, grad))
    same(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1]) and torch.equal(found[0][2], found[1][2])
    assert case != "learns" or found[1][2].norm() > 0


@both
@pytest.mark.parametrize("store", [False, True], ids=["", "v_seq"])
def test_a_neuron_precision_is_the_frameworks_business(host_cls, fused_cls, store, fresh_warnings, monkeypatch):
    """spikingjelly.activation_based.precision needs Triton: its function must be called with what the node says. Here
    it refuses, and so do we; a single step ignores the setting in both."""
    x = inputs(6, 3, 5)
    errors = []
    for cls in (host_cls, fused_cls):
        node = cls(step_mode="m", store_v_seq=store)
        node._neuron_precision = (torch.float16, "fp32", "fp16")
        with pytest.raises(Exception) as refused, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            node(x)
        errors.append((type(refused.value), str(refused.value)))
        node.step_mode = "s"
        assert node(x[0]).shape == x[0].shape
    assert errors[0] == errors[1]

    name = {neuron.IFNode: "if", neuron.LIFNode: "lif", neuron.ParametricLIFNode: "plif"}[host_cls] + "_multi_step"
    calls = []
    monkeypatch.setattr(functional, name, lambda *a, **k: calls.append((a, k)) or (x, x[0], x if a[-1] else None))
    for cls in (host_cls, fused_cls):
        node = cls(step_mode="m", store_v_seq=store)
        node._neuron_precision = (torch.float16, "fp32", "fp16")
        node(x)
        assert (node.v_seq is x) == store
    (args, keywords), (other_args, other_keywords) = calls
    assert keywords == other_keywords == {"neuron_storage": torch.float16, "neuron_fwd": "fp32", "neuron_bwd": "fp16"}
    assert len(args) == len(other_args)
    for a, b in zip(args, other_args):
        assert torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, torch.Tensor) else a == b or a is b


class Counts:
    """A surrogate function of the user's own, which notes what it is called on, and draws a random number."""

    def __init__(self, rank_only=True):
        self.seen, self.rank_only = [], rank_only

    def __call__(self, z):
        self.seen.append(tuple(z.shape))
        torch.rand(1)
        return surrogate.atan.apply(z if self.rank_only else z.view(3, 5), 2.0)


@pytest.mark.filterwarnings("ignore:memext. running on the slower Torch path")
@pytest.mark.parametrize("rank_only", [True, False], ids=["any-size", "one-size"])
def test_a_function_of_ones_own_is_asked_once(rank_only):
    """Whether it learns: on one element, on the whole only if that fails; the generator is left where it was."""
    function, x = Counts(rank_only), inputs(3, 5).requires_grad_()
    before = torch.random.get_rng_state()
    assert not ours._learns(function, x, x.shape)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert function.seen == ([(1, 1)] if rank_only else [(1, 1), (3, 5)])
    function.seen.clear()
    for _ in range(3):
        FusedLIFNode(surrogate_function=function)(x)
    assert function.seen == [(3, 5)] * 3  # the steps themselves
    known = id(function)
    assert known in ours._asked
    del function
    gc.collect()
    assert known not in ours._asked  # the next object may have this id


def test_what_learns_inside_a_replaced_forward_is_found():
    function, width, x = surrogate.ATan(), torch.tensor(2.0, requires_grad=True), inputs(3, 5)
    assert not ours._learns(function, x, x.shape)
    function.forward = lambda z: torch.sigmoid(width * z)
    assert ours._learns(function, x, x.shape)


@pytest.mark.filterwarnings("ignore:memext. running on the slower Torch path")
def test_what_starts_to_learn_after_the_answer_still_gets_its_gradient():
    width = torch.tensor(2.0)
    node = FusedLIFNode(surrogate_function=lambda z: torch.sigmoid(width * z))
    node(inputs(3, 5))
    node.reset()
    width.requires_grad_()
    assert torch.autograd.grad(node(inputs(3, 5)).sum(), width)[0] != 0


def test_changing_the_input_in_place_is_an_error_and_not_a_wrong_gradient():
    def run(cls, add):
        x = inputs(3, 5).requires_grad_()
        h = x * 2
        h = add(h, cls()(h))
        return torch.autograd.grad(h.sum(), x)[0]

    with pytest.raises(RuntimeError, match="inplace operation"):
        run(FusedLIFNode, lambda h, s: h.add_(s))
    # rtol 1e-6: one step, a few float32 roundings on either side
    torch.testing.assert_close(run(FusedLIFNode, lambda h, s: h + s), run(neuron.LIFNode, lambda h, s: h.add_(s)),
                               rtol=1e-6, atol=0)


def test_hooks_on_all_modules_leave_the_kernels_on(monkeypatch):
    """The default surrogate function is one object for all nodes; a hook on it must not send them to the slow path."""
    model, x = net(FusedLIFNode, v_threshold=0.1), inputs(4, 2, 2, 6, 6)
    names = []
    handles = [m.register_forward_hook(lambda m, *_: names.append(type(m).__name__)) for m in model.modules()]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            monkeypatch.setattr("shared_core.backends._said", set())
            model(x).sum().backward()
            FusedLIFNode()(x)
    finally:
        for handle in handles:
            handle.remove()
    assert names.count("FusedLIFNode") == 2 and "Sigmoid" not in names


# ---- subclasses -----------------------------------------------------------------------------------------------------


class Charges(neuron.LIFNode):
    def neuronal_charge(self, x):
        self.v = self.v.detach() + x


class Doubles(neuron.LIFNode):
    def multi_step_functional_forward(self, inputs, states, **kwargs):
        (spikes,), states = super().multi_step_functional_forward((2 * inputs[0],), states, **kwargs)
        return (spikes,), states


class Named(neuron.LIFNode):
    def extra_repr(self):
        return "mine"


def test_overrides_lists_what_a_subclass_changes():
    assert overrides(neuron.LIFNode, neuron.LIFNode) == overrides(Named, neuron.LIFNode) == []
    assert overrides(FusedLIFNode, neuron.LIFNode) == []
    assert overrides(Charges, neuron.LIFNode) == ["neuronal_charge"]
    assert overrides(Doubles, neuron.LIFNode) == ["multi_step_functional_forward"]
    assert overrides(neuron.HalfThresholdIFNode, neuron.BaseNode) == [
        "materialize_states", "single_step_functional_forward"]
    # no shipped subclass of the three may be mistaken for its base
    for host_cls, _ in PAIRS:
        for cls in vars(neuron).values():
            if inspect.isclass(cls) and issubclass(cls, host_cls) \
                        and cls.__module__.startswith("spikingjelly") and cls is not host_cls:
                assert overrides(cls, host_cls), cls


def test_a_subclass_of_ours_with_equations_of_its_own_is_obeyed():
    class Mine(FusedLIFNode):
        def multi_step_functional_forward(self, inputs, states, **kwargs):
            return super().multi_step_functional_forward((2 * inputs[0],), states, **kwargs)

    x = inputs(6, 3, 5)
    assert overrides(Mine, neuron.LIFNode) == ["multi_step_functional_forward"]
    mine, host = Mine(step_mode="m"), Doubles(step_mode="m")
    same(mine(x), host(x))
    assert torch.equal(mine.v, host.v) and not torch.equal(mine.v, FusedLIFNode(step_mode="m")(x)[-1])


def test_old_equation_methods_in_a_subclass_are_not_ignored_in_silence():
    with pytest.warns(RuntimeWarning, match=r"Old defines neuronal_fire, which SpikingJelly 2 never calls"):
        class Old(FusedIFNode):
            def neuronal_fire(self):
                return self.v > 0


# ---- bad input ------------------------------------------------------------------------------------------------------


def test_bad_input_says_what_is_wrong_and_leaves_the_state():
    node = FusedLIFNode(step_mode="m")
    node(inputs(2, 3))
    before = node.v
    with pytest.raises(MemextError, match="T = 0"):
        node(torch.zeros(0, 3))
    with pytest.raises(MemextError, match="rank 0"):
        node(torch.tensor(1.0))
    assert node.v is before


@modes
def test_what_is_no_tensor_or_no_surrogate_is_refused(mode):
    node = FusedLIFNode(step_mode=mode)
    with pytest.raises(MemextError, match=r"FusedLIFNode: the input is list \[1\]; a tensor is needed"):
        node([1])
    node = FusedParametricLIFNode(surrogate_function=None, step_mode=mode)
    with pytest.raises(MemextError, match=r"FusedParametricLIFNode: surrogate_function is None; allowed: .* Set it"):
        node(inputs(2, 3))
    assert node.v == 0.0


@pytest.mark.parametrize("version, verdict", [
    ("2.0.0", "fine"), ("2.0.0.post1", "fine"), ("2.1.0", "newer"), (None, "does not say"), ("0.0.0.0.14", "in part"),
    ("0.0.0.0.12", "refused"), ("1.9", "refused"), ("3.0.0", "refused")])
def test_version_range(version, verdict):
    if verdict == "refused":
        with pytest.raises(ImportError, match=r">=2\.0\.0,<3"):
            _host.check_version(version)
    elif verdict == "fine":
        assert _host.check_version(version) is None
    else:
        assert verdict in _host.check_version(version)
