"""Checks of recordings before training, and the front end."""

import keras
import numpy as np
import pytest

from keras_distill import adapters, data, losses


def sound(samples, seed=0):
    return (0.3 * np.random.default_rng(seed).normal(size=samples)).clip(-1, 1).astype("float32")


def test_integers_are_scaled_and_shorter_sounds_padded():
    x = data.waveforms([np.array([128, 255, 0], "uint8"), np.array([-32768, 16384], "int16")], sampling_rate=8000)
    np.testing.assert_allclose(x, [[0.0, 127 / 128, -1.0], [-1.0, 0.5, 0.0]], rtol=1e-6)


@pytest.mark.parametrize(
    ("sounds", "options", "message"),
    [
        ([], {}, r"data\.waveforms: expected at least one sound, got none"),
        ([sound(9), np.array([0.1, np.nan])], {}, r"expected finite samples, got nan at sample 1 in number 1\. Repair"),
        ([np.zeros(9)], {}, r"expected a sample above 0\.0001, got a silent sound in number 0\. Drop it"),
        ([sound(9)], {"expected_rate": 16000}, r"expected sounds of 16000 samples per second, got 8000\. Resample"),
        ([np.zeros((9, 2))], {}, r"expected sounds of shape \(samples,\), got \(9, 2\) in number 0\. Mix"),
        ([sound(9)], {"length": 5}, r"expected sounds of at most 5 samples, got 9 in number 0\. Cut it"),
    ],
)
def test_bad_recordings_are_named_before_training(sounds, options, message):
    with pytest.raises(ValueError, match=message):
        data.waveforms(sounds, sampling_rate=8000, **options)


def test_labels_that_do_not_fit_are_found_and_labels_out_of_range_named():
    assert data.fitting_labels([[1, 1], [1, 2, -1], []], [2, 2, 0], num_classes=3).tolist() == [False, True, True]
    with pytest.raises(ValueError, match=r"data\.fitting_labels: expected labels from 0 to 2, got 3 in utterance 1\."):
        data.fitting_labels([[1], [3]], [2, 2], num_classes=3)


def test_log_mel_ignores_padding_and_a_silent_input_is_all_padding():
    layer = adapters.LogMel(sampling_rate=8000, num_mel_bins=12)
    x = np.zeros((3, 4000), "float32")
    x[0], x[1, :2400] = sound(4000), sound(2400, 1)
    features = layer(x)
    assert features._keras_mask.numpy().sum(axis=1).tolist() == [50, 30, 0]
    np.testing.assert_allclose(features[1, :30], layer(x[1:2, :2400])[0], atol=1e-4)
    np.testing.assert_array_equal(features[1, 30:], 0.0)
    np.testing.assert_array_equal(features[2], 0.0)
    np.testing.assert_allclose(np.mean(features[0], axis=0), 0.0, atol=1e-4)
    np.testing.assert_allclose(layer(x[:1] * 0.5), features[:1], atol=2e-3)  # loudness has no effect


def test_a_recogniser_takes_a_waveform_trains_and_is_saved_with_its_front_end(tmp_path):
    inputs = keras.Input((None,))
    x = keras.layers.GRU(6, return_sequences=True)(adapters.LogMel(8000, 8)(inputs))
    model = keras.Model(inputs, keras.layers.Dense(3)(x))
    model.compile("adam", losses.Ctc())
    x = data.waveforms([sound(2400), sound(1600, 1)], sampling_rate=8000)
    assert np.isfinite(model.fit(x, np.array([[1, 2], [2, -1]]), verbose=0).history["loss"]).all()
    model.save(tmp_path / "speech.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "speech.keras")(x), model(x))


def test_a_convolutional_student_ignores_padding_once_its_mask_is_restored(tmp_path):
    keras.utils.set_random_seed(0)
    inputs = keras.Input((None, 3))
    frames = keras.layers.Masking()(inputs)
    x = keras.layers.Conv1D(4, 3, padding="same", activation="relu")(frames)
    x = keras.layers.Conv1D(4, 3, padding="same")(adapters.WithMask()([x, frames]))
    model = keras.Model(inputs, keras.layers.Dense(3)(adapters.WithMask()([x, frames])))
    whole = np.random.default_rng(0).normal(size=(1, 6, 3)).astype("float32")
    padded = np.pad(whole, ((0, 0), (0, 4), (0, 0)))
    np.testing.assert_allclose(model(padded)[:, :6], model(whole), atol=1e-6)
    values = [float(losses.Ctc()(np.array([[1, 2]]), model(each))) for each in (padded, whole)]
    np.testing.assert_allclose(values[0], values[1], rtol=1e-5)
    halved = adapters.WithMask(stride=2)([model(padded)[:, ::2], keras.layers.Masking()(padded)])
    assert halved._keras_mask.numpy().tolist() == [[True, True, True, False, False]]
    model.save(tmp_path / "student.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "student.keras")(padded), model(padded))
    with pytest.raises(ValueError, match=r"WithMask: expected two tensors, \[x, masked\], got 1"):
        adapters.WithMask()(whole)


def test_a_rate_too_low_for_the_bands_is_refused():
    with pytest.raises(ValueError, match=r"LogMel: expected min_freq below half the sampling rate, 10 Hz, got 20\.0"):
        adapters.LogMel(sampling_rate=20)
