"""Corrupts images by kind and severity, to test a model under input shift."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_distill._checks import choice, error, integer

#: By kind: the parameters of severities 1 to 5, as in CIFAR-10-C.
_SEVERITIES = {
    "noise": (0.04, 0.06, 0.08, 0.09, 0.10),
    "blur": (0.4, 0.6, 0.7, 0.8, 1.0),
    "contrast": (0.75, 0.5, 0.4, 0.3, 0.15),
}


def corrupt(
    images: Any, kind: str, severity: int, *, low: float | None = None, high: float | None = None, seed: int = 0
) -> np.ndarray:
    """Return images with noise, blur, or reduced contrast.

    Use it to measure accuracy and calibration under shift; ``report.evaluate(..., corruptions=...)`` does both. Never
    train on the corruptions you test with.

    Formula, in units of high - low: noise adds N(0, s**2) to each value; blur is a Gaussian kernel of deviation s
    pixels, edges repeated; contrast multiplies the distance to the image's mean of each channel by s. The result is
    clipped to ``low``..``high``.

    Args:
        images: (images, height, width, channels) or (images, height, width).
        kind: ``"noise"``, ``"blur"`` or ``"contrast"``.
        severity: 1 to 5.
        low: smallest possible value; the images' minimum if None.
        high: largest possible value; the images' maximum if None.
        seed: >= 0, seed of the noise.

    Returns:
        Array of the same shape, float32.

    Raises:
        ValueError: if an argument is out of bounds.

    Example:
        >>> import numpy as np
        >>> image = np.array([[[0.0, 1.0], [0.0, 1.0]]])
        >>> corrupt(image, "contrast", 2)[0].tolist()
        [[0.25, 0.75], [0.25, 0.75]]

    Reference:
        Hendrycks, Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR
        2019, arXiv:1903.12261, severities of its CIFAR-10-C. Differs: three of its kinds, any range of values.
    """
    owner = "data.corrupt"
    images = np.asarray(images, "float32")
    if images.ndim not in (3, 4) or not images.size:
        advice = "Corrupt other inputs with your own function"
        raise error(owner, "images, (images, height, width, channels)", f"shape {images.shape}", advice)
    size = _SEVERITIES[choice(owner, "kind", kind, tuple(_SEVERITIES))]
    if integer(owner, "severity", severity, low=1) > len(size):
        raise error(owner, "severity in 1..5", severity)
    amount = size[severity - 1]
    low, high = (float(images.min()) if low is None else low), (float(images.max()) if high is None else high)
    if kind == "noise":
        noise = np.random.default_rng(seed).normal(0.0, amount * (high - low), images.shape)
        found = images + noise.astype("float32")
    elif kind == "blur":
        found = _blurred(images, amount)
    else:
        middle = images.mean((1, 2), keepdims=True)
        found = middle + amount * (images - middle)
    return np.clip(found, low, high)


def _blurred(images: np.ndarray, deviation: float) -> np.ndarray:
    reach = int(np.ceil(4 * deviation))
    places = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (places / deviation) ** 2)
    kernel = (kernel / kernel.sum()).astype("float32")
    for axis in (1, 2):
        border = [(reach, reach) if each == axis else (0, 0) for each in range(images.ndim)]
        padded, length = np.pad(images, border, mode="edge"), images.shape[axis]
        images = sum(
            share * np.take(padded, np.arange(start, start + length), axis=axis) for start, share in enumerate(kernel)
        )
    return images
