"""Common parts of the benchmarks of small models: the residual network, its images, repeated training."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks import _harness
from keras_distill import Distiller, LogitsDistillation, students, teachers
from keras_distill.data import Examples

L = keras.layers
BATCH = 64


def residual(shape: tuple[int, int, int], widths: tuple[int, int] = (32, 64)) -> keras.Model:
    """A strided stem, one residual block at half and two at a quarter of the picture's size; logits of 10 classes."""
    x = keras.Input(shape)
    hidden = _unit(x, widths[0], 2)
    for width, stride in ((widths[0], 1), (widths[1], 2), (widths[1], 1)):
        branch = _unit(_unit(hidden, width, stride), width, 1, last=True)
        if stride > 1:
            hidden = L.Conv2D(width, 1, strides=stride)(hidden)
        hidden = L.ReLU()(L.Add()([hidden, branch]))
    return keras.Model(x, L.Dense(10)(L.GlobalAveragePooling2D()(hidden)))


def _unit(x: keras.KerasTensor, width: int, stride: int, last: bool = False) -> keras.KerasTensor:
    # Two epochs are a few hundred steps, for which moving statistics need a momentum below Keras' 0.99.
    x = L.BatchNormalization(momentum=0.9)(L.Conv2D(width, 3, strides=stride, padding="same", use_bias=False)(x))
    return x if last else L.ReLU()(x)


def folder(full: bool, held_out: bool = False) -> pathlib.Path:
    """The folder in which trained teachers and their predictions are kept for the next row."""
    size = ("full" if full else "quick") + ("_held_out" if held_out else "")
    found = pathlib.Path(tempfile.gettempdir()) / f"keras_distill_students_{size}"
    found.mkdir(exist_ok=True)
    return found


def predict(model: keras.Model, inputs: object) -> np.ndarray:
    """Logits."""
    return np.asarray(model.predict(inputs, batch_size=256, verbose=0))


def accuracy(model: keras.Model, examples: Examples) -> float:
    """Accuracy in percent."""
    return 100 * float((predict(model, examples.inputs).argmax(-1) == examples.labels).mean())


class Training:
    """One compiled training that restarts from initial weights for each seed, so that it is traced once.

    Args:
        model: the student.
        source: batches of one example each: ``(inputs, labels)``, or what ``Answers`` gives.
        count: how many examples there are.
        epochs: over them; Adam's rate falls to 0 along a cosine.
        rate: of Adam, at the beginning.
        teacher: None trains on labels.
        labels: weight of the labels relative to a teacher.
        temperature: of the teacher's predictions.
    """

    def __init__(
        self,
        model: keras.Model,
        source: tf.data.Dataset,
        count: int,
        epochs: int,
        rate: float = 1e-3,
        teacher: object = None,
        labels: float = 0.1,
        temperature: float = 2.0,
    ) -> None:
        self.model, self.source, self.count, self.epochs = model, source, count, epochs
        self.trained = model
        if teacher is not None:
            self.trained = Distiller(teacher, model, LogitsDistillation(temperature), student_loss_weight=labels)
        falling = keras.optimizers.schedules.CosineDecay(rate, epochs * -(-count // BATCH))
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        self.trained.compile(optimizer=keras.optimizers.Adam(falling), loss=loss, jit_compile=False)

    def run(self, seed: int, weights: list[np.ndarray]) -> keras.Model:
        """Train from ``weights``; ranges of quantisation are frozen for the last epoch if there are several."""
        self.model.set_weights(weights)
        for variable in self.trained.optimizer.variables:  # the steps so far, and Adam's moments
            variable.assign(np.zeros(variable.shape))
        options = tf.data.Options()
        options.autotune.enabled = False
        mixed = self.source.shuffle(self.count, seed=seed, reshuffle_each_iteration=True)
        batches = mixed.batch(BATCH).prefetch(2).with_options(options)
        ranges = (students.quantized_bits(self.model) or (None, None))[1] is not None
        for epoch in range(self.epochs):
            if ranges and self.epochs > 1 and epoch == self.epochs - 1:
                students.freeze_quantization(self.model)
            self.trained.fit(batches, epochs=1, shuffle=False, verbose=0)
        return self.model


def random_weights(model: keras.Model, seed: int) -> list[np.ndarray]:
    """Random initial weights of the same architecture."""
    keras.utils.set_random_seed(seed)
    return type(model).from_config(model.get_config()).get_weights()


class Answers:
    """A teacher's predictions for images, stored on disk and kept in memory once they are read.

    Args:
        teacher: the model.
        examples: the labelled examples.
        path: of the store.
    """

    def __init__(self, teacher: keras.Model, examples: Examples, path: pathlib.Path) -> None:
        self.count = len(examples)
        batches = examples.dataset(256)
        self.teacher = teachers.label(teacher, batches, str(path))
        self.examples = self.teacher.attach(batches).unbatch().cache()


def plain(examples: Examples) -> tf.data.Dataset:
    """Single examples with their labels only."""
    return tf.data.Dataset.from_tensor_slices((examples.inputs, examples.labels))


def litert_times(contents: Mapping[str, bytes], picture: np.ndarray, rounds: int) -> _harness.Samples:
    """Latencies of LiteRT files on one thread, in alternation, for inputs such as ``picture``."""
    from ai_edge_litert.interpreter import Interpreter

    programs = {}
    for name, content in contents.items():
        interpreter = Interpreter(model_content=content, num_threads=1)
        index = interpreter.get_input_details()[0]["index"]
        interpreter.resize_tensor_input(index, picture.shape)
        interpreter.allocate_tensors()
        interpreter.set_tensor(index, picture)

        def steps(interpreter: Any = interpreter) -> int:
            for _ in range(20):
                interpreter.invoke()
            return 20

        programs[name] = steps
    return _harness.paired(programs, rounds=rounds)
