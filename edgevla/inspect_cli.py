"""Says what is in a dataset, a checkpoint or a policy bundle, and checks all of it; or what happened in a run.

Exit code 0: sound (warnings allowed); 1: something is wrong, each said in one sentence, or the checkpoint's actions are
end-effector poses, which no robot here can follow.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevla.dataset.reading_options import add_reading_arguments, reading_of
from edgevla.flight.inspect_options import RUN_OPTIONS, add_run_arguments
from edgevla.vocabulary import BASE_HELP

if TYPE_CHECKING:
    from edgevla.dataset.layout import FeatureInfo, Finding
    from edgevla.dataset.reader import Dataset
    from edgevla.dataset.stated import Stated


DATASET_OPTIONS = ("contact_sheet", "features", "without", "task_from")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "subject", help="folder of a dataset, checkpoint, bundle or run, or a dataset's hub id"
    )
    parser.add_argument(
        "--contact-sheet", metavar="PNG", help="dataset: write a picture of frames of every episode"
    )
    parser.add_argument("--base", metavar="PATH", default="", help=BASE_HELP)
    parser.add_argument(
        "--device",
        metavar="NAME",
        default="",
        help="checkpoint or bundle: how fast it can be on orin-nano, orin-nx, agx-orin, thor, rpi5, ... at best; this: "
        "on this machine, measured as well",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    add_run_arguments(parser)
    add_reading_arguments(parser.add_argument_group("how a dataset is read"))


def run(args: argparse.Namespace) -> int:
    from edgevla.checkpoints import policy_folder
    from edgevla.errors import UsageError
    from edgevla.flight.reader import run_folder

    path = Path(args.subject).expanduser()
    if (folder := run_folder(path)) is not None:
        from edgevla.flight.inspect import inspect_run

        _refuse(args, (*DATASET_OPTIONS, "base", "device"), f"not for runs, and {path} is one")
        return inspect_run(args, folder)
    _refuse(args, RUN_OPTIONS, f"for runs: {path} is none (no run.flight in it)")
    is_dataset = (path / "meta/info.json").is_file()
    if not is_dataset and (path.is_dir() or policy_folder(path) is not None):
        _refuse(args, DATASET_OPTIONS, "for datasets")
        if (path / "manifest.json").is_file():
            if args.base:
                raise UsageError("--base is for adapters (LoRA), not for bundles")
            return _describe("describe_bundle", args.json, path, args.device)
        if policy_folder(path) is not None or any(path.glob("**/*.distcp")):
            return _describe("describe_checkpoint", args.json, path, args.base, args.device)
        if not (path / "meta").is_dir():
            raise UsageError(
                f"{path} is neither a dataset (meta/info.json), nor a checkpoint (config.json), nor a bundle "
                "(manifest.json), nor a run (run.flight); name a folder that holds one of these"
            )
    if args.base:
        raise UsageError("--base is for adapters (LoRA), not for datasets")
    if args.device:
        raise UsageError("--device is for checkpoints and bundles, not for datasets")
    return _inspect_dataset(args)


def _refuse(args: argparse.Namespace, options: tuple[str, ...], what_they_are: str) -> None:
    """
    Raises:
        UsageError: one of these options is given; what is not done is said, not passed over.
    """
    from edgevla.errors import UsageError

    for option in options:
        if getattr(args, option) not in (None, False, ""):
            name = "feature" if option == "features" else option.replace("_", "-")
            raise UsageError(f"--{name} is {what_they_are}")


def _describe(function: str, as_json: bool, *subject: Path | str) -> int:
    """Checkpoints and bundles belong to the export subpackage, which the runtime names only here."""
    module = importlib.import_module("edgevla.export.describe")
    lines, data, code = getattr(module, function)(*subject)
    print(json.dumps(data, indent=2) if as_json else "\n".join(lines))
    return int(code)


def _inspect_dataset(args: argparse.Namespace) -> int:
    from edgevla.dataset.check import examine
    from edgevla.dataset.hub import local_folder

    folder, _ = local_folder(args.subject)
    show = sys.stderr.isatty() and not args.json
    reading = reading_of(args.features, args.without, args.task_from)
    findings, dataset = examine(folder, progress=_progress if show else None, reading=reading)
    errors = [f for f in findings if f.severity == "error"]
    if args.json:
        print(json.dumps(_dataset_json(folder, dataset, findings), indent=2))
    else:
        print("\n".join(_dataset_lines(folder, dataset, findings)))
    if args.contact_sheet and dataset is not None and not errors:
        from edgevla.dataset.sheet import write_contact_sheet

        write_contact_sheet(dataset, Path(args.contact_sheet))
        if not args.json:
            print(f"contact sheet: {args.contact_sheet}")
    return 1 if errors else 0


def _progress(done: int, total: int, what: str) -> None:
    end = "\r" if done < total else "\r\033[K"
    print(f"\r\033[Kchecking videos {done}/{total} {what}"[:100], end=end, file=sys.stderr, flush=True)


# -- text ---------------------------------------------------------------------------------------------------


def _dataset_lines(folder: Path, dataset: Dataset | None, findings: list[Finding]) -> list[str]:
    lines = (
        [] if dataset is None else [*_summary(folder, dataset), "", *_features(dataset), "", *_stats(dataset)]
    )
    errors = [f.text for f in findings if f.severity == "error"]
    warnings = [f.text for f in findings if f.severity == "warning"]
    lines += [""] if lines else []
    lines += [f"warning: {text}" for text in warnings] + [f"ERROR: {text}" for text in errors]
    count = f"{len(warnings)} warning{'s' * (len(warnings) != 1)}"
    lines.append(
        f"NOT SOUND: {len(errors)} error{'s' * (len(errors) != 1)}, {count}" if errors else f"sound; {count}"
    )
    return lines


def _summary(folder: Path, dataset: Dataset) -> list[str]:
    info = dataset.info
    lengths = [e.length for e in dataset.episodes] or [0]
    seconds = dataset.n_frames / info.fps
    tasks = dataset.tasks[:8]
    return [
        f"{folder}: LeRobot dataset {info.version_text}, robot {info.robot_type or 'not named'}, {info.fps:g} fps, "
        f"joint units {_stated(dataset).joint_units or 'not stated'}",
        f"episodes {dataset.n_episodes}, frames {dataset.n_frames} ({seconds:.1f} s); "
        f"episodes of {min(lengths)} to {max(lengths)} frames",
        f"tasks {len(dataset.tasks)}: " + "; ".join(tasks) + (" ..." if len(dataset.tasks) > 8 else ""),
    ]


def _features(dataset: Dataset) -> list[str]:
    lines = ["features"]
    for name, feature in dataset.info.features.items():
        if feature.is_camera:
            lines.append(f"  {name}: {_camera_text(dataset, name)}{_source(feature)}")
        elif feature.name not in ("timestamp", "frame_index", "episode_index", "index", "task_index"):
            names = f": {', '.join(feature.names)}" if feature.names else ""
            kind = f"depth, {feature.dtype}" if feature.is_depth else feature.dtype
            lines.append(f"  {name}: {kind} {list(feature.shape)}{names}{_source(feature)}")
    return lines


def _source(feature: FeatureInfo) -> str:
    return "" if feature.column == feature.name else f" (the dataset's '{feature.column}')"


def _stated(dataset: Dataset) -> Stated:
    """What the recording says of itself; nothing where that cannot be read, which is an error said elsewhere."""
    from edgevla.dataset.stated import Stated, read_stated
    from edgevla.errors import DatasetError

    try:
        return read_stated(dataset.root)
    except DatasetError:
        return Stated()


def _camera_text(dataset: Dataset, camera: str) -> str:
    data = _camera_json(dataset, camera)
    if data["codec"] is None:
        return f"camera, {data['width']}x{data['height']}, not readable"
    video = (
        f", {data['pix_fmt']}, {data['rate']:g} fps, {data['files']} file{'s' * (data['files'] != 1)}"
        if "rate" in data
        else ""
    )
    column = dataset.info.features[camera].column
    noted = [r for r in _stated(dataset).repeated_pictures.get(column, ()) if r is not None]
    again = f", {sum(r.n for r in noted)} pictures repeat the one before" if noted else ""
    return f"camera, {data['width']}x{data['height']}, {data['codec']}{video}{again}"


def _camera_json(dataset: Dataset, camera: str) -> dict[str, Any]:
    from edgevla.errors import DatasetError

    feature = dataset.info.features[camera]
    height, width = feature.hwc[:2]
    if feature.dtype == "image":
        return {"height": height, "width": width, "codec": "pictures in the table"}
    files = sorted({e.videos[camera].file for e in dataset.episodes if camera in e.videos})
    try:
        index = dataset.video_index(files[0])
    except (DatasetError, IndexError):
        return {"height": height, "width": width, "codec": None}
    return {
        "height": index.height,
        "width": index.width,
        "codec": index.codec,
        "pix_fmt": index.pix_fmt,
        "rate": index.rate,
        "files": len(files),
    }


def _stats(dataset: Dataset) -> list[str]:
    """One line per element: min q01 mean std q99 max, quantiles from all rows."""
    from edgevla.dataset.layout import BOOKKEEPING
    from edgevla.dataset.stats import vector_stats

    columns = ("min", "q01", "mean", "std", "q99", "max")
    lines = ["statistics" + " " * 22 + "".join(f"{c:>11}" for c in columns)]
    for name, values in dataset.columns.items():
        if name in BOOKKEEPING or not len(values) or values.ndim > 2:
            continue
        stats = vector_stats(values)
        names = dataset.info.features[name].names
        lines.append(f"  {name}")
        for i in range(stats["mean"].size):
            label = names[i] if len(names) == stats["mean"].size else str(i)
            lines.append(f"    {label[:26]:<28}" + "".join(f"{stats[c].ravel()[i]:>11.4g}" for c in columns))
    return lines


def _dataset_json(folder: Path, dataset: Dataset | None, findings: list[Finding]) -> dict[str, Any]:
    data: dict[str, Any] = {
        "kind": "dataset",
        "path": str(folder),
        "sound": not any(f.severity == "error" for f in findings),
        "findings": [vars(f) for f in findings],
    }
    if dataset is None:
        return data
    from edgevla.dataset.layout import BOOKKEEPING
    from edgevla.dataset.stats import to_json, vector_stats
    from edgevla.strict import write

    info = dataset.info
    stats = {n: vector_stats(v) for n, v in dataset.columns.items() if n not in BOOKKEEPING and len(v)}
    return {
        **data,
        "version": info.version_text,
        "fps": info.fps,
        "robot_type": info.robot_type,
        "n_episodes": dataset.n_episodes,
        "n_frames": dataset.n_frames,
        "tasks": dataset.tasks,
        "joint_units": _stated(dataset).joint_units,
        "repeated_pictures": write(_stated(dataset).repeated_pictures),
        "cameras": {c: _camera_json(dataset, c) for c in dataset.cameras},
        "features": {
            n: {"dtype": f.dtype, "shape": list(f.shape), "names": list(f.names)}
            for n, f in info.features.items()
        },
        # JSON has no NaN and no infinity: null.
        "stats": json.loads(json.dumps(to_json(stats)), parse_constant=lambda _: None),
    }
