"""What a LeRobot dataset's files are called and what `meta/info.json` says; findings about what is wrong.

Versions 2.0 and 2.1 (one parquet and one mp4 per episode, metadata in jsonl) are presented through the model of
v3.0 (many episodes per file): an episode has a row range, and per camera a file and a time span in it.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from edgevla.errors import DatasetError
from edgevla.types import ACTION, ENVIRONMENT_STATE, STATE

log = logging.getLogger("edgevla.dataset")

INFO = "meta/info.json"
STATED = "meta/edgevla.json"
"""Ours: joint units and zero convention, which LeRobot's own files have no place for."""
SCRATCH = ".recording"
"""Folder of an episode that is being recorded; what is in it counts for nothing."""

EPISODES_GLOB = "meta/episodes/*/*.parquet"

BOOKKEEPING = ("timestamp", "frame_index", "episode_index", "index", "task_index")
USED = (STATE, ENVIRONMENT_STATE, ACTION)
"""Features of numbers that policies can use."""
_NUMERIC = re.compile(r"bool_?|u?int(8|16|32|64)?|float(16|32|64)?|double|half")
_AGE_PREFIX = "camera_age_ms."
INTERVENTION = "intervention"
"""Column, bool (1,): whether a person drove in the policy's place at the row; LeRobot's rollouts name it so."""


def camera_age_key(camera: str) -> str:
    """Column holding the age of a camera's frame at the row's moment, in ms: `camera_age_ms.front`.

    Not called `observation.*`: LeRobot would feed it to the policy as state.
    """
    return _AGE_PREFIX + short_name(camera)


def short_name(camera: str) -> str:
    """`observation.images.front` -> `front`."""
    return camera.removeprefix("observation.images.").removeprefix("observation.")


# -- findings -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """One defect in plain words. severity `error`: not usable as it is; `warning`: usable, or repaired in memory."""

    severity: Literal["error", "warning"]
    text: str
    file: str | None = None
    feature: str | None = None
    episode: int | None = None


@dataclass
class Findings:
    """Collects findings while a dataset is read. With `raise_errors` the first error ends the reading."""

    raise_errors: bool = True
    all: list[Finding] = field(default_factory=list)

    def error(
        self, text: str, *, file: str | None = None, feature: str | None = None, episode: int | None = None
    ) -> None:
        """Notes what makes data unusable; with `raise_errors` a DatasetError."""
        self.all.append(Finding("error", text, file, feature, episode))
        if self.raise_errors:
            raise DatasetError(text, file=file, feature=feature, episode=episode)

    def warn(
        self, text: str, *, file: str | None = None, feature: str | None = None, episode: int | None = None
    ) -> None:
        """Notes what a person should know, and what can be gone on with."""
        self.all.append(Finding("warning", text, file, feature, episode))
        if self.raise_errors:
            log.warning("%s", text)

    @property
    def has_errors(self) -> bool:
        """Whether anything was more than a warning."""
        return any(f.severity == "error" for f in self.all)


# -- info.json ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FeatureInfo:
    """One column. shape as in info.json, () never occurs: scalars have (1,). names: one per element, or empty.

    source: what files call it, where it is read under another name. levels: the pixel format of pictures that are found
    to have one channel of more than 8 bits, which info.json does not say.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    names: tuple[str, ...] = ()
    raw: Mapping[str, Any] = field(default_factory=dict, compare=False)
    source: str = ""
    levels: str = ""

    @property
    def column(self) -> str:
        """Its name in the dataset's files."""
        return self.source or self.name

    @property
    def is_picture(self) -> bool:
        """Whether its values are pictures, depth among them."""
        return self.dtype in ("image", "video")

    @property
    def is_camera(self) -> bool:
        """Whether its values are pictures in colour."""
        return self.is_picture and not self.is_depth

    @property
    def is_depth(self) -> bool:
        """Pictures of distances, or of anything else that is no colour."""
        return self.is_picture and bool(self.levels or self._says_depth)

    @property
    def _says_depth(self) -> bool:
        parts = [self.raw.get(key) for key in ("info", "video_info")]
        said = [self.raw, *[part for part in parts if isinstance(part, Mapping)]]
        return any(part.get(key) for part in said for key in ("is_depth_map", "video.is_depth_map"))

    @property
    def why_depth(self) -> str:
        """For a sentence about it."""
        if self.levels:
            return f"holds pictures of one channel with more than 8 bits ({self.levels}), distances rather than colours"
        return "is a depth map"

    @property
    def is_numeric(self) -> bool:
        """Whether its values are integers or floats."""
        return _NUMERIC.fullmatch(self.dtype) is not None

    @property
    def is_text(self) -> bool:
        """Whether its values are strings."""
        return self.dtype in ("string", "str", "large_string")

    @property
    def is_needed(self) -> bool:
        """Whether a policy can use it, or the reading of everything else does; another may be damaged."""
        return self.name in (*USED, *BOOKKEEPING) or self.is_camera

    @property
    def hwc(self) -> tuple[int, int, int]:
        """Declared (H, W, C) of a camera, whichever order info.json uses."""
        a, b, c = self.shape
        is_hwc = self.names[2] in ("channel", "channels", "rgb") if len(self.names) == 3 else c <= 4
        return (a, b, c) if is_hwc else (b, c, a)


@dataclass(frozen=True)
class Info:
    """`meta/info.json`, read leniently: unknown keys are kept in `raw`, counters are claims to be checked."""

    version: tuple[int, int]
    fps: float
    robot_type: str | None
    features: dict[str, FeatureInfo]
    data_path: str
    video_path: str
    chunks_size: int
    raw: dict[str, Any]

    @property
    def version_text(self) -> str:
        """As LeRobot writes it: `v3.0`."""
        return f"v{self.version[0]}.{self.version[1]}"

    @property
    def says_version(self) -> bool:
        """Whether the file names a version; else it was told from the files that are there."""
        return VERSION.fullmatch(str(self.raw.get("codebase_version", ""))) is not None

    @property
    def cameras(self) -> list[str]:
        return [f.name for f in self.features.values() if f.is_camera]

    def data_glob(self) -> str:
        """Pattern that finds all data files below the dataset's folder."""
        return _glob(self.data_path)

    def episode_data_path(self, episode: int) -> str:
        """v2.x: the parquet file of one episode."""
        return self.data_path.format(episode_chunk=episode // self.chunks_size, episode_index=episode)

    def episode_video_path(self, camera: str, episode: int) -> str:
        """v2.x: the mp4 file of one episode and camera."""
        return self.video_path.format(
            episode_chunk=episode // self.chunks_size, episode_index=episode, video_key=camera
        )

    def video_file(self, camera: str, chunk: int, file: int) -> str:
        """v3.x: an mp4 file by its numbers."""
        return self.video_path.format(video_key=camera, chunk_index=chunk, file_index=file)


VERSION = re.compile(r"v?(\d+)\.(\d+)(?:\..*)?")
V3_NUMBERS = ("chunk_index", "file_index")
V3_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
V3_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
V3_EPISODES = "meta/episodes/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
V2_DATA = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
V2_VIDEO = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"


def read_info(root: Path) -> Info:
    """Reads and judges `meta/info.json`.

    Raises:
        DatasetError: missing or unreadable file, a version from the past or the future, no fps, no features.
    """
    path = root / INFO
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DatasetError(
            f"{root} is not a LeRobot dataset: it has no {INFO}. Name the folder that holds `meta/`.",
            file=INFO,
        ) from None
    except (ValueError, OSError) as error:
        raise DatasetError(
            f"{path} cannot be read as JSON: {error}; restore it from a copy", file=INFO
        ) from error
    if not isinstance(raw, dict):
        raise DatasetError(f"{path} holds a {type(raw).__name__}, expected a JSON object", file=INFO)
    version = _version(root, raw)
    fps = raw.get("fps")
    if not isinstance(fps, (int, float)) or isinstance(fps, bool) or not 0 < fps < 1e6:
        raise DatasetError(f"{path} says fps = {fps!r}; expected a positive number", file=INFO)
    named = raw.get("features")
    if not isinstance(named, dict) or not named:
        raise DatasetError(f"{path} names no features", file=INFO)
    is_v2 = version[0] == 2
    return Info(
        version=version,
        fps=float(fps),
        robot_type=raw.get("robot_type"),
        features={str(k): feature_info(str(k), v, path) for k, v in named.items()},
        data_path=_template(path, raw, "data_path", V2_DATA if is_v2 else V3_DATA),
        video_path=_template(path, raw, "video_path", V2_VIDEO if is_v2 else V3_VIDEO),
        chunks_size=_chunks_size(path, raw),
        raw=raw,
    )


def _template(path: Path, raw: Mapping[str, Any], key: str, usual: str) -> str:
    """A path template of info.json that can be filled with what `usual` is filled with."""
    template = raw.get(key) or usual
    numbers = dict.fromkeys(
        ("episode_chunk", "episode_index") if usual in (V2_DATA, V2_VIDEO) else V3_NUMBERS, 0
    )
    try:
        filled = template.format(video_key="", **numbers)
    except (AttributeError, LookupError, ValueError) as error:
        raise DatasetError(
            f"{path} says {key} = {template!r}; expected a path like {usual}", file=INFO
        ) from error
    videos = [
        str(k)
        for k, f in raw.get("features", {}).items()
        if isinstance(f, dict) and f.get("dtype") == "video"
    ]
    for name in (filled, *(videos if key == "video_path" else ())):
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise DatasetError(
                f"{path} says {key} = {template!r}, which leads out of the dataset's folder"
                f"{'' if name == filled else f' for the camera {name!r}'}; expected a path like {usual}",
                file=INFO,
            )
    return str(template)


def _chunks_size(path: Path, raw: Mapping[str, Any]) -> int:
    size = raw.get("chunks_size") or 1000
    if not isinstance(size, (int, float)) or not 1 <= size < 1e9:
        raise DatasetError(f"{path} says chunks_size = {size!r}; expected a positive number", file=INFO)
    return int(size)


def _version(root: Path, raw: Mapping[str, Any]) -> tuple[int, int]:
    text = str(raw.get("codebase_version", ""))
    match = VERSION.fullmatch(text)
    if match is None:
        if (root / "meta/episodes").is_dir():
            return 3, 0
        if (root / "meta/episodes.jsonl").is_file():
            return 2, 1
        raise DatasetError(
            f"{root / INFO} says codebase_version = {text!r}; EdgeVLA reads v2.0, v2.1 and v3.0", file=INFO
        )
    version = int(match[1]), int(match[2])
    if version[0] > 3:
        raise DatasetError(
            f"{root} is a LeRobot dataset of version {text}, newer than what this EdgeVLA reads "
            "(v2.0, v2.1, v3.0). Upgrade EdgeVLA.",
            file=INFO,
        )
    if version[0] < 2:
        raise DatasetError(
            f"{root} is a LeRobot dataset of version {text}; EdgeVLA reads v2.0, v2.1 and v3.0. "
            "Convert it with LeRobot's own scripts first.",
            file=INFO,
        )
    storage = raw.get("storage_format", "parquet")
    if storage not in (None, "parquet"):
        raise DatasetError(
            f"{root} stores its frames as '{storage}'; EdgeVLA reads parquet and mp4. "
            "Convert it with LeRobot's own scripts first.",
            file=INFO,
        )
    return version


def feature_info(name: str, raw: Any, path: Path) -> FeatureInfo:
    """One entry of info.json's `features`. path: the file it stands in, for the error.

    Raises:
        DatasetError: no dtype or shape, or a camera whose shape is not three numbers.
    """
    try:
        shape = tuple(int(n) for n in (raw.get("shape") or (1,)))
        dtype = str(raw["dtype"])
    except (TypeError, ValueError, KeyError, AttributeError):
        raise DatasetError(
            f"{path}: feature '{name}' needs a dtype and a shape, and has {raw!r}", file=INFO, feature=name
        ) from None
    feature = FeatureInfo(name, dtype, shape, _names(raw.get("names")), raw)
    if feature.is_camera and len(shape) != 3:
        raise DatasetError(
            f"{path}: camera '{name}' has shape {list(shape)}; expected [height, width, channels]",
            file=INFO,
            feature=name,
        )
    return feature


def _names(names: Any) -> tuple[str, ...]:
    """A list; {"motors": [...]}, {"axes": [...]}; or {"x": 0, "y": 1}: all become one name per element."""
    if isinstance(names, dict):
        values = list(names.values())
        if values and all(isinstance(v, int) for v in values):
            return tuple(str(k) for k, _ in sorted(names.items(), key=lambda item: item[1]))
        return tuple(str(n) for v in values if isinstance(v, (list, tuple)) for n in v)
    return tuple(str(n) for n in names) if isinstance(names, (list, tuple)) else ()


# -- files --------------------------------------------------------------------------------------------------


def _glob(template: str) -> str:
    return re.sub(r"\{[^}]*\}", "*", template)


def natural(path: Path) -> list[int]:
    """Sort key: the numbers in a path, so that file-1000 follows file-999."""
    return [int(n) for n in re.findall(r"\d+", str(path))]


def relative_files(root: Path, pattern: str) -> list[str]:
    """Files under root that match, in the order of their numbers, as POSIX paths relative to it."""
    found = sorted(root.glob(pattern), key=natural)
    return [p.relative_to(root).as_posix() for p in found if p.is_file()]


@dataclass(frozen=True)
class VideoSpan:
    """Where an episode's frames of one camera are: seconds [start, end) of one mp4 file, path relative to root."""

    file: str
    start: float
    end: float


@dataclass(frozen=True)
class Episode:
    """One episode. index: its number in the dataset. from_index, to_index: half-open range of rows *as opened*."""

    index: int
    length: int
    from_index: int
    to_index: int
    tasks: tuple[str, ...] = ()
    videos: Mapping[str, VideoSpan] = field(default_factory=dict)


def read_jsonl(path: Path) -> Iterable[dict[str, Any]]:
    """Objects of a jsonl file.

    Raises:
        DatasetError: the file is missing, or a line is not a JSON object.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}", file=path.name) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError:
            value = None
        if not isinstance(value, dict):
            raise DatasetError(f"{path} line {number} is not a JSON object", file=path.name)
        yield value
