"""Kills, full disks, damaged backups, bad data: each in a separate process; no partial file remains."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.batteries import fault_jobs

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


class Jobs:
    """A process that has imported TensorFlow and forks one for each job: the import takes longer than most jobs."""

    def __init__(self, folder):
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "KERAS_BACKEND": "tensorflow",
            "CUDA_VISIBLE_DEVICES": "-1",
        }
        command = [sys.executable, "-W", "always", "-m", "tests.batteries.fault_jobs", "serve"]
        self.server = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.log = folder / "printed"

    def start(self, job, *arguments):
        """Start a job; return its process id."""
        self.log.unlink(missing_ok=True)
        self.server.stdin.write(json.dumps([str(self.log), job, *map(str, arguments)]) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def end(self):
        """Wait for the job; return its exit code and what it printed."""
        return int(self.server.stdout.readline()), self.log.read_text(errors="replace")

    def run(self, job, *arguments):
        """Run a job to its end; return its exit code and what it printed."""
        self.start(job, *arguments)
        return self.end()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    started = Jobs(tmp_path_factory.mktemp("jobs"))
    yield started
    started.server.stdin.close()
    assert started.server.wait(60) == 0


@pytest.fixture
def run(jobs):
    return jobs.run


def same_results(one, two):
    with np.load(one) as a, np.load(two) as b:
        equal = all(np.array_equal(a[name], b[name]) for name in a.files) and a.files == b.files
    return equal and json.loads(Path(f"{one}.json").read_text()) == json.loads(Path(f"{two}.json").read_text())


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, jobs):
    """The files of an undisturbed run: its results and its last two backups."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    code, printed = jobs.run("whole", folder / "backups", folder / "expected.npz")
    assert code == 0, printed
    return folder


def test_killed_twenty_times_and_resumed_it_ends_with_the_same_bits(tmp_path, run):
    code, printed = run("kill_and_resume", tmp_path)
    assert code == 0, printed
    kills = json.loads(printed.splitlines()[-1])
    assert len([kill for kill in kills if kill != "writing"]) == 16
    # Weights, optimizer, moving statistics, the callback's state and the history of all epochs.
    assert same_results(tmp_path / "got.npz", tmp_path / "expected.npz")
    assert names(tmp_path / "many") == names(tmp_path / "one") == ["epoch-000011", "epoch-000012"]


def test_a_damaged_backup_is_named_and_the_one_before_it_is_used(tmp_path, uninterrupted, run):
    assert run("stop_after", tmp_path / "backups", 8)[0] == 0
    last = tmp_path / "backups" / "epoch-000008" / "state.weights.h5"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    last.write_bytes(content)
    code, printed = run("whole", tmp_path / "backups", tmp_path / "got.npz")
    assert code == 0, printed
    assert re.search(r"Backup: damaged \(epoch-000008: .* has changed since.*\)\. .* resumes after epoch 7\.", printed)
    assert same_results(tmp_path / "got.npz", uninterrupted / "expected.npz")


def test_if_every_backup_is_damaged_training_does_not_silently_restart(tmp_path, run):
    assert run("stop_after", tmp_path / "backups", 2)[0] == 0
    for folder in (tmp_path / "backups").iterdir():
        (folder / "state.weights.h5").write_bytes(b"")
    code, printed = run("whole", tmp_path / "backups", tmp_path / "got.npz")
    assert code == 1
    assert "Backup: expected an undamaged backup in" in printed and "Remove the directory to begin afresh." in printed
    assert not (tmp_path / "got.npz").exists()


def test_a_full_disk_stops_training_and_keeps_the_last_complete_backup(tmp_path, uninterrupted, run):
    code, printed = run("on_a_full_disk", tmp_path / "backups", tmp_path / "got.npz")
    assert code == 1
    assert re.search(r"OSError: Backup: expected to write into .*The backup of epoch 3 is intact\.", printed), printed
    assert names(tmp_path / "backups") == ["epoch-000002", "epoch-000003"]
    code, printed = run("whole", tmp_path / "backups", tmp_path / "got.npz")
    assert code == 0, printed
    assert same_results(tmp_path / "got.npz", uninterrupted / "expected.npz")


def test_a_directory_that_cannot_be_written_is_refused_before_the_first_step(tmp_path, run):
    (tmp_path / "file").write_text("")
    code, printed = run("whole", tmp_path / "file" / "backups", tmp_path / "got.npz")
    assert code == 1
    assert re.search(r"OSError: Backup: expected to write into .*Not a directory.*There is no backup\.", printed)


@pytest.mark.parametrize("when", ["training", "writing"])
def test_control_c_leaves_only_complete_backups_and_the_run_resumes_later(tmp_path, uninterrupted, when, jobs):
    pattern = "epoch-000004" if when == "training" else ".writing-*/state.weights.h5"
    process, late = jobs.start("whole", tmp_path / "backups", tmp_path / "got.npz"), time.monotonic() + 600
    while not list((tmp_path / "backups").glob(pattern)):
        assert time.monotonic() < late, "waited too long for a backup"
        time.sleep(0.0005)
    os.kill(process, signal.SIGINT)
    code, printed = jobs.end()
    assert code in (1, -signal.SIGINT, 130) and "KeyboardInterrupt" in printed
    # A backup that is being removed is hidden first; the next run removes the rest.
    assert all(re.fullmatch(r"epoch-\d{6}|\.removing-.+", name) for name in names(tmp_path / "backups"))
    assert not (tmp_path / "got.npz").exists()
    assert jobs.run("whole", tmp_path / "backups", tmp_path / "got.npz")[0] == 0
    assert same_results(tmp_path / "got.npz", uninterrupted / "expected.npz")


def test_a_nan_batch_stops_the_run_which_resumes_once_the_data_are_repaired(tmp_path, uninterrupted, run):
    code, printed = run("with_a_nan", tmp_path / "backups", 5 * fault_jobs.STEPS + 3)
    assert code == 1
    assert "NaN or infinity in the teacher's outputs at step 53." in printed
    assert "The student keeps its last finite weights." in printed
    assert names(tmp_path / "backups") == ["epoch-000004", "epoch-000005"]
    assert run("whole", tmp_path / "backups", tmp_path / "got.npz")[0] == 0
    assert same_results(tmp_path / "got.npz", uninterrupted / "expected.npz")


def test_a_dataset_that_raises_in_the_middle_of_an_epoch(tmp_path, uninterrupted, run):
    code, printed = run("with_a_broken_record", tmp_path / "backups", 5 * fault_jobs.STEPS + 3)
    assert code == 1 and "the record at step 53 cannot be read" in printed
    assert names(tmp_path / "backups") == ["epoch-000004", "epoch-000005"]
    assert run("whole", tmp_path / "backups", tmp_path / "got.npz")[0] == 0
    assert same_results(tmp_path / "got.npz", uninterrupted / "expected.npz")


def test_an_out_of_memory_error_in_the_teacher_suggests_a_remedy(run):
    code, printed = run("with_a_teacher_too_large")
    assert code == 1
    assert re.search(
        r"expected enough memory for a step, got OOM .* in \S*too_large.*smaller batch.*teachers\.label", printed
    )


def test_same_seed_and_machine_give_the_same_bits(tmp_path, uninterrupted, run):
    assert run("whole", tmp_path / "backups", tmp_path / "again.npz")[0] == 0
    assert same_results(tmp_path / "again.npz", uninterrupted / "expected.npz")
