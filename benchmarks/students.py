"""Students built, factorised and quantised from a Fashion-MNIST residual teacher, distilled and not.

A residual network of about 152k parameters is the teacher. With few labels (2000) a quarter of its parameters is built
from it and distilled, built and trained on labels alone, and made at random and distilled or trained on labels alone;
a third is left by low rank, untrained and distilled; weights of 4 and 3 bits are trained and, for 3 bits, only rounded.
The few settings (Adam 1e-3, temperature 2, labels at 0.1) are the defaults of ``students.shrink``; none was chosen on
the test set. ``--full`` trains a longer teacher on all images; the quick version uses 10000 images for it.

It resumes: each run is kept in a file until the report is written.
"""

from __future__ import annotations

from benchmarks import _harness
from benchmarks._resume import Runs

# isort: split
import keras
import numpy as np

from keras_distill import Distiller, LogitsDistillation, data, students

CLAIM = "A student built from its teacher and distilled keeps more than one made at random, or trained on labels alone."
L = keras.layers


def residual() -> keras.Model:
    """The teacher: three residual blocks at 14 x 14 and 7 x 7 after a strided stem."""
    x = keras.Input((28, 28, 1))
    hidden = _unit(x, 32, 2)
    for width, stride in ((32, 1), (64, 2), (64, 1)):
        branch = _unit(_unit(hidden, width, stride), width, 1, last=True)
        if stride > 1:
            hidden = L.Conv2D(width, 1, strides=stride)(hidden)
        hidden = L.ReLU()(L.Add()([hidden, branch]))
    return keras.Model(x, L.Dense(10)(L.GlobalAveragePooling2D()(hidden)))


def _unit(x, width, stride, last=False):
    x = L.BatchNormalization()(L.Conv2D(width, 3, strides=stride, padding="same", use_bias=False)(x))
    return x if last else L.ReLU()(x)


def accuracy(model, examples):
    """Percent right."""
    logits = model.predict(examples.inputs, batch_size=256, verbose=0)
    return 100 * float((logits.argmax(-1) == examples.labels).mean())


def train(model, examples, epochs, seed):
    """Train on labels."""
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(True))
    model.fit(examples.dataset(64, shuffle_seed=seed), epochs=epochs, verbose=0)
    return model


def distil(teacher, model, examples, epochs, seed, rate=1e-3):
    """Train on the teacher's answers and, a little, on labels."""
    distiller = Distiller(teacher, model, LogitsDistillation(2.0), student_loss_weight=0.1)
    distiller.compile(optimizer=keras.optimizers.Adam(rate), loss=keras.losses.SparseCategoricalCrossentropy(True))
    distiller.fit(examples.dataset(64, shuffle_seed=seed), epochs=epochs, verbose=0)
    return model


def random_like(model, seed):
    """The same architecture with weights of its own."""
    keras.utils.set_random_seed(seed)
    fresh = type(model).from_config(model.get_config())
    return fresh


def main() -> None:
    """Train, measure and judge."""
    options = _harness.arguments(__doc__, seeds={"type": int, "default": 1}, epochs={"type": int, "default": 8})
    report = _harness.Report("students", CLAIM, options)
    runs = Runs(report.path.with_suffix(".runs.json"))
    loaded = data.load("fashion_mnist")
    few, test = loaded.train.take(2000), loaded.test
    many = loaded.train if options.full else loaded.train.take(10000)
    saved = report.path.with_suffix(".teacher.keras")
    if not saved.exists():
        keras.utils.set_random_seed(0)
        train(residual(), many, 12 if options.full else 5, 0).save(saved)
    teacher = keras.saving.load_model(saved)
    top = runs("teacher", lambda: accuracy(teacher, test))
    report.add({"model": "teacher", "parameters": teacher.count_params()}, {"accuracy": top})

    quarter = students.from_teacher(teacher, budget=students.Budget(parameters=teacher.count_params() // 4))
    third = students.factorize(
        teacher, few.inputs[:512], budget=students.Budget(parameters=teacher.count_params() // 3)
    )
    untrained = runs("low rank untrained", lambda: accuracy(third.model, test))
    weights = [quarter.model.get_weights(), third.model.get_weights()]
    found: dict[str, list[float]] = {}
    for seed in range(options.seeds):
        make = {
            "built, distilled": lambda s: distil(teacher, quarter.model, few, options.epochs, s),
            "built, labels": lambda s: train(quarter.model, few, options.epochs, s),
            "random, distilled": lambda s: distil(teacher, random_like(quarter.model, s), few, options.epochs, s),
            "random, labels": lambda s: train(random_like(quarter.model, s), few, options.epochs, s),
            "low rank, distilled": lambda s: distil(teacher, third.model, few, options.epochs // 2, s),
            "int4, distilled": lambda s: _quantized(teacher, few, 4, s),
            "int3, distilled": lambda s: _quantized(teacher, few, 3, s),
            "int3, rounded": lambda s: students.quantization_aware(teacher, 3, None),
        }
        for name, build in make.items():

            def run(build=build, seed=seed):
                quarter.model.set_weights(weights[0])
                third.model.set_weights(weights[1])
                model = build(seed)
                logits = [m.predict(test.inputs, batch_size=256, verbose=0).argmax(-1) for m in (model, teacher)]
                return [accuracy(model, test), 100 * float((logits[0] == logits[1]).mean())]

            right, agree = runs(f"{name} {seed}", run)
            found.setdefault(name, []).append(right)
            found.setdefault(f"{name}: agreement", []).append(agree)
    mean = {name: float(np.mean(values)) for name, values in found.items()}
    for name, values in found.items():
        report.add({"model": name, "seeds": len(values)}, {"mean": mean[name], "spread": float(np.std(values))})
    built = mean["built, distilled"]
    size = quarter.cost.parameters / teacher.count_params()
    report.verdict("parameters of the quarter, over the teacher's", size, at_most=0.25)
    report.verdict("points over random and distilled", built - mean["random, distilled"], at_least=5.0)
    report.verdict("points over random and labels", built - mean["random, labels"], at_least=5.0)
    report.verdict("points over built and labels", built - mean["built, labels"], at_least=1.0)
    report.verdict("low rank at a third, untrained", untrained, at_least=85.0)
    report.verdict("low rank, points below the teacher", top - mean["low rank, distilled"], at_most=0.5)
    report.verdict("int4, points below the teacher", top - mean["int4, distilled"], at_most=0.5)
    report.verdict("int4, agreement with the teacher", mean["int4, distilled: agreement"], at_least=97.5)
    report.verdict("int3, points over rounding", mean["int3, distilled"] - mean["int3, rounded"], at_least=5.0)
    report.write()
    runs.finish()
    saved.unlink()


def _quantized(teacher, examples, bits, seed):
    return distil(teacher, students.quantization_aware(teacher, bits, None), examples, 3, seed, rate=2e-4)


if __name__ == "__main__":
    main()
