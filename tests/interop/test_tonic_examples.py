"""tonic end to end: the events in examples/data, tonic's transforms, caches and loaders, and the two examples."""
import json
import pickle
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("tonic")
ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
FRAMEWORKS = ("SpikingJelly", "snnTorch")
GRADIENT = 1e-5  # of the norm: float32, sums over time in another order


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


def module_of(framework):
    import tonic_snntorch
    import tonic_spikingjelly

    return {"SpikingJelly": tonic_spikingjelly, "snnTorch": tonic_snntorch}[framework]


# ---- the data ----

def test_the_file_is_what_its_readme_says():
    import _events

    with np.load(_events.FILE) as arrays:
        for split, count in (("train", 1500), ("test", 500)):
            x, y, t, p, offsets = (arrays[f"{split}_{name}"] for name in ("x", "y", "t", "p", "offsets"))
            assert (x.dtype, y.dtype, t.dtype, p.dtype) == (np.uint8, np.uint8, np.uint8, bool)
            assert len(x) == len(y) == len(t) == len(p) == offsets[-1] and offsets[0] == 0
            assert max(x.max(), y.max()) <= 33 and t.max() == 99 and len(offsets) == count + 1
            assert arrays[f"{split}_labels"].shape == arrays[f"{split}_index"].shape == (count,)
            assert len(np.unique(arrays[f"{split}_index"])) == count
            for start, end in pairwise(offsets[:20]):  # each in the order of time, then of p, y, x
                place = ((t[start:end].astype(int) * 2 + p[start:end]) * 34 + y[start:end]) * 34 + x[start:end]
                assert (np.diff(place) >= 0).all()
        assert 0.5 < arrays["train_p"].mean() < 0.6
    assert _events.FILE.stat().st_size < 2_000_000
    readme = (EXAMPLES / "data" / "README.md").read_text()
    assert "saccade_digits.npz" in readme and "simulated" in readme.lower()


def test_events_come_as_tonic_has_them():
    import _events

    digits = _events.SaccadeDigits(train=False)
    events, label = digits[3]
    assert events.dtype == _events.EVENT and len(digits) == 500 and label == int(digits.targets[3])
    assert (np.diff(events["t"]) >= 0).all() and 50_000 < events["t"].max() < 100_000  # microseconds
    shifted = _events.SaccadeDigits(train=False, target_transform=lambda target: target + 100)
    assert shifted[3][1] == label + 100
    with pytest.raises(SystemExit, match="it comes with the repository"):
        _events.SaccadeDigits(file=Path("nothing.npz"))


def test_frames_count_the_events():
    import _events

    plain, framed = _events.SaccadeDigits(), _events.SaccadeDigits(transform=_events.frames())
    for i in (0, 7):
        events, frames = plain[i][0], framed[i][0]
        assert frames.shape[1:] == (2, 17, 17) and frames.sum() <= len(events)  # a last, incomplete step is left out
        first = events["t"][0]
        wanted = np.zeros_like(frames)
        for t, p, y, x in zip((events["t"] - first) // 10_000, events["p"].astype(int), events["y"] // 2,
                              events["x"] // 2):
            if t < len(wanted):
                wanted[t, p, y, x] += 1
        assert np.array_equal(frames, wanted) and len(frames) in (7, 8, 9)


def test_loaders_pad_in_time():
    """Recordings differ in length; a batch has the longest one's, and the others end in zeros."""
    import _events

    data = _events.cached(True, None, 60)
    lengths = [len(data[i][0]) for i in range(60)]
    assert len(set(lengths)) > 1, "nothing to pad: this tests nothing"
    x_seq, labels = next(iter(_events.loader(data, 60)))
    assert x_seq.shape == (max(lengths), 60, 2, 17, 17) and x_seq.dtype == torch.float32
    assert labels.dtype == torch.int64 and labels.tolist() == [data[i][1] for i in range(60)]
    for i, length in enumerate(lengths):
        assert torch.equal(x_seq[:length, i], torch.as_tensor(data[i][0]).float()) and not x_seq[length:, i].any()
    orders = [torch.cat([y for _, y in _events.loader(data, 16, seed=seed)]) for seed in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2]) and len(orders[0]) == 48


def test_both_caches_give_the_same_batches(tmp_path):
    import _events

    memory, disk = _events.cached(True, None, 12), _events.cached(True, tmp_path, 12)
    for _ in range(2):  # the second time from the cache
        for (a, labels), (b, others) in zip(_events.loader(memory, 5), _events.loader(disk, 5), strict=True):
            assert torch.equal(a, b) and torch.equal(labels, others) and labels.dtype == others.dtype
    assert len(memory.samples_dict) == 12 and len(list(tmp_path.rglob("*.hdf5"))) == 12
    assert memory.samples_dict[0][0] is memory[0][0]


def test_a_cached_data_set_goes_to_workers():
    """What spawn does with it."""
    import _events

    data = _events.cached(True, None, 4)
    data[0]
    again = pickle.loads(pickle.dumps(data))
    assert np.array_equal(again[0][0], data[0][0]) and again[3][1] == data[3][1]


# ---- the examples ----

@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_example(framework, tmp_path, capsys):
    import _tonic

    module = module_of(framework)
    cache = {"SpikingJelly": "disk", "snnTorch": "memory"}[framework]
    rows = _tonic.main(framework, module.FORMS, "text", ["--quick", "--cache", cache, "--out", str(tmp_path / "a")])
    printed = capsys.readouterr().out
    assert json.loads((tmp_path / "a" / f"tonic_{framework.lower()}.json").read_text(encoding="utf-8")) == rows
    assert [row["form"] for row in rows] == list(module.FORMS) and rows[0]["steps"] == 3
    assert (tmp_path / "a" / "cache").exists() == (cache == "disk")
    for row in rows:
        assert 0 <= row["accuracy"] <= 1 and row["test_digits"] == 20 and f"{row['peak_mib']:.2f}" in printed
    # The first loss is of the same weights and batch; the last after two steps of Adam with the same gradient.
    assert len({round(row["first_loss"], 5) for row in rows}) == 1
    assert [row["last_loss"] for row in rows[1:]] == pytest.approx([rows[0]["last_loss"]] * 2, rel=1e-3)
    assert rows[2]["peak_mib"] < 0.7 * rows[0]["peak_mib"]
    with pytest.raises(SystemExit):
        _tonic.main(framework, module.FORMS, "text", ["--batch", "0", "--out", str(tmp_path / "b")])
    assert "1 to 500 digits" in capsys.readouterr().err and not (tmp_path / "b").exists()


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_every_form_has_the_first_one_s_gradient(framework):
    import _events

    x_seq, labels = next(iter(_events.loader(_events.cached(True, None, 12), 12)))
    found = {}
    for name, form in module_of(framework).FORMS.items():
        torch.manual_seed(0)
        net = form.build()
        form.rest(net)
        loss = torch.nn.functional.cross_entropy(form.scores(net, x_seq), labels)
        loss.backward()
        found[name] = loss.item(), torch.cat([p.grad.flatten() for p in net.parameters()])
    loss, wanted = next(iter(found.values()))
    assert wanted.norm() > 0
    for other, gradient in found.values():
        assert abs(other - loss) < 1e-6 and (gradient - wanted).norm() < GRADIENT * wanted.norm()


@pytest.mark.slow
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_examples_learn(framework, tmp_path):
    """Chance is 10 %; two of the eight epochs that the example has by default."""
    import _tonic

    rows = _tonic.main(framework, module_of(framework).FORMS, "text", ["--epochs", "2", "--out", str(tmp_path)])
    assert min(row["accuracy"] for row in rows) > 0.5
    assert max(row["accuracy"] for row in rows) - min(row["accuracy"] for row in rows) < 0.06


def test_nothing_here_imports_the_framework_s_data_sets():
    """They need torchaudio (docs/design/interop.md)."""
    found = [str(path.relative_to(ROOT)) for folder in ("shared_core", "sj_memext", "snntorch_memext", "examples",
                                                        "benchmarks") for path in (ROOT / folder).rglob("*.py")
             if re.search(r"^\s*(from|import) spikingjelly(\.| import )datasets", path.read_text(), re.MULTILINE)]
    assert found == []
