"""Statistics as stored against what the rows and pictures say: another dataset's, damaged ones, merged quantiles.

EdgeVLA trains on statistics of the rows, so these are warnings; a policy trained by others on them has learnt theirs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgevla.dataset import stats as statistics
from edgevla.dataset.layout import BOOKKEEPING, EPISODES_GLOB, Findings, relative_files, short_name
from edgevla.dataset.reader import Dataset
from edgevla.dataset.stats import Stats
from edgevla.dataset.tables import read_episode_stats

FILE = "meta/stats.json"
PICTURES = 12
"""Of each camera are compared with its stored mean."""
BRIGHTNESS = 0.15
"""Of 1: so far may their mean be from the stored one, and three times as far as they differ among themselves."""
QUANTILE_SHARE = 0.01
"""Of an element's range: so far may a quantile be off; LeRobot's histograms are 0.0002 off."""


def check_stats(dataset: Dataset, findings: Findings) -> None:
    """What `Dataset.stats` repairs is said there; here: statistics that disagree with the data.

    Raises:
        DatasetError: a picture that cannot be decoded.
    """
    stored, true = dataset.stats, {}
    for name, values in dataset.columns.items():
        if name not in BOOKKEEPING and len(values) and np.isfinite(values).all():
            true[name] = _like(values, stored[name])
            _check_vector(name, stored[name], true[name], findings)
    for camera in dataset.cameras:
        _check_camera(dataset, camera, stored.get(camera, {}), findings)
    _check_quantiles(dataset, stored, true, findings)


def _like(values: np.ndarray, stored: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Statistics of rows as the stored ones are: LeRobot's of features of several axes are over all but the last."""
    over_last = values.ndim > 2 and stored["mean"].size == values.shape[-1]
    return statistics.vector_stats(values.reshape(-1, values.shape[-1]) if over_last else values)


def _check_vector(
    name: str,
    stored: Mapping[str, np.ndarray],
    true: Mapping[str, np.ndarray],
    findings: Findings,
) -> None:
    rows, std = true["mean"].ravel(), true["std"].ravel()
    allowed = {"mean": 0.1 * std, "std": 0.2 * std, "min": 0.5 * std, "max": 0.5 * std}
    for statistic, far in allowed.items():
        said, is_so = stored[statistic].ravel(), true[statistic].ravel()
        # What is no number is not near: `>` would let it pass.
        if said.size != is_so.size or not (np.abs(said - is_so) <= far + 1e-3 * (1 + np.abs(rows))).all():
            findings.warn(
                f"statistics of '{name}' in {FILE} are not those of the rows ({statistic} {said.round(3).tolist()}, "
                f"rows {is_so.round(3).tolist()}): those of the rows are used",
                feature=name,
                file=FILE,
            )
            return


def _check_camera(
    dataset: Dataset, camera: str, stored: Mapping[str, np.ndarray], findings: Findings
) -> None:
    said = stored["mean"].ravel() if "mean" in stored else np.zeros(0)
    rows = np.unique(np.linspace(0, dataset.n_frames - 1, PICTURES).round().astype(int))
    each = np.array([dataset.frame(camera, int(row)).mean((0, 1)) / 255 for row in rows])
    allowed = np.maximum(BRIGHTNESS, 3 * each.std(0))
    if said.size != 3 or not (np.abs(said - each.mean(0)) <= allowed).all():
        findings.warn(
            f"statistics of camera '{short_name(camera)}' in {FILE} are not those of its pictures (mean "
            f"{said.round(3).tolist()}, {len(rows)} pictures {each.mean(0).round(3).tolist()}): of another recording, "
            "or in other units than 0 to 1",
            feature=camera,
            file=FILE,
        )


def _check_quantiles(dataset: Dataset, stored: Stats, true: Stats, findings: Findings) -> None:
    """LeRobot until August 2026 took the mean of the episodes' quantiles, weighted by length, for that of the whole."""
    parts: list[Stats] | None = None
    found = []
    for name in [n for n in true if n in dataset.info.features and dataset.info.features[n].is_needed]:
        width = np.maximum((true[name]["max"] - true[name]["min"]).ravel(), 1e-9)
        for q in ("q01", "q99"):
            said, is_so = stored[name][q].ravel(), true[name][q].ravel()
            off = np.abs(said - is_so) / width if said.size == is_so.size else np.zeros(1)
            i = int(np.argmax(off))
            if not off[i] > QUANTILE_SHARE:
                continue
            parts = _by_episode(dataset) if parts is None else parts
            if _is_mean_of_quantiles(parts, dataset.info.features[name].column, q, said, i, width[i]):
                found.append(f"{q} of '{name}' element {i} is {said[i]:.4g}, of the rows {is_so[i]:.4g}")
                break
    if found:
        findings.warn(
            f"quantiles in {FILE} are means of the episodes' ({'; '.join(found)}), as LeRobot merged them until August "
            "2026: EdgeVLA takes those of the rows; a policy that LeRobot trained on this data and that is normalised "
            "by quantiles (Pi0.5) knows the stored ones",
            file=FILE,
        )


def _is_mean_of_quantiles(
    parts: list[Stats], column: str, q: str, said: np.ndarray, i: int, width: float
) -> bool:
    """Whether element i is the episodes' mean, and not their outermost, which is right: of equal episodes it is both."""
    means = statistics.weighted_quantile(parts, column, q)
    if means is None or means.size != said.size:
        return False
    outermost = statistics.merge(parts)[column][q].ravel()
    return bool(abs(said[i] - means[i]) <= 1e-3 * width and abs(said[i] - outermost[i]) > 1e-3 * width)


def _by_episode(dataset: Dataset) -> list[Stats]:
    """The episodes' statistics under the dataset's own names; none where it has none by episode."""
    files: Sequence[str] = relative_files(dataset.root, EPISODES_GLOB)
    return [statistics.as_stats(p) for p in read_episode_stats(dataset.root, files) if p]
