"""What README and docs say against the code: commands, links, and every code that a run can tell.

Nothing is executed here but the parsers of the command line.
"""

from __future__ import annotations

import argparse
import ast
import functools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from headings import anchors

from edgevla import errors
from edgevla.cli import VERBS, _parser_for
from edgevla.messages import MODES, Severity
from edgevla.robots.commands import SIGNALS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TROUBLE = (ROOT / "docs/troubleshooting.md").read_text()
pages = pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)


# -- commands -------------------------------------------------------------------------------------------------

NO_COMMANDS = {
    "edgevla VERB --help": "stands for every verb",
    "edgevla help": "the overview, which has no parser",
}
"""Texts that look like command lines, and why they are none."""
STARTS = re.compile(
    r"^(?:\$ )?(?:sudo )?(?:[A-Z_]+=\S+ )*(?:(?:torchrun|accelerate launch) .*-m )?(edgevla [a-z-]+(?: .*)?)$"
)


def fenced_or_indented(text: str) -> Iterator[str]:
    """Lines of code blocks, with what a backslash continues."""
    is_fenced, held = False, ""
    for line in text.splitlines():
        if line.lstrip().startswith("```"):
            is_fenced = not is_fenced
            continue
        if is_fenced or line.startswith("    "):
            held += line.strip()
            if held.endswith("\\"):
                held = held[:-1]
                continue
            yield held
        held = ""


def command_of(line: str) -> str | None:
    """The command of a line without what is said behind it: after `#`, or after five blanks."""
    found = STARTS.match(line)
    if found is None:
        return None
    return re.split(r"\s#|\s{5,}", found[1])[0].strip()


def commands(page: Path) -> list[str]:
    text = page.read_text()
    inline = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines = [*fenced_or_indented(text), *re.findall(r"`(edgevla [a-z-]+[^`\n]*)`", inline)]
    return [c for c in map(command_of, lines) if c is not None and not c.startswith(tuple(NO_COMMANDS))]


@functools.cache
def options_of(verb: str) -> dict[str, argparse.Action]:
    parser = _parser_for(verb)[0]
    options = dict(parser._option_string_actions)
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for part in action.choices.values():
                options |= part._option_string_actions
    return options


def faults(command: str) -> Iterator[str]:
    """What the command line would not take, as far as it can be told without doing anything."""
    verb, *words = shlex.split(command)[1:] or [""]
    if verb.startswith("-"):
        return
    if verb not in VERBS:
        yield f"there is no verb '{verb}'"
        return
    known = options_of(verb)
    if verb == "service" and words[:1] == ["install"]:
        known = {**known, **options_of("serve" if "serve" in words[2:3] else "deploy")}
    for word, following in zip(words, [*words[1:], ""], strict=False):
        option, _, value = word.partition("=")
        if not re.match(r"--?[a-z]", option):
            continue
        if option not in known:
            yield f"{verb} has no option {option}"
        elif (choices := known[option].choices) and (value or following) not in choices:
            yield f"{option} takes {', '.join(choices)}, not '{value or following}'"


@pages
def test_every_command_is_one_that_its_verb_takes(page: Path) -> None:
    assert {c: found for c in commands(page) if (found := list(faults(c)))} == {}


def test_a_wrong_command_is_found() -> None:
    text = "See\n\n    edgevla deplyo x\n    edgevla deploy b --robott so101 \\\n        --execution fast     now\n"
    found = [fault for line in fenced_or_indented(text) for fault in faults(command_of(line) or "")]
    assert found[0] == "there is no verb 'deplyo'"
    assert found[1] == "deploy has no option --robott"
    assert found[2].startswith("--execution takes sync")


def test_the_pages_show_every_verb() -> None:
    shown = {shlex.split(c)[1] for page in PAGES for c in commands(page)}
    assert set(VERBS) <= shown


# -- links ----------------------------------------------------------------------------------------------------


def links(page: Path) -> list[str]:
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)", prose)
    return [link for link in found if not re.match(r"[a-z]+:", link)]


def is_broken(page: Path, link: str) -> bool:
    name, _, anchor = link.partition("#")
    target = page.parent / name if name else page
    return not target.exists() or bool(anchor and anchor not in anchors(target))


@pages
def test_every_link_has_its_target(page: Path) -> None:
    assert [link for link in links(page) if is_broken(page, link)] == []


def test_a_broken_link_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One, two\n\n[a](#one-two) [b](#one) [c](gone.md) `[d](gone.md)` [e](https://example.org)\n"
    )
    assert [link for link in links(page) if is_broken(page, link)] == ["#one", "gone.md"]


def test_front_page_and_navigation_have_every_page() -> None:
    names = {page.name for page in PAGES[1:]}
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert names - {"index.md"} <= {*links(ROOT / "docs/index.md")}
    listed = re.findall(r"^ +- (?:.+: )?(\S+\.md)$", navigation, flags=re.MULTILINE)
    assert sorted(listed) == sorted(names), "each page once, and no page that is not there"


# -- codes of events --------------------------------------------------------------------------------------------

SEVERITIES = get_args(Severity)
FORWARDED = {
    ("robots/telling.py", "code"),
    ("robots/telling.py", "finding.code"),
    ("robots/node.py", "code"),
    ("robots/node.py", "finding.code"),
    ("robots/node_process.py", "code"),
    ("edgevla/nodes/recorder.py", "code"),
    ("edgevla/nodes/camera.py", "code"),
}
"""Places that only hand on a code which is made elsewhere."""
MADE = {
    "f'mode_{mode}'": [f"mode_{mode}" for mode in MODES],
    "f'inference_{kind}'": ["inference_"],
    "f'episode_{action}'": ["episode_keep", "episode_discard"],
    "what": list(SIGNALS),
}
"""Codes that are put together, by the expression that does it."""
SPEAKERS = ("deploy", "camera", "robot", "log", "teleop")
"""Who says it, where a function takes that instead of a code."""


def sources() -> list[Path]:
    outside = {"train", "export", "robots"}  # links to the folders at the top level
    core = [p for p in ROOT.glob("edgevla/**/*.py") if p.relative_to(ROOT).parts[1] not in outside]
    return [*core, *ROOT.glob("robots/**/*.py")]


def codes_in(path: Path) -> Iterator[ast.expr]:
    """The expressions of codes: of `event(severity, code, ...)`, of tuples of the same, of judgements and remarks."""
    text = path.read_text()
    if not any(word in text for word in ('"info"', '"warning"', "Judgement(", "remark(", ".event(")):
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and len(node.args) >= 2:
            name = ast.unparse(node.func).rpartition(".")[2]
            if name == "remark":
                yield node.args[0]
            is_judgement = name == "Judgement" and "Level" in ast.unparse(node.args[0])
            if is_judgement or (name in ("event", "once", "_say", "_say_once") and len(node.args) >= 3):
                yield node.args[1]
        elif isinstance(node, ast.Tuple) and len(node.elts) == 3:
            severity, code = map(value_of, node.elts[:2])
            if severity in SEVERITIES and code not in SEVERITIES:
                yield node.elts[1]


def value_of(node: ast.expr) -> object:
    return node.value if isinstance(node, ast.Constant) else None


@functools.cache
def codes() -> dict[str, str]:
    """Code -> the file that says it. A place that cannot be judged fails the test."""
    found: dict[str, str] = {}
    for path in sources():
        where = path.relative_to(ROOT).as_posix()
        for node in codes_in(path):
            text = ast.unparse(node)
            if value_of(node) in SPEAKERS:
                continue
            if isinstance(node, ast.Constant):
                found[str(node.value)] = where
            elif text in MADE:
                found.update(dict.fromkeys(MADE[text], where))
            else:
                assert (where, text) in FORWARDED, (
                    f"{where}: which code is '{text}'? Add it to MADE or FORWARDED"
                )
    return found


def test_troubleshooting_has_every_code_of_an_event() -> None:
    found = codes()
    assert len(found) > 50, "the codes are not found any more"
    lacking = {c: w for c, w in found.items() if f"`{c}{'' if c.endswith('_') else '`'}" not in TROUBLE}
    assert lacking == {}


def test_troubleshooting_has_every_class_of_error() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.EdgeVLAError)]
    assert [c.__name__ for c in classes if f"`{c.__name__}`" not in TROUBLE] == []


def test_troubleshooting_has_no_code_that_is_gone() -> None:
    known, prefixes = codes(), tuple(code for code in codes() if code.endswith("_"))
    tables = [t for t in TROUBLE.split("\n\n") if t.startswith("| code |")]
    rows = [
        code
        for table in tables
        for row in table.splitlines()
        for code in re.findall(r"`(\w+)`", row.split("|")[1])
    ]
    assert len(rows) > 50
    assert [row for row in rows if row not in known and not row.startswith(prefixes)] == []


# -- sentences of errors ------------------------------------------------------------------------------------------


@functools.cache
def sentences() -> str:
    """The source with its adjacent pieces of text joined."""
    extra = [path for folder in ("train", "export") for path in ROOT.glob(f"{folder}/**/*.py")]
    return "\n".join(re.sub(r'"\s*\n\s*f?"', "", path.read_text()) for path in (*sources(), *extra))


@pytest.mark.parametrize("name", ["from-lerobot-checkpoint.md", "troubleshooting.md"])
def test_quoted_errors_are_said_by_the_code(name: str) -> None:
    """What stands between the dots of `a joint ... from its goal`; numbers and names are filled in by the code."""
    page = (ROOT / "docs" / name).read_text()
    cells = [row.split("|")[1] for row in page.splitlines() if row.startswith("| ")]
    quoted = [
        text for cell in cells for text in re.findall(r"`([^`]+)`", cell) if " " in text and "--" not in text
    ]
    assert len(quoted) > 10
    parts = [part.strip(" ':") for text in quoted for part in re.split(r"\.\.\.|\d\S*", text)]
    assert [part for part in parts if len(part) > 2 and part not in sentences()] == []
