"""Mutation testing: a random sample of small changes to ``losses`` and ``metrics``, each followed by the tests.

A mutant is one changed operator, number, comparison or decorator (cosmic-ray's operators; annotations are left out,
because changes there have no effect). It is killed if a test fails. Otherwise it survives and is listed with its change
in the results, so that a test can be added or the change explained. Tests run on copies of the tree, one for each
worker.
"""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import pathlib
import random
import shutil
import sys
import tempfile
import time
from typing import Any

from benchmarks import _harness

CLAIM = "At least 90 % of a random sample of mutants of losses/ and metrics/ are killed by the tests of their package."
FEATURES = (
    "tests/batteries/test_contracts_features.py tests/losses/test_features.py tests/losses/test_attention.py "
    "tests/losses/test_relations.py tests/losses/test_dense.py tests/terms/test_transformers.py"
)
LOGITS = (
    "tests/batteries/test_contracts.py tests/losses/test_logits.py tests/losses/test_logits_arguments.py "
    "tests/losses/test_large.py"
)
MEMBERS = (
    "tests/batteries/test_contracts_members.py tests/losses/test_uncertainty.py tests/losses/test_quantiles.py "
    "tests/terms/test_uncertainty.py"
)
#: The tests of each subpackage; tests of other modules and of ``metrics`` are found by name.
TESTS = {
    "_base": LOGITS,
    "_detection": "tests/losses/test_dense.py tests/terms/test_dense.py",
    "_ensembles": MEMBERS,
    "_features": FEATURES,
    "_logits": LOGITS,
    "_numerics": f"{LOGITS} {FEATURES}",
    "_ranking": "tests/losses/test_ranking.py",
    "_regression": f"{MEMBERS} {LOGITS}",
    "_sequences": "tests/batteries/test_contracts_sequences.py tests/losses/test_sequences.py tests/losses/test_crf.py",
    "_where_labelled": "tests/losses/test_where_labelled.py",
    "metrics": "tests/metrics tests/report/test_uncertainty.py",
}
ROOMS = ("losses", "metrics")


def modules() -> list[pathlib.Path]:
    """Return the modules of both packages, relative to the root."""
    found = [path for room in ROOMS for path in (_harness.ROOT / "keras_distill" / room).rglob("*.py")]
    return sorted(path.relative_to(_harness.ROOT) for path in found if path.stem != "__init__")


def tests_of(module: pathlib.Path) -> str:
    """Return the files of tests of a module."""
    return TESTS[module.stem if module.parent.name == "losses" else module.parent.name]


def command(tests: str) -> str:
    """Return the command that runs them, up to the first failure."""
    return f"{sys.executable} -m pytest -x -q -p no:cacheprovider --no-header --tb=line {tests}"


def begin(folder: str) -> None:
    """Give this worker its own copy of the tree, and half of the cores."""
    own = pathlib.Path(folder) / str(os.getpid())
    for name in ("keras_distill", "tests"):
        shutil.copytree(_harness.ROOT / name, own / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml"):
        shutil.copy(_harness.ROOT / name, own)
    os.chdir(own)
    os.environ |= {"TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1", "PYTHONPATH": str(own)}


def tried(spec: Any, tests: str, seconds: float) -> tuple[str, str]:
    """Apply one mutation, run the tests, revert it; return the outcome and the change."""
    from cosmic_ray.mutating import mutate_and_test

    result = mutate_and_test([spec], command(tests), seconds)
    outcome = result.test_outcome.value if result.test_outcome else result.worker_outcome.value
    return outcome, result.diff or ""


def untouched(tests: str) -> tuple[bool, float]:
    """Run the tests without a mutation; return whether they pass, and the seconds they take."""
    from cosmic_ray.testing import TestOutcome, run_tests

    began = time.monotonic()
    outcome, _ = run_tests(command(tests), 3600)
    return outcome == TestOutcome.SURVIVED, time.monotonic() - began


def mutants(count: int, seed: int) -> list[Any]:
    """Sample mutants of all modules at random."""
    from cosmic_ray.commands import init
    from cosmic_ray.work_db import WorkDB, use_db

    mutated = modules()
    with tempfile.TemporaryDirectory() as folder, use_db(f"{folder}/work.sqlite", WorkDB.Mode.create) as work:
        init(mutated, work, {})
        specs = [each.mutations[0] for each in work.work_items]
    real = [spec for spec in specs if "BitOr" not in spec.operator_name]
    real.sort(key=lambda spec: (str(spec.module_path), spec.operator_name, spec.occurrence, str(spec.operator_args)))
    print(f"{len(real):,} mutants of {len(mutated)} modules; {min(count, len(real))} are tried", flush=True)
    return random.Random(seed).sample(real, min(count, len(real)))


def main() -> None:
    """Test the sample."""
    options = _harness.arguments(
        __doc__ or "",
        mutants={"type": int, "help": "default: 4, with --full 150"},
        seed={"type": int, "default": 0, "help": "of the sample"},
        workers={"type": int, "default": 2},
    )
    report = _harness.Report("mutation", CLAIM, options)
    os.chdir(_harness.ROOT)
    drawn = mutants(options.mutants or (150 if options.full else 4), options.seed)
    context = multiprocessing.get_context("spawn")
    counts = {"killed": 0, "survived": 0}
    with tempfile.TemporaryDirectory() as folder:
        pool = concurrent.futures.ProcessPoolExecutor(options.workers, context, initializer=begin, initargs=(folder,))
        with pool:
            needed = sorted({tests_of(spec.module_path) for spec in drawn})
            limits = {}
            for tests, (passed, seconds) in zip(needed, pool.map(untouched, needed), strict=True):
                if not passed:
                    raise SystemExit(f"without any fault already failing: {command(tests)}")
                limits[tests] = 120 + 4 * seconds
                print(f"{seconds:.0f} s without a fault: {tests}", flush=True)
            jobs = {}
            for spec in drawn:
                tests = tests_of(spec.module_path)
                jobs[pool.submit(tried, spec, tests, limits[tests])] = spec
            for job in concurrent.futures.as_completed(jobs):
                outcome, change = job.result()
                counts[outcome] = counts.get(outcome, 0) + 1
                spec = jobs[job]
                place = f"{spec.module_path}:{spec.start_pos[0]}"
                found = {"place": place, "operator": spec.operator_name, "outcome": outcome}
                if outcome == "killed":
                    report.add(found, {})
                else:
                    report.add(found, {"change": change}, f"{outcome} {place}\n{change}")
    print(counts)
    report.verdict("share of mutants killed", counts["killed"] / len(drawn), at_least=0.9)
    report.write()


if __name__ == "__main__":
    main()
