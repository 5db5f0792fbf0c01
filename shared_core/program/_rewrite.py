"""A forward with its loop over time as a function of one step: the same statements, compiled again in memory.

    for step in range(T):                         def body(step, mem1):
        spk1, mem1 = self.lif1(cur, mem1)    ->       spk1, mem1 = self.lif1(cur, mem1)
        rec.append(spk1)                              return (spk1,), (mem1,)
                                                  found = run(range(T), body, start)     # then: rec.extend, mem1 = ...

Only a loop of which every effect is seen is taken: names that are assigned, and lists of the function that are
appended to. Anything else (a tensor or attribute written to, a result thrown away, break, return) leaves it as it is,
and is said.
"""
from __future__ import annotations

import ast
import inspect
import textwrap
import types
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["UNSET", "Unsuited", "rewritten"]

UNSET = object()  # a name that has no value yet
_RUN, _GET, _UNSET = "__memext_run", "__memext_get", "__memext_found"
_LEAVING = (ast.Break, ast.Continue, ast.Return, ast.Yield, ast.YieldFrom, ast.Await, ast.Global, ast.Nonlocal,
            ast.Delete, ast.Try, ast.While, ast.NamedExpr, ast.FunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)


class Unsuited(Exception):
    """Why a loop is left as it is."""


@dataclass
class _Loop:
    """node: the For.  states: names that a step takes and returns.  lists: appended to, in order.
    after: those names that are read after the loop (all states)."""

    node: ast.For
    states: list[str]
    lists: list[str]
    target: str


def rewritten(function: types.FunctionType, run: Callable) -> tuple[types.FunctionType | None, list[str]]:
    """(the function with its loops given to `run`, or None if there is none to give; why loops were left).

    run(iterable, body, start, lists) -> None if there was no step, else (a list of values per list, states, last item).
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None, []
    ast.increment_lineno(tree, function.__code__.co_firstlineno - 1)
    definition = tree.body[0]
    if not isinstance(definition, ast.FunctionDef) or definition.decorator_list:
        return None, []
    left: list[str] = []
    rewriter = _Rewriter(definition, left)
    definition.body = rewriter.block(definition.body)
    if not rewriter.count:
        return None, left
    return _compiled(function, tree, run), left


class _Rewriter:
    def __init__(self, definition: ast.FunctionDef, left: list[str]):
        self.definition, self.left, self.count = definition, left, 0
        arguments = [*definition.args.posonlyargs, *definition.args.args]
        self.own = arguments[0].arg if arguments else ""  # "self", as a rule

    def block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """Loops in a list of statements, and in `if` and `with` below it; not in other loops."""
        out: list[ast.stmt] = []
        for statement in statements:
            if isinstance(statement, ast.If | ast.With):
                statement.body = self.block(statement.body)
                if isinstance(statement, ast.If):
                    statement.orelse = self.block(statement.orelse)
            if isinstance(statement, ast.For) and _calls(statement, self.own):
                try:
                    statement = self.exchanged(_examined(statement, self.definition, self.own))
                except Unsuited as reason:
                    self.left.append(f"the loop in line {statement.lineno}: {reason}")
            out += statement if isinstance(statement, list) else [statement]
        return out

    def exchanged(self, loop: _Loop) -> list[ast.stmt]:
        name, self.count = f"__memext_step_{self.count}", self.count + 1
        node = loop.node
        body = _Appends(loop.lists).visit_all(node.body)
        outs = ", ".join(f"__memext_out_{i}" for i in range(len(loop.lists)))
        states = ", ".join(loop.states)
        frame = ast.parse(
            f"def {name}({', '.join([loop.target, *loop.states])}):\n"
            f"    return ({outs}{',' if outs else ''}), ({states}{',' if states else ''})\n"
            f"{_UNSET} = {_RUN}(None, {name}, {_GET}(locals(), {tuple(loop.states)!r}), {len(loop.lists)})\n"
            f"if {_UNSET} is not None:\n"
            + "".join(f"    {made}.extend({_UNSET}[0][{i}])\n" for i, made in enumerate(loop.lists))
            + (f"    ({states},) = {_UNSET}[1]\n" if states else "")
            + f"    {loop.target} = {_UNSET}[2]\n").body
        step, call, back = frame
        step.body = [*body, *step.body]
        call.value.args[0] = node.iter
        for statement in frame:
            for part in ast.walk(statement):
                if not hasattr(part, "lineno") or part in (step, call, back) or statement is not step:
                    ast.copy_location(part, node)
        return frame


class _Appends(ast.NodeTransformer):
    """rec.append(x) -> out = x;  a += b -> a = a + b, as what a step was given must not change in place."""

    def __init__(self, lists: list[str]):
        self.lists = lists

    def visit_all(self, statements):
        return [self.visit(statement) for statement in statements]

    def visit_Expr(self, node):
        made = _appended(node)
        if made is None:
            return node
        target = ast.Name(f"__memext_out_{self.lists.index(made)}", ast.Store())
        return ast.copy_location(ast.Assign([ast.copy_location(target, node)], node.value.args[0]), node)

    def visit_AugAssign(self, node):
        read = ast.copy_location(ast.Name(node.target.id, ast.Load()), node)
        return ast.copy_location(ast.Assign([node.target], ast.copy_location(ast.BinOp(read, node.op, node.value),
                                                                           node)), node)


def _appended(statement: ast.stmt) -> str | None:
    """The name of a list that this statement appends one value to."""
    call = statement.value if isinstance(statement, ast.Expr) else None
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "append" \
            and isinstance(call.func.value, ast.Name) and len(call.args) == 1 and not call.keywords:
        return call.func.value.id
    return None


def _calls(loop: ast.For, own: str) -> bool:
    """Does it call something of the module's?"""
    return any(isinstance(node, ast.Call) and any(isinstance(part, ast.Name) and part.id == own
                                                  for part in ast.walk(node.func)) for node in ast.walk(loop))


def _examined(loop: ast.For, function: ast.FunctionDef, own: str) -> _Loop:
    """What the loop reads and writes. Raises Unsuited."""
    if loop.orelse or not isinstance(loop.target, ast.Name):
        raise Unsuited("it has an else, or several loop variables")
    lists = [made for statement in loop.body if (made := _appended(statement)) is not None]
    if len(set(lists)) < len(lists):
        raise Unsuited(f"it appends to {max(lists, key=lists.count)!r} more than once")
    target = loop.target.id
    for node in (part for statement in loop.body for part in ast.walk(statement)):
        _refuse(node, target, own)
        if isinstance(node, ast.Expr) and _appended(node) is None and not isinstance(node.value, ast.Constant):
            raise Unsuited(f"line {node.lineno} does something whose result is not used")
        if isinstance(node, ast.Expr) and _appended(node) is not None and node not in loop.body:
            raise Unsuited(f"line {node.lineno} appends under a condition")
    stored, first = _stored_and_read_first(loop.body)
    if target in stored:
        raise Unsuited(f"{target!r} is assigned in it")
    appending = [statement.value.func.value for statement in loop.body if _appended(statement)]
    used = {node.id for statement in loop.body for node in ast.walk(statement) if isinstance(node, ast.Name)
            and isinstance(node.ctx, ast.Load) and not any(node is name for name in appending)}
    if used.intersection(lists):
        raise Unsuited(f"it reads {sorted(used.intersection(lists))[0]!r}, which it appends to")
    inside = {id(node) for node in ast.walk(loop)}
    later = {node.id for node in ast.walk(function) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
             and id(node) not in inside}
    return _Loop(loop, sorted(name for name in stored if name in first or name in later), lists, target)


def _refuse(node: ast.AST, target: str, own: str) -> None:
    if isinstance(node, _LEAVING):
        raise Unsuited(f"line {node.lineno} has a {type(node).__name__.lower()}")
    if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store):
        raise Unsuited(f"line {node.lineno} writes into something that is kept")
    if isinstance(node, ast.AugAssign) and not isinstance(node.target, ast.Name):
        raise Unsuited(f"line {node.lineno} writes into something that is kept")
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr.endswith("_") \
            and not node.func.attr.startswith("__"):
        raise Unsuited(f"line {node.lineno} changes a tensor in place ({node.func.attr})")
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Attribute) \
            and any(isinstance(part, ast.Name) and part.id == target for part in ast.walk(node.slice)) \
            and isinstance(node.value.value, ast.Name) and node.value.value.id == own:
        raise Unsuited(f"{ast.unparse(node)} is another one at every step, so this is no loop over time")


def _stored_and_read_first(body: list[ast.stmt]) -> tuple[set[str], set[str]]:
    """(names assigned, those of them that may be read before that). What is assigned under a condition may not be."""
    stored: set[str] = set()
    sure: set[str] = set()
    first: set[str] = set()

    def read(node: ast.AST) -> None:
        local = {name.id for part in ast.walk(node) if isinstance(part, ast.comprehension)
                 for name in ast.walk(part.target) if isinstance(name, ast.Name)}
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load) and part.id not in sure | local:
                first.add(part.id)

    def write(node: ast.AST, certain: bool) -> None:
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                stored.add(part.id)
                if certain:
                    sure.add(part.id)

    def go(statements: list[ast.stmt], certain: bool) -> None:
        for statement in statements:
            if isinstance(statement, ast.Assign | ast.AnnAssign | ast.AugAssign):
                if statement.value is not None:
                    read(statement.value)
                if isinstance(statement, ast.AugAssign):
                    first.update({statement.target.id} - sure)
                for target in statement.targets if isinstance(statement, ast.Assign) else [statement.target]:
                    write(target, certain)
            elif isinstance(statement, ast.If):
                read(statement.test)
                go(statement.body, False)
                go(statement.orelse, False)
            elif isinstance(statement, ast.For):
                read(statement.iter)
                write(statement.target, False)
                go(statement.body, False)
            elif isinstance(statement, ast.With):
                for item in statement.items:
                    read(item)
                go(statement.body, certain)
            else:
                read(statement)

    go(body, True)
    return stored, first & stored


def _compiled(function: types.FunctionType, tree: ast.Module, run: Callable) -> types.FunctionType:
    """Same file and lines, globals, defaults and closure; `run` and the names' values come in as closure, too."""
    code = function.__code__
    free = [*code.co_freevars, _RUN, _GET]
    outer = ast.parse(f"def __memext_made({', '.join(free)}):\n    pass").body[0]
    outer.body = [tree.body[0], ast.Return(ast.Name(tree.body[0].name, ast.Load()))]
    module = ast.fix_missing_locations(ast.Module([outer], []))
    space: dict[str, object] = {}
    exec(compile(module, code.co_filename, "exec", dont_inherit=True, flags=code.co_flags & 0x1000000), space)
    made = space["__memext_made"](*[None] * len(code.co_freevars), run, _get)
    cells = dict(zip(code.co_freevars, function.__closure__ or ()))
    own = dict(zip(made.__code__.co_freevars, made.__closure__ or ()))
    closure = tuple(cells.get(name, own[name]) for name in made.__code__.co_freevars)
    new = types.FunctionType(made.__code__, function.__globals__, function.__name__, function.__defaults__, closure)
    new.__kwdefaults__, new.__qualname__, new.__module__ = (function.__kwdefaults__, function.__qualname__,
                                                            function.__module__)
    new.__doc__, new.__annotations__ = function.__doc__, function.__annotations__
    return new


def _get(values: dict, names: tuple[str, ...]) -> tuple:
    return tuple(values.get(name, UNSET) for name in names)
