"""Every builder's student is saved, loaded and exported; low-bit files are as small as documented."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_distill import callbacks, export, students

L = keras.layers
ROOT = Path(__file__).resolve().parents[2]


def teacher():
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3))
    hidden = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3, padding="same")(x)))
    hidden = L.Add()([hidden, L.Conv2D(8, 3, padding="same", activation="relu")(hidden)])
    hidden = L.Dense(24, activation="relu", name="hidden")(L.GlobalAveragePooling2D()(hidden))
    return keras.Model(x, L.Dense(4)(hidden))


def pictures(count=64):
    return np.random.default_rng(0).normal(size=(count, 8, 8, 3)).astype("float32")


def pruned(model):
    model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(True))
    model.fit(pictures(), np.zeros(64, int), verbose=0, callbacks=[callbacks.MagnitudePruning(0.5, end_step=1)])
    return model


BUILDERS = {
    "narrow": lambda model: students.from_teacher(model, width=0.5).model,
    "low rank": lambda model: students.factorize(model, pictures(), ranks={"hidden": 3}).model,
    "folded": students.fold_batch_normalization,
    "int8": lambda model: students.quantization_aware(model, 8, 8, data=pictures()),
    "int4": lambda model: students.quantization_aware(model, 4, None),
    "int3": lambda model: students.quantization_aware(model, 3, 8, data=pictures()),
    "pruned": pruned,
}


SLOW = ("folded", "int3", "pruned")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in BUILDERS])
def test_a_built_student_is_saved_loaded_and_exported_with_parity(name, tmp_path):
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("tf2onnx")
    pytest.importorskip("ai_edge_quantizer")
    built, x = BUILDERS[name](teacher()), pictures()
    built.save(tmp_path / "student.keras")
    student = keras.saving.load_model(tmp_path / "student.keras")
    np.testing.assert_array_equal(np.asarray(student(x)), np.asarray(built(x)))
    # Each export raises unless its file agrees with the student.
    export.litert(student, tmp_path / "student.tflite", check_inputs=x, latency_batch_sizes=())
    export.onnx(student, tmp_path / "student.onnx", check_inputs=x, latency_batch_sizes=())
    export.saved_model(student, tmp_path / "served", check_inputs=x)


@pytest.mark.slow
def test_low_bit_files_are_small_and_agree_with_the_trained_model(tmp_path):
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("ai_edge_quantizer")
    keras.utils.set_random_seed(0)
    image = keras.Input((8, 8, 3))
    hidden = L.Conv2D(64, 3, padding="same", activation="relu")(L.Conv2D(64, 3, activation="relu")(image))
    hidden = L.Dense(256, activation="relu")(L.Flatten()(L.MaxPooling2D(2)(hidden)))
    model, x = keras.Model(image, L.Dense(10)(hidden)), pictures(1000)
    labels = np.arange(len(x)) % 10
    x += 2 * pictures(10)[labels]  # separable classes: noise has logits near ties
    model.compile(keras.optimizers.Adam(1e-3), keras.losses.SparseCategoricalCrossentropy(True), jit_compile=False)
    model.fit(x, labels, verbose=0)
    whole = export.litert(model, tmp_path / "whole.tflite", latency_batch_sizes=())
    for bits, activations, agreement, size in ((8, 8, 0.999, 0.3), (4, None, 0.995, 0.25)):
        student = students.quantization_aware(model, bits, activations, data=x[:256])
        folder = tmp_path / f"int{bits}"
        folder.mkdir()
        made = export.litert(student, folder / "student.tflite", check_inputs=x, latency_batch_sizes=())
        assert made.agreement >= agreement
        assert made.size_bytes <= size * whole.size_bytes


def table_of_the_guide():
    """Rows of the guide's table on Keras' own quantisation: mode, Conv2D, trained weights, LiteRT."""
    text = (ROOT / "docs" / "guides" / "small_models.md").read_text().split("## What Keras' own quantisation")[1]
    rows = re.findall(r'^\| `"(\w+)"` \| (.*?) \| (.*?) \| (.*?) \|$', text, re.MULTILINE)
    return {mode: {"conv": conv, "trained": trained, "litert": litert} for mode, conv, trained, litert in rows}


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_the_guide_is_right_about_keras_own_quantization(mode, tmp_path):
    layers = [keras.Input((8, 8, 3)), L.Conv2D(4, 3, name="conv"), L.Flatten(), L.Dense(5, name="dense")]
    model = keras.Sequential(layers)
    model(pictures(2))
    model.quantize(mode)
    conv, dense = model.get_layer("conv"), model.get_layer("dense")
    found = {
        "conv": "stays float" if conv.kernel.dtype == "float32" and conv.quantization_mode is None else "is quantised",
        "trained": ", ".join(
            dict.fromkeys(re.sub(".*(scale|amax).*", "scales", w.name) for w in dense.trainable_weights)
        ),
    }
    try:
        model.export(str(tmp_path / "model.tflite"), format="litert", verbose=False)
        found["litert"] = "converts"
    except Exception:
        found["litert"] = "fails"
    assert table_of_the_guide()[mode] == found
