"""LeRobot 0.4.4's asynchronous policy server, asked as its own robot client asks: the other side in `serve_overhead.py`.

Runs in an environment with `lerobot[async]==0.4.4`, started by that benchmark. First line out: the process numbers of
robot and server. Then every line in is a number of requests, and every line out their durations in ms: `all` of a
request, and `inside`, the part that LeRobot's server spends in preparing, normalising, predicting and denormalising. The
network itself is left out: a chunk of zeros stands for it.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import sys
import tempfile
import time
from concurrent import futures
from multiprocessing.sharedctypes import Synchronized

ADDRESS, CHUNK, JOINTS, SIZE, CAMERAS = "127.0.0.1:5643", 30, 6, (480, 640), ("front", "wrist")


def save_policy(folder: str) -> None:
    """ACT as LeRobot itself writes it, with random weights; small, since nobody asks it."""
    from lerobot.configs.types import FeatureType, PolicyFeature
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.factory import make_pre_post_processors

    seen = {"observation.state": PolicyFeature(FeatureType.STATE, (JOINTS,))}
    seen |= {f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, (3, *SIZE)) for name in CAMERAS}
    config = ACTConfig(
        input_features=seen,
        output_features={"action": PolicyFeature(FeatureType.ACTION, (JOINTS,))},
        chunk_size=CHUNK,
        n_action_steps=CHUNK,
        pretrained_backbone_weights=None,
        dim_model=64,
        dim_feedforward=128,
        n_heads=2,
        n_encoder_layers=1,
        n_vae_encoder_layers=1,
        use_vae=False,
        device="cpu",
    )
    ACTPolicy(config).save_pretrained(folder)
    for half in make_pre_post_processors(config):
        half.save_pretrained(folder)


def serve(inside: Synchronized) -> None:
    """In a process of its own, until it is killed. inside: ms of the last `_predict_action_chunk`."""
    import grpc
    import torch
    from lerobot.async_inference.configs import PolicyServerConfig
    from lerobot.async_inference.policy_server import PolicyServer
    from lerobot.transport import services_pb2_grpc

    torch.set_num_threads(1)

    class Timed(PolicyServer):
        def _get_action_chunk(self, observation: object) -> torch.Tensor:
            return torch.zeros(1, CHUNK, JOINTS)

        def _predict_action_chunk(self, observation_t: object) -> object:
            began = time.perf_counter()
            actions = super()._predict_action_chunk(observation_t)
            inside.value = (time.perf_counter() - began) * 1000
            return actions

    host, port = ADDRESS.split(":")
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4))  # as LeRobot starts it
    config = PolicyServerConfig(host=host, port=int(port), inference_latency=0.0)
    services_pb2_grpc.add_AsyncInferenceServicer_to_server(Timed(config), server)
    server.add_insecure_port(ADDRESS)
    server.start()
    server.wait_for_termination()


class Robot:
    """What LeRobot's `RobotClient` does for one observation, without its queues and its arm."""

    def __init__(self, policy: str) -> None:
        import grpc
        import numpy as np
        from lerobot.async_inference.helpers import RemotePolicyConfig
        from lerobot.datasets.utils import hw_to_dataset_features
        from lerobot.transport import services_pb2, services_pb2_grpc
        from lerobot.transport.utils import grpc_channel_options

        channel = grpc.insecure_channel(ADDRESS, grpc_channel_options(initial_backoff="0.0333s"))
        grpc.channel_ready_future(channel).result(60)
        self._stub, self._pb = services_pb2_grpc.AsyncInferenceStub(channel), services_pb2
        hardware = {f"joint_{i}.pos": float for i in range(JOINTS)} | {name: (*SIZE, 3) for name in CAMERAS}
        features = hw_to_dataset_features(hardware, "observation", use_video=False)
        self._stub.Ready(services_pb2.Empty())
        wanted = RemotePolicyConfig("act", policy, features, CHUNK)
        self._stub.SendPolicyInstructions(services_pb2.PolicySetup(data=pickle.dumps(wanted)))
        rng = np.random.default_rng(0)
        self._seen = {f"joint_{i}.pos": 0.0 for i in range(JOINTS)}
        self._seen |= {name: rng.integers(0, 255, (*SIZE, 3), dtype=np.uint8) for name in CAMERAS}
        self._number = 0

    def ask(self) -> float:
        """ms from an observation in memory to its actions in memory."""
        from lerobot.async_inference.helpers import TimedObservation
        from lerobot.transport.utils import send_bytes_in_chunks

        self._number += 1
        began = time.perf_counter()
        seen = TimedObservation(time.time(), self._number, {**self._seen, "task": ""}, must_go=True)
        parts = send_bytes_in_chunks(pickle.dumps(seen), self._pb.Observation, "", silent=True)
        self._stub.SendObservations(parts)
        actions = pickle.loads(self._stub.GetActions(self._pb.Empty()).data)
        spent = (time.perf_counter() - began) * 1000
        assert len(actions) == CHUNK
        return spent


def main() -> int:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # LeRobot's own words go elsewhere
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # LeRobot writes logs where it stands
        save_policy(folder)
        inside = multiprocessing.get_context("spawn").Value("d", 0.0)
        server = multiprocessing.get_context("spawn").Process(target=serve, args=(inside,), daemon=True)
        server.start()
        robot = Robot(folder)
        robot.ask()
        print(json.dumps({"robot": os.getpid(), "server": server.pid}), file=answers)
        for line in sys.stdin:
            spent = [(robot.ask(), inside.value) for _ in range(int(line))]
            print(json.dumps({"all": [a for a, _ in spent], "inside": [b for _, b in spent]}), file=answers)
        server.kill()
    return 0


if __name__ == "__main__":
    sys.exit(main())
