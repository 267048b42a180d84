"""What a bundle was held against, in words: for `inspect` and the report. Needs no torch."""

from __future__ import annotations

from edgevla.manifest import Parity


def certificate_words(parity: Parity) -> str:
    """What the bundle was held against from raw frames to robot units, in a sentence."""
    p = parity.pipeline
    if p is None:
        return "was not compared with the checkpoint's own pipelines, only with torch"
    verdict = "does what" if p.passed else "does NOT do what"
    if p.actions.tolerance_per_joint is None:
        said = f"the worst chunk's cosine is {p.actions.min_cosine or 0.0:.5f}"
    else:
        pairs = zip(p.actions.max_abs_per_joint, p.actions.tolerance_per_joint, strict=True)
        worst = max((e / t for e, t in pairs if t > 0), default=0.0)
        said = f"worst joint at {worst:.0%} of its tolerance"
    return f"{verdict} {p.compared_with} do, on {p.n_samples} samples; {said}"
