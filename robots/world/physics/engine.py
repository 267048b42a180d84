"""MuJoCo, where it is needed: imported once, with a sentence when it is missing or of a version that was not tried."""

from __future__ import annotations

import functools
import importlib
import os
import re
from pathlib import Path
from typing import Any

from edgevla.errors import MissingExtraError

ASSETS = Path(__file__).parent / "assets"
OLDEST, TOO_NEW = (3, 3), (3, 9)


@functools.cache
def mujoco() -> Any:
    """The module.

    Raises:
        MissingExtraError: it is not installed, or not a version from 3.3 up to 3.8.
    """
    asked = os.environ.get("MUJOCO_GL")
    os.environ["MUJOCO_GL"] = (
        "disable"  # it would look for a window system; `gl` chooses what draws without one
    )
    try:
        module = importlib.import_module("mujoco")
    except ImportError as error:
        raise MissingExtraError("sim", "mujoco", "simulated physics needs it") from error
    finally:
        if asked is None:
            del os.environ["MUJOCO_GL"]
        else:
            os.environ["MUJOCO_GL"] = asked
    version = str(getattr(module, "__version__", "0.0"))
    numbers = tuple(int(n) for n in re.findall(r"\d+", version)[:2])
    if not OLDEST <= numbers < TOO_NEW:
        raise MissingExtraError("sim", "mujoco >= 3.3, < 3.9", f"there is {version}")
    return module


def load(scene: Path, is_drawn: bool = False) -> Any:
    """The compiled model of a scene file. is_drawn: with the meshes below `drawn/` beside it, which have fewer faces."""
    meshes = (
        {path.name: path.read_bytes() for path in (scene.parent / "drawn").glob("*.stl")} if is_drawn else {}
    )
    return mujoco().MjModel.from_xml_path(str(scene), meshes)
