"""From a dataset to raw training batches, checked against the policy before the first step.

Numbers come from the dataset's arrays, frames from the cache; nothing is normalised here (the policy does that).
Sample order is a pure function of (seed, epoch), augmentation of (seed, batch number), so a run resumed at batch
number n sees what a straight run would have seen.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from edgevla.dataset.check import check_values, check_videos
from edgevla.dataset.layout import Findings
from edgevla.dataset.reader import Dataset
from edgevla.dataset.reading import how_to_name, lookalikes
from edgevla.dataset.sizes import check_sizes
from edgevla.dataset.stats import Stats, vector_stats
from edgevla.errors import DatasetError, UsageError
from edgevla.types import ACTION, STATE

from .augment import Augmentation
from .cache import FrameCache
from .policies.base import Batch
from .policies.config import PolicyConfig

Tokenize = Callable[[list[str], "np.ndarray | None"], Mapping[str, np.ndarray]]
"""(tasks, raw states (B, S) or None) -> `tokens` int64 and `token_mask` bool, both (B, L)."""

MOST_ACTIONS = 2_000_000
"""Of these at most are statistics of relative actions."""

log = logging.getLogger(__name__)


def dataset_features(
    dataset: Dataset, rename_map: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """Features as in info.json under the policy's names, cameras with the size their frames really have."""
    renamed = {}
    for name, feature in dataset.info.features.items():
        if not feature.is_camera and name not in dataset.columns:  # depth, texts, sounds
            continue
        raw = dict(feature.raw)
        if feature.is_camera:
            raw.update(shape=[*dataset.camera_size(name), 3], names=["height", "width", "channels"])
        renamed[(rename_map or {}).get(name, name)] = raw
    return renamed


def checkpoints_rename(dataset: Dataset, rename: Mapping[str, str]) -> dict[str, str]:
    """For the pipeline's rename step: the dataset's own names of observations -> the policy's, where they differ."""
    named = {f.column: rename.get(f.name, f.name) for f in dataset.info.features.values()}
    return {k: v for k, v in named.items() if k != v and v.startswith("observation.")}


def own_rename(dataset: Dataset, rename_map: Mapping[str, str]) -> dict[str, str]:
    """The inverse of `checkpoints_rename`: what the dataset's reading has not done already, by the names it gives."""
    named = {f.name: rename_map.get(f.column, f.name) for f in dataset.info.features.values()}
    return {k: v for k, v in named.items() if k != v}


def dataset_stats(dataset: Dataset, rename_map: Mapping[str, str] | None = None) -> Stats:
    """Statistics under the policy's names; quantiles are the true ones of all opened rows, not merged ones."""
    return {(rename_map or {}).get(name, name): by for name, by in dataset.true_stats.items()}


def relative_stats(
    dataset: Dataset, mask: np.ndarray, chunk_size: int, rename_map: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """Statistics of actions as their distance from the state at which they are predicted.

    Over the chunks of all frames, as far as their episodes go; of frames evenly spaced where those are many.
    mask: (A,), 1 where an action is relative.
    """
    named = {(rename_map or {}).get(name, name): name for name in dataset.info.features}
    actions, states = (np.asarray(dataset.columns[named[k]], np.float32) for k in (ACTION, STATE))
    rows = sample_positions(dataset)
    rows = rows[:: max(1, len(rows) * chunk_size // MOST_ACTIONS)]
    wanted = rows[:, None] + np.arange(chunk_size)
    is_real = wanted < dataset.episode_bounds(rows)[1][:, None]
    offset = states[rows][:, None, : len(mask)] * np.asarray(mask, np.float32)
    return vector_stats((actions[np.where(is_real, wanted, 0)] - offset)[is_real])


def sample_positions(dataset: Dataset, drop_n_last_frames: int = 0) -> np.ndarray:
    """int64 rows that may start a sample: all but each episode's last few. Episodes not longer than that are skipped.

    Raises:
        DatasetError: nothing remains.
    """
    rows = [np.arange(e.from_index, e.to_index - drop_n_last_frames) for e in dataset.episodes]
    skipped = [e.index for e, r in zip(dataset.episodes, rows, strict=True) if not len(r)]
    if skipped:
        log.warning(
            "episodes %s are not longer than the %d frames dropped at an episode's end: not trained on",
            skipped,
            drop_n_last_frames,
        )
    positions = np.concatenate(rows) if rows else np.zeros(0, np.int64)
    if not len(positions):
        raise DatasetError(
            f"{dataset.root} has no episode longer than the {drop_n_last_frames} frames the policy drops at each end"
        )
    return positions


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of n samples, int64: LeRobot 0.6's, a pure function of (seed, epoch)."""
    state = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0])
    # torch takes the seed as int64; the bit pattern stays the same
    generator = torch.Generator().manual_seed(state - 2**64 if state >= 2**63 else state)
    return torch.randperm(n, generator=generator).numpy()


class TrainingData:
    """A dataset as one policy sees it.

    Args:
        rename_map: dataset feature -> policy feature.
        tokenize: makes the language inputs; None for policies without.
        absent_cameras: cameras of the policy that the dataset may lack; their batches carry `camera_present`.
        augmentation: of camera frames; None: none.
        cache: keeps decoded frames; None: every frame is decoded when needed.

    Raises:
        DatasetError: the dataset is damaged in what the policy uses, or its features do not fit the policy.
    """

    def __init__(
        self,
        dataset: Dataset,
        config: PolicyConfig,
        *,
        rename_map: Mapping[str, str] | None = None,
        tokenize: Tokenize | None = None,
        absent_cameras: Sequence[str] = (),
        augmentation: Augmentation | None = None,
        cache: FrameCache | None = None,
    ) -> None:
        self.dataset, self.config = dataset, config
        self.tokenize, self.augmentation, self.cache = tokenize, augmentation, cache
        self._source = _sources(dataset, config, dict(rename_map or {}))
        self.sources = frozenset(self._source.values())
        self.cameras = {name: self._source[name] for name in config.image_features if name in self._source}
        self.absent_cameras = tuple(absent_cameras)
        check_features(dataset, config, self._source, self.absent_cameras)
        _check_content(dataset, self._source)
        _check_labels(dataset, config, self._source)
        _check_future(dataset, config, self._source)
        self.positions = sample_positions(dataset, config.drop_n_last_frames)

    def __len__(self) -> int:
        """Samples of one epoch."""
        return len(self.positions)

    # -- order --------------------------------------------------------------------------------------------

    def batch_rows(self, number: int, batch_size: int, seed: int) -> np.ndarray:
        """Rows of batch `number`, counted through all epochs; an epoch's last batch may be smaller."""
        per_epoch = -(-len(self) // batch_size)
        epoch, k = divmod(number, per_epoch)
        order = epoch_order(len(self), seed, epoch)
        return self.positions[order[k * batch_size : (k + 1) * batch_size]]

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Every sample once, in the dataset's order, not augmented: for evaluation."""
        for first in range(0, len(self), batch_size):
            yield self.batch(self.positions[first : first + batch_size])

    # -- content ------------------------------------------------------------------------------------------

    def batch(self, rows: np.ndarray, augment_seed: Sequence[int] | None = None) -> Batch:
        """The raw batch of these rows (see `policies.base.Batch`), as torch tensors on the CPU.

        augment_seed: draws of the augmentation, if there is one; None: frames stay as they are.
        Besides the tensors: `task` (list of str).
        """
        config, dataset = self.config, self.dataset
        arrays: dict[str, np.ndarray] = {}
        offsets = self._offsets(rows, augment_seed)
        for name, source in self._source.items():
            deltas = config.action_indices if name == ACTION else config.observation_indices
            begin = rows + offsets if name == ACTION else rows
            window, is_pad = (begin, None) if deltas is None else dataset.window(begin, deltas)
            if name in self.cameras:
                arrays[name] = self._frames(source, name, window, augment_seed)
            else:
                arrays[name] = np.asarray(dataset.columns[source], np.float32)[window]
                if arrays[name].ndim == 1 + (deltas is not None):
                    arrays[name] = arrays[name][..., None]
            if is_pad is not None:
                arrays[f"{name}_is_pad"] = is_pad
        self._tell_future(arrays, rows, offsets)
        tasks = [dataset.task(int(row)) for row in rows]
        if self.tokenize is not None:
            state = arrays.get(STATE)
            is_windowed = config.observation_indices is not None
            arrays.update(self.tokenize(tasks, state[:, -1] if state is not None and is_windowed else state))
        if self.absent_cameras:
            present = [name in self.cameras for name in config.image_features]
            arrays["camera_present"] = np.tile(np.array(present), (len(rows), 1))
        tensors: dict[str, Any] = {k: torch.from_numpy(np.ascontiguousarray(a)) for k, a in arrays.items()}
        return {**tensors, "task": tasks}

    def _offsets(self, rows: np.ndarray, seed: Sequence[int] | None) -> np.ndarray:
        """Per sample, how many steps later its state and its chunk are than its pictures; within its episode. A policy
        that is trained for future states sees 0 up to its most, each as often; zeros for any other."""
        most = self.config.future_state_max_offset
        if not most:
            return np.zeros_like(rows)
        drawn = rows % (most + 1)
        if seed is not None:
            drawn = np.random.default_rng(list(seed)).integers(0, most + 1, len(rows))
        return np.minimum(drawn, self.dataset.episode_bounds(rows)[1] - 1 - rows)

    def _tell_future(self, arrays: dict[str, np.ndarray], rows: np.ndarray, offsets: np.ndarray) -> None:
        """In the place of a state what will have been reached so many steps later: the goal given one step before."""
        moved = np.flatnonzero(offsets)
        if len(moved):
            goals = np.asarray(self.dataset.columns[self._source[ACTION]], np.float32)
            reached = goals[rows[moved] + offsets[moved] - 1]
            arrays[STATE][moved] = reached.reshape(len(moved), *arrays[STATE].shape[1:])

    def _frames(
        self, source: str, name: str, window: np.ndarray, augment_seed: Sequence[int] | None
    ) -> np.ndarray:
        """uint8 (B, H, W, 3) or (B, T, H, W, 3)."""
        read = self.dataset.frames if self.cache is None else self.cache.frames
        frames = read(source, window.ravel())
        frames = frames.reshape(*window.shape, *frames.shape[1:])
        if self.augmentation is None or augment_seed is None:
            return frames
        camera = list(self.config.image_features).index(name)
        if not frames.flags.writeable:
            frames = frames.copy()
        for i, sample in enumerate(frames):
            generator = np.random.default_rng([*augment_seed, i, camera])
            frames[i] = self.augmentation(sample, generator)
        return frames


# -- checks before training ---------------------------------------------------------------------------------


def _sources(dataset: Dataset, config: PolicyConfig, rename_map: Mapping[str, str]) -> dict[str, str]:
    """Policy feature -> dataset feature, for what the policy uses and the dataset has."""
    unknown = sorted(set(rename_map) - set(dataset.info.features))
    if unknown:
        raise UsageError(
            f"the rename map names '{unknown[0]}', which {dataset.root} does not have; "
            f"it has {', '.join(dataset.info.features)}"
        )
    by_policy_name = {rename_map.get(name, name): name for name in dataset.info.features}
    wanted = [*config.image_features]
    wanted += [n for n, f in config.input_features.items() if n == STATE or f.type == "ENV"]
    return {
        name: by_policy_name[name] for name in [*wanted, *config.labels, ACTION] if name in by_policy_name
    }


def _missing(dataset: Dataset, name: str, what: str, taken: Iterable[str] = ()) -> DatasetError:
    cure = how_to_name(name, dataset.info, list(taken))
    return DatasetError(f"{what} '{name}', which {dataset.root} does not have: {cure}", feature=name)


def check_names(dataset: Dataset) -> None:
    """Whether what every policy learns is there, and a state that is called otherwise is not passed over.

    Raises:
        DatasetError: no action, or no state though something looks like it; says what the dataset has.
    """
    if ACTION not in dataset.columns:
        raise _missing(dataset, ACTION, "policies learn")
    alike = lookalikes(STATE, dataset.info.features)
    if STATE not in dataset.columns and alike and STATE not in dataset.reading.without:
        raise DatasetError(
            f"{dataset.root} has no '{STATE}', but '{alike[0]}' looks like it: say --feature {STATE}={alike[0]}, or "
            f"train without a state: --without {alike[0]}",
            feature=STATE,
        )


def check_sizes_of(dataset: Dataset, cameras: Iterable[str], held_out: Dataset | None = None) -> None:
    """Raises DatasetError: pictures of one camera have several sizes; names the episodes."""
    findings = Findings(raise_errors=False)
    for part in (dataset, held_out):
        if part is not None:
            check_sizes(part, findings, list(cameras))
    for error in [f for f in findings.all if f.severity == "error"]:
        raise DatasetError(error.text, feature=error.feature, episode=error.episode)
    for camera in cameras if held_out is not None else ():
        (h, w), (other_h, other_w) = dataset.camera_size(camera), held_out.camera_size(camera)  # type: ignore[union-attr]
        if (h, w) != (other_h, other_w):
            raise DatasetError(
                f"camera '{camera}' is {w}x{h} in the episodes to train on and {other_w}x{other_h} in those to evaluate "
                "on; choose episodes of one size",
                feature=camera,
            )


def check_features(
    dataset: Dataset, config: PolicyConfig, sources: Mapping[str, str], absent_cameras: Sequence[str] = ()
) -> None:
    """Whether the dataset has what the policy uses, in its dimensions.

    Raises:
        DatasetError: a feature is missing or has another size; names both sides.
    """
    used = {n: f for n, f in config.input_features.items() if n == STATE or f.type in ("ENV", "VISUAL")}
    for name, feature in {**used, ACTION: config.output_features.get(ACTION)}.items():
        if name not in sources:
            if name in absent_cameras:
                continue
            if name in dataset.reading.without:
                raise UsageError(
                    f"--without {name}: the policy was trained with it; train afresh, without --from"
                )
            raise _missing(dataset, name, "the policy uses", sources.values())
        source = dataset.info.features[sources[name]]
        is_camera = feature is not None and feature.type == "VISUAL"
        if source.is_camera != is_camera:
            raise DatasetError(
                f"feature '{source.name}' of {dataset.root} is {source.dtype}; the policy takes "
                f"'{name}' as {'a camera' if is_camera else 'numbers'}",
                feature=source.name,
            )
        if feature is None or is_camera:
            continue
        if tuple(source.shape) != tuple(feature.shape):
            raise DatasetError(
                f"feature '{source.name}' of {dataset.root} has shape {list(source.shape)}; the policy takes "
                f"'{name}' with shape {list(feature.shape)}",
                feature=source.name,
            )


def _check_labels(dataset: Dataset, config: PolicyConfig, sources: Mapping[str, str]) -> None:
    """Whether every label is one of those the policy has rows for.

    Raises:
        DatasetError: it is a camera or text, or holds something else than these numbers; names feature and episode.
    """
    for name, count in config.labels.items():
        if name not in sources:
            log.warning("%s has no '%s'; every sample counts as the policy's own domain", dataset.root, name)
            continue
        feature = sources[name]
        values = dataset.columns.get(feature)
        if values is None or values[0].size != 1:
            raise DatasetError(
                f"feature '{feature}' of {dataset.root} is not one number per frame; the policy takes it as '{name}'",
                feature=feature,
            )
        values = values.reshape(len(dataset))
        wrong = np.flatnonzero(~np.isin(values, np.arange(count)))
        if wrong.size:
            episode = int(dataset.columns["episode_index"][wrong[0]])
            raise DatasetError(
                f"feature '{feature}' of {dataset.root} is {values[wrong[0]]} in episode {episode}; "
                f"the policy has domains 0 to {count - 1}",
                feature=feature,
                episode=episode,
            )


def _check_future(dataset: Dataset, config: PolicyConfig, sources: Mapping[str, str]) -> None:
    """Whether a goal can be told as a state.

    Raises:
        DatasetError: a policy of future states, and state and action are not of the same joints.
    """
    if not config.future_state_max_offset:
        return
    state, action = (dataset.info.features.get(sources.get(name, "")) for name in (STATE, ACTION))
    if state is None or action is None or (state.names, state.shape) != (action.names, action.shape):
        raise DatasetError(
            f"future_state_max_offset={config.future_state_max_offset} tells goals as states, but in {dataset.root} "
            f"'{STATE}' ({', '.join(state.names) if state else 'none'}) and '{ACTION}' "
            f"({', '.join(action.names) if action else 'none'}) do not name the same joints; leave it out",
            feature=STATE,
        )


def _check_content(dataset: Dataset, sources: Mapping[str, str]) -> None:
    """Raises the first defect in what is used, and says how many there are."""
    findings = Findings(raise_errors=False)
    used = list(sources.values())
    check_values(dataset, findings, [n for n in used if n in dataset.columns])
    check_videos(dataset, findings, [n for n in used if n in dataset.cameras])
    errors = [f for f in findings.all if f.severity == "error"]
    for finding in findings.all:
        if finding.severity == "warning":
            log.warning("%s", finding.text)
    if errors:
        more = f" ({len(errors) - 1} more; see `edgevla inspect {dataset.root}`)" if len(errors) > 1 else ""
        first = errors[0]
        raise DatasetError(first.text + more, file=first.file, feature=first.feature, episode=first.episode)
