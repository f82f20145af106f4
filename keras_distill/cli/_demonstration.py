"""``keras-distill demo`` with few labels and many pictures: the student learns from the teacher's answers to all.

Kept apart from ``_demo.py``, which imports it when the command runs: ``keras-distill --help`` needs no TensorFlow.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any

import keras
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from keras_distill import Distiller, LogitsDistillation, data, export, report
from keras_distill._checks import error, integer
from keras_distill.callbacks import CalibrationMonitor
from keras_distill.cli._output import move, output_folder

_OWNER = "demo"
_ALONE, _DISTILLED = "student alone", "student distilled"


@dataclasses.dataclass(frozen=True)
class Setup:
    """The demo's settings for a data set: plain, untuned values (digits are even better at temperature 1).

    Args:
        num_labelled: number of labelled training pictures, used by the teacher and the student trained alone.
        num_pictures: total number of training pictures; the distilled student sees all with the teacher's answers.
        epochs: epochs of every training, of ``num_pictures`` pictures each.
        batch_size: number of pictures per step.
        hidden_units: hidden units of the student; None for small convolutions, as photographs need them.
        temperature: temperature of the distillation.
    """

    num_labelled: int
    num_pictures: int
    epochs: int
    batch_size: int
    hidden_units: int | None
    temperature: float = 2.0


_SETUPS = {"digits": Setup(100, 1000, epochs=40, batch_size=50, hidden_units=16)}
_OTHERS = Setup(1000, 10000, epochs=15, batch_size=100, hidden_units=32)
_COLOURED = Setup(5000, 20000, epochs=10, batch_size=100, hidden_units=None)
_FILTERS = (12, 24, 32)  # of the student of coloured pictures


def run(*, dataset: str, out: str, epochs: int | None, num_seeds: int, download: bool) -> Any:
    """Train, compare, print, write.

    Args:
        dataset: name of a set of images.
        out: output folder, created if missing.
        epochs: number of epochs instead of the setup's.
        num_seeds: number of students of each kind.
        download: whether tensorflow-datasets may download.

    Returns:
        The written report: a ``report.Report``, a ``report.SegmentationReport`` for class maps, or the
        ``report.DetectionEntry`` of each model for boxes.

    Raises:
        ValueError: if an argument does not fit, the data are missing, or ``out`` cannot be written; before training.
    """
    if epochs is not None:
        integer(_OWNER, "epochs", epochs, low=1)
    integer(_OWNER, "seeds", num_seeds, low=1)
    console = Console(highlight=False)
    with output_folder(_OWNER, out) as (folder, aside):
        examples = data.load(dataset, download=download)
        if examples.test.inputs.ndim != 4 or "train" not in examples.splits:
            raise error(_OWNER, "a data set of images to train on", repr(dataset), "Try digits or fashion_mnist")
        labels = examples.test.labels
        if labels.ndim == 3 and np.issubdtype(labels.dtype, np.integer):  # a map of classes for each picture
            from keras_distill.cli import _maps

            found = _maps.run(console, dataset, examples, aside, epochs)
            for name in ("student.keras", "report.json", "report.html"):
                move(aside, folder, name)
            return found
        if labels.ndim == 3:  # boxes in each picture
            from keras_distill.cli import _boxes

            entries = _boxes.run(console, dataset, examples, aside, epochs)
            for name in ("student.keras", "report.json", "report.html"):
                move(aside, folder, name)
            return entries
        setup = _SETUPS.get(dataset, _COLOURED if examples.test.inputs.shape[-1] == 3 else _OTHERS)
        setup = setup if epochs is None else dataclasses.replace(setup, epochs=epochs)
        models, histories, distillers = _train(console, examples, setup, num_seeds)
        with console.status("Measuring"):
            result = report.evaluate(
                models,
                examples,
                reference="teacher",
                title=f"Distillation on {dataset}: a teacher, a small student, and what the student learns from it",
                notes=_notes(examples, setup, num_seeds),
                settings=_settings(examples, setup, num_seeds),
                histories=histories,
            )
            result = dataclasses.replace(result, notes=(verdict(result), *result.notes))
        with console.status("Writing"):
            losses = [_validation_loss(student, examples.validation) for student in models[_DISTILLED]]
            chosen = int(np.argmin(losses))
            exported = export.saved_model(
                models[_DISTILLED][chosen],
                aside / "serving" / dataset,
                version=1,
                check_inputs=examples.test.inputs,
                check_labels=examples.test.labels,
                labels=list(examples.class_names),
                warmup_batch_sizes=(1, 32),
                card=_card(result, examples, distillers[chosen], setup),
            )
            models[_DISTILLED][chosen].save(aside / "student.keras")
            result.save(aside / "report.json")
            result.save(aside / "report.html")
            written = [f"serving/{dataset}", "student.keras", "report.json", "report.html"]
            for name in written:
                move(aside, folder, name)
    _show(console, result, folder, dataset, exported.max_difference)
    return result


def _train(
    console: Console, examples: data.Data, setup: Setup, num_seeds: int
) -> tuple[dict[str, list[keras.Model]], dict[str, list[dict[str, list[float]]]], list[Distiller]]:
    """Train the teacher once, then for each seed both students, starting from the same weights."""
    pictures = examples.train.take(setup.num_pictures)
    labelled = pictures.take(setup.num_labelled)
    times = -(-len(pictures) // len(labelled))  # so that epochs have the same number of pictures for all
    repeated = np.tile(np.arange(len(labelled)), times)[: len(pictures)]
    with_labels = {"x": labelled.inputs[repeated], "y": labelled.labels[repeated]}
    supervised = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    shape, num_classes = pictures.inputs.shape[1:], examples.num_classes
    models: dict[str, list[keras.Model]] = {"teacher": [], _ALONE: [], _DISTILLED: []}
    histories: dict[str, list[dict[str, list[float]]]] = {name: [] for name in models}
    distillers: list[Distiller] = []

    columns = (
        TextColumn("{task.description:<18}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        bars = {
            name: progress.add_task(name, total=setup.epochs * (1 if name == "teacher" else num_seeds), start=False)
            for name in models
        }

        def fit(
            name: str, student: keras.Model, trained: keras.Model, loss: Any, learning_rate: float, **fed: Any
        ) -> None:
            steps = setup.epochs * -(-len(pictures) // setup.batch_size)
            schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
            trained.compile(keras.optimizers.Adam(schedule), loss, steps_per_execution=5)
            accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
            validation = (examples.validation.inputs, examples.validation.labels)
            watch = [CalibrationMonitor(validation, [accuracy]), _Advance(progress, bars[name])]
            progress.start_task(bars[name])
            history = trained.fit(
                **fed, epochs=setup.epochs, batch_size=setup.batch_size, callbacks=watch, verbose=0, shuffle=True
            ).history
            models[name].append(student)
            histories[name].append(
                {
                    "validation accuracy": history["val_accuracy"],
                    "validation NLL": history["val_nll"],
                    "validation ECE": history["val_ece"],
                }
            )

        keras.utils.set_random_seed(0)
        teacher = build_teacher(shape, num_classes)
        fit("teacher", teacher, teacher, supervised, 2e-3, **with_labels)
        for seed in range(num_seeds):
            keras.utils.set_random_seed(seed)
            student = build_student(shape, num_classes, setup.hidden_units)
            fit(_ALONE, student, student, supervised, 5e-3, **with_labels)
            keras.utils.set_random_seed(seed)
            student = build_student(shape, num_classes, setup.hidden_units)
            term = LogitsDistillation(temperature=setup.temperature)
            distiller = Distiller(teacher, student, term, student_loss_weight=0.0)
            fit(_DISTILLED, student, distiller, None, 5e-3, x=pictures.inputs)
            distillers.append(distiller)
    return models, histories, distillers


def build_teacher(shape: tuple[int, ...], num_classes: int) -> keras.Model:
    """Return a convolutional network of about 70,000 parameters on 8x8 pictures, and on coloured ones of 32x32.

    Args:
        shape: (height, width, channels) of a picture.
        num_classes: number of classes.

    Returns:
        The model, giving logits.
    """
    layers = keras.layers
    blocks: list[keras.layers.Layer] = []
    for filters in (32, 64, 64):
        blocks += [
            layers.Conv2D(filters, 3, padding="same", use_bias=False),
            layers.BatchNormalization(momentum=0.9),
            layers.ReLU(),
        ]
        if filters == 64 or shape[-1] == 3:
            blocks.append(layers.MaxPooling2D())
    head = [layers.Flatten(), layers.Dropout(0.4), layers.Dense(num_classes)]
    return keras.Sequential([keras.Input(shape, name="image"), *blocks, *head], name="teacher")


def build_student(shape: tuple[int, ...], num_classes: int, hidden_units: int | None) -> keras.Model:
    """Return a network with one small hidden layer, or with three small convolutions.

    Args:
        shape: (height, width, channels) of a picture.
        num_classes: number of classes.
        hidden_units: width of the hidden layer; None for convolutions.

    Returns:
        The model, giving logits.
    """
    layers = keras.layers
    hidden: list[keras.layers.Layer] = []
    if hidden_units is None:
        for filters in _FILTERS:
            hidden.append(layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False))
            hidden += [layers.BatchNormalization(momentum=0.9), layers.ReLU()]
        hidden.append(layers.GlobalAveragePooling2D())
    else:
        hidden = [layers.Flatten(), layers.Dense(hidden_units, activation="relu")]
    return keras.Sequential([keras.Input(shape, name="image"), *hidden, layers.Dense(num_classes)], name="student")


class _Advance(keras.callbacks.Callback):
    """Moves a progress bar at the end of each epoch."""

    def __init__(self, progress: Progress, bar: Any) -> None:
        super().__init__()
        self.progress, self.bar = progress, bar

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.progress.advance(self.bar)


def _validation_loss(student: keras.Model, examples: data.Examples) -> float:
    logits = student.predict(examples.inputs, verbose=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return float(loss(examples.labels, logits))


def _notes(examples: data.Data, setup: Setup, num_seeds: int) -> list[str]:
    pictures = min(setup.num_pictures, len(examples.train))
    return [
        f"Labels are few and pictures are many: of {pictures:,} training pictures only {setup.num_labelled:,} have a "
        "label. The teacher and the student alone learn from those. The distilled student learns from the teacher's "
        f"answers to all {pictures:,} pictures, at temperature {setup.temperature:g}, and is shown no label at all.",
        "Both students start from the same weights and take the same number of steps; "
        f"{_seeds(num_seeds)}, one teacher.",
    ]


def _settings(examples: data.Data, setup: Setup, num_seeds: int) -> dict[str, Any]:
    convolutions = {"filters of the student": ", ".join(map(str, _FILTERS))}
    units = {"hidden units of the student": setup.hidden_units}
    return {
        "data": f"{examples.source}; fingerprint {examples.fingerprint[:16]}",
        "splits": ", ".join(f"{name} {len(part):,}" for name, part in examples.splits.items()),
        "labelled pictures": setup.num_labelled,
        "pictures": min(setup.num_pictures, len(examples.train)),
        "epochs": setup.epochs,
        "batch size": setup.batch_size,
        **(convolutions if setup.hidden_units is None else units),
        "temperature": setup.temperature,
        "seeds": num_seeds,
        "loss of the distilled student": "LogitsDistillation alone (student_loss_weight=0)",
        "exported student": "of the distilled ones, the one with the least NLL on the validation pictures",
    }


def _card(result: report.Report, examples: data.Data, distiller: Distiller, setup: Setup) -> export.ModelCard:
    ours = result[_DISTILLED]
    seeds = len(ours.accuracy.values)
    return export.ModelCard(
        distiller=distiller,
        data=examples,
        metrics={
            "accuracy": ours.accuracy.values,
            "negative_log_likelihood": ours.negative_log_likelihood.values,
            "expected_calibration_error": ours.expected_calibration_error.values,
            "brier_score": ours.brier_score.values,
        },
        training=dict(result.settings),
        command=f"keras-distill demo --dataset {examples.name} --epochs {setup.epochs} --seeds {seeds}",
        notes="One student of several: the metrics are those of all seeds. Made to show distillation, not to be used.",
    )


def _show(console: Console, result: report.Report, folder: pathlib.Path, dataset: str, difference: float) -> None:
    header, rows = report.table(result)
    table = Table(title=f"{result.num_examples:,} test pictures of {dataset}", title_justify="left", title_style="bold")
    for i, name in enumerate(header):
        table.add_column(name, justify="right" if i else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)
    for note in result.notes:
        console.print(note)
    lines = {
        "open": folder / "report.html",
        "load": f"keras.models.load_model({str(folder / 'student.keras')!r})",
        "serve": f"{folder / 'serving' / dataset} (TensorFlow Serving; equal to the student to {difference:.0e})",
    }
    console.print()
    for verb, what in lines.items():
        console.print(f"{verb:<6} {what}", soft_wrap=True)


def verdict(result: report.Report) -> str:
    """Return one sentence, with numbers, on whether distillation helped.

    Args:
        result: the demo's report.

    Returns:
        The sentence.
    """
    alone, distilled = result[_ALONE].accuracy, result[_DISTILLED].accuracy
    gain = 100 * (distilled.mean - alone.mean)
    better = sum(ours > theirs for ours, theirs in zip(distilled.values, alone.values, strict=True))
    verb = "gains" if gain > 0 else "loses"
    return (
        f"Distilled, the student {verb} {abs(gain):.2f} points of accuracy (mean over {_seeds(len(alone.values))}; "
        f"better in {better} of {len(alone.values)})."
    )


def _seeds(count: int) -> str:
    return "1 seed" if count == 1 else f"{count} seeds"
