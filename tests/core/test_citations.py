"""What comments, docstrings and pages cite is in the repository: every `*.md`, and the heading named behind it.

Allowed forms: a path from the repository's top (`docs/formats.md`, `README.md`), or one beside the citing file; either
with `#anchor`, the heading as links name it. Behind a page, `, #other` is another heading of it. What is on the web is
a URL, an arXiv id, or a path of LeRobot's sources.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

from headings import anchors

ROOT = Path(__file__).parents[2]
CITATION = re.compile(r"(?<![\w./-])([\w./-]+\.md)\b((?:#[\w-]+(?:,\s+(?=#))?|,\s+#[\w-]+)*)")
URL = re.compile(r"\b[a-z]+://[^\s)>\"'`]+")
FOLDERS = ("edgevla", "robots", "train", "export", "tests", "benchmarks", "examples", "docs", ".github")
KINDS = {".py", ".toml", ".md"}
NOT_OURS = {
    "FILE.md": "what the user names, in a usage line",
    "benchmarks/results/gpu_precision.md": "needs a GPU; whoever has one writes it",
}
"""Names that are no page of the repository, and why."""


def files() -> list[Path]:
    """All that may cite. The links inside `edgevla/` lead to folders that are read by themselves."""
    found = [p for folder in FOLDERS for p in (ROOT / folder).rglob("*") if p.suffix in KINDS and p.is_file()]
    links = {ROOT / "edgevla" / name for name in ("train", "export", "robots")}
    return [p for p in ROOT.iterdir() if p.suffix in KINDS] + [p for p in found if not links & set(p.parents)]


def prose_of_python(text: str) -> Iterator[str]:
    """Comments, those on neighbouring lines as one, and strings that stand alone: docstrings of anything."""
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Expr)
            and isinstance(node.value, ast.Constant)
            and isinstance(node.value.value, str)
        ):
            yield node.value.value
    held, last = "", 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            if token.start[0] != last + 1:
                yield held
                held = ""
            held, last = f"{held} {token.string.lstrip('# ')}", token.start[0]
    yield held


def prose(path: Path) -> Iterator[str]:
    text = path.read_text(encoding="utf-8")
    if ".md" not in text:
        return
    if path.suffix == ".py":
        yield from prose_of_python(text)
    elif path.suffix == ".toml":
        yield "\n".join(line.partition("#")[2] for line in text.splitlines())
    else:
        yield text


def citations(text: str) -> Iterator[tuple[str, list[str]]]:
    """Page, and the headings that are named of it."""
    for page, headings in CITATION.findall(URL.sub(" ", text)):
        yield page, re.findall(r"#([\w-]+)", headings)


def lost(path: Path, text: str) -> Iterator[str]:
    """What a text in that file cites and is not there."""
    for name, headings in citations(text):
        if name in NOT_OURS:
            continue
        page = next((p for p in (ROOT / name, path.parent / name) if p.is_file()), None)
        if page is None:
            yield name
        else:
            yield from (f"{name}#{h}" for h in headings if h not in anchors(page))


def test_every_page_and_heading_that_is_cited_is_there() -> None:
    texts = [(path, text) for path in files() for text in prose(path)]
    assert sum(1 for _, text in texts for _ in citations(text)) > 100, "citations are not found any more"
    found = {(path.relative_to(ROOT).as_posix(), what) for path, text in texts for what in lost(path, text)}
    assert sorted(found) == []


def test_a_citation_that_leads_nowhere_is_found() -> None:
    text = '''"""Module (graphs.md 1.1), docs/formats.md#types, #no-such-heading."""
value = "in_code.md"  # a comment, see docs/formats.md
# and on: specs/export.md 8; https://example.org/far.md
field = 1
"""Of the field (docs/gone.md#part; README.md)."""
'''
    found = [what for words in prose_of_python(text) for what in lost(ROOT / "train/file.py", words)]
    assert sorted(found) == [
        "docs/formats.md#no-such-heading",
        "docs/gone.md",
        "graphs.md",
        "specs/export.md",
    ]


def test_comments_of_toml_are_read(tmp_path: Path) -> None:
    file = tmp_path / "robot.toml"
    file.write_text('# see gone.md\nname = "not.md"  # README.md\n')
    assert [what for words in prose(file) for what in lost(file, words)] == ["gone.md"]
