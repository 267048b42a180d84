"""The server itself: who is served first, what is dropped, what strangers may send."""

import threading
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
from serve_kit import STATE, observation, robot, until
from stranger_kit import FRAME, PIXELS, hostile, request_for, sound_request

from edgevla.codec import encode
from edgevla.errors import ConfigError, WireError
from edgevla.messages import Ack, Describe, Header, Infer, Message
from edgevla.nodes.vitals import rss_bytes
from edgevla.serve import server as server_module
from edgevla.serve.metrics import Metrics, MetricsPage
from edgevla.serve.pictures import decoded, jpeg_size
from edgevla.serve.turns import Turn, Turns
from edgevla.server_messages import Moment, Reply

S = 1_000_000_000


def turn(robot, arrived=0, buffered=0.0, budget=1.0):
    return Turn(
        robot, f"{robot}@{arrived}", arrived, arrived + round(buffered * S), arrived + round(budget * S)
    )


def test_the_robot_whose_actions_end_first_is_served_first():
    turns = Turns()
    for one in (turn("calm", 0, 0.9), turn("empty", 2), turn("soon", 1, 0.2), turn("empty too", 3)):
        turns.add(one)
    assert [turns.next()[0].robot for _ in range(4)] == ["empty", "empty too", "soon", "calm"]
    assert turns.next() == []


def test_who_waits_long_enough_is_served_before_newer_and_emptier_robots():
    turns = Turns()
    turns.add(turn("patient", 0, 0.5))
    turns.add(turn("hasty", round(0.6 * S)))
    assert turns.next()[0].robot == "patient"


def test_a_robot_that_asks_again_has_one_place():
    turns = Turns()
    assert turns.add(turn("a", 0)) is None
    assert turns.add(turn("a", 5)).arrived_ns == 0
    assert len(turns) == 1


def test_nobody_waits_for_an_answer_whose_time_is_over():
    turns = Turns()
    turns.add(turn("a", 0, budget=0.1))
    turns.add(turn("b", 0, budget=0.3))
    assert [late.robot for late in turns.expire(round(0.2 * S))] == ["a"]
    assert [late.robot for late in turns.clear()] == ["b"]


# -- over a socket ------------------------------------------------------------------------------------------------


def test_many_robots_are_served_by_urgency_one_after_the_other(make_bundle, serving, arm):
    server = serving(make_bundle("act"), seconds=0.15)
    arms = [arm(server.endpoint, session=f"robot  {i}".encode()) for i in range(4)]
    for number, one in enumerate(arms):  # joined already, so that all ask in the same moment
        one.ask(observation(), 100 + number)
    del server.policies[0].order[:]
    began = [threading.Thread(target=arms[0].ask, args=(None, 0))]
    began[0].start()
    until(lambda: server.policies[0].order == [0])
    for number, buffered_s in ((1, 2.0), (2, 0.0), (3, 1.0)):
        thread = threading.Thread(
            target=arms[number].ask, args=(None, number), kwargs={"buffered_s": buffered_s}
        )
        began.append(thread)
        thread.start()
    for thread in began:
        thread.join(timeout=10)
    assert server.policies[0].order == [0, 2, 3, 1]
    until(lambda: server.outcome("answered") == 8)  # counted after it is sent


def test_a_request_whose_time_is_over_is_dropped_and_counted(make_bundle, serving, arm):
    server = serving(make_bundle("act"), seconds=0.4)
    slow, late = arm(server.endpoint), arm(server.endpoint, session=b"late one")
    late.ask(number=9)
    thread = threading.Thread(target=slow.ask)
    thread.start()
    until(lambda: 0 in server.policies[0].order)
    with pytest.raises(WireError, match="looking for it"):
        late.ask(number=1, budget_s=0.1)
    thread.join(timeout=5)
    until(lambda: server.outcome("expired") == 1)
    assert 1 not in server.policies[0].order, "nothing was spent on it"


def test_a_robot_that_did_not_join_is_told_so(make_bundle, serving, stranger):
    server = serving(make_bundle("act"))
    guest = stranger(server.endpoint)
    guest.tell(request_for(server), [PIXELS])
    assert guest.hear().refused.code == "not_joined"
    assert guest.join(server) == Ack(0, True, "")
    guest.tell(request_for(server, request_id=3), [PIXELS])
    reply = guest.hear()
    assert (reply.request_id, reply.refused) == (3, None)


@pytest.mark.parametrize(
    ("changes", "payloads", "words"),
    [
        ({"moments": (Moment(0, STATE[:5], (FRAME,)),)}, [PIXELS], "a state of 5 values, not 6"),
        ({"moments": (Moment(0, STATE * np.nan, (FRAME,)),)}, [PIXELS], "not finite"),
        ({"moments": (Moment(1, STATE, (FRAME,)), Moment(0, STATE, (FRAME,)))}, [PIXELS] * 2, "looks at 1"),
        ({"moments": (Moment(0, STATE, (replace(FRAME, feature="side"),)),)}, [PIXELS], "'side', which the policy"),
        ({"moments": (Moment(0, STATE, (FRAME, FRAME)),)}, [PIXELS] * 2, "one camera twice"),
        ({"moments": (Moment(0, STATE, (replace(FRAME, height=32, width=24),)),)},
         [PIXELS.reshape(32, 24, 3)], "of 24x32, exported for 32x24"),
        ({"moments": (Moment(0, STATE, ()),)}, [], "the camera 'observation.images.front' is lost"),
        ({"moments": (Moment(0, STATE, (replace(FRAME, encoding="jpeg"),)),)},
         [np.arange(50, dtype=np.uint8)], "a damaged JPEG"),
        ({"task": "x" * 1001}, [PIXELS], "a task of 1001 characters"),
    ],
)  # fmt: skip
def test_a_request_that_does_not_fit_the_bundle_is_refused_by_what_is_wrong(
    make_bundle, serving, stranger, changes, payloads, words
):
    server = serving(make_bundle("act"))
    guest = stranger(server.endpoint)
    guest.join(server)
    guest.tell(request_for(server, **changes), payloads)
    refused = guest.hear().refused
    assert refused.code == "unfit"
    assert words in refused.text


def test_a_place_is_given_up_by_a_robot_that_has_left(make_bundle, serving, stranger, monkeypatch):
    monkeypatch.setattr(server_module, "MOST_ROBOTS", 2)
    server = serving(make_bundle("act"))
    guests = [stranger(server.endpoint, f"guest  {i}".encode()) for i in range(3)]
    assert [guest.join(server).is_accepted for guest in guests] == [True, True, False]
    monkeypatch.setattr(server_module, "FORGOTTEN_NS", 0)
    until(lambda: not server.server._robots)
    assert guests[2].join(server).is_accepted


def test_a_robot_that_describes_itself_at_length_gets_a_short_answer(make_bundle, serving, stranger):
    server = serving(make_bundle("act"))
    reason = stranger(server.endpoint).join(server, robot(name="x" * 40_000, cameras=())).reason
    assert 0 < len(reason) <= 1000


def test_a_bug_in_one_inference_is_refused_and_the_server_goes_on(make_bundle, serving, stranger, capsys):
    server = serving(make_bundle("act"))
    guest = stranger(server.endpoint)
    guest.join(server)
    sound, server.policies[0].infer = server.policies[0].infer, lambda *_, **__: 1 / 0
    guest.tell(request_for(server), [PIXELS])
    assert "ZeroDivisionError" in guest.hear().refused.text
    server.policies[0].infer = sound
    guest.tell(request_for(server, request_id=1), [PIXELS])
    assert guest.hear().answer is not None
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_thousands_of_hostile_messages_are_counted_and_a_robot_is_served_meanwhile(
    make_bundle, serving, arm, stranger
):
    server = serving(make_bundle("act"))
    remote, guest = arm(server.endpoint), stranger(server.endpoint)
    guest.join(server)
    sound, rng = sound_request(guest, server), np.random.default_rng(0)
    header = Header(guest.session, "stranger", 1, 2, 3)
    rest = encode(Message(header, Infer(0, 0, 0, "", STATE, None, None)))
    before = 0
    for number in range(4000):
        guest.throw(hostile(rng, sound) if number % 50 else [bytes(part) for part in rest])
        if number % 500 == 0:
            np.testing.assert_array_equal(remote.ask(observation(0), number).actions, np.tile(STATE, (10, 1)))
        if number == 1000:
            before = rss_bytes()
        guest.dealer.poll()
    until(lambda: server.server.door.counters.total() > 2000)
    assert remote.ask(observation(0), 9999).chunk_seq == 9999
    assert rss_bytes() - before < 30e6
    assert set(server.server.door.counters) <= {
        *("format", "schema", "type", "range", "size", "session", "unsent", "rate"),
    }


def test_what_is_told_of_a_server_is_its_policies(make_bundle, serving, stranger):
    server = serving(make_bundle("act", "steady"), make_bundle("flow", "flowing"))
    guest = stranger(server.endpoint)
    guest.tell(Describe(None))
    told = guest.hear().about
    assert [p["name"] for p in told["policies"]] == ["steady", "flowing"]
    assert [p["max_batch"] for p in told["policies"]] == [1, 1]
    guest.tell(Describe({"policy": "steadi"}))
    assert guest.hear().reason.endswith("; did you mean 'steady'?")


# -- pictures and figures -----------------------------------------------------------------------------------------


def test_a_jpeg_that_promises_more_pixels_than_its_frame_is_never_decoded():
    import cv2

    data = cv2.imencode(".jpg", np.zeros((24, 32, 3), np.uint8))[1].tobytes()
    assert jpeg_size(data) == (24, 32)
    assert decoded(replace(FRAME, encoding="jpeg"), np.frombuffer(data, np.uint8)).shape == (24, 32, 3)
    at = data.index(b"\xff\xc0") + 5
    bomb = data[:at] + b"\xff\xdc\xff\xdc" + data[at + 4 :]
    assert jpeg_size(bomb) == (65500, 65500)
    assert decoded(replace(FRAME, encoding="jpeg"), np.frombuffer(bomb, np.uint8)) is None
    for damaged in (b"", b"\xff\xd8", data[:20], b"\xff\xd8" + b"\xff" * 50, b"no picture at all"):
        assert jpeg_size(damaged) is None


def test_the_figures_are_what_prometheus_reads():
    metrics = Metrics()
    metrics.count("requests_total", outcome="answered")
    metrics.count("requests_total", outcome="answered")
    metrics.set("robots", 3)
    for seconds in (0.004, 0.02, 99.0):
        metrics.observe("wait_seconds", seconds, policy="act")
    page = MetricsPage("127.0.0.1", 0, metrics.text)
    try:
        with urllib.request.urlopen(page.address, timeout=5) as answer:
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            lines = answer.read().decode().splitlines()
        port = int(page.address.split(":")[2].split("/")[0])
        with pytest.raises(ConfigError, match=r"--metrics 127.0.0.1:.*in use; choose another"):
            MetricsPage("127.0.0.1", port, metrics.text)
    finally:
        page.close()
    assert 'edgevla_serve_requests_total{outcome="answered"} 2' in lines
    assert "edgevla_serve_robots 3" in lines
    assert 'edgevla_serve_wait_seconds_bucket{policy="act",le="0.005"} 1' in lines
    assert 'edgevla_serve_wait_seconds_bucket{policy="act",le="+Inf"} 3' in lines
    assert 'edgevla_serve_wait_seconds_count{policy="act"} 3' in lines


def test_a_reply_is_one_answer_or_one_refusal():
    assert Reply(0, None, None).misfit([]) == "neither answer nor refusal, or both"
