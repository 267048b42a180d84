"""A policy that infers at a policy server, as the source of a deployment's actions: `edgevla deploy --policy tcp://...`."""

from __future__ import annotations

import zmq

from edgevla.errors import UsageError
from edgevla.launch.deployment import DeployOptions
from edgevla.launch.sources import PolicySource
from edgevla.serve.authority import introduced
from edgevla.serve.pictures import encoding
from edgevla.serve.remote import look_up
from edgevla.serve.transport import addresses
from edgevla.session import new_session

PATIENCE_S = 3.0


class ServedSource(PolicySource):
    """servers: as the command line says them. frames: how pictures travel there.

    Raises:
        UsageError, BundleError: as `PolicySource`, the server has no such policy, or this robot is not paired with it.
        WireError: nobody answers, or it does not take this robot.
    """

    def __init__(self, servers: str, frames: str | None, options: DeployOptions) -> None:
        self._servers = addresses(servers, "--policy")
        for option, said in (("--provider", options.provider), ("--threads", options.threads)):
            if said:
                raise UsageError(
                    f"{option} is the policy server's: say it to edgevla serve, and leave it out here"
                )
        self._frames = encoding(frames, self._servers)
        self._servers = introduced(self._servers, "--policy")
        ctx = zmq.Context()
        try:
            served = look_up(ctx, self._servers, new_session(), PATIENCE_S)
        finally:
            ctx.destroy(linger=0)
        self.bundle = str(self._servers[0])
        self._hold(str(self._servers[0]), served.manifest, served.sha256, options)

    def _where(self, options: DeployOptions) -> list[str]:
        servers = ",".join(map(str, self._servers))
        return [f"--servers={servers}", f"--sha256={self.sha256}", f"--frames={self._frames}"]
