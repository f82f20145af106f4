"""The cost of the guard against non-finite values: the same distiller with and without it, in alternation.

``compile(stop_on_non_finite=False)`` leaves out the sums over gradients, inputs and losses, and the update that depends
on them. Run with ``python -m benchmarks.guard --full``; without ``--full`` one small network and few rounds.
"""

from __future__ import annotations

from collections.abc import Callable

from benchmarks import _harness, step_time

# isort: split
import keras

from keras_distill import Distiller, LogitsDistillation

CLAIM = "The guard costs at most 1% of a training step."
MODELS = ("mlp small", "mlp large", "cnn")


def program(model: str, guarded: bool, steps: int) -> Callable[[], int]:
    """Return a program that runs ``steps`` training steps."""
    make_teacher, make_student, _ = step_time.MODELS[model]
    keras.utils.set_random_seed(0)
    teacher, student = make_teacher(), make_student()
    distiller = Distiller(teacher, student, LogitsDistillation(temperature=4.0))
    distiller.compile(
        keras.optimizers.Adam(1e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        steps_per_execution=10,
        stop_on_non_finite=guarded,
    )
    data = step_time.batches(teacher.input_shape[1:], step_time.BATCH)
    distiller.fit(data, steps_per_epoch=20, verbose=0)
    iterator = iter(data)

    def run() -> int:
        for _ in range(steps // 10):
            logs = distiller.train_function(iterator)
        float(logs["loss"])
        return steps

    return run


def main() -> None:
    """Time all networks and evaluate the targets."""
    options = _harness.arguments(__doc__ or "", rounds={"type": int, "default": 31}, models={"nargs": "*"})
    report = _harness.Report("guard", CLAIM, options)
    for model in options.models or (MODELS if options.full else ("cnn small",)):
        steps = 20 if options.full else 10
        programs = {name: program(model, name == "guarded", steps) for name in ("guarded", "unguarded")}
        samples = _harness.paired(programs, rounds=options.rounds)
        wall, cpu = (samples.ratio("guarded", "unguarded", clock) for clock in ("wall", "cpu"))
        seconds = samples.seconds("unguarded").median
        report.add({"model": model}, {"step_ms": 1e3 * seconds, "wall": str(wall), "cpu": str(cpu)})
        report.verdict(f"{model}: time with the guard over time without, median of pairs", wall.median, at_most=1.01)
    report.write()


if __name__ == "__main__":
    main()
