"""A bundle made by hand (its policy goes a part of the way from the observed state to a constant), and real deployments
of it: processes, sockets, pseudo-terminals, the trace of the bus."""

import contextlib
import ctypes
import json
import os
import pty
import secrets
import select
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil

TARGET = [20.0, -10.0, 15.0, -5.0, 0.0, 40.0]
BODY = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll")
SO101 = {f"{name}.pos": ("deg", -90.0, 90.0) for name in BODY} | {"gripper.pos": ("percent", 0.0, 100.0)}
"""Joint -> unit, and the range that training saw; 0.9 of half of it per second was the fastest."""


def graph(name, inputs, outputs, nodes, constants):
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    kinds = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}

    def info(spec):
        return helper.make_tensor_value_info(spec["name"], kinds[spec["dtype"]], spec["shape"])

    made = helper.make_graph(
        [helper.make_node(*node[:3], **(node[3] if len(node) > 3 else {})) for node in nodes],
        name,
        [info(i) for i in inputs],
        [info(o) for o in outputs],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def make_bundle(
    folder: Path,
    *,
    cameras=("front",),
    size=(48, 64),
    chunk=30,
    gain=0.15,
    joints=SO101,
    target=TARGET,
    fps=30.0,
    turning=0.0,
) -> Path:
    """Writes a bundle; an arm under it is at TARGET within about two seconds.

    turning: rad per step by which the first two joints go round it for ever, so that the arm never comes to rest.
    """
    from edgevla.bundle import list_files
    from edgevla.manifest import Manifest

    folder.mkdir(parents=True)
    (height, width), n = size, len(joints)
    left = ((1 - gain) ** (np.arange(chunk, dtype=np.float32) + 1)).reshape(1, chunk, 1)
    camera_inputs = [
        {
            "name": c,
            "dtype": "uint8",
            "shape": [1, height, width, 3],
            "source": f"camera:observation.images.{c}",
        }
        for c in cameras
    ]
    state = {"name": "state", "dtype": "float32", "shape": [1, n], "source": "state"}
    x = {"name": "x", "dtype": "float32", "shape": [1, chunk, n]}
    nodes = [
        ("Unsqueeze", ["state", "one"], ["row"]),
        ("Sub", ["row", "target"], ["gap"]),
        ("Mul", ["gap", "left"], ["rest"]),
        ("Add", ["rest", "target"], ["wish"]),
    ]
    if turning:
        nodes[2:3] = [
            ("Mul", ["gap", "left"], ["ahead"]),
            ("Gather", ["gap", "pair"], ["swapped"], {"axis": 2}),
            ("Mul", ["swapped", "across"], ["beside"]),
            ("Add", ["ahead", "beside"], ["far"]),
            ("Clip", ["far", "least", "most"], ["rest"]),
        ]
    last = "wish"
    constants = {
        "one": np.array([1], np.int64),
        "zero": np.zeros((), np.float32),
        "target": np.array(target, np.float32).reshape(1, 1, n),
        "left": left,
    }
    if turning:
        constants |= turned(left, n, turning)
    for i, camera in enumerate(cameras):  # the picture takes part, with weight zero
        nodes += [
            ("Cast", [camera], [f"f{i}"], {"to": 1}),
            ("ReduceMean", [f"f{i}"], [f"m{i}"], {"keepdims": 0}),
            ("Mul", [f"m{i}", "zero"], [f"z{i}"]),
            ("Add", [last, f"z{i}"], ["x" if i + 1 == len(cameras) else f"y{i}"]),
        ]
        last = f"y{i}"
    if not cameras:
        nodes[-1] = ("Add", ["rest", "target"], ["x"])
    (folder / "encode.onnx").write_bytes(graph("encode", [*camera_inputs, state], [x], nodes, constants))
    actions = {**x, "name": "actions"}
    (folder / "decode.onnx").write_bytes(
        graph("decode", [x], [actions], [("Identity", ["x"], ["actions"])], {})
    )
    manifest = manifest_of(cameras, size, chunk, joints, fps, camera_inputs, state, x, actions)
    manifest["files"] = [vars(entry) for entry in list_files(folder)]
    Manifest.from_json(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def turned(left, n, turning, reach=15.0, growth=1.2):
    """The constants of a policy whose first two joints turn: outwards, but no farther than `reach` from the target.

    It grows because a real arm lags behind its goals, which would bring it to rest at the target.
    """
    chunk = left.shape[1]
    angle = turning * np.arange(1, chunk + 1, dtype=np.float32)
    along, across = np.repeat(left, n, axis=2), np.zeros((1, chunk, n), np.float32)
    along[0, :, :2] = growth * np.cos(angle)[:, None]
    across[0, :, 0], across[0, :, 1] = -growth * np.sin(angle), growth * np.sin(angle)
    return {
        "left": along,
        "across": across,
        "pair": np.array([1, 0, *range(2, n)], np.int64),
        "least": np.float32(-reach),
        "most": np.float32(reach),
    }


def manifest_of(cameras, size, chunk, joints, fps, camera_inputs, state, x, actions):
    n = len(joints)
    vector = {
        "dtype": "float32",
        "shape": [n],
        "names": list(joints),
        "units": [unit for unit, _, _ in joints.values()],
        "zero": "mid_range",
    }
    seen = {"q01": [low for _, low, _ in joints.values()], "q99": [high for _, _, high in joints.values()]}
    speeds = [0.9 * (high - low) / 2 for _, low, high in joints.values()]
    features = {
        f"observation.images.{c}": {
            "kind": "camera",
            "dtype": "uint8",
            "shape": [*size, 3],
            "encoding": "rgb8",
        }
        for c in cameras
    }
    features["observation.state"] = {"kind": "state", **vector}
    features["action"] = {"kind": "action", **vector}
    return {
        "schema": 1,
        "policy": "act",
        "name": "by-hand",
        "fps": fps,
        "chunk_size": chunk,
        "n_action_steps": chunk // 2,
        "n_obs_steps": 1,
        "batch": {"min": 1, "max": 1},
        "features": features,
        "trained_range": {"observation.state": seen},
        "trained_speed_p999": {"action": speeds},
        "prompt": None,
        "sample": None,
        "schedule": None,
        "settings": {},
        "rtc": None,
        "graphs": {
            "encode": {"file": "encode.onnx", "inputs": [*camera_inputs, state], "outputs": [x]},
            "decode": {"file": "decode.onnx", "inputs": [{**x, "source": "x"}], "outputs": [actions]},
        },
        "execution": {
            "default": {"kind": "async"},
            "allowed": ["sync", "ensemble", "async"],
            "ensemble_decay": 0.01,
        },
        "target": {
            "engine": "onnxruntime",
            "provider": "cpu",
            "opset": 20,
            "ir_version": 10,
            "precision": {"encode": "fp32", "decode": "fp32"},
        },
        "parity": None,
        "latency": None,
        "provenance": {
            "checkpoint": {"path": "by hand", "sha256": "0" * 64, "layout": "none"},
            "dataset": None,
            "features_from": "this test",
            "edgevla": "0",
            "torch": "none",
            "onnx": "0",
            "onnxruntime": "0",
            "exported_at": "2026-01-01T00:00:00Z",
        },
        "files": [],
    }


FAST_ESCALATION = {"hold_ms": 400, "park_ms": 400}


def write_fast_profile(path: Path, robot: str = "so101", escalation=FAST_ESCALATION) -> Path:
    """A shipped profile with a short escalation, so that a test sees its end."""
    from edgevla.robots.profile import PROFILES_DIR

    text = (PROFILES_DIR / f"{robot}.toml").read_text()
    for key, value in escalation.items():
        head, tail = text.split(f"\n{key} = ", 1)
        text = f"{head}\n{key} = {value} #{tail}"
    path.write_text(text)
    return path


MODULES = {
    "guardian": "edgevla.robots.guardian",
    "robot": "edgevla.robots.node_process",
    "policy": "edgevla.nodes.policy",
    "camera": "edgevla.robots.world.sim_camera",
    "emulator": "edgevla.robots.emulator.cli",
}
MARK = "EDGEVLA_TEST_RUN"
MAIN = "\nimport sys\nfrom edgevla.cli import main\nsys.exit(main(sys.argv[1:]))"


PR_SET_PDEATHSIG = 1


def end_with_the_test():
    """A test run that is killed, by a time limit for one, leaves no deployment behind that runs for ever."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class Deployment:
    """A real `edgevla deploy --sim` in processes of its own, its bus trace and its log.

    in_terminal: typed into a shell on a pseudo-terminal, as a person does; `kill("terminal")` closes it.
    prelude: Python that the command runs first, such as a bug to be put into it.
    arm: an arm that is there already (`LivingArm`), instead of `--sim`.
    """

    def __init__(self, folder, bundle, profile, *more, in_terminal=False, prelude="", arm=None):
        self.profile = profile
        self.trace_path, self.log_root = folder / "trace.jsonl", folder / "log"
        self.output_path = folder / "output.txt"
        args = ["deploy", str(bundle), f"--robot={profile}"]
        args += ["--sim", f"--sim-trace={self.trace_path}"] if arm is None else arm.options
        start = ["-c", prelude + MAIN] if prelude else ["-m", "edgevla"]
        command = [sys.executable, *start, *args, f"--log={self.log_root}", *more]
        self._mark = secrets.token_hex(8)
        env = {**os.environ, MARK: self._mark}
        self.terminal = Terminal(env, self.output_path) if in_terminal else None
        self.known = {}
        if self.terminal is not None:
            self.terminal.type(shlex.join(command) + "\n")
            self.process = self._await_process("edgevla")
            return
        with self.output_path.open("w") as output:
            self.process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=env,
                preexec_fn=end_with_the_test,
            )

    def _await_process(self, module):
        until = time.monotonic() + 20
        while time.monotonic() < until:
            for process in self._mine():
                with contextlib.suppress(psutil.Error):
                    if process.cmdline()[1:3] == ["-m", module]:
                        return process
            time.sleep(0.01)
        raise AssertionError(f"the shell started nothing: {self.output}")

    def _mine(self):
        """All processes of this run: they inherit its mark, and keep it when their parents die."""
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == self._mark:
                    yield process

    @property
    def log_path(self):
        """Files of the newest run."""
        return self.log_root / "latest"

    @property
    def output(self):
        return self.output_path.read_text(errors="replace")

    @property
    def is_running(self):
        return self.process.is_running() if self.terminal else self.process.poll() is None

    def wait_for(self, words, timeout_s=40.0):
        deadline = time.monotonic() + timeout_s
        while words not in self.output:
            assert time.monotonic() < deadline, f"never said {words!r}:\n{self.output}"
            assert self.is_running or words in self.output, self.output
            time.sleep(0.02)
        self.find()

    def find(self):
        """Remembers all processes by what they are; they outlive their supervisor."""
        for process in self._mine():
            for name, module in MODULES.items():
                with contextlib.suppress(psutil.Error):
                    if module in process.cmdline():
                        self.known[name] = process

    def find_until(self, *names, timeout_s=20.0):
        """Until these have begun."""
        deadline = time.monotonic() + timeout_s
        while not set(names) <= set(self.known):
            assert time.monotonic() < deadline, f"no {names}: {self.output}"
            assert self.is_running, self.output
            self.find()

    def kill(self, name):
        if name == "terminal":
            self.terminal.close()
        elif name == "everything":
            while mine := list(self._mine()):
                for process in mine:
                    with contextlib.suppress(psutil.Error):
                        process.kill()
                psutil.wait_procs(mine, 1.0)
        elif name == "supervisor":
            self.process.kill()
        else:
            self.known[name].kill()

    def wait_for_end(self, timeout_s=30.0):
        code = self.process.wait(timeout_s)
        for process in self.known.values():
            with contextlib.suppress(psutil.TimeoutExpired):
                process.wait(timeout_s)
        return code

    def left_over(self, patience_s=5.0):
        """Names of processes that are still there; they get a moment to end."""
        until = time.monotonic() + patience_s
        while (here := [p for p in self._mine() if not self._is_shell(p)]) and time.monotonic() < until:
            time.sleep(0.1)
        found = []
        for process in here:
            with contextlib.suppress(psutil.Error):
                found.append(" ".join(process.cmdline()[1:4]))
        return found

    def _is_shell(self, process):
        return self.terminal is not None and process.pid == self.terminal.pid

    def trace(self):
        from edgevla.robots.emulator.trace import read_trace

        return list(read_trace(self.trace_path)) if self.trace_path.exists() else []

    def close(self):
        if self.terminal is not None:
            self.terminal.close()
        for process in self._mine():
            with contextlib.suppress(psutil.Error):
                process.kill()
        if isinstance(self.process, subprocess.Popen):
            self.process.wait()


class LivingArm:
    """An emulated arm in a process of its own: deployments come and go, it keeps its torque and its goals.

    more: options of `edgevla emulate`. options: of `edgevla deploy`, to run on it.
    """

    def __init__(self, folder, profile, *more):
        self.trace_path, ports = folder / "arm.jsonl", folder / "ports"
        words = ["edgevla", "emulate", str(profile), f"--link={ports}/", f"--trace={self.trace_path}", *more]
        self.process = subprocess.Popen(
            [sys.executable, "-m", *words], stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self.process.stdout.readline(), "the arm did not start"
        self.options = [f"--port={ports}", "--calibration=nominal"]

    def trace(self):
        """All that passed on its lines, and what became of it. Ends the arm."""
        from edgevla.robots.emulator.trace import read_trace

        self.close()
        return list(read_trace(self.trace_path))

    def close(self):
        if self.process.poll() is None:
            self.process.terminate()
            self.process.communicate(timeout=20)


BE_A_SHELL = (
    "import fcntl, os, signal, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGHUP, signal.SIG_DFL); os.execvp('bash', {args})"
)


class Terminal:
    """An interactive shell on a pseudo-terminal of its own; what it shows goes into a file."""

    def __init__(self, env, output_path):
        self._master, slave = pty.openpty()
        start = BE_A_SHELL.format(args=["bash", "--norc", "--noprofile", "-i"])
        self._shell = subprocess.Popen(
            [sys.executable, "-c", start],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=env,
            start_new_session=True,
        )
        os.close(slave)
        self.pid = self._shell.pid
        self.output_path = output_path
        self._output = output_path.open("wb", buffering=0)
        self._is_closing = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        with contextlib.suppress(OSError):
            while not self._is_closing.is_set():
                if select.select([self._master], [], [], 0.02)[0]:
                    self._output.write(os.read(self._master, 4096))

    def type(self, text):
        os.write(self._master, text.encode())

    def wait_for(self, words, n=1, timeout_s=40.0):
        """Until they have been shown so often."""
        deadline = time.monotonic() + timeout_s
        while (shown := self.output_path.read_text(errors="replace")).count(words) < n:
            assert time.monotonic() < deadline, f"never said {words!r}:\n{shown}"
            time.sleep(0.02)

    def close(self):
        """The window is closed: the kernel hangs up, the shell hangs up on what it started."""
        if self._is_closing.is_set():
            return
        self._is_closing.set()
        self._reader.join()
        os.close(self._master)
        self._shell.wait()
        self._output.close()
