"""Whole programs under `memext run`: losses are those without us, digit for digit, and the report says what was done.

The programs are those that people run: SpikingJelly's own examples with their own flags, and scripts in the style of
snnTorch's tutorials (scripts/). A process imports Torch and a framework, which takes seconds: most of them are slow.
Over these few steps nothing chaotic has begun, so losses that are printed in full must agree in all digits where the
method runs the same operations in the same order ("neuron", on one thread), and within 1e-5 where gradients are summed
in another order ("reverse", "recompute").
"""
from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent / "scripts"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
MEMEXT = ["-m", "shared_core.cli", "run"]


def python(*arguments, cwd, status=0):
    done = subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd, env=ENVIRONMENT, text=True,
                          capture_output=True, timeout=600)
    assert done.returncode == status, done.stdout + done.stderr
    return done


def losses(text):
    found = [float(value) for value in re.findall(r"loss\s*=?\s*(-?[\d.]+(?:e-?\d+)?)", text)]
    assert len(found) >= 2
    return found


def compared(tmp_path, method, *program, tolerance=0.0, options=()):
    """Runs a program without and with us: (the report as values, its text)."""
    native = python(*program, cwd=tmp_path)
    ours = python(*MEMEXT, "--method", method, "--report", "out", *options, *program, cwd=tmp_path)
    for one, other in zip(losses(native.stdout), losses(ours.stdout), strict=True):
        assert abs(one - other) <= tolerance * abs(one)
    report = json.loads((tmp_path / "out" / "run.json").read_text())
    return report, ours.stderr[ours.stderr.index("memext run:"):]


def checked(report, method, changed, apart=1e-5):
    """The step on copies: spikes equal, gradients within the library's bound, less memory than native."""
    (model,) = report["models"]
    step = model["step"]
    assert model["methods"] == [method] and len(model["changed"]) == changed
    assert step["outputs_equal"] and step["gradients_apart"] <= apart
    return step


# ---- fast: one of each framework ----

def test_a_loop_in_a_forward_is_reversed(tmp_path):
    report, said = compared(tmp_path, "reverse", SCRIPTS / "leaky_explicit.py", "40", tolerance=1e-5,
                            options=["--plot"])
    step = checked(report, "reverse", changed=2)
    assert step["saved_bytes"]["ours"] < 0.3 * step["saved_bytes"]["native"]
    assert "Net: reverse\n    2 Leaky -> FusedLeaky\n    reverse: Net.forward, its loop over time" in said
    assert report["optimizer_steps"] == 4
    assert (tmp_path / "out" / "run.png").read_bytes().startswith(b"\x89PNG")


SPIKING = '''
import sys
import torch
from spikingjelly.activation_based import functional, layer, neuron
torch.manual_seed(0)
net = torch.nn.Sequential(layer.Conv2d(2, 8, 3, padding=1), layer.BatchNorm2d(8), neuron.LIFNode(), layer.Dropout(0.3),
                          layer.Flatten(), layer.Linear(8 * 64, 10), neuron.PSN(T=4), layer.Linear(10, 10),
                          neuron.ParametricLIFNode())
functional.set_step_mode(net, "m")
print(net)
optimizer = torch.optim.SGD(net.parameters(), 0.5, momentum=0.9)
for i in range(4):
    x, y = torch.rand(4, 8, 2, 8, 8) * 4, torch.randint(10, (8,))
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(net(x).mean(0), y)
    loss.backward()
    optimizer.step()
    if "no" not in sys.argv:
        functional.reset_net(net)
    print(f"loss {loss.item()!r} {torch.rand(1).item()}")
'''


def test_recompute_where_whole_sequences_are_seen(tmp_path):
    """Dropout and batch norm are in it, and random numbers are drawn after each step: the comparison moves nothing."""
    (tmp_path / "train.py").write_text(SPIKING)
    report, said = compared(tmp_path, "recompute", "train.py", tolerance=1e-5)
    step = checked(report, "recompute", changed=6)
    assert step["peak_bytes"]["ours"] < 0.7 * step["peak_bytes"]["native"]
    assert "left: 6 (PSN): there is no memory-efficient version of it" in said
    assert "measured on copies of the model: the first batch, forward and backward from the gradient" in said


# ---- what it prints, and says when it goes wrong ----

@pytest.mark.slow
def test_stdout_is_the_programs_and_nothing_is_said_twice(tmp_path):
    (tmp_path / "train.py").write_text(SPIKING)
    native, ours = (python(*how, "train.py", cwd=tmp_path) for how in ([], MEMEXT))
    assert ours.stdout == native.stdout and "LIFNode(" in native.stdout and "Fused" not in ours.stdout
    assert native.stderr == "" and ours.stderr.count("memext run:") == 1


@pytest.mark.slow
def test_the_neuron_that_was_not_reset_is_named(tmp_path):
    (tmp_path / "train.py").write_text(SPIKING)
    native, ours = (python(*how, "train.py", "no", cwd=tmp_path, status=1) for how in ([], MEMEXT))
    assert "second time" in native.stderr and ours.stdout == native.stdout
    trace, _, rest = ours.stderr.partition("memext run: ")
    assert trace.endswith("after calling backward.\n") and "shared_core/program" not in trace
    assert rest.startswith("'2' (LIFNode) of Sequential was not reset: its 'v' still belongs to the graph of an")


@pytest.mark.slow
def test_a_budget(tmp_path):
    (tmp_path / "train.py").write_text(SPIKING)
    for budget, chosen in (("1GiB", "neuron"), ("350KiB", "recompute"), ("10KiB", "recompute")):
        done = python(*MEMEXT, "--budget", budget, "--no-probe", "--report", "out", "train.py", cwd=tmp_path)
        report = json.loads((tmp_path / "out" / "run.json").read_text())
        (model,) = report["models"]
        assert model["methods"] == [chosen] and report["optimizer_steps"] == 4, model
        assert any(note.startswith(f"auto: {chosen}") for note in model["notes"])
        assert ("nothing fits, this is the smallest" in done.stderr) is (budget == "10KiB")


OLD = """
import torch
from spikingjelly.clock_driven import functional, layer, neuron, surrogate

torch.manual_seed(0)
net = torch.nn.Sequential(layer.SeqToANNContainer(torch.nn.Linear(6, 8)),
                          neuron.MultiStepLIFNode(tau=2.0, detach_reset=True, backend="cupy"),
                          layer.SeqToANNContainer(torch.nn.Linear(8, 4)), neuron.MultiStepIFNode(backend="torch"))
optimizer = torch.optim.SGD(net.parameters(), 0.5)
for _ in range(3):
    optimizer.zero_grad()
    loss = (net(torch.rand(4, 5, 6) * 4) - 0.3).square().mean()
    loss.backward()
    optimizer.step()
    functional.reset_net(net)
    print(f"loss {loss.item()!r}")
"""


@pytest.mark.slow
def test_code_for_older_spikingjelly(tmp_path):
    (tmp_path / "train.py").write_text(OLD)
    assert "clock_driven" in python("train.py", cwd=tmp_path, status=1).stderr  # as it is, it cannot run
    plain = python("-c", "import sj_memext.compat, runpy; runpy.run_path('train.py')", cwd=tmp_path)
    ours = python(*MEMEXT, "--legacy", "--method", "recompute", "--report", "out", "train.py", cwd=tmp_path)
    for one, other in zip(losses(plain.stdout), losses(ours.stdout), strict=True):
        assert abs(one - other) <= 1e-5 * abs(one)
    (model,) = json.loads((tmp_path / "out" / "run.json").read_text())["models"]
    assert model["methods"] == ["recompute"] and model["step"]["outputs_equal"], model


# ---- SpikingJelly's own examples ----

def example(tmp_path, method, name, *flags, tolerance=0.0):
    sys.path.insert(0, str(SCRIPTS))
    try:
        import digits
    finally:
        sys.path.remove(str(SCRIPTS))
    digits.write(tmp_path / "data", "FashionMNIST" if "fmnist" in name or "fashion" in name else "MNIST")
    flags = [*flags, "-device", "cpu", "-b", "32", "-epochs", "1", "-j", "0", "-data-dir", tmp_path / "data",
             "-out-dir", "logs", "-opt", "adam", "-lr", "0.01"]
    return compared(tmp_path, method, SCRIPTS / "seeded.py", f"spikingjelly.activation_based.examples.{name}", *flags,
                    tolerance=tolerance)


@pytest.mark.slow
def test_lif_fc_mnist(tmp_path):
    report, _ = example(tmp_path, "neuron", "lif_fc_mnist", "-T", "4", "-tau", "2.0")
    step = checked(report, "neuron", changed=1)
    assert step["how"].startswith("the first batch (4 calls of the model)")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["neuron", "recompute"])
def test_conv_fashion_mnist(tmp_path, method):
    report, _ = example(tmp_path, method, "conv_fashion_mnist", "-T", "2", "-channels", "4", tolerance=1e-4)
    step = checked(report, method, changed=4 if method == "neuron" else 12)
    assert step["peak_bytes"]["ours"] < 0.8 * step["peak_bytes"]["native"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["plain", "ss", "fb"])
@pytest.mark.parametrize("method", ["neuron", "reverse"])
def test_rsnn_sequential_fmnist(tmp_path, method, model):
    report, said = example(tmp_path, method, "rsnn_sequential_fmnist", "-model", model, tolerance=1e-4)
    step = checked(report, method, changed=2 if method == "neuron" else 3)
    if method == "reverse":
        assert "'fc' (Sequential) is stepped through time" in said
        assert step["peak_bytes"]["ours"] < 0.3 * step["peak_bytes"]["native"]


@pytest.mark.slow
def test_an_example_as_a_module_with_its_own_flags(tmp_path):
    example(tmp_path, "neuron", "lif_fc_mnist", "-T", "2")  # writes the data
    done = python(*MEMEXT, "--no-probe", "-m", "spikingjelly.activation_based.examples.lif_fc_mnist", "-T", "2",
                  "-device", "cpu", "-b", "32", "-epochs", "1", "-j", "1", "-data-dir", "data", "-opt", "sgd", "-amp",
                  cwd=tmp_path)
    assert "test_acc" in done.stdout and "1 LIFNode -> FusedLIFNode" in done.stderr


# ---- snnTorch, as its tutorials write it ----

@pytest.mark.slow
def test_a_sequential_stepped_by_the_program(tmp_path):
    report, said = compared(tmp_path, "reverse", SCRIPTS / "leaky_sequential.py")
    step = checked(report, "neuron", changed=3)
    assert step["how"].startswith("the first batch (12 calls of the model)")
    assert "reverse: not Sequential: its neurons are called once a step, by a loop that is in the program" in said


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["0", "2"])
def test_events_from_a_loader_with_workers(tmp_path, workers):
    report, said = compared(tmp_path, "neuron", SCRIPTS / "leaky_events.py", workers)
    checked(report, "neuron", changed=2)
    assert said.count("memext run:") == 1  # workers say nothing


@pytest.mark.slow
@pytest.mark.parametrize("method", ["neuron", "reverse"])
def test_a_recurrent_regression(tmp_path, method):
    report, said = compared(tmp_path, method, SCRIPTS / "rleaky_regression.py", tolerance=1e-5)
    checked(report, method, changed=2)
    assert "left: rlif (RLeaky): there is no memory-efficient version of it" in said


@pytest.mark.slow
@pytest.mark.parametrize("method", ["neuron", "reverse"])
def test_snntorchs_own_epochs(tmp_path, method):
    report, said = compared(tmp_path, method, SCRIPTS / "bptt_epochs.py", tolerance=1e-5)
    assert report["optimizer_steps"] == 6
    step = checked(report, method, changed=2)
    if method == "reverse":
        assert step["saved_bytes"]["ours"] < 0.3 * step["saved_bytes"]["native"] and "one batch" in step["how"]
        assert "reverse: snntorch.backprop.BPTT runs as snntorch_memext.backprop.BPTT" in said


@pytest.mark.slow
def test_sltt_is_another_gradient_and_says_so(tmp_path):
    python(SCRIPTS / "leaky_explicit.py", cwd=tmp_path)
    done = python(*MEMEXT, "--method", "sltt", SCRIPTS / "leaky_explicit.py", cwd=tmp_path)
    assert "sltt: Net.forward, its loop over time" in done.stderr
    assert "outputs equal native's, the gradient " in done.stderr and "as sltt means it" in done.stderr


# ---- several processes ----

PARALLEL = '''
import os, sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from spikingjelly.activation_based import functional, layer, neuron

def main(rank):
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    net = torch.nn.Sequential(layer.Linear(6, 8), neuron.LIFNode(), layer.Linear(8, 3), neuron.IFNode())
    functional.set_step_mode(net, "m")
    net = DistributedDataParallel(net)
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    torch.manual_seed(rank)
    for _ in range(3):
        optimizer.zero_grad()
        loss = (net(torch.rand(4, 5, 6) * 4) - 0.3).square().mean()
        loss.backward()
        optimizer.step()
        functional.reset_net(net)
        if rank == 0:
            print(f"loss {loss.item()!r}", flush=True)
    dist.destroy_process_group()

if __name__ == "__main__":
    if "RANK" in os.environ:
        main(int(os.environ["RANK"]))
    else:
        os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=sys.argv[1])
        torch.multiprocessing.spawn(main, nprocs=2)
'''


@pytest.mark.slow
@pytest.mark.parametrize("how", ["no-python", "module", "spawn"])
def test_two_processes_train_together_and_the_first_reports(tmp_path, how):
    import socket

    (tmp_path / "train.py").write_text(PARALLEL)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port]
    options = ["--method", "recompute"]
    if how == "no-python":
        command = [*launcher, "--no-python", sys.executable, *MEMEXT, *options, "train.py"]
    elif how == "module":
        command = [*MEMEXT, *options, *launcher, "train.py"]
    else:
        command = [*MEMEXT, *options, "train.py", port]
    native = python(*launcher, "train.py", cwd=tmp_path)
    ours = python(*command, cwd=tmp_path)
    for one, other in zip(losses(native.stdout), losses(ours.stdout), strict=True):
        assert abs(one - other) <= 1e-5 * abs(one)
    assert ours.stderr.count("Sequential: recompute") == 1
    assert ours.stderr.count("memext run:") == (2 if how == "spawn" else 1)  # the parent of spawned ones says: nothing
