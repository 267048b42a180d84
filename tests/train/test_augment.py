"""Image augmentation: torchvision's definitions, LeRobot's ranges, one draw per camera."""

from __future__ import annotations

import numpy as np
import pytest

from edgevla.errors import ConfigError
from edgevla.train import augment
from edgevla.train.augment import TRANSFORMS, Augmentation


def _frame(seed: int = 0, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Smooth and colourful: no level near the ends, so that clipping does not hide differences."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]] / max(size)
    waves = [np.sin(2 * np.pi * (a * x + b * y) + c) for a, b, c in rng.uniform(0.5, 2, (3, 3))]
    return (np.stack(waves, -1) * 70 + 120).astype(np.uint8)


def _grey(frame: np.ndarray) -> np.ndarray:
    return frame.astype(float) @ [0.299, 0.587, 0.114]


@pytest.mark.parametrize("factor", [0.8, 0.93, 1.0, 1.2])
def test_brightness_contrast_saturation_by_definition(factor: float) -> None:
    frame = _frame()
    expected = {
        augment.brightness: frame * factor,
        augment.contrast: frame * factor + (1 - factor) * _grey(frame).mean(),
        augment.saturation: frame * factor + (1 - factor) * _grey(frame)[..., None],
    }
    for change, values in expected.items():
        assert np.abs(change(frame, factor).astype(float) - values.clip(0, 255)).max() <= 1.0, change


def test_hue_turns_the_colour_circle() -> None:
    red = np.full((2, 2, 3), (200, 20, 20), np.uint8)
    assert augment.hue(red, 1 / 3)[0, 0].tolist() == [20, 200, 20]
    assert augment.hue(red, -1 / 3)[0, 0].tolist() == [20, 20, 200]
    frame = _frame()
    assert np.abs(augment.hue(frame, 0.0).astype(int) - frame).max() <= 1
    grey = np.full((2, 2, 3), 77, np.uint8)
    assert (augment.hue(grey, 0.04) == 77).all()


def test_sharpness_blends_with_the_blurred_frame() -> None:
    frame = _frame(1)
    blurred = augment.sharpness(frame, 0.0)
    inner = frame.astype(float)
    expected = sum(
        inner[1 + dy : 47 + dy, 1 + dx : 63 + dx] * (5 if dx == dy == 0 else 1) / 13
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
    )
    assert np.abs(blurred[1:-1, 1:-1] - expected).max() <= 1
    np.testing.assert_array_equal(blurred[0], frame[0])
    np.testing.assert_array_equal(augment.sharpness(frame, 1.0), frame)
    assert augment.sharpness(frame, 1.5).std() > frame.std() > blurred.std()


def test_affine_turns_and_shifts() -> None:
    frame = _frame()
    np.testing.assert_array_equal(augment.affine(frame, 0.0, (0, 0)), frame)
    moved = augment.affine(frame, 0.0, (3, -2))
    np.testing.assert_array_equal(moved[:-2, 3:], frame[2:, :-3])
    assert (moved[-2:] == 0).all()
    assert (moved[:, :3] == 0).all()
    quarter = augment.affine(np.ascontiguousarray(frame[:, :48]), 90.0, (0, 0))
    np.testing.assert_array_equal(quarter, np.rot90(frame[:, :48], -1))  # clockwise, as torchvision turns


def test_parameters_stay_in_their_ranges() -> None:
    generator, frame = np.random.default_rng(0), _frame()
    ranges = {
        "brightness": (0.8, 1.2),
        "contrast": (0.8, 1.2),
        "saturation": (0.5, 1.5),
        "hue": (-0.05, 0.05),
        "sharpness": (0.5, 1.5),
    }
    for name, (low, high) in ranges.items():
        drawn = np.array([TRANSFORMS[name][1](generator, frame)[0] for _ in range(500)])
        assert low <= drawn.min() < low + 0.05 * (high - low)
        assert high - 0.05 * (high - low) < drawn.max() <= high
    drawn = [TRANSFORMS["affine"][1](generator, frame) for _ in range(500)]
    degrees, shifts = np.array([d[0] for d in drawn]), np.array([d[1] for d in drawn])
    assert 4.5 < np.abs(degrees).max() <= 5
    assert np.abs(shifts).max(0).tolist() == [3, 2]  # 5 % of 64 and 48, rounded


def test_frames_of_a_window_change_alike_and_cameras_do_not() -> None:
    change = Augmentation()
    frame = _frame()
    window = change(np.stack([frame, frame]), np.random.default_rng(3))
    np.testing.assert_array_equal(window[0], window[1])
    np.testing.assert_array_equal(window[0], change(frame, np.random.default_rng(3)))
    others = {change(frame, np.random.default_rng([3, camera])).tobytes() for camera in range(6)}
    assert len(others) == 6


def test_weights_and_order() -> None:
    frame = _frame()
    only = Augmentation(weights={"brightness": 1.0, "hue": 0.0})
    changed = only(frame, np.random.default_rng(0))
    factor = float((changed.astype(float) / frame).mean())
    assert np.abs(changed - frame * factor).max() < 2  # nothing but a factor
    results = {
        order: [Augmentation(3, order)(frame, np.random.default_rng(i)).tobytes() for i in range(8)]
        for order in (False, True)
    }
    assert results[False] != results[True]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"weights": {"blur": 1.0}}, "'blur' is unknown"),
        ({"max_num_transforms": 0}, "max_num_transforms"),
        ({"weights": {"hue": 0.0}}, "weight above 0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Augmentation(**settings)
