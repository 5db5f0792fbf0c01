"""The benchmarks of T-RevSNN run, and their files hold what the README's table is made from."""
import io
import json

import numpy
import pytest

from benchmarks import _t_revsnn, accuracy_t_revsnn, readme, t_revsnn_memory


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("MEMEXT_RESULTS", str(tmp_path))
    return tmp_path


def results(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


@pytest.fixture
def data(tmp_path):
    """The folders that are read, with random contents."""
    draw, folder = numpy.random.default_rng(0), tmp_path / "data"
    for name in ("MNIST/raw", "cifar10_jpeg", "mnist_saccade_events"):
        (folder / name).mkdir(parents=True)
    for split, file in (("train", "train"), ("test", "t10k")):
        labels = draw.integers(0, 10, 40).astype(numpy.uint8)
        images = draw.integers(0, 256, (40, 28, 28)).astype(numpy.uint8)
        (folder / f"MNIST/raw/{file}-images-idx3-ubyte").write_bytes(bytes(16) + images.tobytes())
        (folder / f"MNIST/raw/{file}-labels-idx1-ubyte").write_bytes(bytes(8) + labels.tobytes())
        numpy.savez(folder / f"cifar10_jpeg/{split}.npz", labels=labels, **_jpeg(draw))
        events = numpy.zeros(40 * 50, [("x", "u1"), ("y", "u1"), ("t", "i4"), ("p", "u1")])
        events["x"], events["y"] = draw.integers(0, 34, (2, len(events)))
        events["t"] = numpy.sort(draw.integers(0, 300_000, (40, 50))).reshape(-1)
        events["p"] = draw.integers(0, 2, len(events))
        numpy.savez(folder / f"mnist_saccade_events/{split}.npz", events=events, labels=labels,
                    offsets=numpy.arange(41) * 50)
    return folder


def _jpeg(draw):
    from PIL import Image

    files = []
    for _ in range(40):
        file = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (32, 32, 3)).astype(numpy.uint8)).save(file, "JPEG")
        files.append(file.getvalue())
    return {"blob": numpy.frombuffer(b"".join(files), numpy.uint8), "offsets": numpy.cumsum([0, *map(len, files)])}


@pytest.mark.parametrize("task", _t_revsnn.TASKS)
def test_accuracy(elsewhere, data, task):
    accuracy_t_revsnn.main(["--data", str(data), "--task", task, "--quick"])
    found = results(elsewhere, f"accuracy_t_revsnn_{task}")
    row, = found["rows"]
    assert row["complete"] and row["steps"] == 2 and 0 <= row["accuracy"] <= 1
    assert [point["samples"] for point in row["curve"]] == [16, 32]
    assert found["quick"] and found["training_samples"] == 40 and "data" not in found


def test_events_are_counted_by_step(data):
    split = _t_revsnn.TASKS["events"].read(data, "train", 3, 6)
    assert tuple(split.x.shape) == (3, 6, 2, 34, 34)
    assert split.x.sum((1, 2, 3, 4)).tolist() == [49, 49, 49]  # ToFrame's last bin ends before the last event
    x, labels = _t_revsnn.TASKS["events"].batch(split, _t_revsnn.torch.arange(2))
    assert tuple(x.shape) == (6, 2, 2, 34, 34) and len(labels) == 2


@pytest.mark.slow
def test_memory(elsewhere, monkeypatch):
    t_revsnn_memory.main(["--quick", "--time", "--threads", "1"])
    found = results(elsewhere, "t_revsnn_memory")
    assert [row["T"] for row in found["growth"]] == [2, 4, 2, 4] and len(found["rows"]) == 4
    ours, plain = (row["peak, B per state and column"] for row in found["slopes"])
    assert ours < plain / 5 and found["slopes"][0]["of which states kept"] == 0
    assert len(found["times"]) == 2 and (elsewhere / "t_revsnn_memory.png").read_bytes()[:4] == b"\x89PNG"
    monkeypatch.setattr(readme, "RESULTS", elsewhere)
    assert "reversible" in readme.t_revsnn_memory()


def test_channels_for_a_number_of_parameters():
    assert t_revsnn_memory.of_the_size(4, 15_215_912) == (64, 128, 256, 384)
    for steps in (2, 8, 16):
        channels = t_revsnn_memory.of_the_size(steps, 15_215_912)
        assert channels[0] % steps == 0
        assert t_revsnn_memory.parameters_of(channels, steps) == pytest.approx(15.2e6, rel=0.2)
