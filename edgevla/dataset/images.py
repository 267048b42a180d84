"""Cameras stored as pictures inside the data table (`dtype: image`): PNG or JPEG bytes, decoded with OpenCV."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgevla.dataset.depth import deep_gray_picture, picture_bytes
from edgevla.dataset.tables import open_parquet
from edgevla.errors import DatasetError

_AS_STORED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
"""LeRobot does not turn pictures by their EXIF tag."""
KEPT_BYTES = 256 * 2**20


class ImageTable:
    """Reads picture columns a row group at a time and keeps the most recent ones (at most about 256 MiB)."""

    def __init__(self, root: Path, files: Sequence[str]) -> None:
        self.root, self.files = root, list(files)
        self._groups: list[tuple[int, str, int]] | None = None
        self._starts = np.zeros(0, np.int64)
        self._kept: OrderedDict[tuple[str, str, int], Any] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"root": self.root, "files": self.files}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["root"], state["files"])  # type: ignore[misc]

    def read(self, camera: str, rows: np.ndarray) -> Iterator[np.ndarray]:
        """uint8 (H, W, 3) RGB per table row, in the order of rows. camera: its column."""
        self._find_groups()
        assert self._groups is not None
        for row in rows.tolist():
            start, file, number = self._groups[int(np.searchsorted(self._starts, row, side="right")) - 1]
            cell = self._column(camera, file, number)[row - start].as_py()
            yield self._picture(cell, camera, file, row)

    def _find_groups(self) -> None:
        with self._lock:
            if self._groups is not None:
                return
            groups, row = [], 0
            for file in self.files:
                metadata = open_parquet(self.root, file).metadata
                for number in range(metadata.num_row_groups):
                    groups.append((row, file, number))
                    row += metadata.row_group(number).num_rows
            self._starts = np.array([g[0] for g in groups], np.int64)
            self._groups = groups

    def _column(self, camera: str, file: str, number: int) -> Any:
        key = (camera, file, number)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
            table = open_parquet(self.root, file).read_row_group(number, columns=[camera])
            if camera not in table.column_names:
                raise DatasetError(f"{file} has no pictures of camera '{camera}'", file=file, feature=camera)
            column = table.column(camera)
            self._kept[key] = column
            while len(self._kept) > 1 and sum(c.nbytes for c in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
            return column

    def _picture(self, cell: Any, camera: str, file: str, row: int) -> np.ndarray:
        data = picture_bytes(self.root, cell)
        if levels := deep_gray_picture(data):
            raise DatasetError(
                f"the picture of camera '{camera}' in row {row} of {file} is {levels}: distances rather than colours",
                file=file,
                feature=camera,
            )
        picture = cv2.imdecode(np.frombuffer(data, np.uint8), _AS_STORED) if data else None
        if picture is None:
            raise DatasetError(
                f"the picture of camera '{camera}' in row {row} of {file} is damaged or missing",
                file=file,
                feature=camera,
            )
        return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
