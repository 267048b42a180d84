"""What the monitor shows: each widget turns a part of `MonitorModel` into text. No sockets, no decisions."""

from __future__ import annotations

import math

import numpy as np
from rich.console import Group
from rich.style import Style
from rich.table import Table
from rich.text import Text
from textual.widgets import Static

from edgevla.monitor.model import Joint, MonitorModel, Percentiles, percentiles

MODE_STYLES = {
    "running": "bold green",
    "holding": "bold yellow",
    "paused": "bold yellow",
    "homing": "bold cyan",
    "stopped": "bold white",
    "emergency": "bold white on red",
}
SEVERITY_STYLES = {"info": "dim", "warning": "yellow", "error": "bold red", "stop": "bold white on red"}
BAR_CELLS = 14


def joint_bar(joint: Joint, cells: int = BAR_CELLS) -> Text:
    """The joint's range as a line: `●` present, `┃` goal (red when a limit changed it)."""

    def cell(value: float) -> int | None:
        if not math.isfinite(value) or joint.high <= joint.low:
            return None
        share = (value - joint.low) / (joint.high - joint.low)
        return min(cells - 1, max(0, round(share * (cells - 1))))

    bar = Text("─" * cells, style="dim")
    goal, present = cell(joint.goal), cell(joint.present)
    marks = [(goal, "┃", "bold red" if joint.limited_by else "cyan"), (present, "●", "bold green")]
    for position, mark, style in marks:
        if position is not None:
            bar = bar[:position] + Text(mark, style=style) + bar[position + 1 :]
    return bar


def number(value: float) -> str:
    return f"{value:7.1f}" if math.isfinite(value) else "      -"


class Header(Static):
    """One line: robot, mode, bundle, task, what the arm is waiting for."""

    def show(self, model: MonitorModel) -> None:
        line = Text.assemble(
            (f" {model.robot or 'no robot yet'} ", "bold"),
            (f" {model.mode.upper()} ", MODE_STYLES.get(model.mode, "bold")),
            f"  {model.bundle}",
        )
        if model.task:
            line.append(f"  “{model.task}”", style="italic")
        if model.reason:
            line.append(f"  {model.reason}", style="yellow")
        self.update(line)


class Joints(Static):
    """Goal against present, per joint; two columns without bars when the arm has more joints than lines."""

    def show(self, model: MonitorModel) -> None:
        if not model.joints:
            self.update(Text("waiting for the robot", style="dim italic"))
            return
        n_lines = max(1, self.size.height - 1)
        n_columns = 2 if len(model.joints) > n_lines else 1
        heads = ("joint", "present", "   goal", "range") if n_columns == 1 else ("joint", "   now", "  goal")
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_row(*(Text(t, style="bold dim") for t in heads * n_columns))
        n_rows = -(-len(model.joints) // n_columns)
        for row in range(n_rows):
            cells: list[Text] = []
            for joint in model.joints[row::n_rows]:
                cells += self._cells(joint, has_bar=n_columns == 1)
            table.add_row(*cells)
        self.update(table)

    def _cells(self, joint: Joint, *, has_bar: bool) -> list[Text]:
        name = joint.name.removesuffix(".pos")
        cells = [
            Text(name[:14] if has_bar else short_name(name), no_wrap=True),
            Text(number(joint.present)[0 if has_bar else 1 :], style="red" if joint.age_ms > 100 else ""),
            Text(number(joint.goal)[0 if has_bar else 1 :], style="bold red" if joint.limited_by else ""),
        ]
        return [*cells, joint_bar(joint)] if has_bar else cells


def short_name(name: str) -> str:
    """`left_forearm_roll` -> `l for_rol`: enough to tell joints apart in nine cells."""
    side = ""
    if name.startswith(("left_", "right_")):
        side, name = f"{name[0]} ", name.split("_", 1)[1]
    words = name.split("_")
    return side + (words[0][:7] if len(words) == 1 else "_".join(word[:3] for word in words[:2]))


class Timing(Static):
    """The control loop, the policy, and the queue between them."""

    def show(self, model: MonitorModel) -> None:
        rate = f"{model.loop_hz:.1f} Hz" if model.loop_hz else "-"
        stages = "  ".join(f"{name} {ms:.0f}" for name, ms in model.stage_ms.items() if ms >= 0.5)
        late, inference, age = map(percentiles, (model.late_ms, model.inference_ms, model.image_age_ms))
        lines = [
            Text(f"loop      {rate}  tick {model.tick}  missed {model.n_late_ticks}"),
            Text(f"late ms   {_spread(late, 2)}", style="red" if late and late.p99 > 10 else ""),
            Text(f"infer ms  {_spread(inference, 1)}"),
            Text(f"  of it   {stages or '-'}", style="dim"),
            Text(f"image ms  {_spread(age, 0)}"),
            Text.assemble("queue     ", queue_bar(model)),
        ]
        self.update(Group(*lines))


def queue_bar(model: MonitorModel, cells: int = 12) -> Text:
    """How much of the newest chunk is left to execute."""
    size = max(1, model.queue_size)
    filled = round(min(1.0, model.queue_left / size) * cells)
    style = "green" if model.queue_left > size // 5 else "red"
    return Text.assemble(
        ("█" * filled, style), ("░" * (cells - filled), "dim"), f" {model.queue_left}/{model.queue_size}"
    )


def _spread(p: Percentiles | None, digits: int) -> str:
    return f"p50 {p.p50:.{digits}f}  p99 {p.p99:.{digits}f}  max {p.worst:.{digits}f}" if p else "-"


class Servos(Static):
    """Temperature, voltage, load and trouble, per servo."""

    def show(self, model: MonitorModel) -> None:
        table = Table.grid(padding=(0, 1))
        heads = ("servo", "°C", "   V", "load", "on ", "retry")
        table.add_row(*(Text(t, style="bold dim") for t in heads))
        room = max(1, self.size.height - 1)
        shown = model.servos
        if len(shown) > room:  # the worst first: what fits must be what matters
            shown = sorted(shown, key=lambda s: (not s.is_worrying, -s.temperature_c))[:room]
        for servo in shown:
            style = "bold red" if servo.is_worrying else ""
            table.add_row(
                Text(_servo_name(servo.name), style=style),
                Text(f"{servo.temperature_c:2.0f}", style=style),
                Text(f"{servo.voltage_v:4.1f}"),
                Text(f"{servo.load_percent:3.0f}%", style=style),
                Text("on" if servo.is_torque_on else "off", style="" if servo.is_torque_on else "yellow"),
                Text(f"{servo.n_retries}", style="yellow" if servo.n_retries else "dim"),
            )
        self.update(table)


def _servo_name(name: str) -> str:
    name = name.removesuffix(".pos")
    return name if len(name) <= 13 else short_name(name)


class Cameras(Static):
    """Thumbnails in half blocks: two pixels per character cell, upper and lower."""

    def show(self, model: MonitorModel) -> None:
        if not model.thumbnails:
            self.update(Text("no camera yet", style="dim italic"))
            return
        n = len(model.thumbnails)
        width = max(8, (self.size.width - (n - 1)) // n) if self.size.width else 32
        height = max(4, self.size.height - 1) if self.size.height else 8
        table = Table.grid(padding=(0, 1, 0, 0))
        table.add_row(*(Text(name[:width], style="bold dim") for name in model.thumbnails))
        table.add_row(*(half_blocks(t.jpeg, width, height) for t in model.thumbnails.values()))
        self.update(table)


def half_blocks(jpeg: bytes, width: int, height: int) -> Text:
    """A JPEG as `height` lines of at most `width` characters, proportions kept; one word if it cannot be read."""
    import cv2  # half of the monitor's start-up time, and the first frame comes later

    image = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) if jpeg else None
    if image is None:
        return Text("unreadable", style="dim")
    scale = min(width / image.shape[1], 2 * height / image.shape[0])
    size = (max(1, int(image.shape[1] * scale)), max(2, int(image.shape[0] * scale) // 2 * 2))
    rgb = cv2.cvtColor(cv2.resize(image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_BGR2RGB)
    text = Text()
    for y in range(0, rgb.shape[0], 2):
        for upper, lower in zip(rgb[y], rgb[y + 1], strict=True):
            text.append("▀", Style(color=_colour(upper), bgcolor=_colour(lower)))
        text.append("\n")
    return text


def _colour(rgb: np.ndarray) -> str:
    return f"#{rgb[0]:02x}{rgb[1]:02x}{rgb[2]:02x}"


class Events(Static):
    """The last events, newest at the bottom; silent nodes first, because silence is the worst news."""

    def show(self, model: MonitorModel, now_ns: int) -> None:
        height = max(2, self.size.height)
        lines = [
            Text(f"{source} has been silent for more than 1.5 s", style="bold red")
            for source in model.phases
            if model.is_silent(source, now_ns)
        ]
        lines += [
            Text.assemble((f"{e.source}: ", "dim"), (e.text, SEVERITY_STYLES.get(e.severity, "")))
            for e in list(model.events)[-(height - len(lines)) :]
        ]
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        self.update(Group(*lines))
