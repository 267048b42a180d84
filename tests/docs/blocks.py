"""The commands of the pages: each line of a block that is fenced as bash, and what is said of those that no test runs.

    <!-- not run: REASON -->              above a block: none of its commands is run
    <!-- not run, WORDS: REASON -->       those that begin with WORDS

`python tests/docs/blocks.py` lists what is not run, by reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
REASONS = {
    "another machine": "a robot's or a server's, over ssh or the network",
    "board": "a Jetson, a GPU, TensorRT or a camera's hardware",
    "extra": "needs a package that the tests do not install",
    "long": "minutes to hours; a shorter form of it is run by a test of its own",
    "network": "asks a package index",
    "person": "somebody answers questions or presses keys",
    "root": "changes the machine",
}
MARKER = re.compile(r"<!-- not run(?:, (?P<words>.+))?: (?P<reason>.+) -->")
BLOCK = re.compile(r"(?P<above>(?:^ *<!-- not run[^\n]*\n)*)^ *```bash\n(?P<body>.*?)^ *```", re.S | re.M)
PROGRAMS = "edgevla|pytest|make|pip|python3?|sudo|torchrun|accelerate|journalctl|pre-commit|source"
STRAY = re.compile(rf"^ {{4,}}(?:\S*/bin/)?(?:{PROGRAMS}) [a-z.-]")


@dataclass(frozen=True)
class Command:
    """text: without what is said behind `#`. reason: why it is not run, or None."""

    page: str
    line: int
    text: str
    reason: str | None


def commands(page: Path) -> Iterator[Command]:
    """In the order of the page.

    Raises:
        ValueError: a marker that stands above no block, gives an unknown reason, or whose words begin no command.
    """
    text = page.read_text()
    n_markers = 0
    for block in BLOCK.finditer(text):
        markers = list(MARKER.finditer(block["above"]))
        n_markers += len(markers)
        first = text.count("\n", 0, block.start("body")) + 1
        used = set()
        for line, words in logical_lines(block["body"], first):
            marker = next((m for m in markers if words.startswith(m["words"] or "")), None)
            used.add(marker)
            yield Command(page.name, line, words, marker["reason"] if marker else None)
        for marker in markers:
            if marker not in used or marker["reason"] not in REASONS:
                raise ValueError(
                    f"{page.name}: {marker[0]} is of no command, or for none of {', '.join(REASONS)}"
                )
    if n_markers != len(re.findall(r"^ *<!-- not run", text, flags=re.M)):
        raise ValueError(
            f"{page.name}: a marker stands above no block of commands, or is not one: {MARKER.pattern}"
        )


def logical_lines(body: str, first: int) -> Iterator[tuple[int, str]]:
    """(line number, command), with what a backslash continues and without comments."""
    held, start = "", first
    for number, raw in enumerate(body.splitlines(), first):
        line = re.sub(r"(^|\s)#.*", "", raw).strip()
        start = start if held else number
        if line.endswith("\\"):
            held += line[:-1].rstrip() + " "
            continue
        if held + line:
            yield start, held + line
        held = ""


def stray(page: Path) -> list[str]:
    """Commands in blocks that are not fenced as bash, where no test would meet them."""
    outside = re.sub(r"^ *```.*?^ *```", "", page.read_text(), flags=re.S | re.M)
    return [line.strip() for line in outside.splitlines() if STRAY.match(line)]


if __name__ == "__main__":
    from collections import Counter

    everything = [command for page in PAGES for command in commands(page)]
    count = Counter(command.reason for command in everything)
    print(f"{count.pop(None)} of {len(everything)} commands are run")
    for reason, n in count.most_common():
        print(f"\n{n} not run: {reason} ({REASONS[str(reason)]})")
        print(*(f"  {c.page}:{c.line}  {c.text}" for c in everything if c.reason == reason), sep="\n")
