"""The policy bundle on disk: read, verified, compared with a robot, refused with a sentence that names the thing.

A bundle is a folder: `manifest.json`, ONNX graphs (weights beside them where large), tokenizer files, `report.html`.
It is self-contained and relocatable. See docs/formats.md#the-bundle and `edgevla/manifest.py`
for the manifest's keys.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgevla.descriptions import AboutCamera, AboutRobot
from edgevla.errors import BundleError
from edgevla.joint_units import JointMap, joint_map
from edgevla.manifest import FileEntry, Manifest
from edgevla.types import ENVIRONMENT_STATE, Feature

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read. sha256: of `manifest.json`, which holds the hashes of all other files."""

    folder: Path
    manifest: Manifest
    sha256: str

    def path(self, relative: str) -> Path:
        """Where a file lies that the manifest names relative to the bundle."""
        return self.folder / relative

    def fits(self, robot: AboutRobot) -> Fit:
        """Compares features with a robot's `describe`.

        Raises:
            BundleError: joints, units, cameras or a rate that do not fit; names them.
        """
        return fit(self.manifest, robot)


@dataclass(frozen=True)
class Fit:
    """How one bundle sits on one robot.

    state, action: maps between policy and robot joints (None: the policy takes no state).
    cameras: feature -> name of the robot's camera. warnings: sentences to show before anything moves.
    """

    state: JointMap | None
    action: JointMap
    cameras: dict[str, str]
    warnings: tuple[str, ...] = ()


def is_bundle(path: Path) -> bool:
    """Whether a folder holds a manifest; nothing is verified."""
    return (path / MANIFEST).is_file()


def load_bundle(path: str | Path, verify: bool = True) -> Bundle:
    """Reads a bundle's manifest and, with `verify`, compares every listed file's size and sha256.

    Raises:
        BundleError: no bundle there, or the bundle is damaged, unsafe or from a newer EdgeVLA.
    """
    folder = Path(path)
    if folder.name == MANIFEST and folder.is_file():
        folder = folder.parent
    file = folder / MANIFEST
    if not folder.is_dir():
        raise BundleError(
            f"there is no policy bundle at {folder}; make one with: edgevla export CHECKPOINT -o {folder}"
        )
    if not file.is_file():
        raise BundleError(
            f"{folder} holds no {MANIFEST}, so it is no policy bundle (edgevla export makes one)"
        )
    raw = file.read_bytes()
    try:
        data = json.loads(raw, parse_constant=_no_constants)
    except ValueError as error:
        raise BundleError(f"{file} is not valid JSON ({error}); export the bundle again") from error
    manifest = Manifest.from_json(data, str(file))
    for entry in manifest.files:
        _check_file(folder, entry, verify)
    return Bundle(folder, manifest, hashlib.sha256(raw).hexdigest())


def check_provider(bundle: Bundle, provider: str) -> None:
    """
    Raises:
        BundleError: files made for another target, or in a precision that the provider cannot run.
    """
    target = bundle.manifest.target.provider
    if provider == "cpu" and "bf16" in bundle.manifest.target.precision.values():
        raise BundleError(
            f"{bundle.folder} is in bfloat16, which onnxruntime cannot run on a CPU; deploy it on {target}, or export "
            "it again with --precision fp32 --target cpu"
        )
    if bundle.manifest.is_quantised and provider != target:
        if provider == "tensorrt" and "int4" in bundle.manifest.target.precision.values():
            raise BundleError(
                f"{bundle.folder} has weights of 4 bits for {target}, which TensorRT cannot run; "
                "export it again with --precision fp16 --target tensorrt"
            )
        raise BundleError(
            f"{bundle.folder} is quantised for {target} and cannot run on {provider}; "
            f"export it again with --target {provider}"
        )


def write_manifest(folder: Path, manifest: Manifest) -> Bundle:
    """Writes `manifest.json` after checking that it would be read back as it is."""
    text = manifest.dumps()
    if Manifest.from_json(json.loads(text)) != manifest:
        raise BundleError(
            "the manifest does not survive being written and read; this is a bug of the exporter"
        )
    (folder / MANIFEST).write_text(text)
    return load_bundle(folder, verify=False)


def list_files(folder: Path) -> tuple[FileEntry, ...]:
    """Every file of a folder but the manifest, with size and sha256."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    return tuple(FileEntry(p.relative_to(folder).as_posix(), p.stat().st_size, sha256_of(p)) for p in paths)


def sha256_of(path: Path) -> str:
    """Hex digest of a file, read in pieces of 1 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _check_file(folder: Path, entry: FileEntry, verify: bool) -> None:
    path = folder / entry.path
    if not path.is_file():
        raise BundleError(
            f"{folder}: the file '{entry.path}' is missing; copy or export the bundle again", file=entry.path
        )
    size = path.stat().st_size
    if size != entry.bytes:
        raise BundleError(
            f"{folder}: '{entry.path}' has {size} bytes, the manifest says {entry.bytes}; "
            "copy or export the bundle again",
            file=entry.path,
        )
    if verify and (found := sha256_of(path)) != entry.sha256:
        raise BundleError(
            f"{folder}: '{entry.path}' is damaged (sha256 {found[:12]}, the manifest says {entry.sha256[:12]}); "
            "copy or export the bundle again",
            file=entry.path,
        )


def _no_constants(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


# -- against a robot ----------------------------------------------------------------------------------------


def fit(manifest: Manifest, robot: AboutRobot) -> Fit:
    """See `Bundle.fits`."""
    name = robot.robot
    if ENVIRONMENT_STATE in manifest.features:
        raise BundleError(f"the policy needs '{ENVIRONMENT_STATE}', which {name} cannot measure")
    if manifest.fps > robot.servo_hz:
        raise BundleError(
            f"the policy runs at {manifest.fps:g} Hz, the buses of {name} carry {robot.servo_hz:.3g} Hz at most (its "
            "profile, or a slow USB adapter)"
        )
    cameras = {camera.name: camera for camera in robot.cameras}
    warnings: list[str] = []
    bound = {}
    for feature_name in manifest.cameras:
        feature = manifest.features[feature_name]
        bound[feature_name] = feature.camera_name
        warnings += _check_camera(feature, cameras, name)
    state = manifest.state
    return Fit(
        None if state is None else joint_map(state, robot.joints, name),
        joint_map(manifest.action, robot.joints, name),
        bound,
        tuple(warnings),
    )


def _check_camera(feature: Feature, cameras: Mapping[str, AboutCamera], robot: str) -> list[str]:
    camera = cameras.get(feature.camera_name)
    if camera is None:
        have = ", ".join(cameras) or "no cameras"
        raise BundleError(
            f"the policy needs the camera '{feature.camera_name}' ({feature.name}); {robot} has {have}. "
            f"Add it to the profile or with --camera {feature.camera_name}=SOURCE"
        )
    height, width = feature.shape[:2]
    live = (camera.height, camera.width)
    if live == (height, width):
        return []
    if camera.fit in ("crop", "resize"):
        return [
            f"camera '{feature.camera_name}' delivers {live[1]}x{live[0]}; the profile's fit = "
            f'"{camera.fit}" makes it {width}x{height}, which differs from training'
        ]
    raise BundleError(
        f"camera '{feature.camera_name}' of {robot} delivers {live[1]}x{live[0]}, the policy was exported for "
        f"{width}x{height}; set that size in the robot's profile, let it be fitted there "
        '(fit = "crop" or "resize"), or export again with '
        f"--camera-size {feature.camera_name}={live[1]}x{live[0]}"
    )
