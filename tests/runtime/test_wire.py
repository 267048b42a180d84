"""The wire: any bytes in, a message or a counted refusal out; the newest frame, not the oldest."""

import contextlib
import json
import os
import re
import threading
import time
import types
import typing
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from pathlib import Path

import msgpack
import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevla import codec, descriptions, messages
from edgevla.arguments import Record, SetTask, Start, arguments_from, arguments_to
from edgevla.codec import MAX_HEADER_BYTES, decode, encode
from edgevla.descriptions import AboutEmulator
from edgevla.errors import UsageError, WireError
from edgevla.execution import Async
from edgevla.messages import TYPES, Ack, Command, Event, Frame, Header, Message, MessageBody
from edgevla.session import Deployment, endpoint, find_deployment, run_dir, write_deployment
from edgevla.strict import UInt, read, record, write
from edgevla.wire import CommandClient, CommandServer, Dealer, Inbox, Publisher, Router

SESSION = b"12345678"
HEADER = Header(session=SESSION, source="robot", seq=0, observed_ns=5, sent_ns=6)
EVENT = Event("info", "x", "hello", {"a": [1, 2.5, None, "b"]})
GOLDEN = json.loads((Path(__file__).parent / "fixtures" / "wire_schema1.json").read_text())
"""Frames in hex, by what they are: each written by the program in which the type, or its new field, first stood."""


def example_of(hint):
    """A value of an annotation."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        dtypes = {messages.F32s: np.float32, messages.U32s: np.uint32, messages.U16s: np.uint16}
        return np.arange(4, dtype=dtypes[hint]) if hint in dtypes else example_of(args[0])
    if origin in (typing.Union, types.UnionType):
        return example_of(args[0])
    if origin is typing.Literal:
        return args[0]
    if origin is tuple:
        return (example_of(args[0]),)
    if origin is dict:
        return {"key": 1}
    if is_dataclass(hint):
        hints = typing.get_type_hints(hint, include_extras=True)
        return hint(**{f.name: example_of(hints[f.name]) for f in fields(hint)})
    return {int: 2, float: 0.5, bool: True, str: "front", bytes: b"8" * 8}[hint]


def example_message(name):
    """A sound message of every type, with a payload that fits."""
    body, payloads = example_of(TYPES[name]), []
    if name == "frame":
        body = replace(body, height=2, width=3)
        payloads = [np.arange(18, dtype=np.uint8).reshape(2, 3, 3)]
    elif name == "request":
        frame = replace(body.moments[0].frames[0], height=2, width=3)
        body = replace(body, moments=(replace(body.moments[0], steps_back=0, frames=(frame,)),))
        payloads = [np.ones((4, 6), np.float32), np.arange(18, dtype=np.uint8).reshape(2, 3, 3)]
    elif name == "reply":
        body, payloads = replace(body, refused=None), [np.ones((4, 6), np.float32)]
    elif body.PAYLOADS.most:
        shape = (9,) if name == "thumbnail" else (4, 6)
        payloads = [np.ones(shape, body.PAYLOADS.dtypes[0])]
    return Message(HEADER, body, payloads)


def plain_frames(message):
    return [bytes(part) for part in encode(message)]


def everything(message):
    """The message as comparable plain data."""
    return write(message.header), write(message.body), [(p.dtype, p.tolist()) for p in message.payloads]


@pytest.mark.parametrize("name", TYPES)
def test_every_type_survives_the_way(name):
    message = example_message(name)
    back = decode(plain_frames(message), SESSION)
    assert back.type == name
    assert type(back.body) is TYPES[name]
    assert plain_frames(back) == plain_frames(message)
    assert everything(back) == everything(message)


@pytest.mark.parametrize("label", GOLDEN)
def test_schema_1_is_what_it_was_to_the_byte(label):
    frames = [bytes.fromhex(part) for part in GOLDEN[label]]
    assert plain_frames(decode(frames, None)) == frames


def test_every_type_of_schema_1_is_among_the_recorded_ones():
    assert {bytes.fromhex(frames[0]).decode() for frames in GOLDEN.values()} == set(TYPES)


def golden_body(label):
    return decode([bytes.fromhex(part) for part in GOLDEN[label]], None).body


@pytest.mark.parametrize(
    ("label", "cls"),
    [
        ("describe robot", descriptions.AboutRobot),
        ("describe camera", descriptions.AboutCameraNode),
        ("describe policy", descriptions.AboutPolicy),
        ("describe stand-in", descriptions.AboutPolicy),
        ("describe recorder", descriptions.AboutRecorder),
        ("describe emulator", descriptions.AboutEmulator),
    ],
)
def test_what_nodes_tell_of_themselves_is_what_it_was(label, cls):
    about = golden_body(label).about
    assert list(write(read(cls, about)).items()) == list(about.items())


@pytest.mark.parametrize("label", [label for label in GOLDEN if label.startswith("command")])
def test_what_commands_carry_is_what_it_was(label):
    command = golden_body(label)
    arguments = arguments_from(command.action, command.arguments)
    assert type(arguments) in (type(None), Start, SetTask, Record, Async)
    written = arguments_to(command.action, arguments)
    assert list(written) == list(command.arguments)
    assert arguments_from(command.action, written) == arguments
    if label == "command start trained":  # its execution was written by the program, not by hand
        assert written == command.arguments


def test_a_misspelt_field_is_no_attribute():
    message = decode(plain_frames(example_message("state")), SESSION)
    with pytest.raises(AttributeError, match="positon"):
        _ = message.body.positon
    with pytest.raises(TypeError, match="positon"):
        replace(message.body, positon=1)
    with pytest.raises(TypeError, match="subscriptable"):
        message["position"]


@pytest.mark.parametrize("name", TYPES)
def test_a_missing_or_unknown_field_or_a_wrong_type_is_refused(name):
    frames = plain_frames(example_message(name))
    header = msgpack.unpackb(frames[1])
    later = {f.name for f in fields(TYPES[name]) if f.default is not MISSING}
    for field in header:
        missing = {k: v for k, v in header.items() if k != field}
        wrong = {**header, field: {"not": ["this"]} if not isinstance(header[field], dict) else 3.5}
        for damaged in (wrong,) if field in later else (missing, wrong):  # an older writer leaves it out
            with pytest.raises(WireError):
                decode([frames[0], msgpack.packb(damaged), *frames[2:]], SESSION)
    with pytest.raises(WireError, match="unknown key 'extra'"):
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
    frames = plain_frames(Message(HEADER, EVENT))
    header = {**msgpack.unpackb(frames[1]), **change}
    with pytest.raises(WireError) as error:
        decode([frames[0], msgpack.packb(header), *frames[2:]], SESSION)
    assert error.value.reason == reason


# -- the rules for adding a field (edgevla/messages.py) ---------------------------------------------------------


@dataclass(frozen=True)
class LaterAck(MessageBody):
    """An `ack` of a later program, which has one field more."""

    of_seq: UInt
    is_accepted: bool
    reason: str
    spent_ms: float = 0.0


@pytest.fixture
def later(monkeypatch):
    """`with later():` the program is the later one."""

    @contextlib.contextmanager
    def is_later():
        with monkeypatch.context() as patch:
            patch.setitem(codec.NAMES, LaterAck, "ack")
            patch.setitem(codec._BODIES, "ack", record(LaterAck))
            patch.setitem(codec._KNOWN, "ack", codec._KNOWN["ack"] | {"spent_ms"})
            yield

    return is_later


def test_a_new_field_at_its_default_is_left_out_so_that_older_readers_take_the_message(later):
    with later():
        frames = plain_frames(Message(HEADER, LaterAck(3, True, "", 0.0)))
    assert decode(frames, SESSION).body == Ack(3, True, "")


def test_an_older_writer_s_message_is_filled_in_by_a_later_reader(later):
    frames = plain_frames(Message(HEADER, Ack(3, True, "")))
    with later():
        assert decode(frames, SESSION).body == LaterAck(3, True, "", 0.0)


def test_a_new_field_in_use_is_refused_by_an_older_reader_by_name(later):
    with later():
        frames = plain_frames(Message(HEADER, LaterAck(3, True, "", 2.5)))
        assert decode(frames, SESSION).body.spent_ms == 2.5
    with pytest.raises(WireError, match="ack has the unknown key 'spent_ms'") as error:
        decode(frames, SESSION)
    assert error.value.reason == "schema"


def test_another_schema_is_refused_with_both_numbers():
    frames = plain_frames(Message(HEADER, EVENT))
    header = msgpack.packb({**msgpack.unpackb(frames[1]), "schema": 2})
    with pytest.raises(WireError, match="schema 2; this program speaks 1"):
        decode([frames[0], header], SESSION)


def test_sizes_are_limited_both_ways():
    long = replace(EVENT, text="x" * MAX_HEADER_BYTES)
    with pytest.raises(WireError, match="65536"):
        encode(Message(HEADER, long))
    with pytest.raises(WireError, match="header of"):
        decode([b"event", msgpack.packb({**write(HEADER), **write(long)})], SESSION)


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


def subscribed(publisher, inbox):
    """Publishes until the subscription has travelled, then forgets what arrived."""

    def arrived():
        publisher.event("info", "hello", "anybody there?")
        return inbox.newest(Event) is not None

    wait_for(arrived)
    inbox.drain(Event)


def test_a_slow_receiver_finds_the_newest_and_knows_what_it_missed(ctx):
    publisher = Publisher(ctx, endpoint("inproc", "camera/front"), SESSION, "camera/front")
    streams = {
        Frame: (endpoint("inproc", "camera/front"), 3),
        Event: (endpoint("inproc", "camera/front"), 50),
    }
    inbox = Inbox(ctx, streams, SESSION)
    subscribed(publisher, inbox)
    for i in range(30):
        publisher.send(Frame("front", 2, 3, "rgb8", 0, 0), [np.full((2, 3, 3), i, np.uint8)])
    wait_for(lambda: inbox.counters["received_frame"] == 30)
    assert inbox.newest(Frame, "camera/front").payloads[0].max() == 29
    assert inbox.newest(Frame, "camera/wrist") is None
    assert [int(m.payloads[0][0, 0, 0]) for m in inbox.drain(Frame)] == [27, 28, 29]
    assert inbox.drain(Frame) == []
    assert inbox.counters["ring_frame"] == 27
    inbox.stop()
    publisher.close()


def test_an_inbox_ends_though_more_arrives_than_it_can_read(ctx, monkeypatch):
    """As on a slow machine. Whoever then destroys the context finds no thread inside its socket."""
    before = set(threading.enumerate())
    publisher = Publisher(ctx, "inproc://first.pub", SESSION, "robot")
    flood = Publisher(ctx, "inproc://flood.pub", SESSION, "robot")
    inbox = Inbox(ctx, {Event: (["inproc://first.pub", "inproc://flood.pub"], 4)}, SESSION)
    has_read = threading.Event()

    def accept(frames):
        for _ in range(2):  # while one is read, two arrive
            flood.event("info", "x", "hello")
        has_read.set()

    monkeypatch.setattr(inbox._receiver, "accept", accept)
    while not has_read.wait(0.01):
        publisher.event("info", "x", "hello")
    stopping = threading.Thread(target=inbox.stop, daemon=True)
    stopping.start()
    stopping.join(20)
    assert set(threading.enumerate()) == before
    publisher.close()
    flood.close()


def test_gaps_are_counted_as_losses_and_a_restart_is_not(ctx):
    socket = ctx.socket(zmq.PUB)
    socket.bind("inproc://gaps.pub")
    inbox = Inbox(ctx, {Event: ("inproc://gaps.pub", 100)}, SESSION)
    for seq in [0] * 50:
        socket.send_multipart(encode(Message(replace(HEADER, seq=seq), EVENT)))
        time.sleep(0.01)
        if inbox.newest(Event):
            break
    for seq in (1, 2, 5, 6, 0, 1):  # 3 and 4 lost, then the node started again
        socket.send_multipart(encode(Message(replace(HEADER, seq=seq), EVENT)))
    socket.send_multipart([b"event", b"garbage"])
    socket.send_multipart(encode(Message(replace(HEADER, session=b"intruder"), EVENT)))
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
    assert client.describe(AboutEmulator) is None
    server.about = AboutEmulator("emulator", "so101", ("gripper.pos",))
    assert client.describe(AboutEmulator) == server.about
    with pytest.raises(WireError, match="the description of robot has the unknown key 'robot'"):
        client.describe(descriptions.AboutRecorder)
    ack = client.request("set_task", SetTask("tidy up"))
    thread.join()
    assert (ack.is_accepted, ack.reason) == (False, "no")
    assert seen == [("set_task", SetTask("tidy up"), "monitor")]
    with pytest.raises(WireError, match="not answered"):
        client.request("stop", timeout_s=0.1)
    client.close()
    server.close()


@pytest.mark.parametrize(
    ("action", "arguments", "sentence"),
    [
        ("set_task", {"task": 3}, "set_task.task is 3; expected a text"),
        ("set_task", {}, "set_task lacks the key 'task'"),
        ("set_execution", {"kind": "asinc"}, "set_execution.kind is 'asinc'; .* did you mean 'async'"),
        ("start", {"surprise": 1}, "start has the unknown key 'surprise'"),
        ("pause", {"now": True}, "pause has the unknown key 'now'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused_in_words_before_the_node_sees_them(
    ctx, action, arguments, sentence
):
    server = CommandServer(ctx, endpoint("inproc", "robot", "commands"), SESSION, "robot")
    dealer = Dealer(ctx, endpoint("inproc", "robot", "commands"), SESSION, "monitor")
    wait_for(lambda: dealer.send(Command(action, arguments)) is not None)
    answers = []
    wait_for(lambda: server.poll() or answers.extend(dealer.poll()) or answers)
    assert not answers[0].body.is_accepted
    assert re.match(sentence, answers[0].body.reason)
    dealer.close()
    server.close()


def test_arguments_of_another_command_are_our_own_mistake():
    with pytest.raises(UsageError, match="pause is SetTask"):
        arguments_to("pause", SetTask("tidy up"))
    with pytest.raises(UsageError, match="set_task is None"):
        arguments_to("set_task", None)


def test_a_dealer_without_a_peer_says_so_instead_of_queueing(ctx):
    address = f"ipc:///tmp/evt-{time.monotonic_ns()}"
    dealer = Dealer(ctx, address, SESSION, "robot")
    infer = example_message("infer")
    assert dealer.send(infer.body, infer.payloads) is None
    router = Router(ctx, address, SESSION, "policy")
    wait_for(lambda: dealer.send(infer.body, infer.payloads) is not None)
    found = []
    wait_for(lambda: found.extend(router.poll()) or found)
    assert found[0][1].body.request_id == infer.body.request_id
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
