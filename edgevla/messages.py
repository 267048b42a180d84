"""Every message of a deployment, as data: field -> kind, and what payload belongs to it (graphs.md 2.2).

A kind is one of
    "uint" "int" "float" "bool" "str"     plain values; float is finite
    "measured"                            a float that is NaN while it is not known
    "bin8" "bin16"                        exactly that many bytes
    "f32[]" "u32[]" "u16[]"               little-endian array as msgpack bin; numpy array outside of the wire
    "map"                                 str -> plain values, at most 8 deep (free content: arguments, manifests)
    "map:uint"                            str -> uint
    (a, b, ...)                           one of these strings
    {field: kind}                         a map of exactly these fields
    [kind]                                a list of kind
    Optional_(kind)                       kind or nil
Nothing else passes: a missing field, an unknown one or a wrong type is refused by `edgevla.wire`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

SCHEMA = 1
MODES = ("idle", "running", "holding", "paused", "homing", "stopped", "emergency")
PHASES = ("starting", "ready", "running", "degraded", "stopping", "failed")
SEVERITIES = ("info", "warning", "error", "stop")
ACTIONS = (
    "start",
    "pause",
    "resume",
    "hold",
    "home",
    "stop",
    "emergency_stop",
    "clear_stop",
    "set_task",
    "set_execution",
    "reset",
    "record",
    "keep",
    "discard",
)


@dataclass(frozen=True)
class Optional_:
    """`kind`, or nil."""

    kind: Any


@dataclass(frozen=True)
class MessageType:
    """fields: beyond the common header. payload: (smallest number, largest number, allowed dtypes).

    check: sees (fields, payloads) and returns what is wrong, or None; for rules between fields.
    """

    fields: dict[str, Any]
    payload: tuple[int, int, tuple[str, ...]] = (0, 0, ())
    check: Callable[[dict[str, Any], Sequence[np.ndarray]], str | None] | None = None


COMMON = {
    "schema": "uint",
    "type": "str",
    "session": "bin8",
    "source": "str",
    "seq": "uint",
    "observed_ns": "int",
    "sent_ns": "int",
    "payloads": [{"dtype": "str", "shape": ["uint"]}],
}


def _frame_fits(fields: dict[str, Any], payloads: Sequence[np.ndarray]) -> str | None:
    height, width, encoding = fields["height"], fields["width"], fields["encoding"]
    if not (0 < height <= 16384 and 0 < width <= 16384):
        return f"a frame of {width}x{height} px"
    if encoding == "rgb8" and payloads[0].shape != (height, width, 3):
        return f"a payload of shape {payloads[0].shape} for an rgb8 frame of {width}x{height} px"
    if encoding == "jpeg" and payloads[0].ndim != 1:
        return f"a JPEG payload of {payloads[0].ndim} axes, not 1"
    return None


def _thumbnail_fits(fields: dict[str, Any], payloads: Sequence[np.ndarray]) -> str | None:
    if not (0 < fields["width"] <= 160 and 0 < fields["height"] <= 160):
        return f"a thumbnail of {fields['width']}x{fields['height']} px; at most 160"
    return None if payloads[0].ndim == 1 else "a JPEG payload that is not flat"


def _rtc_fits(fields: dict[str, Any], payloads: Sequence[np.ndarray]) -> str | None:
    rtc = fields["rtc"]
    if (rtc is None) == bool(payloads):
        return "rtc without its committed actions, or committed actions without rtc"
    if rtc is not None and (payloads[0].ndim != 2 or len(payloads[0]) != len(rtc["weights"])):
        return f"committed actions of shape {payloads[0].shape} for {len(rtc['weights'])} weights"
    return None


def _chunk_fits(fields: dict[str, Any], payloads: Sequence[np.ndarray]) -> str | None:
    if payloads[0].ndim != 2 or fields["n_valid"] > len(payloads[0]):
        return f"a chunk of shape {payloads[0].shape} with {fields['n_valid']} valid actions"
    return None


def _state_fits(fields: dict[str, Any], _: Sequence[np.ndarray]) -> str | None:
    n = len(fields["position"])
    others = ("position_age_us", "wanted", "goal", "limited_by")
    wrong = [name for name in others if fields[name] is not None and len(fields[name]) != n]
    return f"{wrong[0]} of another length than the {n} positions" if wrong else None


RTC = Optional_({"weights": "f32[]", "max_guidance": "float"})
JOINT = {
    "name": "str",
    "unit": "str",
    "min": "float",
    "max": "float",
    "max_velocity": "float",
    "is_gripper": "bool",
    "range_deg": Optional_(["float"]),
    "zero": Optional_("str"),
}
CAMERA = {
    "name": "str",
    "source": "str",
    "height": "uint",
    "width": "uint",
    "fps": "float",
    "locked_exposure": "bool",
    "fit": "str",
    "fourcc": "str",
    "exposure": Optional_("float"),
    "gain": Optional_("float"),
    "white_balance": Optional_("float"),
    "rotation": "uint",
}
SERVO = {
    "id": "uint",
    "bus": "str",
    "name": "str",
    "temperature_c": "measured",
    "voltage_v": "measured",
    "load_percent": "measured",
    "current_ma": Optional_("float"),
    "error_bits": "uint",
    "torque_on": "bool",
    "n_retries": "uint",
    "n_corrupt": "uint",
    "n_stale": "uint",
}
TIMING = dict.fromkeys(("assemble", "prompt", "encode", "denoise", "decode", "wait", "network"), "int")

TYPES: dict[str, MessageType] = {
    "frame": MessageType(
        {
            "camera": "str",
            "height": "uint",
            "width": "uint",
            "encoding": ("rgb8", "jpeg"),
            "n_dropped": "uint",
            "n_repeated": "uint",
        },
        (1, 1, ("uint8",)),
        _frame_fits,
    ),
    "thumbnail": MessageType(
        {"camera": "str", "height": "uint", "width": "uint"}, (1, 1, ("uint8",)), _thumbnail_fits
    ),
    "state": MessageType(
        {
            "tick": "uint",
            "deadline_ns": "int",
            "late_ns": "int",
            "t0_ns": "int",
            "step_ns": "int",
            "mode": MODES,
            "position": "f32[]",
            "position_age_us": "u32[]",
            "wanted": Optional_("f32[]"),
            "goal": "f32[]",
            "limited_by": "u16[]",
            "chunk_seq": Optional_("uint"),
            "action_index": "float",
            "n_actions_left": "uint",
            "reason": "str",
        },
        check=_state_fits,
    ),
    "servo_health": MessageType({"servos": [SERVO]}),
    "infer": MessageType(
        {
            "request_id": "uint",
            "grid_index": "int",
            "deadline_ns": "int",
            "task": "str",
            "state": "f32[]",
            "n_steps": Optional_("uint"),
            "rtc": RTC,
        },
        (0, 1, ("float32",)),
        _rtc_fits,
    ),
    "chunk": MessageType(
        {
            "request_id": "uint",
            "grid_index": "int",
            "step_ns": "int",
            "n_valid": "uint",
            "policy": "str",
            "task": "str",
            "is_guided": "bool",
            "n_steps": "uint",
            "noise_seed": "uint",
            "image_age_ns": "int",
            "state_age_ns": "int",
            "timing_ns": TIMING,
        },
        (1, 1, ("float32",)),
        _chunk_fits,
    ),
    # A request has `about` nil; the answer, and what a node says when it is ready, fills it.
    "describe": MessageType({"about": Optional_("map")}),
    "heartbeat": MessageType({"pid": "uint", "phase": PHASES, "counters": "map:uint", "rss_bytes": "uint"}),
    "command": MessageType({"action": ACTIONS, "arguments": "map"}),
    "ack": MessageType({"of_seq": "uint", "is_accepted": "bool", "reason": "str"}),
    "event": MessageType({"severity": SEVERITIES, "code": "str", "text": "str", "fields": "map"}),
    "world": MessageType(
        {
            "joint_rad": "f32[]",
            "gripper_m": "f32[]",
            "objects": [{"name": "str", "position_m": "f32[]", "yaw_rad": "float"}],
            "sim_ns": "int",
        }
    ),
    "fault": MessageType(
        {
            "kind": "str",
            "target": Optional_("str"),
            "probability": Optional_("float"),
            "count": Optional_("uint"),
            "duration_ms": Optional_("float"),
            "amount": Optional_("float"),
        }
    ),
}

# What the robot's `describe` holds: checked by whoever needs it with `wire.check_fields`.
ABOUT_ROBOT = {
    "node": "str",
    "robot": "str",
    "lerobot_types": ["str"],
    "joints": [JOINT],
    "cameras": [CAMERA],
    "servo_hz": "float",
    "warnings": ["str"],
    "buses": [{"name": "str", "protocol": "str", "port": "str", "baud": "uint", "n_motors": "uint"}],
}


def is_grid_moment(state: Mapping[str, Any]) -> bool:
    """Whether this `state` is of a tick at which a policy would be asked: whole steps after the grid began."""
    return bool((state["deadline_ns"] - state["t0_ns"]) % state["step_ns"] == 0)
