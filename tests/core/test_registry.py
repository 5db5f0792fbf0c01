"""The registry on a made-up framework: what is accepted, what is refused and who is named for it."""
import importlib.metadata
import sys
import types

import pytest
from torch import nn

from shared_core import registry
from shared_core.dynamics import IF, LIF
from shared_core.errors import MemextError
from shared_core.registry import NeuronEntry


class HostNode(nn.Module):
    pass


class OtherHostNode(nn.Module):
    pass


class OurNode(HostNode):
    pass


class TheirNode(HostNode):
    pass


@pytest.fixture(autouse=True)
def empty_registry(monkeypatch):
    """A registry that knows nothing, and finds no installed package; returns the list of entry points it finds."""
    for name, empty in (("_entries", {}), ("_served", {}), ("_waiting", []), ("_done", set())):
        monkeypatch.setattr(registry, name, empty)
    found = []
    monkeypatch.setattr(registry, "points", lambda group: [point for point in found if point.group == group])
    return found


@pytest.fixture
def framework(monkeypatch):
    """An installed framework `toynet`, whose namespace is returned."""
    module = types.ModuleType("toynet")
    module.HostNode = HostNode
    monkeypatch.setitem(sys.modules, "toynet", module)
    return module


def entry(name="OurNode", target=OurNode, **kwargs):
    return NeuronEntry(name, "toynet", target, **{"owner": "us", **kwargs})


def point(name, value, group=registry.NEURON_GROUP):
    return importlib.metadata.EntryPoint(name, value, group)


def module_with(monkeypatch, name, **attributes):
    module = types.ModuleType(name)
    module.__spec__ = types.SimpleNamespace(_initializing=False, name=name)
    vars(module).update(attributes)
    monkeypatch.setitem(sys.modules, name, module)
    return module


# ---- accepted ----

def test_a_neuron_appears_in_the_namespace_whether_registered_before_or_after_the_adapter(framework):
    registry.register(entry(replaces=HostNode))
    assert not hasattr(framework, "OurNode")
    registry.serve("toynet", framework)
    assert framework.OurNode is OurNode
    assert registry.replacements("toynet") == {HostNode: OurNode}

    registry.register(entry("TheirNode", TheirNode, owner="them"))
    assert framework.TheirNode is TheirNode
    assert registry.replacements("toynet") == {HostNode: OurNode}, "an entry without `replaces` replaces nothing"


def test_the_same_entry_again_is_fine_whoever_says_it(framework):
    first = registry.register(entry())
    assert registry.register(entry()) is first
    assert registry.register(entry(owner="an entry point")).owner == "us"


def test_classes_may_be_written_as_text_and_are_loaded_when_needed(framework):
    here = __name__
    made = registry.register(entry(target=f"{here}:OurNode", replaces=f"{here}:HostNode",
                                   dynamics="shared_core.dynamics:LIF"))
    registry.serve("toynet", framework)
    assert registry.replacements("toynet") == {HostNode: OurNode}
    assert (made.alphabet, made.backends) == ("binary", ("reference", "native", "cuda"))


def test_alphabet_and_backends_follow_from_the_dynamics():
    class NoStruct(IF):
        struct = None
        alphabet = "integer"

    assert (entry(dynamics=NoStruct).alphabet, entry(dynamics=NoStruct).backends) == ("integer", ("reference",))
    assert (entry(emits="real").alphabet, entry(emits="real").backends) == ("real", ())
    assert entry().alphabet is None


def test_neurons_are_sorted_and_include_the_core_dynamics(framework):
    registry.register(entry("Zeta", TheirNode))
    registry.register(entry("Alpha"))
    rows = registry.neurons()
    assert [(r.framework, r.name) for r in rows] == sorted((r.framework, r.name) for r in rows)
    assert [r.name for r in rows if r.framework == "toynet"] == ["Alpha", "Zeta"]
    assert next(r for r in rows if r.cls is LIF).framework == "core"
    assert [r.name for r in registry.neurons("toynet")] == ["Alpha", "Zeta"]


def test_entry_points_bring_an_entry_or_a_function_that_returns_one(framework, empty_registry, monkeypatch):
    module_with(monkeypatch, "goodpkg", one=entry(owner=""), two=lambda: entry("TheirNode", TheirNode, owner=""))
    empty_registry += [point("toynet.OurNode", "goodpkg:one"), point("toynet.TheirNode", "goodpkg:two")]
    registry.serve("toynet", framework)
    assert (framework.OurNode, framework.TheirNode) == (OurNode, TheirNode)
    assert [row.owner for row in registry.neurons("toynet")] == ["goodpkg", "goodpkg"]


def test_only_the_entry_points_of_the_framework_asked_for_are_loaded(framework, empty_registry, monkeypatch):
    module_with(monkeypatch, "goodpkg", one=entry(owner=""))
    monkeypatch.setitem(sys.modules, "othernet", types.ModuleType("othernet"))
    empty_registry += [point("toynet.OurNode", "goodpkg:one"), point("othernet.X", "no_such_module_at_all:x")]
    registry.serve("toynet", framework)  # would warn if it tried the other
    with pytest.warns(RuntimeWarning, match="no_such_module_at_all"):
        registry.neurons()


# ---- refused ----

def test_a_taken_name_is_refused_and_both_owners_are_named(framework):
    registry.register(entry())
    with pytest.raises(MemextError, match=r"'OurNode' of toynet is already registered by us; them must choose"):
        registry.register(entry(target=TheirNode, owner="them"))
    assert [row.cls for row in registry.neurons("toynet")] == [OurNode]


def test_a_name_of_the_framework_itself_is_never_replaced(framework):
    registry.serve("toynet", framework)
    with pytest.raises(MemextError, match=r"toynet already has a 'HostNode', of .*; us must choose another name"):
        registry.register(entry("HostNode"))
    assert framework.HostNode is HostNode
    assert registry.neurons("toynet") == []


def test_a_host_class_is_replaced_once_and_both_owners_are_named(framework):
    registry.serve("toynet", framework)
    registry.register(entry(replaces=HostNode))
    with pytest.raises(MemextError, match=r"HostNode is already replaced by 'OurNode' of us; 'TheirNode' of them"):
        registry.register(entry("TheirNode", TheirNode, replaces=HostNode, owner="them"))
    assert not hasattr(framework, "TheirNode")


def test_what_replaces_a_class_must_derive_from_it(framework):
    registry.serve("toynet", framework)
    with pytest.raises(MemextError, match="replaces OtherHostNode, and must be a subclass of it"):
        registry.register(entry(replaces=OtherHostNode))


@pytest.mark.parametrize("bad, message", [
    (dict(name="not a name"), "must be a Python identifier"),
    (dict(framework="toy-net"), "import name of the framework"),
    (dict(target="module.without.attribute"), "target is 'module.without.attribute'; a class or 'module:attribute'"),
    (dict(target=None), "target is None"),
    (dict(replaces=3), "replaces is 3"),
], ids=["name", "framework", "target", "no-target", "replaces"])
def test_malformed_entries_say_what_is_wrong(bad, message):
    with pytest.raises(MemextError, match=message):
        registry.register(NeuronEntry(**{**dict(name="N", framework="toynet", target=OurNode), **bad}))


def test_only_entries_can_be_registered():
    with pytest.raises(MemextError, match="type given; a NeuronEntry is needed"):
        registry.register(OurNode)


# ---- other people's failures ----

@pytest.mark.parametrize("value, message", [
    ("module_that_is_not_there:x", "ModuleNotFoundError"),
    ("brokenpkg:missing", "AttributeError"),
    ("brokenpkg:wrong_type", "it is int; a shared_core.registry.NeuronEntry"),
    ("brokenpkg:elsewhere", "its framework is 'othernet'"),
    ("brokenpkg:raises", "ZeroDivisionError"),
    ("brokenpkg:bad_target", "AttributeError"),
])
def test_a_broken_entry_point_is_a_warning_that_names_its_package(framework, empty_registry, monkeypatch, value,
                                                                 message):
    module_with(monkeypatch, "brokenpkg", wrong_type=3, elsewhere=NeuronEntry("N", "othernet", OurNode),
                raises=lambda: 1 / 0, bad_target=NeuronEntry("N", "toynet", f"{__name__}:NoSuchClass"))
    module_with(monkeypatch, "goodpkg", one=entry(owner=""))
    empty_registry += [point("toynet.N", value), point("toynet.OurNode", "goodpkg:one")]
    with pytest.warns(RuntimeWarning, match=message) as caught:
        registry.serve("toynet", framework)
    assert value.partition(":")[0] in str(caught[0].message)
    assert [row.name for row in registry.neurons("toynet")] == ["OurNode"], "the others go on, and it is said once"


def test_an_entry_that_cannot_be_placed_later_is_a_warning(framework):
    registry.register(entry("HostNode"))
    with pytest.warns(RuntimeWarning, match="the neuron 'HostNode' of us was left out"):
        registry.serve("toynet", framework)
    assert registry.neurons("toynet") == []


def test_a_half_imported_package_is_taken_in_at_the_next_request(framework, empty_registry, monkeypatch):
    module = module_with(monkeypatch, "slowpkg")
    module.__spec__._initializing = True  # as Python marks a module whose import is under way
    empty_registry.append(point("toynet.OurNode", "slowpkg:one"))
    registry.serve("toynet", framework)
    assert not hasattr(framework, "OurNode")
    module.one, module.__spec__._initializing = entry(target="slowpkg:Node", owner=""), True
    assert registry.replacements("toynet") == {} and not hasattr(framework, "OurNode"), "its class is still to come"
    module.Node, module.__spec__._initializing = OurNode, False
    registry.neurons("toynet")
    assert framework.OurNode is OurNode


# ---- adapters ----

def test_a_framework_that_is_not_installed_is_listed_as_such(empty_registry):
    empty_registry += [point("absentnet.FooNode", "foopkg:entry"),
                       point("absentnet", "foo_memext", registry.ADAPTER_GROUP),
                       point("gonenet", "gone_memext", registry.ADAPTER_GROUP)]
    rows = {row.name: row for row in registry.neurons() if row.framework != "core"}
    assert rows["FooNode"].backends == ("absentnet is not installed",) and rows["FooNode"].alphabet is None
    assert rows["(adapter gone_memext)"].missing == "gonenet is not installed"
    assert len(rows) == 2
    with pytest.raises(MemextError, match="foo_memext cannot be used: absentnet is not installed"):
        registry.adapters()["absentnet"].load()


def test_adapters_are_found_and_loaded(framework, empty_registry, monkeypatch):
    calls = []
    module = module_with(monkeypatch, "toy_memext", register=lambda: calls.append(1))
    empty_registry.append(point("toynet", "toy_memext", registry.ADAPTER_GROUP))
    assert registry.adapters()["toynet"].load() is module
    assert calls == [1]


def test_listing_the_neurons_loads_the_adapters_and_survives_a_broken_one(framework, empty_registry, monkeypatch):
    module_with(monkeypatch, "toy_memext", register=lambda: registry.register(entry(owner="toy_memext")))
    monkeypatch.setitem(sys.modules, "othernet", types.ModuleType("othernet"))
    empty_registry += [point("othernet", "adapter_that_is_not_there", registry.ADAPTER_GROUP),
                       point("toynet", "toy_memext", registry.ADAPTER_GROUP)]
    with pytest.warns(RuntimeWarning, match="the adapter 'adapter_that_is_not_there' of .* was left out") as caught:
        assert [row.name for row in registry.neurons("toynet")] == ["OurNode"]
        registry.neurons()
        registry.neurons()
    assert len(caught) == 1


def test_a_second_adapter_for_a_framework_is_left_out_and_said_once(framework, empty_registry):
    empty_registry += [point("toynet", "first_memext", registry.ADAPTER_GROUP),
                       point("toynet", "second_memext", registry.ADAPTER_GROUP)]
    with pytest.warns(RuntimeWarning, match="second_memext for toynet, which first_memext already serves") as caught:
        assert registry.adapters()["toynet"].module == "first_memext"
        registry.adapters()
    assert len(caught) == 1
