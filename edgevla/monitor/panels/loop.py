"""The control loop: rate, lateness, missed ticks; and the computer it runs on."""

from __future__ import annotations

from edgevla.board import Board
from edgevla.monitor.history import spark_width, sparkline
from edgevla.monitor.model import MonitorModel
from edgevla.monitor.panels.chunks import spread
from edgevla.monitor.panels.marks import joined, rate, title
from edgevla.monitor.rates import percentiles
from edgevla.monitor.rows import Cell, Row, aged, clean
from edgevla.monitor.standing import Standing

LATE_MS = 10
WIDE = 50
FLAT_MS = 1.0
"""A smaller lateness is drawn as none."""
BUSY, HOT_C = 0.9, 80.0
GIB = 1 << 30


def loop(model: MonitorModel, standing: Standing, width: int, height: int, now_ns: int) -> list[Row]:
    """One row: all of it; two: the loop and the board; three: with lateness in figures."""
    hz = model.clockwork.hz if standing.is_live else None
    late = percentiles(model.clockwork.late_ms)
    style = "bold red" if late and late.p99 > LATE_MS else ""
    missed = model.beat("robot").per_s("deadline_misses")
    speed: tuple[Cell, ...] = (("loop ", "bold"), (f"{hz:.1f} Hz" if hz else "-", ""))
    lost: tuple[Cell, ...] = ((f"missed {rate(missed or 0)}", "yellow" if missed else "dim"),)
    figures: tuple[Cell, ...] = ((f"late {spread(late, 2 if width >= WIDE else 1)} ms", style),)
    board = board_cells(model.board)
    if height == 1:
        infer = percentiles(model.inference_ms)
        stages = ((f"infer {infer.p50:.0f} ms", ""),) if infer else ()
        lateness = ((f"late p99 {late.p99:.1f} ms" if late else "", style),)
        row = ((" ", ""), *joined([speed, lateness, lost, stages, *board], width - 1))
        return [row if standing.is_live else aged(row)]
    line = _lateness(model, width, now_ns, style)
    if height == 2:
        figures = ((f"late {spread(late, 1)} ms", style),)
        head = title("loop", width, *speed[1:], *figures, *lost)
        rows = [head, joined([*line[-1:], *board], width - 1)]
    else:
        head = title("loop", width, *speed[1:], *lost)
        rows = [head, (*((" ", ""),), *joined([figures, *line], width - 1))]
    if not standing.is_live:
        rows = [aged(row) for row in rows]
    if height > 2:
        rows.append((*((" ", ""),), *joined([(("board", "bold"),), *board, *_memories(model)], width - 1)))
    return rows


def _lateness(model: MonitorModel, width: int, now_ns: int, style: str) -> list[tuple[Cell, ...]]:
    room = spark_width(max(10, min(40, width - 46)))
    cells = model.late.cells(0, room, now_ns)
    return [((sparkline(cells, FLAT_MS, floor=0.0)[0], style or "green"),)]


def board_cells(board: Board) -> list[tuple[Cell, ...]]:
    """What the board tells of itself, what matters first."""
    found: list[tuple[Cell, ...]] = []
    if board.is_throttled:
        found.append((("THROTTLED", "bold red"),))
    if board.busy is not None:
        style = "yellow" if board.busy > BUSY else ""
        found.append(((f"cpu {board.busy:.0%}", style),))
    if board.gpu_busy is not None:
        found.append(((f"gpu {board.gpu_busy:.0%}", ""),))
    if board.hottest is not None:
        name, celsius = board.hottest
        found.append(
            ((f"{celsius:.0f} °C", "bold red" if celsius >= HOT_C else ""), (f" {clean(name)}", "dim"))
        )
    if board.load is not None:
        found.append(((f"load {board.load:.1f} on {board.n_cores} cores", ""),))
    if board.memory_used is not None and board.memory_total:
        share = board.memory_used / board.memory_total
        words = f"memory {board.memory_used / GIB:.1f} of {board.memory_total / GIB:.1f} GB"
        found.append(((words, "yellow" if share > BUSY else ""),))
    return found


def _memories(model: MonitorModel) -> list[tuple[Cell, ...]]:
    """Of the processes, the largest first."""
    largest = sorted(model.rss_bytes.items(), key=lambda item: -item[1])
    return [((f"{clean(name)} {rss >> 20} MB", "dim"),) for name, rss in largest if rss >> 20]
