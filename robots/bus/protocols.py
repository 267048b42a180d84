"""The servo protocols that profiles may name. A new one is a file with its codec and its `ServoBus`, and a line here."""

from __future__ import annotations

from .dynamixel_bus import DynamixelBus
from .feetech_bus import FeetechBus
from .servo_bus import ServoBus

BUSES: dict[str, type[ServoBus]] = {
    "feetech": FeetechBus,
    "dynamixel": DynamixelBus,
}
