"""The wire: any bytes in, a message or a counted refusal out; the newest frame, not the oldest."""

import contextlib
import os
import threading
import time

import msgpack
import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevla.codec import MAX_HEADER_BYTES, decode, encode
from edgevla.errors import UsageError, WireError
from edgevla.messages import TYPES, Optional_
from edgevla.session import Deployment, endpoint, find_deployment, run_dir, write_deployment
from edgevla.wire import CommandClient, CommandServer, Dealer, Inbox, Message, Publisher, Router

SESSION = b"12345678"
COMMON = {"session": SESSION, "source": "robot", "seq": 0, "observed_ns": 5, "sent_ns": 6}
EVENT = {"severity": "info", "code": "x", "text": "hello", "fields": {"a": [1, 2.5, None, "b"]}}


def example_of(kind):
    """A value of a declared kind."""
    if isinstance(kind, Optional_):
        return example_of(kind.kind)
    if isinstance(kind, dict):
        return {name: example_of(k) for name, k in kind.items()}
    if isinstance(kind, list):
        return [example_of(kind[0])]
    if isinstance(kind, tuple):
        return kind[0]
    arrays = {"f32[]": np.float32, "u32[]": np.uint32, "u16[]": np.uint16}
    if kind in arrays:
        return np.arange(4, dtype=arrays[kind])
    plain = {
        "measured": 7.5,
        "uint": 2,
        "int": -3,
        "float": 0.5,
        "bool": True,
        "str": "front",
        "bin8": b"8" * 8,
    }
    return plain.get(kind, {"key": 1})


def example_message(name):
    """A sound message of every type, with a payload that fits."""
    fields = {field: example_of(kind) for field, kind in TYPES[name].fields.items()}
    payloads = []
    if name == "frame":
        fields.update(height=2, width=3)
        payloads = [np.arange(18, dtype=np.uint8).reshape(2, 3, 3)]
    elif TYPES[name].payload[1]:
        shape = (9,) if name == "thumbnail" else (4, 6)
        payloads = [np.ones(shape, TYPES[name].payload[2][0])]
    return Message(name, {**COMMON, **fields}, payloads)


def plain_frames(message):
    return [bytes(part) for part in encode(message)]


@pytest.mark.parametrize("name", TYPES)
def test_every_type_survives_the_way(name):
    message = example_message(name)
    back = decode(plain_frames(message), SESSION)
    assert back.type == name
    assert plain_frames(back) == plain_frames(message)
    np.testing.assert_equal({k: back[k] for k in message.header}, message.header)
    for sent, received in zip(message.payloads, back.payloads, strict=True):
        np.testing.assert_array_equal(received, sent)


@pytest.mark.parametrize("name", TYPES)
def test_a_missing_or_unknown_field_or_a_wrong_type_is_refused(name):
    frames = plain_frames(example_message(name))
    header = msgpack.unpackb(frames[1])
    for field in header:
        missing = {k: v for k, v in header.items() if k != field}
        wrong = {**header, field: {"not": ["this"]} if not isinstance(header[field], dict) else 3.5}
        for damaged in (missing, wrong):
            with pytest.raises(WireError):
                decode([frames[0], msgpack.packb(damaged), *frames[2:]], SESSION)
    with pytest.raises(WireError, match="unknown field"):
        decode([frames[0], msgpack.packb({**header, "extra": 1}), *frames[2:]], SESSION)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"schema": 2}, "schema"),
        ({"session": b"somebody"}, "session"),
        ({"type": "pickle"}, "type"),
        ({"seq": -1}, "range"),
        ({"severity": "catastrophe"}, "range"),
        ({"text": b"bytes"}, "type"),
        ({"payloads": [{"dtype": "float32", "shape": [3]}]}, "size"),
    ],
)
def test_a_refusal_says_which_counter(change, reason):
    frames = plain_frames(Message("event", {**COMMON, **EVENT}))
    header = {**msgpack.unpackb(frames[1]), **change}
    with pytest.raises(WireError) as error:
        decode([frames[0], msgpack.packb(header), *frames[2:]], SESSION)
    assert error.value.reason == reason


def test_sizes_are_limited_both_ways():
    long = {**EVENT, "text": "x" * MAX_HEADER_BYTES}
    with pytest.raises(WireError, match="65536"):
        encode(Message("event", {**COMMON, **long}))
    with pytest.raises(WireError, match="header of"):
        decode([b"event", msgpack.packb({**COMMON, **long})], SESSION)


@settings(max_examples=400, deadline=None)
@given(st.lists(st.binary(max_size=300), max_size=5))
def test_any_bytes_are_a_message_or_a_wire_error(frames):
    with pytest.raises(WireError):
        decode(frames, SESSION)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(TYPES)), st.data())
def test_a_mutated_header_is_a_message_or_a_wire_error(name, data):
    frames = plain_frames(example_message(name))
    header = msgpack.unpackb(frames[1])
    header[data.draw(st.sampled_from(sorted(header)))] = data.draw(PLAIN)
    frames[1] = msgpack.packb(header)
    with contextlib.suppress(WireError):
        assert decode(frames, SESSION).type == name


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(sorted(TYPES)), st.integers(0, 10_000), st.integers(0, 255), st.integers(0, 10_000))
def test_a_flipped_byte_or_a_cut_is_a_message_or_a_wire_error(name, at, byte, cut):
    frames = plain_frames(example_message(name))
    part = at % len(frames)
    damaged = bytearray(frames[part])
    damaged[at % len(damaged)] = byte
    frames[part] = bytes(damaged[: 1 + cut % len(damaged)])
    with contextlib.suppress(WireError):
        assert decode(frames, SESSION).type == name


@pytest.mark.parametrize(
    "header",
    [
        b"\x81" * 5000,  # maps in maps, deeper than any stack
        b"\x91" * 60_000,
        b"\xc7\x0c\xff" + b"\xff" * 12,  # a timestamp out of range
        b"\xdf\xff\xff\xff\xff",  # a map that claims 4 billion entries
        b"\x82\xa1a\x01\xa1a\x02",  # a key that stands twice
        b"\x81\xa1a\xa1\xff",  # text that is not UTF-8
    ],
)
def test_hostile_msgpack_is_refused(header):
    with pytest.raises(WireError):
        decode([b"event", header], SESSION)


@pytest.fixture
def ctx():
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


def wait_for(condition, timeout_s=5.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "nothing arrived"
        time.sleep(0.005)


def subscribed(publisher, inbox, kind="event"):
    """Publishes until the subscription has travelled, then forgets what arrived."""

    def arrived():
        publisher.event("info", "hello", "anybody there?")
        return inbox.newest(kind) is not None

    wait_for(arrived)
    inbox.drain(kind)


def test_a_slow_receiver_finds_the_newest_and_knows_what_it_missed(ctx):
    publisher = Publisher(ctx, endpoint("inproc", "camera/front"), SESSION, "camera/front")
    streams = {
        "frame": (endpoint("inproc", "camera/front"), 3),
        "event": (endpoint("inproc", "camera/front"), 50),
    }
    inbox = Inbox(ctx, streams, SESSION)
    subscribed(publisher, inbox)
    for i in range(30):
        frame = np.full((2, 3, 3), i, np.uint8)
        fields = {
            "camera": "front",
            "height": 2,
            "width": 3,
            "encoding": "rgb8",
            "n_dropped": 0,
            "n_repeated": 0,
        }
        publisher.send("frame", fields, [frame])
    wait_for(lambda: inbox.counters["received_frame"] == 30)
    assert inbox.newest("frame", "camera/front").payloads[0].max() == 29
    assert inbox.newest("frame", "camera/wrist") is None
    assert [int(m.payloads[0][0, 0, 0]) for m in inbox.drain("frame")] == [27, 28, 29]
    assert inbox.drain("frame") == []
    assert inbox.counters["ring_frame"] == 27
    inbox.stop()
    publisher.close()


def test_gaps_are_counted_as_losses_and_a_restart_is_not(ctx):
    socket = ctx.socket(zmq.PUB)
    socket.bind("inproc://gaps.pub")
    inbox = Inbox(ctx, {"event": ("inproc://gaps.pub", 100)}, SESSION)
    for seq in [0] * 50:
        socket.send_multipart(encode(Message("event", {**COMMON, **EVENT, "seq": seq})))
        time.sleep(0.01)
        if inbox.newest("event"):
            break
    for seq in (1, 2, 5, 6, 0, 1):  # 3 and 4 lost, then the node started again
        socket.send_multipart(encode(Message("event", {**COMMON, **EVENT, "seq": seq})))
    socket.send_multipart([b"event", b"garbage"])
    socket.send_multipart(encode(Message("event", {**COMMON, **EVENT, "session": b"intruder"})))
    wait_for(lambda: inbox.counters["wire_session"] == 1)
    assert inbox.counters["lost_event"] == 2
    assert inbox.counters["wire_format"] == 1
    assert "another deployment" in inbox.last_refusal
    inbox.stop()
    socket.close()


def test_a_command_is_answered_and_describe_says_when_ready(ctx):
    server = CommandServer(ctx, endpoint("inproc", "robot", "commands"), SESSION, "robot")
    client = CommandClient(ctx, endpoint("inproc", "robot", "commands"), SESSION, "monitor")
    seen = []

    def serve():
        while not seen:
            for request in server.poll():
                seen.append((request.action, request.arguments, request.source))
                request.answer(False, "no")
            time.sleep(0.002)

    thread = threading.Thread(target=serve)
    thread.start()
    assert client.describe() is None
    server.about = {"node": "robot", "robot": "so101"}
    assert client.describe() == {"node": "robot", "robot": "so101"}
    ack = client.request("set_task", {"task": "tidy up"})
    thread.join()
    assert (ack.is_accepted, ack.reason) == (False, "no")
    assert seen == [("set_task", {"task": "tidy up"}, "monitor")]
    with pytest.raises(WireError, match="not answered"):
        client.request("start", timeout_s=0.1)
    client.close()
    server.close()


def test_a_dealer_without_a_peer_says_so_instead_of_queueing(ctx):
    address = f"ipc:///tmp/evt-{time.monotonic_ns()}"
    dealer = Dealer(ctx, address, SESSION, "robot")
    infer = example_message("infer")
    fields = {k: v for k, v in infer.header.items() if k not in COMMON}
    assert dealer.send("infer", fields, infer.payloads) is None
    router = Router(ctx, address, SESSION, "policy")
    wait_for(lambda: dealer.send("infer", fields, infer.payloads) is not None)
    found = []
    wait_for(lambda: found.extend(router.poll()) or found)
    assert found[0][1]["request_id"] == infer["request_id"]
    dealer.close()
    router.close()


def test_the_run_directory_is_private_short_and_found_again(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/tmp/a-path-that-is-much-too-long/" + "x" * 60)
    folder = run_dir(SESSION)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert len(endpoint(folder, "camera/front")) < 106
    folder.rmdir()
    monkeypatch.setenv(
        "EDGEVLA_RUNTIME_DIR", f"/tmp/evt{time.monotonic_ns() % 10**9}"
    )  # only this test's are there
    with pytest.raises(UsageError, match="edgevla deploy"):
        find_deployment()
    folder = run_dir(SESSION)
    write_deployment(folder, Deployment(SESSION.hex(), os.getpid(), "so101", None, ["robot"]))
    assert find_deployment() == folder
    with pytest.raises(WireError, match="bytes"):
        endpoint(folder, "camera/" + "x" * 100)
