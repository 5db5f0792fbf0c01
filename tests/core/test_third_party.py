"""A package of somebody else's adds a neuron: installed as any distribution is, seen from a fresh process."""
import os
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("spikingjelly")

NODE = """
    from spikingjelly.activation_based import neuron

    class QuietNode(neuron.EIFNode):
        '''EIFNode that counts its calls.'''
        calls = 0

        def multi_step_forward(self, x_seq):
            type(self).calls += 1
            return super().multi_step_forward(x_seq)
"""

# Imports nothing heavy: the classes are written as text.
ENTRY = """
    from shared_core.registry import NeuronEntry

    node = NeuronEntry("QuietNode", "spikingjelly", "{package}.nodes:QuietNode",
                       replaces="spikingjelly.activation_based.neuron:EIFNode", emits="binary")
"""


def install(folder, package, points, **modules):
    """A distribution as pip leaves it: the package, and beside it the .dist-info with its entry points."""
    (folder / package).mkdir()
    for name, text in {"__init__": "", **modules}.items():
        (folder / package / f"{name}.py").write_text(textwrap.dedent(text))
    info = folder / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[memext.neurons]\n" + "\n".join(points) + "\n")


def run(folder, *arguments):
    paths = [str(folder), os.getcwd(), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "COLUMNS": "200"}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Three packages: a good one, one that wants the same name, one that is broken."""
    folder = tmp_path_factory.mktemp("site")
    install(folder, "apackage", ["spikingjelly.QuietNode = apackage.entry:node"],
            nodes=NODE, entry=ENTRY.format(package="apackage"))
    install(folder, "bpackage", ["spikingjelly.QuietNode = bpackage.entry:node"],
            nodes=NODE, entry=ENTRY.format(package="bpackage"))
    install(folder, "cpackage", ["spikingjelly.Broken = cpackage.entry:node"], entry="import module_of_a_typo")
    return folder


def test_the_command_lists_it_and_names_who_was_refused(installed):
    done = run(installed, "-m", "shared_core.cli", "neurons")
    row, = [line.split() for line in done.stdout.splitlines() if line.startswith("QuietNode")]
    assert row[:4] == ["QuietNode", "apackage", "spikingjelly", "binary"]
    assert any(line.split()[:3] == ["FusedLIFNode", "memext", "spikingjelly"] for line in done.stdout.splitlines())
    assert "already registered by apackage; bpackage must choose another name" in done.stderr
    assert "'cpackage.entry:node' of cpackage was left out" in done.stderr and "module_of_a_typo" in done.stderr


PROGRAM = """
    import sys, warnings
    warnings.simplefilter("ignore")
    {first}
    import sj_memext
    from spikingjelly.activation_based import neuron
    import torch
    from apackage.nodes import QuietNode

    assert neuron.QuietNode is QuietNode
    assert "snntorch" not in sys.modules, "one framework does not bring the other"
    assert not [m for m in ("cupy", "matplotlib", "spikingjelly.datasets") if m in sys.modules]

    net = torch.nn.Sequential(neuron.EIFNode(step_mode="m"), neuron.LIFNode(step_mode="m"))
    sj_memext.retrofit(net)
    net(torch.randn(3, 2, 4))
    assert (type(net[0]), QuietNode.calls) == (QuietNode, 1)
    with sj_memext.substitute("neuron"):
        assert type(neuron.EIFNode()) is QuietNode
    assert type(sj_memext.restore(net)[0]) is neuron.EIFNode
    print("done")
"""


@pytest.mark.parametrize("first", ["pass", "import apackage.nodes"], ids=["framework-first", "package-first"])
def test_it_is_in_the_frameworks_namespace_and_in_retrofit(installed, first):
    done = run(installed, "-c", textwrap.dedent(PROGRAM).format(first=first))
    assert done.stdout.strip() == "done"


def test_a_package_that_imports_the_adapter_itself_is_taken_in(tmp_path):
    """Its entry point leads back into the package while that is being imported."""
    install(tmp_path, "dpackage", ["spikingjelly.DeepNode = dpackage:node"], __init__="""
        import sj_memext
        from sj_memext.neuron import FusedIFNode
        from shared_core.registry import NeuronEntry

        class DeepNode(FusedIFNode):
            pass

        node = NeuronEntry("DeepNode", "spikingjelly", DeepNode, dynamics="shared_core.dynamics:IF")
    """)
    program = """
        import warnings
        warnings.simplefilter("error", RuntimeWarning)
        import dpackage
        from shared_core import registry
        from spikingjelly.activation_based import neuron
        assert "DeepNode" in [row.name for row in registry.neurons("spikingjelly")]
        assert neuron.DeepNode is dpackage.DeepNode
    """
    run(tmp_path, "-c", textwrap.dedent(program))


def test_the_framework_that_is_not_there_is_listed_as_such(tmp_path):
    """snnTorch made unfindable in the child; SpikingJelly's adapter does not need it."""
    install(tmp_path, "epackage", ["snntorch.ENode = epackage:node"])
    program = """
        import sys

        class Hidden:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] == "snntorch":
                    raise ModuleNotFoundError("No module named 'snntorch'", name="snntorch")

        import importlib.util
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, package=None: None if name == "snntorch" else find(name, package)
        sys.meta_path.insert(0, Hidden())
        import sj_memext
        from shared_core.cli import main
        sys.exit(main(["neurons"]))
    """
    done = run(tmp_path, "-c", textwrap.dedent(program))
    row, = [line for line in done.stdout.splitlines() if line.startswith("ENode")]
    assert row.split()[:2] == ["ENode", "epackage"] and row.endswith("snntorch is not installed")
    assert any(line.startswith("FusedLIFNode") for line in done.stdout.splitlines())
