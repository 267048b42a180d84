"""Bus cycles per second and CPU per cycle: ours, the vendors' SDKs, and the wire's limit, on the same emulator.

    python benchmarks/bus_cycles.py [--seconds 5] [--adapter none] [--out FILE.json]

A cycle writes one goal to every servo and reads every position. Cases: 6 STS3215 at 1 Mbaud; 4 buses of 9 X-series
servos at 1 and at 4 Mbaud. Every bus is emulated by a process of its own that keeps the wire's time. The emulator is a
Python program too: at 4 Mbaud it, not the wire, is the limit, which the column `emulator` shows (an empty ping-pong of
the same frames without any driver).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from edgevla.robots.arm import Robot
from edgevla.robots.bus.port import SerialPort
from edgevla.robots.bus.registers import Block
from edgevla.robots.calibration import nominal
from edgevla.robots.profile import Profile, load_profile

MOTOR = """
[[motor]]
name = "{bus}_{id}"
bus = "{bus}"
id = {id}
model = "{model}"
joint = "{bus}_{id}"
unit = "{unit}"
range_ticks = [0, 4095]
limits = {limits}
max_velocity = 3.0
home = 0.0
"""


def write_profile(folder: Path, protocol: str, buses: list[str], n: int, baud: int) -> Path:
    """A robot of `n` servos per bus without limits or cameras."""
    model = {"feetech": "sts3215", "dynamixel": "xm430-w350"}[protocol]
    text = 'name = "bench"\nkind = "follower"\njoint_units = "rad"\n'
    for bus in buses:
        text += f'[[bus]]\nname = "{bus}"\nprotocol = "{protocol}"\nbaud = {baud}\n'
    for bus in buses:
        for i in range(1, n + 1):
            text += MOTOR.format(bus=bus, id=i, model=model, unit="rad", limits=[-3.14, 3.14])
    path = folder / f"{'_'.join(buses)}_{baud}.toml"
    path.write_text(text)
    return path


class Emulators:
    """One emulator process per bus."""

    def __init__(self, folder: Path, protocol: str, n_buses: int, n: int, baud: int, adapter: str) -> None:
        self.buses = [f"b{k}" for k in range(n_buses)]
        self.profile: Profile = load_profile(write_profile(folder, protocol, self.buses, n, baud))
        self.processes = []
        self.ports = {}
        for bus in self.buses:
            single = write_profile(folder, protocol, [bus], n, baud)
            link = folder / f"{bus}.link"
            args = [sys.executable, "-m", "edgevla.robots.emulator.cli", str(single), "--link", str(link)]
            process = subprocess.Popen([*args, "--adapter", adapter], stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            assert process.stdout.readline(), "the emulator did not start"
            self.processes.append(process)
            self.ports[bus] = str(link)

    def __enter__(self) -> Emulators:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.terminate()
            process.wait()
            if process.stdout:
                process.stdout.close()


def measure(cycle: Callable[[], bool], seconds: float) -> dict[str, float]:
    """Cycles per second, median and p99 time, CPU per cycle, share that failed."""
    for _ in range(20):
        cycle()
    times, n_bad = [], 0
    cpu, begun = time.process_time(), time.monotonic()
    while time.monotonic() - begun < seconds:
        at = time.perf_counter_ns()
        n_bad += not cycle()
        times.append((time.perf_counter_ns() - at) / 1e3)
    wall, cpu = time.monotonic() - begun, time.process_time() - cpu
    return {
        "hz": len(times) / wall,
        "p50_us": float(np.median(times)),
        "p99_us": float(np.percentile(times, 99)),
        "cpu_us": cpu / len(times) * 1e6,
        "failed_percent": 100 * n_bad / len(times),
    }


def ours(emulators: Emulators, seconds: float) -> tuple[dict[str, dict[str, float]], float]:
    """Ours with positions only and as deployed (all telemetry), and the wire's time of the first, in us."""
    profile = emulators.profile
    ports = {bus.name: SerialPort.open(emulators.ports[bus.name], bus.baud) for bus in profile.buses}
    robot = Robot(profile, ports, nominal(profile))
    robot.connect()
    robot.set_torque(True)
    goal = robot.present_goal()

    def cycle() -> bool:
        return robot.exchange(goal, time.monotonic_ns() + 50_000_000).n_stale == 0

    found = {"ours, all telemetry": measure(cycle, seconds)}
    for line in robot._lines:
        line.line.tick_block = Block((line.line.registers["present_position"],))
        line.next_health_ns = 1 << 62
    found["ours"] = measure(cycle, seconds)
    bus = next(iter(robot.buses.values()))
    n, size = len(bus.ids), bus.tick_block.size
    sizes = (
        bus.codec.fast_sync_read_bytes(n, size) if bus.uses_fast_read else bus.codec.sync_read_bytes(n, size)
    )
    n_bytes = sum(sizes) + len(bus.goal_frame(dict.fromkeys(bus.ids, 2048)))
    robot.set_torque(False)
    robot.close()
    return found, n_bytes * 10 / bus.port.baud * 1e6


def raw(emulators: Emulators, seconds: float) -> dict[str, float]:
    """The same bytes to all buses and back without a driver: what emulator and pseudo-terminals allow."""
    profile = emulators.profile
    ports = [SerialPort.open(emulators.ports[bus.name], bus.baud) for bus in profile.buses]
    from edgevla.robots.rescue import make_buses

    line = next(iter(make_buses(profile, dict(zip(emulators.buses, ports, strict=True))).values()))
    is_dynamixel = profile.buses[0].protocol == "dynamixel"
    r = line.registers["present_position"]
    ask = line.goal_frame(dict.fromkeys(line.ids, 2048))
    ask += (line.codec.fast_sync_read if is_dynamixel else line.codec.sync_read)(r.address, r.size, line.ids)
    n, size = len(line.ids), r.size
    wanted = (line.codec.fast_sync_read_bytes if is_dynamixel else line.codec.sync_read_bytes)(n, size)[1]

    def cycle() -> bool:
        left = {port.fileno(): wanted for port in ports}
        for port in ports:
            os.write(port.fileno(), ask)
        until = time.monotonic() + 0.05
        while left and time.monotonic() < until:
            for fd in select.select(list(left), [], [], 0.05)[0]:
                left[fd] -= len(os.read(fd, 4096))
                if left[fd] <= 0:
                    del left[fd]
        return not left

    found = measure(cycle, seconds)
    for port in ports:
        port.close()
    return found


def feetech_sdk(emulators: Emulators, seconds: float) -> dict[str, float]:
    import scservo_sdk as scs

    port = scs.PortHandler(emulators.ports["b0"])
    port.openPort()
    port.setBaudRate(1_000_000)
    sdk = scs.PacketHandler(0)
    writer, reader = scs.GroupSyncWrite(port, sdk, 42, 2), scs.GroupSyncRead(port, sdk, 56, 2)
    for i in range(1, 7):
        writer.addParam(i, [0, 8])
        reader.addParam(i)

    def cycle() -> bool:
        writer.txPacket()
        return reader.txRxPacket() == scs.COMM_SUCCESS

    found = measure(cycle, seconds)
    port.closePort()
    return found


def dynamixel_sdk(emulators: Emulators, seconds: float, in_threads: bool) -> dict[str, float]:
    import dynamixel_sdk as dxl

    sdk = dxl.PacketHandler(2.0)
    groups = []
    for bus in emulators.profile.buses:
        port = dxl.PortHandler(emulators.ports[bus.name])
        port.openPort()
        port.setBaudRate(bus.baud)
        writer, reader = dxl.GroupSyncWrite(port, sdk, 116, 4), dxl.GroupSyncRead(port, sdk, 132, 4)
        for i in range(1, 10):
            writer.addParam(i, [0, 8, 0, 0])
            reader.addParam(i)
        groups.append((port, writer, reader))

    def one(writer: object, reader: object, good: list[bool]) -> None:
        writer.txPacket()  # type: ignore[attr-defined]
        good.append(reader.txRxPacket() == dxl.COMM_SUCCESS)  # type: ignore[attr-defined]

    def cycle() -> bool:
        good: list[bool] = []
        if in_threads:
            threads = [threading.Thread(target=one, args=(w, r, good)) for _, w, r in groups]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        else:
            for _, writer, reader in groups:
                one(writer, reader, good)
        return all(good)

    found = measure(cycle, seconds)
    for port, _, _ in groups:
        port.closePort()
    return found


def run_case(folder: Path, name: str, seconds: float, adapter: str) -> dict[str, object]:
    protocol, n_buses, n, baud = CASES[name]
    with Emulators(folder, protocol, n_buses, n, baud, adapter) as emulators:
        rows, wire_us = ours(emulators, seconds)
        rows["emulator"] = raw(emulators, seconds)
        if protocol == "feetech":
            rows["vendor SDK"] = feetech_sdk(emulators, seconds)
        else:
            rows["vendor SDK"] = dynamixel_sdk(emulators, seconds, False)
            rows["vendor SDK, threads"] = dynamixel_sdk(emulators, seconds, True)
    return {"case": name, "wire_us": wire_us, "rows": rows}


CASES = {
    "6 STS3215, 1 Mbaud": ("feetech", 1, 6, 1_000_000),
    "4 x 9 Dynamixel, 1 Mbaud": ("dynamixel", 4, 9, 1_000_000),
    "4 x 9 Dynamixel, 4 Mbaud": ("dynamixel", 4, 9, 4_000_000),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="per measurement")
    parser.add_argument("--adapter", default="none", choices=("none", "cdc", "ftdi1", "ftdi16"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    results = []
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {load:.1f}, adapter {args.adapter}"
    )
    for name in CASES:
        with tempfile.TemporaryDirectory() as folder:
            case = run_case(Path(folder), name, args.seconds, args.adapter)
        results.append(case)
        wire_us = case["wire_us"]
        print(f"\n{name}: wire limit {1e6 / wire_us:.0f} Hz ({wire_us:.0f} us)")  # type: ignore[operator]
        print(f"  {'':<22}{'Hz':>7}{'p50 us':>9}{'p99 us':>9}{'CPU us':>9}{'failed':>9}")
        for who, row in case["rows"].items():  # type: ignore[attr-defined]
            print(
                f"  {who:<22}{row['hz']:>7.0f}{row['p50_us']:>9.0f}{row['p99_us']:>9.0f}{row['cpu_us']:>9.0f}"
                f"{row['failed_percent']:>8.2f}%"
            )
    if args.out:
        args.out.write_text(json.dumps({"load": load, "adapter": args.adapter, "cases": results}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
