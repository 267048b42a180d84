"""The public face: `edgevla.__all__`, whole and lazy; and how much of the code says what it is for."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import edgevla

ROOT = Path(__file__).parents[2]
LEAST = 0.9
"""Share of public functions outside `edgevla.__all__` that have a docstring."""
names = pytest.mark.parametrize("name", edgevla.__all__)


# -- the names ------------------------------------------------------------------------------------------------


def imported_for_types() -> set[str]:
    """What type checkers see: the imports below TYPE_CHECKING."""
    tree = ast.parse((ROOT / "edgevla/__init__.py").read_text())
    branch = next(node for node in tree.body if isinstance(node, ast.If))
    return {
        a.asname or a.name for node in branch.body if isinstance(node, ast.ImportFrom) for a in node.names
    }


def test_all_is_what_can_be_imported_and_what_type_checkers_see() -> None:
    assert edgevla.__all__ == sorted(edgevla.__all__)
    assert set(edgevla.__all__) == set(edgevla._HOME) == imported_for_types()
    assert set(edgevla.__all__) <= set(dir(edgevla))


@names
def test_a_public_name_is_there_and_is_the_one_of_its_module(name: str) -> None:
    home = importlib.import_module(f"edgevla.{edgevla._HOME[name]}")
    assert getattr(edgevla, name) is getattr(home, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'load_bundel'"):
        _ = edgevla.load_bundel


def test_importing_edgevla_imports_none_of_it() -> None:
    code = "import sys, edgevla; print(*(m for m in sys.modules if m.startswith('edgevla')), 'numpy' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["edgevla", "False"]


def test_every_class_that_a_public_function_hands_out_is_public() -> None:
    """What somebody is given they can also name."""
    given = {
        inspect.signature(function).return_annotation
        for name in edgevla.__all__
        if inspect.isfunction(function := getattr(edgevla, name))
    }
    assert given - {"Profile", "Source"} <= set(edgevla.__all__), "Profile and Source are read, never made"


def test_the_page_shows_every_public_name() -> None:
    page = (ROOT / "docs/python.md").read_text()
    assert [name for name in edgevla.__all__ if f"`{name}" not in page] == []


def test_examples_import_public_names_only_from_the_top() -> None:
    """Where a name is public, examples take it from there."""
    wrong = []
    for path in sorted((ROOT / "examples").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module != "edgevla":
                wrong += [f"{path.name}: {a.name}" for a in node.names if a.name in edgevla.__all__]
    assert wrong == []


# -- docstrings -----------------------------------------------------------------------------------------------


def members(cls: type) -> Iterator[str]:
    """Public methods and properties of a class that our code defines."""
    for base in cls.__mro__:
        if base.__module__.startswith("edgevla"):
            yield from (
                n
                for n, value in vars(base).items()
                if not n.startswith("_")
                and (inspect.isroutine(value) or isinstance(value, property | classmethod))
            )


@names
def test_a_public_name_says_what_it_is(name: str) -> None:
    thing: Any = getattr(edgevla, name)
    assert own_words(thing), f"{name} has no docstring"
    if inspect.isclass(thing):
        silent = [m for m in members(thing) if not inspect.getdoc(inspect.getattr_static(thing, m))]
        assert silent == []


def own_words(thing: Any) -> str:
    """A docstring that a person wrote: not the signature that a dataclass makes of itself."""
    said = inspect.getdoc(thing) or ""
    return "" if said.startswith(f"{thing.__name__}(") else said


class Defined(NamedTuple):
    """One function of the source. owner: its class, empty outside of one."""

    path: str
    owner: str
    node: ast.FunctionDef

    @property
    def where(self) -> str:
        return f"{self.path}:{self.node.lineno} {self.owner and self.owner + '.'}{self.node.name}"


class Source(NamedTuple):
    """What stands in the source: public functions, and classes by name with their bases and documented members."""

    functions: list[Defined]
    classes: dict[str, list[tuple[list[str], set[str]]]]

    def inherits_words(self, cls: str, method: str, seen: tuple[str, ...] = ()) -> bool:
        """Whether a base documents the method, as `inspect.getdoc` looks for it; torch documents `forward`."""
        for bases, documented in self.classes.get(cls, []):
            if method in documented or (method == "forward" and "Module" in bases):
                return True
            if any(self.inherits_words(b, method, (*seen, cls)) for b in bases if b not in seen):
                return True
        return False

    def of_protocols(self) -> set[str]:
        """Methods that some `Protocol` documents: classes that are one inherit nothing, and one word means one thing."""
        found = [one for same_name in self.classes.values() for one in same_name]
        return {word for bases, documented in found if "Protocol" in bases for word in documented}


def base_name(node: ast.expr) -> str:
    return re.sub(r"\[.*", "", ast.unparse(node)).rpartition(".")[2]


def source_of(paths: list[Path]) -> Source:
    source = Source([], {})
    for path in paths:
        tree = ast.parse(path.read_text())
        for cls in (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)):
            documented = {m.name for m in functions(cls.body) if ast.get_docstring(m)}
            source.classes.setdefault(cls.name, []).append(([base_name(b) for b in cls.bases], documented))
        top = functions(tree.body)
        is_verb = any(f.name == "add_arguments" for f in top)  # `add_arguments` and `run`: see edgevla/cli.py
        where = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
        source.functions.extend(
            Defined(where, "", f) for f in top if not (is_verb and f.name in ("add_arguments", "run"))
        )
        for cls in (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name[0] != "_"):
            source.functions.extend(Defined(where, cls.name, m) for m in functions(cls.body))
    return source


def functions(body: list[ast.stmt]) -> list[ast.FunctionDef]:
    return [node for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]


def silent(source: Source) -> list[Defined]:
    """Public functions that say nothing, and for which nothing else does."""
    shared = source.of_protocols()
    return [
        f
        for f in source.functions
        if not ast.get_docstring(f.node)
        and not (f.owner and f.node.name in shared)
        and not (f.owner and source.inherits_words(f.owner, f.node.name))
    ]


def runtime_and_workstation() -> list[Path]:
    links = {"train", "export", "robots"}
    core = [p for p in ROOT.glob("edgevla/**/*.py") if p.relative_to(ROOT).parts[1] not in links]
    return sorted([*core, *(p for room in links for p in (ROOT / room).rglob("*.py"))])


def test_public_functions_say_what_they_do() -> None:
    source = source_of(runtime_and_workstation())
    lacking = silent(source)
    share = 1 - len(lacking) / len(source.functions)
    assert len(source.functions) > 2000, "the functions are not found any more"
    assert share >= LEAST, f"{share:.1%} of {len(source.functions)}:\n" + "\n".join(f.where for f in lacking)


def test_a_silent_function_is_found(tmp_path: Path) -> None:
    path = tmp_path / "room.py"
    path.write_text(
        "class Way(Protocol):\n    def go(self):\n        'Moves.'\n"
        "class Base:\n    def stop(self):\n        'Ends.'\n"
        "class Car(Base):\n    def go(self): ...\n    def stop(self): ...\n    def turn(self): ...\n"
        "def drive(): ...\n"
    )
    assert [f.where for f in silent(source_of([path]))] == ["room.py:11 drive", "room.py:10 Car.turn"]


# -- one word per idea ----------------------------------------------------------------------------------------


def defined_twice(paths: list[Path]) -> dict[str, list[str]]:
    """Public classes of a module that another module has under the same name -> the files."""
    homes: dict[str, list[str]] = {}
    for path in paths:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                where = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
                homes.setdefault(node.name, []).append(where)
    return {name: files for name, files in homes.items() if len(files) > 1}


def test_no_two_classes_have_the_same_name() -> None:
    """Whoever greps for a class finds one. A name that is taken says too little: say what it is there."""
    assert defined_twice(runtime_and_workstation()) == {}


def test_a_name_that_is_taken_is_found(tmp_path: Path) -> None:
    one, other = tmp_path / "one.py", tmp_path / "other.py"
    one.write_text("class Plan: ...\nclass _Plan: ...\nclass Car:\n    class Wheel: ...\n")
    other.write_text("class Plan: ...\nclass _Plan: ...\nclass Wheel: ...\n")
    assert defined_twice([one, other]) == {"Plan": ["one.py", "other.py"]}
