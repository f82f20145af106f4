"""Terms on intermediate layers: adapters that learn and are saved, stages, masks, different resolutions."""

import logging

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, FeatureDistillation, LogitsDistillation, adapters, losses
from keras_distill.terms import HierarchicalDistillation
from tests.models import batch, batches, mlp

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def conv(filters, size=8, seed=0, stride=1):
    init = keras.initializers.GlorotUniform(seed=seed)
    return keras.Sequential(
        [
            keras.Input((size, size, 2)),
            keras.layers.Conv2D(filters, 3, stride, "same", kernel_initializer=init, name="conv"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, kernel_initializer=init),
        ]
    )


def images(n=8):
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, 8, 8, 2)).astype("float32"), rng.integers(0, 3, n)


def distilled(teacher, student, terms, **arguments):
    distiller = Distiller(teacher, student, terms, student_loss_weight=0.0)
    distiller.compile(keras.optimizers.Adam(0.01), CROSS_ENTROPY, **arguments)
    return distiller


def test_an_automatic_adapter_fits_any_two_maps_and_reports_its_choice(caplog, monkeypatch):
    # Libraries that other tests import configure logging anew and so disable loggers that exist by then.
    monkeypatch.setattr(logging.getLogger("keras_distill.terms._features"), "disabled", False)
    x, y = images()
    term = FeatureDistillation("mse", "conv", "conv", adapter="auto", name="hint")
    teacher, student = conv(8, seed=1, stride=2), conv(3, seed=2)
    with caplog.at_level("INFO", "keras_distill"):
        distiller = distilled(teacher, student, term)
        history = distiller.fit(batches(x, y), epochs=60, verbose=0).history["distillation_loss"]
    assert (
        "hint: student (None, 8, 8, 3) to teacher (None, 4, 4, 8): AdaptiveAveragePool((4, 4)), Conv1x1(8)"
        in caplog.text
    )
    assert history[-1] < 0.5 * history[0]
    pooled = student.layers[0](x).numpy().reshape(8, 4, 2, 4, 2, 3).mean((2, 4))
    kernel, bias = term.adapter.get_weights()
    expected = np.mean(np.square(pooled @ kernel[0, 0] + bias - teacher.layers[0](x).numpy()))
    got = distiller.evaluate(x, y, verbose=0, return_dict=True)["distillation_loss"]
    np.testing.assert_allclose(got, expected, rtol=1e-4)


def test_the_teachers_map_is_pooled_to_a_smaller_student_map():
    x, y = images()
    teacher, student = conv(3, seed=1), conv(3, seed=2, stride=2)
    distiller = distilled(teacher, student, FeatureDistillation("mse", "conv", "conv", adapter="auto"))
    got = distiller.evaluate(x, y, verbose=0, return_dict=True)["distillation_loss"]
    pooled = teacher.layers[0](x).numpy().reshape(8, 4, 2, 4, 2, 3).mean((2, 4))
    np.testing.assert_allclose(got, np.mean(np.square(pooled - student.layers[0](x).numpy())), rtol=1e-5)


def test_adapters_are_saved_with_the_distiller_and_absent_from_the_student(tmp_path):
    x, y = batch()
    term = FeatureDistillation("mse", "dense_0", "dense_0", adapter="auto")
    distiller = distilled(mlp(8, 4), mlp(5, 4), term)
    distiller.fit(x, y, epochs=2, verbose=0, shuffle=False)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    np.testing.assert_array_equal(loaded.distillation_losses[0].adapter.get_weights()[0], term.adapter.get_weights()[0])
    expected, got = (d.fit(x, y, verbose=0, shuffle=False).history["loss"] for d in (distiller, loaded))
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    np.testing.assert_allclose(loaded.student.get_weights()[0], distiller.student.get_weights()[0], rtol=1e-6)
    assert distiller.student.count_params() == mlp(5, 4).count_params()


def test_hierarchical_is_the_weighted_sum_of_its_stages(tmp_path):
    x, y = batch()
    teacher, student = mlp(8, 7, 4, seed=1), mlp(8, 7, 4, seed=2)
    pairs = [("dense_0", "dense_0"), ("dense_1", "dense_1")]
    term = HierarchicalDistillation(pairs, "mae", weights=[1.0, 0.25])
    distiller = distilled(teacher, student, term)
    gaps = []
    t, s = x, x
    for index in range(2):
        t, s = teacher.layers[index](t).numpy(), student.layers[index](s).numpy()
        gaps.append(np.abs(t - s).mean())
    got = distiller.evaluate(x, y, verbose=0, return_dict=True)["distillation_loss"]
    np.testing.assert_allclose(got, gaps[0] + 0.25 * gaps[1], rtol=1e-5)
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    assert loaded.evaluate(x, y, verbose=0, return_dict=True)["distillation_loss"] == pytest.approx(got, rel=1e-6)


def test_hierarchical_adapters_learn_for_every_stage():
    x, y = batch(64)
    pairs = [("dense_0", "dense_0"), ("dense_1", "dense_1")]
    term = HierarchicalDistillation(pairs, losses.HintMatching(), adapter="auto")
    distiller = distilled(mlp(8, 7, 4, seed=1), mlp(5, 6, 4, seed=2), term)
    history = distiller.fit(batches(x, y), epochs=60, verbose=0).history["distillation_loss"]
    assert history[-1] < 0.5 * history[0]
    assert [stage.adapter.units for stage in term.stages] == [8, 7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": []}, "pairs of a teacher's and a student's layer name"),
        ({"pairs": ["conv"]}, "pairs of a teacher's and a student's layer name"),
        ({"pairs": [("a", "b")], "weights": [1.0, 2.0]}, "one of weights for each of the 1 pairs, got 2"),
        ({"pairs": [("a", "b")], "weights": [-1.0]}, "each of weights >= 0, got -1.0"),
        ({"pairs": [("a", "b"), ("c", "d")], "adapter": adapters.Dense(3)}, "a list of adapters, one per pair"),
    ],
)
def test_hierarchical_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        HierarchicalDistillation(**arguments)


def test_masked_positions_never_count_between_layers():
    tokens = np.array([[1, 2, 3, 0], [4, 0, 0, 0]])

    def tagger(seed):
        init = keras.initializers.RandomNormal(seed=seed)
        embedding = keras.layers.Embedding(5, 3, mask_zero=True, embeddings_initializer=init, name="embedding")
        return keras.Sequential([keras.Input((4,), dtype="int32"), embedding, keras.layers.Dense(3)])

    teacher, student = tagger(1), tagger(2)
    expected = np.square(teacher.layers[0](tokens).numpy() - student.layers[0](tokens).numpy())[tokens != 0].mean()
    for loss in ("mse", losses.HintMatching()):
        distiller = distilled(teacher, student, FeatureDistillation(loss, "embedding", "embedding"))
        got = distiller.evaluate(tokens, np.zeros((2, 4), int), verbose=0, return_dict=True)["distillation_loss"]
        np.testing.assert_allclose(got, expected, rtol=1e-5)


@pytest.mark.parametrize("mode", [{}, {"jit_compile": True}, {"run_eagerly": True}], ids=str)
def test_relation_losses_work_as_terms_in_every_mode(mode):
    x, y = batch(16)
    terms = [
        FeatureDistillation(losses.SimilarityPreserving(), "dense_0", "dense_0"),
        FeatureDistillation(losses.RelationalDistance(), "dense_0", "dense_0"),
        LogitsDistillation(2.0),
    ]
    distiller = distilled(mlp(8, 4, seed=1), mlp(5, 4, seed=2), terms, **mode)
    features = [tf.constant(model.layers[0](x)) for model in (distiller.teacher, distiller.student)]
    expected = sum(float(np.mean(term.loss(*features))) for term in terms[:2])
    both = distiller.evaluate(x, y, batch_size=16, verbose=0, return_dict=True)["distillation_loss"]
    distiller.distillation_loss_weights = [0.0, 0.0, 1.0]
    logits_only = distiller.evaluate(x, y, batch_size=16, verbose=0, return_dict=True)["distillation_loss"]
    np.testing.assert_allclose(both - logits_only, expected, rtol=1e-3, atol=1e-5)
