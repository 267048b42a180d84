"""`edgevla serve --protocol openpi`: a real server, a plain client that packs by itself, and all that is refused."""

import asyncio
import http.client
import signal
import threading
import time

import msgpack
import numpy as np
import pytest
from openpi_kit import SERVE_MAP, Process, mine, theirs
from serve_kit import SlowPolicy, until
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from edgevla.bundle import load_bundle
from edgevla.cli import main
from edgevla.errors import BundleError, ConfigError, WireError
from edgevla.extras import install_words
from edgevla.manifest import Manifest
from edgevla.runner import BundlePolicy
from edgevla.serve.hosted import Hosted
from edgevla.serve.openpi.address import WsAddress
from edgevla.serve.openpi.hosting import adaptor
from edgevla.serve.openpi.server import OpenpiServer
from edgevla.types import Observation

STATE = np.array([1, -2, 3, -4, 5, 60], np.float64)
PICTURE = np.random.default_rng(0).integers(0, 256, (3, 24, 32), np.uint8)


def request(**changes):
    """As openpi's client packs it. A change that is `...` leaves its key out."""
    made = {"state": theirs(STATE), "images": {"cam_high": theirs(PICTURE)}, "prompt": "go right", **changes}
    return msgpack.packb({key: value for key, value in made.items() if value is not ...})


def unpacked(reply):
    assert isinstance(reply, bytes), reply
    return msgpack.unpackb(reply, object_hook=mine)


def asked(line, data=None):
    line.send(request() if data is None else data)
    return line.recv(timeout=20)


def open_line(url, **options):
    return connect(url, compression=None, max_size=None, open_timeout=20, **options)


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    path = tmp_path_factory.mktemp("map") / "map.toml"
    path.write_text(SERVE_MAP)
    return path


@pytest.fixture
def flow(make_bundle):
    return make_bundle("flow")


def serve_words(bundle, keys, *more):
    words = ["-m", "edgevla", "serve", f"arm={bundle}", "--protocol=openpi", f"--keys={keys}", "--threads=1"]
    return [*words, "--bind=ws://127.0.0.1:0", *more]


def test_a_client_of_openpi_is_answered_what_the_bundle_says(flow, keys):
    local = BundlePolicy(load_bundle(flow))
    seen = Observation(
        STATE.astype(np.float32),
        {"observation.images.front": PICTURE.transpose(1, 2, 0).copy()},
        task="go right",
    )
    server = Process(serve_words(flow, keys))
    try:
        assert "no real-time chunking" in "".join(server.lines)
        assert "first come, first served" in "".join(server.lines)
        assert "taken and not looked at: images > cam_low" in "".join(server.lines)
        with open_line(server.url, additional_headers={"Authorization": "Api-Key x"}) as line:
            told = msgpack.unpackb(line.recv(timeout=20))["edgevla"]
            assert (told["name"], told["chunk_size"], told["real_time_chunking"]) == ("arm", 10, False)
            assert told["state_units"] == ["deg"] * 5 + ["percent"]
            for number in (1, 2, 3):
                low = {"cam_high": theirs(PICTURE), "cam_low": theirs(PICTURE)}
                reply = unpacked(asked(line, request(images=low)))
                wanted = local.infer(seen, chunk_seq=number).actions
                np.testing.assert_array_equal(reply["actions"], wanted)
                np.testing.assert_array_equal(reply["state"], STATE)
                assert 0 < reply["policy_timing"]["infer_ms"] <= reply["server_timing"]["infer_ms"]
            as_texts = {str(k, "ascii"): v for k, v in theirs(STATE).items()}
            np.testing.assert_array_equal(unpacked(asked(line, request(state=as_texts)))["state"], STATE)
        host, _, port = server.url.removeprefix("ws://").rpartition(":")
        page = http.client.HTTPConnection(host, int(port), timeout=20)
        page.request("GET", "/healthz")
        answer = page.getresponse()
        assert (answer.status, answer.read().strip()) == (200, b"OK")
        page.close()
        with pytest.raises(InvalidStatus), open_line(server.url, origin="http://evil.example"):
            pass
        code, said = server.end(signal.SIGTERM)
    finally:
        server.end()
    assert (code, "4 requests answered" in said) == (0, True), said


# -- in this process: what is refused, and several clients -----------------------------------------------------------


class Serving:
    """The server in a thread of its own."""

    def __init__(self, folder, keys, seconds=0.0, **options):
        self.policy = SlowPolicy(load_bundle(folder))
        hosted = Hosted(folder.name, self.policy)
        hosted.warm_up()
        self.policy.seconds = seconds
        self.policy.order.clear()
        self.server = OpenpiServer(hosted, adaptor(self.policy.manifest, keys), **options)
        self._asked, self._is_ready = [], threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._is_ready.wait(20)

    def _run(self):
        asyncio.run(self.server.run(WsAddress("127.0.0.1", 0), lambda: bool(self._asked), self._ready))

    def _ready(self, where):
        self.url = where
        self._is_ready.set()

    def ask_to_end(self):
        self._asked.append(15)

    def close(self):
        self.ask_to_end()
        self._thread.join(20)
        assert not self._thread.is_alive()


@pytest.fixture
def openpi_serving(keys):
    made = []

    def make(folder, **options):
        made.append(Serving(folder, keys, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def low(array):
    return {"cam_high": theirs(array)}


REFUSED = {
    "a wrong camera": (request(images={"cam_hihg": theirs(PICTURE)}), "did you mean 'images > cam_high'"),
    "a wrong state": (request(state=..., joints=theirs(STATE)), "unknown key 'joints'"),
    "no state": (request(state=...), "lacks the key 'state'"),
    "no picture": (request(images=...), "lacks the key 'images > cam_high'"),
    "no prompt's text": (request(prompt=7), "'prompt' is int 7; expected a text"),
    "a long prompt": (request(prompt="x" * 2000), "expected a text of at most 1000 characters"),
    "height last": (request(images=low(PICTURE.transpose(1, 2, 0))), "(24, 32, 3); this bundle takes uint8 (3, 24, 32)"),
    "a float picture": (request(images=low(PICTURE.astype(np.float32))), "float32 (3, 24, 32); this bundle takes uint8"),
    "a short state": (request(state=theirs(STATE[:5])), "'state' is float64 (5,); this bundle takes 6 numbers"),
    "truth values": (request(state=theirs(STATE > 0)), "'state' is bool (6,)"),
    "NaN": (request(state=theirs(STATE * np.nan)), "'state' holds values that are not finite"),
    "beyond float32": (request(state=theirs(STATE * 1e300)), "'state' holds values that are not finite"),
    "what openpi lacks": (request(rtc=theirs(STATE)), "unknown key 'rtc'"),
    "an object": (request(state={**theirs(STATE), b"dtype": "|O"}), "has the dtype '|O'"),
    "a huge shape": (request(state={**theirs(STATE), b"shape": [2**40]}), "has 48 bytes, not"),
    "a list": (b"\x90", "the request is []; expected a map"),
    "half of it": (request()[:100], "breaks off"),
    "a text": ("hello", "is a text frame"),
}  # fmt: skip


def test_what_does_not_fit_is_named_and_the_next_client_is_served(flow, openpi_serving):
    serving = openpi_serving(flow)
    for name, (data, words) in REFUSED.items():
        with open_line(serving.url) as line:
            line.recv(timeout=20)
            said = asked(line, data)
            assert isinstance(said, str), name
            assert words in said, (name, said)
            with pytest.raises(ConnectionClosed) as error:
                line.recv(timeout=20)
            assert error.value.rcvd.code == 1011
    with open_line(serving.url) as line:
        line.recv(timeout=20)
        assert unpacked(asked(line))["actions"].shape == (10, 6)
        line.send(bytes(40 << 20))
        with pytest.raises(ConnectionClosed) as error:
            line.recv(timeout=20)
        assert error.value.rcvd.code == 1009
    assert serving.server.metrics.value("requests_total", outcome="failed") == len(REFUSED)


def test_several_clients_are_answered_in_turn_and_pings_meanwhile(flow, openpi_serving):
    serving = openpi_serving(flow, seconds=0.5)
    with open_line(serving.url) as one, open_line(serving.url) as other:
        one.recv(timeout=20), other.recv(timeout=20)
        one.send(request())
        assert serving.policy.began.wait(20)
        other.send(request())
        began = time.monotonic()
        assert other.ping().wait(20)
        assert time.monotonic() - began < 0.4, "it infers, and answers all the same"
        assert unpacked(one.recv(timeout=20))["actions"].shape == (10, 6)
        assert unpacked(other.recv(timeout=20))["actions"].shape == (10, 6)
    assert serving.policy.order == [1, 2]
    until(lambda: serving.server.metrics.value("robots") == 0)


def test_a_request_that_takes_too_long_is_answered_with_an_error(flow, openpi_serving):
    serving = openpi_serving(flow, seconds=1.0, deadline_s=0.2)
    with open_line(serving.url) as line:
        line.recv(timeout=20)
        assert "was not answered within 0.2 s; 0 others wait as well" in asked(line)


def test_when_it_goes_down_what_runs_is_finished_and_who_asks_is_told(flow, openpi_serving):
    serving = openpi_serving(flow, seconds=0.5)
    with open_line(serving.url) as line, open_line(serving.url) as late:
        line.recv(timeout=20), late.recv(timeout=20)
        line.send(request())
        assert serving.policy.began.wait(20)
        serving.ask_to_end()
        until(lambda: serving.server._is_draining)
        assert "going down" in asked(late)
        assert unpacked(line.recv(timeout=20))["actions"].shape == (10, 6)


# -- maps ----------------------------------------------------------------------------------------------------------


def fitting(folder, tmp_path, text):
    path = tmp_path / "other.toml"
    path.write_text(text)
    return adaptor(load_bundle(folder).manifest, path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("[images.front]", "[images.frnt]", "the bundle looks through 'front'; say in \\[images.front\\]"),
        ('layout = "chw"', 'layout = "cwh"', "images.front.layout is 'cwh'"),
        ('layout = "chw"', 'layout = "chw"\nsize = 3', "has the unknown key 'size'"),
        ('prompt = "prompt"', "", "reads a task; say under which key it comes"),
        ('prompt = "prompt"', 'promt = "prompt"', "unknown key 'promt'; did you mean 'prompt'"),
        ('[state]\nkey = "state"', "[state]\nkey = []", "a key is empty"),
        ('[state]\nkey = "state"', '[state]\nkey = ["a", ""]', "a key is empty"),
        ('prompt = "prompt"', 'prompt = "state"', "the key 'state' is used twice"),
        ('prompt = "prompt"', 'prompt = "images"', "lies inside of 'images'"),
        ("[state]\n", '[state]\nunits = ["deg"]\n', "has 6 names and 1 units"),
        ("[state]\n", '[state]\nunits = "degree"\n', "unknown unit 'degree'; did you mean 'deg'"),
        ("[state]\n", '[state]\nunits = "gripper"\n', "which numbers are `closed` and `open`"),
        ('[state]\nkey = "state"\n', "", "the bundle takes a state"),
        ("unused", "[[[", "is not valid TOML"),
    ],
)
def test_a_map_that_cannot_be_is_refused_by_name(flow, tmp_path, old, new, words):
    with pytest.raises(ConfigError, match=words):
        fitting(flow, tmp_path, SERVE_MAP.replace(old, new, 1))


def test_a_joint_that_nobody_has_and_units_that_do_not_convert_are_refused(flow, tmp_path):
    names = (
        "names = ['a', 'shoulder_lift', 'elbow_flex', 'wrist_flex', 'wrist_roll', 'gripper']\nunits = 'deg'\n"
    )
    with pytest.raises(BundleError, match="lacks shoulder_pan"):
        fitting(flow, tmp_path, SERVE_MAP.replace("[state]\n", f"[state]\n{names}"))
    with pytest.raises(BundleError, match="joint 'gripper'"):
        fitting(flow, tmp_path, SERVE_MAP.replace("[state]\n", "[state]\nunits = 'rad'\n"))


def test_order_units_and_gripper_are_converted_both_ways(flow, tmp_path):
    joints = (
        "names = ['gripper', 'wrist_roll', 'wrist_flex', 'elbow_flex', 'shoulder_lift', 'shoulder_pan']\n"
    )
    units = "units = ['gripper', 'rad', 'rad', 'rad', 'rad', 'rad']\n"
    text = SERVE_MAP.replace("[state]\n", f"[state]\n{joints}{units}")
    made = fitting(flow, tmp_path, text + f"[gripper]\nclosed = 1.0\nopen = -1.0\n[actions]\n{joints}{units}")
    state = np.array([0.5, *np.radians([5, -4, 3, -2, 1])])
    observation, came = made.observation({"state": state, "images": {"cam_high": PICTURE}, "prompt": "go"})
    np.testing.assert_allclose(observation.state, [1, -2, 3, -4, 5, 25], rtol=1e-6)
    pixels = observation.images["observation.images.front"]
    np.testing.assert_array_equal(pixels, np.stack([PICTURE[0], PICTURE[1], PICTURE[2]], axis=-1))
    reply = made.reply(np.array([[1, -2, 3, -4, 5, 25]], np.float32), came, 1.0, 2.0)
    np.testing.assert_allclose(reply["actions"][0], state, rtol=1e-6)
    assert came is state


def test_openpis_own_layouts_are_known_by_the_bundle():
    class Graph:
        outputs = ()

    def manifest(cameras, n, units, size, state=None, names=None):
        from edgevla.types import Feature

        images = {
            f"observation.images.{c}": Feature(
                f"observation.images.{c}", "camera", (*size, 3), "uint8", encoding="rgb8"
            )
            for c in cameras
        }
        names = names or ("raw",) * n
        state = state or n
        features = {
            **images,
            "observation.state": Feature(
                "observation.state", "state", (state,), names=(*names, "raw")[:state], units=(*units, "raw")[:state]
            ),
            "action": Feature("action", "action", (n,), names=names, units=units),
        }  # fmt: skip
        made = object.__new__(Manifest)
        for key, value in {
            "features": features,
            "prompt": None,
            "rtc": None,
            "graphs": {"encode": Graph},
            "policy": "act",
        }.items():
            object.__setattr__(made, key, value)
        return made

    from edgevla.serve.openpi.hosting import ALOHA_JOINTS

    units, right_first = (("rad",) * 6 + ("unit",)) * 2, ALOHA_JOINTS[7:] + ALOHA_JOINTS[:7]
    aloha = adaptor(manifest(["cam_high"], 14, units, (480, 640), names=right_first), None)
    assert aloha.where == "openpi's ALOHA layout"
    assert any("images > cam_low" in remark for remark in aloha.remarks())
    pixels = np.zeros((3, 480, 640), np.uint8)
    observation, _ = aloha.observation(
        {"state": np.arange(14.0), "images": {"cam_high": pixels}, "prompt": "x"}
    )
    np.testing.assert_array_equal(observation.state, [*range(7, 14), *range(7)])
    libero = adaptor(manifest(["image", "wrist_image"], 7, ("raw",) * 7, (224, 224), state=8), None)
    assert libero.where == "openpi's LIBERO layout"
    side = np.zeros((224, 224, 3), np.uint8)
    asked = {"observation/image": side, "observation/wrist_image": side, "observation/state": np.arange(8.0)}
    assert libero.observation({**asked, "prompt": "x"})[0].state[7] == 7
    with pytest.raises(
        BundleError,
        match=r"none of openpi's own layouts \(ALOHA: it looks through 'top'.*; LIBERO: its cameras",
    ):
        adaptor(manifest(["top"], 14, (("rad",) * 6 + ("unit",)) * 2, (480, 640), names=ALOHA_JOINTS), None)


def test_a_policy_that_looks_back_is_refused_by_name(make_bundle, capsys):
    code = main(["serve", str(make_bundle("history")), "--protocol=openpi"])
    words = capsys.readouterr().err
    assert (code, "'diffusion' looks at 2 moments, and openpi's requests hold one" in words) == (1, True), (
        words
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["--protocol=openpi", "--bind=ws://0.0.0.0:8000"],
            "let ssh carry it: ssh -L 8000:127.0.0.1:8000 HOST",
        ),
        (["--protocol=openpi", "--bind=tcp://127.0.0.1:8000"], "expected one ws://HOST:PORT"),
        (["--keys=x.toml"], "--keys is for robots that speak openpi's protocol"),
        (["b=other", "--protocol=openpi"], "start one server each"),
    ],
)
def test_what_cannot_be_served_is_said_at_once(flow, capsys, words, sentence):
    code = main(["serve", str(flow), *words])
    said = capsys.readouterr().err
    assert (code, sentence in said) == (2, True), said


def test_without_the_extra_it_is_named(flow, keys, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "websockets", None)
    code = main(["serve", str(flow), "--protocol=openpi", f"--keys={keys}"])
    assert (code, install_words("openpi") in capsys.readouterr().err) == (1, True)


def test_a_message_of_a_stranger_is_short(flow, tmp_path):
    made = fitting(flow, tmp_path, SERVE_MAP)
    with pytest.raises(WireError) as error:
        made.observation({"x" * 10_000: 1})
    assert len(str(error.value)) < 300
