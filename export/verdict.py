"""By which rule a bundle was judged, with its margin, what stays in float32 and why, and what the difference means for the
arm: one wording for all who tell it (the summary, the report, the refusal).
"""

from __future__ import annotations

from edgevla.joint_units import joint_name
from edgevla.manifest import KeptLayer, Manifest

from .gate import percent
from .parity import failures

NAMED = 3


def rule(m: Manifest) -> str:
    """What decided, and by how much: `99 % of the actions within 0.8 % of their joint's range of torch's (2 % is
    allowed; wrist_roll), all within 3.1 % (6 %; gripper); 64 samples`.
    """
    assert m.parity is not None
    a = m.parity.actions
    width = a.range_per_joint
    assert width is not None
    assert a.p99_abs_per_joint is not None
    assert a.p99_tolerance_per_joint is not None
    assert a.tolerance_per_joint is not None
    said = []
    for errors, allowed in (
        (a.p99_abs_per_joint, a.p99_tolerance_per_joint),
        (a.max_abs_per_joint, a.tolerance_per_joint),
    ):
        joint = max(range(len(width)), key=lambda j: errors[j] / allowed[j])
        name = joint_name(m.action.names[joint])
        said.append((percent(errors[joint] / width[joint]), percent(allowed[joint] / width[joint]), name))
    (usual, may, where), (most, may_most, where_most) = said
    return (
        f"99 % of the actions within {usual} of their joint's range of torch's ({may} is allowed; {where}), "
        f"all within {most} ({may_most}; {where_most}); {m.parity.n_samples} samples"
    )


def on_the_arm(m: Manifest, most: int = NAMED) -> str:
    """The joints that differ most from torch: `elbow_flex 3.1 deg at most (4.1 % of its range), 0.4 deg on average`."""
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
    for share, name, unit, largest, mean in shares[:most]:
        unit = "" if unit == "raw" else f" {unit}"
        most_of_it = f"{largest:.2g}{unit} at most ({percent(share)} of its range)"
        said.append(f"{joint_name(name)} {most_of_it}, {mean:.2g}{unit} on average")
    return "; ".join(said)


def kept_words(m: Manifest) -> str:
    """What of a lower precision stayed float32 and why; empty for float32 bundles.

    `int8 but for 2 of 18 layers (3 % of the weights), which stay float32: encode/action_head (alone 2.1 times the limit)`
    """
    found = m.lowered
    if found is None:
        return ""
    precision = next((p for p in m.target.precision.values() if p != "fp32"), "fp32")
    if not found.kept:
        return f"all {found.n_layers} layers are {precision}"
    share = sum(k.n_weights for k in found.kept) / max(found.n_weights, 1)
    worst = sorted(found.kept, key=lambda k: -(k.alone or 0.0))
    named = "; ".join(map(cost_words, worst[:NAMED])) + ("; ..." if len(worst) > NAMED else "")
    late = "" if found.in_time else "; time ran out, so layers that were not measured are among them"
    return (
        f"{precision} but for {len(found.kept)} of {found.n_layers} layers ({percent(share)} of the weights), which stay "
        f"float32: {named}{late}"
    )


def cost_words(kept: KeptLayer) -> str:
    cost = "not measured" if kept.alone is None else f"alone {kept.alone:.2g} times the limit"
    return f"{kept.layer} ({cost})"


def refusal(m: Manifest, is_lower_precision: bool) -> str:
    """Why nothing was written, and what can be done."""
    assert m.parity is not None
    reason = "; ".join(failures(m.parity, m.action.names)[:3])
    return (
        f"the exported {m.policy} does not compute what torch computes: {reason}. The rule: {rule(m)}. Against torch it "
        f"moves {on_the_arm(m)}. Nothing was written; "
        + ("--precision fp32 loses nothing, " if is_lower_precision else "")
        + "--allow-parity-failure writes it anyway and says so in its report, and edgevla eval CHECKPOINT BUNDLE "
        "--dataset D then shows what the difference is beside the policy's own errors"
    )
