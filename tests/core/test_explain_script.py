"""explain of a program: its own training steps are watched, and it is stopped."""
import json
import subprocess
import sys

import pytest

from shared_core.doctor._script import explain_program
from shared_core.errors import MemextError

SPIKINGJELLY = """
import sys
import torch
from torch import nn
from spikingjelly.activation_based import functional, layer, neuron

def main(what="all well", epochs=10):
    torch.manual_seed(0)
    net = nn.Sequential(layer.Linear(6, 8), neuron.LIFNode(v_threshold=0.1), layer.Linear(8, 4),
                        neuron.LIFNode(v_threshold=0.1))
    functional.set_step_mode(net, "m")
    optimizer, losses, total = torch.optim.SGD(net.parameters(), lr=0.01), [], 0.0
    with torch.no_grad():
        net(torch.rand(2, 1, 6))                                # a test before the training
    functional.reset_net(net)
    for epoch in range(epochs):
        loss = net(torch.rand(3, 5, 6)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if what != "no reset":
            functional.reset_net(net)
        if what == "list":
            losses.append(loss)
        if what == "sum":
            total += loss
        if what == "numbers":
            losses.append(loss.item())
        with open("steps.txt", "a") as file:
            file.write("step ")
    with open("steps.txt", "a") as file:
        file.write("end")

if __name__ == "__main__":
    main(*sys.argv[1:2])
"""

SNNTORCH = """
import sys
import torch
import snntorch as snn
from snntorch import utils
from torch import nn

net = nn.Sequential(nn.Linear(6, 8), snn.Leaky(beta=0.9, init_hidden=True, threshold=0.3), nn.Linear(8, 4),
                    snn.Leaky(beta=0.9, init_hidden=True, output=True, threshold=0.3))
spare = nn.Linear(4, 4)
optimizer = torch.optim.SGD([*net.parameters(), *spare.parameters()], lr=0.01)
for batch in range(10):
    if sys.argv[1:] != ["no reset"]:
        utils.reset(net)
    spk_rec, loss = [], 0
    for step in range(7):
        spk, mem = net(torch.rand(5, 6))
        spk_rec.append(spk)
        loss = loss + mem.square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Writes a program, explains it, and puts back what running a program changes in this process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv[:])
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])

    def explained(source, *arguments, **options):
        (tmp_path / "program.py").write_text(source)
        return explain_program("program.py", list(arguments), plan=False, **options)

    return explained


def by_key(found):
    return {finding.key: finding for finding in found.findings}


def steps(folder):
    return (folder / "steps.txt").read_text().split()


def test_a_program_is_stopped_after_three_steps(program, tmp_path):
    found = program(SPIKINGJELLY)
    assert (found.model, found.shapes, found.T, found.N, found.steps) == ("Sequential", [(3, 5, 6)], 3, 5, 1)
    assert [(n.name, n.ours, n.calls) for n in found.neurons] == [("1", "FusedLIFNode", 1), ("3", "FusedLIFNode", 1)]
    assert found.problems == [] and steps(tmp_path) == ["step", "step"]


def test_its_own_arguments_reach_it_and_time_around_the_model_is_counted(program):
    found = program(SNNTORCH)
    assert (found.steps, found.T, found.N, found.shapes) == (7, 7, 5, [(5, 6)])
    assert "around the model" in by_key(found)["looped"].text and not found.problems


@pytest.mark.parametrize("source, names, how", [
    (SPIKINGJELLY, ("1", "3"), "functional.reset_net(net)"),
    (SNNTORCH, ("1", "3"), "snntorch.utils.reset(net)"),
], ids=["spikingjelly", "snntorch"])
def test_backward_a_second_time_is_answered_with_the_neuron_that_was_not_reset(program, source, names, how):
    found = program(source, "no reset")
    crashed, finding = by_key(found)["crashed"], by_key(found)["not reset"]
    assert crashed.problem and "a second time" in crashed.text and "was not reset, below" in crashed.text
    assert finding.problem and finding.modules == names and how in finding.todo and found.advice == finding.todo


@pytest.mark.parametrize("what, variable", [("list", "'losses' in main()"), ("sum", "'total' in main()")])
def test_losses_that_are_kept_with_their_graphs(program, what, variable):
    finding = by_key(program(SPIKINGJELLY, what))["recorded"]
    assert finding.problem and variable in finding.text and "grows with every step" in finding.text


def test_losses_that_are_kept_as_numbers_are_fine(program):
    assert "recorded" not in by_key(program(SPIKINGJELLY, "numbers"))


def test_parameters_without_a_gradient_are_those_of_its_own_backward(program):
    unused = SPIKINGJELLY.replace('functional.set_step_mode(net, "m")',
                                  'functional.set_step_mode(net, "m")\n    net[2].spare = nn.Linear(2, 2)')
    assert by_key(program(unused))["unused"].modules == ("2.spare.weight", "2.spare.bias")


def test_an_exception_of_the_program_is_a_finding(program):
    found = program(SPIKINGJELLY.replace("optimizer.zero_grad()", "raise KeyError('data')"))
    assert "KeyError: 'data'" in by_key(found)["crashed"].text and found.T == 3


def test_a_program_that_ends_early_is_explained_by_what_it_did(program, tmp_path):
    found = program(SPIKINGJELLY.replace("epochs=10", "epochs=1"))
    assert steps(tmp_path) == ["step", "end"] and found.T == 3 and found.problems == []


def test_an_except_of_its_own_does_not_keep_it_going(program, tmp_path):
    program(SPIKINGJELLY.replace("        optimizer.step()\n", "        try:\n            optimizer.step()\n"
                                 "        except Exception:\n            pass\n"))
    assert steps(tmp_path) == ["step", "step"]


@pytest.mark.parametrize("source, match", [
    ("print('hello')", r"called no module with gradients \(it ended\)"),
    ("import sys; sys.exit(3)", "it ended with status 3"),
    ("import torch; torch.nn.ReLU()(torch.rand(1, 3))", "called no module with gradients"),
    ("raise KeyError(3)", "KeyError: 3"),
])
def test_programs_that_train_nothing(program, source, match):
    with pytest.raises(MemextError, match=match):
        program(source)


def test_a_module_instead_of_a_script(program, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "trained_here.py").write_text(SPIKINGJELLY)
    found = explain_program("trained_here", [], module=True, plan=False)
    assert found.T == 3 and steps(tmp_path) == ["step", "step"]


@pytest.mark.slow
def test_the_command_from_outside(tmp_path):
    (tmp_path / "program.py").write_text(SPIKINGJELLY)
    command = [sys.executable, "-m", "shared_core.cli", "explain", "--json=out.json", "program.py", "list"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "WRONG: the variable 'losses' in main() holds" in ended.stdout and "sj_memext.retrofit(net" in ended.stdout
    assert json.loads((tmp_path / "out.json").read_text())["T"] == 3
