"""Does LeRobot see in an edited dataset what it sees in the original? Item by item, with its own reader.

    python benchmarks/lerobot_reads_edits.py write WORK [DATASET]   # ours: every verb of `edgevla dataset` on a copy
    LEROBOT/bin/python benchmarks/lerobot_reads_edits.py read WORK  # an environment with lerobot (0.4.4: Python 3.11)

DATASET: a LeRobotDataset v3.0; otherwise the fixture `so101_v30`, which LeRobot wrote. `read` compares every item of
every result with the item that it came from: numbers and pictures to the bit, the task's words, the counting columns;
the merged statistics of vectors with those of the rows; and ends with 1 when something differs.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np

FIXTURE = Path(__file__).parents[1] / "tests" / "fixtures" / "datasets" / "so101_v30"
TASK = "do something else"


def write(work: Path, source: Path) -> None:
    from edgevla.dataset.edit import delete, merge, retask, split
    from edgevla.dataset.source import n_listed

    work.mkdir(parents=True)
    original = work / "original"
    shutil.copytree(source, original, ignore=shutil.ignore_patterns("truth.npz"))
    n = n_listed(original)
    everything = list(range(n))
    say = print
    plan: dict[str, Any] = {}
    for name, gone in (("first", [0]), ("middle", [1]), ("last", [n - 1])):
        say(delete(original, str(gone[0]), work / f"without-{name}", say))
        plan[f"without-{name}"] = {"from": [e for e in everything if e not in gone], "task": {}}
    say(merge(original, [work / "without-middle"], work / "merged", say))
    plan["merged"] = {"from": [*everything, *plan["without-middle"]["from"]], "task": {}}
    say(split(original, ["a=50%", "b=50%"], work / "parts", say))
    half = round(n / 2)
    plan["parts/a"] = {"from": everything[:half], "task": {}}
    plan["parts/b"] = {"from": everything[half:], "task": {}}
    say(retask(original, TASK, "1", work / "retasked", say))
    plan["retasked"] = {"from": everything, "task": {"1": TASK}}
    shutil.copytree(original, work / "in-place")
    say(delete(work / "in-place", "0", None, say))
    say(retask(work / "in-place", TASK, None, None, say))
    plan["in-place"] = {"from": everything[1:], "task": dict.fromkeys(map(str, everything), TASK)}
    (work / "plan.json").write_text(json.dumps(plan))


def opened(root: Path) -> Any:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    return LeRobotDataset(f"ours/{root.name}", root=root)


def bounds(data: Any, episode: int) -> tuple[int, int]:
    row = data.meta.episodes[episode]
    return int(row["dataset_from_index"]), int(row["dataset_to_index"])


def compare(original: Any, result: Any, plan: dict[str, Any]) -> str:
    assert result.num_episodes == len(plan["from"]), (result.num_episodes, plan)
    count = 0
    for episode, source in enumerate(plan["from"]):
        (first, end), (start, stop) = bounds(original, source), bounds(result, episode)
        assert stop - start == end - first, f"episode {episode} has {stop - start} rows, not {end - first}"
        assert start == count, f"episode {episode} begins at {start}, not at {count}"
        for i in range(end - first):
            one, other = original[first + i], result[start + i]
            assert int(other["index"]) == count
            assert int(other["episode_index"]) == episode
            assert other["task"] == plan["task"].get(str(source), one["task"]), other["task"]
            assert set(one) == set(other)
            for key in set(one) - {"index", "episode_index", "task_index", "task"}:
                if not np.array_equal(np.asarray(one[key]), np.asarray(other[key])):
                    raise AssertionError(f"episode {episode}, row {i}: '{key}' differs")
            count += 1
    assert count == result.num_frames == len(result)
    for key in ("action", "observation.state"):
        rows = np.stack([np.asarray(v) for v in result.hf_dataset[key]]).astype(np.float64)
        stats = result.meta.stats[key]
        np.testing.assert_allclose(np.asarray(stats["mean"]), rows.mean(0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(np.asarray(stats["std"]), rows.std(0), rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(np.asarray(stats["max"]), rows.max(0), rtol=1e-6)
        assert int(np.asarray(stats["count"])[0]) == count
    return f"{result.num_episodes} episodes, {count} items, tasks {list(result.meta.tasks.index)}"


def read(work: Path) -> int:
    from importlib.metadata import version

    print(f"LeRobot {version('lerobot')}")
    original, n_failed = opened(work / "original"), 0
    for name, plan in json.loads((work / "plan.json").read_text()).items():
        try:
            print(f"ok      {name}: {compare(original, opened(work / name), plan)}", flush=True)
        except Exception as error:  # one line per result
            n_failed += 1
            print(f"FAILED  {name}: {type(error).__name__}: {error}", flush=True)
    return int(n_failed > 0)


if __name__ == "__main__":
    verb, folder = sys.argv[1], Path(sys.argv[2])
    if verb == "write":
        write(folder, Path(sys.argv[3]) if len(sys.argv) > 3 else FIXTURE)
    else:
        sys.exit(read(folder))
