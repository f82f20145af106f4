"""How each row of ``benchmarks.regimes`` is trained: one function per row, from a seed to its results."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks._regime_models import deep_network, network, plain
from keras_distill import Distiller, FeatureDistillation, LogitsDistillation, data, losses, regimes, students, teachers
from keras_distill.schedules import Linear

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
BATCH = 128
Scores = dict[str, dict[str, float]]  # model -> {"accuracy": percent, "nll": nats}


@dataclasses.dataclass(frozen=True)
class Task:
    """Examples for training and evaluation, and the number of epochs.

    Args:
        train: labelled examples.
        unlabelled: further inputs.
        test: examples for evaluation.
        epochs: of one training.
    """

    train: data.Examples
    unlabelled: np.ndarray
    test: data.Examples
    epochs: int

    @classmethod
    @functools.cache
    def load(cls, name: str, full: bool, held_out: bool, epochs: int = 10) -> Task:
        """Return 10,000 training examples of a data set, 5,000 unlabelled ones, and the test set.

        Args:
            name: as in ``data.load``.
            full: False takes 300 of each and one epoch.
            held_out: evaluate on validation examples instead of the test set.
            epochs: of one training in full.
        """
        found = data.load(name)
        test = found.validation if held_out else found.test
        count = 10_000 if full else 300
        unlabelled = found.train.inputs[10_000 : 10_000 + count // 2]
        return cls(found.train.take(count), unlabelled, test if full else test.take(300), epochs if full else 1)


def fitted(trainer: Any, task: Task, *, loss: Any = CROSS_ENTROPY, labels: Any = None, rate: float = 3e-3) -> Any:
    """Compile with Adam and a cosine decay to 0, fit on the labelled examples and return the trainer."""
    y = task.train.labels
    compiled(trainer, -(-len(y) // BATCH) * task.epochs, loss, rate)
    trainer.fit(task.train.inputs, y if labels is None else labels, batch_size=BATCH, epochs=task.epochs, verbose=0)
    return trainer


def compiled(trainer: Any, steps: int, loss: Any = CROSS_ENTROPY, rate: float = 3e-3) -> Any:
    """Compile with Adam and a cosine decay to 0 over ``steps``."""
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    trainer.compile(keras.optimizers.Adam(schedule), loss, jit_compile=False)
    return trainer


def log_probs(model: keras.Model, x: np.ndarray, output: int | None = None) -> np.ndarray:
    """Logarithms of a model's probabilities, or of those of one of its outputs."""
    logits = model.predict(x, batch_size=1000, verbose=0)
    logits = np.asarray(logits if output is None else logits[output], "float64")
    return logits - np.logaddexp.reduce(logits, -1, keepdims=True)


def judged(logs: np.ndarray, examples: data.Examples) -> dict[str, float]:
    """Accuracy in percent, and the negative log-likelihood."""
    rows = np.arange(len(logs))
    right = float(100 * np.mean(logs.argmax(-1) == examples.labels))
    return {"accuracy": round(right, 3), "nll": round(float(-logs[rows, examples.labels].mean()), 5)}


def mean_of(several: list[np.ndarray]) -> np.ndarray:
    """Logarithms of mean probabilities."""
    return np.logaddexp.reduce(several, 0) - np.log(len(several))


class Kept:
    """The models trained alone, kept on disk, for ensembles, born-again networks and the table.

    Args:
        folder: of the weights.
        task: their data.
    """

    def __init__(self, folder: pathlib.Path, task: Task) -> None:
        self.folder, self.task = folder, task
        folder.mkdir(parents=True, exist_ok=True)

    def alone(self, seed: int) -> keras.Model:
        """Return the model of this seed, trained at the first call."""
        path = self.folder / f"alone-{len(self.task.train)}-{seed}.weights.h5"
        keras.utils.set_random_seed(seed)
        model = network()
        if path.exists():
            model.load_weights(path)
            return model
        fitted(model, self.task).save_weights(path)
        return model


def baselines(task: Task, kept: Kept, seed: int) -> Scores:
    """Alone; label smoothing of .1; the virtual teacher of .9 at temperature 20; ensembles of models trained alone.

    Three models are used for three seeds: each is the first member of one seed's ensembles, which share members.
    """
    x, test = task.test.inputs, task.test
    alone = [log_probs(kept.alone((seed + more) % 3), x) for more in range(3)]
    found = {"alone": judged(alone[0], test)}
    for count in (2, 3):
        found[f"ensemble of {count} alone"] = judged(mean_of(alone[:count]), test)
    keras.utils.set_random_seed(seed)
    onehot = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=0.1)
    smooth = fitted(network(), task, loss=onehot, labels=np.eye(10, dtype="float32")[task.train.labels])
    found["label smoothing"] = judged(log_probs(smooth, x), test)
    keras.utils.set_random_seed(seed)
    virtual = fitted(Distiller(teachers.VirtualTeacher(0.9), network(), LogitsDistillation(20.0)), task)
    found["virtual teacher"] = judged(log_probs(virtual.student, x), test)
    return found


def mutual(task: Task, kept: Kept, seed: int) -> Scores:
    """Two peers with simultaneous updates, weight 1."""
    keras.utils.set_random_seed(seed)
    peers = fitted(regimes.MutualLearning([network(), network()]), task).students
    logs = [log_probs(each, task.test.inputs) for each in peers]
    each = [judged(one, task.test) for one in logs]
    mean = {key: float(np.mean([one[key] for one in each])) for key in ("accuracy", "nll")}
    return {"mutual: mean peer": mean, "mutual: ensemble of 2": judged(mean_of(logs), task.test)}


def gated(task: Task, kept: Kept, seed: int) -> Scores:
    """Three branches on two shared blocks, a gate, temperature 3."""
    keras.utils.set_random_seed(seed)
    student = students.with_gate(network(branches=3), "block1")
    term = LogitsDistillation(3.0, loss=["kl_divergence"] * 3 + [None, None])
    distiller = Distiller(teachers.GatedPeers(), student, term)
    fitted(distiller, task, loss=[CROSS_ENTROPY] * 4 + [None], labels=[task.train.labels] * 5)
    each = [judged(log_probs(student, task.test.inputs, output), task.test) for output in range(4)]
    best = max(each[:3], key=lambda one: one["accuracy"])
    return {"gated peers: ensemble": each[3], "gated peers: best branch": best}


def exits(task: Task, kept: Kept, seed: int) -> Scores:
    """Two exits with bottlenecks, taught by the deepest (published: temperature 3, alpha .1, beta 1e-6 of the sum).

    Also the same exits trained on the labels only, and the network without exits. The network has six convolutions and
    twice the epochs: in the network of the other rows, the exits are too shallow to gain anything.
    """
    keras.utils.set_random_seed(seed)
    longer = dataclasses.replace(task, epochs=2 * task.epochs)
    alone = fitted(deep_network(), longer)
    found = {"exits: the network alone": judged(log_probs(alone, task.test.inputs), task.test)}
    for name, alpha in (("exits taught", 0.1), ("exits untaught", 0.0)):
        keras.utils.set_random_seed(seed)
        student = students.with_exits(deep_network(), ["block0", "block1"], bottleneck="block2")
        hints = [
            FeatureDistillation("mse", "block2", f"features_block{i}", adapter=None, name=f"hint_{i}") for i in (0, 1)
        ]
        size = float(np.prod(student.get_layer("block2").output.shape[1:]))
        weights = [1.0, *([1e-6 * BATCH * size / 0.1] * 2)]
        term = LogitsDistillation(3.0, loss=["kl_divergence", "kl_divergence", None])
        weights = weights if alpha else [0.0] * 3
        distiller = Distiller(teachers.DeepestExit(), student, [term, *hints], weights, student_loss_weight=0.9)
        fitted(distiller, longer, loss=[CROSS_ENTROPY] * 3, labels=[task.train.labels] * 3)
        logs = [log_probs(student, task.test.inputs, output) for output in range(3)]
        for index, one in enumerate(logs):
            found[f"{name}: {('first', 'second', 'deepest')[index]}"] = judged(one, task.test)
        found[f"{name}: mean of exits"] = judged(mean_of(logs), task.test)
    return found


def born_again(task: Task, kept: Kept, seed: int) -> Scores:
    """Two generations after the model alone; one generation each with permuted knowledge and with confidence alone."""
    x, test = task.test.inputs, task.test
    found = {}
    for knowledge, generations in (("all", 2), ("permuted", 1), ("confidence", 1)):
        teacher = kept.alone(seed)
        driver = regimes.BornAgain(network, generations, teacher=teacher, knowledge=knowledge, seed=seed + 100)
        fitted(driver, task)
        logs = [log_probs(each, x) for each in driver.students]
        if knowledge == "all":
            for number, one in enumerate(logs, 1):
                found[f"born again: generation {number}"] = judged(one, test)
            found["born again: ensemble of 3"] = judged(mean_of([log_probs(teacher, x), *logs]), test)
        else:
            found[f"born again: {knowledge}"] = judged(logs[0], test)
    return found


def chain(task: Task, kept: Kept, seed: int) -> Scores:
    """Plain CNNs of 10, 4 and 2 layers: teacher, assistant and student; only the student is trained for every seed."""
    task = dataclasses.replace(task, epochs=-(-3 * task.epochs // 2))

    def once(name: str, depth: int, teacher: Any) -> keras.Model:
        path = kept.folder / f"chain-{len(task.train)}-pooled-{name}.weights.h5"
        keras.utils.set_random_seed(0)
        model = plain(depth)
        if path.exists():
            model.load_weights(path)
        else:
            fitted(model if teacher is None else Distiller(teacher, model, LogitsDistillation(4.0)), task, rate=2e-3)
            model.save_weights(path)
        return model

    large = once("teacher", 10, None)
    middle = once("assistant", 4, large)
    x, test, found = task.test.inputs, task.test, {}
    ways = {"alone": None, "teacher's": large, "assistant's": middle}
    for way, guide in ways.items():
        keras.utils.set_random_seed(seed)
        student = plain(2)
        fitted(student if guide is None else Distiller(guide, student, LogitsDistillation(4.0)), task, rate=2e-3)
        found[f"chain: student {way}"] = judged(log_probs(student, x), test)
    both = {"chain: teacher": large, "chain: assistant": middle}
    return {**found, **{name: judged(log_probs(model, x), test) for name, model in both.items()}}


def mean_teacher(task: Task, kept: Kept, seed: int) -> Scores:
    """500 labels in batches of 32, together with 96 unlabelled examples; each model sees its own views.

    The weight of consistency, 0.3, was chosen on held-out images; with 5 the student lost 3.2 points on the test set.
    """
    few = task.train.take(min(500, len(task.train) // 2))
    rest = task.train.inputs[len(few) :]
    steps = 100 * task.epochs if task.epochs > 1 else 3
    options = tf.data.Options()
    options.autotune.enabled = False

    def endless(arrays: Any, batch: int) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(arrays).shuffle(10_000, seed=seed).repeat().batch(batch)

    labelled = endless((few.inputs, few.labels.astype("int32")), 32).with_options(options)
    joined = tf.data.Dataset.zip(labelled, endless(rest, 96)).map(
        lambda some, more: (tf.concat([some[0], more], 0), tf.concat([some[1], tf.fill([96], -1)], 0))
    )
    joined = joined.with_options(options)

    def view(seed: int) -> keras.Model:
        layers = [keras.layers.RandomTranslation(0.1, 0.1, fill_mode="constant", seed=seed),
                  keras.layers.RandomFlip("horizontal", seed=seed)]  # fmt: skip
        return keras.Sequential([keras.Input((28, 28, 1)), *layers])

    found = {}
    keras.utils.set_random_seed(seed)
    alone, seen = network(), view(1)
    compiled(alone, steps)
    views = labelled.map(lambda x, y: (seen(x, training=True), y)).with_options(options)
    alone.fit(views, steps_per_epoch=steps, verbose=0)
    found["500 labels: alone"] = judged(log_probs(alone, task.test.inputs), task.test)
    keras.utils.set_random_seed(seed)
    student, one, two = network(), view(1), view(2)
    snapshot = teachers.Snapshot(student, decay=0.99, warmup_steps=100)
    teacher = teachers.Preprocessed(
        snapshot, lambda x: one(x, training=True), student_fn=lambda x: two(x, training=True)
    )
    ramp = Linear(0.0, 0.3, steps // 3)
    distiller = Distiller(teacher, student, LogitsDistillation(1.0), [ramp])
    compiled(distiller, steps, losses.WhereLabelled(CROSS_ENTROPY))
    distiller.fit(joined, steps_per_epoch=steps, verbose=0)
    found["500 labels: mean teacher's student"] = judged(log_probs(student, task.test.inputs), task.test)
    found["500 labels: mean teacher"] = judged(log_probs(snapshot.model, task.test.inputs), task.test)
    return found


def stages(task: Task, kept: Kept, seed: int) -> Scores:
    """FitNet on MNIST: a thin student with hints for a third of the epochs and then logits, against logits alone."""
    keras.utils.set_random_seed(1000)
    path = kept.folder / f"mnist-{len(task.train)}.weights.h5"
    teacher = network(24)
    if path.exists():
        teacher.load_weights(path)
    else:
        fitted(teacher, task).save_weights(path)
    found = {"FitNet: teacher": judged(log_probs(teacher, task.test.inputs), task.test)}
    x, y, steps = task.train.inputs, task.train.labels, -(-len(task.train) // BATCH)
    epochs = max(2, task.epochs)
    first = max(1, epochs // 3)
    for name, hinted in (("hints, then logits", True), ("logits alone", False)):
        keras.utils.set_random_seed(seed)
        student = network(3)
        run = [regimes.Stage(Distiller(teacher, student, LogitsDistillation(4.0)), epochs - first * hinted)]
        if hinted:
            hint = Distiller(
                teacher,
                student,
                FeatureDistillation("mse", "block1", "block1", adapter="auto"),
                student_loss_weight=0.0,
            )
            run.insert(0, regimes.Stage(hint, first, optimizer=keras.optimizers.Adam(3e-3)))
        driver = compiled(regimes.Stages(run), steps * (epochs - first * hinted))
        driver.fit(x, y, batch_size=BATCH, verbose=0)
        found[f"FitNet: {name}"] = judged(log_probs(student, task.test.inputs), task.test)
    return found


def folds(task: Task, kept: Kept, seed: int) -> Scores:
    """An MLP that memorises its training set teaches in fold and out of fold, without labels for the student."""
    options = {"epochs": task.epochs, "batch_size": BATCH, "verbose": 0}

    def make_teacher() -> keras.Model:
        layers = [keras.layers.Flatten(), *(keras.layers.Dense(256, "relu") for _ in range(2)), keras.layers.Dense(10)]
        model = keras.Sequential([keras.Input((28, 28, 1)), *layers])
        model.compile(keras.optimizers.Adam(1e-3), CROSS_ENTROPY, jit_compile=False)
        return model

    x, y = task.train.inputs, task.train.labels
    keras.utils.set_random_seed(seed)
    within = make_teacher()
    within.fit(x, y, **options)
    ways = {
        "in fold": within,
        "out of fold": regimes.cross_fit(make_teacher, (x, y), 5, fit_arguments=options, seed=seed),
    }
    found = {"folds: teacher": judged(log_probs(within, task.test.inputs), task.test)}
    for name, teacher in ways.items():
        keras.utils.set_random_seed(seed)
        student = network()
        fitted(Distiller(teacher, student, LogitsDistillation(1.0), student_loss_weight=0.0), task)
        found[f"folds: student {name}"] = judged(log_probs(student, task.test.inputs), task.test)
    return found


def fusion(task: Task, kept: Kept, seed: int) -> Scores:
    """Six clients with classes from Dirichlet(.1) and the same initial weights; averaged, and fused without labels."""
    random = np.random.default_rng(seed)
    y = task.train.labels
    owner = np.zeros(len(y), int)
    for label in range(10):
        rows = np.flatnonzero(y == label)
        owner[rows] = random.choice(6, len(rows), p=random.dirichlet(np.full(6, 0.1)))
    clients = []
    for client in range(6):
        keras.utils.set_random_seed(seed)  # common initial weights
        model = network()
        rows = np.flatnonzero(owner == client)
        if len(rows):
            part = dataclasses.replace(task, train=data.Examples(task.train.inputs[rows], y[rows]))
            fitted(model, dataclasses.replace(part, epochs=max(1, task.epochs // 2)))
            clients.append((model, len(rows)))
    models = [model for model, _ in clients]
    batches = [task.unlabelled[i : i + 500] for i in range(0, len(task.unlabelled), 500)]
    start = regimes.average_weights(models, [count for _, count in clients], recompute=batches)
    found = {"fusion: average of weights": judged(log_probs(start, task.test.inputs), task.test)}
    keras.utils.set_random_seed(seed)
    options = {"optimizer": keras.optimizers.Adam(1e-3), "batch_size": BATCH, "epochs": task.epochs, "verbose": 0}
    began = start.get_weights()
    for combine, name in (("mean_logits", "fusion: fused"), ("mean_probs", "fusion: fused, probabilities")):
        start.set_weights(began)
        options["optimizer"] = keras.optimizers.Adam(1e-3)
        fused = regimes.fuse(models, task.unlabelled, student=start, combine=combine, **options)
        found[name] = judged(log_probs(fused, task.test.inputs), task.test)
    best = max((judged(log_probs(each, task.test.inputs), task.test) for each in models), key=lambda s: s["accuracy"])
    return {**found, "fusion: best client": best}


ROWS: dict[str, tuple[str, Callable[[Task, Kept, int], Scores]]] = {
    # row: data set, function
    "baselines": ("fashion_mnist", baselines),
    "mutual": ("fashion_mnist", mutual),
    "born_again": ("fashion_mnist", born_again),
    "exits": ("fashion_mnist", exits),
    "gated": ("fashion_mnist", gated),
    "folds": ("fashion_mnist", folds),
    "fusion": ("fashion_mnist", fusion),
    "stages": ("mnist", stages),
    "mean_teacher": ("fashion_mnist", mean_teacher),
    "chain": ("cifar10_jpeg", chain),
}
