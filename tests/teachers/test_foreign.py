"""Teachers from other runtimes agree with their own runtime, live and labelled; bad files are refused."""

import json
import pathlib
import time
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, LogitsDistillation, teachers
from keras_distill.teachers.foreign import _teacher
from tests.models import batch, mlp, softmax

DATA = pathlib.Path(__file__).parents[3] / "shared" / "data"


def table_model():
    """A small model with two named outputs."""
    x = keras.Input((6,), name="rows")
    hidden = keras.layers.Dense(5, activation="relu", name="embedding")(x)
    return keras.Model(x, {"embedding": hidden, "scores": keras.layers.Dense(4, name="scores")(hidden)})


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """One Keras model, and the same as SavedModel, ONNX and LiteRT."""
    keras.utils.set_random_seed(7)
    model, path = table_model(), tmp_path_factory.mktemp("foreign")
    model.export(str(path / "saved"), verbose=False)
    pytest.importorskip("tf2onnx")
    for kind in ("onnx", "litert"):
        ending = {"onnx": "onnx", "litert": "tflite"}[kind]
        model.export(str(path / f"model.{ending}"), format=kind, verbose=False)
    return model, path


@pytest.mark.parametrize("kind", ["saved_model", "onnx", "litert"])
def test_a_file_agrees_with_its_model_live_labelled_and_as_a_tap(saved, kind, tmp_path):
    model, path = saved
    file = path / {"saved_model": "saved", "onnx": "model.onnx", "litert": "model.tflite"}[kind]
    teacher = getattr(teachers, f"from_{kind}")(file)
    names = sorted(teacher.output_ports, key=lambda name: teacher.output_ports[name].shape[-1])
    scores, embedding = names  # 4 and 5 wide; LiteRT and ONNX may rename them
    teacher = getattr(teachers, f"from_{kind}")(file, outputs=scores)
    x = np.random.default_rng(0).normal(size=(7, 6)).astype("float32")
    expected = model.predict(x, verbose=0)
    np.testing.assert_allclose(teacher(x), expected["scores"], atol=1e-5)
    traced = tf.function(lambda x: teacher.listen(x, [embedding]))(x)
    np.testing.assert_allclose(traced[0], expected["scores"], atol=1e-5)
    np.testing.assert_allclose(traced[1][embedding], expected["embedding"], atol=1e-5)
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(3)
    stored = teachers.label(teacher, dataset, tmp_path, dtype="float32", features=[embedding], progress=False)
    got = np.concatenate([stored(each) for each in stored.attach(dataset)])
    np.testing.assert_allclose(got, expected["scores"], atol=1e-5)
    assert json.loads((tmp_path / "manifest.json").read_text())["teacher_file"] == teacher.fingerprint


def test_the_same_bytes_elsewhere_are_the_same_teacher_and_others_are_not(saved, tmp_path):
    path = saved[1]
    copy = tmp_path / "copy.onnx"
    copy.write_bytes((path / "model.onnx").read_bytes())
    first, second = teachers.from_onnx(path / "model.onnx"), teachers.from_onnx(copy)
    assert first.identity == second.identity
    assert first.identity != teachers.from_onnx(copy, activation="softmax").identity
    with pytest.raises(ValueError, match=r"from_onnx: expected the SHA-256 000000000000... of .*copy.onnx"):
        teachers.from_onnx(copy, sha256="0" * 64)


def test_a_live_foreign_teacher_trains_a_student_as_the_same_keras_teacher_does():
    x = batch(64)[0]
    keras_teacher = mlp(8, 4, seed=3)
    probabilities = keras.Sequential([keras_teacher, keras.layers.Softmax()])
    foreign = teachers.from_callable(
        lambda rows: probabilities.predict_on_batch(rows), activation="softmax", batch_size=5, num_threads=2
    )
    results = []
    for teacher in (keras_teacher, foreign):
        distiller = Distiller(teacher, mlp(4, seed=9), LogitsDistillation(2.0), student_loss_weight=0.0)
        distiller.compile(keras.optimizers.SGD(0.1), jit_compile="auto")
        distiller.fit(x, epochs=2, batch_size=16, shuffle=False, verbose=0)
        results.append(distiller.student.get_weights())
    assert not distiller.jit_compile
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_xla_is_refused_with_the_advice_to_label_first():
    teacher = teachers.from_callable(lambda x: x[:, :4])
    distiller = Distiller(teacher, mlp(4), LogitsDistillation(), student_loss_weight=0.0)
    with pytest.raises(ValueError, match=r"jit_compile='auto' or False .* teachers\.label"):
        distiller.compile("sgd", jit_compile=True)
    with pytest.raises(tf.errors.OpError) as found:
        tf.function(lambda x: teacher(x), jit_compile=True)(np.zeros((2, 6), "float32"))
    assert "outside XLA" in str(teacher.translate(found.value))


def test_a_function_that_may_wait_for_the_only_thread_of_tensorflow_is_warned_of(monkeypatch):
    monkeypatch.setattr(_teacher, "_PATIENCE", 0.05)
    teacher = teachers.from_callable(lambda x: (time.sleep(0.2), x[:, :2])[1])
    x = np.arange(8.0, dtype="float32").reshape(2, 4)
    call = tf.function(lambda x: teacher(x))
    monkeypatch.setattr(_teacher, "_inter_op_threads", lambda: 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(call(x), x[:, :2])
    monkeypatch.setattr(_teacher, "_inter_op_threads", lambda: 1)
    with pytest.warns(UserWarning, match="set_inter_op_parallelism_threads"):
        np.testing.assert_array_equal(call(x), x[:, :2])


def test_undone_activations_give_the_logarithms_and_log_odds():
    p = np.array([[0.1, 0.9], [0.0, 1.0]], "float32")
    log_p = teachers.from_callable(lambda x: p, activation="softmax")(np.zeros((2, 1), "float32"))
    np.testing.assert_allclose(softmax(log_p), p, atol=1e-7)
    odds = teachers.from_callable(lambda x: p, activation="sigmoid")(np.zeros((2, 1), "float32"))
    np.testing.assert_allclose(odds[0], np.log([0.1 / 0.9, 0.9 / 0.1]), rtol=1e-5)
    assert np.isfinite(log_p).all() and np.isfinite(odds).all()


def test_preprocessing_and_named_inputs_reach_the_function():
    teacher = teachers.from_callable(
        lambda feeds: {"sum": feeds["a"] + feeds["b"], "difference": feeds["a"] - feeds["b"]},
        preprocess=lambda x: {"a": 2.0 * x["left"], "b": x["right"]},
        outputs={"ours": "difference"},
    )
    x = {"left": np.full((3, 2), 5.0, "float32"), "right": np.ones((3, 2), "float32"), "unused": np.zeros((3, 9))}
    assert teacher(x)["ours"].numpy().tolist() == [[9.0, 9.0]] * 3


def test_sklearn_and_lightgbm_answers_come_back_exactly():
    lightgbm = pytest.importorskip("lightgbm")
    from sklearn.linear_model import LogisticRegression

    x, y = batch(80)
    for model in (LogisticRegression(), lightgbm.LGBMClassifier(n_estimators=5, verbose=-1, n_jobs=1)):
        model.fit(x, y)
        teacher = teachers.from_callable(model.predict_proba, activation="softmax")
        np.testing.assert_allclose(np.exp(teacher(x)), model.predict_proba(x), rtol=2e-6)
        again = teachers.from_callable(model.predict_proba, activation="softmax")
        assert again.identity == teacher.identity
        model.fit(x[:50], y[:50])
        assert teachers.from_callable(model.predict_proba, activation="softmax").identity != teacher.identity


def test_a_saved_distiller_comes_back_with_its_foreign_teacher(saved, tmp_path):
    path = saved[1]
    teacher = teachers.from_onnx(path / "model.onnx")
    config = keras.saving.serialize_keras_object(teacher)
    again = keras.saving.deserialize_keras_object(config)
    x = np.ones((2, 6), "float32")
    for one, other in zip(*(keras.tree.flatten(each(x)) for each in (teacher, again)), strict=True):
        np.testing.assert_array_equal(one, other)


@keras.saving.register_keras_serializable(package="tests")
def wrong_rows(x):
    return x[:1]


BAD = [
    (lambda p: teachers.from_callable(3), "from_callable: expected a function of arrays, got int"),
    (lambda p: teachers.from_callable(len, batch_size=0), "expected batch_size to be an integer >= 1, got 0"),
    (lambda p: teachers.from_callable(len, activation="relu"), "expected activation to be one of None, 'softmax'"),
    (lambda p: teachers.from_onnx(p / "none.onnx"), "from_onnx: expected a .onnx file, got nothing at .*none.onnx"),
    (lambda p: teachers.from_onnx(p / "x.tflite"), "expected a path that ends in .onnx"),
    (
        lambda p: teachers.from_litert(p / "broken.tflite"),
        "expected a model that litert can load, got .*broken",
    ),
    (lambda p: teachers.from_onnx(p / "broken.onnx"), "from_onnx: expected a readable .onnx file, got .*broken.onnx"),
    (lambda p: teachers.from_litert(p / "empty.tflite"), "expected 1 to .* bytes in .*empty.tflite, got 0"),
    (lambda p: teachers.from_litert(p / "broken.tflite", max_bytes=5), "expected 1 to 5 bytes in .*, got 9"),
    (
        lambda p: teachers.from_saved_model(p),
        "expected a SavedModel directory, got no saved_model.pb",
    ),
    (lambda p: teachers.from_callable(wrong_rows)(np.zeros((3, 2), "float32")), r"one row per example \(2\) in output"),
]


@pytest.mark.parametrize(("make", "text"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input_raises_a_clear_error(make, text, tmp_path):
    for name in ("broken.tflite", "broken.onnx"):
        (tmp_path / name).write_bytes(b"not a one")
    (tmp_path / "empty.tflite").touch()
    (tmp_path / "x.tflite").touch()
    with pytest.raises(ValueError, match=text):
        make(tmp_path)


def test_outputs_inputs_and_signatures_that_do_not_fit_are_named(saved):
    path = saved[1]
    with pytest.raises(ValueError, match=r"expected the name of an output, got 'score'.*nearest"):
        teachers.from_saved_model(path / "saved", outputs="score")
    with pytest.raises(ValueError, match=r"expected a signature of .*got 'other'"):
        teachers.from_saved_model(path / "saved", signature="other")
    with pytest.raises(ValueError, match=r"expected shape \('batch', 6\) for input .*preprocess"):
        teachers.from_saved_model(path / "saved")(np.zeros((2, 5), "float32"))


def test_models_that_access_files_outside_their_directory_are_refused(tmp_path):
    module = tf.Module()
    module.read = tf.function(lambda name: tf.io.read_file(name), input_signature=[tf.TensorSpec((), tf.string)])
    tf.saved_model.save(module, str(tmp_path / "reads"), signatures=module.read)
    with pytest.raises(ValueError, match=r"reads and runs nothing outside of itself, got ReadFile in .*reads"):
        teachers.from_saved_model(tmp_path / "reads")
    (tmp_path / "reads" / "variables" / "link").symlink_to("/etc/hostname")
    with pytest.raises(ValueError, match=r"expected files inside .*link, which leads to"):
        teachers.from_saved_model(tmp_path / "reads")
    onnx = pytest.importorskip("onnx")
    weight = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1], [0.0])
    weight.ClearField("float_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../secret")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    node = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([node], "g", [value], [out], [weight])
    (tmp_path / "outside.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(ValueError, match=r"expected external data beside .*got '../../secret'"):
        teachers.from_onnx(tmp_path / "outside.onnx")


@pytest.mark.skipif(not (DATA / "models_tflite_onnx").exists(), reason="needs ../shared/data/models_tflite_onnx")
def test_a_segmenter_with_a_fixed_batch_of_one_is_called_per_image():
    teacher = teachers.from_litert(
        DATA / "models_tflite_onnx/selfie_segmentation.tflite",
        preprocess=lambda x: tf.image.resize(x, (256, 256)),
        activation="sigmoid",
        num_threads=2,
    )
    x = np.random.default_rng(0).uniform(size=(3, 64, 64, 3)).astype("float32")
    together = teacher(x).numpy()
    alone = np.concatenate([teacher(each[None]).numpy() for each in x])
    assert together.shape == (3, 256, 256, 1)
    np.testing.assert_array_equal(together, alone)
    assert np.abs(together[0] - together[1]).max() > 0.01


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "model_centernet_coco").exists(), reason="needs ../shared/data/model_centernet_coco")
def test_a_pretrained_detector_teaches_through_the_store(tmp_path, monkeypatch):
    """The CenterNet of the data folder takes one image at a time; its heatmap and sizes are stored for two."""
    monkeypatch.syspath_prepend(str(DATA / "model_centernet_coco"))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    import tfjs2tf

    graph, names = tfjs2tf.concrete(str(DATA / "model_centernet_coco" / "centernet.json"))
    short = [name.split("/")[-1] for name in names]

    def answer(x):
        return dict(zip(short, (each.numpy() for each in graph(tf.convert_to_tensor(x))), strict=True))

    teacher = teachers.from_callable(
        answer,
        preprocess=lambda x: tf.image.resize(x, (512, 512)) * 255.0,
        outputs={"heat": "keypoints", "size": "wh"},
        activation={"keypoints": "sigmoid"},
        batch_size=1,
    )
    x = np.random.default_rng(0).uniform(size=(2, 64, 64, 3)).astype("float32")
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(2)
    stored = teachers.label(teacher, dataset, tmp_path, dtype="float32", progress=False)
    got = stored(next(iter(stored.attach(dataset))))
    direct = answer(tf.image.resize(x[1:], (512, 512)) * 255.0)
    np.testing.assert_allclose(got["size"][1], direct["wh"][0], atol=1e-4)
    np.testing.assert_allclose(tf.sigmoid(got["heat"][1]), np.clip(direct["keypoints"][0], 1e-38, 1), atol=1e-5)
    assert got["heat"].shape == (2, 128, 128, 80)


@pytest.mark.parametrize("kind", ["function", "saved_model"])
def test_tensorflow_of_a_fixed_batch_size_is_called_with_it(kind, tmp_path):
    kernel = tf.constant(np.random.default_rng(0).normal(size=(3, 2)), tf.float32)

    @tf.function(input_signature=[tf.TensorSpec((2, 3), tf.float32)])
    def two(x):
        return {"logits": tf.linalg.matmul(x, kernel)}

    if kind == "function":
        teacher = teachers.from_callable(two, batch_size=2)
    else:
        module = tf.Module()
        module.two = two
        tf.saved_model.save(module, str(tmp_path / "fixed"), signatures=two)
        teacher = teachers.from_saved_model(tmp_path / "fixed")
    x = np.random.default_rng(1).normal(size=(5, 3)).astype("float32")
    for rows in (5, 4, 2, 1, 0):
        np.testing.assert_allclose(np.asarray(teacher(x[:rows])), x[:rows] @ kernel.numpy(), rtol=1e-5)
    student = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    distiller = Distiller(teacher, student, LogitsDistillation(1.0), student_loss_weight=0.0)
    values = []
    for jit in (False, True):
        distiller.compile(keras.optimizers.SGD(0.0), jit_compile=jit)
        values.append(distiller.evaluate(x, batch_size=3, verbose=0, return_dict=True)["distillation_loss"])
    theirs, ours = tf.nn.log_softmax(x @ kernel), tf.nn.log_softmax(student(x))
    assert values == pytest.approx([float(np.mean(np.sum(np.exp(theirs) * (theirs - ours), -1)))] * 2, rel=1e-5)


def test_a_tap_of_an_output_whose_activation_is_undone_is_the_output(tmp_path):
    """A heatmap of probabilities taught a detector nothing: the term of its tap expects logits."""
    teacher = teachers.from_callable(
        lambda x: {"heat": 1 / (1 + np.exp(-x)), "size": 2 * x}, activation={"heat": "sigmoid"}, num_threads=1
    )
    x = np.linspace(-4, 4, 12, dtype="float32").reshape(4, 3)
    _, live = teacher.listen(tf.constant(x), ["heat", "size"])
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(2)
    stored = teachers.label(teacher, dataset, tmp_path, dtype="float32", features=["heat", "size"], progress=False)
    for index, rows in enumerate(stored.attach(dataset)):
        _, read = stored.listen(stored.split(rows)[1], ["heat", "size"])
        for name, factor in (("heat", 1), ("size", 2)):
            np.testing.assert_allclose(live[name], factor * x, rtol=1e-5)
            np.testing.assert_allclose(read[name], factor * x[2 * index : 2 * index + 2], rtol=1e-5)
