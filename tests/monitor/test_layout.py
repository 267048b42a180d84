"""Where everything stands: at every size whole, and at the usual ones hardly a cell without a use."""

from __future__ import annotations

import itertools

import pytest
from rich.cells import cell_len

from edgevla.monitor.layout import Box, Content, arrange
from edgevla.monitor.panels.keys import help_page

ONE_ARM = Content((6,), 6, 1)
ROBOTS = {
    "one arm": ONE_ARM,
    "one arm, two cameras": Content((6,), 6, 2),
    "one arm, no camera": Content((6,), 6, 0),
    "two arms": Content((6, 6), 12, 3),
    "aloha": Content((7, 7), 18, 4),
}


def placed(width: int, height: int, content: Content) -> dict[str, Box]:
    """The field is over the others while it is typed into."""
    return {name: box for name, box in arrange(width, height, content).items() if name != "field"}


def share(a: Box, b: Box) -> bool:
    return a.x < b.x + b.width and b.x < a.x + a.width and a.y < b.bottom and b.y < a.bottom


@pytest.mark.parametrize("robot", ROBOTS)
def test_no_box_shares_a_cell_with_another_or_leaves_the_terminal(robot: str) -> None:
    for width, height in itertools.product(
        (20, 50, 75, 76, 80, 100, 120, 160, 200, 300), (8, 15, 24, 30, 40, 60, 90)
    ):
        boxes = placed(width, height, ROBOTS[robot])
        for name, box in boxes.items():
            assert min(box.x, box.y) >= 0, (width, height, name)
            assert box.x + box.width <= width, (width, height, name, box)
            assert box.bottom <= height, (width, height, name, box)
        for one, other in itertools.combinations(boxes, 2):
            assert not share(boxes[one], boxes[other]), (width, height, one, other)


@pytest.mark.parametrize("robot", ROBOTS)
@pytest.mark.parametrize("size", [(80, 24), (120, 40), (200, 60)])
def test_every_part_is_there_and_hardly_a_cell_has_no_use(size: tuple[int, int], robot: str) -> None:
    content = ROBOTS[robot]
    boxes = placed(*size, content)
    assert {"header", "joints", "chunks", "loop", "servos", "events", "keys"} <= set(boxes)
    assert sum(name.startswith("camera") for name in boxes) == content.n_cameras
    used = sum(box.width * box.height for box in boxes.values())
    assert used > 0.85 * size[0] * size[1]


def test_cameras_stand_in_the_order_of_the_profile() -> None:
    boxes = arrange(120, 40, ROBOTS["aloha"])
    places = [(boxes[f"camera {i}"].y, boxes[f"camera {i}"].x) for i in range(4)]
    assert places == sorted(places)
    assert len({box.width for name, box in boxes.items() if name.startswith("camera")}) == 1


def test_one_camera_enlarged_has_the_screen_but_for_the_events() -> None:
    boxes = placed(120, 40, Content((7, 7), 18, 4, enlarged=2))
    assert set(boxes) == {"header", "keys", "camera 2", "events"}
    assert boxes["camera 2"].height > 30


def test_help_has_the_screen_and_the_state_stays() -> None:
    assert set(placed(80, 24, Content((6,), 6, 1, is_help=True))) == {"header", "keys", "help"}


def test_the_page_of_keys_fits_a_small_terminal() -> None:
    """Below two rows of the header, above the row of keys; what is cut off cannot be scrolled to."""
    rows = help_page(80)
    assert len(rows) <= 24 - 3
    for row in rows:
        assert sum(cell_len(text) for text, _ in row) <= 80, row
