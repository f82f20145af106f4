"""Budgets of file size and latency: the largest model within the limit, found by measuring real files."""

import keras
import pytest

from keras_distill import students
from keras_distill.students._fit import fit_budget
from keras_distill.students._litert import convert, latency_ratio

L = keras.layers

pytest.importorskip("ai_edge_litert")


def teacher(width=96):
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3))
    hidden = L.ReLU()(L.Conv2D(width, 3, padding="same", name="first")(x))
    hidden = L.ReLU()(L.Conv2D(width, 3, padding="same", name="second")(hidden))
    return keras.Model(x, L.Dense(10, name="head")(L.GlobalAveragePooling2D()(hidden)))


def test_a_file_is_within_two_per_cent_of_its_limit():
    model = teacher()
    limit = len(convert("test", model)) // 3
    built = students.from_teacher(model, budget=students.Budget(file_bytes=limit))
    assert 0.98 * limit <= len(convert("test", built.model)) <= limit


def channels(count):
    """A model of this many channels as the search sees it."""

    def make(size, wider=None):
        kept = max(1, int(size * count)) + sum((wider or {}).values())
        return students.from_teacher(small, width={"first": min(kept, count)})

    small = teacher(count)
    return small, make


def test_a_latency_budget_is_measured_on_each_file_and_met_within_two_per_cent():
    small, make = channels(64)
    asked = []

    def stop_watch(content, reference):  # latency is simulated by the file's size, which is exactly repeatable
        asked.append(len(content))
        return len(content) / len(reference)

    built = fit_budget("test", make, students.Budget(latency_ratio=0.6), small, stop_watch=stop_watch)
    ratio = len(convert("test", built.model)) / len(convert("test", small))
    assert 0.98 * 0.6 <= ratio <= 0.6
    assert len(convert("test", built.model)) in asked
    assert len(set(asked)) <= 12


def test_a_latency_near_the_limit_is_the_median_of_three():
    small, make = channels(8)
    readings = iter([0.52, 0.44, 0.49])  # three measurements of the model: too slow, too fast, and correct

    def stop_watch(content, reference):
        return next(readings)

    built = fit_budget("test", make, students.Budget(latency_ratio=0.5), small, stop_watch=stop_watch)
    assert built.cost.parameters == small.count_params()


def test_a_latency_that_no_width_meets_is_refused_with_the_nearest():
    small, make = channels(8)
    with pytest.raises(
        ValueError, match=r"meets: latency_ratio <= 0.2, got 0.9 for the smallest. Allow latency_ratio=0"
    ):
        fit_budget("test", make, students.Budget(latency_ratio=0.2), small, stop_watch=lambda content, reference: 0.9)


def test_counted_limits_are_checked_before_latency_is_measured():
    small, make = channels(16)

    def stop_watch(content, reference):
        raise AssertionError("a model over its parameters was timed")

    budget = students.Budget(parameters=10, latency_ratio=0.5)
    with pytest.raises(ValueError, match=r"some size meets: parameters <= 10, got \d+ for the smallest"):
        fit_budget("test", make, budget, small, stop_watch=stop_watch)


def test_both_files_are_timed_in_the_same_rounds():
    wide, thin = (convert("test", model) for model in (teacher(128), teacher(4)))
    assert latency_ratio(thin, wide) < 0.5  # about a hundredth of the work
