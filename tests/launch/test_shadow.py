"""What a shadow run comes to in figures and words, and what is refused beside it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgevla.cli import main
from edgevla.launch import shadow
from edgevla.launch.shadow import Shadow, words
from edgevla.messages import State

S = 1_000_000_000


def state(k: int, wanted: tuple[float, float] | None, is_shadow: bool = True, step_ns: int = S) -> State:
    two = np.zeros(2, np.float32)
    return State(
        tick=k, deadline_ns=k * S, late_ns=0, t0_ns=0, step_ns=step_ns, mode="running", position=two + 10,
        position_age_us=np.zeros(2, np.uint32), wanted=None if wanted is None else np.array(wanted, np.float32),
        goal=two + np.nan, limited_by=np.zeros(2, np.uint16), chunk_seq=0, action_index=0.0, n_actions_left=0, reason="",
        is_shadow=is_shadow,
    )  # fmt: skip


def test_the_difference_is_told_by_joint_with_its_unit() -> None:
    made = Shadow()
    for k, wanted in enumerate([(13.0, 10.0), (7.0, 10.0), (10.0, 14.0), (10.0, 10.0)]):
        made.take(state(k, wanted))
    found = made.figures(["pan", "grip"], ["deg", "percent"])
    assert found is not None
    assert found["pan"] == {"rms": pytest.approx(np.sqrt(18 / 4), abs=1e-3), "p95": 3.0, "unit": "deg"}
    assert found["grip"]["rms"] == pytest.approx(2.0)
    assert words(found)[1].split() == ["pan", "2.12", "3.00", "deg"]


def test_only_what_a_policy_wanted_at_its_own_moments_counts() -> None:
    made = Shadow()
    made.take(state(0, None))
    made.take(state(0, (1.0, 1.0), is_shadow=False))
    made.take(state(1, (1.0, 1.0), step_ns=2 * S))
    assert made.figures(["a", "b"], ["deg", "deg"]) is None


def test_a_long_run_is_thinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shadow, "MOST_KEPT", 8)
    made = Shadow()
    for k in range(1000):
        made.take(state(k, (10.0 + k % 3, 10.0)))
        assert len(made._rows) < 8
    found = made.figures(["a", "b"], ["deg", "deg"])
    assert found is not None
    assert 0 < float(found["a"]["rms"]) <= 2.0


def test_where_a_leader_moves_the_arm_its_goals_are_what_was_done() -> None:
    made = Shadow()
    led = replace(state(0, (13.0, 10.0)), goal=np.array([12.0, 14.0], np.float32), is_led=True)
    made.take(led)
    found = made.figures(["pan", "grip"], ["deg", "percent"])
    assert found is not None
    assert (found["pan"]["rms"], found["grip"]["rms"]) == (1.0, 4.0)


def test_a_rehearsal_has_no_shadow(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["deploy", str(tmp_path), "--robot=so101", "--shadow", "--dry-run"]) == 2
    assert "leave out --shadow" in capsys.readouterr().err
