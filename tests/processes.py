"""Processes of their own that need not import TensorFlow: each is forked from one server that imported it.

The server runs no operation, so that what it forks is a fresh process: no graph, no thread of TensorFlow, no random
state. A new process imports TensorFlow for eight seconds; a forked one is there at once.
"""

import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
ROOMS = ("callbacks", "regimes", "teachers.store")
CONTEXT.set_forkserver_preload(["numpy", "tensorflow", "keras", *(f"keras_distill.{room}" for room in ROOMS)])


def _begin(target, arguments, environment, output):
    os.environ.update(environment)
    os.chdir(ROOT)
    file = os.open(output, os.O_WRONLY)
    os.dup2(file, 1)
    os.dup2(file, 2)
    if isinstance(target, str):
        sys.argv = ["-c", *arguments]
        exec(compile(target, "<code of a test>", "exec"), {"__name__": "__main__"})
    else:
        target(*arguments)


class Child:
    """A process that runs ``target``; what it prints, errors too, goes to a file.

    Args:
        target: a function of a module, or code.
        arguments: of the function; for code, its ``sys.argv[1:]``.
        environment: variables beside those of this process.
    """

    def __init__(self, target, *arguments, environment=None):
        if isinstance(target, str):
            arguments = tuple(map(str, arguments))
        self._folder = tempfile.TemporaryDirectory(prefix="child-")
        self.output = Path(self._folder.name) / "output"
        self.output.touch()
        given = (target, arguments, environment or {}, str(self.output))
        self._process = CONTEXT.Process(target=_begin, args=given, daemon=True)
        self._process.start()

    def read(self):
        """Everything that the process has printed so far."""
        return self.output.read_text(errors="replace")

    def read_until(self, text, seconds=120):
        """Wait until it has printed ``text``."""
        wait_for(lambda: text in self.read() or self._process.exitcode is not None, seconds)
        assert text in self.read(), self.read()

    def wait(self, seconds=300):
        """Wait for the end; return the exit code, which is negative for a signal."""
        self._process.join(seconds)
        assert self._process.exitcode is not None, f"still running after {seconds} s"
        return self._process.exitcode

    def kill(self):
        """SIGKILL, and wait."""
        self._process.kill()
        return self.wait()


def wait_for(condition, seconds=120):
    """Poll every few hundredths of a second."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)
