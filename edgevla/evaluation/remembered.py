"""How the policies that are evaluated remember their data: under which names, what left out, which text as the task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edgevla.bundle import is_bundle, load_bundle
from edgevla.checkpoints import policy_folder
from edgevla.dataset.facts import read_facts
from edgevla.dataset.reading import Reading
from edgevla.errors import UsageError


def remembered_reading(paths: Sequence[str]) -> Reading:
    """The one that all of them share; as the dataset is, where they remember nothing.

    Raises:
        UsageError: two of them read their data differently, so no dataset suits both.
    """
    readings = {path: reading for path in paths if (reading := _of(Path(path).expanduser())) is not None}
    first = next(iter(readings), None)
    if first is None:
        return Reading()
    other = next((path for path, reading in readings.items() if reading != readings[first]), None)
    if other is not None:
        raise UsageError(
            f"{first} and {other} were trained on data that was read differently (--feature, --without, --task-from); "
            "evaluate them one after the other"
        )
    return readings[first]


def _of(path: Path) -> Reading | None:
    """None where it does not say, or cannot be opened, which is said when it is."""
    path = path.parent if path.name == "manifest.json" else path
    if is_bundle(path):
        origin = load_bundle(path, verify=False).manifest.provenance.dataset
        return None if origin is None else origin.reading
    folder = policy_folder(path)
    facts = None if folder is None else read_facts(folder)
    return None if facts is None else facts.reading
