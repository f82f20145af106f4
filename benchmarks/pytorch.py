"""The same distillation in keras_distill and in a plain PyTorch loop: the same losses, and how long a step takes.

Same student and teacher (784-800-1200-10 from 784-1200-1200-10), same first weights, same batches in the same order,
SGD with momentum. PyTorch's losses are written from the papers' formulas in ``_pytorch_loop.py``, which shares no code
with this package. PyTorch may be installed in another environment: ``--torch-python /path/to/python``.
At a learning rate of 0.003 the losses stay within rounding; at 0.01 and 0.05 the same rounding grows to 1e-4 and 5e-4
in 100 steps, because units of the network switch on and off.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import _harness, step_time

# isort: split
import keras
import numpy as np
import tensorflow as tf

import keras_distill
from keras_distill import losses

CLAIM = "keras_distill and a plain PyTorch loop give the same losses for 100 steps, to 1e-4 of the loss."
STEPS = 100
TERMS: dict[str, Callable[[], list[Any]]] = {
    "soft targets": lambda: [keras_distill.LogitsDistillation(4.0)],
    "decoupled": lambda: [keras_distill.LogitsDistillation(4.0, losses.DecoupledSoftTargets(non_target_weight=8.0))],
    "soft targets and hint": lambda: [
        keras_distill.LogitsDistillation(4.0),
        keras_distill.FeatureDistillation("mse", "hidden_2", "hidden_2"),
    ],
}


class Peer:
    """The PyTorch process, controlled by lines on its standard input.

    Args:
        python: an interpreter that has PyTorch.
        path: file of weights and batches.
        case: which losses.
        threads: 0 for PyTorch's own choice.
    """

    def __init__(self, python: str, path: str, case: str, threads: int) -> None:
        loop = Path(__file__).with_name("_pytorch_loop.py")
        command = [python, str(loop), path, case, str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, line: str) -> Any:
        """Send a line and wait for the reply."""
        if self.process.stdin is None or self.process.stdout is None:
            raise RuntimeError("no pipes")
        try:
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # its standard error shows the reason
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(self.process.wait())
        return json.loads(answer)


def main() -> None:
    """Compare losses, then times alternately."""
    options = _harness.arguments(
        __doc__,
        torch_python={"default": sys.executable, "help": "interpreter that has PyTorch (default: this one)"},
        rounds={"type": int, "help": "default 9, full 31"},
        threads={"type": int, "default": 0, "help": "threads of both (default: their own choice)"},
    )
    if options.threads:
        tf.config.threading.set_intra_op_parallelism_threads(options.threads)
        tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    rounds = options.rounds or (31 if options.full else 9)
    report = _harness.Report("pytorch", CLAIM, options)
    find = "import torch; print(torch.__version__)"
    found = subprocess.run([options.torch_python, "-c", find], capture_output=True, text=True, check=False)
    report.content["versions"]["torch"] = found.stdout.strip() or "none"
    worst, ratios = 0.0, []
    for case, terms in TERMS.items():
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        teacher, student = step_time.mlp([1200, 1200], "teacher"), step_time.mlp([800, 1200], "student")
        first = student.get_weights()
        data = step_time.batches((784,))
        x, y = (np.stack(part) for part in zip(*data.take(16).as_numpy_iterator(), strict=True))
        weights = {f"teacher_{i}": w for i, w in enumerate(teacher.get_weights())}
        weights |= {f"student_{i}": w for i, w in enumerate(first)}
        distiller = keras_distill.Distiller(teacher, student, terms(), student_loss_weight=0.5)
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        distiller.compile(keras.optimizers.SGD(0.003, momentum=0.9), loss)
        distiller.make_train_function()
        ours, iterator = np.zeros(STEPS), iter(data)
        for step in range(STEPS):
            distiller.reset_metrics()
            ours[step] = float(distiller.train_function(iterator)["loss"])
        with tempfile.NamedTemporaryFile(suffix=".npz") as file:
            np.savez(file, x=x, y=y, **weights)
            file.flush()
            peer = Peer(options.torch_python, file.name, case, options.threads)
            theirs = np.array(peer.ask(f"losses {STEPS}"))
            difference = float(np.max(np.abs(ours - theirs) / np.maximum(np.abs(theirs), 1e-3)))

            def run(distiller: Any = distiller, iterator: Any = iterator) -> int:
                for _ in range(10):
                    logs = distiller.train_function(iterator)
                float(logs["loss"])
                return 10

            def run_peer(peer: Peer = peer) -> int:
                peer.ask("time 10")
                return 10

            samples = _harness.paired({"ours": run, "pytorch": run_peer}, rounds=rounds)
            peer.process.kill()
            peer.process.wait()
        ratio = samples.ratio("ours", "pytorch")
        worst = max(worst, difference)
        ratios.append(ratio.median)
        times = {f"{name}_ms": samples.seconds(name).median * 1e3 for name in ("ours", "pytorch")}
        ends = {"first": [float(ours[0]), float(theirs[0])], "last": [float(ours[-1]), float(theirs[-1])]}
        report.add({"losses": case}, {"relative_difference": difference, **times, "ratio": str(ratio), **ends})
    report.verdict("largest relative difference of a loss in 100 steps", worst, at_most=1e-4)
    report.verdict("step time, keras_distill / PyTorch, worst case", max(ratios), at_most=1.0)
    report.write()


if __name__ == "__main__":
    main()
