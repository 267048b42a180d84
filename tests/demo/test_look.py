"""Live pictures held against those of training: exchanged cameras, no picture, upside down, moved, dark; and no false
word for another pose, another light, another place of the cube."""

import json

import numpy as np
import pytest

from edgevla import strict
from edgevla.look import CameraLook, away, glance, look_of, oddities
from edgevla.robots.world.follow_cube.scene import SceneCamera

SIZE = (320, 240)
VIEWS = ("front", "top", "wrist")


def pictures(view: str, n: int, seed: int) -> list[np.ndarray]:
    """What a camera sees while an arm moves about: each time another pose, another place of the cube, sensor noise."""
    random = np.random.default_rng(seed)
    scene, shown = SceneCamera(view, *SIZE), []
    for _ in range(n):
        pose = np.array([0.0, -0.6, 0.8, 0.6, 0.0, 0.3]) + random.normal(0, 0.25, 6)
        cube = np.array([random.uniform(0.15, 0.3), random.uniform(-0.15, 0.15), 0.015])
        picture = scene.draw(pose, [cube]) + random.normal(0, 2, (SIZE[1], SIZE[0], 3))
        shown.append(np.clip(picture, 0, 255).astype(np.uint8))
    return shown


@pytest.fixture(scope="module")
def trained() -> dict[str, CameraLook]:
    looks = {view: look_of([glance(p) for p in pictures(view, 48, seed=1)]) for view in VIEWS}
    # As they come out of a manifest.
    return {v: strict.read(CameraLook, json.loads(json.dumps(strict.write(k))), v) for v, k in looks.items()}


def words(trained, **live: np.ndarray) -> list[str]:
    return [o.text for o in oddities({name: glance(p) for name, p in live.items()}, trained)]


def test_the_same_cameras_another_day_are_not_remarked_upon(trained):
    """Other poses, the light a third darker and yellower, more noise."""
    random = np.random.default_rng(3)
    for front, top, wrist in zip(*(pictures(view, 12, seed=2) for view in VIEWS), strict=True):
        assert words(trained, front=front, top=top, wrist=wrist) == []
        evening = [
            np.clip(p * (0.72, 0.66, 0.5) + random.normal(0, 4, p.shape), 0, 255).astype(np.uint8)
            for p in (front, top, wrist)
        ]
        assert words(trained, **dict(zip(VIEWS, evening, strict=True))) == []


@pytest.mark.parametrize(("a", "b"), [("front", "wrist"), ("front", "top"), ("top", "wrist")])
def test_two_exchanged_cameras_are_named(trained, a, b):
    for one, other in zip(pictures(a, 10, seed=4), pictures(b, 10, seed=5), strict=True):
        said = words(trained, **{a: other, b: one})
        assert len(said) == 2
        assert (
            f"camera '{a}' shows what '{b}' showed in the training data: the cameras are exchanged" in said[0]
        )
        assert f"--camera {b}=DEVICE" in said[1]


def test_three_cameras_in_a_circle_are_told_apart(trained):
    front, top, wrist = (pictures(view, 1, seed=6)[0] for view in VIEWS)
    said = words(trained, front=top, top=wrist, wrist=front)
    assert [s.split(" in the")[0] for s in said] == [
        "camera 'front' shows what 'top' showed",
        "camera 'top' shows what 'wrist' showed",
        "camera 'wrist' shows what 'front' showed",
    ]
    assert "are mixed up" in said[0]


@pytest.mark.parametrize(
    ("make", "shade"),
    [
        (lambda shape: np.zeros(shape), "black"),
        (lambda shape: np.random.default_rng(0).normal(4, 1.5, shape), "black"),
        (lambda shape: np.full(shape, 255), "white"),
        (lambda shape: np.full(shape, 1) * (0, 135, 0), "of one colour"),
    ],
    ids=["no light", "a cap, with the sensor's noise", "overexposed", "YUYV of zeros"],
)
def test_no_picture_is_certain_where_training_showed_pictures(trained, make, shade):
    nothing = np.clip(make((SIZE[1], SIZE[0], 3)), 0, 255).astype(np.uint8)
    (found,) = oddities({"front": glance(nothing)}, trained)
    assert found.is_blind
    assert f"camera 'front' shows nothing: its pictures are {shade}" in found.text
    assert oddities({"front": glance(nothing)}, {}) == [], (
        "without training's word the policy may know nothing else"
    )
    dark_room = CameraLook(
        (2.0, 5.0), (0.5, 4.0), trained["front"].thumbnail, trained["front"].spread, 1.0, 9
    )
    assert oddities({"front": glance(nothing)}, {"front": dark_room}) == []


def test_upside_down_moved_and_dark_cameras_are_told_from_each_other(trained):
    front = pictures("front", 1, seed=7)[0]
    assert "view upside down" in words(trained, front=np.ascontiguousarray(front[::-1, ::-1]))[0]
    assert "shows another view" in words(trained, front=np.roll(front, 100, axis=1))[0]
    assert "is darker than in the training data" in words(trained, front=(front * 0.3).astype(np.uint8))[0]


def test_the_size_of_a_picture_does_not_matter(trained):
    front = pictures("front", 1, seed=8)[0]
    for picture in (front[::2, ::2], np.repeat(np.repeat(front, 3, 0), 3, 1), front[:239, :317]):
        assert away(glance(picture), trained["front"]) < 2 * trained["front"].usual + 0.5


def test_a_single_picture_makes_no_look():
    assert look_of([glance(pictures("front", 1, seed=9)[0])]) is None
