"""Are the tests of the safety core as strict as they look? Each mutant is the core with one small error in it.

    python benchmarks/mutate.py --record                      the tests once, under coverage: who reaches which line
    python benchmarks/mutate.py --sample 150 --seed 1         a fixed sample, as CI runs it
    python benchmarks/mutate.py --all --jobs 2                every mutant;  --file robots/lease.py: those of one file

The tests are collected once; every mutant is a forked child in which the changed function has its new code, and only
the tests that reach its line run, the fastest first, until one fails. A mutant that no test notices must stand in
tests/safety/survivors.md, with the reason why that is no harm; any other survivor fails the run.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import json
import os
import random
import re
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import coverage
import pytest

ROOT = Path(__file__).parents[1]
EXPLAINED = ROOT / "tests/safety/survivors.md"
TIMES = ROOT / ".safety/times.json"
TESTS = ["tests/safety", "tests/runtime/test_safety.py", "tests/robots/test_lowering.py"]
CORE: dict[str, tuple[str, ...]] = {
    "robots/safety.py": (), "robots/lease.py": (), "robots/lowering.py": (), "robots/modes.py": (),
    "robots/ending.py": (), "robots/grip.py": (), "robots/commands.py": (), "robots/body.py": (),
    "robots/telling.py": (), "robots/rollout.py": (), "robots/rescue.py": (), "robots/guardian.py": (),
    "robots/torque.py": (),
    "robots/health.py": ("restarted", "withheld", "begin", "_needed_ns", "take", "take_anew", "count"),
    "robots/arm.py": ("exchange", "_sound", "has_lost_lines", "is_cut_off", "_begin", "_take", "_is_plausible",
                      "_make_reading", "last_reading", "jumped", "set_torque_limit", "present_goal"),
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
CPU_LIMIT_S, WALL_LIMIT_S, MEMORY = 20.0, 90, 4 << 30


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


# -- making them ------------------------------------------------------------------------------------------------


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
            if isinstance(child, ast.ClassDef):
                inner = f"{owner}.{child.name}".lstrip(".")
            elif isinstance(child, ast.FunctionDef) and not isinstance(node, ast.FunctionDef):
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
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


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


# -- putting one in place, in a child ---------------------------------------------------------------------------


def module_of(file: str) -> ModuleType:
    return importlib.import_module("edgevla." + file.removesuffix(".py").replace("/", "."))


def find(namespace: Any, owner: str) -> Any:
    """A function or class by its dotted name, without what decorates it."""
    for part in owner.split("."):
        namespace = (namespace if isinstance(namespace, dict) else vars(namespace))[part]
    found = getattr(namespace, "fget", None) or getattr(namespace, "__func__", namespace)
    return getattr(found, "__wrapped__", found)


def install(mutant: Mutant) -> None:
    """In this process the core has the error from now on."""
    module = module_of(mutant.file)
    put(mutant.slot, mutant.new)
    ast.fix_missing_locations(mutant.tree)
    if not mutant.owner:
        return install_constant(module, mutant.tree)
    scratch = {key: value for key, value in vars(module).items() if key.startswith("__")}
    exec(compile(mutant.tree, mutant.file, "exec"), scratch)
    old, new = find(vars(module), mutant.owner), find(scratch, mutant.owner)
    if isinstance(old, type):  # a dataclass: its defaults
        old, new = old.__init__, new.__init__
    else:
        old.__code__ = new.__code__
    plain = (int, float, str, bool, type(None))
    if all(isinstance(value, plain) for value in new.__defaults__ or ()):
        old.__defaults__ = new.__defaults__


def install_constant(changed: ModuleType, tree: ast.Module) -> None:
    """The module's assignments anew, and whatever other modules made of them or imported."""
    core = {name: module for name, module in sys.modules.items() if is_of_core(module)}
    ours = [m for name, m in sys.modules.items() if name.startswith(("edgevla", "tests"))]
    for module in core.values():
        source = tree if module is changed else ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8"))
        for statement in (s for s in source.body if isinstance(s, (ast.Assign, ast.AnnAssign)) and s.value):
            before = dict(vars(module))
            exec(compile(ast.Module([statement], []), "constant", "exec"), vars(module))
            for name in [n for n, v in vars(module).items() if n in before and v is not before[n]]:
                for other in ours:
                    if vars(other).get(name) is before[name]:
                        setattr(other, name, vars(module)[name])


def is_of_core(module: ModuleType) -> bool:
    return any(module.__name__ == "edgevla." + f.removesuffix(".py").replace("/", ".") for f in CORE)


# -- running ----------------------------------------------------------------------------------------------------


class Runner:
    """A pytest plugin that replaces its loop: the collected tests are run once per mutant, those that matter."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.has_failed = options, False
        self.survivors: list[Mutant] = []
        self.n_run: Counter[str] = Counter()
        self.n_killed: Counter[str] = Counter()
        self.cover: coverage.Coverage | None = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.has_failed = self.has_failed or report.failed

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if session.testsfailed:
            raise session.Interrupted("the tests cannot be collected")
        if self.cover is not None:
            self._record(session, self.cover)
        else:
            self._mutate(session)
        return True

    def _record(self, session: pytest.Session, cover: coverage.Coverage) -> None:
        times = {}
        for item, following in zip(session.items, [*session.items[1:], None], strict=True):
            cover.switch_context(item.nodeid)
            begun = time.process_time()
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            times[item.nodeid] = time.process_time() - begun
        TIMES.write_text(json.dumps(times), encoding="utf-8")

    def _mutate(self, session: pytest.Session) -> None:
        for file in CORE:
            module_of(file)
        times, data = json.loads(TIMES.read_text(encoding="utf-8")), coverage.CoverageData(str(TIMES.with_name("coverage")))
        data.read()
        reached = {file: data.contexts_by_lineno(str(ROOT / file)) for file in CORE}
        items = sorted(session.items, key=lambda item: times.get(item.nodeid, 0.0))
        running: dict[int, Mutant] = {}
        for mutant in chosen(self.options):
            named = {c for line in mutant.lines for c in reached[mutant.file].get(line, [])} - {""}
            files: set[str] = set()
            if not named:  # it runs when the module is imported
                files = {c.split("::")[0] for contexts in reached[mutant.file].values() for c in contexts}
            wanted = [i for i in items if i.nodeid in named or i.nodeid.split("::")[0] in files]
            running[self._fork(mutant, wanted)] = mutant
            while len(running) >= self.options.jobs:
                self._reap(running)
        while running:
            self._reap(running)

    def _fork(self, mutant: Mutant, items: list[pytest.Item]) -> int:
        sys.stdout.flush()
        if pid := os.fork():
            return pid
        code = 1  # whatever goes wrong in here has been noticed
        try:
            null = os.open(os.devnull, os.O_RDWR)
            for fd in (1, 2):
                os.dup2(null, fd)
            signal.setitimer(signal.ITIMER_PROF, CPU_LIMIT_S)
            signal.alarm(WALL_LIMIT_S)
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
            install(mutant)
            for item in items:
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=None)
                if self.has_failed:
                    break
            code = int(self.has_failed)
        finally:
            os._exit(code)

    def _reap(self, running: dict[int, Mutant]) -> None:
        pid, status = os.wait()
        mutant = running.pop(pid)
        self.n_run[mutant.file] += 1
        self.n_killed[mutant.file] += status != 0
        if status == 0:
            self.survivors.append(mutant)


def chosen(options: argparse.Namespace) -> list[Mutant]:
    every = [m for file in CORE if not options.file or file in options.file for m in mutants_of(file)]
    if options.only:
        every = [m for m in every if options.only in m.name]
    if options.sample and options.sample < len(every):
        return sorted(random.Random(options.seed).sample(every, options.sample), key=lambda m: m.name)
    return every


def explained() -> dict[str, str]:
    """Mutant -> why it is no harm: the lines of the file that begin with `- file:function`."""
    pattern = re.compile(r"^- (\S+:\S* `.*` -> `.*`(?: #\d+)?): (.+)$", re.MULTILINE)
    return dict(pattern.findall(EXPLAINED.read_text(encoding="utf-8"))) if EXPLAINED.exists() else {}


def judge(runner: Runner, seconds: float) -> int:
    """Says what was found; 1 when a mutant lives that nobody has explained."""
    known, alive = explained(), {m.name for m in runner.survivors}
    print("\n\n| file | mutants | killed | survivors, explained |\n| --- | --- | --- | --- |")
    for file, n in sorted(runner.n_run.items()):
        n_known = sum(m.name in known for m in runner.survivors if m.file == file)
        print(f"| {file} | {n} | {runner.n_killed[file]} | {n_known} |")
    print(f"| all | {runner.n_run.total()} | {runner.n_killed.total()} | {len(alive & set(known))} |\n\n{seconds:.0f} s")
    tried = {m.name for m in chosen(runner.options)}
    there = {m.name for file in CORE for m in mutants_of(file)}
    for name in known:
        if name not in there:
            print(f"explained, but gone from the code: {name}")
        elif name in tried - alive:
            print(f"explained, but killed by now: {name}")
    for name in sorted(alive - set(known)):
        print(f"SURVIVED: {name}")
    return int(bool(alive - set(known)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--file", action="append", choices=list(CORE))
    parser.add_argument("--only", default="", help="mutants whose name holds this text")
    parser.add_argument("--sample", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    if not (options.record or options.all or options.file or options.only or options.sample):
        parser.error("say what to run: --record, --sample N, --file FILE or --all")
    os.chdir(ROOT)
    runner, begun = Runner(options), time.monotonic()
    if options.record:
        TIMES.parent.mkdir(exist_ok=True)
        runner.cover = coverage.Coverage()
        runner.cover.start()
    quiet = ["-q"] if options.record else ["-s", "-p", "no:terminal"]
    settings = ["-p", "no:cacheprovider", "-p", "no:xdist", "-o", "timeout=0", "-o", "addopts=--import-mode=importlib"]
    code = pytest.main([*quiet, *settings, *TESTS], plugins=[runner])
    if runner.cover is not None:
        runner.cover.stop()
        runner.cover.save()
        return int(code)
    return judge(runner, time.monotonic() - begun) if code in (0, 5) else int(code)


if __name__ == "__main__":
    sys.exit(main())
