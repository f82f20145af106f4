"""Annealing-KD: first learn the teacher's logits, scaled up step by step, then only the labels.

Run: python examples/annealing_kd.py  (Fashion-MNIST, 5 seeds; --smoke: scikit-learn's digits, 3 epochs)

On the digits, 21 epochs, one seed, 2026-11-21: teacher 97.0 %, student alone 94.4, at a constant temperature 91.6,
annealed 92.8. One seed is no evidence, and this student has enough data to learn without a teacher: the run only
demonstrates the two stages.

Reference: Jafari et al., "Annealing Knowledge Distillation", EACL 2021, arXiv:2104.07163.
"""

import argparse
import time
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill import Distiller, LogitsDistillation, callbacks, data

HIGHEST = 7  # the initial temperature of stage 1, as in the paper for GLUE


@keras.saving.register_keras_serializable(package="examples")
class AnnealedLogits(LogitsDistillation):
    """Squared distance to the teacher's logits times 1 - (temperature - 1) / HIGHEST, summed over the classes."""

    def values(self, teacher_outputs: Any, student_outputs: Any, **_: Any) -> Any:
        """Return (batch,); the temperature scales only the teacher's logits."""
        scale = 1.0 - (self.settings["temperature"].tensor - 1.0) / HIGHEST
        return ops.sum(ops.square(student_outputs - scale * teacher_outputs), axis=-1)


def network(classes: int, *units: int) -> keras.Model:
    """A multilayer perceptron that ends in logits."""
    hidden = [keras.layers.Dense(width, activation="relu") for width in units]
    return keras.Sequential([keras.layers.Flatten(), *hidden, keras.layers.Dense(classes)])


def compiled(model: keras.Model, rate: float) -> keras.Model:
    """Compile for integer labels."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"])
    return model


def best(epochs: int) -> keras.callbacks.Callback:
    """Train for all epochs, then restore the weights with the best validation accuracy."""
    return keras.callbacks.EarlyStopping("val_accuracy", mode="max", patience=epochs, restore_best_weights=True)


def annealed(teacher: keras.Model, student: keras.Model, epochs: int, fit: dict) -> None:
    """Train in two stages: two thirds of the epochs for the logits, the rest for the labels at a lower rate."""
    first = 2 * epochs // 3
    distiller = Distiller(teacher, student, AnnealedLogits(temperature=HIGHEST), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.Adam(2e-3), metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")])
    # Integers from HIGHEST down to 1, each for the same number of epochs.
    falling = callbacks.TemperatureScheduler(lambda epoch: HIGHEST - epoch * HIGHEST // first)
    distiller.fit(**fit, epochs=first, callbacks=[falling, best(first)])
    compiled(student, 5e-4).fit(**fit, epochs=epochs - first, callbacks=[best(epochs)])


def constant(teacher: keras.Model, student: keras.Model, epochs: int, fit: dict) -> None:
    """Train by plain distillation at one temperature."""
    distiller = compiled(Distiller(teacher, student, LogitsDistillation(4.0), student_loss_weight=0.1), 2e-3)
    distiller.fit(**fit, epochs=epochs, callbacks=[best(epochs)])


def alone(teacher: keras.Model, student: keras.Model, epochs: int, fit: dict) -> None:
    """Train on the labels."""
    compiled(student, 2e-3).fit(**fit, epochs=epochs, callbacks=[best(epochs)])


def main() -> None:
    """Train the same students in each way, and print test accuracies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="digits, one seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=21)
    arguments = parser.parse_args()
    seeds, teacher_epochs, epochs = (1, 2, 3) if arguments.smoke else (arguments.seeds, 15, arguments.epochs)
    source = data.load("digits" if arguments.smoke else "fashion_mnist")
    train, held_out = source.train.take(512 if arguments.smoke else 12_000), source.validation.take(2_000)
    fit = {"x": train.inputs, "y": train.labels, "batch_size": 64 if arguments.smoke else 128, "verbose": 0}
    fit["validation_data"] = (held_out.inputs, held_out.labels)
    began = time.perf_counter()

    keras.utils.set_random_seed(0)
    teacher = compiled(network(source.num_classes, 400, 400), 1e-3)
    teacher.fit(**fit, epochs=teacher_epochs, callbacks=[best(teacher_epochs)])
    accuracy = teacher.evaluate(source.test.inputs, source.test.labels, verbose=0)[1]
    print(f"teacher: {100 * accuracy:.2f} %, {teacher.count_params()} parameters")
    for way in (alone, constant, annealed):
        found = []
        for seed in range(seeds):
            keras.utils.set_random_seed(seed)
            student = network(source.num_classes, 12)
            way(teacher, student, epochs, fit)
            logits = student.predict(source.test.inputs, batch_size=1024, verbose=0)
            found.append(100 * np.mean(logits.argmax(-1) == source.test.labels))
        print(f"{way.__name__:10}{np.mean(found):.2f} ± {np.std(found, ddof=seeds > 1):.2f} %  ({seeds} seeds)")
    print(f"{time.perf_counter() - began:.0f} seconds")


if __name__ == "__main__":
    main()
