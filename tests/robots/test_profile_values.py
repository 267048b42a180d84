"""Values of a profile that cannot be: each is one sentence with file, table, key, value and what is allowed."""

from __future__ import annotations

import contextlib
import copy
import math
from pathlib import Path
from typing import Any

import pytest

from edgevla.clock import VirtualClock
from edgevla.errors import ConfigError, EdgeVLAError
from edgevla.robots import profile as profiles
from edgevla.robots.arm import Robot
from edgevla.robots.bus import dynamixel, feetech
from edgevla.robots.calibration import nominal
from edgevla.robots.emulator.robot import EmulatedRobot
from edgevla.robots.profile import PROFILES_DIR, load_profile
from edgevla.robots.toml_tables import Table
from edgevla.toml import tomllib

HUGE = 1 << 20_000
"""More digits than Python prints: TOML writes such a number in hexadecimal."""
VALUES: list[Any] = [
    0, -1, 1, 3, 300, HUGE, -HUGE, 0.5, -0.0, 1e300, math.inf, -math.inf, math.nan, "", "x", "a/b", "a=b", "\x1b[2J",
    True, False, [], [0, 0], [math.nan, 1], [-math.inf, math.inf], [2, 1], [0.2, 0.7], [HUGE, HUGE], ["x"], {}, {"x": 1},
]  # fmt: skip


def raw(name: str) -> dict[str, Any]:
    return tomllib.loads((PROFILES_DIR / f"{name}.toml").read_text(encoding="utf-8"))


def load(monkeypatch, values: dict[str, Any]):
    monkeypatch.setattr(profiles, "read_toml", lambda path: Table(path, "", copy.deepcopy(values)))
    return load_profile("mine.toml")


def places(values: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Paths of all keys: of the tables at the top, of the first of every array, and of the last motor."""
    found: list[tuple[Any, ...]] = [(key,) for key in values]
    for key, value in values.items():
        if isinstance(value, dict):
            found += [(key, k) for k in value]
            found += [(key, k, kk) for k, v in value.items() if isinstance(v, dict) for kk in v]
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            for i in {0, len(value) - 1}:
                found += [(key, i, k) for k in value[i]]
                found += [(key, i, k, kk) for k, v in value[i].items() if isinstance(v, dict) for kk in v]
    return found


def put(values: dict[str, Any], place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(values)
    at: Any = changed
    for key in place[:-1]:
        at = at[key]
    at[place[-1]] = value
    return changed


def drive(profile) -> None:
    """A robot of that profile connects, energises and moves for a moment, or says why not."""
    clock = VirtualClock(1_000_000_000)
    emulated = EmulatedRobot(profile, clock)
    robot = Robot(profile, emulated.memory_ports(), nominal(profile), clock)
    robot.connect()
    robot.set_torque(True)
    for _ in range(3):
        clock.advance(10_000_000)
        robot.exchange(robot.present_goal(), clock.now_ns() + 9_000_000)
    robot.set_torque(False)


def is_sentence(error: str) -> bool:
    is_short = len(error) < 700 and error.isprintable()
    return error.startswith("mine.toml: ") and error.count("key '") == 1 and is_short


@pytest.mark.parametrize("name", ["so101", "widowx250s"])
def test_no_value_of_any_key_ends_in_a_traceback(monkeypatch, name):
    values = raw(name)
    refused, driven = [], set()
    for place in places(values):
        for value in VALUES:
            try:
                made = load(monkeypatch, put(values, place, value))
            except ConfigError as error:
                refused.append(str(error))
                continue
            if place not in driven and place[0] in ("motor", "limits"):
                driven.add(place)
                with contextlib.suppress(EdgeVLAError):
                    drive(made)
    assert len(refused) > 500
    assert [error for error in refused if not is_sentence(error)] == []


WRONG = [
    (("rates", "servo_hz"), 0, "table [rates], key 'servo_hz': is 0; expected a whole number from 1 to 1000"),
    (("rates", "servo_hz"), -5, "key 'servo_hz': is -5; expected a whole number from 1 to 1000"),
    (("rates", "servo_hz"), 10, "table [escalation], key 'lease_ms': 100 is less than two ticks at servo_hz = 10"),
    (("rates", "record_hz"), 500, "key 'record_hz': 500 is more than servo_hz, 120"),
    (("rates", "home_speed"), 0, "key 'home_speed': is 0; expected a number from 0.01 to 1"),
    (("motor", 0, "limits"), [-math.inf, math.inf], "key 'limits[0]': is -inf; expected a number from -360 to 360"),
    (("motor", 0, "limits"), [math.nan, 1], "key 'limits[0]': is nan; expected a number from -360 to 360"),
    (("motor", 0, "limits"), [5, 5], "key 'limits': the lower limit 5 is not below the upper 5"),
    (("motor", 0, "home"), math.nan, "'shoulder_pan', key 'home': is nan; expected a number from -110 to 110"),
    (("motor", 0, "rest"), math.inf, "key 'rest': is inf; expected a number from -110 to 110"),
    (("motor", 0, "max_velocity"), math.inf, "key 'max_velocity': is inf; expected a number from 0.001 to 1000"),
    (("motor", 0, "id"), 254, "key 'id': is 254; expected a whole number from 0 to 253"),
    (("motor", 0, "id"), True, "key 'id': is True; expected a whole number from 0 to 253"),
    (("motor", 1, "id"), 1, "'shoulder_lift', key 'id': two motors of bus 'arm' have id 1"),
    (("motor", 1, "joint"), "shoulder_pan.pos", "key 'joint': two of them are called 'shoulder_pan.pos'"),
    (("motor", 0, "range_ticks"), [0.5, 0.7], "key 'range_ticks': expected whole numbers, got [0.5, 0.7]"),
    (("motor", 0, "shadow_of"), "gripper", "key 'shadow_of': feetech servos cannot obey for another one"),
    (("bus", 0, "baud"), True, "key 'baud': is True; expected one of 1000000"),
    (("bus", 0, "name"), "a=b", "key 'name': 'a=b' is no name"),
    (("camera", 0, "width"), 0, "table [[camera]] 'front', key 'width': is 0; expected a whole number from 1 to 8192"),
    (("camera", 0, "fps"), math.inf, "key 'fps': is inf; expected a number from 0.1 to 1000"),
    (("escalation", "park_torque"), 1.5, "table [escalation], key 'park_torque': is 1.5; expected a number from 0 to 1"),
    (("escalation", "lease_ms"), 0, "key 'lease_ms': is 0; expected a whole number from 20 to 10000"),
    (("escalation", "hold_ms"), 10**9, "key 'hold_ms': is 1000000000; expected a whole number from 0 to 600000"),
    (("limits", "voltage_min"), 20, "table [limits], key 'voltage_min': 20 is more than voltage_max, 13"),
    (("limits", "temperature_warn_c"), 90, "key 'temperature_warn_c': 90 is more than temperature_stop_c, 65"),
    (("limits", "following_error"), 0, "key 'following_error': is 0; expected a number from 0.001 to 10000"),
    (("lerobot_types",), [], "key 'lerobot_types': is needed, such as ['so_follower']"),
    (("lerobot_types",), ["../x"], "key 'lerobot_types': '../x' is no name"),
    (("world",), "mars", "key 'world': is 'mars'; expected one of"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value", "sentence"), WRONG, ids=[f"{w[0][-1]}={w[1]}" for w in WRONG])
def test_a_value_that_cannot_be_names_table_key_value_and_what_is_allowed(
    monkeypatch, place, value, sentence
):
    with pytest.raises(ConfigError) as caught:
        load(monkeypatch, put(raw("so101"), place, value))
    assert sentence in str(caught.value)


def test_two_cameras_with_one_name_and_two_buses_that_share_are_refused(monkeypatch):
    values = raw("so101")
    values["camera"].append(dict(values["camera"][0]))
    with pytest.raises(
        ConfigError, match=r"\[\[camera\]\] 'front', key 'name': two cameras are called 'front'"
    ):
        load(monkeypatch, values)
    values = raw("so101_bimanual")
    for bus in values["bus"]:
        bus["port"] = "/dev/ttyACM0"
    with pytest.raises(ConfigError, match="key 'port': two buses have the port /dev/ttyACM0"):
        load(monkeypatch, values)
    values = put(raw("so101_bimanual"), ("bus", 1, "calibration_suffix"), "_left")
    with pytest.raises(ConfigError, match="key 'calibration_suffix': '_left' is another bus's, too"):
        load(monkeypatch, values)


def test_a_gripper_s_crank_that_cannot_turn_is_refused(monkeypatch):
    for key, value, sentence in (
        ("horn_m", 0.05, "key 'arm_m': 0.036 is not longer than horn_m, 0.05"),
        ("open_m", 0.5, r"key 'open_m': is 0\.5; expected a number from 0\.013999 to 0\.058001"),
        ("closed_rad", 1.4910, "key 'open_rad': it must differ from closed_rad"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            load(monkeypatch, put(raw("aloha"), ("gripper", "follower", key), value))
    values = raw("aloha")
    del values["gripper"]
    with pytest.raises(ConfigError, match=r"key 'gripper': the file has no \[gripper.NAME\] table"):
        load(monkeypatch, values)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name = 0x" + "f" * 6000, "key 'name': is a number with thousands of digits; expected a text"),
        ("x = " + "9" * 5000, "is not valid TOML"),
        ("x = " + "[" * 5000, "is not valid TOML"),
        ("\ufeff" + 'name = "mine"', "key 'kind': is missing"),
        ("kind = 1979-05-27", "key 'name'|key 'kind'"),
    ],
)
def test_a_file_that_the_parser_chokes_on_is_a_sentence(tmp_path, text, sentence):
    path: Path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=sentence):
        load_profile(path)


# ---- servo models ----


@pytest.mark.parametrize(
    ("model", "name", "number"),
    [
        ("sts3032", "sts3032", 521),
        ("STS3020", "sts3020", 1289),
        (2569, "sts3095", 2569),
        (1234, "model 1234", 1234),
    ],
)
def test_a_servo_with_the_same_registers_is_named_by_name_or_number(monkeypatch, model, name, number):
    values = raw("so101")
    for motor in values["motor"]:
        motor["model"] = model
    made = load(monkeypatch, values)
    assert {(m.model, m.model_number) for m in made.buses[0].motors} == {(name, number)}
    drive(made)


@pytest.mark.parametrize("model", ["xm430-w210", "XL330-M077", "xc330-m288", 1080, 1234])
def test_other_servos_of_the_x_series_connect(monkeypatch, model):
    values = raw("widowx250s")
    for motor in values["motor"]:
        motor["model"] = model
    drive(load(monkeypatch, values))


@pytest.mark.parametrize(
    ("name", "model", "sentence"),
    [
        ("so101", "scs0009", "'scs0009' cannot be driven: SCS servos count 1024 ticks"),
        ("so101", 1284, "1284 cannot be driven: SCS servos"),
        ("so101", 1029, "1029 cannot be driven: SCS servos"),
        ("so101", "hls3625", "cannot be driven: HLS servos"),
        ("so101", "sts3251", r"'sts3251' is not one of .*doctor says: model = 1234; did you mean 'sts3250'"),
        ("so101", 0, "0 is outside 1..65535, where model numbers lie"),
        ("so101", 1.5, "expected a name such as 'sts3032' or a number, got 1.5"),
        ("so101", True, "expected a name such as 'sts3032' or a number, got True"),
        ("widowx250s", "XL-320", "'XL-320' cannot be driven: the XL320 has a small control table"),
        ("widowx250s", 350, "350 cannot be driven: the XL320"),
        ("widowx250s", "ax-12a", "cannot be driven: AX, RX, DX, EX and old MX servos speak protocol 1.0"),
        ("widowx250s", 2010, "2010 cannot be driven: PRO, P and Y servos"),
    ],
)
def test_a_servo_with_other_registers_is_refused_in_words(monkeypatch, name, model, sentence):
    with pytest.raises(ConfigError, match=rf"\[\[motor\]\] '\w+', key 'model': .*{sentence}"):
        load(monkeypatch, put(raw(name), ("motor", 0, "model"), model))


def test_no_number_is_two_servos_and_none_is_foreign():
    for codec in (feetech, dynamixel):
        numbers = list(codec.MODELS.values())
        assert len(set(numbers)) == len(numbers)
        for foreign in codec.FOREIGN:
            assert not any(n in foreign.numbers for n in numbers)
            assert not any(name.startswith(foreign.names) for name in codec.MODELS)


# ---- registers ----

SETTINGS = [
    ("so101", "id", 3, "it may not be set here: the servo's id is the key 'id'"),
    ("so101", "baud", 0, "it may not be set here: the speed is the key 'baud'"),
    ("so101", "lock", 0, "it may not be set here: connecting unlocks"),
    ("so101", "torque_enable", 1, "it may not be set here: it would energise the servo"),
    ("so101", "goal_position", 2048, "it may not be set here: it would move the arm"),
    ("so101", "response_level", 0, "it may not be set here: the servo would not answer any more"),
    ("so101", "model_number", 5, "it can only be read"),
    ("so101", "homing_offset", 5, "it belongs to the calibration"),
    ("so101", "operating_mode", 1, "1 is not one of 0, in which a follower's joint has a position"),
    ("so101", "torque_limit", 0, "is 0; expected a whole number from 1 to 1000"),
    ("so101", "max_torque", 2000, "is 2000; expected a whole number from 1 to 1000"),
    ("so101", "max_temperature", 255, "is 255; expected a whole number from 30 to 100"),
    ("so101", "position_p", True, "is True; expected a whole number from 0 to 255"),
    ("so101", "position_p", math.inf, "is inf; expected a whole number from 0 to 255"),
    ("widowx250s", "secondary_id", 3, "it may not be set here: a shadow is named by the key 'shadow_of'"),
    ("widowx250s", "protocol", 1, "it may not be set here: the servo would not answer"),
    ("widowx250s", "operating_mode", 1, "1 is not one of 0, 3, 4, 5, 16, in which a leader's joint"),
    ("aloha", "operating_mode", 16, "16 is not one of 3, 4, 5, in which a follower's joint"),
    ("widowx250s", "pwm_limit", 0, "is 0; expected a whole number from 1 to 885"),
]


@pytest.mark.parametrize(
    ("name", "register", "value", "sentence"), SETTINGS, ids=[f"{s[0]}-{s[1]}" for s in SETTINGS]
)
def test_a_dangerous_or_impossible_register_is_refused_with_its_reason(
    monkeypatch, name, register, value, sentence
):
    values = raw(name)
    values["motor"][0].setdefault("settings", {})[register] = value
    with pytest.raises(ConfigError) as caught:
        load(monkeypatch, values)
    assert f"key 'settings.{register}': {sentence}" in str(caught.value)
