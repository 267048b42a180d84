"""What Linux says of its video devices, without opening a stream: their names, and which of them give pictures.

A USB camera shows up as two devices or more: the first gives pictures, the others tell about them (metadata).
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
from pathlib import Path

QUERY_CAPABILITIES = 0x80685600  # VIDIOC_QUERYCAP of linux/videodev2.h
CAPABILITY = struct.Struct("<16s32s32sIII12x")  # driver, card, bus, version, capabilities, device_caps
HAS_DEVICE_CAPS = 0x80000000
GIVES_PICTURES = 0x00000001 | 0x00001000  # VIDEO_CAPTURE, and its form of several planes


def look(device: str) -> tuple[str, bool] | None:
    """(its name, whether it gives pictures); None where that cannot be asked: no V4L2 device, or no permission."""
    try:
        file = os.open(device, os.O_RDWR | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        answer = fcntl.ioctl(file, QUERY_CAPABILITIES, bytes(CAPABILITY.size))
    except OSError:
        return None
    finally:
        os.close(file)
    _, card, _, _, all_of_it, own = CAPABILITY.unpack(answer)
    flags = own if all_of_it & HAS_DEVICE_CAPS else all_of_it
    return card.split(b"\0")[0].decode(errors="replace"), bool(flags & GIVES_PICTURES)


def found() -> str:
    """The cameras of this machine for people: `/dev/video0 (HD Webcam), /dev/video2`, or `none`."""
    devices = sorted(map(str, Path("/dev").glob("video*")), key=lambda d: int(re.sub(r"\D", "", d) or 0))
    shown = []
    for device in devices:
        about = look(device)
        if about is None:
            shown.append(device)
        elif about[1]:
            shown.append(f"{device} ({about[0]})")
    return ", ".join(shown) or "none"


def group_of(device: str) -> str:
    """Name of the group that may use a device, for the advice how to join it."""
    try:
        return Path(device).group()
    except (OSError, KeyError):
        return "video"
