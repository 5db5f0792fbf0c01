"""Which storages does an autograd graph keep for its backward? Answered by walking the graph.

Nothing is hooked while the forward runs, so the answer stays right when the user's code has saved-tensor
hooks of its own (`save_on_cpu`, non-reentrant checkpoint): hooks do not nest, an outer pair sees nothing.
"""

from __future__ import annotations

import functools
import types

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_SavedTensor = torch._C._autograd.SavedTensor
# What a graph merely points at, or what cannot hold a tensor.
_LEAVES = (str, bytes, int, float, complex, bool, type(None), type, types.ModuleType, torch.nn.Module,
           torch.optim.Optimizer, torch.dtype, torch.device, torch.Size, torch.Generator)
# How far Python objects hanging off the graph are followed; a cut keeps a strange object graph affordable.
_MAX_OBJECTS = 5000

can_walk = hasattr(_SavedTensor, "data")


def storages_of(tensor):
    """The storages under `tensor`: one for a strided tensor, several for sparse ones and wrapper subclasses.

    Empty for tensors without a storage to look at (functorch wrappers, mkldnn).
    """
    try:
        if type(tensor) in _PLAIN and tensor.layout is torch.strided:
            return (tensor.untyped_storage(),)
        if is_traceable_wrapper_subclass(tensor):
            inner = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
        elif tensor.layout is torch.sparse_coo:
            inner = [tensor._indices(), tensor._values()]
        elif tensor.layout in (torch.sparse_csr, torch.sparse_bsr):
            inner = [tensor.crow_indices(), tensor.col_indices(), tensor.values()]
        elif tensor.layout in (torch.sparse_csc, torch.sparse_bsc):
            inner = [tensor.ccol_indices(), tensor.row_indices(), tensor.values()]
        else:
            return (tensor.untyped_storage(),)
        return tuple(storage for part in inner for storage in storages_of(part))
    except (NotImplementedError, RuntimeError):
        return ()


def tensors_in(obj, into=None):
    """List of the tensors inside nested lists, tuples and dicts, in order; appended to `into` if given."""
    into = [] if into is None else into
    if isinstance(obj, torch.Tensor):
        into.append(obj)
    elif isinstance(obj, (list, tuple)):
        for item in obj:
            if isinstance(item, torch.Tensor):  # the usual case, without another call
                into.append(item)
            elif isinstance(item, (list, tuple, dict)):
                tensors_in(item, into)
    elif isinstance(obj, dict):
        tensors_in(list(obj.values()), into)
    return into


@functools.cache
def _raw_saved_names(node_type):
    return tuple(name for name in dir(node_type) if name.startswith("_raw_saved_"))


def held_by_graph(roots):
    """Storages that the graph behind `roots` keeps alive for its backward.

    Counted: tensors saved by builtin and custom autograd functions, what saved-tensor hooks put in their
    place, the inputs a checkpoint keeps, and tensors in attributes of a custom function's ctx.
    roots: tensors or gradient edges.
    Returns: {storage address: storage} and the names of nodes that cannot be looked into (C++ functions).
    """
    held, opaque = {}, set()
    nodes, objects, seen = [], [], set()
    for root in roots:
        node = getattr(root, "grad_fn", None) or getattr(root, "node", None)
        if node is not None:
            nodes.append(node)
    budget = _MAX_OBJECTS
    while nodes or objects:
        if nodes:
            node = nodes.pop()
            if node in seen:
                continue
            seen.add(node)
            nodes.extend(edge[0] for edge in node.next_functions if edge[0] is not None)
            objects.extend(_saved_in(node))
            if type(node).__name__.startswith("Cpp") or node.name().startswith("torch::autograd::CppNode"):
                opaque.add(node.name())
            continue
        obj = objects.pop()
        if isinstance(obj, torch.Tensor):
            for storage in storages_of(obj):
                held[storage._cdata] = storage
            continue
        if isinstance(obj, _LEAVES):
            continue
        if isinstance(obj, torch.autograd.graph.Node):
            nodes.append(obj)
            continue
        if isinstance(obj, _SavedTensor):
            objects.extend(_inside(obj))
            continue
        # The object itself stays in `seen`, so that its id cannot be taken by another one meanwhile.
        key = _Same(obj)
        if key not in seen and budget > 0:
            budget -= 1
            seen.add(key)
            objects.extend(_inside(obj))
    return held, opaque


class _Same:
    """Hashes any object by identity and keeps it alive."""

    __slots__ = ("obj",)

    def __init__(self, obj):
        self.obj = obj

    def __hash__(self):
        return id(self.obj)

    def __eq__(self, other):
        return isinstance(other, _Same) and self.obj is other.obj


def _saved_in(node):
    for name in _raw_saved_names(type(node)):
        try:
            saved = getattr(node, name)
        except RuntimeError:  # already freed by an earlier backward
            continue
        yield from saved if isinstance(saved, (list, tuple)) else (saved,)
    yield from getattr(node, "__dict__", {}).values()


def _inside(obj):
    """What a Python object that hangs off the graph refers to; one level."""
    if isinstance(obj, _SavedTensor):
        try:
            hook, data = obj.unpack_hook, obj.data
        except RuntimeError:
            return ()
        # With hooks, `data` is whatever the pack hook returned; the unpack hook may hold the rest.
        return (data,) if hook is None else (data, hook)
    if isinstance(obj, (list, tuple, set, frozenset)):
        return tuple(obj)
    if isinstance(obj, dict):
        return tuple(obj.values())
    if isinstance(obj, types.FunctionType):
        return tuple(_cells(obj)) + (obj.__defaults__ or ())
    if isinstance(obj, types.MethodType):
        return (obj.__self__, obj.__func__)
    if isinstance(obj, functools.partial):
        return (obj.func, *obj.args, *obj.keywords.values())
    slots = (getattr(obj, name, None) for cls in type(obj).__mro__ for name in _slot_names(cls))
    return (*getattr(obj, "__dict__", {}).values(), *slots)


def _cells(function):
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not filled yet
            continue


def _slot_names(cls):
    names = cls.__dict__.get("__slots__", ())
    return (names,) if isinstance(names, str) else names
