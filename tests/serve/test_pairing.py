"""Keys, lists, the short code, and who must not get through it: strangers, guessers, somebody in between."""

import errno
import json
import os
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import zmq
from serve_kit import until

from edgevla.errors import ConfigError, UsageError, WireError
from edgevla.serve import pairing as pairing_module
from edgevla.serve.keys import KeyPair, fingerprint, is_key, keys_folder, machine_keys
from edgevla.serve.pair_cli import digits, place
from edgevla.serve.paired import keep, paired, place_of, revoke
from edgevla.serve.pairing import Claim, Offer, Pairing, Proof, look, pair
from edgevla.serve.pake import PRIME, SIZE, Exchange, proof


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEVLA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def new_keys():
    return KeyPair(*(key.decode() for key in zmq.curve_keypair()))


# -- keys and lists --------------------------------------------------------------------------------------------


def test_a_machine_has_one_key_pair_that_nobody_else_may_read():
    with ThreadPoolExecutor(8) as pool:  # eight commands at once
        made = set(pool.map(lambda _: machine_keys(), range(8)))
    assert len(made) == 1
    assert keys_folder().stat().st_mode & 0o777 == 0o700
    assert (keys_folder() / "machine.json").stat().st_mode & 0o777 == 0o600
    (keys,) = made
    assert is_key(keys.public)
    assert keys.secret not in repr(keys)
    assert len(fingerprint(keys.public)) == 24


def test_a_key_that_others_may_read_is_not_used():
    machine_keys()
    (keys_folder() / "machine.json").chmod(0o640)
    with pytest.raises(
        ConfigError, match=r"mode 0640\), so it is not used; if nobody has: chmod 600 .*machine.json"
    ):
        machine_keys()
    (keys_folder() / "machine.json").chmod(0o600)
    keys_folder().chmod(0o755)
    with pytest.raises(ConfigError, match=r"chmod 700 .*keys"):
        machine_keys()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"public": "x", "secret": "y"}', "[" * 9000, "\x00\xff"])
def test_a_damaged_key_or_list_is_one_sentence_and_stays_as_it_is(text):
    machine_keys()
    for path, read in (
        (keys_folder() / "machine.json", machine_keys),
        (place_of("robots"), lambda: paired("robots")),
        (place_of("robots"), lambda: keep("robots", "arm", new_keys().public)),
    ):
        path.touch(0o600)
        path.write_text(text)
        with pytest.raises(ConfigError, match=str(path)):
            read()
        assert path.read_text() == text
        path.unlink()
        machine_keys()


def test_without_curve_nothing_is_paired(monkeypatch):
    monkeypatch.setattr(zmq, "has", lambda name: name != "curve")
    with pytest.raises(ConfigError, match="built without CURVE"):
        machine_keys()


def test_a_name_is_given_once_and_a_host_has_one_server():
    first, second, third = (new_keys().public for _ in range(3))
    assert keep("robots", "pi", first).name == "pi"
    assert keep("robots", "pi", second).name == "pi-2"
    assert keep("robots", "other", first).name == "other"
    assert keep("robots", "pi", second).name == "pi"
    assert keep("robots", "pi", first).name == "pi-2"
    assert keep("servers", "pi", third, "gpu.lab").name == "pi-3"
    assert keep("servers", "x", third, "10.0.0.1").hosts == ("gpu.lab", "10.0.0.1")
    assert keep("servers", "new", second, "gpu.lab").name == "new"
    assert [(one.name, one.hosts) for one in paired("servers")] == [
        ("x", ("10.0.0.1",)),
        ("new", ("gpu.lab",)),
    ]
    keep("servers", "newer", first, "10.0.0.1")
    assert [one.name for one in paired("servers")] == ["new", "newer"]
    assert revoke("pi-2") == ["robots"]
    assert [one.name for one in paired("robots")] == ["pi"]
    with pytest.raises(UsageError, match=r"called 'newe'; .*; did you mean"):
        revoke("newe")


def test_a_full_disk_changes_nothing(monkeypatch):
    keep("robots", "pi", new_keys().public)
    before = place_of("robots").read_text()

    def full(fd):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="No space left on device; nothing was changed"):
        keep("robots", "other", new_keys().public)
    assert place_of("robots").read_text() == before
    assert sorted(path.name for path in keys_folder().iterdir()) == ["lock", "robots.json"]


# -- agreeing on a key -----------------------------------------------------------------------------------------


def test_the_group_is_that_of_a_safe_prime():
    assert PRIME.bit_length() == 3072 == 8 * SIZE
    for number in (PRIME, (PRIME - 1) // 2):  # Fermat's test: a typing error is no prime
        assert pow(3, number - 1, number) == 1


def test_the_same_code_gives_the_same_key_and_another_code_another():
    nonce, seen = bytes(16), [b"both", b"saw"]
    here, there = Exchange("123456", nonce), Exchange("123456", nonce)
    key = here.key(there.share, seen)
    assert there.key(here.share, seen) == key
    assert there.key(here.share, [b"bot", b"hsaw"]) != key
    other = Exchange("123457", nonce)
    assert other.key(here.share, seen) not in (key, here.key(other.share, seen))
    assert proof(key, "robot") != proof(key, "server")
    assert Exchange("123456", nonce).share != here.share


@pytest.mark.parametrize("number", [0, 1, PRIME - 1, PRIME, 2**3072 - 1])
def test_what_is_no_element_of_the_group_is_refused(number):
    with pytest.raises(WireError, match="no element of the group"):
        Exchange("123456", bytes(16)).key(number.to_bytes(SIZE, "big"), [])


# -- pairing ---------------------------------------------------------------------------------------------------


class Desk:
    """`edgevla serve --pair` in a thread. outcome: the robot, or the error."""

    def __init__(self, **options):
        self.said = []
        self.pairing = Pairing("127.0.0.1", 0, machine_keys(), self.said.append, **options)
        self.port, self.code = self.pairing.port, self.pairing.code
        self.outcome = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            self.outcome = self.pairing.run()
        except ConfigError as error:
            self.outcome = error

    def end(self):
        self._thread.join(timeout=20)
        assert not self._thread.is_alive()
        return self.outcome

    def close(self):
        self.pairing._until = 0.0
        self._thread.join(timeout=20)
        self.pairing.close()


@pytest.fixture
def desk():
    made = []

    def make(**options):
        made.append(Desk(**options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def with_code(port, code, keys=None, name="kitchen"):
    return pair("127.0.0.1", port, code, name, keys or new_keys(), "127.0.0.1")


def wrong(code):
    return f"{(int(code) + 1) % 10**6:06d}"


def test_both_keep_the_key_of_the_other(desk):
    at, robot = desk(), new_keys()
    assert look("127.0.0.1", at.port) == pairing_module.own_name()
    made = with_code(at.port, at.code, robot)
    assert made.key == machine_keys().public
    assert at.end().key == robot.public
    assert [(one.name, one.key) for one in paired("robots")] == [("kitchen", robot.public)]
    assert [one.hosts for one in paired("servers")] == [("127.0.0.1",)]
    assert at.said == []


def test_a_robot_that_gets_another_name_than_it_says_is_told_of(desk):
    """Who revokes the name on the robot's screen must not throw the other one out."""
    keep("robots", "kitchen", new_keys().public)
    at = desk()
    with_code(at.port, at.code)
    assert at.end().name == "kitchen-2"
    assert at.said == ["! another machine is called 'kitchen' here already; this robot is 'kitchen-2'"]


def test_a_wrong_code_is_told_and_the_third_ends_it(desk):
    at = desk()
    for left in ("2 tries left", "1 try left", "void now"):
        with pytest.raises(WireError, match=left):
            with_code(at.port, wrong(at.code))
    assert "too many wrong codes, the last from 127.0.0.1: nobody was paired" in str(at.end())
    assert paired("robots") == paired("servers") == ()
    assert len(at.said) == 2


def begun(port):
    """A robot that has the offer already."""
    connection = socket.create_connection(("127.0.0.1", port))
    line = pairing_module._Line(connection, 30)
    return connection, line, line.hear(Offer)


def claim(line, offer, code, keys, name="late"):
    exchange = Exchange(code, bytes.fromhex(offer.nonce))
    seen = pairing_module._transcript(offer, name, keys.public, exchange.share.hex())
    key = exchange.key(bytes.fromhex(offer.share), seen)
    line.send(Claim(name, keys.public, exchange.share.hex(), proof(key, "robot").hex()))
    return line.hear(Proof)


def test_a_code_is_used_once_even_by_two_that_began_together(desk):
    at = desk()
    robots = [begun(at.port) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda one: claim(one[1], one[2], at.code, new_keys()), robots))
    for connection, _, _ in robots:
        connection.close()
    assert sorted(bool(answer.proof) for answer in answers) == [False, False, False, True]
    assert {answer.refused for answer in answers} == {
        "",
        "the code was used already; a new one: edgevla serve --pair",
    }
    at.end()
    assert len(paired("robots")) == 1
    at.pairing.close()
    with pytest.raises(WireError, match="nobody pairs at"):
        with_code(at.port, at.code)


def test_a_code_is_void_after_its_time_whatever_was_begun_and_whatever_the_wall_clock_says(desk, monkeypatch):
    at = desk(valid_s=30)
    connection, line, offer = begun(at.port)
    monkeypatch.setattr(time, "time", lambda: 0.0)
    assert at.outcome is None
    at.pairing._until = time.monotonic()
    assert "the code is void" in claim(line, offer, at.code, new_keys()).refused
    connection.close()
    assert "nobody was paired in time" in str(at.end())
    assert paired("robots") == ()


def test_strangers_that_wait_or_talk_nonsense_cost_no_try_and_stop_nobody(desk):
    at = desk()
    silent = [socket.create_connection(("127.0.0.1", at.port)) for _ in range(20)]
    for rubbish in (
        b"\xff" * 64,
        b"[" * 4000 + b"\n",
        b'{"name": 1}\n',
        b"x" * 9000,
        b"\n",
        b'{"kept": true}\n',
    ):
        with socket.create_connection(("127.0.0.1", at.port)) as one:
            one.sendall(rubbish)
    try:
        with_code(at.port, at.code)
    finally:
        for one in silent:
            one.close()
    assert at.end().name == "kitchen"
    assert at.said == []


@pytest.mark.parametrize(
    "change",
    [
        {"proof": "\ud800"},
        {"proof": ""},
        {"share": "00"},
        {"share": "x"},
        {"key": "short"},
        {"name": "\x1b[2J"},
    ],
)
def test_a_claim_that_cannot_be_is_a_wrong_code(desk, change):
    at = desk(tries=1)
    connection, line, offer = begun(at.port)
    words = {"name": "a", "key": new_keys().public, "share": offer.share, "proof": "00" * 32, **change}
    connection.sendall(json.dumps(words).encode() + b"\n")
    assert "void now" in line.hear(Proof).refused
    connection.close()
    assert "too many wrong codes" in str(at.end())


def test_a_robot_that_breaks_off_after_it_was_taken_is_told_of(desk):
    at = desk()
    connection, line, offer = begun(at.port)
    assert claim(line, offer, at.code, new_keys()).proof
    connection.close()
    assert at.end().name == "late"
    assert at.said == [
        "! 'late' did not say that it kept this server's key; if it does not connect, pair it again"
    ]


class Between:
    """Somebody on the line who passes messages on, changed; one connection each way."""

    def __init__(self, port, to_robot, to_server):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, args=(port, to_robot, to_server), daemon=True)
        self._thread.start()

    def _run(self, port, to_robot, to_server):
        robot, _ = self._listener.accept()
        with robot, socket.create_connection(("127.0.0.1", port)) as server:
            ends = [(server.makefile("r"), robot, to_robot), (robot.makefile("r"), server, to_server)] * 2
            for source, sink, change in ends:
                line = source.readline()
                if line:
                    sink.sendall(json.dumps(change(json.loads(line))).encode() + b"\n")
            for source, _, _ in ends[:2]:
                source.close()

    def close(self):
        self._thread.join(timeout=10)
        self._listener.close()


@pytest.mark.parametrize("which", ["robot", "server", "share"])
def test_who_stands_between_and_does_not_know_the_code_cannot_put_in_a_key_of_his(desk, which):
    at, own = desk(), new_keys().public
    changed = {"share": Exchange("000000", bytes(16)).share.hex()} if which == "share" else {"key": own}

    def change(message, side):
        wanted = "nonce" if side == "robot" else "proof"
        return {**message, **changed} if wanted in message and "share" in message else message

    middle = Between(
        at.port,
        to_robot=lambda m: change(m, "robot") if which != "robot" else m,
        to_server=lambda m: change(m, "server") if which == "robot" else m,
    )
    try:
        with pytest.raises(
            WireError, match="somebody between here and there changes what is sent; 2 tries left"
        ):
            with_code(middle.port, at.code)
    finally:
        middle.close()
    assert paired("robots") == paired("servers") == ()


def test_who_only_passes_on_learns_nothing_and_changes_nothing(desk):
    at = desk()
    middle = Between(at.port, lambda m: m, lambda m: m)
    try:
        made = with_code(middle.port, at.code)
    finally:
        middle.close()
    assert made.key == machine_keys().public
    assert at.end().name == "kitchen"


def test_who_pretends_to_be_the_server_has_one_guess_per_typed_code():
    listener = socket.create_server(("127.0.0.1", 0))
    false = new_keys()

    def pretend():
        connection, _ = listener.accept()
        with connection:
            line = pairing_module._Line(connection, 20)
            exchange = Exchange("000000", bytes(16))  # his guess
            offer = Offer(1, "gpu", false.public, bytes(16).hex(), exchange.share.hex())
            line.send(offer)
            said = line.hear(Claim)
            seen = pairing_module._transcript(offer, said.name, said.key, said.share)
            key = exchange.key(bytes.fromhex(said.share), seen)
            assert proof(key, "robot").hex() != said.proof
            line.send(Proof(proof(key, "server").hex()))

    thread = threading.Thread(target=pretend, daemon=True)
    thread.start()
    with pytest.raises(WireError, match="does not know the code: it is not the server whose screen you read"):
        with_code(listener.getsockname()[1], "123456")
    thread.join(timeout=10)
    listener.close()
    assert paired("servers") == ()


def test_a_server_that_cannot_write_says_so_and_the_robot_keeps_nothing(desk, monkeypatch):
    at = desk()
    place_of("robots").touch(0o600)
    with pytest.raises(WireError, match="could not write the key down; its screen says why"):
        with_code(at.port, at.code)
    assert "robots.json is damaged (it is empty)" in str(at.end())
    assert paired("servers") == ()


# -- as typed --------------------------------------------------------------------------------------------------


def test_hosts_and_codes_are_read_as_people_write_them():
    assert place("gpu.lab") == ("gpu.lab", 5598)
    assert place("10.0.0.1:77") == ("10.0.0.1", 77)
    assert place("[fd00::2]:77") == ("fd00::2", 77)
    assert place("fd00::2") == ("fd00::2", 5598)
    for text in ("tcp://gpu.lab:5599/act", "", "a b", "gpu:0", "gpu:99999", "gpu:x"):
        with pytest.raises(UsageError, match="expected HOST or HOST:PORT"):
            place(text)
    assert digits(" 123 456\n") == digits("123-456") == "123456"
    for text in ("12345", "1234567", "abcdef", "١٢٣٤٥٦"):
        with pytest.raises(UsageError, match="the code has 6 digits"):
            digits(text)


def test_what_does_not_pair_is_said_before_a_code_is_asked_for():
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        thread = threading.Thread(target=lambda: other.accept()[0].close(), daemon=True)
        thread.start()
        with pytest.raises(
            WireError, match=rf"what answers at 127.0.0.1:{port} does not pair; on the server"
        ):
            look("127.0.0.1", port)
        thread.join(timeout=5)
    with pytest.raises(WireError, match=r"nobody pairs at .*Connection refused"):
        look("127.0.0.1", port)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="in use"):
        Pairing("127.0.0.1", taken.getsockname()[1], machine_keys(), print)


def test_a_robot_hears_when_its_wait_is_over(desk):
    at = desk(valid_s=0.2)
    until(lambda: at.outcome is not None)
    assert "the code is void; again: edgevla serve --pair" in str(at.outcome)
