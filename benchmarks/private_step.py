"""The cost of a private update: a step of ``regimes.DifferentiallyPrivate`` against a plain one, in processor time.

Both take 128 random examples, run as graphs without XLA, and update by Adam. The private one clips each example's
gradient by ghost norms and adds seeded noise. For comparison: per-example gradients by ``tf.vectorized_map``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks import _harness

# isort: split
import keras
import numpy as np
import tensorflow as tf

from keras_distill import regimes

CLAIM = "A private update takes at most 5 times the processor time of a plain one."
BATCH = 128
layers = keras.layers


def network(kind: str) -> keras.Model:
    """Return a perceptron of 270,000 weights or a convolutional network of 80,000."""
    keras.utils.set_random_seed(0)
    image = [keras.Input((28, 28, 1))]
    if kind == "perceptron":
        hidden = [layers.Flatten(), layers.Dense(256, "relu"), layers.Dense(256, "relu")]
    else:
        hidden = [layers.Conv2D(16, 5, 2, activation="relu"), layers.Conv2D(32, 3, 2, activation="relu"),
                  layers.Flatten(), layers.Dense(64, "relu")]  # fmt: skip
    return keras.Sequential([*image, *hidden, layers.Dense(10)])


def programs(kind: str, steps: int) -> dict[str, Callable[[], int]]:
    """Return functions that train for some steps and return their number."""
    rng = np.random.default_rng(0)
    x, y = tf.constant(rng.normal(size=(BATCH, 28, 28, 1)), "float32"), tf.constant(rng.integers(0, 10, BATCH))
    keep = tf.ones(BATCH)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    plain = regimes.Alone(network(kind))
    plain.compile("adam", loss, jit_compile=False)
    private = regimes.DifferentiallyPrivate(network(kind), num_examples=10_000, batch_size=BATCH, noise=1.0, seed=0)
    private.compile("adam")
    student = network(kind)
    weights, optimizer = student.trainable_variables, keras.optimizers.Adam()
    optimizer.build(weights)

    def one(example: tuple[Any, Any]) -> Any:
        with tf.GradientTape() as tape:
            value = loss(example[1][None], student(example[0][None], training=True))
        return tape.gradient(value, [each.value for each in weights])

    def vectorized(data: tuple[Any, Any, Any]) -> None:
        gradients = tf.vectorized_map(one, data[:2], fallback_to_while_loop=False)
        squares = sum(tf.reduce_sum(tf.reshape(each, (BATCH, -1)) ** 2, -1) for each in gradients)
        scales = tf.minimum(1.0, tf.math.rsqrt(squares))
        sums = [tf.tensordot(scales, each, 1) for each in gradients]
        optimizer.apply([(each + tf.random.normal(each.shape)) / BATCH for each in sums], weights)

    found = {}
    for name, step in (("plain", plain.train_step), ("private", private.train_step), ("vectorized_map", vectorized)):
        graph = tf.function(step, autograph=False)

        def run(graph: Any = graph) -> int:
            for _ in range(steps):
                graph((x, y, keep))
            return steps

        found[name] = run
    return found


def main() -> None:
    """Time both networks."""
    options = _harness.arguments(__doc__ or "", rounds={"type": int, "default": 15})
    report = _harness.Report("private_step", CLAIM, options)
    worst = 0.0
    for kind in ("perceptron", "convolutional"):
        samples = _harness.paired(programs(kind, 4), rounds=options.rounds)
        ratio, slow = (samples.ratio(name, "plain", "cpu") for name in ("private", "vectorized_map"))
        milliseconds = 1000 * samples.seconds("plain", "cpu").median
        figures = {"plain, ms": milliseconds, "private / plain": str(ratio), "vectorized_map / plain": str(slow)}
        report.add({"network": kind, "batch": BATCH}, figures)
        worst = max(worst, ratio.median)
    report.verdict("private / plain, the worse network", worst, at_most=5.0)
    report.write()


if __name__ == "__main__":
    main()
