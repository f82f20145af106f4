"""Windows of a series: no future values in a history, every step used, bad series refused."""

import numpy as np
import pytest

from keras_distill import data


def test_each_window_ends_where_its_targets_begin():
    values = np.stack([np.arange(20.0), np.arange(20.0) * 10], 1)
    found = data.forecast_windows(values, history=4, horizons=3, target=1, stride=2)
    np.testing.assert_array_equal(found.inputs[:, -1, 0], found.ends)
    np.testing.assert_array_equal(found.targets, 10 * (found.ends[:, None] + [1, 2, 3]))
    assert found.inputs.shape == (7, 4, 2) and found.ends[-1] + 3 <= 19
    every = data.forecast_windows(values, history=4, horizons=3)
    assert len(every.ends) == 20 - 4 - 3 + 1 and every.targets[-1, -1] == 19


def test_regular_times_include_months():
    months = np.arange("2020-01", "2021-01", dtype="datetime64[M]")
    assert len(data.forecast_windows(np.arange(12), history=3, horizons=1, times=months).ends) == 9


@pytest.mark.parametrize(
    ("times", "words"),
    [
        ([0, 1, 3, 2, 4, 5], "expected times that increase, got a step back at step 3. Sort the series by time first."),
        ([0, 1, 1, 2, 3, 4], "expected times that increase, got a step back at step 2."),
        ([0, 1, 2, 5, 6, 7], "expected times without gaps, got a step of 3 usual ones at step 3."),
        ([0, 1, np.nan, 3, 4, 5], "expected a time of every step, got none at step 2. Leave that step out"),
        (np.array([0, 1, "NaT", 3, 4, 5], "M8[D]"), "expected a time of every step, got none at step 2."),
        ([0, 1], "forecast_windows: expected 6 times, got (2,)."),
    ],
)
def test_unsorted_and_gapped_series_are_refused(times, words):
    with pytest.raises(ValueError) as caught:
        data.forecast_windows(np.arange(6.0), history=2, horizons=1, times=times)
    assert words in str(caught.value)


def test_missing_values_and_short_series_are_refused():
    with pytest.raises(ValueError, match="expected finite values, got NaN or infinity at step 2"):
        data.forecast_windows([0, 1, np.nan, 3], history=2, horizons=1)
    with pytest.raises(ValueError, match="expected at least 5 steps, got 4"):
        data.forecast_windows([0, 1, 2, 3], history=3, horizons=2)
