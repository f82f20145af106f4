"""Terms over many stages: knowledge review and cross-layer attention, recorded values and training."""

import json
import pathlib

import keras
import numpy as np
import pytest

from keras_distill import Distiller
from keras_distill.terms import CrossLayerAttention, ReviewDistillation
from tests.models import batches

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def network(filters, seed, strides=(1, 2)):
    init = keras.initializers.HeNormal(seed=seed)
    layers = [keras.Input((8, 8, 2))]
    for index, (width, stride) in enumerate(zip(filters, strides, strict=True)):
        layers.append(
            keras.layers.Conv2D(
                width, 3, stride, "same", activation="relu", kernel_initializer=init, name=f"stage_{index}"
            )
        )
    return keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)])


def images(n=16):
    return np.random.default_rng(0).normal(size=(n, 8, 8, 2)).astype("float32")


def distilled(teacher, student, term):
    student.layers[-1].trainable = False  # only stages are compared: the head is not trained
    distiller = Distiller(teacher, student, term, student_loss_weight=0.0)
    distiller.compile(keras.optimizers.Adam(0.01))
    return distiller


TERMS = {
    "review": lambda: ReviewDistillation(["stage_0", "stage_1"], ["stage_0", "stage_1"]),
    "attention": lambda: CrossLayerAttention(["stage_0", "stage_1", "stage_2"], ["stage_0", "stage_1"], units=8),
}


@pytest.mark.parametrize("name", TERMS)
def test_it_learns_and_comes_back_from_a_file(name, tmp_path):
    x = images()
    teacher, student = network((6, 8, 5), 1, (1, 2, 2)), network((3, 4), 2)
    distiller = distilled(teacher, student, TERMS[name]())
    history = distiller.fit(batches(x, size=16), epochs=25, verbose=0).history["distillation_loss"]
    assert history[-1] < 0.6 * history[0]
    distiller.save(tmp_path / "d.keras")
    loaded = keras.saving.load_model(tmp_path / "d.keras")
    expected, got = (d.evaluate(x, batch_size=16, verbose=0, return_dict=True)["loss"] for d in (distiller, loaded))
    assert got == pytest.approx(expected, rel=1e-5)
    assert student.count_params() == network((3, 4), 2).count_params()


def test_review_equals_the_recorded_fusion_and_loss():
    arrays, manifest = np.load(GOLDEN / "features.npz"), json.loads((GOLDEN / "features.json").read_text())
    case = manifest["reviewkd_abf/405"]
    inputs = {name: arrays[key] for name, key in case["inputs"].items()}
    term = ReviewDistillation(["t0", "t1"], ["s0", "s1"], hidden_filters=6)
    deep = np.zeros((3, 2, 2, 4), "float32")  # its fusion is bypassed below: only the shallow stage was recorded
    pairs = ([inputs["teacher_nhwc"].shape, (3, 2, 2, 4)], [inputs["student_nhwc"].shape, deep.shape])
    term.build_from_config(dict(zip(("teacher_shapes", "student_shapes"), pairs, strict=True)))
    fusion = term.fusions[1]
    fusion.reduce.set_weights([inputs["conv1_0_weight_hwio"]])
    fusion.expand.set_weights([inputs["conv2_0_weight_hwio"]])
    fusion.gates.set_weights([inputs["att_conv_0_weight_hwio"], inputs["att_conv_0_bias"]])
    for norm, key in ((fusion.reduce_norm, "conv1_1"), (fusion.expand_norm, "conv2_1")):
        norm.set_weights([inputs[f"{key}_weight"], inputs[f"{key}_bias"], *norm.get_weights()[2:]])
    first = term.fusions[0]
    first.call = lambda stage, training=None: (deep, inputs["student_residual_nhwc"])
    values = term.values([inputs["teacher_nhwc"], deep], [inputs["student_nhwc"], deep], training=True)
    np.testing.assert_allclose(np.mean(values), arrays[case["outputs"]["loss"]], rtol=1e-5)


def test_attention_finds_the_layer_that_teaches():
    # One teacher layer can be matched exactly by an adapter (it is silent), the other is loud noise.
    x = images(64)
    inputs = keras.Input((8, 8, 2))
    silent = keras.layers.Conv2D(2, 1, kernel_initializer="zeros", name="silent")(inputs)
    loud = keras.initializers.VarianceScaling(20.0, seed=1)
    noise = keras.layers.Conv2D(4, 3, padding="same", kernel_initializer=loud, name="noise")(inputs)
    pooled = [keras.layers.GlobalAveragePooling2D()(each) for each in (silent, noise)]
    teacher = keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Concatenate()(pooled)))
    term = CrossLayerAttention(["noise", "silent"], ["stage_1"], units=8)
    distiller = distilled(teacher, network((3, 4), 2), term)
    distiller.fit(batches(x, size=16), epochs=15, verbose=0)
    np.testing.assert_allclose(term.attention.sum(axis=1), 1.0, rtol=1e-5)
    assert term.attention[0, 1] > 0.65  # 0.88 is the most that two vectors of length 1 can give


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReviewDistillation([], []), "a list of layer names"),
        (lambda: ReviewDistillation(["a"], ["b", "c"]), "as many teacher layers as student layers, got 1 and 2"),
        (lambda: CrossLayerAttention("a", ["b"]), "a list of layer names, got a"),
        (lambda: CrossLayerAttention(["a"], ["b"], units=0), "units to be an integer >= 1, got 0"),
        (
            lambda: Distiller(network((3, 4), 1), network((3, 4), 2), CrossLayerAttention(["stage_9"], ["stage_0"])),
            r"CrossLayerAttention \(teacher\): expected a layer of model .*, got 'stage_9'",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_stage_of_rank_2_is_refused():
    term = ReviewDistillation(["stage_1"], ["stage_1"])
    message = r"layers of shape \(batch, height, width, channels\), all known, got \(None, 3\)"
    with pytest.raises(ValueError, match=message):
        term.build_from([keras.KerasTensor((None, 3))], [keras.KerasTensor((None, 8, 8, 3))])
