"""What a bundle was held against, in words: for `inspect` and the report. Needs no torch."""

from __future__ import annotations

from edgevla.manifest_record import ActionParity, Parity


def certificate_words(parity: Parity) -> str:
    """What the bundle was held against from raw frames to robot units, in a sentence."""
    p = parity.pipeline
    if p is None:
        return "was not compared with the checkpoint's own pipelines, only with torch"
    verdict = "does what" if p.passed else "does NOT do what"
    return f"{verdict} {p.compared_with} do, on {p.n_samples} samples; {_margin(p.actions)}"


def _margin(a: ActionParity) -> str:
    if a.tolerance_per_joint is None:  # of a bundle from before joints were judged
        return f"the worst chunk's cosine is {a.min_cosine or 0.0:.5f}"
    errors = [*a.max_abs_per_joint, *(a.p99_abs_per_joint or ())]
    allowed = [*a.tolerance_per_joint, *(a.p99_tolerance_per_joint or ())]
    worst = max((e / t for e, t in zip(errors, allowed, strict=True) if t > 0), default=0.0)
    return f"worst joint at {worst:.0%} of its tolerance"
