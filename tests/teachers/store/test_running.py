"""Labelling as a program that runs for hours: what a terminal shows, and memory that does not grow."""

import contextlib
import os
import pty
import re
import resource
import subprocess
import sys

import pytest

from tests.teachers.store.test_faults import COMMON, ROOT, start


def test_a_terminal_sees_rate_and_time_left(tmp_path):
    ours, theirs = pty.openpty()
    code = COMMON + "teachers.label(teacher, dataset(0.1), sys.argv[1], examples_per_shard=16)"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "store")],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120"},
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error
        while more := os.read(ours, 4096):
            shown += more
    assert process.wait(60) == 0, shown
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(r"labelling store .* +\d+/200 +\d+ examples/s +0:00:\d\d", lines), lines


@pytest.mark.slow
def test_memory_does_not_grow_with_a_million_examples(tmp_path):
    code = """
    import resource
    count = int(sys.argv[2])
    small = keras.Sequential([keras.Input((2,)), keras.layers.Dense(10)])
    data = tf.data.Dataset.range(count).batch(4096).map(
        lambda i: tf.stack([tf.cast(i, tf.float32) / 1e6, tf.math.sin(tf.cast(i, tf.float32))], 1))
    stored = teachers.label(small, data, sys.argv[1], progress=False)
    assert stored.num_examples == count
    for _ in stored.attach(data):
        pass
    print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    """
    peaks = []
    for count in (100_000, 1_000_000):
        output, _ = start(code, tmp_path / str(count), count).communicate(timeout=600)
        assert "PEAK" in output, output
        peaks.append(int(output.split("PEAK")[1]))
    assert peaks[1] < peaks[0] + 64, f"{peaks} MB; the store alone is 44 MB, and nothing is kept"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0
