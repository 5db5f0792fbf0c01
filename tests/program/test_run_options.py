"""What `memext run` refuses before the program starts: one line, status 2, and how its arguments are split."""
from __future__ import annotations

import pytest

from shared_core import cli
from shared_core.program import _command


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "train.py"
    path.write_text("raise SystemExit('it ran')\n")
    return str(path)


@pytest.mark.parametrize("arguments, said", [
    ([], "a program is needed"),
    (["--method", "magic", "SCRIPT"], "--method 'magic' is unknown; allowed: neuron, compress, recompute, reverse"),
    (["--method", "auto", "SCRIPT"], "--method auto needs --budget"),
    (["--method", "reverse", "--budget", "8GiB", "SCRIPT"], "--method reverse does not go with --budget"),
    (["--budget", "8 apples", "SCRIPT"], "--budget '8 apples' is no size"),
    (["--plot", "SCRIPT"], "--plot needs a folder"),
    (["no_such_script.py"], "there is no 'no_such_script.py'"),
    (["-m"], "a program is needed"),
    (["--report", "SCRIPT/under/a/file", "SCRIPT"], "cannot be made"),
])
def test_refused_in_one_line(arguments, said, script, capsys):
    status = cli.main(["run", *(part.replace("SCRIPT", script) for part in arguments)])
    out, error = capsys.readouterr()
    assert (status, out) == (2, "") and error.startswith("memext run: ") and error.count("\n") == 1
    assert said in error


@pytest.fixture
def asked(monkeypatch):
    """What would be run: (options, target, arguments, is it a module)."""
    seen = []
    monkeypatch.setattr(_command, "_run", lambda *what: seen.append(what) or 0)

    def ask(*arguments):
        assert cli.main(["run", *arguments]) == 0
        return seen.pop()
    return ask


def test_options_after_the_program_are_the_programs(asked, script, tmp_path):
    options, target, arguments, module = asked("--method", "recompute", "--report", str(tmp_path / "out"), script,
                                               "--method", "mine", "-m", "x", "--", "--plot")
    assert (options.method, options.plot, target, module) == ("recompute", False, script, False)
    assert arguments == ["--method", "mine", "-m", "x", "--", "--plot"] and (tmp_path / "out").is_dir()


def test_a_module_and_a_budget(asked):
    options, target, arguments, module = asked("--budget", "2GiB", "--no-probe", "-m", "pack.train", "-b", "4")
    assert (options.method, options.budget, options.probe) == ("auto", 2 << 30, False)
    assert (target, arguments, module) == ("pack.train", ["-b", "4"], True)


def test_torchrun_as_a_module_starts_us_in_its_workers(asked):
    _, target, arguments, _ = asked("--method", "reverse", "-m", "torch.distributed.run", "--nproc-per-node", "2",
                                    "train.py", "--lr", "1")
    assert target == "torch.distributed.run"
    assert arguments == ["--nproc-per-node", "2", "-m", "shared_core.cli", "run", "--method", "reverse", "train.py",
                         "--lr", "1"]
    _, _, arguments, _ = asked("-m", "torch.distributed.run", "-m", "pack.train", "x")
    assert arguments == ["-m", "shared_core.cli", "run", "-m", "pack.train", "x"]
