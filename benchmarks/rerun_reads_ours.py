"""Does Rerun itself accept what `edgevla view --rerun` writes?

    pip install rerun-sdk && python benchmarks/rerun_reads_ours.py DATASET|RUN [DATASET|RUN ...]

Each is written as a .rrd file and given to `rerun rrd verify`. rerun-sdk takes 170 MB, so no environment of the tests
has it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from edgevla.cli import main as edgevla


def verified(source: str, folder: Path) -> bool:
    path = folder / "view.rrd"
    if edgevla(["view", source, "-o", str(folder / "pictures"), "--rerun", str(path)]) != 0:
        return False
    return (
        subprocess.run([sys.executable, "-m", "rerun", "rrd", "verify", str(path)], check=False).returncode
        == 0
    )


def main() -> int:
    failed = []
    for source in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            if not verified(source, Path(folder)):
                failed.append(source)
    print(
        f"{len(sys.argv) - 1 - len(failed)} of {len(sys.argv) - 1} verified"
        + "".join(f"; NOT {f}" for f in failed)
    )
    return 1 if failed or len(sys.argv) < 2 else 0


if __name__ == "__main__":
    sys.exit(main())
