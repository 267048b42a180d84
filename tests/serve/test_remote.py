"""A policy elsewhere is the policy here: the same numbers, and every way a line or a server can fail."""

import re
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from proxy_kit import Weather
from serve_kit import STATE, noisy, observation, robot, until

from edgevla.bundle import load_bundle
from edgevla.errors import BundleError, UsageError, WireError
from edgevla.predictor import RtcInputs
from edgevla.runner import BundlePolicy
from edgevla.serve.pictures import Encoding
from edgevla.serve.transport import Address


def rtc():
    committed = np.random.default_rng(1).normal(size=(10, 6)).astype(np.float32)
    return RtcInputs(committed, np.linspace(1, 0, 10, dtype=np.float32), 7.0)


@pytest.mark.parametrize("kind", ["act", "flow", "history"])
def test_the_chunk_is_the_local_one_to_the_bit(make_bundle, serving, arm, kind):
    folder = make_bundle(kind)
    local, remote = BundlePolicy(load_bundle(folder), seed=5), arm(serving(folder).endpoint, seed=5)
    for number in range(4):
        seen, past = noisy(number, STATE + number, "go right"), {}
        if number:
            past = {n: noisy(n, STATE + n) for n in remote.policy.missing_moments(number)}
        missing = local.missing_moments(number)
        asked = {"n_steps": 3 if kind == "flow" else None, "rtc": rtc() if kind == "flow" else None}
        here = local.infer(
            seen,
            grid_index=number,
            past={n: past[n] for n in missing if n in past},
            chunk_seq=number,
            **asked,
        )
        there = remote.ask(seen, number, grid=number, past=past, **asked)
        np.testing.assert_array_equal(there.actions, here.actions)
        assert (there.noise_seed, there.chunk_seq, there.n_steps) == (5, number, here.n_steps)
        assert (there.is_guided, there.grid_index) == (here.is_guided, number)


def test_guidance_is_never_dropped_on_the_way(make_bundle, serving, arm):
    remote = arm(serving(make_bundle("flow")).endpoint)
    plain, guided = remote.ask(), remote.ask(rtc=rtc())
    assert guided.is_guided
    assert not plain.is_guided
    assert np.abs(guided.actions - plain.actions).max() > 0.1


def test_chunks_to_choose_from_are_refused_before_a_request_leaves(make_bundle, serving, arm):
    served = serving(make_bundle("flow", batch={"min": 1, "max": 4}))
    remote = arm(served.endpoint)
    with pytest.raises(BundleError, match="select 4: a policy server makes one chunk per request"):
        remote.ask(rtc=replace(rtc(), select=4))


def test_a_jpeg_of_a_plain_picture_gives_nearly_the_same_chunk(make_bundle, serving, arm):
    endpoint = serving(make_bundle("act")).endpoint
    raw, jpeg = arm(endpoint), arm(endpoint, session=b"another.", encoding=Encoding("jpeg", 90))
    difference = np.abs(raw.ask(observation(120)).actions - jpeg.ask(observation(120)).actions)
    assert difference.max() < 0.1


def test_what_jpeg_costs_is_measured_on_the_pictures_of_now(make_bundle, serving, arm):
    endpoint = serving(make_bundle("act")).endpoint
    assert arm(endpoint).policy.weigh(noisy()) is None
    words = arm(endpoint, session=b"another.", encoding=Encoding("jpeg", 30)).policy.weigh(noisy())
    found = re.fullmatch(
        r"pictures as jpeg:30 move the actions for what the cameras see now by at most ([\d.]+) percent \(gripper.pos, "
        r"([\d.]+)% of its range\); \d kB per inference instead of 2",
        words,
    )
    assert found, words
    assert 0 < float(found[1]) < 1


def test_where_the_time_went_is_told(make_bundle, serving, arm, proxy):
    line = proxy(serving(make_bundle("act"), seconds=0.05).port, Weather(delay_s=0.04))
    timing = arm(line.endpoint).ask().timing_ns
    assert timing["network"] >= 80e6
    assert timing["wait"] >= 40e6  # where the server slept
    assert timing["encode"] > 0


def test_a_robot_that_does_not_fit_is_refused_with_the_sentence_of_deploy(make_bundle, serving, arm):
    folder = make_bundle("act")
    endpoint = serving(folder).endpoint
    for about in (
        robot(size=(48, 64)), robot(cameras=("side",)), robot(joints=("a", "b")), robot(unit="m"), robot(servo_hz=20)
    ):  # fmt: skip
        with pytest.raises(BundleError) as local:
            load_bundle(folder).fits(about)
        stranger = arm(endpoint, about=about)
        with pytest.raises(WireError) as error:
            stranger.ask(budget_s=0.3)
        assert str(local.value) in str(error.value)


def test_a_request_that_cannot_be_served_says_why_and_the_next_one_is(make_bundle, serving, arm):
    remote = arm(serving(make_bundle("flow")).endpoint)
    with pytest.raises(BundleError, match="200 denoise steps were asked for; this policy allows 1 to 100"):
        remote.ask(n_steps=200)
    assert remote.ask(number=1).chunk_seq == 1


def test_several_policies_are_told_apart_by_name(make_bundle, serving, arm):
    endpoint = serving(make_bundle("act", "steady"), make_bundle("flow", "flowing")).endpoint
    assert arm(Address(endpoint, "flowing")).policy.manifest.policy == "smolvla"
    with pytest.raises(
        UsageError, match=r"has several policies, say which one: .*/NAME with one of steady, flow"
    ):
        arm(endpoint)
    with pytest.raises(UsageError, match=r"has no policy 'flowin'; .*; did you mean 'flowing'"):
        arm(Address(endpoint, "flowin"))


# -- the line ---------------------------------------------------------------------------------------------------


def test_nobody_at_the_address_is_one_sentence(arm):
    with pytest.raises(
        WireError, match=r"no policy server answers at tcp://127.0.0.1:9; start one there: edgevla"
    ):
        arm("tcp://127.0.0.1:9", patience_s=0.3)


def test_a_server_that_was_killed_and_started_again_is_found_by_itself(make_bundle, serving, arm):
    folder = make_bundle("act")
    first = serving(folder)
    remote = arm(first.endpoint)
    remote.ask()
    first.kill()
    with pytest.raises(WireError, match=r"127.0.0.1:\d+ does not answer; looking for it"):
        remote.ask(number=1, budget_s=0.3)
    serving(folder, port=first.port)
    began = time.monotonic()
    result = remote.ask(number=2)
    assert time.monotonic() - began < 2
    assert result.news == (f"policy server {first.endpoint} answers again",)
    assert remote.ask(number=3).news == (), "said once"


def test_another_server_takes_over_within_the_same_question(make_bundle, serving, arm):
    folder = make_bundle("act")
    first, second = serving(folder), serving(folder)
    remote = arm(first.endpoint, second.endpoint)
    remote.ask()
    first.kill()
    result = remote.ask(number=1)
    assert result.news == (f"policy server {first.endpoint} does not answer; {second.endpoint} takes over",)
    until(lambda: second.outcome("answered") == 1)


def test_a_cable_that_is_pulled_costs_no_more_than_the_deadline_and_two_seconds_after(
    make_bundle, serving, arm, proxy
):
    line = proxy(serving(make_bundle("act")).port)
    remote = arm(line.endpoint)
    remote.ask()
    line.is_dead = True
    for number in (1, 2):
        began = time.monotonic()
        with pytest.raises(WireError, match="looking for it"):
            remote.ask(number=number, budget_s=1.2)
        assert time.monotonic() - began < 1.6, "nobody waits longer than the answer is wanted"
    line.is_dead = False
    began = time.monotonic()
    assert "answers again" in remote.ask(number=3, budget_s=5).news[0]
    assert time.monotonic() - began < 2


def test_a_line_with_delays_and_losses_gives_every_chunk_its_own_request(make_bundle, serving, arm, proxy):
    line = proxy(serving(make_bundle("act")).port, Weather(delay_s=0.02, jitter_s=0.02, loss=0.02))
    remote = arm(line.endpoint)
    for number in range(20):
        state = STATE + number
        result = remote.ask(observation(0, state), number)
        np.testing.assert_array_equal(result.actions, np.tile(state, (10, 1)))


@pytest.mark.realtime  # a starved robot looks elsewhere by itself
def test_a_draining_server_sends_its_robots_elsewhere(make_bundle, serving, arm):
    folder = make_bundle("act")
    first, second = serving(folder), serving(folder)
    first.policies[0].gate.clear()
    remote = arm(first.endpoint, second.endpoint)
    other = arm(first.endpoint, session=b"another.")
    results = []
    asking = [
        threading.Thread(target=lambda a=a: results.append(a.ask(budget_s=20.0))) for a in (other, remote)
    ]
    asking[0].start()
    until(lambda: first.policies[0].began.is_set())
    asking[1].start()
    until(lambda: len(first.server._turns) == 1)
    first.drain()
    until(lambda: first.server.is_draining)
    first.policies[0].gate.set()
    for thread in asking:
        thread.join(timeout=30)
    assert len(results) == 2
    until(lambda: first.outcome("answered") == 1)  # what ran is finished
    until(lambda: first.outcome("draining") >= 1)  # who waited is told
    until(lambda: second.outcome("answered") == 1)


def test_closing_ends_a_question_that_is_still_open(make_bundle, serving, arm):
    server = serving(make_bundle("act"))
    remote = arm(server.endpoint)
    server.kill()
    failed = []

    def ask():
        try:
            remote.ask(budget_s=30)
        except WireError as error:
            failed.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(0.2)
    began = time.monotonic()
    remote.policy.close()
    thread.join(timeout=5)
    assert failed
    assert time.monotonic() - began < 2


# -- what is no answer --------------------------------------------------------------------------------------------


def test_another_policy_behind_the_same_address_is_refused(make_bundle, serving, arm):
    first = serving(make_bundle("act", "cubes"))
    remote = arm(first.endpoint)
    remote.ask()
    first.kill()
    serving(make_bundle("flow", "other"), port=first.port)
    with pytest.raises(WireError, match=r"refuses: it runs another policy than .*: other"):
        remote.ask(number=1, budget_s=0.6)


@pytest.mark.parametrize("damage", ["nan", "shape", "policy"])
def test_a_server_that_answers_nonsense_is_left_and_the_chunk_not_used(
    make_bundle, serving, arm, damage, monkeypatch
):
    folder = make_bundle("act")
    liar, honest = serving(folder), serving(folder)
    answer = liar.server.door.answer

    def lie(caller, body, payloads=()):
        if payloads and damage == "nan":
            payloads = [np.full_like(payloads[0], np.nan)]
        if payloads and damage == "shape":
            payloads = [payloads[0][:, :5]]
        if payloads and damage == "policy":
            from dataclasses import replace

            body = replace(body, answer=replace(body.answer, policy="0" * 64))
        answer(caller, body, payloads)

    monkeypatch.setattr(liar.server.door, "answer", lie)
    remote = arm(liar.endpoint, honest.endpoint)
    with pytest.raises(WireError, match="the chunk is not used"):
        remote.ask()
    np.testing.assert_array_equal(remote.ask(observation(0), 1).actions, np.tile(STATE, (10, 1)))


def test_an_answer_of_another_session_or_to_another_question_is_not_heard(
    make_bundle, serving, arm, monkeypatch
):
    server = serving(make_bundle("act"))
    answer = server.server.door.answer

    def confused(caller, body, payloads=()):
        from dataclasses import replace

        if payloads:
            answer(caller, replace(body, request_id=body.request_id + 1), [payloads[0] + 1])
            header = replace(caller.asked.header, session=b"old one.")
            answer(replace(caller, asked=replace(caller.asked, header=header)), body, [payloads[0] + 2])
        answer(caller, body, payloads)

    monkeypatch.setattr(server.server.door, "answer", confused)
    remote = arm(server.endpoint)
    np.testing.assert_array_equal(remote.ask(observation(0)).actions, np.tile(STATE, (10, 1)))
