"""The summary of a run as a person reads it: the figures of `runlog.py` in words, what matters first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgevla.launch.shadow import words

RED_LINE = 0.02
"""A larger share of clipped ticks means that the arm does not do what the policy wants (design section 4)."""
LIMITS = {
    "limit": "the joint's limit held back",
    "training": "the speed cap from training (1.5 times what it showed) held back",
    "profile": "the speed cap of the robot's profile held back",
}
"""What held a joint back, in words: the robot counts `limit` and `speed`, and the run knows whose cap the speed's is."""


def describe_summary(s: Mapping[str, Any]) -> str:
    """The summary as a person reads it, red lines included."""

    def line(name: str, figures: Mapping[str, float] | None, unit: str) -> str:
        if not figures:
            return f"  {name:<16} -"
        return f"  {name:<16} p50 {figures['p50']:.2f}  p99 {figures['p99']:.2f}  max {figures['max']:.2f} {unit}"

    bus, clipped = s["bus"], clipped_words(s["clipped_by"], s.get("speed_caps") or {}, s["ticks_running"])
    ages = (s.get("trained_camera_age_ms") or {}).values()
    # Live ages are the oldest camera's, so these are too.
    worst = {name: max(age[name] for age in ages) for name in ("p50", "p99")} if ages else None
    trained = f"; in training p50 {worst['p50']:.2f}  p99 {worst['p99']:.2f}" if worst else ""
    driver = "leader" if (s.get("bundle") or "").startswith("leader ") else "policy"
    lines = [f"EMERGENCY STOP {stop['words']}" for stop in s["emergency_stops"]]
    lines += [
        f"ran {s['duration_s']} s: {s['ticks_running']} ticks under the {driver}, {s['inferences']} inferences",
        line("lateness", s["lateness_ms"], "ms") + f"; {s['deadline_misses']} deadlines missed",
        line("inference", s["inference_ms"], "ms"),
        line("image age", s["image_age_ms"], "ms") + trained,
        f"  {'chunks':<16} {s['stale_actions']} actions skipped as past, {s['late_chunks']} chunks too late, "
        f"{s['unanswered_requests']} requests unanswered, waited {s['waiting_share']:.1%} of the time",
        f"  {'bus':<16} {bus['retries']} retries, {bus['corrupt']} damaged answers, {bus['stale']} stale values",
        f"  {'clipped':<16} {s['clipped_share']:.2%} of ticks" + (f": {clipped}" if clipped else ""),
    ]
    if shadow := s.get("shadow"):
        by_whom = "a leader arm moved it" if s["led_share"] else "nothing was sent to the arm"
        n_stops = len(s["emergency_stops"])
        lines[n_stops] = f"SHADOW, {by_whom}: {lines[n_stops]}"
        lines += words(shadow)
    if s.get("takeovers"):
        lines.append(f"  {'led by hand':<16} {s['takeovers']} times, {s['led_share']:.1%} of the time")
    if s["seam_jump"] and not shadow:
        seam, within = s["seam_jump"], s["within_chunk"] or {"p95": 0.0}
        lines.append(
            f"  {'seams':<16} p95 {seam['p95']:.2f}, within chunks {within['p95']:.2f} (units per tick^2)"
        )
    if board := s.get("board"):
        lines.append(f"  {'machine':<16} {board_words(board)}")
    if s["losses"]:
        lines.append(f"  {'lost or refused':<16} " + ", ".join(f"{k} {v}" for k, v in s["losses"].items()))
    if s["clipped_share"] > RED_LINE and shadow:
        lines.append(
            f"safety would have changed {s['clipped_share']:.1%} of the policy's goals. Where the arm does not go as "
            "the policy wants, every chunk begins where it stands, which is a jump back"
        )
    elif s["clipped_share"] > RED_LINE:
        wanted = f"the {driver} wanted" if s["inferences"] else "it was told"
        lines.append(
            f"RED: safety changed {s['clipped_share']:.1%} of the goals (limit {RED_LINE:.0%}): the arm did not do what "
            f"{wanted}; {clipped or 'edgevla inspect tells more'}"
        )
    if board and (board["throttled_share"] or 0) > RED_LINE:
        lines.append(
            f"RED: the machine was throttled {board['throttled_share']:.0%} of the time: it was slower than when the "
            "latency was measured; cool it, or choose another power mode"
        )
    return "\n".join(lines)


def board_words(board: Mapping[str, Any]) -> str:
    """Load, heat, clocks, memory, as far as the machine tells."""
    parts = []
    for name, key in (("cores", "busy"), ("GPU", "gpu_busy")):
        if figures := board[key]:
            parts.append(f"{name} {figures['p50']:.0%} busy")
    if heat := board["temperature_c"]:
        parts.append(f"{board['hottest_zone']} at most {heat['max']:.0f} °C")
    parts += [f"{name.upper()} at least {mhz:.0f} MHz" for name, mhz in board["least_mhz"].items()]
    if board["least_free_bytes"] is not None:
        parts.append(f"at least {board['least_free_bytes'] / 2**30:.1f} GB free")
    if board["throttled_share"] is not None:
        parts.append(f"throttled {board['throttled_share']:.1%} of the time")
    return ", ".join(parts) or "-"


def clipped_words(counters: Mapping[str, int], caps: Mapping[str, str], n_ticks: int) -> str:
    """Which joints, by which limit, how often: the worst first.

    counters: `clipped_<limit>_<joint>` -> ticks. caps: joint -> whose speed cap it has.
    """
    found: dict[str, list[tuple[int, str]]] = {}
    for name, n in counters.items():
        limit, _, joint = name.removeprefix("clipped_").partition("_")
        limit = caps.get(joint, limit) if limit == "speed" else limit
        found.setdefault(limit, []).append((n, joint.removesuffix(".pos")))
    worst_first = sorted(found.items(), key=lambda item: -max(item[1])[0])
    return "; ".join(
        f"{LIMITS.get(limit, limit)} {_shares(joints, n_ticks)}" for limit, joints in worst_first
    )


def _shares(joints: list[tuple[int, str]], n_ticks: int) -> str:
    return ", ".join(f"{joint} {n / max(1, n_ticks):.1%}" for n, joint in sorted(joints, reverse=True))
