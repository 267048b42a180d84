"""By which rule a bundle was judged, with its margin, what stays in float32 and why, and what the difference means for
the arm: one wording for all who tell it (the summary, the report, the refusal).
"""

from __future__ import annotations

import math

from edgevla.joint_units import joint_name
from edgevla.manifest import Manifest
from edgevla.manifest_record import KeptLayer
from edgevla.types import ACTION

from .gate import percent

NAMED = 3
_BY_BITS = ("int4", "int8", "bf16", "fp16", "fp32")
REACH_M, SERVO_STEP_DEG = 0.3, 360 / 4096
"""How far from a joint a difference is told in millimetres; a step of a 12-bit servo."""


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


def reach_mm(difference: float, unit: str) -> float | None:
    """How far it moves what is 30 cm from the joint; None: it is no angle."""
    turned = {"deg": math.radians(difference), "rad": difference}.get(unit)
    return None if turned is None else 1e3 * REACH_M * turned


def meaning_words(m: Manifest) -> str:
    """What 99 of 100 actions differ by, in things that one can picture: of the joint that moves the hand most by it."""
    assert m.parity is not None
    a = m.parity.actions
    usual, width = a.p99_abs_per_joint, a.range_per_joint
    assert usual is not None
    assert width is not None
    share = max(u / w for u, w in zip(usual, width, strict=True))
    said = f"99 of 100 actions differ by at most {percent(share)} of a joint's range"
    reach = [reach_mm(u, unit) or 0.0 for u, unit in zip(usual, m.action.units, strict=True)]
    joint = max(range(len(reach)), key=lambda j: reach[j])
    if reach[joint] > 0:
        steps = reach[joint] / (1e3 * REACH_M * math.radians(SERVO_STEP_DEG))
        said += (
            f", and move what is {100 * REACH_M:.0f} cm from a joint by at most {reach[joint]:.2g} mm "
            f"({joint_name(m.action.names[joint])}, {usual[joint]:.2g} {m.action.units[joint]}, {steps:.2g} steps of a "
            "12-bit servo)"
        )
    speed = (m.trained_speed_p999 or {}).get(ACTION, ())
    if reach[joint] > 0 and len(speed) > joint and speed[joint] > 0:
        said += f". At the fastest in training that joint moves as far in {1e3 * usual[joint] / speed[joint]:.2g} ms"
    return said + "."


def precision_words(m: Manifest) -> str:
    """`int8`, or `int8 and fp32` where some layers were kept."""
    lower = [p for p in m.target.precision.values() if p != "fp32"]
    kept = [k.stored for k in m.lowered.kept] if m.lowered is not None else []
    return " and ".join(dict.fromkeys(sorted([*lower, *kept], key=_BY_BITS.index))) or "fp32"


def kept_words(m: Manifest) -> str:
    """What was not lowered as far as the precision goes and why; empty for float32 bundles.

    `int8 but for 2 of 18 layers (3 % of the weights), which stay float32: encode/action_head (alone 2 times the limit)`
    """
    found = m.lowered
    if found is None:
        return ""
    precision = min(m.target.precision.values(), key=_BY_BITS.index)
    if not found.kept:
        return f"all {found.n_layers} layers are {precision}"
    said = []
    for stored, verb in (("int8", "take 8 bits"), ("fp32", "stay float32")):
        kept = [k for k in found.kept if k.stored == stored]
        if kept:
            share = sum(k.n_weights for k in kept) / max(found.n_weights, 1)
            worst = sorted(kept, key=lambda k: -(k.alone or 0.0))
            named = "; ".join(map(cost_words, worst[:NAMED])) + ("; and others" if len(worst) > NAMED else "")
            number = f"{len(kept)} of {found.n_layers} layers ({percent(share)} of the weights)"
            said.append(f"{number}, which {verb}: {named}")
    late = "" if found.in_time else "; time ran out, so layers that were not measured are among them"
    return f"{precision} but for {'; and for '.join(said)}{late}"


def cost_words(kept: KeptLayer) -> str:
    cost = "not measured" if kept.alone is None else f"alone {kept.alone:.2g} times the limit"
    return f"{kept.layer} ({cost})"


def refusal(m: Manifest, is_lower_precision: bool) -> str:
    """Why nothing was written, and what can be done."""
    from .parity import failures  # needs torch; what a bundle says of itself does not

    assert m.parity is not None
    reason = "; ".join(failures(m.parity, m.action.names)[:3])
    return (
        f"the exported {m.policy} does not compute what torch computes: {reason}. The rule: {rule(m)}. Against torch it "
        f"moves {on_the_arm(m)}. Nothing was written; "
        + ("--precision fp32 loses nothing, " if is_lower_precision else "")
        + "--allow-parity-failure writes it anyway and says so in its report, and edgevla eval CHECKPOINT BUNDLE "
        "--dataset D then shows what the difference is beside the policy's own errors"
    )
