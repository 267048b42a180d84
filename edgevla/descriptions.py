"""What nodes tell of themselves: the contents of `describe`, one dataclass per node (docs/formats.md#types).

A node answers with its own class; whoever asks says which class it expects, and reads the answer into it. Fields are
added as `messages.py` says.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from edgevla.errors import ConfigError
from edgevla.look import Oddity
from edgevla.strict import Mismatch, Plain, UInt, read, write

FitRule = Literal["exact", "crop", "resize"]


@dataclass(frozen=True)
class AboutJoint:
    """min, max: what the servo can reach within the profile's limits; max_velocity: per second; all in `unit`.

    range_deg: ends of the calibrated range in degrees, by which angles and shares of the range convert; None: unknown.
    zero: convention of angle zero, None where it does not apply.
    """

    name: str
    unit: str
    min: float
    max: float
    max_velocity: float
    is_gripper: bool
    range_deg: tuple[float, float] | None
    zero: str | None


@dataclass(frozen=True)
class AboutCamera:
    """A camera as the robot's profile declares it. rotation: degrees, clockwise; width and height are after it.

    fourcc: empty, the driver's choice. exposure, gain, white_balance: locked to these driver units; None: not.
    """

    name: str
    source: str
    height: UInt
    width: UInt
    fps: float
    locked_exposure: bool
    fit: FitRule
    fourcc: str = ""
    exposure: float | None = None
    gain: float | None = None
    white_balance: float | None = None
    rotation: UInt = 0


@dataclass(frozen=True)
class AboutBus:
    name: str
    protocol: str
    port: str
    baud: UInt
    n_motors: UInt


@dataclass(frozen=True)
class AboutRobot:
    """joints: in the order of state and action. servo_hz: the fastest loop its buses carry.

    lerobot_types: what LeRobot calls this robot, in datasets too.
    """

    node: Literal["robot"]
    robot: str
    joints: tuple[AboutJoint, ...]
    cameras: tuple[AboutCamera, ...]
    servo_hz: float
    warnings: tuple[str, ...]
    buses: tuple[AboutBus, ...]
    lerobot_types: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class AboutPolicy:
    """manifest: of the bundle without `files`, and sha256 of it; both are left out by what stands in for a policy.

    latency_ms: of one inference, measured while warming up. oddities: of its cameras, found before the arm moves.
    """

    node: Literal["policy"]
    manifest: Plain | None = None
    sha256: str = ""
    provider: str
    latency_ms: float
    oddities: tuple[Oddity, ...] = ()


@dataclass(frozen=True)
class AboutServed:
    """One policy of a server. policy: its type. max_batch: requests that share one inference. latency_ms: of one."""

    name: str
    policy: str
    sha256: str
    provider: str
    max_batch: UInt
    latency_ms: float


@dataclass(frozen=True)
class AboutServer:
    """A policy server. Asked for one of its policies by name, it answers with `AboutPolicy`, the manifest whole."""

    node: Literal["serve"]
    policies: tuple[AboutServed, ...]


@dataclass(frozen=True)
class ServedRobot:
    """A robot of a policy server, as that one knows it: what the arm does, only its own machine can say.

    id: tells it from the others, also after a restart of the server. robot: what it calls itself. machine: the name by
    which its machine was paired; empty where they talk without keys. policy: its name there. joined_ms, asked_ms: so
    long ago; asked_ms None: it has asked nothing yet. per_s: requests per second lately, None: not known. buffered_ms:
    so long the arm had actions when it asked last; chunk_ms: so long a whole chunk lasts. answer_ms: from a request's
    arrival to its answer, the newest. is_guided: it asked with committed actions (`rtc`). outcome: of its newest
    request: empty while that waits, `answered`, `expired` or the code of a refusal, whose sentence is in `words`.
    """

    id: str
    robot: str
    machine: str
    policy: str
    task: str
    is_connected: bool
    joined_ms: float
    asked_ms: float | None
    per_s: float | None
    buffered_ms: float
    chunk_ms: float
    answer_ms: float | None
    is_guided: bool
    outcome: str
    words: str


@dataclass(frozen=True)
class AboutRobots:
    """The robots that a policy server serves now. is_draining: it is going down."""

    node: Literal["serve"]
    is_draining: bool
    robots: tuple[ServedRobot, ...]


@dataclass(frozen=True)
class AskedAbout:
    """What a `describe` to a policy server may ask for: one of its policies, by name; or its robots (`AboutRobots`)."""

    policy: str = ""
    robots: bool = False


@dataclass(frozen=True)
class AboutCameraNode:
    """One camera as it runs. node: `camera/NAME`. format: device and pixel format, for people."""

    node: str
    name: str
    source: str
    height: UInt
    width: UInt
    fps: float
    locked_exposure: bool
    fit: FitRule
    format: str


@dataclass(frozen=True)
class AboutRecorder:
    """output: folder of the dataset."""

    node: Literal["recorder"]
    output: str
    cameras: tuple[str, ...]


@dataclass(frozen=True)
class AboutEmulator:
    """joints: names, in profile order."""

    node: Literal["emulator"]
    robot: str
    joints: tuple[str, ...]


About = AboutRobot | AboutPolicy | AboutServer | AboutRobots | AboutCameraNode | AboutRecorder | AboutEmulator


def write_robot(robot: AboutRobot, path: Path) -> None:
    """For a process that shall know the robot before it can ask."""
    path.write_text(json.dumps(write(robot)))


def read_robot(path: Path) -> AboutRobot:
    """The inverse of `write_robot`.

    Raises:
        ConfigError: the file is missing, or does not describe a robot.
    """
    try:
        return read(AboutRobot, json.loads(path.read_text()), "it")
    except (OSError, ValueError, Mismatch) as error:
        raise ConfigError(f"{path} does not describe a robot: {error}", file=str(path)) from error
