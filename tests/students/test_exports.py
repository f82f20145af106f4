"""What builders give is exported like any student; and what Keras' own quantisation does not do stays documented."""

import keras
import numpy as np
import pytest

from keras_distill import export, students

L = keras.layers


def teacher():
    keras.utils.set_random_seed(0)
    x = keras.Input((8, 8, 3))
    hidden = L.ReLU()(L.BatchNormalization()(L.Conv2D(8, 3, padding="same")(x)))
    hidden = L.Add()([hidden, L.Conv2D(8, 3, padding="same", activation="relu")(hidden)])
    return keras.Model(x, L.Dense(4)(L.Dense(24, activation="relu")(L.GlobalAveragePooling2D()(hidden))))


def pictures(count=64):
    return np.random.default_rng(0).normal(size=(count, 8, 8, 3)).astype("float32")


def low_rank(model):
    dense = next(layer.name for layer in model.layers if isinstance(layer, L.Dense))
    return students.factorize(model, pictures(), ranks={dense: 3}).model


BUILDERS = {"from_teacher": lambda model: students.from_teacher(model, width=0.5).model, "factorize": low_rank}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_built_student_is_exported_with_parity(name, tmp_path):
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("tf2onnx")
    student = BUILDERS[name](teacher())
    # Each export raises unless its file gives what the student gives.
    export.litert(student, tmp_path / "student.tflite", check_inputs=pictures(), latency_batch_sizes=())
    export.onnx(student, tmp_path / "student.onnx", check_inputs=pictures(), latency_batch_sizes=())
    export.saved_model(student, tmp_path / "served", check_inputs=pictures())


def test_the_guide_is_right_about_keras_own_quantization(tmp_path):
    model = keras.Sequential(
        [keras.Input((8, 8, 3)), L.Conv2D(4, 3, name="conv"), L.Flatten(), L.Dense(5, name="dense")]
    )
    model.quantize("int8")
    assert model.get_layer("conv").kernel.dtype == "float32"
    assert [weight.name for weight in model.get_layer("dense").trainable_weights] == ["bias"]
    with pytest.raises(Exception, match=r"."):
        model.export(str(tmp_path / "int8.tflite"), format="litert", verbose=False)
