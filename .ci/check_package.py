"""Check what a wheel and a source distribution hold: check_package.py DIST."""

from __future__ import annotations

import pathlib
import sys
import tarfile
import zipfile

LARGEST_BYTES = 3_000_000


def faults(dist: pathlib.Path, package: pathlib.Path) -> list[str]:
    """Return a sentence for each thing that is missing or should not be there.

    Args:
        dist: the directory with exactly one wheel and one source distribution.
        package: the directory ``keras_distill`` of the checkout.
    """
    wheels, sources = sorted(dist.glob("*.whl")), sorted(dist.glob("*.tar.gz"))
    if len(wheels) != 1 or len(sources) != 1:
        return [f"{dist}: expected one wheel and one source distribution, got {len(wheels)} and {len(sources)}."]
    found = []
    wheel = set(zipfile.ZipFile(wheels[0]).namelist())
    modules = {str(path.relative_to(package.parent)) for path in package.rglob("*.py")}
    found += [f"wheel: {name} is missing." for name in sorted(modules - wheel)]
    if "keras_distill/py.typed" not in wheel:
        found.append("wheel: keras_distill/py.typed is missing.")
    for ending in ("licenses/LICENSE", "entry_points.txt"):
        if not any(name.endswith(f".dist-info/{ending}") for name in wheel):
            found.append(f"wheel: {ending} is missing.")
    own = {name for name in wheel if not name.split("/")[0].endswith(".dist-info")}
    found += [f"wheel: {name} should not be there." for name in sorted(own - modules - {"keras_distill/py.typed"})]
    source = {name.partition("/")[2] for name in tarfile.open(sources[0]).getnames()}
    found += [f"source: {name} is missing." for name in sorted((modules | {"LICENSE", "README.md"}) - source)]
    unwanted = ("tests/", "benchmarks/", "docs/", "examples/", ".venv")
    found += [f"source: {name} should not be there." for name in sorted(source) if name.startswith(unwanted)]
    for path in (*wheels, *sources):
        if path.stat().st_size > LARGEST_BYTES:
            found.append(f"{path.name}: {path.stat().st_size} bytes, more than {LARGEST_BYTES}.")
    return found


if __name__ == "__main__":
    problems = faults(pathlib.Path(sys.argv[1]), pathlib.Path(__file__).parents[1] / "keras_distill")
    sys.stderr.writelines(f"{problem}\n" for problem in problems)
    sys.exit(bool(problems))
