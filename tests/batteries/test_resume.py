"""An interrupted and resumed run is bit-equal to an uninterrupted one: every teacher, term, callback and regime.

Each case runs twice: to the end, where the second epoch begins with a copy of the backup; and from that copy, which is
what a kill at that moment leaves.
"""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import callbacks, teachers, terms
from tests.batteries.resume_cases import CASES, CopyAt, X, Y
from tests.models import batches

pytestmark = pytest.mark.slow
EPOCHS = 2
# Without state of their own: bases, results, rules used by other cases, and names that need other data.
WITHOUT_STATE = {
    "teachers": {
        "Agreement", "Combine", "ConfidenceWeighted", "EntropyWeighted", "MeanLogits", "MeanLoss", "MeanProbs",
        "Members", "NBest", "PolicyBuffer", "StoreProblem", "StoredTeacherError", "Teacher", "UncertaintyWeighted",
    },
    "terms": {"DistillationLoss"},
    "callbacks": {"Backup"},
}  # fmt: skip


def results(made, directory, copy=None):
    """Train; return everything that must be the same after a resume, and the epochs that were run."""
    keras.utils.set_random_seed(0)
    distiller, *more = made()
    more = [each for each in more if each is not None]
    x = next((each for each in more if not isinstance(each, keras.callbacks.Callback)), X)
    extra = [each for each in more if isinstance(each, keras.callbacks.Callback)]
    backup, copies = callbacks.Backup(directory), CopyAt(directory, copy)
    data = x if isinstance(x, tf.data.Dataset) else batches(x, Y, size=3)
    history = distiller.fit(data, epochs=EPOCHS, verbose=0, validation_data=data, callbacks=[*extra, backup, copies])
    arrays = [*distiller.get_weights(), *(v.numpy() for v in distiller.optimizer.variables)]
    return arrays, history.history, history.epoch, copies.begun


@pytest.mark.parametrize("name", CASES)
def test_resumed_is_bit_equal_to_uninterrupted(name, tmp_path):
    made, _ = CASES[name]
    expected = results(made, tmp_path / "one", copy=tmp_path / "two")
    tf.random.set_seed(1)  # a new process has drawn other random numbers
    resumed = results(made, tmp_path / "two")
    assert (expected[-1], resumed[-1]) == ([0, 1], [1])
    for ours, theirs in zip(resumed[0], expected[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert resumed[1:-1] == expected[1:-1]


def test_the_battery_is_complete():
    covered = set().union(*(names for _, names in CASES.values()))
    missing = []
    for room in (teachers, terms, callbacks):
        name = room.__name__.removeprefix("keras_distill.")
        classes = {each for each in room.__all__ if inspect.isclass(getattr(room, each))}
        missing += sorted(f"{name}.{each}" for each in classes - WITHOUT_STATE[name] - covered)
    assert not missing, f"no case of their own yet: {', '.join(missing)}"
