"""Windows of a time series: the forecaster's input, and the horizons it predicts."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from keras_distill._checks import error, integer

_OWNER = "forecast_windows"


class Windows(NamedTuple):
    """Windows of one series.

    Attributes:
        inputs: (windows, history, channels), float32.
        targets: (windows, horizons), float32: the target channel after each history.
        ends: (windows,), int64: index of the last step of the history. Split by it, not at random: the targets of test
            windows must begin after the last training target.
    """

    inputs: np.ndarray
    targets: np.ndarray
    ends: np.ndarray


def forecast_windows(
    values: Any, *, history: int, horizons: int, times: Any = None, target: int = 0, stride: int = 1
) -> Windows:
    """Cut a series into histories and the values that follow them.

    Args:
        values: (steps,) or (steps, channels), finite, in order of time.
        history: >= 1, number of steps that the forecaster sees.
        horizons: >= 1, number of steps that it predicts.
        times: (steps,) numbers or ``np.datetime64``, checked for order and gaps; None trusts the order.
        target: the channel to predict.
        stride: >= 1, steps from one window to the next.

    Returns:
        ``Windows``.

    Raises:
        ValueError: if times are unsorted or have gaps, a value is missing, or the series is too short.

    Example:
        >>> windows = forecast_windows(np.arange(5.0), history=2, horizons=1)
        >>> windows.inputs[0, :, 0].tolist(), windows.targets[0].tolist()
        ([0.0, 1.0], [2.0])
    """
    values = np.asarray(values, "float32")
    values = values[:, None] if values.ndim == 1 else values
    history, horizons = (integer(_OWNER, n, v, low=1) for n, v in (("history", history), ("horizons", horizons)))
    stride = integer(_OWNER, "stride", stride, low=1)
    if values.ndim != 2 or not 0 <= target < values.shape[1]:
        raise error(_OWNER, "values of shape (steps, channels) with the target among the channels", values.shape)
    if not np.isfinite(values).all():
        step = int(np.argwhere(~np.isfinite(values))[0, 0])
        raise error(_OWNER, "finite values", f"NaN or infinity at step {step}", "Fill or cut the series there")
    if times is not None:
        _check_times(np.asarray(times), len(values))
    last = len(values) - horizons - history
    if last < 0:
        raise error(_OWNER, f"at least {history + horizons} steps", len(values))
    starts = np.arange(0, last + 1, stride)
    inputs = values[starts[:, None] + np.arange(history)]
    ends = starts + history - 1
    return Windows(inputs, values[ends[:, None] + 1 + np.arange(horizons), target], ends)


def _check_times(times: np.ndarray, steps: int) -> None:
    if times.shape != (steps,):
        raise error(_OWNER, f"{steps} times", times.shape)
    known = ~np.isnat(times) if times.dtype.kind == "M" else np.isfinite(times)
    if not known.all():
        step = int(np.argmin(known))
        raise error(_OWNER, "a time of every step", f"none at step {step}", "Leave that step out, or fill in its time")
    gaps = np.diff(times).astype("int64") if times.dtype.kind == "M" else np.diff(times)  # also for months, in months
    if (gaps <= 0).any():
        step = int(np.argmax(gaps <= 0)) + 1
        raise error(_OWNER, "times that increase", f"a step back at step {step}", "Sort the series by time first")
    usual = np.median(gaps)
    odd = np.abs(gaps - usual) > 1e-6 * usual
    if odd.any():
        step = int(np.argmax(odd)) + 1
        got = f"a step of {gaps[step - 1] / usual:.4g} usual ones at step {step}"
        raise error(_OWNER, "times without gaps", got, "Fill the gap, or split the series there")
