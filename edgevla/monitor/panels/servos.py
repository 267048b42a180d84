"""Servos of all arms, the worst first: temperature, voltage, load, torque, and trouble on the line as rates."""

from __future__ import annotations

from edgevla.monitor.model import MonitorModel, ServoRow
from edgevla.monitor.panels.marks import HEAD, joined, measured, old_title, short_name
from edgevla.monitor.rates import NOTEWORTHY
from edgevla.monitor.rows import OLD, Cell, Row, clean, column

COMPACT, RICH = 25, 43
"""Cells beside the name from which voltage and retries, and all rates, have room."""
BAND_C = 5
"""Servos within so many degrees of each other keep the order of the profile: no row jumps for nothing."""


def servos(model: MonitorModel, width: int, height: int, now_ns: int) -> list[Row]:
    """One row: the worst servo in words."""
    shown = sorted(model.servos(now_ns), key=_badness)
    if height == 1:
        return [_worst(model, shown, width, now_ns)]
    name = 13 if width < 46 else max([13, *(len(s.name) + 1 for s in shown)])
    words = f"{'servo':<{name}} °C"
    room = width - name
    words += "    V load on retry/s" if room >= COMPACT else " load on"
    words += " damaged/s  late/s" if room >= RICH else ""
    rows = [servo_row(servo, width, name) for servo in shown[: height - 1]]
    if len(shown) > len(rows) and rows:
        more = f"  {len(shown) - len(rows)} more"
        words += more if len(words) + len(more) <= width else ""
    if not shown:
        return [((words, HEAD),), ((" nothing heard of them yet", "dim italic"),)]
    if model.is_health_old(now_ns):
        return [old_title(words, name, model.health_ns, now_ns), *map(_aged_but_torque, rows)]
    said = _lines(model, width)
    if not said or sum(len(text) for text, _ in said) + len(words) <= width:
        return [((words, HEAD), *said), *rows]
    return [((words, HEAD),), said, *rows]


def _badness(servo: ServoRow) -> tuple[object, ...]:
    torque = {None: 0, False: 1, True: 2}[servo.is_torque_on]
    band = -int(servo.temperature_c // BAND_C) if servo.temperature_c == servo.temperature_c else 0
    return (not servo.is_worrying, not servo.trouble.is_noteworthy, torque == 0 and -1, band)


def servo_row(servo: ServoRow, width: int, name: int) -> Row:
    style = "bold red" if servo.is_worrying else ""
    on, on_style = {True: ("on ", ""), False: ("off", "yellow"), None: ("?  ", "bold red")}[
        servo.is_torque_on
    ]
    words = servo.name if len(servo.name) <= name else short_name(servo.name)
    cells: list[Cell] = [
        (column(clean(words), name), style),
        (f" {measured(servo.temperature_c, 2, 0)}", style),
    ]
    room = width - name
    if room >= COMPACT:
        cells.append((f" {measured(servo.voltage_v, 4, 1)}", ""))
    cells += [(f" {measured(servo.load_percent, 3, 0)}%", style), (" " + on, on_style)]
    if room >= COMPACT:
        cells.append(_rate(servo.trouble.retries, 7))
    if room >= RICH:
        cells += [_rate(servo.trouble.corrupt, 10), _rate(servo.trouble.stale, 8)]
    return tuple(cells)


def _worst(model: MonitorModel, shown: list[ServoRow], width: int, now_ns: int) -> Row:
    if not shown:
        return (("servos", "bold"), (" nothing heard of them yet", "dim italic"))
    worst = shown[0]
    on = sum(servo.is_torque_on is True for servo in shown)
    unknown = sum(servo.is_torque_on is None for servo in shown)
    groups: list[tuple[Cell, ...]] = [
        (("servos", "bold"), (f" {on} of {len(shown)} on", "")),
        *([((f"{unknown} not known", "bold red"),)] if unknown else []),
        (
            (f"worst {clean(worst.name)} ", "bold red" if worst.is_worrying else ""),
            (f"{measured(worst.temperature_c, 2, 0)} °C {measured(worst.load_percent, 1, 0)}%", ""),
        ),
        *([(cell,) for cell in _lines(model, width)]),
    ]
    row = joined(groups, width)
    return _aged_but_torque(row) if model.is_health_old(now_ns) else row


def _lines(model: MonitorModel, width: int) -> Row:
    """What all servos of a line suffer alike, which is its cable's or adapter's trouble."""
    said = [
        f"line {clean(bus)}: {trouble.retries:.0f} retries/s, {trouble.stale:.0f} late/s"
        for bus, trouble in model.shared_trouble().items()
        if trouble.is_noteworthy
    ]
    text = "  " + "; ".join(said)
    return ((column(text, width) if len(text) > width else text, "yellow"),) if said else ()


def _rate(per_s: float, width: int) -> Cell:
    text = f"{per_s:.1f}" if per_s >= 0.05 else "-"
    return (f"{text:>{width}}", "yellow" if per_s > NOTEWORTHY else "dim")


def _aged_but_torque(row: Row) -> Row:
    """Grey, but for the `?` of a torque that nobody knows."""
    return tuple((text, style if text.strip() == "?" else OLD) for text, style in row)
