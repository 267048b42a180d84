"""Which serial port is which bus, when not everything was said. No numpy: the guardian imports this."""

from __future__ import annotations

from collections.abc import Mapping

from edgevla.errors import BusError, UsageError

from .bus.port import candidate_ports
from .profile import Profile


def choose_ports(profile: Profile, given: Mapping[str, str]) -> dict[str, str]:
    """Bus name -> port: what was given, else the profile's, else the only adapter that is plugged in.

    Raises UsageError or BusError, naming the bus.
    """
    given = dict(given)
    if "" in given and len(profile.buses) == 1:  # a bare path: there is only one bus it can mean
        given[profile.buses[0].name] = given.pop("")
    for name in given:
        if name == "":
            buses = " and ".join(f"--port {bus.name}=PATH" for bus in profile.buses)
            raise UsageError(
                f"{profile.name} has {len(profile.buses)} buses; say which port is which: {buses}"
            )
        if name not in {bus.name for bus in profile.buses}:
            raise UsageError(
                f"{profile.name} has no bus '{name}'; it has {', '.join(b.name for b in profile.buses)}"
            )
    ports = {bus.name: given.get(bus.name) or bus.port for bus in profile.buses}
    found = candidate_ports()
    for name, port in ports.items():
        if port:
            continue
        if len(found) != 1 or len(profile.buses) > 1:
            what = ", ".join(found) or "none"
            raise BusError(
                f"which serial port is bus '{name}' of {profile.name}? Adapters on this machine: {what}. Name it with "
                f"--port {name}=PATH, or use --sim for a simulated arm"
            )
        ports[name] = found[0]
    return ports
