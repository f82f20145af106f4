"""Uncertainty after distillation: an ensemble distilled into one model, and the effect of the teacher's calibration.

Each seed trains an ensemble of small CNNs (the "single" model is one of them, all are measured) and one large,
overconfident CNN on few labelled images. The students have the single model's architecture and learn only from the
teacher's predictions, which are computed once (``teachers.label``) for the labelled images and for further unlabelled
ones; "+AUX" also for handwritten digits, which are out of distribution but not among the out-of-distribution test
images. EnD2 spends two fifths of its steps on the ensemble's mean, and does not anneal the temperature. Temperatures
for calibration are fitted on validation data; everything is evaluated on test data and on unseen out-of-distribution
images. The quick version reduces the images' size, trains briefly and only checks that everything runs.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import multiprocessing
import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks import _harness

# isort: split
import keras
import numpy as np
import tensorflow as tf

from benchmarks.temperature_scaling import cnn
from keras_distill import Distiller, LogitsDistillation, calibration, data, losses, metrics, teachers

CLAIM = (
    "One student of an ensemble keeps at least 60 % of what the ensemble gains in NLL, and as a Dirichlet also keeps "
    "its knowledge uncertainty: its ranking, and the detection of out-of-distribution images."
)
FOREIGN = ("kmnist_test", "notmnist_test")
STUDENTS = ("from over-confident", "from calibrated", "EnD", "EnD2", "EnD2+AUX", "Proxy")


def halved(images: np.ndarray) -> np.ndarray:
    """Average each 2 x 2 pixels."""
    count, height, width, channels = images.shape
    return images.reshape(count, height // 2, 2, width // 2, 2, channels).mean((2, 4))


def as_seen(images: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Convert out-of-distribution grey images to the models' input shape: padded with black, the channel repeated."""
    border = [
        (0, 0),
        *(((a - b) // 2, a - b - (a - b) // 2) for a, b in zip(shape[:2], images.shape[1:3], strict=True)),
    ]
    return np.repeat(np.pad(images, [*border, (0, 0)]), shape[2] // images.shape[3], axis=3)


def trained(model: keras.Model, dataset: tf.data.Dataset, steps: int, epochs: int, loss: Any) -> keras.Model:
    """Train with Adam and a cosine decay of the learning rate to 0."""
    rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * steps)
    model.compile(keras.optimizers.Adam(rate), loss=loss, steps_per_execution=8, jit_compile=False)
    model.fit(dataset, epochs=epochs, verbose=0)
    return model


def batches(dataset: tf.data.Dataset, count: int, seed: int) -> tf.data.Dataset:
    """Shuffle single examples into batches of 128; everything stays in memory."""
    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.cache().shuffle(count, seed=seed).batch(128, drop_remainder=True).with_options(options)


def told(kind: str, outputs: np.ndarray) -> dict[str, np.ndarray]:
    """Return a model's log-probabilities, total and knowledge uncertainty; the last is NaN if the model has none."""
    if outputs.ndim == 3:
        parts = metrics.ensemble_uncertainty(outputs.astype("float64"), from_logits=True)
        each = outputs - np.logaddexp.reduce(outputs, axis=-1, keepdims=True)
        logs = np.logaddexp.reduce(each, axis=1) - np.log(outputs.shape[1])
    elif kind in ("EnD2", "EnD2+AUX", "Proxy"):
        alpha = np.exp(outputs.astype("float64")) + (kind == "Proxy")
        parts, logs = metrics.dirichlet_uncertainty(alpha), np.log(alpha / alpha.sum(-1, keepdims=True))
    else:
        logs = outputs - np.logaddexp.reduce(outputs, axis=-1, keepdims=True)
        total = -np.sum(np.exp(logs) * logs, axis=-1)
        return {"logs": logs, "total": total, "knowledge": np.full_like(total, np.nan)}
    return {"logs": logs, "total": np.asarray(parts.total), "knowledge": np.asarray(parts.knowledge)}


def measured(kind: str, answer: Callable[[np.ndarray], np.ndarray], sets: dict[str, Any], ensemble: Any) -> dict:
    """Evaluate on test and foreign images, by knowledge uncertainty if a model has it, else by the total."""
    images, labels = sets["test"]
    inside = told(kind, answer(images))
    logs = inside["logs"]
    found = {
        "accuracy": float((logs.argmax(1) == labels).mean()),
        "nll": metrics.negative_log_likelihood(labels, logs, from_logits=True),
        "ece": metrics.expected_calibration_error(labels, logs, from_logits=True),
        "adaptive_ece": metrics.adaptive_calibration_error(labels, logs, from_logits=True),
        "brier": metrics.brier_score(labels, logs, from_logits=True),
        "aurc": metrics.area_under_risk_coverage(logs.argmax(1) != labels, -logs.max(1)),
    }
    use = "total" if np.isnan(inside["knowledge"]).any() else "knowledge"
    for name in FOREIGN:
        outside = told(kind, answer(sets[name]))
        truth = np.repeat([0, 1], [len(labels), len(sets[name])])
        for score in {"total", use}:
            value = metrics.auroc(truth, np.concatenate([inside[score], outside[score]]))
            found[f"auroc_{name}" if score == use else f"auroc_total_{name}"] = value
    if ensemble is not None and use == "knowledge":
        found["spearman"] = metrics.rank_correlation(ensemble["knowledge"], inside["knowledge"])
    # The same after temperature scaling, fitted on validation data.
    validation, truth = sets["validation"]
    scaler = calibration.TemperatureScaler().fit(told(kind, answer(validation))["logs"], truth)
    scaled = np.asarray(scaler.scale(logs))
    found["nll_scaled"] = metrics.negative_log_likelihood(labels, scaled, from_logits=True)
    found["ece_scaled"] = metrics.expected_calibration_error(labels, scaled, from_logits=True)
    return found


def one_seed(name: str, seed: int, options: Any) -> dict[str, list[dict]]:
    """Train everything once; return the results of each kind of model."""
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    loaded = data.load(name)
    order = np.random.default_rng(seed).permutation(len(loaded.train))[: options.labelled + options.unlabelled]
    sized = np.asarray if options.full else halved
    images, labels = sized(loaded.train.inputs[order]), loaded.train.labels[order]
    shape, classes = images.shape[1:], loaded.num_classes
    sets: dict[str, Any] = {"test": (sized(loaded.test.inputs), loaded.test.labels)}
    sets["validation"] = (sized(loaded.validation.inputs[:2000]), loaded.validation.labels[:2000])
    sets |= {each: as_seen(sized(data.load(each).test.inputs[:5000]), shape) for each in FOREIGN}
    auxiliary = as_seen(sized(data.load("mnist").train.inputs[: options.auxiliary]), shape)

    hard = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    supervised = tf.data.Dataset.from_tensor_slices((images[: options.labelled], labels[: options.labelled]))
    steps = options.labelled // 128
    # The members train in one graph, on the same batches: they differ in their initial weights.
    members = [cnn(shape, 8, classes) for _ in range(options.members)]
    inputs = keras.Input(shape)
    side_by_side = keras.Model(inputs, keras.ops.stack([model(inputs) for model in members], axis=1))
    fed = batches(supervised.map(lambda x, y: (x, tf.repeat(y[None], options.members))), options.labelled, seed)
    trained(side_by_side, fed, steps, options.teacher_epochs, hard)
    fed = batches(supervised, options.labelled, seed)
    large = trained(cnn(shape, 32, classes), fed, steps, 2 * options.teacher_epochs, hard)

    def answers(model: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
        return lambda x: model.predict(x, batch_size=1000, verbose=0)

    together = answers(side_by_side)
    ensemble = told("ensemble", together(sets["test"][0]))
    rows = {"single": [measured("single", answers(model), sets, None) for model in members]}
    rows["ensemble"] = [measured("ensemble", together, sets, ensemble)]
    rows["over-confident teacher"] = [measured("large", answers(large), sets, None)]
    scaler = calibration.TemperatureScaler().fit(answers(large)(sets["validation"][0]), sets["validation"][1])
    calm = scaler.wrap(large)
    rows["calibrated teacher"] = [measured("large", answers(calm), sets, None)]

    steps = len(images) // 128
    total = options.student_epochs * steps
    everything = np.concatenate([images, auxiliary])
    both = teachers.Ensemble(members)
    mean = losses.EnsembleSoftTargets()
    # Teacher, losses with numbers of steps, images. A Dirichlet's likelihood is learned slowly from random weights, at
    # any temperature, but fast by a student that has learned the ensemble's mean.
    first, then = total * 2 // 5, total - total * 2 // 5
    dirichlet = [(mean, first), (losses.DirichletDistillation(), then)]
    settings: dict[str, tuple[Any, Any, np.ndarray]] = {
        "from over-confident": (large, [(losses.SoftTargets(), total)], images),
        "from calibrated": (teachers.Calibrated(large, scaler), [(losses.SoftTargets(), total)], images),
        "EnD": (both, [(mean, total)], images),
        "EnD2": (both, dirichlet, images),
        "EnD2+AUX": (both, dirichlet, everything),
        "Proxy": (both, [(losses.ProxyDirichlet(), total)], images),
    }
    for kind in options.students:
        teacher, phases, seen = settings[kind]
        unlabelled = tf.data.Dataset.from_tensor_slices(seen)
        student = cnn(shape, 8, classes)
        with tempfile.TemporaryDirectory() as folder:
            stored = teachers.label(teacher, unlabelled.batch(500), folder, dtype="float32", progress=False)
            # The same number of steps for each, whatever the number of its images.
            fed = batches(stored.attach(unlabelled), len(seen), seed).repeat()
            for loss, count in phases:
                distiller = Distiller(stored, student, LogitsDistillation(1.0, loss), student_loss_weight=0.0)
                rate = keras.optimizers.schedules.CosineDecay(3e-3, count)
                distiller.compile(keras.optimizers.Adam(rate), steps_per_execution=8, jit_compile=False)
                distiller.fit(fed.take(count), verbose=0)
        rows[kind] = [measured(kind, answers(student), sets, ensemble)]
    return rows


def judged(report: _harness.Report, name: str, mean: dict[str, dict[str, float]]) -> None:
    """Compare with the targets."""
    gap = mean["single"]["nll"] - mean["ensemble"]["nll"]
    if "EnD" in mean:
        closed = (mean["single"]["nll"] - mean["EnD"]["nll"]) / gap
        report.verdict(f"{name}: share of the NLL gap closed by EnD", closed, at_least=0.6)
    if "EnD2" in mean:
        report.verdict(f"{name}: Spearman of knowledge, EnD2 with ensemble", mean["EnD2"]["spearman"], at_least=0.7)
    for kind in ("EnD2", "EnD2+AUX"):
        for foreign in FOREIGN if kind in mean else ():
            gain = mean[kind][f"auroc_{foreign}"] - mean["single"][f"auroc_{foreign}"]
            report.verdict(f"{name}: AUROC on {foreign}, {kind} less single", gain, at_least=0.0)


def main() -> None:
    """Train and evaluate."""
    options = _harness.arguments(
        __doc__,
        seeds={"type": int, "default": None, "help": "default: 1, with --full 3"},
        data={"nargs": "*", "choices": ["fashion_mnist", "cifar10_jpeg"], "default": None},
        members={"type": int, "default": 10},
        labelled={"type": int, "default": 6000},
        unlabelled={"type": int, "help": "further images without labels; default: 6000, with --full 18000"},
        teacher_epochs={"type": int, "default": 12},
        student_epochs={"type": int, "help": "default: 5, with --full 25"},
        auxiliary={"type": int, "default": 3000, "help": "images of MNIST for EnD2+AUX"},
        workers={"type": int, "default": 1, "help": "processes; each trains all of one seed"},
        students={"nargs": "*", "choices": list(STUDENTS), "default": list(STUDENTS)},
    )
    seeds = options.seeds or (3 if options.full else 1)
    options.unlabelled = options.unlabelled or (18_000 if options.full else 6000)
    options.student_epochs = options.student_epochs or (25 if options.full else 5)
    names = options.data or (["fashion_mnist", "cifar10_jpeg"] if options.full else ["fashion_mnist"])
    report = _harness.Report("uncertainty" if len(names) > 1 else f"uncertainty_{names[0]}", CLAIM, options)
    keys = ["accuracy", "nll", "ece", "ece_scaled", "adaptive_ece", "brier", "aurc"]
    keys += [*(f"auroc_{each}" for each in FOREIGN), "spearman"]
    pairs = list(itertools.product(names, range(seeds)))
    if options.workers == 1:
        everything = [one_seed(*pair, options) for pair in pairs]
    else:
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(options.workers, context, max_tasks_per_child=1) as pool:
            everything = list(pool.map(one_seed, *zip(*pairs, strict=True), [options] * len(pairs)))
    for name in names:
        rows: dict[str, list[dict]] = {}
        for (other, _), result in zip(pairs, everything, strict=True):
            for kind, found in result.items() if other == name else ():
                rows.setdefault(kind, []).extend(found)
        print(f"{name}: {seeds} seeds\n{'':24}" + "".join(f"{key.replace('_test', ''):>20}" for key in keys))
        mean: dict[str, dict[str, float]] = {}
        for kind, found in rows.items():
            known = [key for key in found[0]]
            mean[kind] = {key: float(np.mean([each[key] for each in found])) for key in known}
            # Spread over seeds: for single models, the mean over each seed's members is one value.
            groups = np.array_split(np.arange(len(found)), seeds)
            each_seed = {key: [float(np.mean([found[i][key] for i in group])) for group in groups] for key in known}
            spread = {key: float(np.std(each_seed[key], ddof=1)) if seeds > 1 else 0.0 for key in known}
            cells = [f"{mean[kind][key]:.4f} ± {spread[key]:.4f}" if key in known else "-" for key in keys]
            setting = {"data": name, "model": kind, "members": options.members, "seeds": seeds}
            setting |= {"labelled": options.labelled, "unlabelled": options.unlabelled}
            figures = {"mean": mean[kind], "spread": spread, "runs": each_seed}
            report.add(setting, figures, f"{kind:24}" + "".join(f"{cell:>20}" for cell in cells))
        judged(report, name, mean)
    report.write()


if __name__ == "__main__":
    main()
