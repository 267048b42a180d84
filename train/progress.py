"""What a person sees of a training run: a progress line, a log of JSON lines, TensorBoard, and a picture of the loss."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from edgevla.progress import duration

from .room import is_out_of_room
from .state import write_text

METRICS, PICTURE = "metrics.jsonl", "loss.png"


class TrainingLog:
    """Collects numbers of every step; means over `log_freq` steps go to `RUN/metrics.jsonl` and TensorBoard.

    done: steps that were finished before; lines of a killed run beyond them are dropped.
    out: where the progress line goes, None for nowhere. writes: False for all but the first of several processes.
    """

    def __init__(
        self,
        run: Path,
        *,
        n_steps: int,
        log_freq: int,
        done: int = 0,
        tensorboard: bool = False,
        out: TextIO | None = sys.stderr,
        writes: bool = True,
        clock: Any = time.monotonic,
    ) -> None:
        self.run, self.n_steps, self.log_freq, self.done = run, n_steps, log_freq, done
        self.out, self.writes, self.clock = out, writes, clock
        kept = [r for r in read_metrics(run) if r["step"] <= done]
        if writes:
            run.mkdir(parents=True, exist_ok=True)
            write_text(run / METRICS, "".join(json.dumps(r) + "\n" for r in kept))
        self._is_full = False
        self._board: Any = None
        if tensorboard and writes:
            from torch.utils.tensorboard.writer import SummaryWriter

            self._board = SummaryWriter(str(run / "tensorboard"), purge_step=done + 1)
        self._sums: dict[str, float] = defaultdict(float)
        self._n = 0
        self._begun = self._logged_at = self._shown_at = clock()
        self._smooth: float | None = None
        self.last: dict[str, Any] = kept[-1] if kept else {}

    def step(self, step: int, values: Mapping[str, float], lr: float) -> None:
        """Numbers of one finished step: `loss`, `grad_norm`, `data_s` (waiting for data), and the loss's parts."""
        for name, value in values.items():
            self._sums[name] += value
        self._n += 1
        loss = values["loss"]
        self._smooth = loss if self._smooth is None else 0.95 * self._smooth + 0.05 * loss
        if step % self.log_freq == 0 or step == self.n_steps:
            self._write(step, lr)
        self._show(step, lr)

    def evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """The figures of held-out episodes at a step."""
        self._record({"step": step, **{f"eval_{k}": v for k, v in values.items()}})
        self.say(f"step {step}: loss on held-out episodes {values['loss']:.4g}")

    def say(self, text: str) -> None:
        """One line for the person."""
        if self.out is not None:
            print(("\r\x1b[K" if self.out.isatty() else "") + text, file=self.out, flush=True)

    def close(self) -> None:
        if self.out is not None and self.out.isatty():
            print(file=self.out)
        if self._board is not None:
            with self._lossy():
                self._board.close()

    def _write(self, step: int, lr: float) -> None:
        now = self.clock()
        rate = self._n / max(now - self._logged_at, 1e-9)
        means = {name: total / self._n for name, total in self._sums.items()}
        self._record({"step": step, **means, "lr": lr, "steps_per_s": rate})
        self._logged_at, self._n = now, 0
        self._sums.clear()

    def _record(self, row: dict[str, Any]) -> None:
        self.last = {**self.last, **row}
        with self._lossy():
            if self.writes:
                with (self.run / METRICS).open("a") as file:
                    file.write(json.dumps(row) + "\n")
            if self._board is not None:
                for name, value in row.items():
                    if name != "step":
                        self._board.add_scalar(f"train/{name}", value, row["step"])

    @contextmanager
    def _lossy(self) -> Iterator[None]:
        """A full disk costs lines of the log, and no run; it is said once."""
        try:
            yield
        except OSError as error:
            if not is_out_of_room(error):
                raise
            if not self._is_full:
                self.say(f"no room for {self.run / METRICS}: lines are missing from here on")
            self._is_full = True

    def _show(self, step: int, lr: float) -> None:
        """At most a line per second on a terminal, every ten seconds elsewhere, and always the last one."""
        if self.out is None:
            return
        now, is_terminal = self.clock(), self.out.isatty()
        if now - self._shown_at < (0.5 if is_terminal else 10.0) and step != self.n_steps:
            return
        self._shown_at = now
        rate = (step - self.done) / max(now - self._begun, 1e-9)
        left = duration((self.n_steps - step) / rate)
        share = 100 * step // self.n_steps
        line = f"step {step}/{self.n_steps} ({share} %)  loss {self._smooth:.4g}  lr {lr:.2g}"
        line += f"  {rate:.3g} steps/s  {left} left" if step < self.n_steps else f"  {rate:.3g} steps/s"
        if is_terminal:
            width = os.get_terminal_size(self.out.fileno()).columns
            print("\r\x1b[K" + line[: width - 1], end="", file=self.out, flush=True)
        else:
            print(line, file=self.out, flush=True)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """Rows of the log; a last line cut short by a kill is left out."""
    path = run / METRICS
    rows = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


def draw_curves(run: Path, title: str) -> Path | None:
    """`RUN/loss.png` from the log: loss and its parts, held-out loss, learning rate. None while the log is empty."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = read_metrics(run)
    train = [r for r in rows if "loss" in r]
    held_out = [r for r in rows if "eval_loss" in r]
    if not train:
        return None
    steps = [r["step"] for r in train]
    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    loss = [r["loss"] for r in train]
    noisy = len(loss) > 20
    top.plot(steps, loss, color="tab:blue", alpha=0.3 if noisy else 1.0, label=None if noisy else "loss")
    if noisy:
        top.plot(steps, smooth(loss), color="tab:blue", label="loss (smoothed)")
    parts = [k for k in train[0] if k not in ("step", "loss", "grad_norm", "lr", "steps_per_s", "data_s")]
    for i, name in enumerate(parts[:6]):
        values = [r.get(name, math.nan) for r in train]
        top.plot(steps, smooth(values), f"C{i + 1}", linewidth=1, alpha=0.8, label=name)
    if held_out:
        xs, ys = [r["step"] for r in held_out], [r["eval_loss"] for r in held_out]
        top.plot(xs, ys, "o-", color="black", markersize=4, label="held-out episodes")
    if all(v > 0 for v in loss):
        top.set_yscale("log")
    top.set(ylabel="loss", title=title)
    top.legend(fontsize="small")
    top.grid(alpha=0.3, which="both")
    bottom.plot(steps, [r["lr"] for r in train], color="tab:gray")
    bottom.set(ylabel="learning rate", xlabel="step")
    bottom.set_ylim(bottom=0)
    bottom.grid(alpha=0.3)
    hidden = run / f".{PICTURE}-{os.getpid()}"
    figure.savefig(hidden, dpi=110, format="png")
    hidden.replace(run / PICTURE)
    return run / PICTURE


def smooth(values: list[float], share: float = 0.05) -> list[float]:
    """Running mean over about `share` of the curve, from its first value on."""
    longest = max(1.0, share * len(values))
    result: list[float] = []
    for i, value in enumerate(values):
        keep = 1 - 1 / min(i + 1.0, longest)
        is_new = not result or math.isnan(result[-1])
        result.append(value if is_new else keep * result[-1] + (1 - keep) * value)
    return result
