"""Do openpi's own client and our two sides understand each other? The published `openpi-client`, run against both.

    make test-openpi            makes an environment of its own (it wants NumPy 1) and runs this

    1. `edgevla serve --protocol openpi` runs a small bundle; openpi's client drives it: the ALOHA layout without a map,
       a chunk at a time through its `ActionChunkBroker`, a wrong camera, a second client. Round trips are measured.
    2. A server that packs with openpi's own `msgpack_numpy` moves an emulated arm: `deploy --policy ws://... --sim`.
    3. Pictures scaled by us and by openpi's `resize_with_pad` are compared.

Ends with 1 when one of them failed. `drive` and `serve` are what runs in the other environment.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
N_REQUESTS = 200
JOINTS = [
    f"{side}_{joint}"
    for side in ("left", "right")
    for joint in ("waist", "shoulder", "elbow", "forearm_roll", "wrist_angle", "wrist_rotate", "gripper")
]
SIDE = 224


# -- in openpi's environment -----------------------------------------------------------------------------------


def drive(port: int, folder: Path) -> None:
    """openpi's client against our server."""
    from openpi_client.action_chunk_broker import ActionChunkBroker
    from openpi_client.image_tools import resize_with_pad
    from openpi_client.websocket_client_policy import WebsocketClientPolicy

    client = WebsocketClientPolicy("127.0.0.1", port)
    told = client.get_server_metadata()["edgevla"]
    print("metadata:", told["policy"], told["chunk_size"], "actions of", len(told["actions_names"]))
    random = np.random.default_rng(0)
    seen = {
        "state": random.normal(size=14),
        "images": {"cam_high": random.integers(0, 256, (3, 480, 640), np.uint8)},
        "prompt": "transfer the cube",
    }
    spent = []
    for _ in range(N_REQUESTS):
        began = time.perf_counter()
        reply = client.infer(seen)
        spent.append(1000 * (time.perf_counter() - began))
    assert reply["actions"].shape == (30, 14), reply["actions"].shape
    assert np.array_equal(reply["state"], seen["state"])
    infer_ms, total_ms = reply["policy_timing"]["infer_ms"], reply["server_timing"]["infer_ms"]
    median, most = np.median(spent), max(spent)
    print(f"round trip, one 640x480 picture: {median:.2f} ms median of {N_REQUESTS}, at most {most:.2f}")
    print(f"of the last one {total_ms:.2f} ms were the server's, {infer_ms:.2f} of them the policy's")
    broker = ActionChunkBroker(client, 10)
    steps = [broker.infer(seen)["actions"] for _ in range(11)]
    assert steps[0].shape == (14,)
    assert np.array_equal(steps[1], client.infer(seen)["actions"][1])
    other = WebsocketClientPolicy("127.0.0.1", port)
    assert np.array_equal(other.infer(seen)["actions"], client.infer(seen)["actions"])
    said = ""
    try:
        other.infer({**seen, "images": {"cam_hihg": seen["images"]["cam_high"]}})
    except RuntimeError as error:
        said = str(error)
    assert "did you mean 'images > cam_high'" in said, said
    assert client.infer(seen)["actions"].shape == (30, 14), "the other client is served on"
    photo = np.load(folder / "photo.npy")
    np.save(folder / "theirs.npy", resize_with_pad(photo, SIDE, SIDE))
    print("openpi's client drove our server")


def serve(port: int, _: Path) -> None:
    """A server in the manner of openpi's own: packed by `msgpack_numpy`, computing within its event loop."""
    import asyncio

    from openpi_client import msgpack_numpy
    from websockets.asyncio.server import serve as listen

    packer = msgpack_numpy.Packer()
    target = np.radians([20.0, -10.0, 15.0, -5.0, 0.0, 0.0])

    async def client(connection: Any) -> None:
        await connection.send(packer.pack({}))
        async for message in connection:
            asked = msgpack_numpy.unpackb(message)
            assert asked["observation/image"].shape == (SIDE, SIDE, 3)
            state = asked["observation/state"]
            share = 1 - 0.85 ** np.arange(1, 31)[:, None]
            actions = state + share * (target - state)
            await connection.send(
                packer.pack({"actions": actions, "policy_timing": {"infer_ms": np.float64(0.1)}})
            )

    async def run() -> None:
        async with listen(client, "127.0.0.1", port, compression=None, max_size=None):
            print("listening", flush=True)
            await asyncio.Future()

    asyncio.run(run())


# -- in ours -----------------------------------------------------------------------------------------------------

MAP = f"""
fps = 30
chunk_size = 30
prompt = "prompt"
task = "go on"
[gripper]
closed = 0.0
open = 1.0
[state]
key = "observation/state"
names = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
units = ["rad", "rad", "rad", "rad", "rad", "gripper"]
zero = "mid_range"
[actions]
names = ["shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper"]
units = ["rad", "rad", "rad", "rad", "rad", "gripper"]
zero = "mid_range"
[images.front]
key = "observation/image"
layout = "hwc"
size = [480, 640]
sent = [{SIDE}, {SIDE}]
"""


def main(theirs: str) -> int:
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "runtime"), str(ROOT / "tests" / "serve")]
    with tempfile.TemporaryDirectory() as work:
        folder = Path(work)
        photo = _photo()
        np.save(folder / "photo.npy", photo)
        _drive_ours(theirs, folder)
        _compare(photo, np.load(folder / "theirs.npy"))
        _deploy(theirs, folder)
    return 0


def _drive_ours(theirs: str, folder: Path) -> None:
    from deployment_kit import make_bundle
    from openpi_kit import Process

    joints = {name: ("unit" if name.endswith("gripper") else "rad", 0.0, 1.0) for name in JOINTS}
    bundle = make_bundle(
        folder / "aloha", cameras=("cam_high",), size=(480, 640), joints=joints, target=[0.5] * 14
    )
    server = Process(["-m", "edgevla", "serve", str(bundle), "--protocol=openpi", "--bind=ws://127.0.0.1:0"])
    try:
        print("".join(server.lines), end="")
        port = server.url.rpartition(":")[2]
        subprocess.run([theirs, __file__, "drive", port, str(folder)], check=True, timeout=300)
    finally:
        server.end()


def _deploy(theirs: str, folder: Path) -> None:
    from openpi_kit import free_port

    (folder / "map.toml").write_text(MAP)
    port = free_port()
    server = subprocess.Popen(
        [theirs, __file__, "serve", str(port), work := str(folder)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        assert "listening" in server.stdout.readline()
        for execution in ("async", "sync", "ensemble"):
            words = [
                "deploy",
                f"--policy=ws://127.0.0.1:{port}",
                f"--keys={work}/map.toml",
                "--robot=so101",
                "--sim",
            ]
            words += ["--duration=6", f"--execution={execution}"]
            subprocess.run([sys.executable, "-m", "edgevla", *words], check=True, timeout=120, cwd=ROOT)
    finally:
        server.kill()
        server.communicate()
    print("our arm was driven by a server that packs with openpi's code")


def _photo() -> np.ndarray:
    """Edges and slopes: a picture of discs over a gradient, uint8 (480, 640, 3)."""
    y, x = np.mgrid[0:480, 0:640]
    picture = np.stack([x * 255 // 640, y * 255 // 480, (x + y) * 255 // 1120], -1).astype(np.uint8)
    for i in range(40):
        centre, radius = ((i * 97) % 480, (i * 211) % 640), 8 + i % 30
        picture[(y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2] = (
            i * 53 % 256,
            i * 91 % 256,
            i * 17 % 256,
        )
    return picture


def _compare(photo: np.ndarray, wanted: np.ndarray) -> None:
    from edgevla.serve.openpi.declared import _boxed

    apart = np.abs(_boxed(photo, (SIDE, SIDE)).astype(int) - wanted.astype(int))
    print(f"640x480 into {SIDE}x{SIDE}, against openpi's resize_with_pad: {apart.mean():.2f} grey levels apart on "
          f"average, p99 {np.percentile(apart, 99):.0f}, at most {apart.max()}")  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] in ("drive", "serve"):
        {"drive": drive, "serve": serve}[sys.argv[1]](int(sys.argv[2]), Path(sys.argv[3]))
    else:
        sys.exit(main(sys.argv[1]))
