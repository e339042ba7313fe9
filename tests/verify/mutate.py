"""Small wrong versions of an objective, made from the syntax tree of its loss, to see whether checks notice them.

Every method that `terms` reaches is mutated one place at a time, and every function, in the module of the class and in
those of its bases between it and `Objective`. The operators are fixed: exchange + and −, * and /; drop a minus sign, a
factor `self.x`, a `detach`, a `clamp`, a branch of `where`, a keyword of `Term` or of an objective that is a part, the
weight of a part; exchange chosen and rejected, sum and mean, min and max, policy and reference; negate a condition;
turn a comparison round; change a constant or the unit of a mean.
"""

import ast
import copy
import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from types import FunctionType
from typing import Any

from prefopt.core.objective import Objective

SWAPPED = {
    "chosen": "rejected",
    "rejected": "chosen",
    "sum": "mean",
    "mean": "logps",
    "logps": "ref_logps",
    "ref_logps": "logps",
    "minimum": "maximum",
    "maximum": "minimum",
    "amax": "amin",
    "amin": "amax",
    "desirable_weight": "undesirable_weight",
    "undesirable_weight": "desirable_weight",
    "logsigmoid": "sigmoid",
}
OPERATORS = {ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult}
COMPARISONS = {ast.Gt: ast.Lt, ast.Lt: ast.Gt, ast.GtE: ast.LtE, ast.LtE: ast.GtE, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq}
UNITS = {"example": "token", "token": "example", "chosen_token": "example", "group": "token", "best_token": "group"}


@dataclass(frozen=True)
class Mutant:
    """One wrong version: where it differs, in words and as code, and the class."""

    place: str
    change: str
    cls: type[Objective]

    def __str__(self) -> str:
        return f"{self.place}: {self.change}"


def mutants(cls: type[Objective]) -> Iterator[Mutant]:
    """Every mutant of the functions that ``cls.terms`` reaches inside its own module and its bases'."""
    reached = _reached(cls)
    trees = {name: _tree(function) for name, function in reached.items()}
    for name, tree in trees.items():
        for path, (change, replacement) in _sites(tree):
            mutated = {**trees, name: _replaced(tree, path, replacement)}
            yield Mutant(name, change, _compiled(cls, reached, mutated))


def unchanged(cls: type[Objective]) -> Mutant:
    """``cls`` taken apart and compiled like its mutants, with nothing changed: what no check may tell from ``cls``."""
    reached = _reached(cls)
    trees = {name: _tree(function) for name, function in reached.items()}
    return Mutant(cls.__name__, "unchanged", _compiled(cls, reached, trees))


def _reached(cls: type[Objective]) -> dict[str, FunctionType]:
    """Methods as ``self.x`` and functions as ``x``, from `terms` on, that are written in the class's `_modules`."""
    found: dict[str, FunctionType] = {}
    todo = ["self.terms", "self.parts"]  # a sum of objectives is made of its parts
    while todo:
        name = todo.pop()
        function = _resolve(cls, name)
        if function is None or name in found:
            continue
        found[name] = function
        for node in ast.walk(_tree(function)):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
                todo.append(f"self.{node.attr}")
            elif isinstance(node, ast.Name):
                todo.append(node.id)
    return found


def _resolve(cls: type[Objective], name: str) -> FunctionType | None:
    if name.startswith("self."):
        value = inspect.getattr_static(cls, name.removeprefix("self."), None)
    else:
        value = _globals(cls).get(name)
    if isinstance(value, cached_property):
        value = value.func
    elif isinstance(value, property):
        value = value.fget
    if not callable(value) or isinstance(value, (type, staticmethod)):
        return None
    value = inspect.unwrap(value)
    same = isinstance(value, FunctionType) and value.__module__ in _modules(cls)
    return value if same else None


def _modules(cls: type[Objective]) -> list[str]:
    """The modules in which a loss is written: the class's own and those of its bases below `Objective`."""
    bases = cls.__mro__[: cls.__mro__.index(Objective)]
    return list(dict.fromkeys(base.__module__ for base in bases))


def _globals(cls: type[Objective]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for module in reversed(_modules(cls)):
        found |= vars(sys.modules[module])
    return found


def _tree(function: FunctionType) -> ast.FunctionDef:
    tree = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(tree, ast.FunctionDef)
    tree.decorator_list = []
    tree.returns = None
    for argument in (*tree.args.args, *tree.args.kwonlyargs):
        argument.annotation = None
    if tree.args.vararg is not None:
        tree.args.vararg.annotation = None
    if ast.get_docstring(tree) is not None:
        tree.body = tree.body[1:] or [ast.Pass()]
    return tree


def _compiled(
    cls: type[Objective], reached: dict[str, FunctionType], trees: dict[str, ast.FunctionDef]
) -> type[Objective]:
    namespace = _globals(cls)
    methods: dict[str, Any] = {}
    for name, tree in trees.items():
        # ``super()`` needs the cell that a class body would give.
        maker = ast.parse("def _make(__class__):\n    pass")
        # Under a name of its own, or a method would hide a function that is called like it.
        made = copy.copy(tree)
        made.name = "_made"
        maker.body[0].body = [made, ast.Return(ast.Name("_made", ast.Load()))]
        exec(compile(ast.fix_missing_locations(maker), f"<mutant of {name}>", "exec"), namespace)
        function = namespace.pop("_make")(_owner(cls, name))
        if name.startswith("self."):
            static = inspect.getattr_static(cls, tree.name)
            wrap = next((kind for kind in (cached_property, property) if isinstance(static, kind)), None)
            methods[tree.name] = wrap(function) if wrap else function
        else:
            namespace[name] = function
    return type(cls.__name__, (cls,), methods)


def _owner(cls: type[Objective], name: str) -> type:
    method = name.removeprefix("self.")
    return next((base for base in cls.__mro__ if method in vars(base)), cls)


Path = tuple[tuple[str, int | None], ...]


def _walk(node: ast.AST, path: Path = ()) -> Iterator[tuple[Path, ast.AST]]:
    yield path, node
    for field, value in ast.iter_fields(node):
        if isinstance(value, ast.AST):
            yield from _walk(value, (*path, (field, None)))
        elif isinstance(value, list):
            for i, item in enumerate(value):
                if isinstance(item, ast.AST):
                    yield from _walk(item, (*path, (field, i)))


def _replaced(tree: ast.FunctionDef, path: Path, replacement: ast.AST) -> ast.FunctionDef:
    tree = copy.deepcopy(tree)
    node = _at(tree, path[:-1])
    field, i = path[-1]
    if i is None:
        setattr(node, field, replacement)
    else:
        getattr(node, field)[i] = replacement
    return tree


def _sites(tree: ast.FunctionDef) -> Iterator[tuple[Path, tuple[str, ast.AST]]]:
    for path, node in _walk(tree):
        if path and path[0][0] == "body" and not any(field in ("exc", "msg") for field, _ in path):
            for replacement in _replacements(node):
                before, after = _in_context(tree, path, node, replacement)
                yield path, (f"`{before}` becomes `{after}`", replacement)


def _in_context(tree: ast.FunctionDef, path: Path, node: ast.AST, replacement: ast.AST) -> tuple[str, str]:
    """Both versions as code; of a constant or a name the expression around it, which says where it stands."""
    steps = 0
    while (
        isinstance(node, (ast.Constant, ast.Name, ast.UnaryOp, ast.Attribute)) and steps < 3 and len(path) > steps + 1
    ):
        outer = _at(tree, path[: -steps - 1])
        if not isinstance(outer, ast.expr):
            break
        node, steps = outer, steps + 1
    if not steps:
        return _code(node), _code(replacement)
    changed = _replaced(tree, path, replacement)
    return _code(node), _code(_at(changed, path[:-steps]))


def _at(tree: ast.AST, path: Path) -> Any:
    node: Any = tree
    for field, i in path:
        node = getattr(node, field) if i is None else getattr(node, field)[i]
    return node


def _code(node: ast.AST) -> str:
    return " ".join(ast.unparse(node).split())


def _replacements(node: ast.AST) -> Iterator[ast.AST]:
    for make in _MAKERS:
        yield from make(node)


def _operators(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        yield ast.BinOp(node.left, OPERATORS[type(node.op)](), node.right)
        for factor, rest in ((node.left, node.right), (node.right, node.left)):
            if isinstance(node.op, (ast.Mult, ast.Div)) and _is_parameter(factor):
                yield rest
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not, ast.Invert)):
        yield node.operand
    elif isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        yield ast.Compare(node.left, [COMPARISONS[type(node.ops[0])]()], node.comparators)
    elif isinstance(node, (ast.If, ast.IfExp)):
        changed = copy.copy(node)
        changed.test = ast.UnaryOp(ast.Not(), node.test)
        yield changed


def _is_parameter(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


def _names(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.Attribute) and node.attr in SWAPPED:
        yield ast.Attribute(node.value, SWAPPED[node.attr], node.ctx)
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in ("chosen", "rejected"):
        yield ast.Name(SWAPPED[node.id], node.ctx)


def _constants(node: ast.AST) -> Iterator[ast.AST]:
    if not isinstance(node, ast.Constant):
        return
    if isinstance(node.value, bool):
        yield ast.Constant(not node.value)
    elif isinstance(node.value, (int, float)):
        yield ast.Constant(node.value + 1)
    elif node.value in UNITS:
        yield ast.Constant(UNITS[node.value])


def _calls(node: ast.AST) -> Iterator[ast.AST]:
    if not isinstance(node, ast.Call):
        return
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name in ("detach", "clamp", "abs", "relu") and isinstance(node.func, ast.Attribute) and not node.args:
        yield node.func.value
    if name in ("exp", "log", "expm1", "log1p", "logsigmoid", "sigmoid", "relu", "abs") and len(node.args) == 1:
        yield node.args[0]
    if name in ("logsigmoid", "sigmoid") and node.args:
        yield ast.Call(node.func, [ast.UnaryOp(ast.USub(), node.args[0])], node.keywords)
    if name == "where" and len(node.args) == 3:
        yield from node.args[1:]
    if name == "Part" and len(node.args) > 1:
        yield ast.Call(node.func, [node.args[0], ast.Constant(1.0), *node.args[2:]], node.keywords)
    if name in ("Term", "build"):
        for i in range(len(node.keywords)):
            yield ast.Call(node.func, node.args, node.keywords[:i] + node.keywords[i + 1 :])
    if name == "Term":
        for i in range(1, len(node.args)):
            yield ast.Call(node.func, node.args[:i], node.keywords)


_MAKERS: tuple[Callable[[ast.AST], Iterator[ast.AST]], ...] = (_operators, _names, _constants, _calls)
