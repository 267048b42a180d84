"""A policy that infers at a policy server, as the source of a deployment's actions: `edgevla deploy --policy tcp://...`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import zmq

from edgevla.errors import UsageError
from edgevla.launch.deployment import DeployOptions
from edgevla.launch.sources import PolicySource, SupervisorLike
from edgevla.serve.authority import introduced
from edgevla.serve.pictures import encoding
from edgevla.serve.remote import Served, look_up
from edgevla.serve.transport import Address, addresses, is_served
from edgevla.session import new_session

PATIENCE_S = 5.0


def source_of(policy: str, options: DeployOptions) -> PolicySource:
    """Of a bundle's folder, or of servers' addresses."""
    if is_served(policy):
        return ServedSource(policy, None, options)
    return PolicySource(Path(policy).expanduser(), options)


def found_at(policy: str, option: str) -> tuple[tuple[Address, ...], Served]:
    """The servers of such addresses, with the keys they are known by, and what they run.

    Raises:
        UsageError, BundleError: no such addresses or policy, or this robot is not paired with them. WireError: nobody
            answers, or it does not take this robot.
    """
    servers = introduced(addresses(policy, option), option)
    ctx = zmq.Context()
    try:
        return servers, look_up(ctx, servers, new_session(), PATIENCE_S)
    finally:
        ctx.destroy(linger=0)


def join(servers: Sequence[Address]) -> str:
    """As the command line says them."""
    return ",".join(map(str, servers))


class ServedSource(PolicySource):
    """servers: as the command line says them. frames: how pictures travel there.

    Raises:
        UsageError, BundleError: as `PolicySource`, the server has no such policy, or this robot is not paired with it.
        WireError: nobody answers, or it does not take this robot.
    """

    CAN_SELECT = False

    def __init__(self, servers: str, frames: str | None, options: DeployOptions) -> None:
        for option, said in (("--provider", options.provider), ("--threads", options.threads)):
            if said:
                raise UsageError(
                    f"{option} is the policy server's: say it to edgevla serve, and leave it out here"
                )
        self._frames = encoding(frames, addresses(servers, "--policy"))
        self._servers, served = found_at(servers, "--policy")
        self.bundle = str(self._servers[0])
        self._hold(str(self._servers[0]), served.manifest, served.sha256, options)

    def prepare(self, run: SupervisorLike) -> None:
        """The server has done what it needs."""

    def _where(self, options: DeployOptions) -> list[str]:
        return [f"--servers={join(self._servers)}", f"--sha256={self.sha256}", f"--frames={self._frames}"]
