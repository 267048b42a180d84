"""Every error a user can meet, as one tree.

    EdgeVLAError                 1   something a person must act on
      UsageError                 2   the command line asked for something that cannot be
      ConfigError                1   a TOML or JSON file says something wrong (file, table, key)
      MissingExtraError          1   an optional dependency is not installed; names the extra
      DatasetError               1   a dataset is damaged or does not fit (file, feature, episode)
      CheckpointError            1   a policy folder is damaged or unknown
      BundleError                1   a policy bundle is damaged or does not fit the robot
      ParityError                1   an exported graph does not compute what torch computes
      EngineError                1   an inference engine or device is not there, or failed
      WireError                  1   a message broke the wire format
      RemoteError                1   another machine cannot be reached over ssh, or refused what was brought (host)
      CameraError                1   a camera cannot be opened or gives other frames than declared
      BusError                   1   a servo bus failed (port, motor, register)
        CalibrationError         1   calibration missing, implausible, or different from the servos'

A message is one sentence: what happened, to what thing, with which value, what was expected, what to do.
Callers catch by class and read fields; nobody searches the text.
"""

from __future__ import annotations

from typing import Any, TypeVar

E = TypeVar("E", bound="EdgeVLAError")


class EdgeVLAError(Exception):
    """Base of the tree. `exit_code` is what the command line ends with; `fields` are for programs."""

    exit_code = 1

    def __init__(self, message: str, **fields: Any) -> None:
        super().__init__(message)
        self.fields = fields

    def __reduce__(self) -> tuple[Any, ...]:
        """From one process to another: a constructor may want other words than the message."""
        return made_again, (type(self), str(self), vars(self))


def made_again(kind: type[E], message: str, state: dict[str, Any] | None = None) -> E:
    """An error of that class with this message, whatever its constructor takes. state: its attributes."""
    made = kind.__new__(kind)
    made.args = (message,)
    vars(made).update({"fields": {}} if state is None else state)
    return made


class UsageError(EdgeVLAError):
    exit_code = 2


class ConfigError(EdgeVLAError):
    pass


class MissingExtraError(EdgeVLAError):
    """`MissingExtraError("cpu", "onnxruntime")`: the one place that says which extra to install."""

    def __init__(self, extra: str, module: str, why: str = "") -> None:
        from edgevla.extras import (
            install_words,  # the guardian imports this module: nothing that it never needs
        )

        reason = f" ({why})" if why else ""
        super().__init__(
            f"{module} is not installed{reason}. Install it with: {install_words(extra)}",
            extra=extra,
            module=module,
        )


class DatasetError(EdgeVLAError):
    pass


class CheckpointError(EdgeVLAError):
    pass


class BundleError(EdgeVLAError):
    pass


class ParityError(EdgeVLAError):
    pass


class EngineError(EdgeVLAError):
    pass


class WireError(EdgeVLAError):
    """`reason` is the counter's name: schema, session, type, range, size, format."""

    reason: str = "format"

    def __init__(self, message: str, reason: str = "format", **fields: Any) -> None:
        super().__init__(message, reason=reason, **fields)
        self.reason = reason


class RemoteError(EdgeVLAError):
    pass


class CameraError(EdgeVLAError):
    pass


class BusError(EdgeVLAError):
    """A servo bus failed. `port`, `motor_id`, `register` are None where they do not apply."""

    port: str | None = None
    motor_id: int | None = None
    register: str | None = None

    def __init__(
        self,
        message: str,
        *,
        port: str | None = None,
        motor_id: int | None = None,
        register: str | None = None,
        **fields: Any,
    ) -> None:
        super().__init__(message, port=port, motor_id=motor_id, register=register, **fields)
        self.port, self.motor_id, self.register = port, motor_id, register


class CalibrationError(BusError):
    pass
