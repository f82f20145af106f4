"""Peers in several processes that exchange their weights through a directory."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from keras_distill import _files
from keras_distill._checks import error, integer, number


@keras.saving.register_keras_serializable(package="keras_distill")
class PeerExchange:
    """The directory through which workers exchange weights, and this worker's index (codistillation).

    Every worker is a separate process that builds the same students and trains one of them. There is no
    ``tf.distribute`` strategy, so nothing is sent between two exchanges. All must run the same number of steps.

    Args:
        directory: a directory shared by all workers, empty at the start of a run.
        index: index of the student that this worker trains, 0 to num_workers - 1; None takes it from ``TF_CONFIG``.
        num_workers: >= 2; None takes it from ``TF_CONFIG``.
        timeout_seconds: > 0, how long a worker waits for the others at an exchange.

    Raises:
        ValueError: if a number is out of bounds, or ``TF_CONFIG`` is needed but names no worker.

    Example:
        >>> exchange = PeerExchange("runs/peers", index=1, num_workers=2)
        >>> exchange.index, exchange.num_workers
        (1, 2)

    Reference:
        Anil et al., "Large Scale Distributed Neural Network Training through Online Distillation", ICLR 2018,
        arXiv:1804.03235, algorithm 1. Differs: workers wait for each other at an exchange.
    """

    def __init__(
        self,
        directory: str | Path,
        index: int | None = None,
        num_workers: int | None = None,
        timeout_seconds: float = 600.0,
    ) -> None:
        owner = "PeerExchange"
        if index is None or num_workers is None:
            found = _task(owner)
            index = found[0] if index is None else index
            num_workers = found[1] if num_workers is None else num_workers
        self.directory = Path(directory)
        self.num_workers = integer(owner, "num_workers", num_workers, low=2)
        self.index = integer(owner, "index", index, low=0)
        if self.index >= self.num_workers:
            raise error(owner, f"index below num_workers={self.num_workers}", self.index)
        self.timeout_seconds = number(owner, "timeout_seconds", timeout_seconds, above=0.0)

    def _path(self, worker: int, step: int) -> Path:
        return self.directory / f"worker-{worker}-step-{step:09d}.npz"

    def show(self, step: int, weights: list[np.ndarray]) -> None:
        """Write this worker's weights; the file appears whole or not at all.

        Args:
            step: number of updates of the weights.
            weights: from ``model.get_weights``.
        """
        _files.make_folder(self.directory, parents=True, exist_ok=True)
        _files.put(self._path(self.index, step), _files.written(lambda stream: np.savez(stream, *weights)))

    def see(self, step: int, worker: int) -> list[np.ndarray]:
        """Wait for another worker's weights after ``step`` updates and return them.

        Args:
            step: number of updates.
            worker: index of that worker.

        Raises:
            ValueError: if they do not appear within ``timeout_seconds``.
        """
        path, started = self._path(worker, step), time.monotonic()
        while not path.exists():
            if time.monotonic() - started > self.timeout_seconds:
                got = f"none within {self.timeout_seconds:g} seconds"
                advice = "Check that it runs with equally many steps, and restart all workers, which resume"
                raise error("PeerExchange", f"the weights of worker {worker} at step {step}", got, advice)
            time.sleep(0.02)
        with np.load(path, allow_pickle=False) as arrays:
            return [arrays[f"arr_{index}"] for index in range(len(arrays.files))]

    def forget(self, before: int) -> None:
        """Delete this worker's files of earlier steps.

        Args:
            before: files of at least this many updates are kept.
        """
        for path in self.directory.glob(f"worker-{self.index}-step-*.npz"):
            if int(path.stem.rsplit("-", 1)[1]) < before:
                _files.remove(path)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {
            "directory": str(self.directory),
            "index": self.index,
            "num_workers": self.num_workers,
            "timeout_seconds": self.timeout_seconds,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> PeerExchange:
        """Rebuild the exchange from ``get_config``."""
        return cls(**config)


class Exchanging(keras.callbacks.Callback):
    """Publishes this worker's weights and loads the others', at regular steps.

    Args:
        exchange: the exchange.
        own: this worker's student.
        copies: ``echo_of_student_<worker>`` to the local copy of that student.
        every_steps: >= 1.
    """

    def __init__(
        self, exchange: PeerExchange, own: keras.Model, copies: dict[str, keras.Model], every_steps: int
    ) -> None:
        super().__init__()
        self.exchange, self.own, self.every_steps = exchange, own, every_steps
        self.others = {int(name.rsplit("_", 1)[1]): copy for name, copy in copies.items()}
        self._begins: list[int] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if self._step() == 0:  # not earlier, because a backup is restored when training begins
            self._exchange(0)
        # A worker that resumes does so at the beginning of an epoch, and sees again what the others showed since. Two
        # epochs are kept, because another worker may be one behind.
        self._begins = [*self._begins, self._step()][-3:]
        if len(self._begins) == 3:
            self.exchange.forget(self._begins[0])

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        step = self._step()
        if step % self.every_steps == 0:
            self._exchange(step)

    def _step(self) -> int:
        return int(self.model.optimizer.iterations)

    def _exchange(self, step: int) -> None:
        self.exchange.show(step, self.own.get_weights())
        for worker, copy in self.others.items():
            copy.set_weights(self.exchange.see(step, worker))


def _task(owner: str) -> tuple[int, int]:
    """Return this worker's index and the number of workers from ``TF_CONFIG``."""
    try:
        config = json.loads(os.environ["TF_CONFIG"])
        return int(config["task"]["index"]), len(config["cluster"]["worker"])
    except (KeyError, TypeError, ValueError):
        advice = "Give index and num_workers"
        raise error(owner, "TF_CONFIG with this task's index and the cluster's workers", "none", advice) from None


def checked_exchange(owner: str, students: Sequence[Any], update: str, every_steps: Any, exchange: Any) -> int | None:
    """Return the number of steps between two exchanges, or raise if the arguments do not fit together.

    Args:
        owner: name shown in error messages.
        students: students of all workers.
        update: as in ``MutualLearning``.
        every_steps: as in ``MutualLearning``.
        exchange: as in ``MutualLearning``.
    """
    if every_steps is None:
        if exchange is not None:
            raise error(owner, "exchange_every_steps with exchange", "None", "50 is usual")
        return None
    if update != "together":
        advice = "Peers that use old weights do not take turns"
        raise error(owner, "update='together' with exchange_every_steps", repr(update), advice)
    if exchange is not None and not isinstance(exchange, PeerExchange):
        raise error(owner, "exchange to be a regimes.PeerExchange", exchange)
    if exchange is not None and exchange.num_workers != len(students):
        raise error(owner, f"a student for each of {exchange.num_workers} workers", len(students))
    return integer(owner, "exchange_every_steps", every_steps, low=1)
