"""How the arm stands: one word and one sentence for the header, from whoever knows it best. Pure.

The guardian's word counts before the loop's, because it owns the torque; the loop's counts while it is fresh. What is
old is called so, and nothing old is green.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgevla.monitor.outside import Outside

FRESH_NS = 500_000_000
"""A robot speaks at 30 to 200 Hz, and five times a second at least: a silence this long is news."""
MODES = {
    "idle": "bold",
    "running": "bold green",
    "holding": "bold yellow",
    "paused": "bold yellow",
    "homing": "bold cyan",
    "stopped": "bold",
    "emergency": "bold white on red",
}
TAKEN = {
    "held": ("HELD BY GUARDIAN", "held where it is"),
    "parking": ("PARKING", "lowered at reduced torque"),
}
"""States of a guardian that has the arm in its hands -> the header's word, and what it does."""
ALARM = "bold white on red"
LED = "the leader drives, not the policy"
SHADOW = "nothing is sent to the arm; ┃ is what the policy would do"
LED_SHADOW = "the leader moves the arm; ┃ is what the policy would do"
SWITCH_OFF = "switch the arm's power off"


@dataclass(frozen=True)
class Standing:
    """word, style: what the header shows; sentence: why, and since when.

    is_live: whether the figures on the screen are of now.
    """

    word: str
    style: str
    sentence: str = ""
    is_live: bool = False


@dataclass(frozen=True)
class Heard:
    """What the loop said last.

    age_ns: of its newest state, None before the first. on: names of the servos that had torque in its newest health,
    None before the first. has_released: whether it said that it is done with the arm. is_unconfirmed: and that it could
    not confirm it of all. is_led: whether a person drives by the leader arm, in the policy's place.
    is_shadow: whether nothing that the policy wants is sent to the arm.
    """

    mode: str = ""
    reason: str = ""
    age_ns: int | None = None
    on: tuple[str, ...] | None = None
    has_released: bool = False
    is_unconfirmed: bool = False
    is_led: bool = False
    is_shadow: bool = False

    @property
    def is_fresh(self) -> bool:
        return self.age_ns is not None and self.age_ns < FRESH_NS

    @property
    def last(self) -> str:
        """The last thing known, as the end of a sentence."""
        if self.age_ns is None:
            return "it was never heard"
        return f"{self.mode} when it was last heard, {duration(self.age_ns)} ago"


def judge(heard: Heard, outside: Outside, now_ns: int) -> Standing:
    """The whole truth in the order of who knows best."""
    by_guardian = _guardian(heard, outside, now_ns)
    if not outside.is_folder_there:
        known = (
            f"the guardian said: {by_guardian.word.lower()}, {by_guardian.sentence}" if by_guardian else ""
        )
        style = by_guardian.style if by_guardian and by_guardian.style == ALARM else "bold"
        return Standing("ENDED", style, f"the deployment has ended; {known or heard.last}")
    if by_guardian is not None:
        return by_guardian
    return _speaking(heard) if heard.is_fresh else _silent(heard, outside)


def _guardian(heard: Heard, outside: Outside, now_ns: int) -> Standing | None:
    """What the guardian says when it has taken the bus, or what the loop left behind when it ended in order."""
    said = outside.guardian
    if said is None or said.state == "watching":
        return None
    since, why = duration(now_ns - said.since_ns), f"{said.why}; " if said.why else ""
    if said.state == "released":
        own = heard.on or () if heard.is_unconfirmed and not said.why else ()
        if names := [*said.unconfirmed, *own]:
            return Standing("RELEASED", ALARM, f"{SWITCH_OFF}: torque may still be ON at {', '.join(names)}")
        return Standing("RELEASED", "bold", f"{why}torque has been off for {since}")
    if said.state == "parked":
        return Standing(
            "PARKED", "bold yellow", f"{why}torque stays on, reduced, until its power is switched off"
        )
    if not outside.is_guardian_alive:
        return Standing("UNHELD", ALARM, f"{SWITCH_OFF}: the guardian died while it held it")
    word, doing = TAKEN[said.state]
    return Standing(word, "bold black on yellow", f"{why}{doing} for {since}")


def _speaking(heard: Heard) -> Standing:
    """The loop's own word; on the wire an arm that comes to rest, that is parked, and that is off, are all `stopped`."""
    if heard.mode == "stopped" and heard.on:
        if heard.is_unconfirmed:
            names = ", ".join(heard.on)
            return Standing(
                "STOPPED", ALARM, f"{SWITCH_OFF}: torque may still be ON at {names}", is_live=True
            )
        word = "PARKED" if heard.has_released else "STOPPING"
        return Standing(word, "bold yellow", heard.reason, is_live=True)
    word, style = heard.mode.upper(), MODES.get(heard.mode, "bold")
    if heard.mode == "running" and (heard.is_led or heard.is_shadow):
        word, style = ("SHADOW", "bold blue") if heard.is_shadow else ("LED BY HAND", "bold magenta")
    elif heard.is_shadow:
        word = f"SHADOW {word}"
    shadow = LED_SHADOW if heard.is_led else SHADOW
    more = [shadow] if heard.is_shadow else [LED] if heard.is_led else []
    reason = [heard.reason] if heard.reason and (heard.mode != "running" or not more) else []
    return Standing(word, style, "; ".join([*reason, *more]), is_live=True)


def _silent(heard: Heard, outside: Outside) -> Standing:
    """Nothing from the loop, and nothing from a guardian that acts."""
    is_guardian_dead = outside.guardian is not None and not outside.is_guardian_alive
    if is_guardian_dead and heard.on != ():
        return Standing(
            "UNHELD", ALARM, f"{SWITCH_OFF}: nobody holds it, its torque may still be ON; {heard.last}"
        )
    if is_guardian_dead:
        return Standing("ENDED", "bold", f"the robot's processes have ended; {heard.last}")
    if heard.age_ns is None and outside.preparing:
        return Standing("BUILDING", "bold cyan", outside.preparing)
    if heard.age_ns is None:
        return Standing("NO ROBOT YET", "bold", "waiting for its first word")
    return Standing(
        "LOST", ALARM, f"nothing from the robot for {duration(heard.age_ns)}; {heard.mode} before"
    )


def duration(ns: int) -> str:
    """For people, who read whole seconds."""
    seconds = max(0, ns) / 1e9
    if seconds < 1:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
