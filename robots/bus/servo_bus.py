"""Servos on one line, by register name: the small interface behind which the servo protocols stand.

A protocol is a codec, a control table and its habits (`habits.py`): a subclass fills them in, and one line in
`protocols.py` makes it known. Everything that waits, retries, counts and words errors is here once.
Set-up calls (`ping`, `read`, `write`) raise BusError; the tick's read never raises for a lost answer: it is counted,
and the value keeps its age. No numpy here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgevla.clock import Clock, MonotonicClock
from edgevla.errors import BusError, ConfigError

from .frames import Counters
from .habits import Habits
from .port import READ_SIZE, Port, wire_ns
from .reads import BlockRead, finish
from .registers import Block, Register
from .report import OwnLimits, PingReply, ServoReport, cure_words

TURNAROUND_NS = 50_000
MARGIN_NS = 5_000_000
FLOOR_NS = 10_000_000
EEPROM_TIMEOUT_NS = 30_000_000
N_TRIES = 3
MAX_FAST_FAILURES = 3
PROBE_NS = 60_000_000
LATE_NS = 1_000_000_000
"""Answers to what was asked so long ago do not come any more."""
FOREIGN_FRAMES, FOREIGN_NS = 4, 2_000_000_000
"""So many in this time are another master; one now and then is noise with a checksum that fits."""


class ServoBus(Habits):
    """One line with its servos. What their protocol says stands in `Habits`.

    motors: id -> what to call the servo in a sentence, `wrist_flex, STS3215`. models: id -> model, as profiles name it.
    margin_ms, floor_ms: what a try may take beyond the wire's time, and at least in all.
    """

    def __init__(
        self,
        port: Port,
        motors: Mapping[int, str],
        *,
        robot: str = "bus",
        models: Mapping[int, str] | None = None,
        clock: Clock | None = None,
        margin_ms: float = MARGIN_NS / 1e6,
        floor_ms: float = FLOOR_NS / 1e6,
        joins_writes: bool = True,
    ) -> None:
        self.port, self.motors, self.robot = port, dict(motors), robot
        self.model_of: Mapping[int, str] = dict(models or {})
        self.firmware: dict[int, str] = {}
        """By servo, as far as connecting has asked."""
        self.own: dict[int, OwnLimits] = {}
        """By servo, as far as connecting has asked."""
        self.clock: Clock = clock or MonotonicClock()
        self.joins_writes = joins_writes
        """Whether a sync write and the sync read behind it go out in one write."""
        self.uses_sync_read = True
        self.uses_fast_read = False
        self.echoes: bool | None = None
        """Whether the adapter returns our own bytes; None until the first answer."""
        self.adapter_latency_ns = 0
        self.return_delay_ns = 0
        self.counters: Mapping[int, Counters] = {i: Counters() for i in motors}
        self.errors: dict[int, int] = dict.fromkeys(motors, 0)
        """Last ERR byte by servo."""
        self._margin_ns, self._floor_ns = int(margin_ms * 1e6), int(floor_ms * 1e6)
        self.written: dict[int, dict[str, int]] = {i: {} for i in motors}
        """What was written last, by servo and register."""
        self.is_shared = False
        """Whether another master was heard on the line."""
        self._foreign_ns: list[int] = []
        self._asked_ns: dict[int, int] = {}
        """When answers of so many data bytes were asked for last."""
        self._requests: dict[tuple[int, int, tuple[int, ...], bool], bytes] = {}
        self._n_fast_failures = 0
        self._owed_until_ns = 0

    @property
    def ids(self) -> tuple[int, ...]:
        """Of its motors, in the profile's order."""
        return tuple(self.motors)

    def name_of(self, servo_id: int) -> str:
        """As sentences call a servo: `motor 4 (wrist_flex)`."""
        known = self.motors.get(servo_id)
        return f"motor {servo_id} ({known})" if known else f"motor {servo_id}"

    # ---- the wire's time ----

    def wire_time_ns(self, size: int, n_ids: int, n_sent: int) -> int:
        """A request of `n_sent` bytes and the answers of `n_ids` servos with `size` data bytes each."""
        received = self.codec.sync_read_bytes(n_ids, size)[1]
        return wire_ns(n_sent + received, self.port.baud) + n_ids * (TURNAROUND_NS + self.return_delay_ns)

    def reply_timeout_ns(self, size: int, n_ids: int, n_sent: int) -> int:
        needed = self.wire_time_ns(size, n_ids, n_sent) + self.adapter_latency_ns + self._margin_ns
        return max(self._floor_ns, needed)

    # ---- the tick ----

    def request(self, address: int, size: int, ids: tuple[int, ...], is_fast: bool = False) -> bytes:
        """The constant bytes of a read, built once."""
        key = (address, size, ids, is_fast)
        if key not in self._requests:
            if len(ids) == 1:
                self._requests[key] = self.codec.read(ids[0], address, size)
            elif is_fast:
                self._requests[key] = self.codec.fast_sync_read(address, size, ids)
            else:
                self._requests[key] = self.codec.sync_read(address, size, ids)
        return self._requests[key]

    def goal_frame(self, goals: Mapping[int, int], register: str = "goal_position") -> bytes:
        """A sync write of raw values."""
        r = self.registers[register]
        return self.codec.sync_write(r.address, r.size, {i: r.encode(v) for i, v in goals.items()})

    def begin(
        self,
        block: Block,
        ids: Sequence[int],
        deadline_ns: int,
        prefix: bytes = b"",
        n_retries: int = 2,
        may_merge: bool = True,
    ) -> BlockRead:
        """A read to hand to `finish` together with those of other buses. may_merge: by a fast read where it works."""
        return BlockRead(self, block.address, block.size, ids, deadline_ns, prefix, n_retries, may_merge)

    def read_all(self, block: Block, ids: Sequence[int], patience_ns: int) -> dict[int, dict[str, int]]:
        """Raw values of a block by servo, of all that answer: by one sync read, then those missing one by one.

        For whoever does not know yet whether these servos' firmware can do a sync read. Raises BusError when the line
        has gone.
        """
        deadline_ns = self.clock.now_ns() + patience_ns
        together = self.begin(block, ids, deadline_ns - patience_ns // 2, n_retries=1, may_merge=False)
        finish([together], self.clock)
        replies = dict(together.replies)
        missing = [i for i in ids if i not in replies]
        apart = self.begin(block, missing, deadline_ns, n_retries=2, may_merge=False)
        apart.is_one_by_one = True
        if missing and together.failure is None:
            finish([apart], self.clock)
            replies.update(apart.replies)
        for read in (together, apart):
            if read.failure is not None:
                raise read.failure
        if not together.replies and len(apart.replies) > 1:
            self.uses_sync_read = False
        return {i: block.decode(data) for i, data in replies.items()}

    def overhear(self, heard: bytes, n_answers: int, size: int) -> None:
        """All that came while answers of `size` bytes were awaited, `n_answers` of which were taken."""
        now_ns = self.clock.now_ns()
        self._asked_ns[size] = now_ns
        if len(heard) > self.codec.sync_read_bytes(n_answers, size)[1]:
            lately = [n for n, asked_ns in self._asked_ns.items() if now_ns - asked_ns < LATE_NS]
            self._foreign_ns += [now_ns] * self.count_foreign(heard, lately)
            self._foreign_ns = [then for then in self._foreign_ns if now_ns - then < FOREIGN_NS]
            self.is_shared |= len(self._foreign_ns) >= FOREIGN_FRAMES

    def note_error(self, servo_id: int, error: int) -> None:
        if servo_id in self.errors:
            self.errors[servo_id] = error

    def note_fast_read(self, came: bool) -> None:
        """Fast reads that keep failing are given up in silence; the plain one does the same work."""
        self._n_fast_failures = 0 if came else self._n_fast_failures + 1
        if self._n_fast_failures >= MAX_FAST_FAILURES:
            self.uses_fast_read = False

    def _answers_whole(self, block: Block) -> bool:
        """Whether one request for all servos brings all their answers; a busy machine gets a few tries."""
        for _ in range(N_TRIES):
            self._n_fast_failures = 0
            read = self.begin(block, self.ids, self.clock.now_ns() + PROBE_NS, n_retries=0)
            finish([read], self.clock)
            if read.failure is not None:
                raise read.failure
            if len(read.replies) == len(self.ids):
                return True
        return False

    # ---- set-up calls ----

    def transact(
        self,
        frame: bytes,
        servo_id: int,
        data_size: int,
        timeout_ns: int | None = None,
        n_tries: int = N_TRIES,
    ) -> bytes | None:
        """Sends a request to one servo; its answer's data, or None after the last try without an answer.

        Raises BusError when the servo refuses (Dynamixel) or the line has gone.
        """
        allowed = timeout_ns or self.reply_timeout_ns(data_size, 1, len(frame))
        self._drain()
        first_ns = self.clock.now_ns()
        for attempt in range(n_tries):
            self.port.flush_input()
            sent_ns = self.clock.now_ns()
            self.port.write(frame)
            # Setting up is in no hurry: a busy machine gets more time with every try.
            patience_ns = allowed * 4**attempt
            data = self._await(frame, servo_id, data_size, sent_ns + patience_ns)
            if data is not None:
                if attempt:  # answers to the earlier tries may still come: as late as this one, at most
                    self._owed_until_ns = sent_ns + (self.clock.now_ns() - first_ns) + TURNAROUND_NS
                return data
        self._owed_until_ns = self.clock.now_ns() + allowed
        return None

    def _drain(self) -> None:
        """Drops what late answers to earlier questions are still due: they fit the next question all too well."""
        while self.clock.now_ns() < self._owed_until_ns:
            self.port.read(READ_SIZE, self._owed_until_ns)
        self._owed_until_ns = 0

    def _await(self, frame: bytes, servo_id: int, data_size: int, deadline_ns: int) -> bytes | None:
        decoder, heard = self.codec.Decoder(data_size), bytearray()
        data = None
        try:
            data = self._await_with(decoder, heard, frame, servo_id, data_size, deadline_ns)
            return data
        finally:
            self.overhear(bytes(heard), data is not None, data_size)
            if servo_id in self.counters:
                self.counters[servo_id].n_corrupt += decoder.n_corrupt

    def _await_with(
        self, decoder: Any, heard: bytearray, frame: bytes, servo_id: int, data_size: int, deadline_ns: int
    ) -> bytes | None:
        """heard: is filled with all that came but our own echo."""
        held = b""
        may_echo = True
        while data := self.port.read(READ_SIZE, deadline_ns):
            if may_echo:
                held += data
                if held.startswith(frame):
                    self.echoes, data, may_echo = True, held[len(frame) :], False
                elif frame.startswith(held):
                    continue
                else:
                    data, may_echo = held, False
            heard += data
            for status in decoder.feed(data):
                if status.id != servo_id:
                    continue
                self.note_error(servo_id, status.error)
                if self.codec.refuses(status.error):
                    code = self.codec.ERROR_CODES.get(status.error & 0x7F, status.error & 0x7F)
                    raise BusError(
                        f"{self.robot} on {self.port.name}: {self.name_of(servo_id)} refused the "
                        f"instruction: {code} error",
                        port=self.port.name,
                        motor_id=servo_id,
                        code=status.error & 0x7F,
                    )
                if len(status.data) == data_size:
                    return status.data
            if self.clock.now_ns() >= deadline_ns:
                break
        return None

    def scan(self, ids: Iterable[int] | None = None, n_tries: int = 1) -> list[PingReply]:
        """Who answers, of `ids` or of all possible ones."""
        wanted = range(self.codec.MAX_ID + 1) if ids is None else ids
        return [reply for i in wanted if (reply := self.ping(i, n_tries)) is not None]

    def read_raw(self, servo_id: int, name: str, timeout_ns: int | None = None) -> int:
        r = self.register(name)
        frame = self.codec.read(servo_id, r.address, r.size)
        data = self.transact(frame, servo_id, r.size, timeout_ns)
        if data is None:
            raise self.no_answer(servo_id, "READ", r)
        return r.decode(data)

    def read(self, servo_id: int, name: str) -> float:
        """The register's value in its unit."""
        return self.read_raw(servo_id, name) * self.register(name).scale

    def read_block(self, servo_id: int, block: Block) -> dict[str, int]:
        """Raw values of all registers of a block in one read."""
        data = self.transact(self.codec.read(servo_id, block.address, block.size), servo_id, block.size)
        if data is None:
            raise self.no_answer(servo_id, "READ", block.registers[0])
        return block.decode(data)

    def write_raw(self, servo_id: int, name: str, value: int, is_checked: bool = True) -> None:
        """Writes a register and waits for the servo's word; reads back what lies in EEPROM if it stayed silent."""
        r = self.register(name)
        self.written.setdefault(servo_id, {})[name] = value
        frame = self.codec.write(servo_id, r.address, r.encode(value))
        timeout = EEPROM_TIMEOUT_NS if r.area == "eeprom" else None
        if self.transact(frame, servo_id, 0, timeout) is None and is_checked:
            if r.area == "eeprom" and self.read_raw(servo_id, name, timeout) == value:
                return
            raise self.no_answer(servo_id, "WRITE", r)

    def in_unit(self, values: Mapping[str, int], name: str) -> float | None:
        """One of a block's raw values in its register's unit; None where the block has not got it."""
        return values[name] * self.registers[name].scale if name in values else None

    def cure(self, servo_id: int, faults: Iterable[str], report: ServoReport) -> str:
        """What to do about faults, with the values that belong to them."""
        return cure_words(self.cures, faults, report, self.own.get(servo_id), self.restart_words(servo_id))

    def learn_limits(self, servo_id: int) -> OwnLimits:
        """Reads what the servo allows by itself."""
        volts = self.read(servo_id, "min_voltage"), self.read(servo_id, "max_voltage")
        self.own[servo_id] = OwnLimits(volts, self.read(servo_id, "max_temperature"))
        return self.own[servo_id]

    def write(self, servo_id: int, name: str, value: float) -> None:
        """Writes a value in the register's unit."""
        self.write_raw(servo_id, name, round(value / self.register(name).scale))

    def sync_read(
        self, names: Sequence[str], ids: Sequence[int] | None = None, timeout_ms: float = 50.0
    ) -> dict[int, dict[str, int]]:
        """Raw values by id and name, of the servos that answered."""
        block = Block(tuple(self.register(n) for n in names))
        read = self.begin(block, ids or self.ids, self.clock.now_ns() + int(timeout_ms * 1e6))
        finish([read], self.clock)
        if read.failure is not None:
            raise read.failure
        return {i: block.decode(data) for i, data in read.replies.items()}

    def sync_write(self, name: str, values: Mapping[int, int]) -> None:
        """Raw values by id; nobody answers a sync write."""
        for servo_id, value in values.items():
            self.written.setdefault(servo_id, {})[name] = value
        self.port.write(self.goal_frame(values, name))

    def register(self, name: str) -> Register:
        """A register by its name in the protocol's table."""
        if name not in self.registers:
            raise ConfigError(f"servos of {self.robot} on {self.port.name} have no register '{name}'")
        return self.registers[name]

    def no_answer(self, servo_id: int, verb: str, register: Register) -> BusError:
        """The sentence for silence, with who else answers: behind the first silent servo the cable is the suspect."""
        ids = sorted(self.motors)
        alive = [i for i in ids if i != servo_id and self._is_alive(i)]
        sentence = (
            f"{self.robot} on {self.port.name}: {self.name_of(servo_id)} did not answer {verb} {register.name} "
            f"({register.address}, {register.size} bytes): {N_TRIES} tries at {self.port.baud} baud"
        )
        if not alive:
            sentence += "; no servo answered: check the arm's power supply and the cable of the adapter"
        else:
            sentence += (
                f"; answered: {', '.join(map(str, alive))}; check {cable_hint(ids, alive, self.motors)}"
            )
        return BusError(sentence, port=self.port.name, motor_id=servo_id, register=register.name)

    def _is_alive(self, servo_id: int) -> bool:
        return self.ping(servo_id, 1) is not None

    def close(self) -> None:
        self.port.close()


def cable_hint(ids: Sequence[int], alive: Sequence[int], names: Mapping[int, str]) -> str:
    """Where a daisy chain is broken: before the first silent servo when everything behind it is silent too."""
    silent = [i for i in ids if i not in alive]
    if silent and alive and silent == [i for i in ids if i >= silent[0]]:
        last = max(i for i in alive if i < silent[0]) if any(i < silent[0] for i in alive) else None
        if last is not None:
            return (
                f"the cable between {names[last].split(',')[0]} ({last}) "
                f"and {names[silent[0]].split(',')[0]} ({silent[0]})"
            )
    return "the cables and ids of " + ", ".join(f"{names[i].split(',')[0]} ({i})" for i in silent)
