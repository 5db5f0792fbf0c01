"""`measure` against formulas. Sizes are exact unless a band is named beside the assertion."""

import gc
import json
import subprocess
import sys
import threading

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from shared_core.errors import MemextError
from shared_core.memory import CATEGORIES, compare, measure, tag

N = 1000
UNIT = 4 * N  # bytes of one float32 tensor of N elements
# The loss, its incoming gradient (twice: its storage and an expanded copy's) and the like: a few scalars.
SCALARS = 64


@pytest.fixture
def w():
    return torch.ones(N, requires_grad=True)


@pytest.fixture(autouse=True)
def nothing_stays_patched():
    from torch.nn.modules import module
    from torch.optim import optimizer

    def state():
        return (torch.autograd._engine_run_backward, "resize_" in torch.UntypedStorage.__dict__,
                len(module._global_forward_hooks), len(module._global_forward_pre_hooks),
                len(optimizer._global_optimizer_pre_hooks), len(optimizer._global_optimizer_post_hooks),
                torch._C._len_torch_dispatch_stack())

    before = state()
    yield
    assert state() == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("memext")]


def live(report):
    return [point.live_bytes for point in report.timeline]


# -- live storages -----------------------------------------------------------------------------------------


def test_freed_tensor_leaves_the_count_at_once():
    x = torch.ones(N)

    def fn():
        y = x * 2
        del y
        z = x + 1
        del z

    report = measure(fn)
    assert live(report) == [UNIT, 0, UNIT, 0]
    assert (report.peak_bytes, report.retained_bytes) == (UNIT, 0)


def test_tensors_without_memory_are_not_counted():
    def run():
        shape = torch.empty(1 << 20, device="meta")
        return torch.ones(64), shape

    report = measure(run)
    assert (report.device, report.peak_bytes) == ("cpu", 256) and "meta" not in report.peak_by_device


def test_views_are_free_and_memory_from_before_is_not_counted():
    x = torch.ones(N)

    def fn():
        y = x.view(10, -1).t()[2:5]
        x.add_(1)
        return y, x.detach(), torch.zeros(N).unsqueeze(0).expand(7, N)

    report = measure(fn)
    assert report.peak_bytes == report.retained_bytes == UNIT


def test_releasing_memory_from_before_does_not_lower_the_count():
    old = [torch.ones(5 * N)]
    report = measure(lambda: (old[0].sum(), old.clear(), torch.ones(N))[2])
    assert report.retained_bytes == UNIT


def test_storage_kept_only_by_the_graph_stays_counted(w):
    def fn():
        y = w.exp()
        loss = y.sum()
        del y
        gc.collect()
        return loss

    report = measure(fn)
    assert report.retained_bytes == UNIT + 4


@pytest.mark.parametrize("make, expected", [
    (lambda: torch.add(torch.zeros(()), 1, out=torch.empty(0)), 4),
    (lambda: torch.add(torch.ones(N), 1, out=torch.empty(0)), UNIT),
    (lambda: torch.empty(N).resize_(3 * N), 3 * UNIT),
    (lambda: torch.ones(N).add_(1).mul_(2), UNIT),
    (lambda: torch.tensor([1.0] * N), UNIT),
    (lambda: torch.eye(N).to_sparse(), N * (4 + 2 * 8)),  # a value and two int64 indices for each
    (lambda: nn.Parameter(torch.ones(N)), UNIT),
], ids=["out-scalar", "out", "resize_", "in-place", "torch.tensor", "sparse", "parameter"])
def test_size_of_what_is_left(make, expected):
    assert measure(make).retained_bytes == expected


def test_resized_storage():
    def fn():
        y = torch.ones(N)
        y.untyped_storage().resize_(0)
        z = torch.ones(N)
        y.untyped_storage().resize_(2 * UNIT)
        return y, z

    report = measure(fn)
    assert live(report) == [UNIT, 0, UNIT, 3 * UNIT]
    assert report.by_category["other"] == report.peak_bytes == 3 * UNIT


def test_storage_emptied_after_the_peak_is_counted_at_the_peak():
    def fn():
        y = torch.ones(N)
        z = torch.ones(N)
        y.untyped_storage().resize_(0)
        return y, z

    report = measure(fn)
    assert report.by_category["other"] == report.peak_bytes == 2 * UNIT


def test_growing_storage_from_before_counts_only_the_growth():
    x = torch.ones(N)
    assert measure(lambda: x.resize_(3 * N)).retained_bytes == 2 * UNIT


def test_backward_operators_are_seen(w):
    report = measure(lambda: w.exp().sum().backward())
    # exp result, plus the gradient of w: result * expanded scalar.
    assert 2 * UNIT <= report.peak_bytes <= 2 * UNIT + SCALARS
    assert report.peak_phase == "backward"
    assert {point.phase for point in report.timeline} == {"forward", "backward"}


# -- saved for backward ------------------------------------------------------------------------------------


def body(x):
    return x.exp().sin().cos()  # saves the result of exp (twice: one storage) and that of sin


class Triple(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        kept = x * 2
        ctx.save_for_backward(kept, kept.view(10, -1), x)
        ctx.extra = {"more": [torch.ones(N)]}
        return x * 3

    @staticmethod
    def backward(ctx, grad):
        return grad * 3


@pytest.mark.parametrize("steps", [1, 7])
def test_saved_is_T_times_N(w, steps):
    def fn():
        h = w
        for _ in range(steps):
            h = h.exp() * 0.1  # saves exp's result; a product with a number saves nothing
        h.sum().backward()

    assert measure(fn).saved_bytes == steps * UNIT


def test_saved_by_custom_function_on_ctx_and_twice(w):
    report = measure(lambda: Triple.apply(w * 1.0).sum().backward())
    assert report.saved_bytes == 3 * UNIT  # kept, x, ctx.extra


def run_plain(w):
    body(w * 2).sum().backward()


def run_checkpoint(w):
    checkpoint(body, w * 2, use_reentrant=False).sum().backward()


def run_reentrant(w):
    checkpoint(body, w * 2, use_reentrant=True).sum().backward()


def run_closure(w):
    def without_arguments(x):
        return lambda: body(x)

    checkpoint(without_arguments(w * 2), use_reentrant=False).sum().backward()


def run_save_on_cpu(w):
    with torch.autograd.graph.save_on_cpu():
        loss = body(w * 2).sum()
    loss.backward()


def run_half_precision_hooks(w):
    hooks = (lambda x: ("half", x.half())), (lambda packed: packed[1].float())
    with torch.autograd.graph.saved_tensors_hooks(*hooks):
        loss = body(w * 2).sum()
    loss.backward()


@pytest.mark.parametrize("run, saved", [
    (run_plain, 2 * UNIT),
    (run_checkpoint, UNIT),  # the block's input
    (run_reentrant, UNIT),
    (run_closure, UNIT),
    (run_save_on_cpu, 2 * UNIT),  # a tensor on the CPU is not copied
    (run_half_precision_hooks, 3 * UNIT // 2),  # one copy per saved tensor: exp's result twice
])
def test_saved_under_the_users_own_hooks(w, run, saved):
    assert measure(lambda: run(w)).saved_bytes == saved
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):  # around, not inside
        assert measure(lambda: run(w)).saved_bytes == saved
    assert w.grad is not None


def test_checkpoint_recomputes_inside_the_backward(w):
    block = nn.Sequential(nn.Linear(N, 3 * N), nn.Sigmoid(), nn.Linear(3 * N, 1))
    report = measure(lambda: checkpoint(block, w * 2, use_reentrant=False).sum().backward())
    assert report.saved_bytes == UNIT
    assert "recompute" in {point.phase for point in report.timeline}
    assert measure(lambda: block(w * 2).sum().backward()).saved_bytes == UNIT + 3 * UNIT


def test_weights_made_inside_are_not_saved_bytes(w):
    def fn():
        layer = nn.Linear(N, 10, bias=False)
        layer(w * 2).sum().backward()

    report = measure(fn)
    assert report.saved_bytes == UNIT  # the layer's input
    assert report.by_category["weights"] == report.by_category["gradients"] == 10 * UNIT


def test_saved_agrees_with_saved_tensor_hooks_on_a_network():
    """Independent count: what an outer pair of hooks is shown, by storage, without parameters and input."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5),
                        nn.Flatten(), nn.Linear(36, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 3))
    x = torch.rand(5, 2, 8, 8)
    apart = {t.untyped_storage()._cdata for t in [x, *net.parameters(), *net.buffers()]}
    shown = {}

    def pack(t):
        storage = t.untyped_storage()
        if storage._cdata not in apart:
            shown[storage._cdata] = storage
        return t.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = nn.functional.cross_entropy(net(x), torch.zeros(5, dtype=torch.long))
    expected = sum(storage.nbytes() for storage in shown.values())
    del loss
    target = torch.zeros(5, dtype=torch.long)
    report = measure(lambda: nn.functional.cross_entropy(net(x), target).backward(), model=net)
    target_bytes = 5 * 8  # made before fn here, inside the hooks above
    assert report.saved_bytes == expected - target_bytes
    assert expected > 9_000
    assert report.saved_bytes <= report.held_bytes <= report.peak_bytes


def test_saved_is_the_largest_of_several_backwards(w):
    def fn():
        w.exp().sum().backward()
        torch.autograd.grad(w.exp().exp().sum(), w)
        w.exp().sum().backward()

    assert measure(fn).saved_bytes == 2 * UNIT


def test_held_also_counts_what_the_user_keeps(w):
    kept = []

    def fn():
        y = w.exp()
        kept.append(y + 1)
        y.sum().backward()

    report = measure(fn)
    assert report.saved_bytes == UNIT
    assert report.held_bytes == 2 * UNIT + 8  # and the loss and its own gradient, which is made first


def test_forward_only(w):
    assert measure(lambda: body(w * 2)).saved_bytes == 2 * UNIT
    with torch.no_grad():
        report = measure(lambda: body(w * 2))
    assert (report.saved_bytes, report.retained_bytes) == (0, UNIT)
    assert report.peak_bytes == 3 * UNIT  # argument of body, results of exp and sin


# -- categories --------------------------------------------------------------------------------------------


class StepNeuron(nn.Module):
    """Soft-reset LIF over T steps; what autograd needs of it is T membranes and T spikes."""

    def __init__(self):
        super().__init__()
        self.v_threshold = 1.0

    def forward(self, x):
        v, out = torch.zeros_like(x[0]), []
        for step in x:
            v = 0.5 * v + step
            s = torch.sigmoid(v - self.v_threshold)
            v = v - s
            out.append(s)
        return torch.stack(out)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.v_threshold = 1.0  # kept for its neuron: must not make the network a neuron
        self.fc, self.norm, self.neuron = nn.Linear(6, 5), nn.BatchNorm1d(5), StepNeuron()
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        h = self.norm(self.fc(x).flatten(0, 1)).view(*x.shape[:2], 5)
        return self.head(self.neuron(h))


def test_categories_add_up_and_name_the_parts():
    T, B = 4, 7
    net, x = Net(), torch.rand(4, 7, 6)
    optimizer = torch.optim.Adam(net.parameters())
    weights = sum(t.numel() * t.element_size() for t in [*net.parameters(), *net.buffers()])
    grads = sum(p.numel() * 4 for p in net.parameters())

    report = measure(lambda: net(x), model=net)
    assert set(report.by_category) == set(CATEGORIES)
    assert sum(report.by_category.values()) == report.peak_bytes
    assert report.by_category["norm inputs"] == T * B * 5 * 4
    assert report.by_category["spikes"] == T * B * 5 * 4
    # The T results of sigmoid, which it saves; the potentials are gone when the neuron returns.
    assert report.by_category["membrane"] == T * B * 5 * 4
    assert report.base_by_category == {"weights": weights}

    def step():
        optimizer.zero_grad()
        net(x).sum().backward()
        optimizer.step()

    first = measure(step)
    assert first.base_by_category["weights"] == weights
    assert "optimizer" in {point.phase for point in first.timeline}
    second = measure(step, model=net, optimizer=optimizer)
    assert second.base_by_category["gradients"] == grads
    steps = len(list(net.parameters())) * 4  # Adam counts its steps in one float32 per parameter
    assert second.base_by_category["optimizer"] == 2 * grads + steps
    assert first.retained_bytes - second.retained_bytes == 2 * grads + steps


def test_gradients_at_the_peak():
    layer = nn.Linear(300, 200, bias=False)
    report = measure(lambda: layer(torch.ones(1, 300)).sum().backward(), model=layer)
    assert report.by_category["gradients"] == 300 * 200 * 4
    assert sum(report.by_category.values()) == report.peak_bytes


def test_marks_and_tags():
    def fn():
        x, y, z = tag(torch.ones(N), "spikes"), torch.ones(N), torch.ones(N)
        tag(x, "norm inputs")
        x._memext_alphabet = y._memext_alphabet = (0, 1)
        x.sum(), y.sum()
        assert tag(z.view(10, -1), "membrane") is not None
        return x, y, z

    found = measure(fn).by_category
    assert (found["norm inputs"], found["spikes"], found["membrane"]) == (UNIT, UNIT, UNIT)
    assert tag(torch.ones(1), "other").shape == (1,)  # without a measurement: nothing happens
    with pytest.raises(MemextError, match=r"'spike'.*spikes"):
        tag(torch.ones(1), "spike")


# -- behaviour ---------------------------------------------------------------------------------------------


def test_exception_propagates_and_the_next_measurement_is_right(w):
    class Stop(Exception):
        pass

    class Bad(nn.Module):
        def forward(self, x):
            raise Stop

    def fail():
        y = w.exp()
        y.register_hook(lambda grad: Bad()(grad))
        y.sum().backward()

    for fn in (lambda: Bad()(w), fail):
        with pytest.raises(Stop):
            measure(fn)
    assert measure(lambda: w.exp()).peak_bytes == UNIT


def test_module_that_raises_inside_does_not_disturb_categories():
    class Bad(nn.Module):
        v_threshold = 1.0

        def forward(self, x):
            raise KeyError

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.bad = Bad()

        def forward(self, x):
            with pytest.raises(KeyError):
                self.bad(x)
            return x + 1

    assert measure(lambda: Outer()(torch.ones(N))).by_category["membrane"] == 0


def test_nested():
    inside = []

    def fn():
        a = torch.ones(N)
        inside.append(measure(lambda: torch.ones(3 * N).sum()))
        return a

    report = measure(fn)
    assert inside[0].peak_bytes == 3 * UNIT + 4
    assert report.peak_bytes == UNIT + inside[0].peak_bytes


def test_shared_parameters_and_unhashable_comparison():
    a, b = nn.Linear(3, 3), nn.Linear(3, 3)
    b.weight = a.weight
    report = measure(lambda: b(a(torch.ones(2, 3))).sum().backward())
    assert report.base_by_category["weights"] == (9 + 3 + 3) * 4


def test_resident_memory_shows_a_large_allocation():
    if not sys.platform.startswith("linux"):
        pytest.skip("resident memory is read from /proc")
    big = 64 * 2**20
    report = measure(lambda: torch.ones(big // 4).sum())
    # Band: the pages themselves, plus at most 64 MiB of whatever the process touches meanwhile.
    assert 0.9 * big <= report.resident_bytes <= 2 * big
    assert report.cuda_allocated_bytes is None


def test_result_and_seconds():
    report = measure(lambda: {"loss": 3}, timeline=False)
    assert report.result == {"loss": 3}
    assert report.timeline == [] and report.peak_bytes == 0 and 0 <= report.seconds < 10


@pytest.mark.parametrize("call, words", [
    (lambda: measure(3), "fn is int.*callable"),
    (lambda: measure(int, model=3), "model is int.*Module"),
    (lambda: measure(int, optimizer=3), "optimizer is int.*state"),
    (lambda: compare({}), "no reports"),
    (lambda: measure(int).plot("x.png"), "no timeline"),
])
def test_bad_arguments_are_named(call, words):
    with pytest.raises(MemextError, match=words):
        call()


def test_output_formats(tmp_path, w):
    report = measure(lambda: run_plain(w))
    report.to_json(tmp_path / "r.json")
    read = json.loads((tmp_path / "r.json").read_text())
    assert read["peak_bytes"] == report.peak_bytes and "result" not in read
    assert read["timeline"] == [list(point) for point in report.timeline]
    report.plot(tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    assert "saved for backward" in report.table() and "7.81 KiB" in report.table()
    rows = compare({"plain": report, "checkpoint": measure(lambda: run_checkpoint(w))}).splitlines()
    cells = rows[3].split()
    assert cells[0] == "checkpoint" and "0.50" in cells  # saved: one tensor instead of two


def test_long_timeline_keeps_its_peak_in_json():
    def fn():
        for i in range(3000):
            torch.ones(N if i == 1234 else 1)

    points = measure(fn).to_dict()["timeline"]
    assert len(points) <= 2000 and max(point[1] for point in points) == UNIT


def test_import_is_light():
    code = """
import sys, shared_core.memory, shared_core.cli
heavy = "spikingjelly", "snntorch", "cupy", "matplotlib", "rich"
print([name for name in sys.modules if name.split(".")[0] in heavy])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_the_allocator():
    w = torch.ones(1 << 20, device="cuda", requires_grad=True)
    report = measure(lambda: body(w * 2).sum().backward())
    assert report.device == "cuda:0" and "backward" in {point.phase for point in report.timeline}
    # Band: the allocator rounds each tensor to 512 B, and reductions may take up to 1 MiB of workspace.
    assert 0 <= report.cuda_allocated_bytes - report.peak_bytes <= 2**20
    assert report.saved_bytes == 2 * w.nbytes
    moved = measure(lambda: run_save_on_cpu(w))
    assert moved.saved_bytes == 0 and moved.saved_by_device["cpu"] == 3 * w.nbytes
