"""Build the TensorRT engines of a bundle on the machine that will run it, ahead of its first deployment.

  edgevla build bundles/pi05                    all engines that are not there yet
  edgevla build bundles/pi05 --workspace 512    with less memory; deploy then uses these engines

An engine belongs to this GPU, this TensorRT and this driver, and is kept in ~/.cache/edgevla/engines. Building takes
minutes to hours and gigabytes, so it is refused while a deployment may hold an arm. Ctrl-C ends it, and what is built
already stays. When this terminal closes instead, it goes on, and the next `edgevla build` or `deploy` waits for it.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from edgevla.launch.options import whole


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("bundle", type=Path, help="folder made by edgevla export")
    add("--engine", choices=("tensorrt",), default="tensorrt", help="default: tensorrt")
    add("--workspace", type=whole(16, 1 << 20), metavar="MB", default=2048,
        help="memory that one layer may take while it is built and while it runs; default: 2048")  # fmt: skip
    add("--tf32", action="store_true",
        help="multiply float32 with 10 bits of mantissa: faster, less exact than the export's report")  # fmt: skip


def run(args: argparse.Namespace) -> int:
    from edgevla.bundle import load_bundle
    from edgevla.engines.ahead import NotWaited, Seldom, build_ahead, is_native
    from edgevla.engines.engine_files import BuildSettings
    from edgevla.interruption import Interruption
    from edgevla.progress import duration, tell

    bundle = load_bundle(args.bundle)
    if not is_native("tensorrt"):
        print(
            "this machine's onnxruntime has TensorRT built in: it builds engines itself when a bundle is first loaded, "
            "and keeps them; there is nothing to build ahead"
        )
        return 0
    show = _line if sys.stderr.isatty() else Seldom(lambda text: tell(text, sys.stderr))
    with Interruption() as interruption:
        try:
            built = build_ahead(
                bundle,
                show,
                lambda: interruption.signal is not None,
                BuildSettings(args.workspace, args.tf32),
            )
        except NotWaited:
            raise KeyboardInterrupt from None
        finally:
            if sys.stderr.isatty():
                tell("\r\x1b[K", sys.stderr, end="")
    for one in built:
        how = f"built in {duration(one['s'])}" if one["s"] else "was there"
        print(f"{one['graph']:<10} {one['bytes'] / 1e6:9.1f} MB  {how:<20} {one['file']}")
    return 0


def _line(text: str) -> None:
    """Over the last one."""
    from edgevla.progress import columns_of, tell

    width = columns_of(sys.stderr)
    tell("\r\x1b[K" + text[: width and width - 1], sys.stderr, end="")
