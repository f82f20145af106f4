"""Interrupted and resumed is bit-equal to uninterrupted: every teacher, term and callback, and what trains several.

Each case runs three times: to the end; up to the second epoch, where it is interrupted; and again, from the backup.
"""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import callbacks, teachers, terms
from tests.batteries.resume_cases import CASES, X, Y

pytestmark = pytest.mark.slow
EPOCHS = 2
# Nothing of their own to resume: bases, results, rules that other cases use, and what needs data of another kind.
WITHOUT_STATE = {
    "teachers": {
        "Agreement", "Combine", "ConfidenceWeighted", "EntropyWeighted", "MeanLogits", "MeanLoss", "MeanProbs",
        "Members", "NBest", "PolicyBuffer", "StoreProblem", "StoredTeacherError", "Teacher", "UncertaintyWeighted",
    },
    "terms": {"DistillationLoss"},
    "callbacks": {"Backup"},
}  # fmt: skip


class StopError(Exception):
    pass


class StopAt(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 1:
            raise StopError


def results(made, directory, stop=False):
    """Train and return everything that a resume must not change."""
    keras.utils.set_random_seed(0)
    distiller, *more = made()
    more = [each for each in more if each is not None]
    x = next((each for each in more if not isinstance(each, keras.callbacks.Callback)), X)
    extra = [each for each in more if isinstance(each, keras.callbacks.Callback)]
    backup = callbacks.Backup(directory, delete_checkpoint=not stop)
    batched = isinstance(x, tf.data.Dataset)
    arrays = {} if batched else {"y": Y, "batch_size": 3, "shuffle": False}
    history = distiller.fit(
        x, epochs=EPOCHS, verbose=0, validation_data=x if batched else (x, Y), **arrays,
        callbacks=[*extra, backup, *([StopAt()] if stop else [])],
    )  # fmt: skip
    arrays = [*distiller.get_weights(), *(v.numpy() for v in distiller.optimizer.variables)]
    return arrays, history.history, history.epoch


@pytest.mark.parametrize("name", CASES)
def test_resumed_is_bit_equal_to_uninterrupted(name, tmp_path):
    made, _ = CASES[name]
    expected = results(made, tmp_path / "one")
    with pytest.raises(StopError):
        results(made, tmp_path / "two", stop=True)
    tf.random.set_seed(1)  # a new process has drawn something else
    resumed = results(made, tmp_path / "two")
    for ours, theirs in zip(resumed[0], expected[0], strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert resumed[1:] == expected[1:]


def test_nothing_is_missing_in_the_battery():
    covered = set().union(*(names for _, names in CASES.values()))
    missing = []
    for room in (teachers, terms, callbacks):
        name = room.__name__.removeprefix("keras_distill.")
        classes = {each for each in room.__all__ if inspect.isclass(getattr(room, each))}
        missing += sorted(f"{name}.{each}" for each in classes - WITHOUT_STATE[name] - covered)
    assert not missing, f"no case of their own yet: {', '.join(missing)}"
