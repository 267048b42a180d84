"""What is evaluated in a task: a bundle in a folder, or what a policy server runs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import zmq

from edgevla.bundle import load_bundle
from edgevla.clock import NS_PER_S
from edgevla.descriptions import AboutRobot
from edgevla.engines import EngineOptions
from edgevla.errors import BundleError
from edgevla.launch.served import found_at
from edgevla.manifest import Manifest
from edgevla.predictor import Predictor, Wanted
from edgevla.runner import BundlePolicy
from edgevla.serve.pictures import encoding
from edgevla.serve.remote import RemotePolicy
from edgevla.serve.transport import is_served
from edgevla.session import new_session

PATIENCE_S = 60.0
"""Time stands still while a policy server infers, but not for ever."""


@dataclass(frozen=True)
class Entrant:
    """place: its folder, or its server's address. sha256: of the manifest."""

    place: str
    manifest: Manifest
    sha256: str

    @property
    def name(self) -> str:
        return Path(self.place).resolve().name


def entrant(place: str, verify: bool = True) -> Entrant:
    """verify: whether a bundle's files are compared with their digests.

    Raises:
        EdgeVLAError: there is no such bundle, or nobody answers at that address.
    """
    if is_served(place):
        _, served = found_at(place, "POLICY")
        return Entrant(place, served.manifest, served.sha256)
    bundle = load_bundle(Path(place).expanduser(), verify=verify)
    return Entrant(str(bundle.folder), bundle.manifest, bundle.sha256)


def open_bundle(folder: Path, seed: int = 0) -> BundlePolicy:
    """
    Raises:
        BundleError, EngineError: it cannot be loaded.
    """
    return BundlePolicy(load_bundle(folder), seed=seed, options=EngineOptions(threads=1))


def open_policy(
    one: Entrant, robot: Callable[[], AboutRobot], seed: int, closing: contextlib.ExitStack
) -> Predictor:
    """Pictures go to a server as they are. robot: as it would join there.

    Raises:
        EdgeVLAError: it cannot be loaded, or its server runs another one by now.
    """
    if not is_served(one.place):
        return open_bundle(Path(one.place), seed)
    servers, served = found_at(one.place, "POLICY")
    if served.sha256 != one.sha256:
        raise BundleError(
            f"{one.place} now runs another policy ({served.sha256[:12]}) than this evaluation began with "
            f"({one.sha256[:12]}); serve the same bundle again, or choose another --output"
        )
    ctx = zmq.Context()
    closing.callback(ctx.destroy, linger=0)
    raw = encoding("raw", servers)
    policy = RemotePolicy(ctx, servers, served, robot(), new_session(), seed=seed, encoding=raw)
    closing.callback(policy.close)
    return policy


def patiently() -> Wanted:
    """For a chunk that the virtual clock waits for."""
    return Wanted(time.monotonic_ns() + round(PATIENCE_S * NS_PER_S))
