"""A recorded episode as the source of a deployment's actions; its process is `nodes/replay.py`."""

from __future__ import annotations

from edgevla.arguments import Start
from edgevla.cameras import CameraSettings
from edgevla.dataset import open_dataset
from edgevla.descriptions import AboutPolicy, write_robot
from edgevla.errors import EdgeVLAError, UsageError
from edgevla.launch.sources import DirectSource, SupervisorLike
from edgevla.nodes.replay import CHUNK_SIZE, check_units, load_episode

READY_S = 60.0


class EpisodeSource(DirectSource):
    """A recorded episode where the policy would be.

    Raises:
        DatasetError, UsageError: the dataset cannot be read, or has no such episode: known before an arm moves.
    """

    def __init__(self, dataset: str, episode: int, joint_units: str | None = None) -> None:
        self._dataset, self._episode, self._joint_units = dataset, episode, joint_units
        opened = open_dataset(dataset)
        if not 0 <= episode < opened.n_episodes:
            raise UsageError(f"{dataset} has no episode {episode}; it has 0 to {opened.n_episodes - 1}")
        check_units(opened.root, joint_units)
        super().__init__(f"episode {episode} of {dataset}", float(opened.info.fps))

    def fit(self, run: SupervisorLike) -> list[CameraSettings]:
        load_episode(self._dataset, self._episode, run.robot, self._joint_units)
        write_robot(run.robot, run.folder / "robot.json")
        return []

    def spawn(self, run: SupervisorLike) -> None:
        words = [
            "edgevla.nodes.replay",
            f"--dataset={self._dataset}",
            f"--episode={self._episode}",
            *run.place,
        ]
        words += [f"--robot-json={run.folder / 'robot.json'}"]
        words += [f"--joint-units={self._joint_units}"] if self._joint_units else []
        run.spawn("policy", words)

    def ready(self, run: SupervisorLike) -> float:
        return run.await_ready("policy", "policy", AboutPolicy, READY_S, EdgeVLAError).latency_ms

    def start_arguments(self, run: SupervisorLike, latency_ms: float) -> Start:
        return self.direct_arguments(run, CHUNK_SIZE, latency_ms)
