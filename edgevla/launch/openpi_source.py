"""A policy that infers at an openpi server, as the source of a deployment's actions: `edgevla deploy --policy ws://...`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgevla.cameras import CameraSettings
from edgevla.errors import UsageError
from edgevla.launch.deployment import DeployOptions
from edgevla.launch.sources import PolicySource, SupervisorLike
from edgevla.serve.openpi.address import check_extra, ws_address

if TYPE_CHECKING:
    from edgevla.serve.openpi.declared import ServerMap

PATIENCE_S = 3.0
SEPARATE = {
    "--provider": "is the openpi server's; leave it out here",
    "--threads": "is the openpi server's; leave it out here",
    "--n-steps": "is the openpi server's: its protocol cannot carry a number of denoise steps; leave it out",
    "--frames": "is for EdgeVLA's own policy servers: openpi's protocol carries pixels; leave it out",
    "--allow-lost-cameras": "cannot be: an openpi server cannot be told that a camera is lost; leave it out",
}


class OpenpiSource(PolicySource):
    """server, keys, frames: as the command line says them.

    Raises:
        UsageError, ConfigError, MissingExtraError: as `PolicySource`, or what the map or the protocol cannot do.
        WireError: nobody answers.
    """

    CAN_SELECT = False

    def __init__(self, server: str, keys: Path | None, frames: str | None, options: DeployOptions) -> None:
        self._server = ws_address(server, "--policy")
        _check(server, keys, frames, options)
        check_extra()
        from edgevla.serve.openpi.declared import ServerMap
        from edgevla.serve.openpi.remote import OpenpiPolicy

        assert keys is not None, "it was checked"
        self._keys: ServerMap = ServerMap(keys.resolve())
        OpenpiPolicy(self._server, self._keys, PATIENCE_S).close()
        self.bundle = str(self._server)
        self._hold(str(self._server), self._keys.manifest, self._keys.sha256, options)

    def fit(self, run: SupervisorLike) -> list[CameraSettings]:
        self._keys.check_zero(run.robot)
        if self._keys.manifest.trained_speed_p999 is None:
            run.say(
                "warning", "deploy",
                f"{self._keys.path} declares no speeds: the arm is kept to the caps of its profile alone",
            )  # fmt: skip
        return super().fit(run)

    def prepare(self, run: SupervisorLike) -> None:
        """The server has done what it needs."""

    def _where(self, options: DeployOptions) -> list[str]:
        return [f"--servers={self._server}", f"--keys={self._keys.path}", f"--sha256={self.sha256}"]


def _check(server: str, keys: Path | None, frames: str | None, options: DeployOptions) -> None:
    """
    Raises:
        UsageError: options that an openpi server cannot follow.
    """
    said = (options.provider, options.threads, options.n_steps, frames, options.may_lose_cameras)
    for option, is_said in zip(SEPARATE, said, strict=True):
        if is_said:
            raise UsageError(f"{option} {SEPARATE[option]}")
    if keys is None:
        raise UsageError(
            f"--policy {server}: an openpi server does not say which joints, units, rate and pictures it means; declare "
            "them in a map: --keys MAP.toml (docs/openpi.md)"
        )
    if (options.execution or {}).get("kind") == "rtc":
        raise UsageError(
            "--execution rtc: openpi's protocol cannot carry the actions that the arm is committed to, so chunks could "
            "not be guided; choose sync, async or ensemble"
        )
