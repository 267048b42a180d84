"""Our arms at an openpi server: what is sent, what is taken, and every way it can answer nonsense or be gone."""

import signal
import threading
import time

import numpy as np
import pytest
from openpi_kit import CHUNK, DEPLOY_MAP, GAIN, SERVE_MAP, TARGET, Process, free_port, stub
from proxy_kit import Proxy
from serve_kit import robot

from edgevla.cli import main
from edgevla.clock import NS_PER_S
from edgevla.errors import BundleError, ConfigError, EngineError, WireError
from edgevla.predictor import RtcInputs, Wanted
from edgevla.serve.openpi.address import WsAddress
from edgevla.serve.openpi.declared import ServerMap
from edgevla.serve.openpi.remote import OpenpiPolicy
from edgevla.types import Observation

FRONT = "observation.images.front"
STATE = np.array([0.1, -0.2, 0.3, -0.4, 0.5, 0.6], np.float32)


@pytest.fixture(scope="module")
def server():
    made = stub(free_port())
    yield made
    made.end()


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    path = tmp_path_factory.mktemp("map") / "map.toml"
    path.write_text(DEPLOY_MAP)
    return path


@pytest.fixture
def policy(keys):
    """`policy(port)` -> a policy that ends with the test."""
    made = []

    def make(port, path=keys, patience_s=10.0):
        made.append(OpenpiPolicy(WsAddress("127.0.0.1", port), ServerMap(path), patience_s))
        return made[-1]

    yield make
    for one in made:
        one.close()


def port_of(server):
    return int(server.url.rpartition(":")[2])


def ask(policy, task="go on", budget_s=10.0, **changes):
    seen = Observation(STATE, {FRONT: np.zeros((48, 64, 3), np.uint8)}, task=task)
    asked = {"grid_index": 0, "past": {}, "n_steps": None, "rtc": None, "chunk_seq": 3, **changes}
    return policy.infer(seen, **asked, wanted=Wanted(time.monotonic_ns() + round(budget_s * NS_PER_S)))


def test_state_and_actions_are_converted_both_ways(server, policy):
    made = policy(port_of(server))
    assert len(made.warm_up(2)) == 2
    result = ask(made)
    share = 1 - (1 - GAIN) ** np.arange(1, CHUNK + 1)[:, None]
    theirs = np.array([*STATE[:5], 1 - STATE[5]])  # their gripper is closed at 1
    wanted = theirs + share * (np.array(TARGET) - theirs)
    wanted[:, 5] = 1 - wanted[:, 5]
    np.testing.assert_allclose(result.actions, wanted, atol=1e-6)
    assert result.actions.dtype == np.float32
    assert (result.chunk_seq, result.is_guided, result.timing_ns["denoise"]) == (3, False, 10_000)
    assert result.timing_ns["network"] > 0
    action = made.manifest.action
    assert (action.units[5], action.names[0]) == ("unit", "shoulder_pan")
    assert made.manifest.trained_speed_p999["action"][5] == pytest.approx(0.45)


NONSENSE = {
    "nan": (WireError, "answered actions that are not finite; the chunk is not used"),
    "short": (WireError, r"answered a chunk of shape \(7, 6\); .*map.toml declares \(30, 6\); the chunk is not used"),
    "nothing": (WireError, r"answered no numbers as 'actions' \(its keys are policy_timing\); the chunk is not used"),
    "rubbish": (WireError, "what is no map: the message is no msgpack.*; the chunk is not used"),
    "huge": (WireError, "what is no map: an array of shape .* has .* bytes"),
    "error": (EngineError, "answered an error: KeyError: 'cam_left'"),
}  # fmt: skip


@pytest.mark.parametrize("prompt", NONSENSE)
def test_nonsense_is_refused_with_a_sentence_and_the_next_chunk_is_used(server, policy, prompt):
    made = policy(port_of(server))
    kind, words = NONSENSE[prompt]
    with pytest.raises(kind, match=words):
        ask(made, prompt)
    result = ask(made)
    assert result.actions.shape == (CHUNK, 6)
    assert "answers again" in result.news[0]


def test_nobody_waits_longer_than_somebody_wants_the_answer_and_a_late_one_is_never_used(server, policy):
    made = policy(port_of(server))
    began = time.monotonic()
    with pytest.raises(WireError, match="does not answer; looking for it"):
        ask(made, "slow", budget_s=0.4)
    assert time.monotonic() - began < 5
    result = ask(made)  # the answer to the slow one comes meanwhile, to nobody
    np.testing.assert_allclose(result.actions[-1, :5], TARGET[:5], atol=0.01)


def test_what_the_protocol_cannot_carry_is_refused(server, policy):
    made = policy(port_of(server))
    rtc = RtcInputs(np.zeros((CHUNK, 6), np.float32), np.ones(CHUNK, np.float32))
    with pytest.raises(BundleError, match="cannot carry real-time chunking"):
        ask(made, rtc=rtc)
    with pytest.raises(BundleError, match="cannot carry a number of denoise steps"):
        ask(made, n_steps=3)


def test_a_server_that_is_killed_or_a_line_that_is_dead_is_found_again_within_two_seconds(policy):
    server = stub(free_port())
    line = Proxy(port_of(server))
    try:
        made = policy(line.port)
        made.warm_up(2)
        server.end()
        with pytest.raises(WireError, match="looking for it"):
            ask(made, budget_s=0.6)
        server.start()
        back = time.monotonic()
        assert "answers again" in ask(made).news[0]
        assert time.monotonic() - back < 2
        line.is_dead = True
        with pytest.raises(WireError, match="looking for it"):
            ask(made, budget_s=2.5)
        line.is_dead = False
        back = time.monotonic()
        assert "answers again" in ask(made).news[0]
        assert time.monotonic() - back < 2
        assert made.counters["server_joins"] >= 3
    finally:
        line.close()
        server.end(signal.SIGKILL)


def test_a_question_that_is_open_ends_when_the_policy_is_closed(server, policy):
    made = policy(port_of(server))
    raised = []

    def question():
        try:
            ask(made, "slow", budget_s=60.0)
        except WireError as error:
            raised.append(error)

    thread = threading.Thread(target=question)
    thread.start()
    while not made._asking.locked():
        time.sleep(0.001)
    began = time.monotonic()
    made.close()
    thread.join(20)
    assert (len(raised), time.monotonic() - began < 10) == (1, True)


def test_who_speaks_another_protocol_is_told_from_nobody(policy, make_bundle, tmp_path):
    with pytest.raises(
        WireError, match=r"nothing that speaks openpi's protocol is at ws://127.0.0.1:\d+ \(does not answer\)"
    ):
        policy(free_port(), patience_s=0.2)
    other = tmp_path / "serve.toml"
    other.write_text(SERVE_MAP)
    bundle = make_bundle("flow")
    words = [
        "-m",
        "edgevla",
        "serve",
        str(bundle),
        "--protocol=openpi",
        f"--keys={other}",
        "--bind=ws://127.0.0.1:0",
    ]
    ours = Process(words)
    try:
        with pytest.raises(WireError, match=r"says chunk_size 10, and .*map.toml declares 30"):
            policy(port_of(ours))
    finally:
        ours.end()


# -- maps ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("fps = 30", "", "lacks the key 'fps'"),
        ("chunk_size", "chunk_sise", "unknown key 'chunk_sise'; did you mean 'chunk_size'"),
        ("n_action_steps = 15", "n_action_steps = 31", "n_action_steps 31 is more than the chunk_size 30"),
        ("size = [48, 64]", "size = [48]", "images.front.size"),
        ("size = [48, 64]", "size = [48, 0]", "images.front.size"),
        ('units = ["rad", ', 'units = ["raw", ', "has the unit 'raw'"),
        ('units = ["rad", ', 'units = ["grad", ', "unknown unit 'grad'; did you mean 'rad'"),
        ('units = ["rad", ', "units = [", "has 6 names and 5 units"),
        ("'gripper']", "'shoulder_pan.pos']", "names a joint twice"),
        ("closed = 1.0", "closed = 0.0", "which numbers are `closed` and `open`"),
        ("speeds = [1.4137, ", "speeds = [", "has 6 names and 5 speeds"),
        ('prompt = "prompt"', 'prompt = "state"', "the key 'state' is used twice"),
        ('task = "go on"', 'task = " "', "task is empty"),
    ],
)
def test_a_map_that_cannot_be_is_refused_by_name(tmp_path, old, new, words):
    path = tmp_path / "map.toml"
    path.write_text(DEPLOY_MAP.replace(old, new, 1))
    with pytest.raises(ConfigError, match=words) as error:
        ServerMap(path)
    assert "map.toml" in str(error.value)


def test_a_robot_whose_angles_count_from_somewhere_wants_the_map_to_say_so(tmp_path):
    path = tmp_path / "map.toml"
    path.write_text(DEPLOY_MAP)
    ServerMap(path).check_zero(robot())
    path.write_text(DEPLOY_MAP.replace('zero = "mid_range"\n', ""))
    with pytest.raises(BundleError, match=r"""count from 'mid_range'; if .*, add zero = "mid_range" there"""):
        ServerMap(path).check_zero(robot())


def test_pictures_are_scaled_into_the_size_that_is_sent_with_black_bars(tmp_path):
    path = tmp_path / "map.toml"
    path.write_text(DEPLOY_MAP.replace("size = [48, 64]", "size = [48, 64]\nsent = [32, 32]"))
    seen = Observation(STATE, {FRONT: np.full((48, 64, 3), (9, 99, 199), np.uint8)}, task="x")
    sent = ServerMap(path).request(seen)["images"]["cam_high"]
    assert (sent.shape, sent.dtype, sent.flags.c_contiguous) == ((3, 32, 32), np.uint8, True)
    assert not sent[:, :4].any()
    assert not sent[:, -4:].any()
    np.testing.assert_array_equal(sent[:, 4, 7], [9, 99, 199])
    np.testing.assert_array_equal(sent[:, 27, 31], [9, 99, 199])


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "an openpi server does not say which joints, units, rate and pictures it means"),
        (["--keys=KEYS", "--execution=rtc"], "--execution rtc: openpi's protocol cannot carry the actions"),
        (["--keys=KEYS", "--frames=jpeg"], "--frames is for EdgeVLA's own policy servers"),
        (["--keys=KEYS", "--n-steps=3"], "--n-steps is the openpi server's"),
        (["--keys=KEYS", "--provider=cuda"], "--provider is the openpi server's"),
        (["--keys=KEYS", "--allow-lost-cameras"], "cannot be told that a camera is lost"),
    ],
)
def test_what_cannot_take_effect_is_said_before_anything_starts(server, keys, capsys, words, sentence):
    words = [word.replace("KEYS", str(keys)) for word in words]
    code = main(["deploy", f"--policy={server.url}", "--robot=so101", "--sim", *words])
    said = capsys.readouterr().err
    assert (code, sentence in said) == (2, True), said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--policy=ws://gpu.lab:8000"], "let ssh carry it: ssh -L 8000:127.0.0.1:8000 HOST"),
        (["--policy=ws://127.0.0.1:1,ws://127.0.0.1:2"], "expected one ws://HOST:PORT"),
        (["--policy=tcp://127.0.0.1:1", "--keys=x.toml"], "leave out --keys"),
        (["--keys=x.toml"], "--keys is for an openpi server"),
    ],
)
def test_addresses_and_maps_that_do_not_belong_together_are_refused(capsys, words, sentence):
    code = main(["deploy", *words, "--robot=so101", "--sim"])
    said = capsys.readouterr().err
    assert (code, sentence in said) == (2, True), said
