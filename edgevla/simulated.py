"""The simulated tasks: what is asked, of which robot, for how long, and where its world is built.

A new task is a module with `make_world` and `make_painter`, and a row here (examples/own_task.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from edgevla.errors import UsageError
from edgevla.strict import nearest

DEFAULT = "follow_cube"
"""What `--sim` shows where nothing is asked for and the robot says nothing else."""


@dataclass(frozen=True)
class Task:
    """name: as options say it. world: of robots whose profile names this world. instruction: what demonstrations are
    labelled with.

    fps: of demonstrations, and of policies that learn from them. episode_s: an episode's length. cameras: what can be
    looked through; the first is where nothing else is asked for. module: with `make_world` and `make_painter`; relative
    to `edgevla.robots.world`, or absolute.
    """

    name: str
    world: str
    instruction: str
    fps: int
    episode_s: float
    cameras: tuple[str, ...]
    module: str

    @property
    def has_physics(self) -> bool:
        """Needs the extra `sim`, and a core for every few pictures."""
        return self.module.startswith(".physics.")


_SO101_CAMERAS = ("front", "top", "wrist")
_ALOHA_CAMERAS = ("top", "angle", "left_wrist", "right_wrist", "front_close", "left_pillar", "right_pillar")
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(DEFAULT, "so101", "reach for the cube", 30, 3.0, _SO101_CAMERAS, ".follow_cube.world"),
        Task("follow_cube/conveyor", "so101", "follow the cube on the belt", 30, 130 / 30, _SO101_CAMERAS,
             ".follow_cube.world"),
        Task("follow_cube/conveyor_slow", "so101", "follow the cube on the belt", 30, 130 / 30, _SO101_CAMERAS,
             ".follow_cube.world"),
        Task("follow_cube/conveyor_fast", "so101", "follow the cube on the belt", 30, 87 / 30, _SO101_CAMERAS,
             ".follow_cube.world"),
        Task("follow_cube/jump", "so101", "reach for the cube", 30, 3.2, _SO101_CAMERAS, ".follow_cube.world"),
        Task("follow_cube/two", "so101", "reach for a cube", 30, 3.0, _SO101_CAMERAS, ".follow_cube.world"),
        Task("aloha/transfer_cube", "aloha", "pick up the cube with the right arm and hand it to the left arm", 50, 8.0,
             _ALOHA_CAMERAS, ".physics.aloha"),
        Task("aloha/insertion", "aloha", "put the peg into the socket", 50, 8.0, _ALOHA_CAMERAS, ".physics.aloha"),
        Task("so101/pick_place", "so101", "put the red block on the round goal", 30, 8.0, _SO101_CAMERAS,
             ".physics.pick_place"),
    )
}  # fmt: skip


def default_task(world: str) -> str:
    """What is shown of a robot's world where nothing is asked for: the first task in the table.

    world: what its profile names, or the profile's own name.
    """
    return next((task.name for task in TASKS.values() if task.world == world), DEFAULT)


def task_named(name: str) -> Task:
    """
    Raises:
        UsageError: there is none; names those that there are.
    """
    if name not in TASKS:
        raise UsageError(
            f"there is no simulated task '{name}'; there are: {', '.join(TASKS)}{nearest(name, TASKS)}"
        )
    return TASKS[name]


def task_for(world: str, robot: str, name: str) -> Task:
    """world: what the robot's profile names as its simulated world.

    Raises:
        UsageError: there is no such task, or it is another robot's; names those that the robot has.
    """
    task = task_named(name)
    if task.world != world:
        own = ", ".join(t.name for t in TASKS.values() if t.world == world) or "none"
        raise UsageError(
            f"the simulated task '{name}' is for {task.world}, not for {robot}; tasks of {robot}: {own}"
        )
    return task
