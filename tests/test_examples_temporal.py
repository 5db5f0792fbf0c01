"""The examples of stepping through time, in their quick form, and the recordings that they train on."""
import json
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"


@pytest.fixture(autouse=True)
def examples(monkeypatch):
    """One thread: the sizes are tiny."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def task_of(framework):
    import temporal_snntorch
    import temporal_spikingjelly

    return {"snntorch": temporal_snntorch, "spikingjelly": temporal_spikingjelly}[framework].TASK


@pytest.mark.parametrize("framework", ["snntorch", "spikingjelly"])
def test_temporal(framework, tmp_path, capsys):
    import _temporal

    rows = _temporal.main(task_of(framework), "text", ["--quick", "--out", str(tmp_path / "new" / "folder")])
    data = json.loads((tmp_path / "new" / "folder" / f"temporal_{framework}.json").read_text(encoding="utf-8"))
    assert data["rows"] == rows and [row["method"] for row in rows] == ["plain", "reverse", "SLTT"]
    printed = capsys.readouterr().out
    for row in rows:
        assert 0 <= row["accuracy"] <= 1 and row["step_s"] > 0 and f"{row['peak_mib']:.2f}" in printed
    # The first loss is of the same weights and batch; the last after two steps of Adam with BPTT's gradient, whose
    # rounding differs where there is batch norm.
    assert len({round(row["first_loss"], 5) for row in rows}) == 1
    assert rows[1]["last_loss"] == pytest.approx(rows[0]["last_loss"], rel=1e-3)
    assert rows[1]["peak_ratio"] < 0.6 and rows[2]["peak_ratio"] < 0.6
    peaks = {(row["method"], row["T"]): row["peak_mib"] for row in data["growth"]}
    assert peaks["plain", 64] > 2.5 * peaks["plain", 8]  # eight times the steps, beside what does not grow
    assert peaks["SLTT", 64] < 1.5 * peaks["SLTT", 8]  # outputs of every step
    assert (tmp_path / "new" / "folder" / f"temporal_{framework}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize("framework", ["snntorch", "spikingjelly"])
def test_reverse_has_the_gradient_of_the_plain_loop(framework):
    import _activity

    task = task_of(framework)
    part = _activity.load()[0][:8]
    x = _activity.frames(part.samples, 16, 4)
    found = {}
    for method, way in task.methods.items():
        torch.manual_seed(0)
        net = task.build()
        task.rest(net)
        loss = way(net, x, part.labels)
        found[method] = loss, torch.cat([p.grad.flatten() for p in net.parameters()])
    wanted = found["plain"][1]
    # float32 and T = 29; measured 0 (snnTorch) and 1e-7 (SpikingJelly, batch norm).
    assert (found["reverse"][1] - wanted).norm() < 1e-5 * wanted.norm()
    assert (found["SLTT"][1] - wanted).norm() > 0.05 * wanted.norm()
    assert max(abs(loss - found["plain"][0]) for loss, _ in found.values()) < 1e-5


def test_gradient_similarity(tmp_path, capsys):
    import gradient_similarity

    rows = gradient_similarity.main(["--quick", "--out", str(tmp_path)])
    assert json.loads((tmp_path / "similarity.json").read_text(encoding="utf-8")) == rows
    assert [(row["tau"], row["step"]) for row in rows] == [(tau, i) for tau in (1.1, 2.0) for i in (0, 2)]
    for row in rows:
        for name in ("spatial", "case 1", "case 2"):
            assert len(row[name]) == 6 and all(-1 <= value <= 1 + 1e-12 for value in row[name])
    # Little is carried over with tau = 1.1 (v[t-1] counts 1 / 11): BPTT's gradient is nearly spatial.
    assert min(rows[0]["spatial"]) > 0.9 > min(rows[2]["spatial"])
    assert (tmp_path / "similarity.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert "1.1" in capsys.readouterr().out


def test_the_cases_are_cut_where_they_say():
    """No temporal gradient anywhere is SLTT's; everywhere is BPTT's; the state's path is the only difference."""
    import _similarity

    torch.manual_seed(0)
    net = _similarity.build(2.0, width=2)
    x, labels = torch.rand(3, 1, 28, 28).expand(4, 3, 1, 28, 28), torch.tensor([0, 1, 2])
    found = _similarity.gradients(net, x, labels)
    _similarity.bptt(net, x, labels, [False] * 6)
    for p, wanted, other in zip(_similarity.weights(net), found["spatial"], found["BPTT"]):
        assert (p.grad - wanted).norm() < 1e-5 * wanted.norm()  # sums over steps in another order
        assert (p.grad - other).norm() > 1e-3 * other.norm()
    assert _similarity.case(1) == [False, True] * 3 and _similarity.case(2) == [True, False] * 3
    assert not any(torch.equal(a, b) for a, b in zip(found["case 1"][:4], found["case 2"][:4]))
    assert all(node.temporal for node in _similarity.nodes(net))


def test_bad_arguments_are_named(capsys, tmp_path):
    import _temporal
    import gradient_similarity

    with pytest.raises(SystemExit):
        _temporal.main(task_of("snntorch"), "text", ["--epochs", "0", "--out", str(tmp_path / "out")])
    assert "at least one epoch" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gradient_similarity.main(["--every", "0", "--out", str(tmp_path / "out")])
    assert "--every is 0; at least 1 is needed" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_recordings_are_what_their_readme_says():
    import _activity

    with np.load(_activity.FILE) as arrays:
        assert arrays["windows"].shape == (2736, 128, 6) and arrays["windows"].dtype == np.int16
        assert (np.bincount(arrays["labels"]) == 456).all() and (np.bincount(arrays["subjects"])[1:] == 114).all()
        assert (arrays["starts"] % 128 == 0).all()
        places = np.stack([arrays[name] for name in ("subjects", "trials", "labels", "starts")], 1)
        assert len(np.unique(places, axis=0)) == 2736  # no window twice
        # Trials belong to an activity; down and up stairs, walking, jogging, standing, sitting.
        trials = [set(arrays["trials"][arrays["labels"] == a]) for a in range(6)]
        assert trials == [{1, 2, 11}, {3, 4, 12}, {7, 8, 15}, {9, 16}, {6, 14}, {5, 13}]
        scale = arrays["windows"] * arrays["step"]
        assert 0.02 < scale[arrays["labels"] == 5, :, :3].std() < 0.1 < scale[arrays["labels"] == 3, :, :3].std()
    assert _activity.FILE.stat().st_size < 2_000_000


def test_no_subject_is_in_both_sets():
    import _activity

    train, test = _activity.load()
    assert (len(train), len(test)) == (2052, 684)
    assert set(train.subjects.tolist()) == set(range(1, 19)) and set(test.subjects.tolist()) == set(range(19, 25))
    assert train.samples.std((0, 1)).allclose(torch.ones(6))


def test_frames_by_hand():
    import _activity

    samples = torch.arange(2 * 128 * 6, dtype=torch.float32).view(2, 128, 6)
    found = _activity.frames(samples, 4, 3)
    assert found.shape == (_activity.steps(4, 3), 2, 24) and len(found) == 42
    step = found[5, 1].view(6, 4)  # channel by channel
    assert torch.equal(step, samples[1, 15:19].T)


def test_a_missing_file_is_named(tmp_path):
    import _activity

    with pytest.raises(SystemExit, match="it comes with the repository"):
        _activity.load(tmp_path / "nothing.npz")
