"""Parquet tables as numpy arrays: frames, tasks, episodes. One read per file and column, no Python per row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from edgevla.dataset.layout import INFO, FeatureInfo, Findings
from edgevla.errors import DatasetError

_LIST_KINDS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
_NUMPY_NAME = {"bool": "bool_", "float": "float32"}


def open_parquet(root: Path, file: str) -> pq.ParquetFile:
    """Opens one parquet file of a dataset.

    Raises:
        DatasetError: missing, or without its footer (the recording was killed before the file was closed).
    """
    path = root / file
    try:
        return pq.ParquetFile(path)
    except FileNotFoundError:
        raise DatasetError(f"{file} is missing in {root}; restore it from a copy", file=file) from None
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(
            f"{file} in {root} is not a complete parquet file ({_first_line(error)}); a recording killed before it "
            "closed its files leaves this behind. Restore the file or delete its episodes.",
            file=file,
        ) from error


def read_table(root: Path, file: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Reads (some columns of) one file; damage inside it is a DatasetError too."""
    parquet = open_parquet(root, file)
    try:
        return parquet.read(columns=None if columns is None else list(columns))
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(
            f"{file} in {root} is damaged: {_first_line(error)}. Restore it from a copy.", file=file
        ) from error
    finally:
        parquet.close()


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


@dataclass
class Frames:
    """The data table. columns: contiguous numeric arrays (N, ...); texts: string columns; files: row ranges.

    row_starts[i] is the first row of files[i] in the order read.
    """

    columns: dict[str, np.ndarray]
    texts: dict[str, np.ndarray]
    files: list[str]
    row_starts: np.ndarray

    @property
    def n_rows(self) -> int:
        """Rows of every column."""
        return len(next(iter(self.columns.values()))) if self.columns else 0


def read_frames(
    root: Path,
    files: Sequence[str],
    features: dict[str, FeatureInfo],
    findings: Findings,
    *,
    is_partial: bool = False,
) -> Frames:
    """Reads all data files. A damaged file, or a feature that a file lacks, is a finding: an error, but for the
    former only a warning when `is_partial`, as its episodes may not be wanted."""
    parts: dict[str, list[np.ndarray]] = {}
    wanted = [f for f in features.values() if f.is_text or _is_read(f, findings)]
    pictures = [f for f in features.values() if f.is_camera and f.dtype == "image"]
    missing: set[str] = set()
    unread: dict[str, DatasetError] = {}
    kept, starts, row = [], [], 0
    for file in files:
        try:
            schema = open_parquet(root, file).schema_arrow.names
            table = read_table(root, file, [f.column for f in wanted if f.column in schema])
            arrays = _arrays(table, [f for f in wanted if f.column in schema], file, unread)
        except DatasetError as error:
            report = findings.warn if is_partial else findings.error
            report(str(error), file=file, feature=error.fields.get("feature"))
            continue
        if not table.num_rows:
            continue
        missing |= {f.name for f in (*wanted, *pictures) if f.column not in schema}
        kept.append(file)
        starts.append(row)
        row += table.num_rows
        for name, array in arrays.items():
            parts.setdefault(name, []).append(array)
    for name in sorted(missing):
        findings.error(
            f"feature '{name}' of meta/info.json is not a column of the data files in {root}; restore the files, or do "
            f"without it: --without {name}",
            feature=name,
            file=next(iter(files), None),
        )
    for name, reason in unread.items():
        text = f"{reason}; no policy uses it, and it is left out"
        findings.warn(text, feature=name, file=reason.fields.get("file"))
    parts = {name: arrays for name, arrays in parts.items() if name not in missing and name not in unread}
    joined = {
        name: arrays[0] if len(arrays) == 1 else np.concatenate(arrays) for name, arrays in parts.items()
    }
    return Frames(
        columns={n: a for n, a in joined.items() if a.dtype != object},
        texts={n: a for n, a in joined.items() if a.dtype == object},
        files=kept,
        row_starts=np.asarray(starts, np.int64),
    )


def _is_read(feature: FeatureInfo, findings: Findings) -> bool:
    """Whether it is a column of numbers; a kind that a later version of the format brings is left alone, and said."""
    if feature.is_numeric:
        return True
    if not (feature.is_text or feature.is_picture or feature.dtype == "language"):
        text = f"feature '{feature.name}' has the dtype '{feature.dtype}', which is not known"
        if feature.is_needed:
            findings.error(text, file=INFO, feature=feature.name)
        else:
            findings.warn(f"{text}; it is left out", file=INFO, feature=feature.name)
    return False


def _arrays(
    table: pa.Table, features: Sequence[FeatureInfo], file: str, unread: dict[str, DatasetError]
) -> dict[str, np.ndarray]:
    """Columns by feature. One that cannot be read is noted in `unread`, where no policy can use it.

    Raises:
        DatasetError: such a column that a policy can use.
    """
    arrays = {}
    for feature in features if table.num_rows else ():
        try:
            arrays[feature.name] = _to_numpy(table, feature, file)
        except DatasetError as error:
            if feature.is_needed:
                raise
            unread.setdefault(feature.name, error)
    return arrays


def _to_numpy(table: pa.Table, feature: FeatureInfo, file: str) -> np.ndarray:
    """(N,) for shape [1], else (N, *shape), cast to the declared dtype; strings as an object array."""
    column = table.column(feature.column).combine_chunks()
    if isinstance(column, pa.ChunkedArray):
        column = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    n = len(column)
    if feature.is_text:
        return np.array(column.to_pylist(), dtype=object)
    values = flat_values(column)
    dtype = np.dtype(_NUMPY_NAME.get(feature.dtype, feature.dtype))
    size = int(np.prod(feature.shape))
    if len(values) != n * size:
        raise DatasetError(
            f"{file}: feature '{feature.name}' holds {len(values)} numbers in {n} rows; its shape "
            f"{list(feature.shape)} in meta/info.json wants {n * size}",
            file=file,
            feature=feature.name,
        )
    array = values.to_numpy(zero_copy_only=False)
    if array.dtype == object or (values.null_count and not np.issubdtype(dtype, np.floating)):
        raise DatasetError(
            f"{file}: feature '{feature.name}' has empty cells", file=file, feature=feature.name
        )
    with np.errstate(invalid="ignore", over="ignore"):
        cast = array.astype(dtype, copy=False)
    if dtype.kind in "iub" and not np.array_equal(cast, array):
        odd = array[cast != array][0]
        raise DatasetError(
            f"{file}: feature '{feature.name}' holds {odd}, which is no {feature.dtype}, as meta/info.json calls it; "
            "correct its dtype there",
            file=file,
            feature=feature.name,
        )
    shape = (n,) if feature.shape == (1,) else (n, *feature.shape)
    return np.ascontiguousarray(cast.reshape(shape))


def flat_values(column: pa.Array) -> pa.Array:
    """The numbers below any nesting of lists (fixed, variable, extension types), in order."""
    while True:
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
        elif any(is_kind(column.type) for is_kind in _LIST_KINDS):
            column = column.flatten()
        else:
            return column


def read_tasks(root: Path, file: str = "meta/tasks.parquet") -> dict[int, str]:
    """task_index -> instruction, by the value of `task_index` whatever the order of rows."""
    return read_numbered_texts(root, file, "task_index", "task")


def read_numbered_texts(root: Path, file: str, number: str, text: str) -> dict[int, str]:
    """A table of texts by their number. pandas leaves the text as its index, named or not.

    Raises:
        DatasetError: the file is damaged, or has no such columns.
    """
    table = read_table(root, file)
    names = [n for n in table.column_names if n != number]
    if number not in table.column_names or not names:
        raise DatasetError(
            f"{file} has the columns {table.column_names}; expected {number} and the {text}'s text", file=file
        )
    column = next((n for n in (text, "__index_level_0__") if n in names), names[0])
    pairs = zip(table.column(number).to_pylist(), table.column(column).to_pylist(), strict=True)
    return task_table(pairs, file)


def task_table(pairs: Iterable[tuple[Any, Any]], file: str) -> dict[int, str]:
    """(number, instruction) pairs as read, checked; no instruction is an empty one.

    Raises:
        DatasetError: a number or a text that is none; two texts of one number, as tables that were only appended to
            one another hold.
    """
    tasks: dict[int, str] = {}
    for number, text in pairs:
        if (
            not isinstance(number, (int, float))
            or number != number
            or not isinstance(text, (str, type(None)))
        ):
            raise DatasetError(f"{file} has task_index {number!r} with the task {text!r}", file=file)
        known = tasks.setdefault(int(number), text or "")
        if known != (text or ""):
            raise DatasetError(
                f"{file} gives number {int(number)} to {known!r} and to {text!r}, so nobody knows what its rows mean: "
                "number the texts anew, in the data files too",
                file=file,
            )
    return tasks


def read_episode_rows(root: Path, files: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of meta/episodes without the bulky statistics columns, in file order."""
    rows: list[dict[str, Any]] = []
    for file in files:
        names = [n for n in open_parquet(root, file).schema_arrow.names if not n.startswith("stats/")]
        rows += read_table(root, file, names).to_pylist()
    return rows


def read_episode_stats(root: Path, files: Sequence[str]) -> list[dict[str, dict[str, Any]]]:
    """Per episode {feature: {statistic: nested list}} from the `stats/<feature>/<statistic>` columns."""
    episodes = []
    for file in files:
        names = [n for n in open_parquet(root, file).schema_arrow.names if n.startswith("stats/")]
        for row in read_table(root, file, names).to_pylist():
            stats: dict[str, dict[str, Any]] = {}
            for name, value in row.items():
                feature, statistic = name.removeprefix("stats/").rsplit("/", 1)
                if value is not None:
                    stats.setdefault(feature, {})[statistic] = value
            episodes.append(stats)
    return episodes
