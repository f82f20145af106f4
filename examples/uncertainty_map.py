"""Plot the knowledge uncertainty of an ensemble on a plane, and of the one student that learned it.

Run: python examples/uncertainty_map.py  (three classes in two dimensions; under a minute; --smoke: fewer steps)

The ensemble's knowledge uncertainty grows away from the data. The student predicts a Dirichlet (Proxy-Dirichlet) and
also learned the ensemble's predictions away from the data, where there are no labels; the map shows how much of the
uncertainty one model retains.

Reference: Ryabinin, Malinin, Gales, "Scaling Ensemble Distribution Distillation to Many Classes with Proxy Targets",
NeurIPS 2021, arXiv:2105.06987.
"""

import argparse
import pathlib
import time

import keras
import numpy as np
import tensorflow as tf

from keras_distill import Distiller, LogitsDistillation, losses, metrics, report, teachers

EXTENT = (-4.0, 4.0, -4.0, 4.0)


def network(width: int) -> keras.Model:
    """Two hidden layers; logits of three classes."""
    layers = [keras.layers.Dense(width, activation="relu") for _ in range(2)]
    return keras.Sequential([keras.Input((2,)), *layers, keras.layers.Dense(3)])


def examples(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Sample points of three classes around the corners of a triangle, with overlap."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, count)
    angles = 2 * np.pi * labels / 3 + np.pi / 2
    centers = 1.2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return (centers + 0.5 * rng.normal(size=(count, 2))).astype("float32"), labels


def batches(*arrays: np.ndarray) -> tf.data.Dataset:
    """Shuffle into batches of 64."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return tf.data.Dataset.from_tensor_slices(arrays).shuffle(4096, seed=0).repeat().batch(64).with_options(options)


def main() -> None:
    """Train, compare and plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="fewer steps")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("uncertainty_map.png"))
    arguments = parser.parse_args()
    steps, count, began = *((80, 3) if arguments.smoke else (2000, 10)), time.perf_counter()
    keras.utils.set_random_seed(0)
    x, y = examples(600)

    members = [network(32) for _ in range(count)]
    inputs = keras.Input((2,))
    side_by_side = keras.Model(inputs, keras.ops.stack([member(inputs) for member in members], axis=1))
    hard = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    side_by_side.compile(keras.optimizers.Adam(1e-2), hard, steps_per_execution=20, jit_compile=False)
    labels_of_each = np.repeat(y[:, None], len(members), axis=1)
    side_by_side.fit(batches(x, labels_of_each), steps_per_epoch=steps // 2, verbose=0)

    anywhere = np.random.default_rng(1).uniform(-4, 4, (3000, 2)).astype("float32")
    seen = np.concatenate([np.repeat(x, 5, axis=0), anywhere])
    term = LogitsDistillation(temperature=1.0, loss=losses.ProxyDirichlet())
    distiller = Distiller(teachers.Ensemble(members), network(64), term, student_loss_weight=0.0)
    rate = keras.optimizers.schedules.CosineDecay(1e-2, steps)
    distiller.compile(keras.optimizers.Adam(rate), steps_per_execution=20, jit_compile=False)
    distiller.fit(batches(seen).map(lambda points: points), steps_per_epoch=steps, verbose=0)

    side = np.linspace(EXTENT[0], EXTENT[1], 60, dtype="float32")
    grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    truth = metrics.ensemble_uncertainty(side_by_side(grid), from_logits=True)
    estimated = metrics.dirichlet_uncertainty(np.exp(distiller.student(grid)) + 1.0)
    for kind in ("total", "data", "knowledge"):
        rank = metrics.rank_correlation(getattr(truth, kind), getattr(estimated, kind))
        print(f"{kind:10} Spearman of student with ensemble over the plane: {rank:.3f}")
    maps = {
        f"{name}: {kind} (nats)": np.reshape(getattr(parts, kind), (60, 60))
        for name, parts in (("ensemble", truth), ("student", estimated))
        for kind in ("data", "knowledge")
    }
    report.uncertainty_maps(maps, EXTENT, x[:150], y[:150]).savefig(arguments.out, dpi=110)
    print(f"drawn in {arguments.out}, {time.perf_counter() - began:.0f} seconds")


if __name__ == "__main__":
    main()
