"""Training for future states (VLASH, arXiv 2512.01031): pictures of now, the state and the chunk of some steps later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgevla.dataset import DatasetWriter, open_dataset
from edgevla.errors import CheckpointError, DatasetError
from edgevla.train.checkpoint import load_policy, save_policy
from edgevla.train.data import TrainingData, dataset_features, dataset_stats
from edgevla.train.fresh import fresh_config, new_policy
from edgevla.train.loader import Loader
from edgevla.train.policies import config_class, policy_class
from edgevla.train.policies.config import PolicyConfig

FRONT = "observation.images.front"
SMALL = {"chunk_size": 6, "n_action_steps": 6, "dim_model": 16, "n_heads": 2, "dim_feedforward": 16}
MOST = 4


def act_config(recorded: str, **settings: Any) -> PolicyConfig:
    features = dataset_features(open_dataset(recorded))
    return fresh_config(config_class("act"), features, {**SMALL, **settings})


def test_a_sample_is_that_of_a_later_state_with_the_pictures_of_now(recorded: str) -> None:
    """Read off the dataset's own columns, row by row."""
    dataset = open_dataset(recorded)
    plain = TrainingData(dataset, act_config(recorded))
    future = TrainingData(dataset, act_config(recorded, future_state_max_offset=MOST))
    actions, states = (np.asarray(dataset.columns[k]) for k in ("action", "observation.state"))
    seen = set()
    for number in range(40):
        rows = plain.batch_rows(number, 5, seed=3)
        before, after = plain.batch(rows, (3, number)), future.batch(rows, (3, number))
        np.testing.assert_array_equal(before[FRONT], after[FRONT])
        for i, row in enumerate(rows.tolist()):
            last = 20 * (row // 20) + 19
            reached = {0: states[row]} | {
                o: actions[row + o - 1] for o in range(1, MOST + 1) if row + o <= last
            }
            state = after["observation.state"][i].numpy()
            (offset,) = [o for o in reached if np.array_equal(state, reached[o])]
            wanted = row + offset + np.arange(6)
            np.testing.assert_array_equal(after["action_is_pad"][i], wanted > last)
            np.testing.assert_array_equal(after["action"][i], actions[np.minimum(wanted, last)])
            seen.add((offset, row == last))
    assert {offset for offset, _ in seen} == set(range(MOST + 1))
    assert {offset for offset, is_last in seen if is_last} == {0}, "an episode's last state has no later one"


def test_offsets_are_drawn_evenly_and_are_the_same_again(recorded: str) -> None:
    data = TrainingData(open_dataset(recorded), act_config(recorded, future_state_max_offset=MOST))
    rows = np.zeros(5000, np.int64)
    counts = np.bincount(data._offsets(rows, (1, 2)), minlength=MOST + 1)
    assert counts.min() > 900
    assert counts.max() < 1100
    np.testing.assert_array_equal(data._offsets(rows, (1, 2)), data._offsets(rows, (1, 2)))
    assert not np.array_equal(data._offsets(rows, (1, 2)), data._offsets(rows, (1, 3)))
    one, two = (Loader(data, 8, seed=1, n_threads=n).batch(7) for n in (0, 2))
    np.testing.assert_array_equal(one["observation.state"], two["observation.state"])
    evaluated = [b["observation.state"].numpy() for b in data.in_order(16)]
    again = [b["observation.state"].numpy() for b in data.in_order(16)]
    assert all(np.array_equal(a, b) for a, b in zip(evaluated, again, strict=True))


def test_a_state_that_is_written_into_the_prompt_is_the_later_one(recorded: str) -> None:
    told: list[np.ndarray] = []

    def tokenize(tasks: list[str], states: np.ndarray | None) -> dict[str, np.ndarray]:
        assert states is not None
        told.append(states)
        return {}

    dataset = open_dataset(recorded)
    for kind in ("pi05", "smolvla"):  # without and with a window of one
        features = dataset_features(dataset)
        config = fresh_config(config_class(kind), features, {"future_state_max_offset": MOST, "chunk_size": 8,
                                                             "n_action_steps": 8})  # fmt: skip
        batch = TrainingData(dataset, config, tokenize=tokenize).batch(np.arange(10), (1, 1))
        state = batch["observation.state"].numpy().reshape(10, -1)
        np.testing.assert_array_equal(told[-1], state)
        assert not np.array_equal(state, np.asarray(dataset.columns["observation.state"])[:10])


def test_goals_that_are_no_states_are_refused(tmp_path: Path) -> None:
    features = {
        "observation.state": {"dtype": "float32", "shape": (2,), "names": ["a.pos", "b.pos"]},
        "action": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
        FRONT: {"dtype": "image", "shape": (8, 8, 3), "names": ["height", "width", "channels"]},
    }
    with DatasetWriter(tmp_path / "set", fps=10, features=features) as writer:
        for _ in range(3):
            row = np.zeros(2, np.float32)
            writer.add_frame(
                {"observation.state": row, "action": row, FRONT: np.zeros((8, 8, 3), np.uint8)}, task="go"
            )
        writer.save_episode()
    root = str(tmp_path / "set")
    TrainingData(open_dataset(root), act_config(root))
    with pytest.raises(
        DatasetError, match=r"\(a\.pos, b\.pos\) and 'action' \(x, y\) do not name the same joints"
    ):
        TrainingData(open_dataset(root), act_config(root, future_state_max_offset=2))


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        ("act", {"future_state_max_offset": 6}, "from 0 .off. to 5, fewer than the actions of a chunk"),
        ("act", {"future_state_max_offset": -1}, "from 0 .off. to 5"),
        (
            "act",
            {"future_state_max_offset": 2, "temporal_ensemble_coeff": 0.01, "n_action_steps": 1},
            "temporal_ensemble_coeff 0.01 do not go together",
        ),
        ("diffusion", {"future_state_max_offset": 2}, "looks at several moments"),
        (
            "smolvla",
            {"future_state_max_offset": 2, "rtc_training_max_delay": 3},
            "rtc_training_max_delay 3 do not go together",
        ),
    ],
)
def test_what_contradicts_it_is_refused(
    kind: str, settings: dict[str, Any], says: str, recorded: str
) -> None:
    features = dataset_features(open_dataset(recorded))
    given = {**SMALL, **settings} if kind == "act" else settings
    with pytest.raises(CheckpointError, match=says):
        fresh_config(config_class(kind), features, given)


def test_without_a_state_there_is_no_future_one(recorded: str) -> None:
    features = {k: f for k, f in dataset_features(open_dataset(recorded)).items() if "state" not in k}
    with pytest.raises(CheckpointError, match="is told no state"):
        fresh_config(config_class("act"), features, {**SMALL, "future_state_max_offset": 2})


def test_it_is_kept_in_a_file_of_ours_and_guides_nothing(recorded: str, tmp_path: Path) -> None:
    dataset = open_dataset(recorded)
    overrides = {**SMALL, "future_state_max_offset": MOST, "pretrained_backbone_weights": None}
    policy = new_policy("act", dataset_features(dataset), dataset_stats(dataset), overrides, trunk_width=8)
    folder = save_policy(policy, tmp_path / "saved")
    assert "future" not in (folder / "config.json").read_text()
    assert load_policy(folder).config.future_state_max_offset == MOST
    flow = policy_class("smolvla")
    assert flow.rtc_mode == "guided"
    golden = Path(__file__).parents[1] / "fixtures/goldens/smolvla/checkpoint"

    def adapt(config: Any, _: Any) -> Any:
        config.future_state_max_offset = 3
        return config

    told = load_policy(golden, adapt=adapt)
    assert told.rtc_kind is None
    assert not any((i.source or "").startswith("rtc:") for i in told.graphs()["denoise"].inputs)
