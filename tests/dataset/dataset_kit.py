"""Makes and damages datasets: machine-readable frames, videos of any encoding, v2.1 copies, edited tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from edgevla.dataset.layout import camera_age_key
from edgevla.dataset.writer import DatasetWriter

CAMERA = "observation.images.front"
JOINTS = ["shoulder_pan.pos", "shoulder_lift.pos", "gripper.pos"]
SIZE = (96, 128)


def code_frame(episode: int, frame: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """uint8 (H, W, 3): 6 bits of episode and 10 of frame as squares along the top, like so101_v30's; below, a
    gradient that depends on both, so that neighbours differ."""
    height, width = size
    side = width // 16
    y, x = np.mgrid[:height, :width]
    picture = np.stack([(x + 3 * frame) % 256, (y * 2 + 40 * episode) % 256, (x + y) % 256], -1).astype(
        np.uint8
    )
    number = (episode << 10) | frame
    for i in range(16):
        picture[:side, i * side : (i + 1) * side] = 255 if number >> (15 - i) & 1 else 0
    return picture


def read_code(frame: np.ndarray) -> tuple[int, int]:
    """(episode, frame) of a machine-readable frame."""
    side = frame.shape[1] // 16
    low, high = side // 4, side - side // 4
    bits = [frame[low:high, i * side + low : i * side + high].mean() > 126 for i in range(16)]
    number = int("".join("1" if b else "0" for b in bits), 2)
    return number >> 10, number & 1023


def features(size: tuple[int, int] = SIZE, *, age: bool = True) -> dict[str, dict[str, Any]]:
    named = {"dtype": "float32", "shape": (len(JOINTS),), "names": JOINTS}
    result: dict[str, dict[str, Any]] = {
        "action": named,
        "observation.state": named,
        CAMERA: {"dtype": "video", "shape": (*size, 3), "names": ["height", "width", "channels"]},
    }
    if age:
        result[camera_age_key(CAMERA)] = {"dtype": "float32", "shape": (1,), "names": None}
    return result


def row(episode: int, frame: int, size: tuple[int, int] = SIZE) -> dict[str, Any]:
    state = np.array([frame, -frame, 50 + episode], np.float32)
    return {
        "action": state + 1,
        "observation.state": state,
        CAMERA: code_frame(episode, frame, size),
        camera_age_key(CAMERA): 5.0 + frame,
    }


def task_of(episode: int) -> str:
    return ("pick the cube", "place the cube")[episode % 2]


def record(
    root: Path, lengths: Sequence[int], *, fps: float = 30, resume: bool = False, **options: Any
) -> None:
    """Episodes of these lengths with our writer; numbers go on when resumed."""
    with DatasetWriter(
        root, fps=fps, features=features(), robot_type="so101_follower", resume=resume, **options
    ) as w:
        for length in lengths:
            episode = w.n_episodes
            for frame in range(length):
                w.add_frame(row(episode, frame), task_of(episode))
            w.save_episode()


def encode(
    path: Path,
    frames: Sequence[np.ndarray],
    encoder: str,
    options: dict[str, str] | None = None,
    *,
    fps: int = 30,
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
) -> None:
    """An mp4 (or what the suffix says) of these frames; `pts` in `time_base` for odd timings."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(encoder, rate=fps, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuvj420p" if encoder == "mjpeg" else "yuv420p"
        if time_base is not None:
            stream.codec_context.time_base = time_base
        for i, pixels in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts = i if pts is None else pts[i]
            frame.time_base = time_base or Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


# -- editing tables -----------------------------------------------------------------------------------------


def edit_parquet(
    path: Path, change: Callable[[dict[str, Any]], None], *, schema: pa.Schema | None = None
) -> None:
    """Rewrites a parquet file after `change` has edited its columns (lists)."""
    table = pq.read_table(path)
    columns = table.to_pydict()
    change(columns)
    kept = pa.schema([f for f in (schema or table.schema) if f.name in columns])
    pq.write_table(pa.table(columns, schema=kept), path)


def edit_json(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def set_cell(path: Path, column: str, index: int, value: Any, element: int | None = None) -> None:
    def change(columns: dict[str, Any]) -> None:
        if element is None:
            columns[column][index] = value
        else:
            columns[column][index][element] = value

    edit_parquet(path, change)


# -- v2.1 ---------------------------------------------------------------------------------------------------


def convert_to_v21(source: Path, root: Path, *, v20: bool = False, chunks_size: int = 3) -> None:
    """Splits a v3.0 dataset of one file per kind into v2.1's (or v2.0's) layout."""
    info = json.loads((source / "meta/info.json").read_text())
    rows = pq.read_table(source / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    data = pq.read_table(source / "data/chunk-000/file-000.parquet")
    tasks = pq.read_table(source / "meta/tasks.parquet").to_pylist()
    (root / "meta").mkdir(parents=True)
    info.update(
        codebase_version="v2.0" if v20 else "v2.1",
        chunks_size=chunks_size,
        data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        video_path="videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        total_videos=8,
        total_chunks=2,
        fps=float(info["fps"]),
    )
    (root / "meta/info.json").write_text(json.dumps(info))
    lines = [{"task_index": t["task_index"], "task": t["__index_level_0__"]} for t in tasks]
    write_jsonl(root / "meta/tasks.jsonl", lines)
    episodes = [{k: r[k] for k in ("episode_index", "tasks", "length")} for r in rows]
    write_jsonl(root / "meta/episodes.jsonl", episodes[::-1])  # lines may be out of order
    if v20:
        (root / "meta/stats.json").write_text((source / "meta/stats.json").read_text())
    else:
        write_jsonl(root / "meta/episodes_stats.jsonl", [_stats_line(r) for r in rows])
    for r in rows:
        number, chunk = r["episode_index"], r["episode_index"] // chunks_size
        part = data.slice(r["dataset_from_index"], r["length"])
        target = root / f"data/chunk-{chunk:03d}/episode_{number:06d}.parquet"
        target.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(part.to_pydict()), target)  # variable lists of double, as pandas leaves them
        for camera in (n for n, f in info["features"].items() if f["dtype"] == "video"):
            cut = root / f"videos/chunk-{chunk:03d}/{camera}/episode_{number:06d}.mp4"
            start = round(r[f"videos/{camera}/from_timestamp"] * info["fps"])
            cut_video(source / f"videos/{camera}/chunk-000/file-000.mp4", cut, start, r["length"])


def _stats_line(row: dict[str, Any]) -> dict[str, Any]:
    stats: dict[str, dict[str, Any]] = {}
    for name, value in row.items():
        if name.startswith("stats/"):
            feature, statistic = name.removeprefix("stats/").rsplit("/", 1)
            if not statistic.startswith("q"):
                stats.setdefault(feature, {})[statistic] = value
    return {"episode_index": row["episode_index"], "stats": stats}


def write_jsonl(path: Path, lines: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def cut_video(source: Path, target: Path, start: int, count: int) -> None:
    """Copies packets start ... start + count - 1 into a file that begins at 0 (the first must be a keyframe)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(source)) as reading, av.open(str(target), "w") as writing:
        stream = reading.streams.video[0]
        out: Any = writing.add_stream_from_template(stream, opaque=True)
        packets = [p for p in reading.demux(stream) if p.size]
        first = packets[start].pts
        for packet in packets[start : start + count]:
            packet.pts, packet.dts = packet.pts - first, packet.dts - first
            packet.stream = out
            writing.mux(packet)
