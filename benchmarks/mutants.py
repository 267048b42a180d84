"""Small errors in the safety core, one at a time: what `mutate.py` puts into it.

Comparisons and their bounds, arithmetic, `and` and `or`, numbers, what is returned, calls that are left out. Words are
left alone: docstrings, messages, annotations, what is raised, what is asserted.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CORE: dict[str, tuple[str, ...]] = {
    "robots/safety.py": (), "robots/lease.py": (), "robots/lowering.py": (), "robots/modes.py": (),
    "robots/ending.py": (), "robots/grip.py": (), "robots/commands.py": (), "robots/body.py": (),
    "robots/telling.py": (), "robots/rollout.py": (), "robots/rescue.py": (), "robots/guardian.py": (),
    "robots/torque.py": (),
    "robots/health.py": ("conclude", "altered", "withheld", "_changed", "begin", "_needed_ns", "take", "take_anew",
                         "count"),
    "robots/arm.py": ("exchange", "_sound", "withheld", "has_lost_lines", "is_cut_off", "_begin", "_take",
                      "_is_plausible", "_make_reading", "last_reading", "jumped", "set_torque_limit", "present_goal"),
}  # fmt: skip
"""File -> the functions that count, by their names; empty: all of them."""
Slot = tuple[ast.AST, str, "int | None"]
"""Where a node stands: its parent, the field, and the place in a list."""
COMPARED = {
    ast.Lt: (ast.LtE, ast.GtE), ast.LtE: (ast.Lt, ast.Gt), ast.Gt: (ast.GtE, ast.LtE), ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
SWAPPED: dict[type, type] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift,
}  # fmt: skip
RENAMED = {"min": "max", "max": "min", "minimum": "maximum", "maximum": "minimum", "any": "all", "all": "any"}


@dataclass(frozen=True)
class Mutant:
    """One error. name: `file:function `before` -> `after``, the same as long as the code is. owner: dotted function,
    class, or empty for the module's own statements. lines: of the statement. tree: the module's, with `new` to be put
    into `slot`."""

    file: str
    owner: str
    name: str
    lines: range
    tree: ast.Module
    slot: Slot
    new: ast.AST


def changes(node: ast.AST, is_test: bool) -> Iterator[ast.AST]:
    """What could stand in place of a node. is_test: it is the whole condition of an `if` or a `while`."""
    if isinstance(node, ast.Compare):
        for k, operator in enumerate(node.ops):
            for other in COMPARED[type(operator)]:
                yield ast.Compare(node.left, [*node.ops[:k], other(), *node.ops[k + 1 :]], node.comparators)
    elif is_test and not isinstance(node, ast.UnaryOp):
        yield ast.UnaryOp(ast.Not(), node)
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPPED:
        yield ast.BinOp(node.left, SWAPPED[type(node.op)](), node.right)
    elif isinstance(node, ast.AugAssign) and type(node.op) in SWAPPED:
        yield ast.AugAssign(node.target, SWAPPED[type(node.op)](), node.value)
    elif isinstance(node, ast.BoolOp):
        yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
    elif isinstance(node, ast.UnaryOp):
        yield node.operand
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        yield ast.Constant(not node.value)
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield ast.Constant(node.value + 1 if abs(node.value) < 1000 else 2 * node.value)
        if node.value:
            yield ast.Constant(type(node.value)(0))
    elif isinstance(node, ast.Return) and node.value is not None:
        if not (isinstance(node.value, ast.Constant) and node.value.value in (None, "", False)):
            yield ast.Return(ast.Constant(None))
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield ast.Pass()
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id in RENAMED:
        yield ast.Name(RENAMED[node.id], node.ctx)
    elif isinstance(node, ast.Attribute) and node.attr in RENAMED:
        yield ast.Attribute(node.value, RENAMED[node.attr], node.ctx)


SKIPPED = {"annotation", "returns", "decorator_list", "bases", "type_params", "exc", "ctx", "op", "ops"}


def slots(node: ast.AST, owner: str, statement: ast.stmt | None) -> Iterator[tuple[Slot, str, ast.stmt]]:
    """Every place below `node` where a change can be made, with its function and statement. Words are left alone:
    docstrings, messages, annotations, what is raised, what is asserted."""
    for field, value in ast.iter_fields(node):
        if field in SKIPPED:
            continue
        for k, child in enumerate(value if isinstance(value, list) else [value]):
            if not isinstance(child, ast.AST) or isinstance(child, (ast.JoinedStr, ast.Assert)):
                continue
            if isinstance(child, ast.keyword) and child.arg == "strict":
                continue
            inner, inside = owner, child if isinstance(child, ast.stmt) else statement
            if isinstance(child, ast.ClassDef) or (
                isinstance(child, ast.FunctionDef) and not isinstance(node, ast.FunctionDef)
            ):
                inner = f"{owner}.{child.name}".lstrip(".")
            if isinstance(child, ast.ClassDef) and not is_mutable_class(child):
                continue
            if inside is not None and not is_main_guard(inside):
                yield (node, field, k if isinstance(value, list) else None), inner, inside
                yield from slots(child, inner, inside)


def is_mutable_class(node: ast.ClassDef) -> bool:
    """Not an enumeration (its numbers are names) and not a protocol (it does nothing)."""
    return not {"Enum", "IntEnum", "IntFlag", "Protocol"} & {ast.unparse(base) for base in node.bases}


def is_main_guard(node: ast.stmt) -> bool:
    """`if __name__ == ...`, `if TYPE_CHECKING`: neither runs in a test."""
    return isinstance(node, ast.If) and any(
        w in ast.unparse(node.test) for w in ("__name__", "TYPE_CHECKING")
    )


def get(slot: Slot) -> Any:
    value = getattr(slot[0], slot[1])
    return value if slot[2] is None else value[slot[2]]


def put(slot: Slot, node: ast.AST) -> None:
    if slot[2] is None:
        setattr(slot[0], slot[1], node)
    else:
        getattr(slot[0], slot[1])[slot[2]] = node


def short(node: ast.AST) -> str:
    """Source in one line, of a compound statement only its head."""
    return ast.unparse(node).splitlines()[0]


def mutants_of(file: str) -> Iterator[Mutant]:
    """All mutants of one file of the core, in the order of its lines."""
    tree, seen = ast.parse((ROOT / file).read_text(encoding="utf-8")), Counter[str]()
    for slot, owner, statement in slots(tree, "", None):
        if CORE[file] and owner.rpartition(".")[2] not in CORE[file]:
            continue
        node = get(slot)
        parent = slot[0] if isinstance(slot[0], ast.expr) else statement
        for new in changes(node, slot[1] == "test" and isinstance(node, ast.expr)):
            before = short(parent if parent is not node else statement)
            put(slot, new)
            after = short(parent) if parent is not node else short(new)
            put(slot, node)
            if after == before:
                continue
            name = f"{file}:{owner} `{before}` -> `{after}`"
            seen[name] += 1
            name += f" #{seen[name]}" if seen[name] > 1 else ""
            end = statement.body[0].lineno - 1 if hasattr(statement, "body") else statement.end_lineno
            lines = range(statement.lineno, max(end or 0, statement.lineno) + 1)
            yield Mutant(file, owner, name, lines, tree, slot, new)
