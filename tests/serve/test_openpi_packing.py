"""openpi's bytes, written down by hand from the layout, and what is no message."""

import contextlib
import struct

import msgpack
import numpy as np
import pytest

from edgevla.errors import WireError
from edgevla.serve.openpi.packing import MOST_ITEMS, pack, unpack


def bin_key(name):
    return b"\xc4" + bytes([len(name)]) + name


def str_key(name):
    return bytes([0xA0 + len(name)]) + name


VALUES = struct.pack("<2f", 1.5, -2.0)


def array_bytes(key, data=VALUES, dtype=b"<f4", shape=b"\x92\x01\x02"):
    """A map of four keys: true, bin 8 of the data, a short text, a list of two small numbers."""
    return (
        b"\x84" + key(b"__ndarray__") + b"\xc3"
        + key(b"data") + b"\xc4" + bytes([len(data)]) + data
        + key(b"dtype") + bytes([0xA0 + len(dtype)]) + dtype
        + key(b"shape") + shape
    )  # fmt: skip


REQUEST = b"\x82" + b"\xa5state" + array_bytes(bin_key) + b"\xa6prompt" + b"\xa2go"
REPLY = (
    b"\x83" + b"\xa7actions" + array_bytes(bin_key) + b"\xa5state" + array_bytes(bin_key)
    + b"\xadpolicy_timing" + b"\x81\xa8infer_ms" + b"\xcb" + struct.pack(">d", 12.5)
)  # fmt: skip


def test_a_request_and_a_reply_are_the_bytes_of_the_layout():
    values = np.array([[1.5, -2.0]], np.float32)
    assert pack({"state": values, "prompt": "go"}) == REQUEST
    assert pack({"actions": values, "state": values, "policy_timing": {"infer_ms": 12.5}}) == REPLY


@pytest.mark.parametrize("key", [bin_key, str_key])
def test_keys_of_an_array_are_read_as_bytes_or_texts(key):
    found = unpack(b"\x81" + key(b"state") + array_bytes(key))
    assert list(found) == ["state"]
    np.testing.assert_array_equal(found["state"], np.array([[1.5, -2.0]], np.float32))
    assert found["state"].dtype == np.float32
    assert not found["state"].flags.writeable


def test_scalars_and_every_dtype_that_is_taken_come_back_as_they_went():
    scalar = (
        b"\x83"
        + bin_key(b"__npgeneric__")
        + b"\xc3"
        + bin_key(b"data")
        + b"\x07"
        + bin_key(b"dtype")
        + b"\xa3|u1"
    )
    assert pack(np.uint8(7)) == scalar
    assert unpack(scalar) == np.uint8(7)
    for dtype in ("|b1", "|u1", "<i2", ">i4", "<u8", "<f2", "<f4", ">f8"):
        array = np.arange(6).reshape(2, 3).astype(dtype)
        came = unpack(pack({"a": [array, np.zeros((0, 3), dtype)]}))["a"]
        np.testing.assert_array_equal(came[0], array)
        assert (came[0].dtype, came[1].shape) == (np.dtype(dtype), (0, 3))


def array_with(**changes):
    fields = {"__ndarray__": True, "data": bytes(8), "dtype": "<f4", "shape": [2], **changes}
    return msgpack.packb({key.encode(): value for key, value in fields.items() if value is not ...})


def nested(levels):
    return b"\x91" * levels + b"\xc0"


HOSTILE = {
    "an object dtype": (array_with(dtype="|O"), "has the dtype '|O'"),
    "a structured dtype": (array_with(dtype="f4,O"), "only truth values and numbers are taken"),
    "a time": (array_with(dtype="<M8[ns]"), "only truth values and numbers are taken"),
    "complex numbers": (array_with(dtype="<c8"), "only truth values and numbers are taken"),
    "a text": (array_with(dtype="<U2"), "only truth values and numbers are taken"),
    "no dtype": (array_with(dtype=7), "has the dtype 7"),
    "a huge shape": (array_with(shape=[2**40, 2**40]), "has 8 bytes, not"),
    "a shape that overflows to the right size": (array_with(shape=[2**62 + 2, 4]), "has 8 bytes, not"),
    "a length below zero": (array_with(shape=[-2]), "has the shape [-2]"),
    "a length that is no number": (array_with(shape=[2.0]), "has the shape [2.0]"),
    "a truth value as a length": (array_with(shape=[True, 2]), "has the shape"),
    "too many axes": (array_with(shape=[1] * 8 + [2]), "at most 8 lengths"),
    "data that are no bytes": (array_with(data="abcdefgh"), "data are no bytes"),
    "no data": (array_with(data=...), "has the keys"),
    "another key": (array_with(pickle=b"cos"), "has the keys"),
    "a scalar that is a list": (
        msgpack.packb({b"__npgeneric__": True, b"data": [1], b"dtype": "<f4"}), "a scalar is [1]"
    ),
    "a nested bomb": (nested(100_000), "nested in more than 8 levels"),
    "a wide bomb": (msgpack.packb([[[]] * 1000] * 1000), f"more than {MOST_ITEMS} items"),
    "a header of four thousand million": (b"\xdd\xff\xff\xff\xff", f"more than {MOST_ITEMS} items"),
    "a map of as many": (b"\xdf\xff\xff\xff\xff", f"more than {MOST_ITEMS} items"),
    "a list as key": (b"\x81\x90\xc0", "is no text or there twice"),
    "a key twice": (b"\x82\xa1a\x01\xc4\x01a\x02", "is no text or there twice"),
    "an extension": (msgpack.packb(msgpack.ExtType(1, b"x")), "an extension type"),
    "no UTF-8": (b"\x81\xa1\xff\xc0", "is no msgpack"),
    "a byte that means nothing": (b"\xc1", "is no msgpack"),
    "something after the end": (REQUEST + b"\xc0", "bytes after its end"),
    "nothing": (b"", "breaks off"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "words"), HOSTILE.values(), ids=HOSTILE)
def test_what_is_no_message_is_refused_with_a_sentence(data, words):
    with pytest.raises(WireError) as error:
        unpack(data)
    assert words in str(error.value)
    assert len(str(error.value)) < 400


@pytest.mark.parametrize("end", range(len(REPLY)))
def test_a_message_that_breaks_off_anywhere_is_refused(end):
    with pytest.raises(WireError, match="breaks off"):
        unpack(REPLY[:end])


def test_any_bytes_are_a_message_or_refused():
    random = np.random.default_rng(0)
    for _ in range(2000):
        data = bytearray(REPLY)
        for place in random.integers(0, len(data), 3):
            data[place] = random.integers(0, 256)
        with contextlib.suppress(WireError):
            unpack(bytes(data))
