"""TensorRT without a GPU: real builds by TensorRT-RTX, and a stand-in for TensorRT and CUDA on the CPU.

The stand-in is compiled here. A machine without a C compiler fails these tests rather than leave them out in silence.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgevla.session import OVERRIDE

STANDIN = Path(__file__).parent / "standin"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def standin_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a virtual environment has when TensorRT and CUDA's runtime were installed by pip."""
    folder = tmp_path_factory.mktemp("standin")
    shutil.copy(STANDIN / "tensorrt.py", folder)
    library = folder / "nvidia/cuda_runtime/lib/libcudart.so.12"
    library.parent.mkdir(parents=True)
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.fail("these tests compile sixty lines of C: install a C compiler (apt install gcc)")
    words = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(STANDIN / "cudart.c")]
    subprocess.run(words, check=True)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of engines, empty; and no deployments but the test's."""
    monkeypatch.setenv("EDGEVLA_CACHE", str(tmp_path / "cache"))
    with tempfile.TemporaryDirectory(prefix="edgevla-") as runs:  # a socket's path must be short
        monkeypatch.setenv(OVERRIDE, runs)
        yield tmp_path / "cache/engines"


@pytest.fixture
def standin(standin_folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The stand-in, found by this process and by those it starts."""
    path = os.pathsep.join([str(standin_folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    monkeypatch.syspath_prepend(str(standin_folder))
    for name in ("tensorrt", "nvidia"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield standin_folder
    for name in ("tensorrt", "nvidia"):
        sys.modules.pop(name, None)


Command = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def command(standin: Path) -> Iterator[Command]:
    """`command("build", bundle, STANDIN_S="1")`: starts `edgevla ...`, ended with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: object, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "edgevla", *map(str, words)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
