"""An example of a user's typed program: ``mypy --strict`` must know the types of everything it uses."""

from __future__ import annotations

import pathlib
from typing import assert_type

import numpy as np

from keras_distill import (
    Distiller,
    FeatureDistillation,
    LogitsDistillation,
    calibration,
    callbacks,
    data,
    export,
    losses,
    metrics,
    report,
    schedules,
    taps,
    teachers,
    terms,
)


def distilled(teacher: teachers.Teacher, student: teachers.Single, directory: pathlib.Path) -> str:
    """Use each module once."""
    digits = assert_type(data.load("digits"), data.Data)
    assert_type(digits.train, data.Examples)
    assert_type(data.names(), tuple[str, ...])
    assert_type(taps.list_taps(student, print_fn=None).keys().__len__(), int)

    compared = [
        LogitsDistillation(temperature=schedules.Linear(4.0, 1.0, num_steps=100), loss=losses.ReverseSoftTargets()),
        FeatureDistillation(losses.HintMatching(), "hidden", "hidden", adapter="auto"),
        terms.EntropyMatchedTemperature(entropy_fraction=0.5),
    ]
    ensemble = teachers.Ensemble([teacher, teacher], combine="mean_probs", weights=[0.5, 0.5])
    scaler = calibration.TemperatureScaler(bounds=(0.1, 10.0))
    assert_type(scaler.fit(np.zeros((2, 3)), np.zeros(2)).temperature, float)
    distiller = Distiller(ensemble, student, compared, distillation_loss_weights=[1.0, 10.0, 0.5])
    distiller.compile("adam", metrics=[metrics.ExpectedCalibrationError()])
    distiller.fit(digits.train.inputs, digits.train.labels, callbacks=[callbacks.Backup(directory)])

    stored = teachers.label(teacher, digits, directory / "answers", top_k=5)
    if stored is None:  # one machine's share of the work
        return "label the other parts"
    assert_type(teachers.verify(directory / "answers"), list[teachers.StoreProblem])
    distiller.evaluate(stored.attach(digits))
    written = assert_type(export.saved_model(distiller.student, directory / "serving"), export.Export)
    assert_type(written.path, pathlib.Path)
    result = assert_type(report.evaluate({"student": distiller.student}, digits.test), report.Report)
    assert_type(result["student"].accuracy, report.Score)
    assert_type(report.write_page(result, "report.html"), pathlib.Path)
    header, _ = assert_type(report.table(result), tuple[list[str], list[list[str]]])
    return header[0]
