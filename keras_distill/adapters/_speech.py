"""The front end of speech models as a layer, so that a served model takes waveforms."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill._checks import error, integer, number
from keras_distill._typing import Tensor

_SMALLEST_POWER = 1e-10


@keras.saving.register_keras_serializable(package="keras_distill")
class LogMel(keras.layers.Layer):
    """Log-mel spectrogram of a waveform, with a mask for the padding after it (acoustic front end).

    Put it first in a speech model: the exported model then takes samples, and clients need not compute the same
    features. It wraps ``keras.layers.MelSpectrogram``, puts time before channels, takes the logarithm, and normalises
    each utterance by the mean and standard deviation of its frames, so that loudness does not matter.

    Args:
        sampling_rate: > 0, samples per second of the waveforms.
        num_mel_bins: >= 1, channels of the output.
        window_seconds: > 0, length of a window.
        step_seconds: > 0, distance between the starts of two windows.
        min_freq: >= 0 Hz, lower edge of the first mel band.
        normalize: subtract the mean and divide by the standard deviation of an utterance's frames, band by band.
        **kwargs: as for ``keras.layers.Layer``.

    Call:
        waveforms (batch, samples), float in -1..1; exact zeros at the end are padding. Returns (batch, frames,
        num_mel_bins), with a Keras mask of the frames that begin before the padding. A silent waveform consists of
        padding only: all its frames are masked, with values of 0.

    Raises:
        ValueError: if a number is out of bounds.

    Example:
        >>> import numpy as np
        >>> tone = np.sin(np.arange(1600) * 0.3).astype("float32")[None]
        >>> LogMel(sampling_rate=8000, num_mel_bins=20)(tone).shape
        TensorShape([1, 20, 20])
    """

    def __init__(
        self,
        sampling_rate: int = 16000,
        num_mel_bins: int = 40,
        window_seconds: float = 0.025,
        step_seconds: float = 0.010,
        min_freq: float = 20.0,
        normalize: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        owner = "LogMel"
        self.sampling_rate = integer(owner, "sampling_rate", sampling_rate, low=1)
        self.num_mel_bins = integer(owner, "num_mel_bins", num_mel_bins, low=1)
        self.window_seconds = number(owner, "window_seconds", window_seconds, above=0.0)
        self.step_seconds = number(owner, "step_seconds", step_seconds, above=0.0)
        self.min_freq = number(owner, "min_freq", min_freq, low=0.0)
        if self.min_freq >= self.sampling_rate / 2:
            raise error(owner, f"min_freq below half the sampling rate, {self.sampling_rate / 2:g} Hz", self.min_freq)
        self.normalize = bool(normalize)
        window = max(1, round(self.sampling_rate * self.window_seconds))
        self.step = max(1, round(self.sampling_rate * self.step_seconds))
        length = 1
        while length < window:
            length *= 2
        self.spectrogram = keras.layers.MelSpectrogram(
            fft_length=length,
            sequence_stride=self.step,
            sequence_length=window,
            sampling_rate=self.sampling_rate,
            num_mel_bins=self.num_mel_bins,
            min_freq=self.min_freq,
            max_freq=self.sampling_rate / 2,
            power_to_db=False,
            dtype="float32",
        )

    def build(self, input_shape: Any) -> None:
        """Build the spectrogram."""
        self.spectrogram.build(input_shape)
        self.built = True

    def _frames(self, samples: Any) -> Tensor:
        return samples // self.step

    def compute_mask(self, inputs: Tensor, previous_mask: Any = None) -> Tensor:
        """Return a mask of the frames that begin before the padding."""
        sound = ops.cast(ops.not_equal(inputs, 0), "int32")
        still = ops.greater(ops.flip(ops.cumsum(ops.flip(sound, axis=1), axis=1), axis=1), 0)
        return still[:, : (1 - self.step) or None : self.step]  # one for each whole step

    def call(self, inputs: Tensor) -> Tensor:
        """Return the features of a batch of waveforms."""
        waveforms = ops.cast(inputs, "float32")
        # Zeros after the last sample, which Keras would mirror, so that padding changes no frame.
        extended = ops.pad(waveforms, ((0, 0), (0, self.spectrogram.fft_length)))
        power = ops.transpose(self.spectrogram(extended), (0, 2, 1))[:, : self._frames(ops.shape(inputs)[1])]
        features = ops.log(ops.maximum(power, _SMALLEST_POWER))
        kept = ops.cast(self.compute_mask(inputs), "float32")[:, :, None]
        if self.normalize:
            count = ops.maximum(ops.sum(kept, axis=1, keepdims=True), 1.0)
            centred = features - ops.sum(features * kept, axis=1, keepdims=True) / count
            variance = ops.sum(ops.square(centred) * kept, axis=1, keepdims=True) / count
            features = centred / ops.sqrt(variance + 1e-5)
        return ops.cast(features * kept, self.compute_dtype)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Return (batch, frames, num_mel_bins)."""
        samples = input_shape[1]
        return (input_shape[0], None if samples is None else self._frames(samples), self.num_mel_bins)

    def get_config(self) -> dict[str, Any]:
        """Return the constructor's arguments."""
        names = ("sampling_rate", "num_mel_bins", "window_seconds", "step_seconds", "min_freq", "normalize")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
