"""An account of `meta/info.json`: what is used, what changes nothing here, and the rest by name.

Everything that a policy uses is read by `layout.py` and `open.py`; this says what was not understood, so that nothing
that might matter passes unread.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from edgevla.dataset.layout import INFO, FeatureInfo, Findings, Info

USED_KEYS = {"codebase_version", "fps", "robot_type", "features", "data_path", "video_path", "chunks_size"}
USED_KEYS |= {"total_episodes", "total_frames", "storage_format", "splits"}
HARMLESS_KEYS = {
    "total_tasks",
    "total_videos",
    "total_chunks",
    "tools",
    "repo_id",
    "license",
    "description",
    "tags",
}
HARMLESS_KEYS |= {
    "data_files_size_in_mb",
    "video_files_size_in_mb",
    "total_size_in_mb",
    "homepage",
    "citation",
}
"""Counters of files, limits for writers, tools of language annotations, words for people."""

FEATURE_KEYS = {
    "dtype",
    "shape",
    "names",
    "info",
    "video_info",
    "fps",
    "description",
    "is_depth_map",
    "_type",
}


def account_of_info(info: Info, findings: Findings) -> None:
    """Says keys that are not known, splits that training does not follow, and rates that contradict each other."""
    strangers = sorted(set(info.raw) - USED_KEYS - HARMLESS_KEYS)
    if strangers:
        findings.warn(
            f"{INFO} says {_few(strangers)}, which EdgeVLA does not know: not used; "
            "if it changes what the numbers mean, convert the data first",
            file=INFO,
        )
    for feature in info.features.values():
        _account_of_feature(feature, info.fps, findings)
    _account_of_splits(info.raw, findings)


def _account_of_feature(feature: FeatureInfo, fps: float, findings: Findings) -> None:
    strangers = sorted(key for key in feature.raw if key not in FEATURE_KEYS and not key.startswith("video."))
    if strangers and feature.is_needed:
        findings.warn(
            f"feature '{feature.name}' says {_few(strangers)} in {INFO}, which EdgeVLA does not know: its numbers are "
            "taken as they are",
            file=INFO,
            feature=feature.name,
        )
    own = feature.raw.get("fps")
    if isinstance(own, (int, float)) and feature.is_needed and abs(own - fps) >= 1:
        findings.warn(
            f"feature '{feature.name}' says {own:g} fps in {INFO} and the dataset {fps:g}, which is used",
            file=INFO,
            feature=feature.name,
        )


def _account_of_splits(raw: Mapping[str, Any], findings: Findings) -> None:
    """Whoever set episodes apart did not mean them to be trained on; LeRobot and EdgeVLA train on all the same."""
    splits = raw.get("splits")
    if isinstance(splits, dict) and set(splits) - {"train"}:
        named = ", ".join(f"{name} {part}" for name, part in splits.items())
        train = f": --episodes {splits['train']}" if "train" in splits else ""
        findings.warn(
            f"{INFO} splits the episodes ({named}); training takes all of them unless told otherwise{train}",
            file=INFO,
        )


def _few(names: Iterable[str]) -> str:
    listed = [f"'{name}'" for name in names]
    return ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")
