"""The `memext` command: what it prints, writes and refuses."""

import json
import re
import subprocess
import sys
import types

import pytest

from shared_core import cli
from shared_core.backends import cuda, native

NET = '''
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        return {"out": [self.fc(x), 3]}


def build():
    return Net()


def step(model, x):
    model(x)["out"][0].exp().sum().backward()


def fail():
    raise KeyError("no such layer")


def fail_in_step(model, x):
    raise RuntimeError("one\\ntwo")


def number():
    return 3


def frozen():
    return nn.Linear(6, 5).requires_grad_(False)


text = "x"
'''


@pytest.fixture
def net(tmp_path, monkeypatch):
    """A module of the user's in the current directory; returns its name."""
    (tmp_path / "users_net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "users_net", raising=False)
    yield "users_net"
    sys.modules.pop("users_net", None)


def test_report_writes_table_json_and_png(net, tmp_path, capsys):
    status = cli.main(["report", "--model", f"{net}:build", "--input", "4,6", "--json", "out.json",
                       "--png", "out.png", "--device", "cpu"])
    assert status == 0
    out = capsys.readouterr().out
    assert "peak live tensors on cpu" in out
    assert re.search(r"there before: weights +140 B", out)
    read = json.loads((tmp_path / "out.json").read_text())
    assert read["base_by_category"]["weights"] == (6 * 5 + 5) * 4
    assert "gradients" not in read["base_by_category"]  # those of the trial step are gone
    # A linear layer saves its input and weight, both from before the step: nothing new is saved.
    assert read["saved_bytes"] == 0 < read["peak_bytes"]
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_report_with_a_step_of_the_users(net, tmp_path, capsys):
    assert cli.main(["report", "--model", f"{net}:build", "--input", "4,6", "--step", f"{net}:step",
                     "--json", "out.json"]) == 0
    assert json.loads((tmp_path / "out.json").read_text())["saved_bytes"] == 4 * 5 * 4  # exp's result


@pytest.mark.parametrize("changes, words", [
    ({"--model": "users_net:nothing"}, "--model 'users_net:nothing'.*has no 'nothing'"),
    ({"--model": "no_such_module:build"}, "--model.*importing 'no_such_module'.*ModuleNotFoundError"),
    ({"--model": "users_net"}, "--model 'users_net'.*allowed: module:attribute"),
    ({"--model": "users_net:text"}, "is str.*callable"),
    ({"--model": "users_net:fail"}, "factory raised KeyError: 'no such layer'"),
    ({"--model": "users_net:number"}, "factory returned int.*torch.nn.Module"),
    ({"--model": "users_net:frozen"}, "requires a gradient.*--step"),
    ({"--input": "4,x"}, "--input '4,x' is not a shape.*e.g. 4,8,3,32,32"),
    ({"--input": "4,0"}, "--input '4,0' is not a shape"),
    ({"--input": ""}, "--input '' is not a shape"),
    ({"--input": "4,7"}, "the step on input 4,7 raised RuntimeError"),
    ({"--step": "users_net:fail_in_step"}, "raised RuntimeError: one two"),
    ({"--device": "nonsense"}, "--device 'nonsense' cannot be used"),
    ({"--json": "nowhere/out.json"}, "--json 'nowhere/out.json': there is no folder"),
    ({"--json": "."}, "--json .*cannot be written"),
], ids=lambda value: "" if isinstance(value, str) else " ".join(map("=".join, value.items())))
def test_report_errors_take_one_line_and_status_2(net, capsys, changes, words):
    options = {"--model": f"{net}:build", "--input": "4,6"} | changes
    status = cli.main(["report", *(part for item in options.items() for part in item)])
    error = capsys.readouterr().err
    assert status == 2
    assert error.startswith("memext report: ") and error.count("\n") == 1
    assert re.search(words, error), error


def test_report_resets_state_only_of_loaded_frameworks(net, monkeypatch):
    calls = []
    fake = types.SimpleNamespace(reset_net=calls.append)
    monkeypatch.setitem(sys.modules, "spikingjelly.activation_based.functional", fake)
    monkeypatch.setitem(sys.modules, "snntorch.utils", None)
    assert cli.main(["report", "--model", f"{net}:build", "--input", "4,6"]) == 0
    # After the trial step and after the measured one.
    assert [type(model).__name__ for model in calls] == ["Net", "Net"]


@pytest.fixture
def registry(monkeypatch):
    module = types.ModuleType("shared_core.registry")
    monkeypatch.setitem(sys.modules, "shared_core.registry", module)
    monkeypatch.setattr(sys.modules["shared_core"], "registry", module, raising=False)
    return module


@pytest.mark.parametrize("broken", [[], ["cuda"], ["native", "cuda"]], ids=lambda names: "+".join(names) or "none")
def test_neurons_lists_what_is_registered_and_where_it_can_run(registry, monkeypatch, capsys, broken):
    for name, backend in (("native", native), ("cuda", cuda)):
        monkeypatch.setattr(backend, "unavailable", lambda name=name: f"no {name}" if name in broken else None)
    full = types.SimpleNamespace(name="LIFNode", owner="sj_memext", framework="spikingjelly", alphabet=(0, 1),
                                 backends=["reference", "native", "cuda"])
    registry.neurons = lambda: [full, types.SimpleNamespace(name="Bare")]
    assert cli.main(["neurons"]) == 0
    header, _, first, second, *reasons = capsys.readouterr().out.splitlines()
    assert header.split() == ["name", "owner", "framework", "alphabet", "backends"]
    marked = [name + " (not here)" * (name in broken) for name in ("reference", "native", "cuda")]
    assert first.split() == ["LIFNode", "sj_memext", "spikingjelly", "0,", "1", *", ".join(marked).split()]
    assert second.split() == ["Bare", "-", "-", "-", "-"]
    assert reasons == [f"{name} cannot run on this machine: no {name}" for name in broken]


def test_neurons_when_there_are_none(registry, capsys):
    registry.neurons = list
    assert cli.main(["neurons"]) == 0
    assert capsys.readouterr().out == "No neurons are registered.\n"


@pytest.mark.parametrize("argv, status", [([], 2), (["--help"], 0), (["fly"], 2), (["report"], 2)])
def test_usage(argv, status, capsys):
    assert cli.main(argv) == status
    printed = capsys.readouterr()
    assert "memext" in printed.out + printed.err


def test_runs_as_a_module():
    command = [sys.executable, "-m", "shared_core.cli", "report", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "--model" in done.stdout
