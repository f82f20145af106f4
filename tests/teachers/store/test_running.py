"""Labelling that runs for hours: its progress on a terminal, and constant memory."""

import contextlib
import os
import pty
import re
import resource
import select

import pytest

from tests.processes import wait_for
from tests.teachers.store.test_faults import start


def test_a_terminal_shows_rate_and_remaining_time(tmp_path):
    ours, theirs = pty.openpty()
    code = """
    import os
    terminal = os.open(sys.argv[2], os.O_RDWR)
    os.dup2(terminal, 1)
    os.dup2(terminal, 2)
    os.close(terminal)
    print("begin", file=sys.stderr, flush=True)
    teachers.label(teacher, dataset(0.1), sys.argv[1], examples_per_shard=16)
    """
    screen = {"TERM": "xterm", "COLUMNS": "120"}
    process = start(code, tmp_path / "store", os.ttyname(theirs), environment=screen)
    wait_for(lambda: select.select([ours], [], [], 0)[0])  # it has opened the terminal
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error
        while more := os.read(ours, 4096):
            shown += more
    assert process.wait() == 0, shown
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.decode())
    assert re.search(r"labelling store .* +\d+/200 +\d+ examples/s +0:00:\d\d", lines), lines


@pytest.mark.slow
def test_memory_does_not_grow_with_a_million_examples(tmp_path):
    code = """
    import resource
    small = keras.Sequential([keras.Input((2,)), keras.layers.Dense(10)])
    for count in (100_000, 1_000_000):
        data = tf.data.Dataset.range(count).batch(4096).map(
            lambda i: tf.stack([tf.cast(i, tf.float32) / 1e6, tf.math.sin(tf.cast(i, tf.float32))], 1))
        stored = teachers.label(small, data, f"{sys.argv[1]}/{count}", progress=False)
        assert stored.num_examples == count
        for _ in stored.attach(data):
            pass
        print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    """
    process = start(code, tmp_path)
    assert process.wait(600) == 0, process.read()
    peaks = [int(line.split()[1]) for line in process.read().splitlines() if line.startswith("PEAK")]
    assert peaks[1] < peaks[0] + 64, f"{peaks} MB; the store alone is 44 MB, and nothing is kept"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0
