"""lif_memory: EfficientLIF-Net's accounting, for its architectures and for any list of activation shapes."""
import json
import re

import pytest

from shared_core.errors import MemextError
from shared_core.lif_memory import VGG16_NARROW, Sharing, lif_memory, sharing_of

KIB = 1024


@pytest.mark.parametrize(("text", "wanted"), [
    (None, (False, 1)), ("baseline", (False, 1)), ("L", (True, 1)), ("C#2", (False, 2)), ("L+C#8", (True, 8)),
    ("C#16", (False, 16)), ("C#1", (False, 1))])
def test_sharing(text, wanted):
    found = sharing_of(text)
    assert found == Sharing(*wanted) and sharing_of(found) is found
    assert str(found) == {None: "baseline", "C#1": "baseline"}.get(text, text)


@pytest.mark.parametrize("text", ["", "l", "C", "C#", "C#0", "C#-2", "C#2+L", "LC#2", "L+", "+C#2", "L+C", 2, "C#2.5"])
def test_sharing_refused(text):
    with pytest.raises(MemextError, match="allowed"):
        sharing_of(text)


def test_one_layer():
    """4 channels of 8x8, 32 bits each: 1 KiB; the baseline keeps one for each time step."""
    found = lif_memory([(4, 8, 8)], time_steps=7)
    assert (found.forward_bytes, found.backward_bytes) == (KIB, 7 * KIB)
    assert found.forward_mib == 1 / 1024 and found.backward_mib == 7 / 1024


def test_layers_that_share_are_one_membrane():
    shapes = [(4, 8, 8), (4, 8, 8), (2, 4, 4), (4, 8, 8)]
    found = lif_memory(shapes, sharing="L", groups=[[0, 3]])
    assert [m.layers for m in found.membranes] == [("0", "3"), ("1",), ("2",)]
    assert found.forward_bytes == found.backward_bytes == 2 * KIB + 128
    joined = lif_memory(shapes, sharing="L")  # without groups: consecutive layers of one size
    assert [m.layers for m in joined.membranes] == [("0", "1"), ("2",), ("3",)]
    assert lif_memory(shapes, groups=[[0, 3]]).forward_bytes == 3 * KIB + 128  # named, and not asked for


def test_channels_that_share_divide_the_membrane():
    shapes = [(4, 8, 8), (8, 8)]
    assert lif_memory(shapes, sharing="C#4").forward_bytes == (KIB + 256) // 4
    both = lif_memory([(4, 8, 8)] * 3, sharing="L+C#2")
    assert both.forward_bytes == both.backward_bytes == KIB // 2


# By hand, in units of 1/128 MiB, which is 512 channels of 2x2: 13 convolutions on 32x32, pooling after the 2nd, 4th,
# 7th and 10th; the first two share with nobody.
@pytest.mark.parametrize(("sharing", "units"), [
    ("baseline", 2 * 64 + 2 * 32 + 3 * 8 + 3 * 4 + 3 * 1), ("L", 2 * 64 + 32 + 8 + 4 + 1),
    ("C#8", (2 * 64 + 2 * 32 + 3 * 8 + 3 * 4 + 3) / 8)])
def test_vgg16(sharing, units):
    assert lif_memory("vgg16", 32, sharing=sharing).forward_mib == units / 128


@pytest.mark.parametrize(("sharing", "units"), [
    ("baseline", 16 + 6 * 8 + 6 * 4 + 4 * 1), ("L", 16 + 2 * (8 + 4 + 1)), ("L+C#2", 8 + 8 + 4 + 1)])
def test_resnet19(sharing, units):
    """In units of 1/32 MiB, 512 channels of 4x4: a stem of 128 channels, then 3, 3 and 2 blocks at stride 2."""
    assert lif_memory("resnet19", 32, sharing=sharing).forward_mib == units / 32


@pytest.mark.parametrize("architecture", ["vgg16", "resnet19"])
@pytest.mark.parametrize("sharing", ["baseline", "L", "C#4", "L+C#2"])
def test_four_times_at_64_and_49_times_at_224(architecture, sharing):
    small = lif_memory(architecture, 32, sharing=sharing)
    for size, factor in ((64, 4), (224, 49), ((64, 32), 2)):
        found = lif_memory(architecture, size, sharing=sharing)
        assert found.forward_bytes == factor * small.forward_bytes
        assert found.backward_bytes == factor * small.backward_bytes


def test_options_of_an_architecture():
    assert lif_memory("vgg16", 32, sharing="L", widths=VGG16_NARROW).forward_mib == 1.2265625  # the paper's 1.23
    one_a_stage = [list(range(1, 7)), list(range(7, 13)), list(range(13, 17))]
    assert lif_memory("resnet19", 32, sharing="L", groups=one_a_stage).forward_mib == 0.5 + 0.25 + 0.125 + 0.03125
    assert lif_memory("har_net", 16, time_steps=8).backward_bytes == 8 * 5 * 128 * 16 * 4
    assert lif_memory("har_net", (16,), sharing="L").forward_bytes == 128 * 16 * 4
    assert lif_memory("vgg16") == lif_memory("vgg16", (32, 32), sharing="baseline", time_steps=5)
    assert lif_memory("vgg16", (33, 47)).membranes[-1].shape == (512, 2, 2)  # pooling rounds down
    assert lif_memory("resnet19", (33, 47)).membranes[-1].shape == (512, 5, 6)  # strides round up


def test_figures_as_text_and_json():
    found = lif_memory([(4, 8, 8)] * 2, sharing="L+C#2")
    values = json.loads(json.dumps(found.to_dict()))
    assert values["membranes"] == [{"shape": [4, 8, 8], "layers": ["0", "1"], "channels": 2, "bytes": KIB // 2}]
    assert values["forward_mib"] == found.forward_mib
    assert "0, 1" in found.table() and "C#2" in found.table()


@pytest.mark.parametrize(("arguments", "options", "message"), [
    (("vgg19",), {}, "no architecture 'vgg19'; allowed: vgg16, resnet19, har_net"),
    (("vgg16", 8), {}, "each at least 16"),
    (("vgg16", (32,)), {}, "2 numbers"),
    (("vgg16", 0), {}, "positive whole number"),
    (("vgg16", 32), {"widths": (64, 64)}, "vgg16 has 5"),
    (("vgg16", 32), {"sharing": "C#3"}, "128 channels of layer 0 cannot be divided into 3"),
    (("vgg16", 32), {"time_steps": 0}, "time_steps is 0"),
    (("vgg16", 32), {"sharing": "X"}, "sharing='X'"),
    (("resnet19", 32), {"sharing": "L", "groups": [[0, 1]]}, "cannot share a membrane: their activations are"),
    (([(4, 2)],), {"sharing": "L", "groups": [[0], [0]]}, "names layer 0"),
    (([(4, 2)],), {"sharing": "L", "groups": [[1]]}, "names layer 1"),
    (([(4, 2)],), {"sharing": "L", "groups": [["a"]]}, "names layer 'a'"),
    (([(4, 2)], 32), {}, "of a list of shapes there is no sample"),
    (([(4, 2)],), {"widths": (1,)}, "of a list of shapes there is no widths"),
    (([(4, 0)],), {}, "shape is 0"),
])
def test_refused(arguments, options, message):
    with pytest.raises(MemextError, match=re.escape(message)):
        lif_memory(*arguments, **options)
