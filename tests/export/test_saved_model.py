"""export.saved_model: the served outputs, their equality with the student, and no files after failures."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import expit, log_softmax, softmax

from keras_distill import calibration, export
from keras_distill.export import _staging
from keras_distill.export._heads import Head


def dense_student(head_units=3, activation=None, **kwargs):
    return keras.Sequential(
        [
            keras.Input((4,), name="features"),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(head_units, activation=activation, **kwargs),
        ]
    )


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(7).normal(size=(37, 4)).astype("float32") * 3


@pytest.fixture(scope="module")
def trained(features):
    """A student with optimizer, metrics, a seed generator and moved BatchNorm statistics."""
    student = dense_student()
    student.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
    student.fit(features, np.arange(37) % 3, epochs=2, verbose=0)
    return student


@pytest.fixture(scope="module")
def exported(trained, features, tmp_path_factory):
    return export.saved_model(
        trained,
        tmp_path_factory.mktemp("serving") / "student",
        check_inputs=features,
        check_labels=np.arange(37) % 3,
        labels=["low", "middle", "h\u00f6ch"],
        temperature=2.0,
        uncertainty=True,
    )


def signature(path, name="serving_default"):
    loaded = tf.saved_model.load(os.fspath(path))
    function = loaded.signatures[name]
    function.keep = loaded
    return function


def test_outputs_against_scipy(exported, trained, features):
    out = {k: v.numpy() for k, v in signature(exported)(features=features).items()}
    logits = trained(features, training=False).numpy().astype("float64")
    probabilities = softmax(logits / 2, axis=-1)
    np.testing.assert_allclose(out["logits"], logits, atol=1e-6)
    np.testing.assert_allclose(out["probabilities"], probabilities, atol=1e-6)
    np.testing.assert_array_equal(out["classes"], logits.argmax(-1))
    np.testing.assert_allclose(out["entropy"], -(probabilities * np.log(probabilities)).sum(-1), atol=1e-6)
    np.testing.assert_allclose(out["confidence"], probabilities.max(-1), atol=1e-6)
    order = np.argsort(-probabilities, axis=-1)
    names = np.array(["low", "middle", "h\u00f6ch"])[order]
    assert [[text.decode() for text in row] for row in out["labels"]] == names.tolist()
    np.testing.assert_allclose(out["scores"], np.take_along_axis(probabilities, order, -1), atol=1e-6)
    assert {k: v.dtype.name for k, v in out.items() if v.dtype.kind != "O"} == {
        "logits": "float32",
        "probabilities": "float32",
        "classes": "int64",
        "entropy": "float32",
        "confidence": "float32",
        "scores": "float32",
    }


def test_result_says_what_was_measured(exported, trained, features):
    logits = trained(features, training=False).numpy()
    truth = np.arange(37) % 3
    assert exported.num_examples == 37
    assert exported.agreement == 1.0
    assert exported.max_difference < 1e-6
    assert exported.accuracy == exported.student_accuracy == (logits.argmax(-1) == truth).mean()
    cards = ("MODEL_CARD.md", "distillation.json")
    files = [f for f in exported.path.rglob("*") if f.is_file() and f.name not in cards]
    assert exported.size_bytes == sum(f.stat().st_size for f in files)
    confidence = softmax(logits.astype("float64") / 2, axis=-1).max(-1)
    ece = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence >= low) & (confidence < low + 1 / 15)
        if inside.any():
            ece += inside.mean() * abs((logits.argmax(-1) == truth)[inside].mean() - confidence[inside].mean())
    assert exported.student_ece == pytest.approx(ece, abs=1e-5)
    assert exported.ece == pytest.approx(ece, abs=1e-4)


def test_only_the_students_state_is_saved(exported, trained):
    saved = [v for v in tf.train.list_variables(str(exported.path / "variables" / "variables")) if "OBJECT" not in v[0]]
    weights = [w for w in trained.weights if "seed" not in w.path]
    assert sorted(tuple(shape) for _, shape in saved) == sorted(tuple(w.shape) for w in weights)
    assert len(trained.optimizer.variables) > 0
    names = tf.train.load_variable(str(exported.path / "variables" / "variables"), "_CHECKPOINTABLE_OBJECT_GRAPH")
    data = sum(f.stat().st_size for f in (exported.path / "variables").glob("variables.data*"))
    assert 0 <= data - len(names) - 4 * sum(int(np.prod(w.shape)) for w in weights) < 16


@pytest.mark.parametrize("count", [1, 7, 1000])
def test_dynamic_batch(exported, trained, count):
    x = np.random.default_rng(count).normal(size=(count, 4)).astype("float32")
    got = signature(exported)(features=x)["logits"].numpy()
    np.testing.assert_allclose(got, trained(x, training=False), atol=1e-6)


@pytest.mark.slow
def test_saved_model_cli_shows_the_signature(exported):
    shown = subprocess.run(
        [sys.executable, "-m", "tensorflow.python.tools.saved_model_cli", "show", "--dir", str(exported), "--all"],
        capture_output=True,
        text=True,
        timeout=300,
    ).stdout
    assert "signature_def['serving_default']" in shown
    assert "inputs['features'] tensor_info" in shown
    assert "tensorflow/serving/predict" in shown


def test_versions(tmp_path, trained):
    base = tmp_path / "model"
    assert export.saved_model(trained, base).path == base / "1"
    assert export.saved_model(trained, base, version=7).path == base / "7"
    (base / "not-a-version").mkdir()
    assert export.saved_model(trained, base).path == base / "8"
    with pytest.raises(ValueError, match=r"expected a version that does not exist yet, got .*/model/7\. Leave"):
        export.saved_model(trained, base, version=7)
    assert sorted(p.name for p in base.iterdir()) == ["1", "7", "8", "not-a-version"]


def test_a_partial_model_is_never_visible(tmp_path, trained, monkeypatch):
    """While the export is being written and checked, a server that lists the directory finds no version."""
    seen = []
    real = export._saved_model.compare

    def spy(*args, **kwargs):
        seen.append((_staging.versions(tmp_path / "m"), [p.name for p in (tmp_path / "m").iterdir()]))
        return real(*args, **kwargs)

    monkeypatch.setattr(export._saved_model, "compare", spy)
    export.saved_model(trained, tmp_path / "m")
    assert seen[0][0] == []
    assert all(name.startswith(".writing-") for name in seen[0][1])
    assert [p.name for p in (tmp_path / "m").iterdir()] == ["1"]


class Noisy(keras.layers.Layer):
    """Not deterministic even in inference: the export cannot agree with it."""

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x))


def test_disagreement_fails_and_leaves_no_file(tmp_path):
    student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), Noisy()])
    with pytest.raises(ValueError, match=r"expected the export to agree with the student within .* in 'probabilities'"):
        export.saved_model(student, tmp_path / "new" / "model", from_logits=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_probability_heads_give_logits_back(tmp_path, features, activation):
    student = dense_student(3, activation)
    out = signature(export.saved_model(student, tmp_path, check_inputs=features, uncertainty=True))(features=features)
    probabilities = student(features, training=False).numpy().astype("float64")
    logits = out["logits"].numpy().astype("float64")
    np.testing.assert_allclose(out["probabilities"], probabilities, atol=1e-7)
    again = softmax(logits, axis=-1) if activation == "softmax" else expit(logits)
    np.testing.assert_allclose(again, probabilities, atol=1e-6)
    if activation == "softmax":
        np.testing.assert_array_equal(out["classes"], probabilities.argmax(-1))
    else:
        np.testing.assert_array_equal(out["classes"], probabilities > 0.5)
        p = probabilities
        np.testing.assert_allclose(out["entropy"], -p * np.log(p) - (1 - p) * np.log(1 - p), atol=1e-6)


def test_saturated_probabilities_stay_finite(tmp_path):
    for activation, units in (("softmax", 2), ("sigmoid", 1)):
        student = keras.Sequential(
            [
                keras.Input((1,), name="x"),
                keras.layers.Dense(units, activation, kernel_initializer=keras.initializers.Constant(1.0)),
            ]
        )
        if units == 2:
            student.layers[-1].set_weights([np.array([[1.0, -1.0]], "float32"), np.zeros(2, "float32")])
        x = np.array([[-300.0], [0.0], [300.0]], "float32")
        out = signature(export.saved_model(student, tmp_path / activation, check_inputs=x, uncertainty=True))(x=x)
        assert np.isfinite(out["logits"]).all() and np.isfinite(out["entropy"]).all()
        np.testing.assert_allclose(out["entropy"].numpy()[[0, 2]], 0, atol=1e-6)
        np.testing.assert_allclose(out["entropy"].numpy()[1], np.log(2), rtol=1e-6)


def test_one_logit_head(tmp_path, features):
    student = dense_student(1)
    exported = export.saved_model(
        student, tmp_path, check_inputs=features, labels=["no", "yes"], uncertainty=True, temperature=0.5
    )
    out = signature(exported)(features=features)
    logits = student(features, training=False).numpy().astype("float64")
    p = expit(logits / 0.5)
    np.testing.assert_allclose(out["probabilities"], p, atol=1e-6)
    np.testing.assert_array_equal(out["classes"], (logits > 0)[:, 0])
    np.testing.assert_allclose(out["scores"], np.sort(np.concatenate([p, 1 - p], -1))[:, ::-1], atol=1e-6)
    best = [row[0].decode() for row in out["labels"].numpy()]
    assert best == ["yes" if z > 0 else "no" for z in logits[:, 0]]
    assert out["confidence"].shape == (37,)
    binary_entropy = (-p * log_softmax(np.concatenate([logits, 0 * logits], -1) / 0.5, axis=-1)[:, :1])[:, 0]
    binary_entropy -= ((1 - p) * log_softmax(np.concatenate([0 * logits, logits], -1) / 0.5, axis=-1)[:, :1])[:, 0]
    np.testing.assert_allclose(out["entropy"], binary_entropy, atol=1e-6)


@keras.saving.register_keras_serializable("tests")
class Doubling(keras.layers.Layer):
    def call(self, x):
        return 2 * x


class Subclassed(keras.Model):
    def __init__(self, activation=None):
        super().__init__()
        self.hidden = keras.layers.Dense(5, "relu")
        self.custom = Doubling()
        self.head = keras.layers.Dense(3, activation)

    def call(self, x, training=False):
        return self.head(self.custom(self.hidden(x)))


def test_subclassed_student_with_a_custom_layer(tmp_path, features):
    student = Subclassed()
    with pytest.raises(ValueError, match="expected a built student"):
        export.saved_model(student, tmp_path / "m")
    student(features)
    with pytest.raises(ValueError, match="Pass check_inputs=<a batch of real inputs>"):
        export.saved_model(student, tmp_path / "m")
    exported = export.saved_model(student, tmp_path / "m", check_inputs=features)
    np.testing.assert_allclose(signature(exported)(inputs=features)["logits"], student(features), atol=1e-6)


def test_from_logits_is_required_if_the_last_activation_is_unknown(tmp_path, features):
    student = Subclassed("softmax")
    student(features)
    with pytest.raises(ValueError, match="expected from_logits to be given for a model whose last activation is"):
        export.saved_model(student, tmp_path / "m", check_inputs=features)
    exported = export.saved_model(student, tmp_path / "m", check_inputs=features, from_logits=False)
    np.testing.assert_allclose(signature(exported)(inputs=features)["probabilities"], student(features), atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision_is_served_in_float32(tmp_path, features, policy):
    hidden = keras.layers.Dense(8, "relu", dtype=policy)
    student = keras.Sequential([keras.Input((4,), name="features"), hidden, keras.layers.Dense(3, dtype=policy)])
    exported = export.saved_model(student, tmp_path, check_inputs=features)
    assert exported.tolerance == 1e-2
    serve = signature(exported)
    assert serve.structured_input_signature[1]["features"].dtype == tf.float32
    out = serve(features=features)
    assert out["logits"].dtype == out["probabilities"].dtype == tf.float32
    np.testing.assert_allclose(out["logits"], tf.cast(student(features), tf.float32), rtol=1e-2, atol=1e-2)
    np.testing.assert_allclose(out["probabilities"].numpy().sum(-1), 1, atol=1e-6)  # softmax itself is in float32


def test_masked_classes_are_allowed(tmp_path, features):
    mask = keras.ops.convert_to_tensor(np.array([0.0, -np.inf, 0.0], "float32"))

    class Masked(keras.layers.Layer):
        def call(self, x):
            return x + mask

    student = keras.Sequential([keras.Input((4,), name="features"), keras.layers.Dense(3), Masked()])
    out = signature(export.saved_model(student, tmp_path, check_inputs=features, uncertainty=True))(features=features)
    assert (out["probabilities"].numpy()[:, 1] == 0).all()
    assert np.isfinite(out["entropy"]).all()


def test_head_math_against_float64():
    logits = np.array([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [3.0, 1.0, 2.0]])
    head = Head("", "classification", True, True, temperature=1.5, uncertainty=True)
    out = head.outputs(tf.constant(logits, tf.float32))
    expected = softmax(logits / 1.5, axis=-1)
    np.testing.assert_allclose(out["probabilities"], expected, atol=1e-7)
    np.testing.assert_allclose(head.expected(logits)["probabilities"], expected, atol=1e-12)
    np.testing.assert_allclose(out["entropy"], [0, np.log(3), head.expected(logits)["entropy"][2]], atol=1e-6)


@pytest.mark.parametrize("wrapped", [True, False])
def test_temperature_scaler_wrapped_or_given(tmp_path, trained, features, wrapped):
    scaler = calibration.TemperatureScaler().fit(trained(features, training=False).numpy(), np.arange(37) % 3)
    if wrapped:
        exported = export.saved_model(scaler.wrap(trained), tmp_path, check_inputs=features)
    else:
        exported = export.saved_model(trained, tmp_path, check_inputs=features, temperature=scaler)
    serve = signature(exported)
    (name,) = serve.structured_input_signature[1]
    out = serve(**{name: features})["probabilities"]
    logits = trained(features, training=False).numpy().astype("float64")
    np.testing.assert_allclose(out, softmax(logits / scaler.temperature, axis=-1), atol=1e-6)


BAD = [
    (dict(examples=np.zeros((2, 3))), "expected examples to be one of False, True, got array"),
    (dict(student="model"), "expected student to be a keras.Model, got str"),
    (dict(version=0), "expected version to be an integer >= 1, got 0"),
    (dict(version="1"), "expected version to be an integer >= 1, got 1"),
    (dict(from_logits="yes"), "expected from_logits to be True, False or None, got yes"),
    (dict(from_logits=False), r"expected probabilities from the student's output \(from_logits=False\)"),
    (dict(task="ranking"), "expected task to be one of 'classification', 'binary', 'regression', got ranking"),
    (dict(labels=["a", "b"]), "expected 3 labels, one per class, got 2"),
    (dict(labels=["a", "b", "a"]), "expected distinct labels"),
    (dict(labels="abc"), "expected labels to be a list of class names, got abc"),
    (dict(temperature=0.0), "expected temperature > 0, got 0.0"),
    (dict(temperature=float("nan")), "expected temperature > 0, got nan"),
    (dict(tolerance=-1), "expected tolerance >= 0, got -1.0"),
    (dict(check_inputs=np.zeros((0, 4))), r"expected check_inputs of shape \(None, 4\) for input 'features'"),
    (dict(check_inputs=np.zeros((3, 5))), r"expected check_inputs of shape \(None, 4\) .* got \(3, 5\)"),
    (dict(check_inputs=[["a"] * 4]), r"expected check_inputs of float32 for input 'features', got list \(could not"),
    (dict(check_inputs=np.full((3, 4), np.nan)), "expected finite values from the student's output"),
    (dict(check_inputs=np.zeros((3, 4)), check_labels=[0, 1]), r"expected check_labels of shape \(3,\), got \(2,\)"),
    (dict(warmup_batch_sizes=[0]), "expected warmup_batch_sizes to be an integer >= 1, got 0"),
    (dict(image=True), "expected image to be an ImageBytes, got True"),
    (dict(image=export.ImageBytes()), "expected a student that takes one image of known height and width"),
    (dict(text=True), "expected text to be the preprocessing layer of a student"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[m[:40] for _, m in BAD])
def test_bad_arguments(tmp_path, trained, change, message):
    arguments = {"student": trained, **change}
    with pytest.raises(ValueError, match=message):
        export.saved_model(arguments.pop("student"), tmp_path / "x" / "model", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_a_distiller_is_refused(tmp_path, trained):
    teacher = dense_student()
    distiller = keras.distillation.Distiller(
        teacher, trained, keras.distillation.LogitsDistillation(), student_loss_weight=0.5
    )
    with pytest.raises(ValueError, match=r"expected the student alone, got a Distiller. Pass distiller.student"):
        export.saved_model(distiller, tmp_path)


def test_unwritable_directory(tmp_path, trained):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ValueError, match=r"expected a writable output directory, got .*/file"):
        export.saved_model(trained, blocked / "model")
    assert blocked.read_text() == ""


def test_stated_logits_of_a_softmax_head(tmp_path):
    with pytest.raises(ValueError, match="expected from_logits=False for a head that ends in softmax, got True"):
        export.saved_model(dense_student(3, "softmax"), tmp_path, from_logits=True)


def test_unknown_output_name(tmp_path, trained):
    with pytest.raises(ValueError, match=r"expected task by output name \('outputs'\), got 'price'"):
        export.saved_model(trained, tmp_path, task={"price": "regression"})
