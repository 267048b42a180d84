"""What a robot would install: the wheel, in an empty environment, with the walls it promises."""

from __future__ import annotations

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TORCH_FREE = ("edgevla", "robots")
FORBIDDEN = ("torch", "transformers", "peft", "accelerate", "safetensors")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(out),
        str(ROOT),
    ]
    subprocess.run(command, check=True, timeout=800)
    (path,) = out.glob("edgevla-*.whl")
    return path


def test_the_wheel_holds_the_linked_packages_and_their_data(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for expected in (
        "edgevla/cli.py",
        "edgevla/py.typed",
        "edgevla/robots/so101.toml",
        "edgevla/robots/guardian.py",
        "edgevla/train/policies/act.py",
        "edgevla/train/recipes/act.toml",
        "edgevla/export/cli.py",
        "edgevla/monitor/monitor.tcss",
        "edgevla/launch/edgevla-deploy.service",
        "edgevla/launch/edgevla-serve.service",
        "edgevla/robots/world/physics/assets/aloha/bimanual_viperx_transfer_cube.xml",
        "edgevla/robots/world/physics/assets/aloha/vx300s_7_gripper.stl",
        "edgevla/robots/world/physics/assets/aloha/LICENSE",
        "edgevla/robots/world/physics/assets/so101/pick_place.xml",
        "edgevla/robots/world/physics/assets/so101/moving_jaw_so101_v1.stl",
        "edgevla/robots/world/physics/assets/so101/README.md",
    ):
        assert expected in names
    top_level = {name.split("/")[0] for name in names}
    assert {n for n in top_level if not n.endswith(".dist-info")} == {"edgevla"}


def _modules() -> list[str]:
    found = []
    for folder in TORCH_FREE:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if folder == "edgevla" and parts[1] in ("train", "export", "robots"):
                continue
            name = ".".join(parts if folder == "edgevla" else ("edgevla", *parts))
            found.append(name.removesuffix(".__init__"))
    return [m for m in found if not m.endswith("__main__")]


def test_no_module_of_the_runtime_imports_torch() -> None:
    modules = _modules()
    assert len(modules) > 20
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"bad = [m for m in {FORBIDDEN!r} if m in sys.modules]\n"
        "assert not bad, bad\n"
        "core = [m for m in sys.modules if m.startswith('edgevla.train') or m.startswith('edgevla.export')]\n"
        "assert not core, core\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=800)


def test_the_core_imports_no_upper_floor() -> None:
    modules = [m for m in _modules() if not m.startswith("edgevla.robots")]
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        "up = [m for m in sys.modules if m.startswith(('edgevla.train', 'edgevla.export', 'edgevla.robots'))]\n"
        "assert not up, up\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=800)


def test_the_robots_loop_and_guardian_import_neither_camera_nor_engine_code() -> None:
    code = (
        "import sys, edgevla.robots.guardian\n"
        "assert 'numpy' not in sys.modules, 'the guardian must stay tiny'\n"
        "import edgevla.robots.node\n"
        "bad = [m for m in ('cv2', 'onnxruntime', 'av') if m in sys.modules]\n"
        "assert not bad, bad\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, timeout=60)


def test_every_runtime_dependency_has_a_wheel_for_an_arm_computer(tmp_path: Path) -> None:
    """pip resolves the default install and what a robot adds for aarch64 from wheels alone (needs the package index), on
    the newest Python; on those of JetPack below."""
    project = (ROOT / "pyproject.toml").read_text()
    wanted = _requirements(project, "dependencies = [") + _requirements(project, "cpu = [")
    wanted += _requirements(project, "language = [") + _requirements(project, "record = [")
    _check_wheels("313", tmp_path, wanted)


@pytest.mark.parametrize("python", ["310", "313"])
def test_physics_have_wheels_for_an_arm_computer(python: str, tmp_path: Path) -> None:
    """What is compiled of it; all that it needs besides is Python, and an older pip looks through that for minutes."""
    project = (ROOT / "pyproject.toml").read_text()
    _check_wheels(python, tmp_path, [*_requirements(project, "sim = ["), "glfw"], "--no-deps")


@pytest.mark.parametrize(("jetpack", "python"), [("6", "3.10"), ("7", "3.12")])
def test_every_pip_command_of_the_jetson_page_finds_its_wheels(
    jetpack: str, python: str, tmp_path: Path
) -> None:
    """All extras that the page names for a JetPack, at once: its engines do not exclude each other."""
    page = (ROOT / "docs/jetson.md").read_text()
    section = page.split(f"\n## JetPack {jetpack}\n", 1)[1].split("\n## ", 1)[0]
    commands = [
        line.strip() for line in section.splitlines() if re.match(r"\S*pip (install|download) ", line)
    ]
    assert len(commands) >= 3
    assert all("--python-version" not in c or f"--python-version {python} " in c for c in commands)
    extras = {extra for c in commands for extra in re.findall(r'"\.\[(.+?)\]"', c)[0].split(",")}
    assert extras == {"jetson", "language", "cpu", "record"}
    project = (ROOT / "pyproject.toml").read_text()
    wanted = [r for name in ("dependencies", *sorted(extras)) for r in _requirements(project, f"{name} = [")]
    _check_wheels(python.replace(".", ""), tmp_path, wanted)


def _check_wheels(python: str, folder: Path, wanted: list[str], *more: str) -> None:
    platforms = [f"manylinux_2_{n}_aarch64" for n in (34, 28, 17)] + ["manylinux2014_aarch64"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", *more]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    command += ["--target", str(folder), *[f"--platform={p}" for p in platforms], *wanted]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr


def _requirements(project: str, opening: str) -> list[str]:
    block = project.split(f"\n{opening}", 1)[1].split("]", 1)[0]
    return re.findall(r'"([A-Za-z][^";]*)[";]', block)
