"""Does LeRobot read what we write? Its own classes open our checkpoints, their pipelines, and our data sets.

Two steps, for LeRobot needs an environment of its own (tried with 0.5.1, and with 0.6.1 on Python 3.12; several GB; the
data sets with 0.4.4, too):

    python benchmarks/lerobot_reads_ours.py write WORK     # ours: demonstrations, every policy trained for two steps
    python3.12 -m venv LEROBOT && LEROBOT/bin/pip install 'lerobot[dataset,diffusion,pi,smolvla,xvla]==0.6.1'
    LEROBOT/bin/python benchmarks/lerobot_reads_ours.py read WORK

`read` prints a line per thing and ends with 1 when one failed: configuration (it refuses unknown keys) and pipelines of
all policies; the networks of ACT and Diffusion with every key in its place; the data set's columns, and where its videos
lie; every frame of a recording with corrections by hand, as `edgevla record --policy --leader` writes it.
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np

WHOLE = ("act", "diffusion")
"""Their networks are built from the configuration alone; the others want a published backbone."""


def write_corrected(root: Path) -> None:
    """Two episodes with every column of a recording in which a person may take over."""
    from types import SimpleNamespace

    from edgevla.dataset import DatasetWriter
    from edgevla.nodes.recording import features_of
    from edgevla.robots.profile import load_profile

    joints: Any = load_profile("so101").joints
    camera: Any = SimpleNamespace(name="front", height=48, width=64)
    features = features_of(joints, [camera], has_leader=True)
    rng = np.random.default_rng(0)
    with DatasetWriter(root, fps=30, features=features, robot_type="so101", joint_units="degrees") as writer:
        for _ in range(2):
            for k in range(40):
                pose = rng.normal(size=len(joints)).astype(np.float32)
                row = {"observation.state": pose, "action": pose, "intervention": 10 <= k < 25}
                row |= {"camera_age_ms.front": 5.0, "observation.images.front": picture(k)}
                writer.add_frame(row, "wave")
            writer.save_episode()


def picture(k: int) -> np.ndarray:
    """One colour, which tells the row."""
    return np.full((48, 64, 3), 20 + 5 * k, np.uint8)


def write(work: Path) -> None:
    import torch

    from edgevla.dataset import open_dataset
    from edgevla.robots.trials.demonstrate import DemonstrationPlan, demonstrate
    from edgevla.train.policies import POLICIES
    from edgevla.train.tiny import write_tiny_backbone

    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "story"))
    from every_policy import BACKBONES, run_verb, train_words

    if not (work / "corrected").exists():
        write_corrected(work / "corrected")
    if (work / "columns.npz").exists():
        return
    demonstrate(work / "data", DemonstrationPlan("follow_cube", 3, n_steps=40))
    for kind in set(BACKBONES.values()):
        torch.manual_seed(0)
        write_tiny_backbone(work / kind, kind, width=32, depth=2)
    for policy in POLICIES:
        backbone = work / BACKBONES[policy] if policy in BACKBONES else None
        words = train_words(policy, work / "data", work / "runs" / policy, backbone)
        words += (
            ["--trunk-width", "64"] if policy in WHOLE else []
        )  # LeRobot knows ResNets of the usual width only
        run_verb([*words, "--steps", "2", "--batch-size", "2"])
    columns = open_dataset(str(work / "data")).columns
    np.savez(work / "columns.npz", **{key: columns[key] for key in ("observation.state", "action")})


def checkpoint(work: Path, policy: str) -> Path:
    return work / "runs" / policy / "checkpoints" / "last" / "pretrained_model"


def read_config(work: Path, policy: str) -> str:
    import lerobot.policies.factory  # noqa: F401  registers the configurations
    from lerobot.configs.policies import PreTrainedConfig

    return type(PreTrainedConfig.from_pretrained(checkpoint(work, policy))).__name__


def read_pipelines(work: Path, policy: str) -> str:
    from lerobot.processor import PolicyProcessorPipeline

    names, folder = [], checkpoint(work, policy)
    for which in ("policy_preprocessor.json", "policy_postprocessor.json"):
        has_text = (
            "tokenizer_processor" in (folder / which).read_text()
        )  # else its name is looked up on the hub
        local = {"tokenizer_processor": {"tokenizer_name": str(folder / "tokenizer")}} if has_text else {}
        pipeline = PolicyProcessorPipeline.from_pretrained(folder, config_filename=which, overrides=local)
        names += [type(step).__name__ for step in pipeline.steps]
    return f"{len(names)} steps"


def read_whole(work: Path, policy: str) -> str:
    """The network with our weights, every key in its place."""
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.policies.factory import get_policy_class

    folder = checkpoint(work, policy)
    config = PreTrainedConfig.from_pretrained(folder)
    config.device = "cpu"
    network = get_policy_class(policy).from_pretrained(folder, config=config, strict=True)
    return f"{sum(p.numel() for p in network.parameters())} parameters"


def read_data(work: Path) -> str:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    data = LeRobotDataset("ours/demonstrations", root=work / "data")
    ours = np.load(work / "columns.npz")
    for key in ours:
        np.testing.assert_array_equal(np.stack([np.asarray(v) for v in data.hf_dataset[key]]), ours[key])
    videos = [data.root / data.meta.get_video_file_path(0, key) for key in data.meta.video_keys]
    missing = [str(path) for path in videos if not path.exists()]
    if missing:
        raise FileNotFoundError(", ".join(missing))
    return f"{data.num_episodes} episodes, {data.num_frames} frames, {len(videos)} cameras"


def read_corrected(work: Path) -> str:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    data = LeRobotDataset("ours/corrected", root=work / "corrected", video_backend="pyav")
    for index in range(len(data)):
        row, k = data[index], index % 40
        np.testing.assert_equal(bool(row["intervention"]), 10 <= k < 25, f"row {index}: intervention")
        seen = 255 * float(row["observation.images.front"].mean())
        np.testing.assert_allclose(seen, picture(k).mean(), atol=4, err_msg=f"row {index}: picture")
    return f"{data.num_episodes} episodes, {len(data)} frames, every picture in its row"


CHECKS: dict[str, Any] = {"config": read_config, "pipelines": read_pipelines}


def read(work: Path) -> int:
    from importlib.metadata import version

    n_failed, lerobot = 0, version("lerobot")
    names = sorted(path.name for path in (work / "runs").iterdir())
    print(f"LeRobot {lerobot}")
    if tuple(map(int, lerobot.split(".")[:2])) >= (0, 6):
        names.remove("groot")
        print("left    groot: N1.5 is no policy of this LeRobot any more; its GR00T is N1.7")
    tasks = [(f"{name}: {what}", check, (work, name)) for name in names for what, check in CHECKS.items()]
    tasks += [(f"{name}: network", read_whole, (work, name)) for name in names if name in WHOLE]
    tasks.append(("data set", read_data, (work,)))
    tasks.append(("data set with corrections by hand", read_corrected, (work,)))
    for title, check, given in tasks:
        try:
            print(f"ok      {title}: {check(*given)}")
        except Exception as error:
            n_failed += 1
            traceback.print_exc()
            print(f"FAILED  {title}: {type(error).__name__}: {error}")
    return int(n_failed > 0)


if __name__ == "__main__":
    verb, folder = sys.argv[1], Path(sys.argv[2])
    sys.exit(write(folder) if verb == "write" else read(folder))
