"""Cost of feature distillation: a named layer against the built-in, relational losses against their bare formulas.

Step time: a term on one named layer, alone and beside the logits, in ``keras_distill`` and in ``keras.distillation``
(whose logits term gets ``KLDivergence()``: its default is broken): one teacher, copies of one student, in alternation.

Losses at batch 256: each is compared with its bare formula in matrix form: the fewest TensorFlow operations, automatic
differentiation, no masks, no handling of coincident or zero examples or of rounding. For the angles this keeps all
batch**3 triples in memory; the form of public codes, from (batch, batch, width) differences, is shown as well.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from benchmarks import _harness

# isort: split
import keras
import numpy as np
import tensorflow as tf

import keras_distill
from benchmarks import step_time
from keras_distill import losses

CLAIM = (
    "With a term on one named layer a step takes at most 0.75 of keras.distillation's time, and each relation loss at "
    "batch 256 at most 1.1 times its bare matrix form, value and gradient."
)
BATCH, WIDTH = 256, 512
Pair = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]  # (teacher, student) -> scalar


def transformer(blocks: int, name: str) -> keras.Model:
    """28 rows of 28 pixels as tokens; ``blocks`` encoder blocks of width 64; a layer ``features`` and 10 logits."""
    x = keras.Input((28, 28))
    y = keras.layers.Dense(64)(x)
    for _ in range(blocks):
        y = keras.layers.LayerNormalization()(y + keras.layers.MultiHeadAttention(4, 16)(y, y))
        y = keras.layers.LayerNormalization()(y + keras.layers.Dense(64)(keras.layers.Dense(256, "gelu")(y)))
    y = keras.layers.GlobalAveragePooling1D(name="features")(y)
    return keras.Model(x, keras.layers.Dense(step_time.CLASSES)(y), name=name)


MODELS: dict[str, tuple[Callable[[], keras.Model], Callable[[], keras.Model]]] = {
    "cnn": (lambda: step_time.cnn([32, 64, 64], "teacher"), lambda: step_time.cnn([16, 32, 64], "student")),
    "transformer": (lambda: transformer(4, "teacher"), lambda: transformer(2, "student")),
}


def named_layer(report: _harness.Report, rounds: int, steps_per_execution: tuple[int, ...]) -> None:
    """Measure the step with a term on the layer ``features`` and evaluate the worst setting."""
    worst = []
    for (model, makers), steps in itertools.product(MODELS.items(), steps_per_execution):
        for beside in (False, True):
            keras.backend.clear_session()
            keras.utils.set_random_seed(0)
            teacher, original = (make() for make in makers)
            data = step_time.batches(teacher.input_shape[1:])
            programs = {}
            for name, package in (("ours", keras_distill), ("builtin", keras.distillation)):
                student = keras.models.clone_model(original)
                student.set_weights(original.get_weights())
                terms = [package.FeatureDistillation("mse", "features", "features")]
                if beside:
                    kl = "kl_divergence" if package is keras_distill else keras.losses.KLDivergence()
                    terms.append(package.LogitsDistillation(temperature=4.0, loss=kl))
                distiller = package.Distiller(teacher, student, terms)
                programs[name] = step_time.training(distiller, data, max(5, steps), False, steps)
            samples = _harness.paired(programs, rounds=rounds)
            wall, processor = (samples.ratio("ours", "builtin", clock) for clock in ("wall", "cpu"))
            terms_shown = "layer and logits" if beside else "layer"
            report.add(
                {"model": model, "terms": terms_shown, "steps_per_execution": steps},
                {
                    **{f"{name}_ms": samples.seconds(name).median * 1e3 for name in programs},
                    "ratio": str(wall),
                    "by_processor": str(processor),
                },
            )
            worst.append(wall.median)
    report.verdict("ours / built-in with one named layer, worst setting", max(worst), at_most=0.75)


def gram(x: tf.Tensor) -> tf.Tensor:
    """Inner products of all pairs."""
    return tf.matmul(x, x, transpose_b=True)


def smooth_l1(gap: tf.Tensor) -> tf.Tensor:
    """Mean of Huber's function with delta 1."""
    size = tf.abs(gap)
    return tf.reduce_mean(tf.where(size < 1.0, 0.5 * gap * gap, size - 0.5))


def squared_distances(x: tf.Tensor) -> tf.Tensor:
    """Squared distances of all pairs by one matrix product."""
    products = gram(x)
    squares = tf.linalg.diag_part(products)
    return tf.maximum(squares[:, None] + squares[None, :] - 2.0 * products, 1e-12)


def similarity(teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
    """SP."""
    rows = [tf.math.l2_normalize(gram(x), axis=1) for x in (student, teacher)]
    return tf.reduce_mean(tf.square(rows[0] - rows[1]))


def probabilities(teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
    """PKT."""
    rows = [0.5 + 0.5 * gram(tf.math.l2_normalize(x, axis=1)) for x in (student, teacher)]
    q, p = (row / tf.reduce_sum(row, axis=1, keepdims=True) for row in rows)
    return tf.reduce_mean(p * (tf.math.log(p + 1e-7) - tf.math.log(q + 1e-7)))


def correlation(teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
    """CC with gamma 0.4 and order 2."""
    a, b, c = (np.exp(-0.8) * w for w in (1.0, 0.8, 0.32))
    s, t = (gram(tf.math.l2_normalize(x, axis=1)) for x in (student, teacher))
    return tf.reduce_mean(tf.square(a + s * (b + s * c) - a - t * (b + t * c)))


def distance(teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
    """RKD-D."""
    pairs = [tf.linalg.set_diag(tf.sqrt(squared_distances(x)), tf.zeros(BATCH)) for x in (student, teacher)]
    s, t = (d * (BATCH * (BATCH - 1) / tf.reduce_sum(d)) for d in pairs)
    return smooth_l1(s - t)


def angle(teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
    """RKD-A from Gram matrices: (batch, batch, batch) products, no differences."""

    def cosines(x: tf.Tensor) -> tf.Tensor:
        products, inverse = gram(x), tf.math.rsqrt(squared_distances(x)) * (1.0 - tf.eye(BATCH))
        centred = products[None] - products[:, :, None] - products[:, None, :]
        centred += tf.linalg.diag_part(products)[:, None, None]
        return centred * inverse[:, :, None] * inverse[:, None, :]

    return smooth_l1(cosines(student) - cosines(teacher))


def angle_of_differences(teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
    """RKD-A as in public codes."""

    def cosines(x: tf.Tensor) -> tf.Tensor:
        edges = tf.math.l2_normalize(x[None] - x[:, None], axis=-1)
        return tf.matmul(edges, edges, transpose_b=True)

    return smooth_l1(cosines(student) - cosines(teacher))


def contrast(teacher: tf.Tensor, student: tf.Tensor) -> tf.Tensor:
    """CRD within the batch at temperature 0.07."""
    s, t = (tf.math.l2_normalize(x, axis=1) for x in (student, teacher))
    logits = tf.matmul(s, t, transpose_b=True) / 0.07
    both = tf.reduce_logsumexp(logits, axis=0) + tf.reduce_logsumexp(logits, axis=1)
    return tf.reduce_mean(both - 2.0 * tf.linalg.diag_part(logits))


CASES: dict[str, tuple[Any, dict[str, Pair]]] = {
    "similarity_preserving": (losses.SimilarityPreserving(), {"bare": similarity}),
    "probabilistic_transfer": (losses.ProbabilisticTransfer(), {"bare": probabilities}),
    "correlation_congruence": (losses.CorrelationCongruence(), {"bare": correlation}),
    "relational_distance": (losses.RelationalDistance(), {"bare": distance}),
    "relational_angle": (losses.RelationalAngle(), {"bare": angle, "differences": angle_of_differences}),
    "contrastive_representation": (losses.ContrastiveRepresentation(), {"bare": contrast}),
}


def step(function: Pair, jit_compile: bool) -> Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Value and gradient with respect to the student, in one graph."""

    @tf.function(jit_compile=jit_compile)
    def run(teacher: tf.Tensor, student: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        with tf.GradientTape() as tape:
            tape.watch(student)
            value = tf.reduce_mean(function(teacher, student))
        return value, tape.gradient(value, student)

    return run


def relations(report: _harness.Report, rounds: int, jit_compile: bool) -> None:
    """Measure value and gradient of every relational loss."""
    rng = np.random.default_rng(0)
    teacher, student = (tf.constant(rng.normal(size=(BATCH, WIDTH)).astype("float32")) for _ in range(2))
    compiler = "xla" if jit_compile else "graph"
    for name, (loss, others) in CASES.items():
        forms: dict[str, Pair] = {"ours": loss.values, **others}
        if jit_compile:
            forms.pop("differences", None)
        steps = {key: step(form, jit_compile) for key, form in forms.items()}
        wanted = steps["bare"](teacher, student)
        for got in (each(teacher, student) for each in steps.values()):  # the losses agree, before they are timed
            np.testing.assert_allclose(got[0], wanted[0], rtol=2e-3)
            np.testing.assert_allclose(got[1], wanted[1], atol=1e-4 * np.abs(wanted[1]).max())
        count = 2 if name == "relational_angle" else 20

        def runner(run: Any, count: int = count) -> Callable[[], int]:
            def many() -> int:
                for _ in range(count):
                    value, _ = run(teacher, student)
                value.numpy()
                return count

            return many

        samples = _harness.paired({key: runner(run) for key, run in steps.items()}, rounds=rounds)
        wall, processor = (samples.ratio("ours", "bare", clock) for clock in ("wall", "cpu"))
        figures = {f"{key}_ms": samples.seconds(key, "cpu").median * 1e3 for key in steps}
        report.add({"loss": name, "by": compiler}, {**figures, "ratio": str(processor), "by_wall": str(wall)})
        report.verdict(f"{name} ({compiler}), processor time over its bare form's", processor.median, at_most=1.1)


def main() -> None:
    """Measure both; with ``--full`` ten steps per execution, and the losses compiled by XLA, too."""
    options = _harness.arguments(__doc__, rounds={"type": int, "help": "rounds per setting (default 15, full 41)"})
    report = _harness.Report("features", CLAIM, options)
    rounds = options.rounds or (41 if options.full else 15)
    named_layer(report, rounds, (1, 10) if options.full else (1,))
    for jit_compile in (False, True) if options.full else (False,):
        relations(report, rounds, jit_compile)
    report.write()


if __name__ == "__main__":
    main()
