"""By which rule a bundle was judged, with its margin, and what the difference means for the arm: one wording for all
who tell it (the summary, the report, the refusal).
"""

from __future__ import annotations

from edgevla.joint_units import joint_name
from edgevla.manifest import Manifest, Parity

from .parity import MIN_COSINE, failures


def rule(parity: Parity) -> str:
    """What decided, and by how much: `cosine 0.99755 with torch's in the worst of 64 chunks; 0.999 is needed, ...`."""
    a = parity.actions
    if a.tolerance_per_joint is None:
        assert a.min_cosine is not None
        margin = a.min_cosine - MIN_COSINE
        side = f"{margin:.5f} to spare" if margin >= 0 else f"{-margin:.5f} too little"
        return (
            f"cosine {a.min_cosine:.5f} with torch's in the worst of {parity.n_samples} chunks; "
            f"{MIN_COSINE} is needed, {side}"
        )
    pairs = zip(a.max_abs_per_joint, a.tolerance_per_joint, strict=True)
    return f"{parity.n_samples} samples, worst joint at {max(e / t for e, t in pairs):.0%} of its tolerance"


def on_the_arm(m: Manifest) -> str:
    """The joint that differs most from torch: `elbow_flex 3.1 deg at most (4.1 % of its range), 0.4 deg on average`.
    Three of them where none has a tolerance of its own.
    """
    assert m.parity is not None
    a = m.parity.actions
    if a.range_per_joint is None or a.mean_abs_per_joint is None:
        return ""
    joints = zip(
        m.action.names,
        m.action.units,
        a.max_abs_per_joint,
        a.mean_abs_per_joint,
        a.range_per_joint,
        strict=True,
    )
    shares = sorted(
        ((largest / width, n, u, largest, mean) for n, u, largest, mean, width in joints), reverse=True
    )
    said = []
    most = 3 if a.tolerance_per_joint is None else 1
    for share, name, unit, largest, mean in shares[:most]:
        unit = "" if unit == "raw" else f" {unit}"
        most_of_it = f"{largest:.2g}{unit} at most ({100 * share:.2g} % of its range)"
        said.append(f"{joint_name(name)} {most_of_it}, {mean:.2g}{unit} on average")
    return "; ".join(said)


def refusal(m: Manifest, is_lower_precision: bool) -> str:
    """Why nothing was written, and what can be done."""
    assert m.parity is not None
    found = failures(m.parity, m.action.names)
    cosine = m.parity.actions.min_cosine
    if cosine is not None and not cosine >= MIN_COSINE:  # then the pipeline's cosine is too little as well
        found = [rule(m.parity), *(f for f in found if " cosine " not in f)]
    reason = "; ".join(found[:3])
    return (
        f"the exported {m.policy} does not compute what torch computes: {reason}. Against torch it moves "
        f"{on_the_arm(m)}. Nothing was written; "
        + ("--precision fp32 loses nothing, " if is_lower_precision else "")
        + "--allow-parity-failure writes it anyway and says so in its report, and edgevla eval CHECKPOINT BUNDLE "
        "--dataset D then shows what the difference is beside the policy's own errors"
    )
