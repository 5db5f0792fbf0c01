"""DistributedDataParallel with two processes on the CPU: the mean of both gradients, each parameter once."""
import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from reversible_worker import CASES, Net, train

HERE = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def processes(tmp_path_factory):
    """What each of the two found, case by case."""
    tmp_path = tmp_path_factory.mktemp("processes")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]), "OMP_NUM_THREADS": "1"}
    outs = [tmp_path / f"{rank}.pt" for rank in range(2)]
    workers = [subprocess.Popen([sys.executable, str(HERE / "reversible_worker.py"), str(rank),
                                 str(tmp_path / "rendezvous"), str(out)], env=environment, text=True,
                                stderr=subprocess.PIPE) for rank, out in enumerate(outs)]
    for worker in workers:
        _, said = worker.communicate(timeout=300)
        assert worker.returncode == 0, said[-2000:]
    return [torch.load(out) for out in outs]


@pytest.mark.parametrize("case", CASES)
def test_two_processes(processes, case):
    found = [process[case] for process in processes]
    single, buffers = [], []
    for rank in range(2):  # the same without DDP and without reversibility, one process after the other
        net = Net(case)
        net.body.reversible = False
        train(net, rank, case, lambda net: contextlib.nullcontext())
        single.append({name: p.grad for name, p in net.named_parameters()})
        buffers.append(dict(net.named_buffers()))
    for name in single[0]:
        a, b = (s[name] for s in single)
        if a is None:
            assert case == "unused" and ("idle" in name or "extra" in name)
            for run in found:  # DDP fills in zeros, or leaves it
                assert run["grads"][name] is None or not run["grads"][name].any()
            continue
        for run in found:
            # one float32 sum of two means; "recompute": the fused gradient's own contract
            torch.testing.assert_close(run["grads"][name], (a + b) / 2, rtol=1e-5, atol=1e-5 * a.abs().max().item())
    used = [name for name in single[0] if single[0][name] is not None]
    for run in found:
        seen = [name.removeprefix("module.") for name in run["seen"] if "idle" not in name]
        assert sorted(seen) == sorted(2 * used), "once in each of two passes"
        assert torch.equal(run["buffers"]["body.blocks.0.f.2.num_batches_tracked"], torch.tensor(2))
    # DDP hands rank 0's statistics to all before every forward pass, so only rank 0's are those of a process alone
    assert all(torch.equal(b, buffers[0][name]) for name, b in found[0]["buffers"].items() if case != "recompute")
