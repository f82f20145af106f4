"""From MNIST to USPS: a student for digits of another domain without labels.

The teacher is a CNN trained on MNIST. Every student learns from the labels of MNIST and the teacher's predictions for
both domains ("plain"); the other methods add one term or filter. USPS digits are enlarged to 28 x 28 without a margin,
so that the strokes are thicker and the digit fills the frame. Weights of the terms were chosen on USPS' validation
images, which are not part of the results.
"""

from __future__ import annotations

from typing import Any

from benchmarks import _harness

# isort: split
import keras
import numpy as np
import tensorflow as tf

from keras_distill import Distiller, LogitsDistillation, data, losses, terms

CLAIM = "Domain alignment improves a distilled student on a domain without labels by five points."
WAYS: dict[str, Any] = {
    "plain": lambda: ([LogitsDistillation(2.0)], [1.0]),
    "confident": lambda: ([LogitsDistillation(2.0, losses.ConfidentTargets(0.95))], [1.0]),
    "coral": lambda: ([LogitsDistillation(2.0, losses.ConfidentTargets(0.95)), _align("coral")], [1.0, 30.0]),
    "mmd": lambda: ([LogitsDistillation(2.0, losses.ConfidentTargets(0.95)), _align("mmd")], [1.0, 3.0]),
    "adversary": lambda: (
        [LogitsDistillation(2.0, losses.ConfidentTargets(0.95)), terms.DomainAdversary("features", ramp_steps=600)],
        [1.0, 1.0],
    ),
}


def _align(kind: str) -> terms.DomainAlignment:
    return terms.DomainAlignment(kind, "features")


def network(width: int, seed: int) -> keras.Model:
    """A small CNN whose last hidden layer is called "features"."""
    keras.utils.set_random_seed(seed)
    image = keras.Input((28, 28, 1), name="image")
    h = image
    for filters in (width, 2 * width, 2 * width):
        h = keras.layers.Conv2D(filters, 3, 2, "same", use_bias=False)(h)
        h = keras.layers.ReLU()(keras.layers.BatchNormalization()(h))
    h = keras.layers.Dense(64, activation="relu", name="features")(keras.layers.Flatten()(h))
    return keras.Model({"image": image}, keras.layers.Dense(10)(h))


def enlarged(examples: data.Examples) -> data.Examples:
    """Resize USPS to MNIST's size."""
    return data.Examples(tf.image.resize(examples.inputs, (28, 28)).numpy(), examples.labels)


def accuracy(model: keras.Model, examples: data.Examples) -> float:
    """Accuracy in percent."""
    logits = model.predict({"image": examples.inputs}, batch_size=1000, verbose=0)
    return 100.0 * float(np.mean(logits.argmax(1) == examples.labels))


def main() -> None:
    """Train and evaluate."""
    options = _harness.arguments(
        __doc__,
        seeds={"type": int, "default": 2},
        held_out={"action": "store_true"},
        ways={"nargs": "*", "default": list(WAYS)},
    )
    report = _harness.Report("domains", CLAIM, options)
    mnist, usps = data.load("mnist"), data.load("usps")
    source, target = mnist.train.take(20_000), enlarged(usps.train)
    judged = (
        mnist.validation if options.held_out else mnist.test,
        enlarged(usps.validation if options.held_out else usps.test),
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)
    teacher = network(24, 100)
    teacher.compile(keras.optimizers.Adam(2e-3), loss)
    teacher.fit({"image": source.inputs}, source.labels, batch_size=128, epochs=3 if options.full else 1, verbose=0)
    report.add({"model": "teacher"}, {"source": accuracy(teacher, judged[0]), "target": accuracy(teacher, judged[1])})
    found: dict[str, list[dict[str, float]]] = {way: [] for way in options.ways}
    plain = tf.data.Options()
    plain.autotune.enabled = False
    joined = (
        data.domains(
            mnist=tf.data.Dataset.from_tensor_slices((source.inputs, source.labels)).shuffle(20_000, seed=1),
            usps=tf.data.Dataset.from_tensor_slices(target.inputs).shuffle(len(target), seed=2),
        )
        .batch(128)
        .with_options(plain)
    )
    for seed in range(options.seeds):
        for way in options.ways:
            chosen, weights = WAYS[way]()
            student = network(12, seed)
            distiller = Distiller(teacher, student, chosen, weights, student_loss_weight=0.5)
            distiller.compile(keras.optimizers.Adam(1e-3), loss, jit_compile=False)
            distiller.fit(joined, epochs=3 if options.full else 1, verbose=0)
            run = {"source": accuracy(student, judged[0]), "target": accuracy(student, judged[1])}
            found[way].append(run)
            report.add({"way": way, "seed": seed}, run)
    mean = {way: {key: float(np.mean([run[key] for run in runs])) for key in runs[0]} for way, runs in found.items()}
    spread = {way: {key: float(np.std([run[key] for run in runs])) for key in runs[0]} for way, runs in found.items()}
    for way in options.ways:
        report.add({"model": way, "seeds": options.seeds}, {"mean": mean[way], "spread": spread[way]})
    if len(mean) > 1 and "plain" in mean:
        best = max((way for way in mean if way != "plain"), key=lambda way: mean[way]["target"])
        gain = mean[best]["target"] - mean["plain"]["target"]
        report.verdict(f"points on the target that {best} gains over plain distillation", gain, at_least=5.0)
        lost = mean["plain"]["source"] - mean[best]["source"]
        report.verdict(f"points on the source that {best} loses against plain distillation", lost, at_most=1.0)
    report.write()


if __name__ == "__main__":
    main()
