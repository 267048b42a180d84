"""One emulated servo line: bytes in, bytes out with the time at which the host can read them.

Wire timing, the adapter's latency and what faults do to frames are here; what a frame means is in the family's
file. A line never sleeps: it says when, and the pseudo-terminal server or a memory port waits.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from .faults import Faults
from .servo import EmulatedServo

NS_PER_S = 1_000_000_000
TURNAROUND_NS = 30_000
USB_FRAME_NS = 1_000_000
FTDI_PACKET = 62
LATENCIES_NS = {"none": 0, "cdc": 1_000_000, "ftdi1": 1_000_000, "ftdi16": 16_000_000}


@dataclass(frozen=True)
class ServoAnswer:
    """A servo's answer before it is a frame. fast: it is part of a merged (fast) answer."""

    servo: EmulatedServo
    error: int
    data: bytes
    is_fast: bool = False


class Line:
    """See the module. `on_frame(direction, bytes, ns)` is told of all that passes, for traces."""

    protocol: ModuleType

    def __init__(
        self,
        name: str,
        servos: Sequence[Any],
        *,
        faults: Faults | None = None,
        is_timed: bool = True,
        adapter: str = "none",
        stalls_on_missing: bool = False,
        has_sync_read: bool = True,
        has_fast_read: bool = True,
        seed: int = 0,
    ) -> None:
        self.name, self.servos = name, list(servos)
        self.faults = faults or Faults(seed)
        self.is_timed, self.adapter = is_timed, adapter
        self.stalls_on_missing = stalls_on_missing
        for servo in self.servos:
            servo.has_sync_read &= has_sync_read
            servo.has_fast_read &= has_fast_read
        self.client_baud: int | None = None
        """Baud rate that the host has set; None: whatever the servos have."""
        self.on_frame: Callable[[str, bytes, int], None] | None = None
        self.before_frame: Callable[[int], None] | None = None
        """Called before an instruction acts, to bring the mechanics up to that time."""
        self.counters: dict[str, int] = {"instructions": 0, "answers": 0, "garbage_bytes": 0}
        self._buffer = bytearray()
        self._free_ns = 0
        self._random = random.Random(seed)

    @property
    def hearing(self) -> list[Any]:
        """Servos at the host's speed."""
        return [s for s in self.servos if self._hears(s)]

    def with_id(self, servo_id: int) -> list[Any]:
        """The servos that hear this id: several, where two have the same."""
        return [s for s in self.servos if s.id == servo_id and self._hears(s)]

    def _hears(self, servo: EmulatedServo) -> bool:
        return self.client_baud is None or servo.baud == self.client_baud

    def execute(self, servo_id: int, code: int, parameters: bytes, now_ns: int) -> list[ServoAnswer]:
        """What one packet makes of the servos, and what they answer."""
        raise NotImplementedError

    def frame(self, answers: Sequence[ServoAnswer], servo_id: int) -> bytes:
        """Bytes of one answer (or of one merged answer)."""
        answer = answers[0]
        return self.protocol.status(servo_id, answer.error, answer.data)

    def receive(self, data: bytes, now_ns: int) -> list[tuple[int, bytes]]:
        """What the host wrote; the answers as (ready_ns, bytes), in order of time.

        Of several questions at once only the last is answered: the emulator was held up, and the host has given up
        the others. On a wire their answers would be over, too.
        """
        if self.client_baud is not None and not any(self._hears(s) for s in self.servos):
            self.counters["garbage_bytes"] += len(data)
            return []
        heard = [(now_ns, data)] if self.faults.take("echo", self.name, now_ns) else []
        self._buffer += data
        asked: list[ServoAnswer] = []
        begun_ns = max(now_ns, self._free_ns)
        if self.faults.take("foreign", self.name, now_ns):
            heard += (others := self._foreign(begun_ns))
            begun_ns = others[-1][0]
        asked_ns = end_ns = begun_ns
        for servo_id, code, parameters in self.protocol.split_instructions(self._buffer):
            request = self.protocol.instruction(servo_id, code, parameters)
            if self.before_frame is not None:
                self.before_frame(now_ns)
            if self.on_frame is not None:
                self.on_frame("tx", request, now_ns)
            self.counters["instructions"] += 1
            end_ns += self._wire_ns(len(request))
            if answers := self.execute(servo_id, code, parameters, now_ns):
                asked, asked_ns, end_ns = answers, end_ns, begun_ns
        self._free_ns = end_ns
        return heard + (self._answer(asked, asked_ns, now_ns) if asked else [])

    def _foreign(self, at_ns: int) -> list[tuple[int, bytes]]:
        """Another master asks a servo for its position: on one wire, our host hears the question and the answer."""
        servo = self._random.choice(self.servos)
        register = self.protocol.REGISTERS["present_position"]
        question = self.protocol.read(servo.id, register.address, register.size)
        servo.refresh(at_ns)
        data = bytes(servo.memory[register.address : register.end])
        answer = self.protocol.status(servo.id, servo.error, data)
        asked_ns = at_ns + self._wire_ns(len(question))
        if self.on_frame is not None:
            self.on_frame("other", question, asked_ns)
        return [(asked_ns, question), (asked_ns + self._wire_ns(len(answer)), answer)]

    def _wire_ns(self, n_bytes: int) -> int:
        if not self.is_timed:
            return 0
        baud = self.client_baud or (self.servos[0].baud if self.servos else 0) or 1_000_000
        return n_bytes * 10 * NS_PER_S // baud

    def _answer(self, answers: list[ServoAnswer], at_ns: int, now_ns: int) -> list[tuple[int, bytes]]:
        """Puts answers on the wire one after the other, through the faults, and hands them to the adapter."""
        pieces: list[tuple[int, bytes]] = []
        for servo_id, group in self._grouped(answers):
            delay_ns = self._return_delay_ns(group[0].servo)
            frame = self._collide(group, servo_id)
            frame, late_ns = self.faults.damage(frame, group[0].servo, self.name, now_ns, self.protocol)
            at_ns += (TURNAROUND_NS + delay_ns if self.is_timed else 0) + self._wire_ns(len(frame))
            if frame:
                pieces.append((at_ns + late_ns, frame))
                self.counters["answers"] += 1
                if self.on_frame is not None:
                    self.on_frame("rx", frame, at_ns + late_ns)
        self._free_ns = at_ns  # what is late is late in the adapter; the wire is free
        pieces.sort(key=lambda piece: piece[0])
        return self._through_adapter(pieces, now_ns)

    def _grouped(self, answers: list[ServoAnswer]) -> list[tuple[int, list[ServoAnswer]]]:
        """Answers of servos with the same id stand on the wire at the same time; merged ones are one frame."""
        if answers and answers[0].is_fast:
            return [(self.protocol.BROADCAST, answers)]
        groups: dict[int, list[ServoAnswer]] = {}
        for answer in answers:
            groups.setdefault(answer.servo.id, []).append(answer)
        return list(groups.items())

    def _collide(self, group: list[ServoAnswer], servo_id: int) -> bytes:
        if group[0].is_fast:
            return self.frame(group, servo_id)
        frames = [self.frame([answer], servo_id) for answer in group]
        frame = frames[0]
        for other in frames[1:]:  # a pulled-down line reads as the AND of both
            size = max(len(frame), len(other))
            pairs = zip(frame.ljust(size, b"\xff"), other.ljust(size, b"\xff"), strict=True)
            frame = bytes(a & b for a, b in pairs)
        return frame

    def _return_delay_ns(self, servo: EmulatedServo) -> int:
        return servo.get("return_delay") * 2000

    def _through_adapter(self, pieces: list[tuple[int, bytes]], now_ns: int) -> list[tuple[int, bytes]]:
        adapter = "ftdi16" if self.faults.take("latency", self.name, now_ns) else self.adapter
        if not pieces or (not self.is_timed and adapter == "none"):
            return pieces
        if adapter.startswith("ftdi"):
            return self._through_ftdi(pieces, LATENCIES_NS[adapter])
        return self._in_usb_frames(pieces, LATENCIES_NS[adapter])

    def _in_usb_frames(self, pieces: list[tuple[int, bytes]], latency_ns: int) -> list[tuple[int, bytes]]:
        """Bytes are handed over at the end of each 1 ms of a burst, and at its end."""
        out: list[tuple[int, bytes]] = []
        begun_ns, last_ns, block = pieces[0][0], pieces[0][0], b""
        for at_ns, frame in pieces:
            if block and at_ns - begun_ns > USB_FRAME_NS:
                out.append((last_ns + latency_ns, block))
                begun_ns, block = at_ns, b""
            block, last_ns = block + frame, at_ns
        out.append((last_ns + latency_ns, block))
        return out

    def _through_ftdi(self, pieces: list[tuple[int, bytes]], timer_ns: int) -> list[tuple[int, bytes]]:
        """Full packets go at once; the rest waits for the latency timer."""
        out: list[tuple[int, bytes]] = []
        block = b""
        for at_ns, frame in pieces:
            block += frame
            while len(block) >= FTDI_PACKET:
                out.append((at_ns, block[:FTDI_PACKET]))
                block = block[FTDI_PACKET:]
        if block:
            out.append((pieces[-1][0] + timer_ns, block))
        return out
