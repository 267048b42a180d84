"""LeRobot datasets on disk, without torch: reading (v2.0, v2.1, v3.0), recording (v3.0), checking, describing.

    layout.py   what the files are called and mean      tables.py   parquet -> numpy
    video.py    mp4 frames by number (PyAV)             stats.py    statistics: merge, rebuild, distrust
    reader.py   `Dataset`, `open_dataset`               writer.py   `DatasetWriter`, crash-safe
    stated.py   what a recording says of itself         append.py   whether new episodes may join
    facts.py    what a policy must know of its data     check.py    every defect as a sentence
    pictures.py whether pictures show what they should
    edit.py     delete, merge, split, retask            assemble.py a dataset out of others' episodes
    source.py   episodes as material for that           cut.py      mp4 files cut by packets
    whole.py    a folder replaced in one step

Names are imported when first used: `facts` must work where pyarrow and PyAV are not installed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgevla.dataset.check import check_dataset
    from edgevla.dataset.facts import DatasetFacts, facts_of, infer_joint_units
    from edgevla.dataset.layout import Finding, camera_age_key
    from edgevla.dataset.reader import Dataset, open_dataset
    from edgevla.dataset.writer import DatasetWriter

__all__ = [
    "Dataset",
    "DatasetFacts",
    "DatasetWriter",
    "Finding",
    "camera_age_key",
    "check_dataset",
    "facts_of",
    "infer_joint_units",
    "open_dataset",
]

_HOME = {
    "Dataset": "reader",
    "DatasetFacts": "facts",
    "DatasetWriter": "writer",
    "Finding": "layout",
    "camera_age_key": "layout",
    "check_dataset": "check",
    "facts_of": "facts",
    "infer_joint_units": "facts",
    "open_dataset": "reader",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'edgevla.dataset' has no attribute '{name}'")
    return getattr(importlib.import_module(f"edgevla.dataset.{_HOME[name]}"), name)
