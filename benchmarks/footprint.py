"""How much room does the robot's install take? The wheel with an extra, in fresh environments, weighed by package.

    make wheel && python benchmarks/footprint.py WORK [--pythons 3.10,3.13] [--extras cpu,cpu+language]

Environments are made in WORK anew. Megabytes are of 10^6 bytes, of the files' contents, without pip itself. pip leaves
compiled Python beside each source unless it is told `--no-compile`; Python then compiles what is imported, so a
simulated deployment and `edgevla doctor` are run, and what stands there afterwards is weighed again.
Results: benchmarks/results/footprint.md.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections import Counter
from importlib.metadata import Distribution, distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(Path(__file__).parent), str(ROOT / "tests" / "runtime")]
from deployment_kit import make_bundle  # noqa: E402
from result_kit import conditions  # noqa: E402

SHOWN = 12
"""Packages with a line of their own, the largest."""


def installed(work: Path, python: str, extra: str) -> Path:
    """site-packages of a fresh environment with the wheel and an extra."""
    folder = work / f"{python}-{extra}"
    subprocess.run(["sh", ".ci/venv", find_python(python), str(folder)], cwd=ROOT, check=True)
    wheel = max((ROOT / "dist").glob("edgevla-*.whl"), key=lambda path: path.stat().st_mtime)
    what = f"{wheel}[{extra.replace('+', ',')}]"
    subprocess.run(["sh", ".ci/install", str(folder), what], cwd=ROOT, check=True)
    pip = [str(folder / "bin/pip"), "uninstall", "--quiet", "--yes", "pip", "setuptools"]
    subprocess.run(pip, check=True, capture_output=True)  # they are not EdgeVLA's
    (site,) = folder.glob("lib/python*/site-packages")
    return site


def compiled_by_use(site: Path, bundle: Path) -> int:
    """Bytes of compiled Python after a deployment, where the installer had compiled nothing."""
    for folder in list(site.rglob("__pycache__")):
        shutil.rmtree(folder)
    may_compile = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    edgevla = [str(site.parents[2] / "bin" / "edgevla")]
    deploy = ["deploy", str(bundle), "--robot", "so101", "--sim", "--duration", "2"]
    for words in (["doctor"], [*deploy, "--log", str(bundle.parent / "log")]):
        subprocess.run(
            [*edgevla, *words], cwd=bundle.parent, check=True, capture_output=True, env=may_compile
        )
    return compiled(site)


def find_python(version: str) -> str:
    found = subprocess.run(
        ["sh", ".ci/find-python", version], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return found.stdout.strip()


def weighed(site: Path) -> tuple[Counter[str], int]:
    """Bytes of each package, compiled Python included, and of compiled Python."""
    by_package: Counter[str] = Counter()
    for package in distributions(path=[str(site)]):
        by_package[package.metadata["Name"]] += sum(size_of(path) for path in files_of(package))
    return by_package, compiled(site)


def compiled(site: Path) -> int:
    return sum(size_of(path) for path in site.rglob("*.pyc"))


def files_of(package: Distribution) -> list[Path]:
    return [Path(str(file.locate())) for file in package.files or []]


def size_of(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def blocks_mb(site: Path) -> int:
    return int(subprocess.run(["du", "-sm", str(site)], check=True, capture_output=True).stdout.split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("work", type=Path)
    parser.add_argument("--pythons", default="3.10,3.13")
    parser.add_argument("--extras", default="cpu,cpu+language")
    args = parser.parse_args()
    sites = {
        (python, extra): installed(args.work.resolve(), python, extra)
        for python in args.pythons.split(",")
        for extra in args.extras.split(",")
    }
    found = {key: weighed(site) for key, site in sites.items()}
    blocks = [str(blocks_mb(site)) for site in sites.values()]
    bundle = args.work.resolve() / "bundle"
    if not bundle.exists():
        make_bundle(bundle)
    by_use = [compiled_by_use(site, bundle) for site in sites.values()]
    largest = Counter[str]()
    for packages, _ in found.values():
        largest |= packages
    shown = [name for name, _ in largest.most_common(SHOWN)]
    head = [f"{python}, `[{extra.replace('+', ',')}]`" for python, extra in found]
    rows = [["**whole**", *(f"**{mb(sum(p.values()))}**" for p, _ in found.values())]]
    rows.append(["the same by `du -sm`", *blocks])
    bare = [sum(p.values()) - c for p, c in found.values()]
    rows.append(["with `--no-compile`", *map(mb, bare)])
    rows.append(["the same after a run", *(mb(b + u) for b, u in zip(bare, by_use, strict=True))])
    rows += [[name, *(mb(p[name]) if p[name] else "" for p, _ in found.values())] for name in shown]
    others = [sum(n for name, n in p.items() if name not in shown) for p, _ in found.values()]
    rows.append(["all others", *map(mb, others)])
    text = "# What the robot's install takes, MB\n\n" + conditions("footprint.py", False)
    text += f"\n\n| | {' | '.join(head)} |\n| --- |{' ---: |' * len(head)}\n"
    text += "".join(f"| {' | '.join(row)} |\n" for row in rows)
    (ROOT / "benchmarks/results/footprint.md").write_text(text)
    print(text)


def mb(n_bytes: float) -> str:
    return f"{n_bytes / 1e6:.0f}"


if __name__ == "__main__":
    main()
