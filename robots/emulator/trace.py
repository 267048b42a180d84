"""What passed on the emulated lines, as JSON lines: time, bus, direction, bytes, and what they mean.

    {"t_ns": 123, "bus": "arm", "dir": "tx", "op": "sync_write", "id": 254, "register": "goal_position",
     "values": {"1": 2048}, "hex": "ffff..."}

`tx` is what the host sent, `rx` what a servo answered, `other` what another master asked. `arm` says what became of it,
whenever it changes, at most 50 times a second: of each servo the position, the goal, whether it has torque, and the
share of full torque that its limits leave it.

    {"t_ns": 124, "bus": "arm", "dir": "arm", "servos": {"1": [2047, 2048, 1, 1.0]}}

Tests read it as the truth about what reached the arm.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from .line import Line

FLUSH_S = 0.2
ARM_NS = 20_000_000


class Trace:
    """Appends to a file; flushed every 0.2 s and at the end."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._flushed = time.monotonic()

    def watcher(self, bus: str, protocol: ModuleType) -> Callable[[str, bytes, int], None]:
        def watch(direction: str, frame: bytes, t_ns: int) -> None:
            self.write({"t_ns": t_ns, "bus": bus, "dir": direction, **describe(protocol, direction, frame)})

        return watch

    def write(self, entry: dict[str, Any]) -> None:
        self._file.write(json.dumps(entry) + "\n")
        now = time.monotonic()
        if now - self._flushed > FLUSH_S:
            self._flushed = now
            self._file.flush()

    def note(self, t_ns: int, **fields: Any) -> None:
        """Something that is no frame: a fault, an unplugged line."""
        self._file.write(json.dumps({"t_ns": t_ns, "dir": "note", **fields}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class ArmWatch:
    """Tells of what the servos of some lines do, as the `arm` entries of the module. write: takes an entry."""

    def __init__(self, lines: Iterable[Line], write: Callable[[dict[str, Any]], None]) -> None:
        self._lines, self._write = list(lines), write
        self._next_ns = 0
        self._last: dict[str, dict[str, list[float]]] = {}

    def turn(self, now_ns: int) -> int:
        """Call it when the arm has moved; returns when to call again."""
        if now_ns < self._next_ns:
            return self._next_ns
        self._next_ns = now_ns + ARM_NS
        for line in self._lines:
            servos: dict[str, list[float]] = {
                str(s.id): [s.present, s.get("goal_position"), int(s.torque_on), round(s.strength, 3)]
                for s in line.servos
            }
            if servos != self._last.get(line.name):
                self._last[line.name] = servos
                self._write({"t_ns": now_ns, "bus": line.name, "dir": "arm", "servos": servos})
        return self._next_ns


def read_trace(path: Path) -> Iterator[dict[str, Any]]:
    """Entries of a trace; a last line that is not whole is left out."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def describe(protocol: ModuleType, direction: str, frame: bytes) -> dict[str, Any]:
    """The meaning of a frame, as far as it has one, and its bytes."""
    base = {"hex": frame.hex()}
    if direction == "rx":
        answers = protocol.Decoder().feed(frame)
        if len(answers) != 1:
            return base
        return {
            "id": answers[0].id,
            "op": "status",
            "error": answers[0].error,
            "data": answers[0].data.hex(),
            **base,
        }
    found = protocol.split_instructions(bytearray(frame))
    if len(found) != 1:
        return base
    servo_id, code, parameters = found[0]
    entry: dict[str, Any] = {"id": servo_id, "op": protocol.INSTRUCTIONS.get(code, f"0x{code:02x}")}
    entry.update(_parameters(protocol, entry["op"], servo_id, parameters))
    return {**entry, **base}


def _parameters(protocol: ModuleType, op: str, servo_id: int, parameters: bytes) -> dict[str, Any]:
    n = 1 if protocol.HEADER == b"\xff\xff" else 2
    if op in ("write", "reg_write") and len(parameters) > n:
        address = int.from_bytes(parameters[:n], "little")
        return _values(protocol, address, {servo_id: parameters[n:]})
    if op in ("sync_write", "sync_read", "fast_sync_read") and len(parameters) > 2 * n:
        address = int.from_bytes(parameters[:n], "little")
        size = int.from_bytes(parameters[n : 2 * n], "little")
        rest = parameters[2 * n :]
        if op != "sync_write":
            return {"address": address, "size": size, "ids": list(rest)}
        pieces = {rest[k]: rest[k + 1 : k + 1 + size] for k in range(0, len(rest) - size, size + 1)}
        return _values(protocol, address, pieces)
    if op == "read" and len(parameters) == 2 * n:
        return {
            "address": int.from_bytes(parameters[:n], "little"),
            "size": int.from_bytes(parameters[n:], "little"),
        }
    return {}


def _values(protocol: ModuleType, address: int, pieces: dict[int, bytes]) -> dict[str, Any]:
    register = next((r for r in protocol.REGISTERS.values() if r.address == address), None)
    if register is None or any(len(piece) != register.size for piece in pieces.values()):
        return {"address": address}
    return {
        "address": address,
        "register": register.name,
        "values": {str(i): register.decode(piece) for i, piece in pieces.items()},
    }
