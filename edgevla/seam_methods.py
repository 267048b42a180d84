"""What can be done about the seams between chunks, and what a bundle lacks for it: one table, read by `inspect` and
`deploy`, and by whoever must refuse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from edgevla.manifest import Manifest

USUAL_DRAWN = 8
FUTURE_INSTEAD = "its chunks begin where the one before leads to instead"
TRAIN_RTC = "train with --set rtc_training_max_delay=N"
ONE_PER_REQUEST = "a policy server makes one chunk per request; deploy the bundle itself for it"


@dataclass(frozen=True)
class SeamMethod:
    """option: of `edgevla deploy`. missing: what the bundle lacks, as what to do about it; None: nothing.
    at_server: what is missing where a policy server runs it; None: nothing."""

    name: str
    option: str
    missing: Callable[[Manifest], str | None]
    at_server: str | None = None


def missing_for_blend(m: Manifest) -> str | None:
    return "its chunks have one action" if m.chunk_size == 1 else None


def missing_for_select(m: Manifest, n: int = 2) -> str | None:
    """n: chunks to choose from."""
    if m.sample is None:
        return f"{m.policy} draws no noise, so all its chunks for one moment are the same"
    if m.batch.max < n:
        return f"export it with --max-batch {max(n, USUAL_DRAWN)}"
    return None


def most_drawn(m: Manifest) -> int:
    """Chunks that one inference can draw from an observation."""
    return 1 if m.sample is None else m.batch.max


def missing_for_guided(m: Manifest, n_steps: int | None = None) -> str | None:
    """n_steps: of the denoise loop; None: the bundle's. X-VLA's form (`inpaint`) is none of small steps."""
    mode = None if m.rtc is None else m.rtc.mode
    if m.future_offset:
        return FUTURE_INSTEAD
    if mode == "trained":
        return "its checkpoint is trained for a committed prefix instead"
    if mode != "inpaint" and is_one_step(m, n_steps):
        return "it corrects many small denoise steps, and this takes one, which it would throw too far"
    return f"{m.policy} has no guided form" if mode is None else None


def is_one_step(m: Manifest, n_steps: int | None = None) -> bool:
    """Whether flow matching gets by with a single denoise step here. n_steps: that was asked for."""
    flow = m.schedule is not None and m.schedule.kind == "linear"
    return flow and m.schedule is not None and (n_steps or m.schedule.n_steps) == 1


def missing_for_trained(m: Manifest) -> str | None:
    if m.future_offset:
        return FUTURE_INSTEAD
    if m.rtc is None and not is_one_step(m):
        return f"{m.policy} has no trained form"
    if m.rtc is None:
        return TRAIN_RTC
    return None if m.rtc.mode == "trained" else TRAIN_RTC


def missing_for_future(m: Manifest) -> str | None:
    return None if m.future_offset else "train with --set future_state_max_offset=N"


SEAM_METHODS = (
    SeamMethod("blend", "--blend N", missing_for_blend),
    SeamMethod("select", "--execution async --select N", missing_for_select, ONE_PER_REQUEST),
    SeamMethod("guided rtc", "--execution rtc", missing_for_guided),
    SeamMethod("trained rtc", "--execution rtc", missing_for_trained),
    SeamMethod("future state", "--execution async", missing_for_future),
)


def seam_words(m: Manifest, is_served: bool = False) -> str:
    """One line: what the bundle can do at seams and how it is said, then what it cannot and what would be needed."""
    found = {one: one.missing(m) or (one.at_server if is_served else None) for one in SEAM_METHODS}
    lacking = {one: missing for one, missing in found.items() if missing is not None}
    can = ", ".join(f"{one.name} ({one.option})" for one in SEAM_METHODS if one not in lacking)
    cannot = ", ".join(f"{one.name} ({missing})" for one, missing in lacking.items())
    return (can or "nothing") + (f"; not {cannot}" if cannot else "")
