"""Calibration of the student after every epoch."""

from __future__ import annotations

import io
import itertools
import struct
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np

from keras_distill._checks import error, integer
from keras_distill.heads import final_activation
from keras_distill.metrics import (
    AgreementOnErrors,
    BrierScore,
    ExpectedCalibrationError,
    NegativeLogLikelihood,
    ReliabilityBins,
)
from keras_distill.training import Trainer


class CalibrationMonitor(keras.callbacks.Callback):
    """Logs calibration on held-out data after each epoch: ``val_ece``, ``val_nll``, ``val_brier`` and metrics you add.

    Choose it to stop, save or compare by calibration instead of accuracy. Put it first in the list of callbacks: later
    ones (``EarlyStopping``, ``ModelCheckpoint``, ``CSVLogger``, ``TensorBoard``) find its numbers in their ``logs``, as
    ``History`` does. Costs one prediction of the data per epoch; memory does not grow with the data. Works on any Keras
    model; for a ``Distiller``, on its student. Metrics get the outputs as from ``predict``, without padding masks: give
    padded positions a weight of 0.

    Args:
        validation_data: (x, y) or (x, y, sample_weight) of arrays, or a ``tf.data.Dataset`` or ``PyDataset`` of such
            batches, in any order. Not a generator, because it is read every epoch.
        metrics: further Keras metrics, called with (y, outputs, sample_weight) and logged as ``val_<name>``.
        teacher: model, ``teachers.Teacher`` or callable, whose outputs for x ``teacher_metrics`` compare with.
        teacher_metrics: metrics called with (teacher's outputs, student's outputs, sample_weight), such as
            ``metrics.TopKAgreement``.
        num_bins: >= 1, bins of the calibration error and of the diagram.
        from_logits: whether the model's outputs are logits, as in the terms. False for a model that ends in softmax.
        task: "multiclass", "binary" or "multilabel"; see ``metrics.ExpectedCalibrationError``.
        output: name or index of the output to use if the model has several, for outputs and labels alike.
        batch_size: >= 1, for arrays.
        steps: number of batches to read of a dataset; None reads it all.
        every_epochs: >= 1, number of epochs between two measurements.
        log_dir: directory for TensorBoard: one reliability diagram per measurement, drawn by ``figure``.
        figure: function from ``metrics.ReliabilityBins`` to a matplotlib figure, such as
            ``keras_distill.report.reliability_diagram``; needed with ``log_dir``.

    Attributes:
        bins: list of ``metrics.ReliabilityBins``, one per measurement.
        epochs: list of the epochs (from 0) of these measurements.

    Raises:
        ValueError: if an argument does not fit, or, before training, if the model certainly ends in softmax or sigmoid
            while ``from_logits`` is True.

    Example:
        >>> import numpy as np
        >>> x, y = np.zeros((4, 2), "float32"), np.array([0, 0, 0, 1])
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
        >>> model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        >>> history = model.fit(x, y, verbose=0, callbacks=[CalibrationMonitor((x[:2], y[:2]))])
        >>> sorted(history.history)
        ['loss', 'val_brier', 'val_ece', 'val_nll']
    """

    def __init__(
        self,
        validation_data: Any,
        metrics: Sequence[keras.metrics.Metric] = (),
        *,
        teacher: Callable[..., Any] | None = None,
        teacher_metrics: Sequence[keras.metrics.Metric] = (),
        num_bins: int = 15,
        from_logits: bool = True,
        task: str = "multiclass",
        output: str | int | None = None,
        batch_size: int = 256,
        steps: int | None = None,
        every_epochs: int = 1,
        log_dir: Any = None,
        figure: Callable[[ReliabilityBins], Any] | None = None,
    ) -> None:
        super().__init__()
        owner = "CalibrationMonitor"
        if isinstance(validation_data, list):
            validation_data = tuple(validation_data)
        if isinstance(validation_data, tuple) and len(validation_data) not in (2, 3):
            raise error(owner, "validation_data of (x, y) or (x, y, sample_weight)", f"{len(validation_data)} elements")
        if not isinstance(validation_data, (tuple, keras.utils.PyDataset)) and (
            not hasattr(validation_data, "__iter__") or iter(validation_data) is validation_data
        ):
            raise error(
                owner,
                "validation_data that can be read again every epoch",
                type(validation_data).__name__,
                "Give arrays (x, y), a tf.data.Dataset or a PyDataset",
            )
        if bool(teacher_metrics) != (teacher is not None):
            raise error(owner, "teacher and teacher_metrics together", "only one of them")
        if (log_dir is None) != (figure is None):
            raise error(
                owner,
                "log_dir and figure together",
                "only one of them",
                "Use figure=keras_distill.report.reliability_diagram",
            )
        if steps is None and getattr(validation_data, "num_batches", 0) is None:
            raise error(owner, "steps for an endless PyDataset", "None")
        self.from_logits = bool(from_logits)
        self._ece = ExpectedCalibrationError(num_bins, from_logits=from_logits, task=task)
        core = [self._ece, NegativeLogLikelihood(from_logits, task), BrierScore(from_logits, task)]
        self.metrics = [*core, *metrics]
        self.teacher_metrics = list(teacher_metrics)
        names = [metric.name for metric in (*self.metrics, *self.teacher_metrics)]
        if len(set(names)) < len(names):
            raise error(owner, "metrics of different names", ", ".join(names), 'Give each its own, name="..."')
        self.validation_data = validation_data
        self.teacher = teacher
        self.output = output
        self.batch_size = integer(owner, "batch_size", batch_size, low=1)
        self.steps = None if steps is None else integer(owner, "steps", steps, low=1)
        self.every_epochs = integer(owner, "every_epochs", every_epochs, low=1)
        self.log_dir = log_dir
        self.figure = figure
        self.bins: list[ReliabilityBins] = []
        self.epochs: list[int] = []
        self._writer: Any = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Refuse a model whose outputs are certainly not logits."""
        model = self.model.student if isinstance(self.model, Trainer) else self.model
        ends = {end for end in final_activation(model) if end}
        if self.from_logits and ends:
            raise error(
                "CalibrationMonitor",
                "a model that gives logits",
                f"one that ends in {' and '.join(sorted(ends))}",
                "Use from_logits=False",
            )

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Put the numbers of this epoch into ``logs``."""
        if (epoch + 1) % self.every_epochs:
            return
        values = self._measure()
        if logs is not None:
            logs.update(values)
        self.bins.append(self._ece.bins)
        self.epochs.append(epoch)
        if self.log_dir is not None:
            self._draw(epoch)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Close the file for TensorBoard."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _measure(self) -> dict[str, float]:
        every = [*self.metrics, *self.teacher_metrics]
        for metric in every:
            metric.reset_state()
        seen = False
        for x, y, weights in self._batches():
            seen = True
            outputs = self._pick(_predict(self.model, x))
            y, weights = self._pick(y), self._pick(weights)
            for metric in self.metrics:
                metric.update_state(y, outputs, sample_weight=weights)
            if self.teacher_metrics:
                teacher_outputs = self._pick(_predict(self.teacher, x))
                for metric in self.teacher_metrics:
                    labels = {"labels": y} if isinstance(metric, AgreementOnErrors) else {}
                    metric.update_state(teacher_outputs, outputs, sample_weight=weights, **labels)
        if not seen:
            raise error("CalibrationMonitor", "at least one batch of validation_data", "none")
        return {f"val_{metric.name}": float(metric.result()) for metric in every}

    def _batches(self) -> Iterator[tuple[Any, Any, Any]]:
        data = self.validation_data
        batches = data
        if isinstance(data, tuple):
            count, size = len(keras.tree.flatten(data[0])[0]), self.batch_size
            batches = (_rows(data, slice(start, start + size)) for start in range(0, count, size))
        elif isinstance(data, keras.utils.PyDataset):
            batches = (data[index] for index in range(self.steps or data.num_batches))
        for batch in itertools.islice(batches, self.steps):
            yield keras.utils.unpack_x_y_sample_weight(batch)

    def _pick(self, values: Any) -> Any:
        if not keras.tree.is_nested(values):
            return values
        if self.output is None:
            keys = list(values) if isinstance(values, dict) else list(range(len(values)))
            raise error("CalibrationMonitor", f"output to be one of {keys}, as the model has several", "None")
        return values[self.output]

    def _draw(self, epoch: int) -> None:
        import tensorflow as tf

        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self.log_dir))
        buffer = io.BytesIO()
        figure: Any = self.figure
        figure(self.bins[-1]).savefig(buffer, format="png")
        png = buffer.getvalue()
        width, height = struct.unpack(">II", png[16:24])  # the PNG header holds the size
        # The protobuf message itself, because tf.summary.image requires TensorBoard to be installed.
        summary = tf.compat.v1.Summary()
        value = summary.value.add(tag="reliability_diagram")
        value.image.height, value.image.width, value.image.encoded_image_string = height, width, png
        with self._writer.as_default():
            tf.summary.experimental.write_raw_pb(summary.SerializeToString(), step=epoch)
        self._writer.flush()


def _rows(data: tuple[Any, ...], rows: slice) -> tuple[Any, ...]:
    """Return the same rows of every array of a structure."""
    return tuple(
        None if part is None else keras.tree.map_structure(lambda array: np.asarray(array)[rows], part) for part in data
    )


def _predict(model: Any, x: Any) -> Any:
    """Return the outputs for one batch, each example once, for any number of replicas."""
    if not isinstance(model, keras.Model):
        return model(x)
    if model.distribute_strategy.num_replicas_in_sync > 1:
        return model.predict(x, batch_size=len(keras.tree.flatten(x)[0]), verbose=0)
    return model.predict_on_batch(x)
