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
from pathlib import Path
from types import ModuleType
from typing import Any

import coverage
import pytest
from mutants import CORE, ROOT, Mutant, mutants_of, put

EXPLAINED = ROOT / "tests/safety/survivors.md"
TIMES = ROOT / ".safety/times.json"
TESTS = [
    "tests/safety", "tests/runtime/test_safety.py", "tests/runtime/test_modes.py", "tests/robots/test_lowering.py",
    "--deselect=tests/runtime/test_modes.py::TestAnyOrder",  # minutes, and no rule of its own
]  # fmt: skip
CPU_LIMIT_S, WALL_LIMIT_S, MEMORY = 20.0, 90, 4 << 30


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
        install_constant(module, mutant.tree)
        return
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
    if "." not in mutant.owner:  # the module's own statements may have called it
        install_constant(module, mutant.tree)


def install_constant(changed: ModuleType, tree: ast.Module) -> None:
    """The module's assignments anew, and whatever other modules made of them or imported."""
    core = {name: module for name, module in sys.modules.items() if is_of_core(module)}
    ours = [m for name, m in sys.modules.items() if name.startswith(("edgevla", "tests"))]
    for module in core.values():
        source = (
            tree if module is changed else ast.parse(Path(module.__file__ or "").read_text(encoding="utf-8"))
        )
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
        times, data = (
            json.loads(TIMES.read_text(encoding="utf-8")),
            coverage.CoverageData(str(TIMES.with_name("coverage"))),
        )
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
    print(
        f"| all | {runner.n_run.total()} | {runner.n_killed.total()} | {len(alive & set(known))} |\n\n{seconds:.0f} s"
    )
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
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
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
    settings = [
        "-p",
        "no:cacheprovider",
        "-p",
        "no:xdist",
        "-o",
        "timeout=0",
        "-o",
        "addopts=--import-mode=importlib",
    ]
    code = pytest.main([*quiet, *settings, *TESTS], plugins=[runner])
    if runner.cover is not None:
        runner.cover.stop()
        runner.cover.save()
        return int(code)
    return judge(runner, time.monotonic() - begun) if code in (0, 5) else int(code)


if __name__ == "__main__":
    sys.exit(main())
