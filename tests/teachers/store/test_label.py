"""Stored = live: a store contains the teacher's predictions, for every kind of output, and training agrees."""

import json
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_distill
from keras_distill import teachers
from keras_distill.terms import FeatureDistillation, LogitsDistillation
from tests.models import replicas

rng = np.random.default_rng(3)
X = rng.normal(size=(50, 4)).astype("float32")
Y = rng.integers(0, 5, 50)


def model(classes=5, rate=None, seed=0):
    keras.utils.set_random_seed(seed)
    drop = [] if rate is None else [keras.layers.Dropout(rate)]
    return keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, "relu", name="hidden"), *drop, keras.layers.Dense(classes)]
    )


def data(x=X, y=Y, batch=8, **kwargs):
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(batch, **kwargs)


def label(teacher, dataset, path, **kwargs):
    return teachers.label(teacher, dataset, path, **{"progress": False, "examples_per_shard": 16, **kwargs})


def served(stored, dataset, taps=(), **kwargs):
    """All contents of the store, in the order of the dataset."""
    heard = []
    for element in stored.attach(dataset, **kwargs):
        x, carried = stored.split(element[0] if isinstance(element, tuple) else element)
        outputs, tapped = stored.listen(carried, taps)
        heard.append((x, outputs, tapped))
    return heard


def joined(parts):
    return np.concatenate([np.asarray(part) for part in parts])


def train(teacher, dataset, *terms, epochs=1, labels=True, eager=True):
    keras.utils.set_random_seed(7)
    student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, name="inner"), keras.layers.Dense(5)])
    terms = list(terms) or [LogitsDistillation(temperature=2.0)]
    distiller = keras_distill.Distiller(teacher, student, terms, student_loss_weight=0.5 if labels else 0.0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True) if labels else None
    distiller.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=eager)  # a few steps cost less than a trace
    history = distiller.fit(dataset, epochs=epochs, verbose=0)
    return history.history["loss"], student.get_weights(), distiller


def same(one, other):
    assert one[0] == other[0]
    for a, b in zip(one[1], other[1], strict=True):
        np.testing.assert_array_equal(a, b)


def test_float32_trains_bit_by_bit_like_the_live_teacher_at_another_batch_size(tmp_path):
    teacher = model()
    stored = label(teacher, data(), tmp_path, dtype="float32")
    assert (stored.num_examples, stored.num_views) == (50, 1)
    # Bit-equal logits need the same batch composition in the teacher's matrix products: label with the batch size.
    again = label(teacher, data(batch=10), tmp_path / "same", dtype="float32")
    live = train(teacher, data(batch=10), epochs=2, eager=False)
    same(train(again, again.attach(data(batch=10)), epochs=2, eager=False), live)
    smaller = train(stored, stored.attach(data(batch=10)), epochs=2, eager=False)
    np.testing.assert_allclose(smaller[0], live[0], rtol=1e-6)


@pytest.fixture(scope="module")
def live_losses():
    return train(model(), data())[0]


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("bfloat16", 8e-3), ("int8", 5e-3)])
def test_other_dtypes_are_within_their_rounding_error(tmp_path, dtype, tolerance, live_losses):
    teacher = model()
    stored = label(teacher, data(), tmp_path, dtype=dtype)
    exact = np.asarray(teacher(X))
    found = joined([outputs for _, outputs, _ in served(stored, data(batch=20))])
    assert np.abs(found - exact).max() < tolerance * np.ptp(exact)
    np.testing.assert_allclose(train(stored, stored.attach(data()))[0], live_losses, rtol=2e-2)


def test_shapes_of_datasets(tmp_path):
    teacher = model()
    exact = np.asarray(teacher(X))
    weights = np.ones(50, "float32")
    three = tf.data.Dataset.from_tensor_slices((X, Y, weights)).batch(8)
    alone = tf.data.Dataset.from_tensor_slices(X).batch(8)
    stored = label(teacher, three, tmp_path, dtype="float32")
    for dataset in (three, alone, data(), data(batch=50), data(batch=1), data(batch=16, drop_remainder=True)):
        found = joined([outputs for _, outputs, _ in served(stored, dataset)])
        np.testing.assert_allclose(found, exact[: len(found)], rtol=1e-5, atol=1e-6)
        assert len(found) == (48 if dataset.element_spec != three.element_spec and len(found) != 50 else 50)
    assert len(next(iter(stored.attach(three)))) == 3
    one_by_one = stored.attach(tf.data.Dataset.from_tensor_slices((X, Y))).shuffle(50, seed=1).batch(7)
    pairs = [(x, stored.listen(carried)[0]) for (x, carried) in (stored.split(e[0]) for e in one_by_one)]
    shuffled = joined([x for x, _ in pairs])
    assert not np.array_equal(shuffled, X)
    np.testing.assert_allclose(joined([out for _, out in pairs]), teacher(shuffled), rtol=1e-5, atol=1e-6)


def test_cardinality_is_kept(tmp_path):
    stored = label(model(), data(), tmp_path)
    assert int(stored.attach(data(batch=7)).cardinality()) == 8
    unknown = data().filter(lambda x, y: True)
    assert sum(1 for _ in stored.attach(unknown)) == 7


def test_dictionaries_sequences_and_features(tmp_path):
    ids = keras.Input((6,), dtype="int32", name="ids")
    scale = keras.Input((1,), name="scale")
    hidden = keras.layers.Embedding(11, 3, name="embed")(ids) * scale[:, :, None]
    teacher = keras.Model(
        {"ids": ids, "scale": scale},
        {"tokens": keras.layers.Dense(9)(hidden), "pooled": [keras.layers.GlobalMaxPooling1D()(hidden)]},
    )
    x = {"ids": rng.integers(0, 11, (20, 6)).astype("int32"), "scale": rng.normal(size=(20, 1)).astype("float32")}
    dataset = tf.data.Dataset.from_tensor_slices(x).batch(6)
    stored = label(teacher, dataset, tmp_path, dtype="float32", features=["embed"], top_k=4)
    exact = teacher(x)
    heard = served(stored, dataset, taps=["embed"])
    assert heard[0][1].keys() == exact.keys() and isinstance(heard[0][1]["pooled"], list)
    np.testing.assert_allclose(joined([o["pooled"][0] for _, o, _ in heard]), exact["pooled"][0], atol=1e-6)
    np.testing.assert_allclose(joined([t["embed"] for *_, t in heard]), teacher.get_layer("embed")(x["ids"]), atol=1e-6)
    tokens = joined([o["tokens"] for _, o, _ in heard])
    top = np.asarray(tf.math.top_k(exact["tokens"], 4).indices)
    np.testing.assert_array_equal(np.sort(tf.math.top_k(tokens, 4).indices), np.sort(top))
    with pytest.raises(teachers.StoredTeacherError, match=r"expected stored features, got other. Stored: embed"):
        stored.listen(stored.split(next(iter(stored.attach(dataset))))[1], ["other"])


def test_feature_terms_train_alike(tmp_path):
    teacher = model()

    def term():
        return FeatureDistillation(loss="mse", teacher_layer_name="hidden", student_layer_name="inner")

    stored = label(teacher, data(), tmp_path, dtype="float32", features=["hidden"])
    same(train(stored, stored.attach(data()), term()), train(teacher, data(), term()))


@pytest.mark.parametrize("combine", ["mean_probs", "mean_loss", "confidence", "gradient", "uncertainty"])
def test_members_are_stored_and_the_rule_with_them(tmp_path, combine):
    members = [model(seed=s) for s in range(3)]
    if combine == "uncertainty":
        members = [teachers.MonteCarloDropout(model(rate=0.0, seed=s), num_samples=2) for s in range(2)]
    live = teachers.Ensemble(members, combine=combine)
    stored = label(live, data(), tmp_path, dtype="float32")
    found, expected = train(stored, stored.attach(data(batch=25))), train(live, data(batch=25))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    heard = served(stored, data())[0][1]
    assert isinstance(heard, teachers.Members) and type(heard.combine) is type(live.combine)


def test_one_store_supports_every_combination_rule(tmp_path):
    members = [model(seed=s) for s in range(3)]
    label(teachers.Ensemble(members), data(), tmp_path, dtype="float32")
    for combine in ("mean_logits", "confidence", "learned_gate"):
        stored = teachers.Stored(tmp_path, combine=combine)
        found = train(stored, stored.attach(data(batch=17)))
        expected = train(teachers.Ensemble(members, combine=combine), data(batch=17))
        np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    chance = teachers.Stored(tmp_path, combine=teachers.Stochastic([0, 0, 1]))
    found = joined([outputs.resolve(1.0) for _, outputs, _ in served(chance, data())])
    np.testing.assert_allclose(found, members[2](X), rtol=1e-5, atol=1e-6)
    single = label(model(), data(), tmp_path / "single")
    with pytest.raises(teachers.StoredTeacherError, match=r"members for combine=..., got a store without members"):
        teachers.Stored(single.directory, combine="entropy")


def test_members_false_stores_their_combination(tmp_path):
    live = teachers.Ensemble([model(seed=s) for s in range(3)])
    stored = label(live, data(), tmp_path, dtype="float32", members=False)
    found = joined([outputs for _, outputs, _ in served(stored, data())])
    np.testing.assert_allclose(found, live(X), rtol=1e-5, atol=1e-6)
    assert stored.bytes_per_example < label(live, data(), tmp_path / "all", dtype="float32").bytes_per_example
    gate = teachers.Ensemble([model(), model()], combine="learned_gate")
    with pytest.raises(ValueError, match=r"expected a rule without training or randomness, got LearnedGate"):
        label(gate, data(), tmp_path / "gate")


def test_dropout_teachers_are_labelled_reproducibly(tmp_path):
    def teacher():
        return teachers.MonteCarloDropout(model(rate=0.5), num_samples=3, seed=4)

    one, other = label(teacher(), data(), tmp_path / "1"), teacher()
    other.listen(X)  # has been used before
    label(other, data(), tmp_path / "2")
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    spread = served(one, data())[0][1].standard_deviation()
    assert np.asarray(spread).max() > 0.01


def contents(path):
    return {file.name: file.read_bytes() for file in Path(path).iterdir()}


def test_shards_make_the_same_store_as_one_writer(tmp_path):
    teacher = model()
    label(teacher, data(), tmp_path / "whole")
    parts = [label(teacher, data(), tmp_path / "parts", shard=(i, 3)) for i in (2, 0, 1)]
    assert parts[0] is None and parts[1] is None and parts[2].num_examples == 50
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")
    label(teacher, data(), tmp_path / "parts", shard=(0, 3))  # idempotent
    assert contents(tmp_path / "whole") == contents(tmp_path / "parts")


def test_a_finished_store_is_left_alone_and_another_batch_size_is_no_obstacle(tmp_path):
    teacher = model()
    label(teacher, data(), tmp_path)
    before = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    label(teacher, data(batch=5), tmp_path)
    assert before == {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}


def test_the_same_teacher_in_another_process_has_the_same_fingerprint(tmp_path):
    from keras_distill.teachers.store._teacher_id import teacher_fingerprint

    teacher = model()
    teacher.save(tmp_path / "teacher.keras")
    keras.layers.Dense(1)  # advances the automatic names
    loaded = keras.saving.load_model(tmp_path / "teacher.keras")
    twin = model()
    assert teacher_fingerprint(teacher) == teacher_fingerprint(loaded) == teacher_fingerprint(twin)
    weights = twin.get_weights()
    weights[0][0, 0] += 1e-6
    twin.set_weights(weights)
    assert teacher_fingerprint(twin) != teacher_fingerprint(teacher)
    tanh = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "tanh", name="hidden"), keras.layers.Dense(5)])
    tanh.set_weights(teacher.get_weights())
    assert teacher_fingerprint(tanh) != teacher_fingerprint(teacher)


def test_a_store_of_something_else_is_refused_and_can_be_overwritten(tmp_path):
    teacher = model()
    label(teacher, data(), tmp_path)
    with pytest.raises(teachers.StoredTeacherError, match=r"to fit this label\(\), got one of another teacher"):
        label(model(seed=1), data(), tmp_path)
    with pytest.raises(teachers.StoredTeacherError, match=r"got dtype='float16' instead of 'float32'"):
        label(teacher, data(), tmp_path, dtype="float32")
    with pytest.raises(teachers.StoredTeacherError, match="example 0 to be the one that was labelled"):
        label(teacher, data(x=X + 1), tmp_path)
    stored = label(model(seed=1), data(), tmp_path, overwrite=True, top_k=2)
    assert stored.specs[0].top_k == 2 and teachers.verify(tmp_path) == []


def test_a_dataset_that_changes_its_order_between_two_runs_is_noticed(tmp_path):
    teacher = model()
    label(teacher, data(), tmp_path, shard=(0, 2))
    with pytest.raises(teachers.StoredTeacherError, match=r"examples of finished shard 2, got other examples"):
        label(teacher, data(x=np.concatenate([X[:40], X[40:][::-1]])), tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"top_k": 0}, "top_k to be an integer >= 1, got 0"),
        ({"dtype": "float64"}, "dtype to be one of 'float32', 'float16', 'bfloat16', 'int8', got float64"),
        ({"num_views": 2}, r"augment=... to make several views, got None"),
        ({"shard": (2, 2)}, r"shard\[0\] to be one of 0, 1, got 2"),
        ({"features": ["nothing"]}, "expected a layer of model"),
        ({"examples_per_shard": -1}, "examples_per_shard to be an integer >= 1, got -1"),
    ],
)
def test_mistakes_are_named(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        label(model(), data(), tmp_path, **change)


def test_unsuitable_datasets_and_outputs_are_named(tmp_path):
    for dataset, message in [
        (X, "expected a tf.data.Dataset of batches, got ndarray"),
        (data().repeat(), r"a finite dataset, got an endless one. Put .repeat\(\) after attach\(\)"),
        (data().take(0), "at least one batch of data, got an empty dataset"),
        (tf.data.Dataset.from_tensors(tf.ragged.constant([[1.0], [1.0, 2.0]])), "dense inputs, got RaggedTensor"),
    ]:
        with pytest.raises(ValueError, match=message):
            label(model(), dataset, tmp_path)
    large = model()
    large.set_weights([w * 1e4 for w in large.get_weights()])
    with pytest.raises(
        ValueError, match=r"output that float16 can hold, got NaN or a number beyond float16 for example"
    ):
        label(large, data(), tmp_path / "large")
    x = X.copy()
    x[37] = np.nan
    with pytest.raises(ValueError, match="for example 37"):
        label(model(), data(x=x), tmp_path / "nan")


def test_two_replicas_train_like_one(tmp_path):
    teacher = model()
    stored = label(teacher, data(), tmp_path, dtype="float32")
    one = train(stored, stored.attach(data(batch=10)), eager=False)
    strategy = replicas(2)
    with strategy.scope():
        two = train(stored, stored.attach(data(batch=10)), eager=False)
    for a, b in zip(one[1], two[1], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_distiller_with_a_stored_teacher_is_saved_without_the_store(tmp_path):
    stored = label(model(), data(), tmp_path / "store")
    _, _, distiller = train(stored, stored.attach(data()))
    np.testing.assert_array_equal(distiller.predict(X, verbose=0), distiller.student.predict(X, verbose=0))
    distiller.save(tmp_path / "d.keras")
    (tmp_path / "store").rename(tmp_path / "elsewhere")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    np.testing.assert_allclose(loaded.predict(X, verbose=0), distiller.predict(X, verbose=0), rtol=1e-6)
    assert json.loads((tmp_path / "elsewhere" / "manifest.json").read_text())["complete"] is True


# ---------------------------------------------------------------------------------------------- augmented views


def augment(x, seed):
    noise = tf.random.stateless_normal(x.shape, seed)
    return x[::-1] + noise if seed is not None else x


def test_views_are_repeated_exactly_at_any_batch_size(tmp_path):
    teacher = model()
    stored = label(teacher, data(), tmp_path, dtype="float32", num_views=3, augment=augment, seed=5)
    assert (stored.num_examples, stored.num_views) == (50, 3)
    for dataset in (data(), data(batch=11), data(batch=50).filter(lambda x, y: True)):
        heard = served(stored, dataset, augment=augment)
        x, outputs = joined([x for x, *_ in heard]), joined([out for _, out, _ in heard])
        assert x.shape == (150, 4)
        np.testing.assert_allclose(outputs, teacher(x), rtol=1e-5, atol=1e-6)
        assert np.abs(x[:50] - x[50:100]).max() > 0.1
    second = served(stored, data(batch=9), augment=augment, view=1)
    np.testing.assert_array_equal(joined([each[0] for each in second]), x[50:100])
    single = stored.attach(tf.data.Dataset.from_tensor_slices((X, Y)), augment=augment, view=2)
    np.testing.assert_array_equal(np.stack([each[0]["inputs"] for each in single]), x[100:])


def test_another_augmentation_is_refused(tmp_path):
    stored = label(model(), data(), tmp_path, num_views=2, augment=augment)
    with pytest.raises(teachers.StoredTeacherError, match=r"the augment function that label\(\) was given, got None"):
        stored.attach(data())
    with pytest.raises(teachers.StoredTeacherError, match="example 0 to be the one that was labelled"):
        stored.attach(data(), augment=lambda x, seed: augment(x, seed) * 1.001)
    with pytest.raises(teachers.StoredTeacherError, match="a view from 0 to 1, got 2"):
        stored.attach(data(), augment=augment, view=2)
    plain = label(model(), data(), tmp_path / "plain")
    with pytest.raises(teachers.StoredTeacherError, match="augment=None, as for label, got one"):
        plain.attach(data(), augment=augment)


def test_a_teacher_with_constant_predictions_is_detected(tmp_path):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3, kernel_initializer="zeros")])
    x = np.eye(2, dtype="float32")
    with pytest.warns(UserWarning, match="answers that depend on the example, got the same for all 2 of the first"):
        teachers.label(model, tf.data.Dataset.from_tensor_slices(x).batch(2), tmp_path / "a", progress=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one example is not enough to detect a constant teacher
        teachers.label(model, tf.data.Dataset.from_tensor_slices(x[[0, 0]]).batch(2), tmp_path / "b", progress=False)
