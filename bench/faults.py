"""The faults that can be put into the modules that decide numbers or claims, and these modules with all of them behind
switches.

A fault is one changed operator, comparison, constant or condition, or one statement or condition left out.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What decides numbers and claims.
DECIDE = (
    *("metrics.py", "sums.py", "axes.py", "centering.py", "state/*.py", "statistics/*.py", "experiments/*.py"),
    *("runs/measurement.py", "runs/checkpoint.py", "runs/shard_tree.py", "runs/mixing.py", "runs/part.py"),
    *("loss/*.py", "probe/*.py", "ops/*.py", "models/output.py", "models/baseline.py", "corpora/pair*.py"),
    *("corpora/seen.py", "corpora/sample.py", "integrations/alerts.py", "integrations/scalars.py"),
    *("integrations/step_means.py", "integrations/held_out.py"),
)
SWAPPED: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.Mult,
    ast.Pow: ast.Mult, ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or,
    ast.Or: ast.And, ast.USub: ast.UAdd, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
CALLED_INSTEAD = {"min": "max", "max": "min", "any": "all", "all": "any"}
# The module of the copy that says which fault is in force; of a process of its own, the environment says it.
SWITCH = "_fault_in_force"
IN_FORCE = "CONE_FAULT"
SWITCH_SOURCE = f'import os\n\nnumber = int(os.environ.get("{IN_FORCE}", "-1"))\n'


@dataclass(frozen=True)
class Fault:
    """One change of one module; `number` counts the changes of all modules in the order of walks over their trees."""

    module: Path  # relative to ROOT
    line: int
    words: str
    number: int


def modules() -> list[Path]:
    """What decides numbers and claims, without the files that hand on a package's names."""
    found = {path for pattern in DECIDE for path in (ROOT / "cone_kernels").glob(pattern)}
    return sorted(path for path in found if path.stem != "__init__")


def faults_of(source: str, module: Path, first: int = 0) -> list[Fault]:
    """Every fault that can be put into a module's source, numbered from `first`.

    Examples:
        >>> [fault.words for fault in faults_of("ONE = 1\\n", Path("cone_kernels/sums.py"))]
        ['cone_kernels/sums.py:1: 1 → 2']
    """
    return [
        Fault(module, getattr(node, "lineno", 0), _words(module, node, changed), number)
        for number, (node, changed) in enumerate(_changes(ast.parse(source)), first)
    ]


def switched(source: str, first: int = 0) -> str:
    """The source with each of its faults behind a switch: the one whose number is in force holds, -1 is none."""
    tree = ast.parse(source)
    changes: dict[ast.AST, list[tuple[int, ast.AST]]] = {}
    for number, (node, changed) in enumerate(_changes(tree), first):
        changes.setdefault(node, []).append((number, changed))
    _Switch(changes).visit(tree)
    future = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module == "__future__"]
    documented = isinstance(tree.body[0], ast.Expr) and isinstance(tree.body[0].value, ast.Constant)
    place = tree.body.index(future[-1]) + 1 if future else int(documented)
    tree.body.insert(place, ast.ImportFrom("cone_kernels", [ast.alias(SWITCH)], 0))
    return ast.unparse(ast.fix_missing_locations(tree))


def _words(module: Path, node: ast.AST, changed: ast.AST) -> str:
    words = f"{module}:{getattr(node, 'lineno', 0)}: {ast.unparse(node)} → {ast.unparse(changed)}"
    return " ".join(words.split())[:300]


def _changes(tree: ast.Module) -> Iterator[tuple[ast.AST, ast.AST]]:
    """(node, what takes its place) of every change, by a walk that is the same for a copy of the tree."""
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AnnAssign, ast.arg)):
            hints = [getattr(node, "returns", None), getattr(node, "annotation", None)]
            skipped |= {id(part) for hint in hints if hint is not None for part in ast.walk(hint)}
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped |= {id(part) for part in ast.walk(node)}
        # How a class or a function is made, such as a frozen dataclass.
        for decorator in getattr(node, "decorator_list", ()):
            skipped |= {id(part) for part in ast.walk(decorator)}
        if isinstance(node, (ast.JoinedStr, ast.Raise)):  # words
            skipped |= {id(part) for child in ast.iter_child_nodes(node) for part in ast.walk(child)}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        for changed in _changed(node):
            yield node, changed


def _changed(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.UnaryOp, ast.AugAssign)) and type(node.op) in SWAPPED:
        yield _with(node, op=SWAPPED[type(node.op)]())
        if isinstance(node, ast.BoolOp):
            for left_out in range(len(node.values)):
                kept = [value for place, value in enumerate(node.values) if place != left_out]
                yield kept[0] if len(kept) == 1 else ast.BoolOp(node.op, kept)
    elif isinstance(node, ast.Compare):
        for changed in range(len(node.ops)):
            yield _with(node, ops=[SWAPPED[type(op)]() if at == changed else op for at, op in enumerate(node.ops)])
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CALLED_INSTEAD:
        yield _with(node, func=ast.Name(CALLED_INSTEAD[node.func.id], ast.Load()))
    elif isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
        value = not node.value if isinstance(node.value, bool) else node.value + 1
        yield ast.Constant(value if not isinstance(node.value, float) else 2 * node.value + (node.value == 0))
    elif isinstance(node, (ast.If, ast.IfExp)):
        yield _with(node, test=ast.UnaryOp(ast.Not(), node.test))
    elif isinstance(node, ast.AugAssign | ast.Raise) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield ast.Pass()


def _with(node: ast.AST, **fields: object) -> ast.AST:
    other = copy.deepcopy(node)
    for name, value in fields.items():
        setattr(other, name, value)
    return other


class _Switch(ast.NodeTransformer):
    """Puts what a node is changed into beside it; a condition is turned round where it stands, its body once."""

    def __init__(self, changes: dict[ast.AST, list[tuple[int, ast.AST]]]) -> None:
        self._changes = changes

    def visit(self, node: ast.AST) -> ast.AST:
        visited = self.generic_visit(node)
        for number, changed in self._changes.get(node, ()):
            in_force = ast.parse(f"{SWITCH}.number == {number}", mode="eval").body
            if isinstance(visited, (ast.If, ast.IfExp)) and isinstance(node, (ast.If, ast.IfExp)):
                visited.test = ast.IfExp(in_force, ast.UnaryOp(ast.Not(), visited.test), visited.test)
            elif isinstance(visited, ast.stmt):
                visited = ast.If(in_force, [changed], [visited])  # type: ignore[list-item]
            else:
                visited = ast.IfExp(in_force, changed, visited)  # type: ignore[arg-type]
        return visited
