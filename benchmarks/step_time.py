"""Step time of the distiller compared with its lower bound and with ``keras.distillation``, in one run.

The lower bound is the necessary work: one training step of the student alone, plus one forward pass of the teacher. It
is measured twice: as these two programs timed separately and added (the teacher's pass gets its batch for free), and as
one minimal hand-written train step that does both.
Every program's step is the function that ``Model.fit`` calls for each execution, on the same cached batches.
The full version has the built-in twice: the difference between two copies of one program shows the resolution of a
ratio.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from typing import Any

from benchmarks import _harness

# isort: split
import keras
import numpy as np
import tensorflow as tf

import keras_distill

CLAIM = (
    "One step of keras_distill costs at most 1.02 times a student step plus a teacher forward pass at 10 steps per "
    "execution, is never slower than keras.distillation, and with a named layer takes at most 0.75 of its time."
)
BATCH = 128
QUICK_BATCH = 64
CLASSES = 10


def mlp(hidden: list[int], name: str) -> keras.Model:
    """784 - hidden - 10, with hidden layers named ``hidden_1``, ``hidden_2``, ..."""
    layers = [keras.layers.Dense(n, activation="relu", name=f"hidden_{i + 1}") for i, n in enumerate(hidden)]
    return keras.Sequential([keras.Input((784,)), *layers, keras.layers.Dense(CLASSES, name="logits")], name=name)


def cnn(filters: list[int], name: str) -> keras.Model:
    """Three 3x3 convolutions with BatchNorm on 28x28 pixels, then a layer ``features`` of 64 units and 10 logits."""
    layers: list[Any] = [keras.Input((28, 28, 1))]
    for count in filters:
        layers += [
            keras.layers.Conv2D(count, 3, padding="same", use_bias=False),
            keras.layers.BatchNormalization(),
            keras.layers.ReLU(),
            keras.layers.MaxPooling2D(),
        ]
    layers += [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(64, activation="relu", name="features")]
    return keras.Sequential([*layers, keras.layers.Dense(CLASSES, name="logits")], name=name)


MODELS: dict[str, tuple[Callable[[], keras.Model], Callable[[], keras.Model], str]] = {
    # name: teacher, student, layer whose shape is the same in both
    "mlp small": (lambda: mlp([1200, 1200], "teacher"), lambda: mlp([128], "student"), ""),
    "mlp large": (lambda: mlp([1200, 1200], "teacher"), lambda: mlp([800, 1200], "student"), "hidden_2"),
    "cnn": (lambda: cnn([32, 64, 64], "teacher"), lambda: cnn([16, 32, 64], "student"), "features"),
    "cnn small": (lambda: cnn([8, 16, 32], "teacher"), lambda: cnn([4, 8, 16], "student"), "features"),
}


class HandWritten(keras.Model):
    """The minimal distillation step: teacher, student, cross-entropy and KL, gradient, update, one loss metric.

    Args:
        teacher: frozen.
        student: trained.
        temperature: of the soft targets.
    """

    def __init__(self, teacher: keras.Model, student: keras.Model, temperature: float) -> None:
        super().__init__()
        teacher.trainable = False
        self.teacher, self.student, self.temperature = teacher, student, temperature

    def call(self, inputs: Any, training: bool = False) -> Any:
        """Return the student's logits."""
        return self.student(inputs, training=training)

    def train_step(self, data: Any) -> Any:
        """Run one step."""
        x, y = data
        taught = tf.nn.softmax(self.teacher(x, training=False) / self.temperature)
        with tf.GradientTape() as tape:
            logits = self.student(x, training=True)
            hard = tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(y, tf.int32), logits)
            learnt = tf.nn.log_softmax(logits / self.temperature)
            soft = tf.reduce_sum(taught * (tf.math.log(taught) - learnt), -1) * self.temperature**2
            loss = tf.reduce_mean(0.5 * hard + 0.5 * soft)
        weights = self.student.trainable_weights
        self.optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        self._loss_tracker.update_state(loss, sample_weight=tf.shape(y)[0])
        return self.compute_metrics(x, y, logits)


def batches(input_shape: tuple[int, ...], batch: int) -> tf.data.Dataset:
    """Return endless batches from memory, without work or tuning for the input pipeline."""
    random = np.random.default_rng(0)
    x = random.normal(size=(16, batch, *input_shape)).astype("float32")
    y = random.integers(0, CLASSES, (16, batch)).astype("int32")
    options = tf.data.Options()
    options.autotune.enabled = False
    return tf.data.Dataset.from_tensor_slices((x, y)).cache().repeat().with_options(options)


def training(model: keras.Model, data: tf.data.Dataset, steps: int, xla: bool, steps_per_execution: int) -> Any:
    """Compile a model and return a program that runs ``steps`` of its training steps."""
    model.compile(
        optimizer=keras.optimizers.Adam(1e-4),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
        jit_compile=xla,
        steps_per_execution=steps_per_execution,
    )
    model.fit(data, steps_per_epoch=2 * steps_per_execution, verbose=0)
    iterator = iter(data)

    def run() -> int:
        for _ in range(steps // steps_per_execution):
            logs = model.train_function(iterator)
        float(logs["loss"])
        return steps

    return run


def forward(teacher: keras.Model, data: tf.data.Dataset, steps: int, xla: bool, steps_per_execution: int) -> Any:
    """Return a program that runs ``steps`` forward passes, as many per call of a graph as a training step has."""
    x, _ = next(iter(data))
    once = tf.function(lambda batch: teacher(batch, training=False), jit_compile=xla)

    @tf.function
    def several(batch: Any) -> Any:
        outputs = once(batch)
        for _ in tf.range(steps_per_execution - 1):
            outputs = once(batch)
        return outputs

    call = once if steps_per_execution == 1 else several

    def run() -> int:
        for _ in range(steps // steps_per_execution):
            outputs = call(x)
        float(outputs[0, 0])
        return steps

    return run


def programs(
    model: str,
    terms: str,
    steps: int,
    xla: bool,
    steps_per_execution: int,
    full: bool,
    only: str = "",
    batch: int = BATCH,
) -> dict[str, Any]:
    """Create all programs of one setting, or one of them; they share the teacher, and their students are copies."""
    make_teacher, make_student, layer = MODELS[model]
    keras.utils.set_random_seed(0)
    teacher, original = make_teacher(), make_student()

    def student() -> keras.Model:
        copy = keras.models.clone_model(original)
        copy.set_weights(original.get_weights())
        return copy

    def distiller(package: Any, kl: Any) -> keras.Model:
        losses = [package.LogitsDistillation(temperature=4.0, loss=kl)]
        if terms == "logits and layer":
            losses.append(package.FeatureDistillation("mse", teacher_layer_name=layer, student_layer_name=layer))
        return package.Distiller(teacher, student(), losses)

    data = batches(teacher.input_shape[1:], batch)
    settings = (data, steps, xla, steps_per_execution)
    makers: dict[str, Callable[[], Any]] = {
        "ours": lambda: training(distiller(keras_distill, "kl_divergence"), *settings),
        "builtin": lambda: training(distiller(keras.distillation, keras.losses.KLDivergence()), *settings),
        "student": lambda: training(student(), *settings),
        "teacher": lambda: forward(teacher, *settings),
    }
    if terms == "logits":
        makers["hand"] = lambda: training(HandWritten(teacher, student(), 4.0), *settings)
    if full:
        makers["builtin again"] = makers["builtin"]
        makers["builtin default"] = lambda: training(distiller(keras.distillation, "kl_divergence"), *settings)
    return {name: make() for name, make in makers.items() if only in ("", name)}


def compare(samples: _harness.Samples) -> tuple[dict[str, Any], dict[str, _harness.Spread], dict[str, float]]:
    """Return all results of one setting, and the ratios to show, in wall-clock and in processor time."""
    below = {"floor": ("student", "teacher"), "builtin": ("builtin",)}
    if "hand" in samples.wall:
        below["hand"] = ("hand",)
    figures: dict[str, Any] = {f"{name}_ms": samples.seconds(name).median * 1e3 for name in samples.wall}
    wall, cpu = {}, {}
    for name, programs_below in below.items():
        wall[name], by_cpu = samples.ratio("ours", programs_below), samples.ratio("ours", programs_below, "cpu")
        cpu[name] = by_cpu.median
        figures[f"ours_over_{name}"] = [wall[name].median, wall[name].low, wall[name].high]
        figures[f"ours_over_{name}_cpu"] = [by_cpu.median, by_cpu.low, by_cpu.high]
        figures[f"ours_minus_{name}_us"] = samples.difference("ours", programs_below).median * 1e6
        figures[f"ours_minus_{name}_cpu_us"] = samples.difference("ours", programs_below, "cpu").median * 1e6
    if "builtin again" in samples.wall:
        again = samples.ratio("builtin again", "builtin")
        figures["builtin_again_over_builtin"] = [again.median, again.low, again.high]
    if "hand" in below:
        figures["hand_over_floor"] = samples.ratio("hand", below["floor"]).median
        figures["hand_over_floor_cpu"] = samples.ratio("hand", below["floor"], "cpu").median
    return figures, wall, cpu


def main() -> None:
    """Run every setting and evaluate the targets."""
    options = _harness.arguments(
        __doc__,
        rounds={"type": int, "help": "rounds per setting (default 15, full 51)"},
        steps={"type": int, "default": 10, "help": "steps per program and round, a multiple of 10"},
        threads={"type": int, "default": 0, "help": "threads of TensorFlow (default: one per core)"},
        models={"nargs": "*", "choices": list(MODELS), "help": "default: mlp large and cnn, full: all"},
    )
    if options.threads:
        tf.config.threading.set_intra_op_parallelism_threads(options.threads)
        tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    rounds = options.rounds or (51 if options.full else 15)
    models = options.models or (list(MODELS) if options.full else ["mlp large", "cnn"])
    report = _harness.Report("step_time", CLAIM, options)
    batch = BATCH if options.full else QUICK_BATCH
    report.content["settings"] = {"batch": batch, "rounds": rounds, "steps": options.steps, "threads": options.threads}
    print("medians over rounds of ratios of wall clock time [95% interval] (of processor time)")
    print(
        f"{'model':10}{'terms':17}{'XLA':5}{'steps/ex':9}{'ours ms':>8}  {'ours/floor':30}{'ours/builtin':30}ours/hand"
    )
    found: dict[str, list[float]] = {"floor": [], "builtin": [], "layer": [], "low": []}
    for model, xla, steps_per_execution in itertools.product(models, (False, True), (1, 10)):
        for terms in ("logits", "logits and layer"):
            if terms == "logits and layer" and not (MODELS[model][2] and options.full):
                continue
            keras.backend.clear_session()
            made = programs(model, terms, options.steps, xla, steps_per_execution, options.full, batch=batch)
            figures, wall, cpu = compare(_harness.paired(made, rounds=rounds))
            line = f"{model:10}{terms:17}{'on' if xla else 'off':5}{steps_per_execution:<9}{figures['ours_ms']:8.3f}  "
            shown = "".join(f"{f'{spread} ({cpu[name]:.3f})':30}" for name, spread in wall.items())
            setting = {"model": model, "terms": terms, "xla": xla, "steps_per_execution": steps_per_execution}
            report.add(setting, figures, line + shown)
            found["builtin" if terms == "logits" else "layer"].append(wall["builtin"].median)
            if terms == "logits":
                found["low"].append(wall["builtin"].low)
            if terms == "logits" and steps_per_execution == 10:
                found["floor"].append(wall["floor"].median)
    floor = "ours / (student step + teacher pass), 10 steps per execution, worst setting"
    report.verdict(floor, max(found["floor"]), at_most=1.02)
    report.verdict(
        "ours / built-in on logits, geometric mean", statistics.geometric_mean(found["builtin"]), at_most=1.0
    )
    worst = "ours / built-in on logits, lower end of the interval, worst setting (above 1: slower beyond what varies)"
    report.verdict(worst, max(found["low"]), at_most=1.0)
    if found["layer"]:
        report.verdict("ours / built-in with a named layer, worst setting", max(found["layer"]), at_most=0.75)
    report.write()


if __name__ == "__main__":
    main()
