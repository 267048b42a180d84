"""Paired robots alone, at an address that others reach: who gets in, who does not, who is thrown out, what is said."""

import socket
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import zmq
from serve_kit import HOST, Serving, noisy, observation, until
from stranger_kit import PIXELS, hostile, request_for, sound_request

from edgevla.bundle import load_bundle
from edgevla.errors import ConfigError, UsageError, WireError
from edgevla.messages import Ack
from edgevla.nodes.vitals import rss_bytes
from edgevla.runner import BundlePolicy
from edgevla.serve import gate as gate_module
from edgevla.serve.authority import Authority, introduced
from edgevla.serve.gate import Allowances
from edgevla.serve.keys import KeyPair, machine_keys
from edgevla.serve.paired import keep, place_of, revoke
from edgevla.serve.transport import Address, address, as_robot, as_server


def new_keys():
    return KeyPair(*(key.decode() for key in zmq.curve_keypair()))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEVLA_HOME", str(tmp_path / "home"))


@pytest.fixture
def paired_with(make_bundle, serving):
    """`paired_with(*names) -> server, keys by name`: a server, and robots on its list."""

    def make(*names, **options):
        keys = {name: new_keys() for name in names}
        for name, one in keys.items():
            keep("robots", name, one.public)
        return serving(make_bundle("act"), host=HOST, is_paired=True, **options), keys

    return make


def to(server, keys, key=None):
    return Address(server.endpoint, "", key or machine_keys().public, keys)


def test_a_paired_robot_gets_the_chunk_of_the_bundle_to_the_bit(make_bundle, paired_with, arm):
    server, keys = paired_with("kitchen")
    here = BundlePolicy(load_bundle(server.policies[0].bundle.folder))
    remote = arm(to(server, keys["kitchen"]))
    for number in range(3):
        seen = noisy(number)
        there = remote.ask(seen, number)
        np.testing.assert_array_equal(there.actions, here.infer(seen, chunk_seq=number).actions)
    metrics = server.server.metrics
    until(lambda: metrics.value("robot_requests_total", robot="kitchen", outcome="answered") == 3)
    joined = next(fields for kind, fields in server.lines if kind == "join")
    assert joined["paired"] == "kitchen"


def test_who_is_not_paired_is_refused_at_once_and_counted(paired_with, arm):
    server, _ = paired_with("kitchen")
    with pytest.raises(
        WireError, match=rf"does not take this robot: it is not paired there.*edgevla pair {HOST} here"
    ):
        arm(to(server, new_keys()), patience_s=60)
    with pytest.raises(
        WireError, match=r"no policy server answers at .* its key is another one than at pairing"
    ):
        arm(to(server, new_keys(), new_keys().public), patience_s=0.5)
    failed = server.server.door.gate.failed
    until(lambda: failed["not_paired"] >= 1 and failed["protocol"] >= 1)
    until(lambda: server.server.metrics.value("handshakes_failed_total", reason="not_paired") >= 1)
    said = until(lambda: [fields["words"] for kind, fields in server.lines if kind == "pairing"])
    assert "a robot that is not paired was refused (fingerprint " in said[0]


def test_who_has_no_key_and_who_has_one_too_many_are_told(paired_with, serving, arm):
    server, keys = paired_with("kitchen")
    near = Serving(server.policies[0].bundle.folder, is_paired=True)
    try:
        with pytest.raises(
            WireError, match="takes paired robots only; to pair this one: edgevla serve --pair there"
        ):
            arm(near.endpoint, patience_s=60)
    finally:
        near.kill()
    plain = serving(server.policies[0].bundle.folder)
    with pytest.raises(WireError, match="talks without keys, but this robot was paired with it"):
        arm(to(plain, keys["kitchen"]), patience_s=60)


def test_without_a_paired_robot_nobody_listens_and_without_a_key_nobody_asks():
    with pytest.raises(ConfigError, match=r"no robot is paired with this server.*edgevla serve --pair"):
        Authority()
    far = address("tcp://gpu.lab:5599/act", "--policy")
    with pytest.raises(UsageError, match=r"at gpu\.lab; pair them first: .* edgevla pair gpu\.lab here"):
        introduced([far], "--policy")
    ctx = zmq.Context()
    try:
        with ctx.socket(zmq.ROUTER) as made, pytest.raises(UsageError, match="nothing is said without keys"):
            as_server(made, "tcp://0.0.0.0:5599", 1000)
        with ctx.socket(zmq.DEALER) as made, pytest.raises(UsageError, match="nothing is said without keys"):
            as_robot(made, far)
    finally:
        ctx.destroy(linger=0)


def test_a_robot_finds_the_key_of_a_host_as_it_was_typed():
    key = new_keys().public
    keep("servers", "gpu", key, "gpu.lab")
    keep("servers", "gpu", key, "fd00::2")
    near, far, six = introduced(
        [address(text, "") for text in ("tcp://127.0.0.1:1", "tcp://GPU.lab:1/x", "tcp://[FD00:0::2]:9")], ""
    )
    assert (near.key, near.own) == ("", None)
    assert far.key == six.key == key
    assert far.own == machine_keys()
    assert machine_keys().secret not in repr(far)
    keep("servers", "here", key, "127.0.0.1")
    assert introduced([near], "")[0].key == key
    with pytest.raises(
        UsageError, match=r"this robot knows servers at gpu\.lab, fd00::2, 127\.0\.0\.1; pair"
    ):
        introduced([address("tcp://gpu.lan:1", "")], "")


def test_a_robot_that_is_revoked_is_thrown_out_while_another_goes_on(paired_with, arm):
    server, keys = paired_with("kitchen", "lab")
    out, stays = arm(to(server, keys["kitchen"])), arm(to(server, keys["lab"]), session=b"another.")
    out.ask(), stays.ask()
    line = stays.policy._line
    revoke("kitchen")
    until(lambda: ("revoked", {"name": "kitchen"}) in server.lines)
    until(lambda: out.policy._line.is_lost)
    with pytest.raises(WireError, match="does not take this robot: it is not paired there, or not any more"):
        out.ask(number=1)
    stays.ask(number=1)
    assert stays.policy._line is line
    assert not line.is_lost
    keep("robots", "kitchen", keys["kitchen"].public)
    until(lambda: any("'kitchen' is paired now" in str(fields) for _, fields in server.lines))
    out.ask(number=2)


def test_a_list_that_is_damaged_while_it_runs_changes_nothing_and_is_said(paired_with, arm):
    server, keys = paired_with("kitchen")
    remote = arm(to(server, keys["kitchen"]))
    for text in ("", '{"paired": [{"na', "null"):
        place_of("robots").write_text(text)
        until(
            lambda: any(
                "until then, the robots of before are served" in str(said) for _, said in server.lines
            )
        )
        server.lines.clear()
        remote.ask()
    place_of("robots").unlink()
    until(lambda: ("revoked", {"name": "kitchen"}) in server.lines)


def test_a_session_belongs_to_its_key(paired_with, arm, stranger):
    """Two robots that say the same session are two robots."""
    server, keys = paired_with("kitchen", "thief")
    remote = arm(to(server, keys["kitchen"]), session=b"the same")
    remote.ask()
    thief = stranger(server.endpoint, b"the same", to(server, keys["thief"]))
    thief.tell(request_for(server), [PIXELS])
    assert thief.hear().refused.code == "not_joined"
    assert thief.join(server).is_accepted
    assert len(server.server._robots) == 2
    remote.ask(number=1)


def test_one_key_has_so_many_connections_and_deployments_and_no_more(paired_with, stranger):
    server, keys = paired_with("kitchen")
    guests = [
        stranger(server.endpoint, f"guest {i:2}".encode(), to(server, keys["kitchen"])) for i in range(13)
    ]
    assert [guest.join(server).is_accepted for guest in guests[:8]] == [True] * 8
    refused = guests[8].join(server)
    assert refused == Ack(0, False, "it serves 8 deployments of this machine already")
    assert server.server.door.gate.closed["too_many_of_one"] == 0, "four more may look"
    assert [guest.join(server).is_accepted for guest in guests[9:]] == [False] * 4
    assert server.server.door.gate.closed["too_many_of_one"] == 1


def test_joins_beyond_measure_are_dropped_and_another_robot_is_served(paired_with, arm, stranger):
    server, keys = paired_with("kitchen", "hasty")
    remote = arm(to(server, keys["kitchen"]))
    guest = stranger(server.endpoint, b"hasty...", to(server, keys["hasty"]))
    for _ in range(300):
        guest.join_without_waiting(server)
    for number in range(5):
        assert remote.ask(number=number).chunk_seq == number
    until(lambda: server.server.door.counters["rate"] > 100)
    assert server.server.metrics.value("joins_total", outcome="admitted") < 150


def test_strangers_that_flood_the_door_do_not_keep_a_robot_out(paired_with, arm, monkeypatch):
    monkeypatch.setattr(gate_module, "MOST_CONNECTIONS", 32)
    server, keys = paired_with("kitchen")
    port, stop, opened = server.port, threading.Event(), []

    def flood():
        while not stop.is_set():
            opened.append(socket.create_connection((HOST, port)))
            opened[-1].sendall(
                b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03" if len(opened) % 2 else b"GET / "
            )
            if len(opened) > 200:
                opened.pop(0).close()
            stop.wait(0.004)

    thread = threading.Thread(target=flood, daemon=True)
    thread.start()
    try:
        until(lambda: server.server.door.gate.closed["too_many"] > 20)
        remote = arm(to(server, keys["kitchen"]), patience_s=20)
        for number in range(10):
            remote.ask(number=number)
        assert remote.policy.counters["servers_left"] == 0
        assert len(server.server.door.gate) <= 33
    finally:
        stop.set()
        thread.join(timeout=5)
        for one in opened:
            one.close()


def test_a_paired_robot_that_sends_what_nobody_should_is_counted_and_costs_no_memory(
    paired_with, arm, stranger
):
    server, keys = paired_with("kitchen", "broken")
    remote = arm(to(server, keys["kitchen"]))
    guest = stranger(server.endpoint, b"stranger", to(server, keys["broken"]))
    guest.join(server)
    sound, rng, before = sound_request(guest, server), np.random.default_rng(1), 0
    for number in range(3000):
        guest.throw(hostile(rng, sound) if number % 10 else sound)  # and the same one again and again
        if number % 500 == 499:
            remote.ask(observation(0), number)
            before = before or rss_bytes()
        guest.dealer.poll()
    until(lambda: server.server.door.counters.total() > 1000)
    assert remote.ask(observation(0), 9999).chunk_seq == 9999
    assert rss_bytes() - before < 30e6


def test_a_part_that_is_too_large_ends_the_connection(paired_with, arm):
    server, keys = paired_with("kitchen")
    at, remote = to(server, keys["kitchen"]), arm(to(server, keys["kitchen"]))
    ctx = zmq.Context()
    with ctx.socket(zmq.DEALER) as made:
        as_robot(made, at)
        made.setsockopt(zmq.RECONNECT_IVL, -1)
        with made.get_monitor_socket(zmq.EVENT_DISCONNECTED) as monitor:
            made.connect(at.endpoint)
            made.send_multipart([b"request", bytes(10_000_000)])
            assert monitor.poll(10_000)
            made.disable_monitor()
    ctx.destroy(linger=0)
    assert remote.ask().chunk_seq == 0


def test_a_robot_that_fills_its_queue_and_hangs_up_does_not_end_the_server():
    script = Path(__file__).parent / "hang_up.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_allowances_fill_up_with_time_and_are_forgotten_in_turn():
    rates = Allowances(per_s=2, at_once=3)
    assert [rates.allows("a", 0) for _ in range(4)] == [True, True, True, False]
    assert rates.allows("b", 0)
    assert [rates.allows("a", 500_000_000) for _ in range(2)] == [True, False]
    for number in range(3000):
        rates.allows(str(number), 0)
    assert len(rates._left) == gate_module.REMEMBERED
