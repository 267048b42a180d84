"""A robot's computer that ssh reaches: a real sshd on loopback, a real client, keys made for the test."""

import contextlib
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(
    0, str(Path(__file__).parents[1] / "runtime")
)  # importlib mode leaves neighbours unimportable

from deployment_kit import make_bundle

from edgevla.bundle import list_files, load_bundle, write_manifest

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/usr/bin")


def unused_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


@dataclass
class Robot:
    """folder: what is its home. config: of the client, to be given to `ssh -F`."""

    folder: Path
    keys: Path
    port: int

    @property
    def config(self):
        return self.config_with()

    def config_with(self, port=None, known="known_hosts", key="client"):
        path = self.keys / f"config-{port}-{known}-{key}"
        path.write_text(
            f"Host robot\n HostName 127.0.0.1\n Port {port or self.port}\n IdentityFile {self.keys / key}\n"
            f" IdentitiesOnly yes\n IdentityAgent none\n UserKnownHostsFile {self.keys / known}\n"
            " GlobalKnownHostsFile /dev/null\n HostKeyAlias robot\n BatchMode yes\n"
        )
        return path

    def ssh(self, **how):
        return f"ssh -F {self.config_with(**how)}"


def make_keys(folder):
    for name in ("host", "client", "stranger"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True, timeout=60)
    shutil.copy(folder / "client.pub", folder / "authorized_keys")
    (folder / "known_hosts").write_text("robot " + (folder / "host.pub").read_text())
    (folder / "nobody_known").write_text("")


@pytest.fixture(scope="session")
def sshd():
    """(keys, port, home): one for all tests of a worker; its home is emptied for each."""
    if SSHD is None or shutil.which("ssh") is None:
        pytest.skip("there is no sshd here: apt-get install openssh-server")
    folder = Path(tempfile.mkdtemp(prefix="ev-sshd-", dir="/tmp"))
    home, runtime = folder / "home", folder / "run"
    for path in (home, runtime):
        path.mkdir(mode=0o700)
    make_keys(folder)
    port = unused_port()
    site = ":".join(p for p in sys.path if "site-packages" in p)
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile none\nUsePAM no\nStrictModes no\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nPasswordAuthentication no\nPermitRootLogin yes\n"
        f"MaxStartups 100\nSetEnv HOME={home} EDGEVLA_RUNTIME_DIR={runtime} PYTHONPATH={site}\n"
    )
    if Path("/run").stat().st_uid == 0 and not Path("/run/sshd").is_dir():
        with contextlib.suppress(PermissionError):  # only root's sshd asks for it
            Path("/run/sshd").mkdir(mode=0o755)
    log = (folder / "log").open("w")
    server = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "config")], stderr=log)
    until = time.monotonic() + 60
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as probe:
                probe.recv(1)
            break
        except OSError:
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
    yield folder, port, home
    server.terminate()
    server.wait(30)
    log.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def robot(sshd):
    keys, port, home = sshd
    for path in home.iterdir():
        shutil.rmtree(path)
    return Robot(home, keys, port)


@pytest.fixture
def free_port():
    return unused_port()


@pytest.fixture(scope="session")
def grow():
    """Gives a bundle 3 MB of weights: a listed file that no graph reads."""

    def add(bundle, seed):
        (bundle / "extra.bin").write_bytes(np.random.default_rng(seed).bytes(3_000_000))
        write_manifest(bundle, replace(load_bundle(bundle, verify=False).manifest, files=list_files(bundle)))
        return bundle

    return add


@pytest.fixture
def bundle(tmp_path, grow):
    return grow(make_bundle(tmp_path / "act"), seed=0)
