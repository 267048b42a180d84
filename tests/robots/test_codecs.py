"""Frames byte for byte, signed numbers, and decoders that survive any stream."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgevla.errors import BusError
from edgevla.robots.bus import dynamixel, feetech
from edgevla.robots.bus.frames import Status

F, D = feetech.REGISTERS, dynamixel.REGISTERS

FEETECH_FRAMES = [
    ("ping 1", feetech.ping(1), "ff ff 01 02 01 fb"),
    ("read position of 1", feetech.read(1, 56, 2), "ff ff 01 04 02 38 02 be"),
    ("torque on 3", feetech.write(3, 40, b"\x01"), "ff ff 03 04 03 28 01 cc"),
    ("sync read", feetech.sync_read(56, 2, range(1, 7)), "ff ff fe 0a 82 38 02 01 02 03 04 05 06 26"),
    (
        "sync write goals",
        feetech.sync_write(42, 2, {1: F["goal_position"].encode(2048), 2: F["goal_position"].encode(1000)}),
        "ff ff fe 0a 83 2a 02 01 00 08 02 e8 03 52",
    ),
    (
        "homing offset -123",
        feetech.write(1, 31, F["homing_offset"].encode(-123)),
        "ff ff 01 05 03 1f 7b 08 54",
    ),
    ("acknowledged, overload", feetech.status(6, 0x20), "ff ff 06 02 20 d7"),
    ("answer 2171", feetech.status(1, 0, F["present_position"].encode(2171)), "ff ff 01 04 00 7b 08 77"),
]
DYNAMIXEL_FRAMES = [
    ("ping 1", dynamixel.ping(1), "ff ff fd 00 01 03 00 01 19 4e"),
    (
        "ping answer",
        dynamixel.status(1, 0, bytes((0xFC, 3, 46))),
        "ff ff fd 00 01 07 00 55 00 fc 03 2e 1d 43",
    ),
    ("read position", dynamixel.read(1, 132, 4), "ff ff fd 00 01 07 00 02 84 00 04 00 1d 15"),
    (
        "answer 2048",
        dynamixel.status(1, 0, D["present_position"].encode(2048)),
        "ff ff fd 00 01 08 00 55 00 00 08 00 00 1c 38",
    ),
    ("sync read", dynamixel.sync_read(132, 4, (1, 2)), "ff ff fd 00 fe 09 00 82 84 00 04 00 01 02 ce fa"),
    (
        "fast read",
        dynamixel.fast_sync_read(132, 4, (1, 2)),
        "ff ff fd 00 fe 09 00 8a 84 00 04 00 01 02 4d 72",
    ),
    (
        "sync write goals",
        dynamixel.sync_write(
            116, 4, {1: D["goal_position"].encode(2048), 2: D["goal_position"].encode(-100)}
        ),
        "ff ff fd 00 fe 11 00 83 74 00 04 00 01 00 08 00 00 02 9c ff ff ff f3 70",
    ),
    (
        "stuffed write",
        dynamixel.write(1, 108, bytes.fromhex("fffffd00")),
        "ff ff fd 00 01 0a 00 03 6c 00 ff ff fd fd 00 a1 fe",
    ),
]


@pytest.mark.parametrize(("frame", "expected"), [f[1:] for f in FEETECH_FRAMES + DYNAMIXEL_FRAMES],
                         ids=[f[0] for f in FEETECH_FRAMES + DYNAMIXEL_FRAMES])  # fmt: skip
def test_worked_frames(frame, expected):
    assert frame.hex(" ") == expected


def test_crc_check_value():
    assert dynamixel.crc16(b"123456789") == 0xFEE8


def test_worked_answers_are_decoded():
    assert feetech.FeetechDecoder().feed(bytes.fromhex("ffff0104007b0877")) == [Status(1, 0, b"\x7b\x08")]
    answer = dynamixel.DynamixelDecoder().feed(
        bytes.fromhex("fffffd0001080055000008 00001c38".replace(" ", ""))
    )
    assert D["present_position"].decode(answer[0].data) == 2048


@pytest.mark.parametrize("register", [r for r in {**F, **D}.values()], ids=lambda r: r.name)
def test_registers_hold_their_limits_and_refuse_what_lies_beyond(register):
    low, high = register.limits
    for value in {low, high, 0, min(high, 1)}:
        assert register.decode(register.encode(value)) == value
    for value in (low - 1, high + 1):
        with pytest.raises(BusError, match=register.name):
            register.encode(value)


def test_a_homing_offset_of_2114_raises_instead_of_wrapping():
    with pytest.raises(BusError, match="2114 does not fit register homing_offset"):
        F["homing_offset"].encode(2114)


def test_control_tables_do_not_overlap():
    for registers in (F, D):
        for r in registers.values():
            others = [o for o in registers.values() if o is not r and o.address < r.end and r.address < o.end]
            assert not others, (r.name, [o.name for o in others])


def test_all_error_bits_are_reported_not_only_the_lowest():
    assert feetech.error_texts(0x25) == ["voltage", "over-temperature", "overload"]


@pytest.mark.parametrize("codec", [feetech, dynamixel])
def test_a_bit_that_no_manual_names_is_reported_all_the_same(codec):
    voltage, unknown = codec.error_texts(0xC1)
    assert voltage == "voltage"
    assert unknown == "a condition that its manual does not name (bits 0xC0)"


def test_refusal_is_a_code_with_dynamixel_and_never_with_feetech():
    assert dynamixel.refuses(7)
    assert dynamixel.refuses(0x84)
    assert not dynamixel.refuses(0x80)
    assert not feetech.refuses(0x3F)


PROTOCOLS = st.sampled_from([feetech, dynamixel])


@given(PROTOCOLS, st.lists(st.binary(max_size=60), max_size=6), st.sampled_from([None, 0, 2, 8]))
@settings(max_examples=300, deadline=None)
def test_any_byte_stream_is_survived_and_yields_no_false_packet(protocol, pieces, size):
    """A frame that is found stands in the stream, byte for byte, with a right checksum, whatever the portions."""
    stream = b"".join(pieces)
    whole = protocol.Decoder(size).feed(stream)
    decoder = protocol.Decoder(size)
    portions = [status for piece in pieces for status in decoder.feed(piece)]
    assert portions == whole
    assert decoder.pending <= 1100
    for found in whole:
        assert protocol.status(*found) in stream


@given(
    PROTOCOLS,
    st.binary(max_size=40),
    st.integers(1, 250),
    st.integers(0, 0x3F),
    st.binary(min_size=2, max_size=2),
)
@settings(max_examples=300, deadline=None)
def test_a_frame_behind_noise_is_found(protocol, noise, servo_id, error, data):
    """Noise cannot hide a frame for longer than the frames that follow it: the decoder drops single bytes."""
    frame = protocol.status(servo_id, error, data)
    found = protocol.Decoder(2).feed(noise + frame + frame + frame + frame)
    assert Status(servo_id, error, data) in found


@given(PROTOCOLS, st.integers(0, 250), st.binary(max_size=24), st.data())
@settings(max_examples=200, deadline=None)
def test_a_flipped_bit_is_noticed(protocol, servo_id, data, choice):
    frame = bytearray(protocol.status(servo_id, 0, data))
    at = choice.draw(st.integers(0, len(frame) * 8 - 1))
    frame[at // 8] ^= 1 << at % 8
    assert protocol.Decoder().feed(bytes(frame)) == []


@given(st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_stuffing_is_undone_even_where_the_data_looks_stuffed(data):
    assert dynamixel.unstuff(dynamixel.stuff(data)) == data
    assert dynamixel.DynamixelDecoder().feed(dynamixel.status(1, 0, data)) == [Status(1, 0, data)]


@given(
    PROTOCOLS,
    st.lists(st.tuples(st.integers(1, 250), st.binary(max_size=20)), max_size=5),
    st.binary(max_size=9),
)
@settings(max_examples=200, deadline=None)
def test_servos_find_instructions_in_any_portions(protocol, writes, tail):
    frames = b"".join(protocol.instruction(i, protocol.WRITE, b"\x28" + d) for i, d in writes)
    buffer, found = bytearray(), []
    for byte in frames:
        buffer.append(byte)
        found += protocol.split_instructions(buffer)
    assert found == [(i, protocol.WRITE, b"\x28" + d) for i, d in writes]
    protocol.split_instructions(bytearray(tail + frames + tail))  # anything around it: no crash, no hang


def test_one_stray_ff_costs_one_byte():
    assert feetech.FeetechDecoder(2).feed(b"\xff" + feetech.status(1, 0, b"ab")) == [Status(1, 0, b"ab")]
    assert feetech.FeetechDecoder(2).feed(b"\xff\xff\xff" + feetech.status(1, 0, b"ab")) == [
        Status(1, 0, b"ab")
    ]


def test_a_header_inside_data_is_data():
    frame = feetech.status(1, 0, b"\xff\xff")
    assert feetech.FeetechDecoder(2).feed(frame + frame) == [Status(1, 0, b"\xff\xff")] * 2


def test_a_merged_answer_is_split_and_a_truncated_one_is_not():
    answers = [(1, 0, b"\xff\xff\xfd\x01"), (2, 0x80, b"efgh"), (9, 0, b"ijkl")]
    frame = dynamixel.fast_status(answers)
    assert len(frame) == 8 + 3 * 8
    decoder, short = dynamixel.DynamixelDecoder(4), dynamixel.DynamixelDecoder(4)
    decoder.merged_ids = short.merged_ids = (1, 2, 9)
    assert decoder.feed(frame) == [Status(i, e, d) for i, e, d in answers]
    assert short.feed(frame[:-8]) == []


def test_a_late_merged_answer_to_an_older_question_is_noise():
    """Nine servos' positions, currents and velocities once came as 'the health of servo 1': 28.8 V."""
    late = dynamixel.fast_status([(i, 0, bytes(range(10))) for i in range(1, 10)])
    asked = dynamixel.status(1, 0, b"h" * 83)
    assert dynamixel.DynamixelDecoder(83).feed(late + asked) == [Status(1, 0, b"h" * 83)]
    decoder = dynamixel.DynamixelDecoder(10)
    decoder.merged_ids = (1, 2, 3)
    assert decoder.feed(late) == []
    now = dynamixel.fast_status([(i, 0, bytes(10)) for i in (1, 2, 3)])
    assert decoder.feed(now) == [Status(i, 0, bytes(10)) for i in (1, 2, 3)]
