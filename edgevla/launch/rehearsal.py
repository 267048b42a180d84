"""`deploy --dry-run`: everything that is checked before torque, what would be done, and the end.

Opened are the bundle (every file of it), its engine, and the cameras. The arm is not: an emulated one of the same
profile stands in, because connecting to a real one writes servo settings. So the line, the servos and their calibration
are what this does not know; `edgevla doctor` does.
"""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from edgevla.launch.deployment import execution_words
from edgevla.launch.screen import write
from edgevla.launch.supervisor import AskedToStop

if TYPE_CHECKING:
    from edgevla.launch.supervisor import Supervisor


def rehearse(supervisor: Supervisor, *, as_json: bool) -> int:
    """Prints the plan; the exit code: 0, or 130 after Ctrl-C.

    Raises:
        EdgeVLAError, OSError: why the deployment would not have begun.
    """
    supervisor.asked.obey_signals()
    try:
        start = supervisor.prepare()
        plan = {
            "robot": supervisor.robot.robot,
            "policy": supervisor.source.name,
            "cameras": {c.name: f"{c.source} {c.width}x{c.height}" for c in supervisor.cameras},
            "execution": execution_words(supervisor.source.execution, start.trained_delay),
            "fps": start.fps,
            "latency_ms": round(start.latency_ms, 1),
            "task": start.task,
        }
    except (AskedToStop, KeyboardInterrupt):
        return 130
    finally:
        supervisor.end()
    write(sys.stdout, json.dumps(plan, indent=1) if as_json else _described(plan, supervisor))
    return 0


def _described(plan: dict[str, Any], supervisor: Supervisor) -> str:
    o = supervisor.options
    cameras = ", ".join(f"{name} ({source})" for name, source in plan["cameras"].items()) or "none"
    lines = [
        f"dry run: {plan['policy']} would drive {plan['robot']}, execution {plan['execution']}",
        f"  policy    {plan['fps']:g} Hz, {plan['latency_ms']:g} ms per inference here",
        f"  cameras   {cameras}",
        f"  task      {plan['task'] or '(none)'}",
        "  nothing has moved",
    ]
    if o.has_stand_in:
        ports = "".join(f" --port {port}" for port in o.ports)
        lines.append(
            "  not looked at: the line, the servos, their calibration. Next: edgevla doctor "
            f"--robot {o.robot}{ports}"
        )
    return "\n".join(lines)
