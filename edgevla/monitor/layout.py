"""Where everything stands: a pure function from the terminal's size and what there is to show, to boxes.

    header            the state, what runs
    tables | cameras  joints of all arms, chunks, latency, the loop, servos; pictures in the order of the profile
    events            whatever rows are left
    keys

Cameras are made as large as the tables allow; what they leave of their column goes to tables, and the rows that nobody
needs to the events. Two arms stand side by side, above both columns where the terminal is not wide enough. A small
terminal has no room for a second column, or shows each part as one line.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

HEADER, KEYS = 2, 1
ONE_ARM, ONE_ARM_WIDE, TWO_ARMS = 50, 64, 104
"""Columns that tables need: of one arm on a small terminal, on a larger one, of two side by side."""
LEAST_SIDE = 29
"""Columns that a table needs beside another."""
TALL = 3
"""Rows of a joint where there are plenty (of two arms one less): its last ten seconds can be read like a plot."""
BESIDE = 5
"""Rows that a table needs below the cameras."""
SMALL = 110
"""Columns below which the events have the whole width."""
NARROW, LOW, TINY = 76, 20, 10
ENLARGED_EVENTS = 5


@dataclass(frozen=True)
class Content:
    """What there is to show. joints: per arm. enlarged: the camera that has the screen; None: none."""

    joints: tuple[int, ...] = (6,)
    n_servos: int = 6
    n_cameras: int = 0
    enlarged: int | None = None
    is_help: bool = False


@dataclass(frozen=True)
class Box:
    x: int
    y: int
    width: int
    height: int

    @property
    def bottom(self) -> int:
        return self.y + self.height


GIVE_WAY = (
    ("servos", 9),
    ("chunks", 5),
    ("latency", 2),
    ("loop", 2),
    ("servos", 3),
    ("chunks", 3),
    ("loop", 1),
    ("servos", 1),
)
"""Which tables lose rows where there are too few, and down to how many."""
INDENTED = ("joints", "servos")
"""Tables that begin with a line of heads; the others begin with a rule, which has its own indent."""
Boxes = dict[str, Box]
"""Name of a panel (`camera 0` is the first camera) -> its place; what is not there is not shown."""


@dataclass(frozen=True)
class Grid:
    """Cameras in columns; width and height of each, its title included."""

    columns: int
    width: int
    height: int
    n: int

    @property
    def total_width(self) -> int:
        return self.columns * (self.width + 1) - 1

    @property
    def total_height(self) -> int:
        return -(-self.n // self.columns) * self.height


NO_GRID = Grid(1, 0, 0, 0)


@lru_cache(maxsize=32)
def arrange(width: int, height: int, content: Content) -> Boxes:
    """Boxes that do not overlap, within the terminal."""
    body = Box(0, HEADER, width, max(0, height - HEADER - KEYS))
    boxes = {
        "header": Box(0, 0, width, min(HEADER, height)),
        "field": Box(0, height - 2, width, 1),
        "keys": Box(0, height - 1, width, 1),
    }
    if content.is_help:
        return boxes | {"help": body}
    if content.enlarged is not None and content.enlarged < content.n_cameras and height >= TINY:
        return boxes | _enlarged(body, content.enlarged)
    if width < NARROW or height < LOW:
        return boxes | _narrow(body, content)
    return boxes | _wide(body, content)


def _enlarged(body: Box, camera: int) -> Boxes:
    n_events = min(ENLARGED_EVENTS, body.height // 4)
    return {
        f"camera {camera}": Box(0, body.y, body.width, body.height - n_events),
        "events": Box(0, body.bottom - n_events, body.width, n_events),
    }


def _narrow(body: Box, content: Content) -> Boxes:
    """One column: joints, then as much as there is room for."""
    n_events = 0 if body.height < TINY - HEADER - KEYS else max(2, body.height // 5)
    wanted = {"joints": _joint_rows(body.width, content), "loop": 1, "chunks": 1}
    wanted["servos"] = content.n_servos + 1
    left = body.height - n_events
    heights = {}
    for name, rows in wanted.items():
        heights[name] = min(rows, left)
        left -= heights[name]
    return _stack(body.x, body.y, body.width, heights | {"events": n_events + left})


def _joint_rows(width: int, content: Content) -> int:
    """Arms beside one another as long as both have room."""
    is_side_by_side = len(content.joints) > 1 and width > NARROW
    return 1 + max(content.joints) if is_side_by_side else sum(n + 1 for n in content.joints)


def _wide(body: Box, content: Content) -> Boxes:
    if len(content.joints) == 1:
        least = ONE_ARM if body.width < 100 else ONE_ARM_WIDE
        return _columns(body, content, least, has_joints=True)
    if body.width >= TWO_ARMS + 50:
        return _columns(body, content, TWO_ARMS, has_joints=True)
    arms = Box(body.x, body.y, body.width, _joint_rows(body.width, content))
    indented = Box(arms.x + 1, arms.y, arms.width - 1, arms.height)
    below = Box(body.x, arms.bottom, body.width, body.height - arms.height)
    least = ONE_ARM - 4 if below.height < 20 else ONE_ARM + 8
    if below.height < 20 and content.n_cameras > 2:
        return {"joints": indented, **_strip(below, content)}
    return {"joints": indented, **_columns(below, content, least, has_joints=False)}


def _strip(body: Box, content: Content) -> Boxes:
    """Every part one line, and the cameras in a row."""
    n_events = 3
    room = body.height - n_events - 3
    grid = (
        _grid(content.n_cameras, body.width, room, columns=content.n_cameras)
        if content.n_cameras
        else NO_GRID
    )
    boxes = _cameras(grid, body.x + (body.width - grid.total_width) // 2, body.y)
    heights = {"chunks": 1, "loop": 1, "servos": 1 + room - grid.height}
    heights["events"] = n_events
    return boxes | _stack(body.x, body.y + grid.height, body.width, heights)


def _columns(body: Box, content: Content, least: int, *, has_joints: bool) -> Boxes:
    """Tables on the left, cameras on the right and what they leave room for, events in the rows that are left."""
    wanted = _wanted(body, content, has_joints=has_joints)
    n_events = 3 if body.height < 16 else 4 if body.height < 30 else 7
    is_small = body.width < SMALL
    side_height = body.height - n_events if is_small else body.height  # else events stay on the left
    grid = _grid(content.n_cameras, body.width - least - 1, side_height)
    if not grid.n:
        return _without_cameras(body, wanted, n_events)
    free = side_height - grid.total_height
    side = max(grid.total_width, 0 if free < BESIDE else LEAST_SIDE if is_small else 40)
    beside = {}
    for name in ("servos", "loop", "latency"):
        needed = wanted[name]
        room = body.height - n_events - sum(wanted.values()) + needed
        is_better = free >= needed - 1 or (name == "servos" and free >= max(room, BESIDE))
        if is_better and (side >= 38 or name == "servos"):
            beside[name] = min(free, wanted.pop(name))
            free -= beside[name]
    boxes = _cameras(grid, body.width - side + (side - grid.total_width) // 2, body.y)
    boxes |= _stack(body.width - side, body.y + grid.total_height, side, beside)
    tables = _fitted(wanted, body.height - n_events)
    spare = body.height - n_events - sum(tables.values())
    tables["chunks"] += spare if is_small else spare // 2
    boxes |= _stack(body.x, body.y, body.width - side - 1, tables)
    y = body.y + sum(tables.values())
    boxes["events"] = Box(body.x, y, body.width if is_small else body.width - side - 1, body.bottom - y)
    return boxes


def _without_cameras(body: Box, wanted: dict[str, int], n_events: int) -> Boxes:
    """One column, or two where both are wide enough: then the events have the rest of the second one."""
    if body.width < SMALL:
        tables = _fitted(wanted, body.height - n_events)
        return _stack(body.x, body.y, body.width, tables | {"events": body.height - sum(tables.values())})
    left = body.width // 2
    second = {name: wanted.pop(name) for name in ("servos", "latency", "loop")}
    second["events"] = body.height - sum(second.values())
    wanted["chunks"] += body.height - sum(wanted.values())
    return _stack(body.x, body.y, left, wanted) | _stack(left + 1, body.y, body.width - left - 1, second)


def _wanted(body: Box, content: Content, *, has_joints: bool) -> dict[str, int]:
    """Rows of each table where there is room enough."""
    is_low = body.height < 24
    tall = 1 if body.height <= 50 else TALL if len(content.joints) == 1 else 2
    return {
        **({"joints": max(content.joints) * tall + 1} if has_joints else {}),
        "chunks": 4 if is_low else 8 if body.height < 45 else 13 if body.height < 55 else 20,
        "latency": 2 if is_low else 3,
        "loop": 2 if is_low else 3,
        "servos": content.n_servos + 2,  # one for a line's trouble
    }


def _fitted(wanted: dict[str, int], room: int) -> dict[str, int]:
    """So many rows of them that they fit."""
    tables = dict(wanted)
    for name, least_rows in GIVE_WAY:
        over = sum(tables.values()) - room
        if over > 0 and tables.get(name, 0) > least_rows:
            tables[name] = max(least_rows, tables[name] - over)
    return tables


def _stack(x: int, y: int, width: int, heights: dict[str, int]) -> Boxes:
    boxes = {}
    for name, height in heights.items():
        if height > 0:
            indent = name in INDENTED
            boxes[name] = Box(x + indent, y, width - indent, height)
            y += height
    return boxes


def _grid(n: int, width: int, height: int, columns: int | None = None) -> Grid:
    """The largest pictures of 4:3 in this room; a picture's pixel is a column wide, and two of them a row high."""
    if n < 1 or width < 4 or height < 3:
        return NO_GRID
    best = NO_GRID
    for c in [columns] if columns else range(1, n + 1):
        rows = -(-n // c)
        wide = min((width + 1) // c - 1, (height // rows - 1) * 8 // 3)
        if wide > best.width:
            best = Grid(c, wide, wide * 3 // 4 // 2 + 1, n)
    return best


def _cameras(grid: Grid, x: int, y: int) -> Boxes:
    return {
        f"camera {i}": Box(
            x + i % grid.columns * (grid.width + 1),
            y + i // grid.columns * grid.height,
            grid.width,
            grid.height,
        )
        for i in range(grid.n)
    }
