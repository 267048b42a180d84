"""`edgevla export --max-batch` refuses what cannot share an inference, by name; test_policies.py has what can."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edgevla.errors import CheckpointError, UsageError
from edgevla.export import trace
from edgevla.export.build import export_checkpoint
from edgevla.export.options import ExportOptions
from edgevla.export.parity import failures
from edgevla.manifest_record import ActionParity, BatchParity, Parity
from edgevla.train.checkpoint import load_policy

ACT = Path(__file__).parents[1] / "fixtures" / "goldens" / "act" / "checkpoint"
GOOD = ActionParity((0.0,), (1.0,))


def only_the_first(x: torch.Tensor, _: Any) -> torch.Tensor:
    return x[:1]


def two_at_a_time(x: torch.Tensor, _: Any) -> torch.Tensor:
    return x.reshape(2, -1, 6)


@pytest.mark.parametrize(
    ("decode", "words"),
    [
        (only_the_first, r"act.decode yields 'actions' of shape .* leave --max-batch out"),
        (two_at_a_time, r"act.decode cannot be traced for 1 to 4 observations: .* leave --max-batch out"),
    ],
)
def test_a_graph_that_mixes_observations_is_refused_by_name(decode: Callable[..., Any], words: str) -> None:
    policy = load_policy(ACT)
    policy.decode = decode  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match=words):
        trace.batch_axes(
            policy, "decode", trace.trace(policy, "decode", policy.graphs()["decode"], max_batch=4)
        )


def test_int8_that_is_scaled_by_what_it_sees_is_refused(tmp_path: Path) -> None:
    options = ExportOptions(fps=30, joint_units="raw", precision="int8", max_batch=2)
    with pytest.raises(UsageError, match="int8 of smolvla for cpu is scaled by all that one inference sees"):
        export_checkpoint(ACT.parents[1] / "smolvla" / "checkpoint", tmp_path / "bundle", options)


@pytest.mark.parametrize("n", [0, 65])
def test_a_number_that_cannot_be(n: int) -> None:
    with pytest.raises(UsageError, match=f"--max-batch is {n}; it must be from 1 to 64"):
        ExportOptions(max_batch=n)


def test_a_bundle_whose_observations_differ_in_company_is_refused_with_the_joint() -> None:
    parity = Parity("torch", 2, {}, GOOD, False, batch=BatchParity(8, 15, GOOD, True))
    assert failures(parity, ["lift"]) == []
    bad = BatchParity(8, 15, ActionParity((2.0,), (1.0,)), False)
    assert failures(replace(parity, batch=bad), ["lift"]) == [
        "joint lift differs by 2 between an inference of 8 and one alone, tolerance 1"
    ]
