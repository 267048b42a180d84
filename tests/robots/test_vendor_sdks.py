"""The vendors' own programs as judges: their clients drive our servos, their bytes are our bytes."""

from __future__ import annotations

import time

import dynamixel_sdk as dxl
import pytest
import scservo_sdk as scs

from edgevla.robots.bus import dynamixel, feetech
from edgevla.robots.calibration import nominal
from edgevla.robots.profile import load_profile

pytestmark = pytest.mark.realtime

PATIENCE_MS = 400.0
"""The SDKs give up after about 34 ms, which a busy machine takes now and then without any fault."""


class Recorder:
    """Stands where the SDK expects its port: keeps what it would send, answers nothing."""

    is_using = False

    def __init__(self) -> None:
        self.sent = b""

    def clearPort(self) -> None: ...

    def setPacketTimeout(self, *_: object) -> None: ...

    def setPacketTimeoutMillis(self, *_: object) -> None: ...

    def isPacketTimeout(self) -> bool:
        return True

    def writePort(self, packet) -> int:
        self.sent += bytes(packet)
        return len(packet)

    def readPort(self, _: int) -> bytes:
        return b""

    def getBaudRate(self) -> int:
        return 1_000_000


def patient(port):
    port.setPacketTimeout = lambda _: port.setPacketTimeoutMillis(PATIENCE_MS)
    return port


@pytest.fixture
def feetech_port(start_emulator):
    port = patient(scs.PortHandler(start_emulator("so101", "--untimed").ports["arm"]))
    assert port.openPort()
    assert port.setBaudRate(1_000_000)
    yield port
    port.closePort()


@pytest.fixture
def dynamixel_port(start_emulator):
    port = patient(dxl.PortHandler(start_emulator("widowx250s", "--untimed").ports["arm"]))
    assert port.openPort()
    assert port.setBaudRate(1_000_000)
    yield port
    port.closePort()


# ---- Feetech ----


def test_feetech_sdk_finds_reads_and_writes_our_servos(feetech_port):
    sdk = scs.PacketHandler(0)
    for servo_id in range(1, 7):
        model, result, error = sdk.ping(feetech_port, servo_id)
        assert (model, result, error) == (777, scs.COMM_SUCCESS, 0)
    assert sdk.ping(feetech_port, 9)[1] == scs.COMM_RX_TIMEOUT
    held = nominal(load_profile("so101")).motors
    assert sdk.read2ByteTxRx(feetech_port, 6, 9)[0] == held["gripper"].range_min
    raw = sdk.read2ByteTxRx(feetech_port, 1, 31)[0]
    assert scs.SCS_TOHOST(raw, 11) == held["shoulder_pan"].homing_offset
    before = sdk.read2ByteTxRx(feetech_port, 1, 56)[0]
    assert sdk.write1ByteTxRx(feetech_port, 1, 55, 0)[0] == scs.COMM_SUCCESS
    assert (
        sdk.write2ByteTxRx(feetech_port, 1, 31, scs.SCS_TOSCS(held["shoulder_pan"].homing_offset + 50, 11))[0]
        == 0
    )
    assert sdk.read2ByteTxRx(feetech_port, 1, 56)[0] == before - 50  # present = actual - offset


def test_feetech_sdk_moves_the_arm_by_sync_write_and_reads_it_by_sync_read(feetech_port):
    sdk = scs.PacketHandler(0)
    writer = scs.GroupSyncWrite(feetech_port, sdk, 42, 2)
    for servo_id in range(1, 7):
        assert sdk.write1ByteTxRx(feetech_port, servo_id, 40, 1)[0] == scs.COMM_SUCCESS
        assert writer.addParam(servo_id, [(2100 + 20 * servo_id) & 0xFF, (2100 + 20 * servo_id) >> 8])
    assert writer.txPacket() == scs.COMM_SUCCESS
    reader = scs.GroupSyncRead(feetech_port, sdk, 56, 2)
    assert all(reader.addParam(i) for i in range(1, 7))
    until = time.monotonic() + 15
    while time.monotonic() < until:
        assert reader.txRxPacket() == scs.COMM_SUCCESS
        at = [reader.getData(i, 56, 2) for i in range(1, 7)]
        if at == [2100 + 20 * i for i in range(1, 7)]:
            return
    pytest.fail(f"the arm did not arrive: {at}")


def test_feetech_registered_writes_wait_for_action(feetech_port):
    sdk = scs.PacketHandler(0)
    assert sdk.regWriteTxRx(feetech_port, 2, 41, 1, [77])[0] == scs.COMM_SUCCESS
    assert sdk.read1ByteTxRx(feetech_port, 2, 41)[0] == 0
    assert sdk.read1ByteTxRx(feetech_port, 2, 64)[0] == 1
    sdk.action(feetech_port, scs.BROADCAST_ID)
    assert sdk.read1ByteTxRx(feetech_port, 2, 41)[0] == 77


def test_our_feetech_bytes_are_the_sdk_s():
    sdk = scs.PacketHandler(0)
    for frame, call in (
        (feetech.ping(3), lambda p: sdk.txPacket(p, [0, 0, 3, 2, 1, 0])),
        (feetech.read(4, 56, 15), lambda p: sdk.readTx(p, 4, 56, 15)),
        (feetech.write(5, 42, b"\x10\x08"), lambda p: sdk.writeTxOnly(p, 5, 42, 2, [0x10, 8])),
        (feetech.reg_write(5, 42, b"\x10\x08"), lambda p: sdk.regWriteTxOnly(p, 5, 42, 2, [0x10, 8])),
        (feetech.action(), lambda p: sdk.action(p, 254)),
        (feetech.sync_read(56, 8, (1, 4, 6)), lambda p: sdk.syncReadTx(p, 56, 8, [1, 4, 6], 3)),
        (
            feetech.sync_write(42, 2, {1: b"\x01\x02", 6: b"\xff\xff"}),
            lambda p: sdk.syncWriteTxOnly(p, 42, 2, [1, 1, 2, 6, 0xFF, 0xFF], 6),
        ),
    ):
        port = Recorder()
        call(port)
        assert port.sent == frame


# ---- Dynamixel ----


def test_dynamixel_sdk_finds_reads_and_writes_our_servos(dynamixel_port):
    sdk = dxl.PacketHandler(2.0)
    found, result = sdk.broadcastPing(dynamixel_port)
    assert result == dxl.COMM_SUCCESS
    assert sorted(found) == list(range(1, 10))
    assert found[1] == [1020, 46]
    assert found[9][0] == 1060
    assert sdk.ping(dynamixel_port, 20)[1] == dxl.COMM_RX_TIMEOUT
    before = sdk.read4ByteTxRx(dynamixel_port, 1, 132)[0]
    assert sdk.write4ByteTxRx(dynamixel_port, 1, 20, 0xFFFFFFFF - 99) == (dxl.COMM_SUCCESS, 0)
    assert sdk.read4ByteTxRx(dynamixel_port, 1, 132)[0] == before - 100  # present = actual + offset


def test_dynamixel_sdk_hears_access_and_limit_errors(dynamixel_port):
    sdk = dxl.PacketHandler(2.0)
    assert sdk.write1ByteTxRx(dynamixel_port, 1, 11, 3) == (dxl.COMM_SUCCESS, 0)
    assert sdk.write1ByteTxRx(dynamixel_port, 1, 64, 1) == (dxl.COMM_SUCCESS, 0)
    assert sdk.write1ByteTxRx(dynamixel_port, 1, 11, 4) == (dxl.COMM_SUCCESS, dynamixel.ACCESS)
    assert sdk.write4ByteTxRx(dynamixel_port, 1, 116, 5000) == (dxl.COMM_SUCCESS, dynamixel.DATA_LIMIT)
    assert sdk.write2ByteTxRx(dynamixel_port, 1, 132, 5) == (dxl.COMM_SUCCESS, dynamixel.ACCESS)
    assert sdk.write1ByteTxRx(dynamixel_port, 1, 98, 200)[1] == dynamixel.DATA_LIMIT


def test_dynamixel_sdk_sync_bulk_and_fast_reads_agree(dynamixel_port):
    sdk = dxl.PacketHandler(2.0)
    plain = dxl.GroupSyncRead(dynamixel_port, sdk, 132, 4)
    bulk = dxl.GroupBulkRead(dynamixel_port, sdk)
    for servo_id in range(1, 10):
        assert plain.addParam(servo_id)
        assert bulk.addParam(servo_id, 132, 4)
    assert plain.txRxPacket() == dxl.COMM_SUCCESS
    wanted = [plain.getData(i, 132, 4) for i in range(1, 10)]
    assert bulk.txRxPacket() == dxl.COMM_SUCCESS
    assert [bulk.getData(i, 132, 4) for i in range(1, 10)] == wanted
    assert plain.fastSyncRead() == dxl.COMM_SUCCESS
    assert [plain.getData(i, 132, 4) for i in range(1, 10)] == wanted
    assert wanted[0] == 2048


def test_dynamixel_sdk_moves_a_servo_by_sync_and_bulk_write(dynamixel_port):
    sdk = dxl.PacketHandler(2.0)
    for servo_id in (1, 6):
        assert sdk.write1ByteTxRx(dynamixel_port, servo_id, 11, 4)[1] == 0
        assert sdk.write1ByteTxRx(dynamixel_port, servo_id, 64, 1)[1] == 0
    writer = dxl.GroupSyncWrite(dynamixel_port, sdk, 116, 4)
    assert writer.addParam(1, list((2300).to_bytes(4, "little")))
    assert writer.txPacket() == dxl.COMM_SUCCESS
    many = dxl.GroupBulkWrite(dynamixel_port, sdk)
    assert many.addParam(6, 116, 4, list((-100).to_bytes(4, "little", signed=True)))
    assert many.txPacket() == dxl.COMM_SUCCESS
    until = time.monotonic() + 15
    while time.monotonic() < until:
        at = [sdk.read4ByteTxRx(dynamixel_port, i, 132)[0] for i in (1, 6)]
        if at == [2300, 2**32 - 100]:
            return
    pytest.fail(f"the servos did not arrive: {at}")


def test_dynamixel_registered_write_stuffing_indirection_and_reboot(dynamixel_port):
    sdk = dxl.PacketHandler(2.0)
    assert sdk.regWriteTxRx(dynamixel_port, 2, 65, 1, [1])[0] == dxl.COMM_SUCCESS
    assert sdk.read1ByteTxRx(dynamixel_port, 2, 65)[0] == 0
    sdk.action(dynamixel_port, dxl.BROADCAST_ID)
    assert sdk.read1ByteTxRx(dynamixel_port, 2, 65)[0] == 1
    assert sdk.writeTxRx(dynamixel_port, 2, 84, 4, [0xFF, 0xFF, 0xFD, 0x00]) == (dxl.COMM_SUCCESS, 0)
    assert sdk.readTxRx(dynamixel_port, 2, 84, 4)[0] == [0xFF, 0xFF, 0xFD, 0x00]
    for k in range(4):
        assert sdk.write2ByteTxRx(dynamixel_port, 2, 168 + 2 * k, 132 + k)[1] == 0
    assert sdk.read4ByteTxRx(dynamixel_port, 2, 224)[0] == sdk.read4ByteTxRx(dynamixel_port, 2, 132)[0]
    assert sdk.write1ByteTxRx(dynamixel_port, 2, 64, 1)[1] == 0
    assert sdk.reboot(dynamixel_port, 2)[0] == dxl.COMM_SUCCESS
    assert sdk.read1ByteTxRx(dynamixel_port, 1, 64)[0] == 0
    until = time.monotonic() + 15
    while time.monotonic() < until:
        value, result, _ = sdk.read1ByteTxRx(dynamixel_port, 2, 64)
        if result == dxl.COMM_SUCCESS:
            assert value == 0
            return
    pytest.fail("the servo did not come back from its reboot")


def test_our_dynamixel_bytes_are_the_sdk_s():
    sdk = dxl.PacketHandler(2.0)
    for frame, call in (
        (dynamixel.read(4, 132, 10), lambda p: sdk.readTx(p, 4, 132, 10)),
        (dynamixel.write(5, 116, b"abcd"), lambda p: sdk.writeTxOnly(p, 5, 116, 4, list(b"abcd"))),
        (dynamixel.reg_write(5, 116, b"abcd"), lambda p: sdk.regWriteTxOnly(p, 5, 116, 4, list(b"abcd"))),
        (dynamixel.action(), lambda p: sdk.action(p, 254)),
        (dynamixel.sync_read(132, 4, (1, 7)), lambda p: sdk.syncReadTx(p, 132, 4, [1, 7], 2, False)),
        (dynamixel.fast_sync_read(132, 4, (1, 7)), lambda p: sdk.syncReadTx(p, 132, 4, [1, 7], 2, True)),
        (
            dynamixel.bulk_read([(1, 132, 4), (2, 126, 10)]),
            lambda p: sdk.bulkReadTx(p, [1, 132, 0, 4, 0, 2, 126, 0, 10, 0], 10, False),
        ),
        (
            dynamixel.sync_write(116, 4, {1: b"abcd", 9: b"\xff\xff\xff\xff"}),
            lambda p: sdk.syncWriteTxOnly(p, 116, 4, [1, *b"abcd", 9, 255, 255, 255, 255], 10),
        ),
        (
            dynamixel.bulk_write([(1, 116, b"abcd"), (2, 64, b"\x01")]),
            lambda p: sdk.bulkWriteTxOnly(p, [1, 116, 0, 4, 0, *b"abcd", 2, 64, 0, 1, 0, 1], 15),
        ),
    ):
        port = Recorder()
        call(port)
        assert port.sent == frame


def test_the_sdks_check_our_checksums():
    """Their checksum routines over our frames give our checksums."""
    sdk = dxl.PacketHandler(2.0)
    for frame in (dynamixel.status(1, 0, bytes(range(40))), dynamixel.write(9, 116, b"\xff" * 4)):
        assert sdk.updateCRC(0, list(frame[:-2]), len(frame) - 2) == int.from_bytes(frame[-2:], "little")


def test_stuffing_is_the_sdk_s():
    """Asked directly: the SDK's own `txPacket` (4.1.0) drops the list that its `addStuffing` returns."""
    sdk = dxl.PacketHandler(2.0)
    for data in (b"\xff\xff\xfd\x00", b"\xff\xff\xfd\xfd", b"\xff\xff\xff\xfd", b"\xff\xff\xfd\xff\xff\xfd"):
        body = bytes((3, 116, 0)) + data
        plain = [255, 255, 253, 0, 5, len(body) + 2, 0, *body, 0, 0]
        stuffed = sdk.addStuffing(list(plain))
        assert dynamixel.write(5, 116, data)[:-2] == bytes(stuffed[: len(stuffed) - 2])
