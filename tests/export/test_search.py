"""Which layers keep float32: the search against costs that are known."""

from __future__ import annotations

import numpy as np
import pytest

from edgevla.export.gate import Tolerance, is_lost, worst_share
from edgevla.export.layers import GraphLayer, _parts
from edgevla.export.search import Choice, Choosing, Search

PARTS = {"vision": 6, "language": 6, "head": 2}
LAYERS = [
    GraphLayer("encode", f"{p}.{i}", f"encode/{p}", (f"{p}{i}",), 10)
    for p, n in PARTS.items()
    for i in range(n)
]


def costing(costs: dict[str, float], asked: list[frozenset[GraphLayer]] | None = None):
    """A score that adds what the lowered layers cost; the others cost 0.01 each."""

    def score(kept: frozenset[GraphLayer]) -> float:
        if asked is not None:
            asked.append(kept)
        return sum(costs.get(layer.name, 0.01) for layer in LAYERS if layer not in kept)

    return score


def names(kept: frozenset[GraphLayer]) -> set[str]:
    return {layer.name for layer in kept}


def test_what_passes_whole_is_asked_once_and_keeps_nothing() -> None:
    asked: list[frozenset[GraphLayer]] = []
    found = Search(LAYERS, costing({}, asked), goal=1.0).run()
    assert not found.kept
    assert asked == [frozenset()]


def test_the_layers_that_break_the_rule_are_kept_and_no_others() -> None:
    said: list[str] = []
    costs = {"vision.2": 3.0, "head.1": 1.4, "language.0": 0.3}
    found = Search(LAYERS, costing(costs), goal=1.0, say=said.append).run()
    assert names(found.kept) == {"vision.2", "head.1"}
    assert found.everything == pytest.approx(4.7 + 11 * 0.01)
    assert found.parts["encode/vision"] == pytest.approx(3.05)
    assert found.layers["encode/head.1"] == pytest.approx(1.4)
    assert "encode/language.0" not in found.layers  # its part passes as a whole
    assert "encode/vision lowered alone: 3 times the limit" in said


def test_many_small_costs_are_shared_out_by_their_size() -> None:
    costs = {f"vision.{i}": 0.1 * (i + 1) for i in range(6)}  # together 2.1
    found = Search(LAYERS, costing(costs), goal=1.0).run()
    assert names(found.kept) == {"vision.5", "vision.4", "vision.3"}


def test_a_sharper_goal_keeps_more_and_measures_nothing_twice() -> None:
    asked: list[frozenset[GraphLayer]] = []
    costs = {f"vision.{i}": 0.1 * (i + 1) for i in range(6)}
    search = Search(LAYERS, costing(costs, asked), goal=1.0)
    first = search.run()
    search.goal = 0.5
    assert names(search.run().kept) > names(first.kept)
    assert len(asked) == len(set(asked))


def test_when_time_runs_out_what_was_not_measured_is_kept() -> None:
    seconds = iter(range(1000))
    costs = {"vision.1": 5.0, "vision.4": 5.0}
    search = Search(LAYERS, costing(costs), goal=1.0, limit_s=8, clock=lambda: float(next(seconds)))
    found = search.run()
    assert not found.in_time
    assert {"vision.1", "vision.4"} <= names(found.kept)
    assert costing(costs)(found.kept) <= 1.0


def test_nothing_may_be_lowered_where_every_layer_breaks_the_rule() -> None:
    found = Search(LAYERS, costing({layer.name: 2.0 for layer in LAYERS}), goal=1.0).run()
    assert found.kept == frozenset(LAYERS)


def test_a_network_that_hangs_on_one_branch_is_told_apart_below_it() -> None:
    layers = [
        "vlm.vision.layers.0",
        "vlm.vision.layers.1",
        "vlm.text.layers.0",
        "vlm.text.layers.1",
        "state_proj",
    ]
    parts = _parts(layers)
    assert parts["vlm.vision.layers.1"] == "vlm.vision"
    assert parts["vlm.text.layers.0"] == "vlm.text"
    assert parts["state_proj"] == "state_proj"


# -- the rule ----------------------------------------------------------------------------------------------------

RULE = Tolerance(usual=0.01, most=0.05)
WIDTH = np.array([100.0, 2.0])


def test_the_rule_is_a_share_of_each_joints_own_range() -> None:
    error = np.zeros((4, 50, 2))
    error[0, 0] = (2.5, 0.05)  # one action of 200: half of what a single one may, for both
    assert worst_share(error, WIDTH, RULE) == pytest.approx(0.5)
    error[:, :, 1] = 0.03  # 1.5 % of the second joint's range, always
    assert worst_share(error, WIDTH, RULE) == pytest.approx(1.5)
    error[1, 1, 0] = np.nan
    assert worst_share(error, WIDTH, RULE) == np.inf


def test_a_lost_cause_is_seen_as_early_as_it_is_certain() -> None:
    error = np.zeros((1, 50, 2))
    assert not is_lost(error, 64, WIDTH, RULE)
    error[0, :33, 0] = (
        1.5  # of 3200 actions 33 beyond what 99 of 100 may: some of those to come could be spared
    )
    assert not is_lost(error, 64, WIDTH, RULE)
    error[0, :34, 0] = 1.5
    assert is_lost(error, 64, WIDTH, RULE)
    error[:] = 0
    error[0, 3, 1] = 0.11  # one action by more than 5 %
    assert is_lost(error, 64, WIDTH, RULE)


# -- 4 bits, 8 bits, none -------------------------------------------------------------------------------------------


def test_4_bits_where_they_pass_8_where_those_do_and_float32_where_neither_does() -> None:
    eight = {"head.1": 2.0}
    four = {"vision.2": 3.0, "language.4": 1.2, "head.1": 9.0}

    def score(choice: Choice) -> float:
        lowered = [layer for layer in LAYERS if layer not in choice.floats]
        costs = [(eight, 0.001) if layer in choice.eights else (four, 0.01) for layer in lowered]
        return sum(c.get(layer.name, small) for layer, (c, small) in zip(lowered, costs, strict=True))

    outcome = Choosing(LAYERS, score, True, lambda _: None).run(1.0)
    assert names(outcome.choice.floats) == {"head.1"}
    assert names(outcome.choice.eights) == {"vision.2", "language.4"}
    assert score(outcome.choice) <= 1.0
    assert outcome.alone["encode/head.1"] == pytest.approx(2.0), "what broke the rule in 8 bits"
    assert outcome.alone["encode/vision.2"] == pytest.approx(3.0 + 12 * 0.001)


def test_a_policy_that_bears_no_4_bits_is_not_called_so() -> None:
    def score(choice: Choice) -> float:
        return sum(0.0 if layer in choice.floats | choice.eights else 2.0 for layer in LAYERS)

    assert Choosing(LAYERS, score, True, lambda _: None).run(1.0).is_nothing_lowered
