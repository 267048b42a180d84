"""Robots that share one inference: each gets its own answer, in time, whatever the others sent."""

import threading
from dataclasses import replace

import numpy as np
import pytest
from serve_kit import STATE, noisy, until

from edgevla.bundle import load_bundle
from edgevla.errors import EngineError
from edgevla.predictor import RtcInputs
from edgevla.runner import BundlePolicy
from edgevla.serve.hosted import Hosted
from edgevla.serve.pictures import RAW
from edgevla.serve.serve_cli import _batches
from edgevla.server_messages import SentFrame

FOUR = {"min": 1, "max": 4}
GUIDE = RtcInputs(np.full((10, 6), 40, np.float32), np.linspace(1, 0, 10, dtype=np.float32))


@pytest.fixture
def crowd(make_bundle, serving, arm):
    """`crowd(asks, **server) -> (server, outcomes)`: one robot is being served while the others come to wait."""

    def make(asks, prepare=lambda _: None, **options):
        server = serving(make_bundle("flow", batch=FOUR), **options)
        policy, outcomes = server.policies[0], {}
        arms = [arm(server.endpoint, session=f"robot  {i}".encode(), seed=i) for i in range(len(asks) + 1)]
        for one in arms:
            one.ask(noisy(), 99)
        for one, ask in zip(arms, asks, strict=False):
            one.policy._encoding = ask.pop("encoding", RAW)
        prepare(server)
        policy.gate.clear()
        policy.began.clear()
        threads = [threading.Thread(target=arms[-1].ask, args=(noisy(), 98))]
        threads[0].start()
        assert policy.began.wait(20)

        def ask(number):
            try:
                outcomes[number] = arms[number].ask(number=number, budget_s=20.0, **asks[number])
            except Exception as error:
                outcomes[number] = error

        for number in range(len(asks)):
            threads.append(threading.Thread(target=ask, args=(number,)))
            threads[-1].start()
        until(lambda: len(server.server._turns) == len(asks))
        policy.gate.set()
        for thread in threads:
            thread.join(timeout=30)
        return server, outcomes

    return make


def alone(server, number, seen, rtc=None):
    policy = BundlePolicy(load_bundle(server.policies[0].bundle.folder))
    return policy.infer(seen, rtc=rtc, chunk_seq=number, seed=number).actions


def test_robots_that_wait_share_one_inference_and_each_gets_its_own_answer(crowd):
    seen = [noisy(1, STATE), noisy(2, -STATE, "go right"), noisy(3, STATE / 2)]
    server, outcomes = crowd([{"seen": seen[0]}, {"seen": seen[1], "rtc": GUIDE}, {"seen": seen[2]}])
    for number, rtc in enumerate((None, GUIDE, None)):
        wanted = alone(server, number, seen[number], rtc)
        np.testing.assert_allclose(outcomes[number].actions, wanted, atol=1e-4)
        assert outcomes[number].is_guided == (rtc is not None)
    until(lambda: server.shared(3) == 1)
    until(lambda: server.outcome("answered") == 8)
    assert [fields["batch"] for kind, fields in server.lines if kind == "answered"][-3:] == [3, 3, 3]
    assert 'edgevla_serve_inferences_total{policy="bundle",batch="3"} 1' in server.server.metrics.text()


class Damaged:
    """Pictures that nobody can read."""

    kind = "jpeg"

    def frame(self, feature, image):
        return SentFrame(feature, *image.shape[:2], "jpeg"), np.arange(50, dtype=np.uint8)


def test_a_damaged_picture_of_one_robot_spoils_no_other(crowd):
    server, outcomes = crowd([{"seen": noisy(i), "encoding": Damaged() if i == 1 else RAW} for i in range(3)])
    assert "a damaged JPEG" in str(outcomes[1])
    for number in (0, 2):
        np.testing.assert_allclose(outcomes[number].actions, alone(server, number, noisy(number)), atol=1e-4)
    until(lambda: server.shared(3) == 1)


def test_what_one_robot_sees_or_did_spoils_no_other(crowd):
    """A camera that is lost, actions that overflow, and two in order."""
    lost = replace(noisy(), images={})
    far = replace(GUIDE, committed=np.full((10, 6), 3e38, np.float32))
    asks = [{"seen": lost}, {"seen": noisy(1)}, {"seen": noisy(1, np.full(6, -3e38, np.float32)), "rtc": far}]
    server, outcomes = crowd([*asks, {"seen": noisy(2)}])
    assert "is lost" in str(outcomes[0])
    assert "not finite" in str(outcomes[2])
    for number in (1, 3):
        np.testing.assert_allclose(
            outcomes[number].actions, alone(server, number, noisy(1 + number // 2)), atol=1e-4
        )
    until(lambda: server.shared(4) == 1)


def test_only_requests_of_the_same_steps_share_and_no_more_than_is_allowed(crowd):
    asks = [{"n_steps": None}, {"n_steps": 2}, {"n_steps": 4}, {"n_steps": 4, "buffered_s": 9.0}]
    server, outcomes = crowd([{**ask, "seen": noisy(i)} for i, ask in enumerate(asks)], limit=2)
    assert [outcomes[i].n_steps for i in range(4)] == [4, 2, 4, 4]
    until(lambda: server.outcome("answered") == 10)
    assert (server.shared(2), server.shared(1)) == (1, 8)


def test_nobody_joins_where_an_answer_would_come_too_late(crowd):
    def slow_in_company(server):
        server.server._by_name["bundle"].batch_ms = {1: 1.0, 2: 60_000.0, 4: 60_001.0}

    server, _ = crowd([{"seen": noisy(i)} for i in range(3)], slow_in_company)
    until(lambda: server.outcome("answered") == 8)
    assert server.shared(1) == 8


def test_where_an_inference_of_many_fails_each_is_tried_alone(crowd, capsys):
    def fails(server):
        def infer_batch(*_, **__):
            raise EngineError("out of memory")

        server.policies[0].infer_batch = infer_batch

    server, outcomes = crowd([{"seen": noisy(i)} for i in range(3)], fails)
    for number in range(3):
        np.testing.assert_allclose(outcomes[number].actions, alone(server, number, noisy(number)), atol=1e-4)
    assert "out of memory" in capsys.readouterr().err


def test_what_an_inference_of_many_takes_is_measured_and_said(make_bundle):
    hosted = [
        Hosted("it", BundlePolicy(load_bundle(make_bundle("flow", name, **changes))), limit)
        for name, changes, limit in (
            ("many", {"batch": FOUR}, None),
            ("few", {"batch": FOUR}, 1),
            ("one", {}, 8),
        )
    ]
    for one in hosted:
        one.warm_up()
    assert [one.about().max_batch for one in hosted] == [4, 1, 1]
    assert hosted[0].expected_ns(1) <= hosted[0].expected_ns(3) <= hosted[0].expected_ns(4)
    said = [_batches(one) for one in hosted]
    assert said[0].startswith("up to 4 robots in one of ")
    assert said[1:] == [
        "one robot each (exported for 4)",
        "one robot each (exported without --max-batch)",
    ]
