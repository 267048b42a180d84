"""How pictures travel to a policy server: as they are, or as JPEG."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from edgevla.errors import UsageError
from edgevla.serve.transport import Address, is_loopback
from edgevla.types import STATE

if TYPE_CHECKING:
    import numpy as np

    from edgevla.manifest import Manifest
    from edgevla.server_messages import SentFrame

QUALITY = 90


@dataclass(frozen=True)
class Encoding:
    """quality: of a JPEG, 1 to 100."""

    kind: Literal["rgb8", "jpeg"]
    quality: int = QUALITY

    def __str__(self) -> str:
        return "raw" if self.kind == "rgb8" else f"jpeg:{self.quality}"

    def frame(self, feature: str, image: np.ndarray) -> tuple[SentFrame, np.ndarray]:
        """What is said of a picture, and its payload. image: uint8 (H, W, 3) RGB."""
        from edgevla.server_messages import SentFrame

        height, width = image.shape[:2]
        if self.kind == "jpeg":
            from edgevla.cameras.pixels import encode_jpeg

            image = encode_jpeg(image, self.quality)
        return SentFrame(feature, height, width, self.kind), image


RAW = Encoding("rgb8")


def encoding(text: str | None, servers: Sequence[Address]) -> Encoding:
    """`raw`, `jpeg` or `jpeg:QUALITY`. None: raw where all servers are on this machine, JPEG elsewhere.

    Raises:
        UsageError: another word, or a quality that is none.
    """
    if text is None:
        return RAW if all(is_loopback(server.endpoint) for server in servers) else Encoding("jpeg")
    if text == "raw":
        return RAW
    found = re.fullmatch(r"jpeg(?::(\d{1,3}))?", text)
    quality = int(found[1] or QUALITY) if found else 0
    if not 1 <= quality <= 100:
        raise UsageError(f"--frames {text}: expected raw, jpeg or jpeg:QUALITY with a quality from 1 to 100")
    return Encoding("jpeg", quality)


def decoded(frame: SentFrame, payload: np.ndarray) -> np.ndarray | None:
    """uint8 (H, W, 3) RGB; None: a JPEG that is none, or of another size than its frame says.

    Its own size is read first: a few bytes can promise gigabytes of pixels.
    """
    if frame.encoding == "rgb8":
        return payload
    from edgevla.cameras.pixels import decode_jpeg

    if jpeg_size(payload.tobytes()) != (frame.height, frame.width):
        return None
    picture = decode_jpeg(payload)
    return picture if picture is not None and picture.shape[:2] == (frame.height, frame.width) else None


def jpeg_cost(
    manifest: Manifest, encoding: Encoding, raw: np.ndarray, jpeg: np.ndarray, raw_kb: float, jpeg_kb: float
) -> str:
    """How far two chunks of the same moment lie apart, by the joint that is furthest in its range. chunks: (T, A)."""
    import numpy as np

    action, worst = manifest.action, np.abs(jpeg - raw).max(axis=0)
    state, seen = manifest.state, (manifest.trained_range or {}).get(STATE)
    widths = np.ones(len(worst))
    if seen is not None and state is not None and state.names == action.names:
        widths = np.maximum(np.array(seen.q99) - np.array(seen.q01), 1e-9)
    joint = int(np.argmax(worst / widths))
    share = f", {worst[joint] / widths[joint]:.2%} of its range" if seen is not None else ""
    return (
        f"pictures as {encoding} move the actions for what the cameras see now by at most {worst[joint]:.3g} "
        f"{action.units[joint]} ({action.names[joint]}{share}); {jpeg_kb:.0f} kB per inference instead of {raw_kb:.0f}"
    )


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) as the first frame header says (ITU-T T.81, B.2.2); None where there is none."""
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        at += 1 if marker == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
