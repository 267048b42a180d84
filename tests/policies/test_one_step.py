"""Training for one denoise step by shifted times (arXiv 2606.05737): only their distribution changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from vla_kit import MakeVla

from edgevla.errors import CheckpointError
from edgevla.train.checkpoint import load_policy, save_policy
from edgevla.train.nn.flow import shift_time
from edgevla.train.policies.base import Policy

GOLDENS = Path(__file__).parents[1] / "fixtures" / "goldens"
KINDS = ["smolvla", "pi0", "pi05", "groot", "xvla"]


def made(make_vla: MakeVla, kind: str, shift: float) -> Policy:
    if kind not in ("groot", "xvla"):
        return make_vla(kind, one_step_time_shift=shift)

    def adapt(config: Any, _: Any) -> Any:
        config.one_step_time_shift = shift
        return config

    return load_policy(GOLDENS / kind / "checkpoint", adapt=adapt)


def test_a_shift_keeps_the_ends_and_moves_what_lies_between_towards_noise() -> None:
    time = torch.tensor([0.0, 0.25, 0.5, 1.0])
    assert shift_time(time, 3.0).tolist() == pytest.approx([0, 0.5, 0.75, 1])
    assert shift_time(time, 0.0) is time


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_times_of_training_change(make_vla: MakeVla, kind: str) -> None:
    plain, shifted = made(make_vla, kind, 0.0), made(make_vla, kind, 3.0)
    batch = {"action": torch.zeros(200, plain.sample_shape[0], plain.config.action_dim)}
    before, after = (p.draw(batch, torch.Generator().manual_seed(1)) for p in (plain, shifted))
    assert torch.equal(before["noise"], after["noise"])
    times = [
        p.times(d["u"], 200) if kind == "xvla" else d["time"] for p, d in ((plain, before), (shifted, after))
    ]
    noise = [(1 - t if kind == "groot" else t).double().numpy() for t in times]
    np.testing.assert_allclose(noise[1], 3 * noise[0] / (1 + 2 * noise[0]), rtol=1e-5, atol=1e-6)
    assert noise[1].mean() > noise[0].mean() + 0.05
    assert plain.state_dict().keys() == shifted.state_dict().keys()
    assert plain.schedule.n_steps > 1
    assert shifted.schedule.n_steps == 1
    assert shifted.schedule.taus().tolist() == [plain.schedule.start, plain.schedule.end]


@pytest.mark.parametrize("kind", ["smolvla", "pi05"])
def test_it_is_kept_beside_a_config_that_lerobot_reads(make_vla: MakeVla, kind: str, tmp_path: Path) -> None:
    folder = save_policy(made(make_vla, kind, 4.0), tmp_path / "saved")
    assert "one_step" not in (folder / "config.json").read_text()
    assert load_policy(folder).schedule.n_steps == 1


@pytest.mark.parametrize("shift", [-1.0, 1.0, 200.0, float("nan")])
def test_a_shift_that_shifts_nothing_is_refused(make_vla: MakeVla, shift: float) -> None:
    with pytest.raises(CheckpointError, match=r"one_step_time_shift is .*; it must be 0 .off., or above 1"):
        make_vla("smolvla", one_step_time_shift=shift)
