"""The one reader of plain data: annotations in, values or one sentence out; and it writes what it reads."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgevla.strict import Length, Measured, Mismatch, OneOf, Plain, UInt, Within, read, write


@dataclass(frozen=True)
class Wheel:
    radius_m: float
    side: Literal["port", "starboard"]


@dataclass(frozen=True)
class Sail:
    area_m2: float
    colour: str | None = None


@dataclass(frozen=True)
class Oar:
    n: int = 2


Drive = Annotated[Sail | Oar, OneOf("kind", {"sail": Sail, "oar": Oar})]


@dataclass(frozen=True)
class Cart:
    name: str
    load: Annotated[int, Within(0, 9)]
    wheels: tuple[Wheel, ...]
    size: tuple[float, float]
    heat_c: Measured = float("nan")
    seat: UInt | None = None
    serial: Annotated[bytes, Length(2)] = b"ab"
    drive: Drive = Oar()
    notes: Plain = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)
    is_open: bool = False
    share: Annotated[float, Within(0, None)] = 0.0


CART = {"name": "red", "load": 3, "wheels": [{"radius_m": 1, "side": "port"}], "size": [1.0, 2.5]}


def cart(**changes: Any) -> dict[str, Any]:
    return {**CART, **changes}


SENTENCES = [
    ("red", "cart is 'red'; expected a map"),
    (cart(nmae="x"), "cart has the unknown key 'nmae'; did you mean 'name'?"),
    ({**CART, 3: 4}, "cart has the unknown key 3"),
    ({k: v for k, v in CART.items() if k != "load"}, "cart lacks the key 'load'"),
    (cart(name=3), "cart.name is 3; expected a text"),
    (cart(load="3"), "cart.load is '3'; expected a whole number"),
    (cart(load=True), "cart.load is True; expected a whole number"),
    (cart(load=2.0), "cart.load is 2.0; expected a whole number"),
    (cart(load=10), "cart.load is 10; expected a whole number from 0 to 9"),
    (cart(share=-0.5), "cart.share is -0.5; expected a number of 0 or more"),
    (cart(size=[1.0]), "cart.size holds 1 values; expected 2"),
    (cart(size=3), "cart.size is 3; expected a list"),
    (cart(size=[1.0, float("inf")]), "cart.size[1] is inf; expected a finite number"),
    (cart(size=[10**400, 1]), "cart.size[0] is 1000000"),
    (cart(heat_c="hot"), "cart.heat_c is 'hot'; expected a number"),
    (cart(heat_c=float("inf")), "cart.heat_c is inf; expected a finite number"),
    (cart(seat=-1), "cart.seat is -1; expected a whole number from 0 to 18446744073709551615"),
    (cart(serial=b"abc"), "cart.serial is b'abc'; expected 2 bytes"),
    (cart(is_open=1), "cart.is_open is 1; expected true or false"),
    (cart(wheels=[{"radius_m": 1.0, "side": "porr"}]),
     "cart.wheels[0].side is 'porr'; expected one of port, starboard; did you mean 'port'?"),
    (cart(wheels=[{"radius_m": 1.0, "side": "port"}, {"side": "port"}]), "cart.wheels[1] lacks the key 'radius_m'"),
    (cart(labels={"a": "b"}), "cart.labels.a is 'b'; expected a whole number"),
    (cart(labels={1: 2}), "cart.labels has the key 1; expected a text"),
    (cart(notes=[1]), "cart.notes is [1]; expected a map"),
    (cart(notes={"a": {1, 2}}), "cart.notes is {1, 2}; expected plain values, at most 8 deep"),
    (cart(notes={"a": 2**64}), "cart.notes is 18446744073709551616; expected a whole number from -9223"),
    (cart(drive={"kind": "sale"}), "cart.drive.kind is 'sale'; expected one of sail, oar; did you mean 'sail'?"),
    (cart(drive={"kind": "oar", "m": 1}), "cart.drive has the unknown key 'm'; known: n"),
    (cart(drive={"kind": "sail"}), "cart.drive lacks the key 'area_m2'"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "sentence"), SENTENCES, ids=[s[:40] for _, s in SENTENCES])
def test_what_does_not_fit_is_one_sentence_with_its_place(data: Any, sentence: str) -> None:
    with pytest.raises(Mismatch) as error:
        read(Cart, data, "cart")
    assert str(error.value).startswith(sentence)


def test_a_file_s_name_stands_before_the_place() -> None:
    with pytest.raises(
        Mismatch, match=r"^carts/red\.json: wheels\[0\]\.side is 3; expected one of port, starboard$"
    ):
        read(Cart, cart(wheels=[{"radius_m": 1, "side": 3}]), "carts/red.json:")
    with pytest.raises(Mismatch, match=r"^carts/red\.json lacks the key 'name'$"):
        read(Cart, {}, "carts/red.json:")


def test_what_is_read_is_written_again_and_defaults_are_left_out() -> None:
    warm = cart(heat_c=20.0)
    assert read(Cart, warm) == Cart("red", 3, (Wheel(1.0, "port"),), (1.0, 2.5), heat_c=20.0)
    assert write(read(Cart, warm)) == warm
    sound = cart(
        heat_c=20.5, seat=3, serial=b"xy", drive={"kind": "sail", "area_m2": 2.0}, notes={"a": [None, 1.5]}
    )
    assert write(read(Cart, sound)) == sound


def test_writing_is_as_strict_as_reading() -> None:
    with pytest.raises(Mismatch, match=r"^wheels\[0\]\.radius_m is '1'; expected a number"):
        write(Cart("red", 3, (Wheel("1", "port"),), (1.0, 2.5)))  # type: ignore[arg-type]
    with pytest.raises(Mismatch, match=r"^drive is 3; expected one of sail, oar"):
        write(Cart("red", 3, (), (1.0, 2.5), drive=3))  # type: ignore[arg-type]


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(PLAIN)
def test_any_plain_data_is_a_value_or_a_mismatch(data: Any) -> None:
    for key in Cart.__dataclass_fields__:
        with contextlib.suppress(Mismatch):
            assert write(read(Cart, cart(**{key: data}))).keys() >= CART.keys()
