"""Attacked accuracy and calibration under shift equal an independent count; corruptions equal their formulas."""

import keras
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from keras_distill import data, metrics, regimes, report

RNG = np.random.default_rng(0)
IMAGES, LABELS = RNG.uniform(0, 1, (60, 8, 8, 1)).astype("float32"), RNG.integers(0, 3, 60)
ATTACK = regimes.ProjectedGradient(0.1, num_steps=3)


def network(seed):
    keras.utils.set_random_seed(seed)
    layers = [keras.layers.Conv2D(4, 3, activation="relu"), keras.layers.Flatten(), keras.layers.Dense(3)]
    model = keras.Sequential([keras.Input((8, 8, 1)), *layers], name=f"net_{seed}")
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(IMAGES, LABELS, epochs=5, verbose=0)
    return model


MODELS = {"one": network(0), "two": [network(1), network(2)]}


def test_corruptions_are_their_formulas():
    images = 3.0 * RNG.uniform(size=(4, 9, 7, 2)).astype("float32")
    for severity, deviation in ((1, 0.4), (5, 1.0)):
        expected = [gaussian_filter(each, (deviation, deviation, 0), mode="nearest") for each in images]
        np.testing.assert_allclose(data.corrupt(images, "blur", severity), expected, atol=1e-5)
    middle = images.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(data.corrupt(images, "contrast", 4), middle + 0.3 * (images - middle), atol=1e-5)
    grey = np.full((50, 20, 20), 1.0, "float32")
    noisy = data.corrupt(grey, "noise", 3, low=0.0, high=2.0)
    assert noisy.std() == pytest.approx(0.08 * 2, rel=0.02) and noisy.mean() == pytest.approx(1.0, abs=0.005)
    np.testing.assert_array_equal(noisy, data.corrupt(grey, "noise", 3, low=0.0, high=2.0))
    assert data.corrupt(images, "noise", 5).max() <= images.max()


def test_the_report_keeps_attacked_accuracy_and_shifts():
    found = report.evaluate(MODELS, (IMAGES, LABELS), attack=ATTACK, corruptions=("noise", "contrast"))
    for name, group in MODELS.items():
        group = group if isinstance(group, list) else [group]
        own = found[name].robustness
        attacked = [np.mean(m.predict(ATTACK(m, IMAGES, LABELS), verbose=0).argmax(-1) == LABELS) for m in group]
        assert own.robust_accuracy == pytest.approx(attacked) and own.attack == "PGD of 3 steps, epsilon 0.1"
        assert [(s.name, s.severity) for s in own.shifts] == [
            ("none", 0), *((kind, severity) for kind in ("noise", "contrast") for severity in (1, 3, 5))
        ]  # fmt: skip
        assert own.shifts[0].accuracy == found[name].accuracy.values
        worse = data.corrupt(IMAGES, "contrast", 5)
        outputs = [model.predict(worse, verbose=0) for model in group]
        assert own.shifts[-1].accuracy == pytest.approx([np.mean(each.argmax(-1) == LABELS) for each in outputs])
        errors = [metrics.expected_calibration_error(LABELS, each, from_logits=True, num_bins=15) for each in outputs]
        assert own.shifts[-1].expected_calibration_error == pytest.approx(errors)
    rows = {row[0]: row[1:] for row in report.table(found)[1]}
    shown = rows["accuracy under PGD of 3 steps, epsilon 0.1, % ↑"]
    assert shown[0] == f"{100 * found['one'].robustness.robust_accuracy[0]:.2f}" and " ± " in shown[1]
    again = report.Report.from_json(found.to_json())
    assert again["two"].robustness == found["two"].robustness
    with pytest.raises(ValueError, match="robust_accuracy that no report has"):
        report.Report.from_json(found.to_json().replace('"robust_accuracy": [', '"robust_accuracy": [7, '))
    with pytest.raises(ValueError, match="a shift that no report has"):
        report.Report.from_json(found.to_json().replace('"severity": 5', '"severity": 9'))


def test_user_functions_can_attack_and_corrupt():
    def nothing(model, inputs, labels):
        return inputs

    found = report.evaluate(
        MODELS["one"], (IMAGES, LABELS), attack=nothing, corruptions={"dark": lambda x: 0 * x, "same": lambda x: x}
    ).entries[0]
    assert found.robustness.attack == "nothing" and found.robustness.robust_accuracy == found.accuracy.values
    dark, same = found.robustness.shifts[1:]
    assert same.accuracy == found.accuracy.values
    dark_outputs = MODELS["one"].predict(0 * IMAGES, verbose=0)
    assert dark.accuracy == pytest.approx((np.mean(dark_outputs.argmax(-1) == LABELS),))


def flipped(model, epsilon):
    """The examples of a linear classifier with a point of another class in their box: exactly these can be attacked."""
    kernel, bias = (np.asarray(each, "float64") for each in model.get_weights())
    scores = IMAGES.reshape(60, -1) @ kernel + bias
    leads = scores[np.arange(60), LABELS][:, None] - scores
    reach = np.abs(kernel[:, LABELS].T[:, :, None] - kernel[None]).sum(1) * epsilon
    reach[np.arange(60), LABELS] = -1.0
    return (leads < reach).any(-1)


def test_auto_attack_is_exact_on_a_linear_model_and_counts_as_its_library_does():
    pytest.importorskip("art")
    from art.attacks.evasion import AutoAttack, AutoProjectedGradientDescent, SquareAttack
    from art.estimators.classification import TensorFlowV2Classifier

    model = keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(3)])
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    model.fit(IMAGES, LABELS, epochs=30, verbose=0)
    state = np.random.get_state()[1].copy()
    attack = report.AutoAttack(0.02, num_steps=8, num_queries=5, low=-1.0, high=2.0, seed=3)
    found = report.evaluate({"linear": model, "conv": MODELS["one"]}, (IMAGES, LABELS), attack=attack)
    np.testing.assert_array_equal(np.random.get_state()[1], state)
    right = ~flipped(model, 0.02)
    assert 0.1 < right.mean() < found["linear"].accuracy.mean - 0.1
    assert found["linear"].robustness.robust_accuracy == (right.mean(),)
    assert found["linear"].robustness.attack == "AutoAttack, epsilon 0.02"

    loss = keras.losses.CategoricalCrossentropy(from_logits=True)
    known = TensorFlowV2Classifier(MODELS["one"], 3, (8, 8, 1), loss_object=loss, clip_values=(-1.0, 2.0))
    settings = {"eps": 0.02, "batch_size": 256, "verbose": False}
    attacks = [
        AutoProjectedGradientDescent(known, eps_step=0.04, max_iter=8, nb_random_init=1, loss_type=kind, **settings)
        for kind in ("cross_entropy", "difference_logits_ratio")
    ]
    attacks.append(SquareAttack(known, max_iter=5, p_init=49 / 64, **settings))
    np.random.seed(3)
    moved = AutoAttack(known, eps=0.02, attacks=attacks).generate(IMAGES, keras.utils.to_categorical(LABELS, 3))
    own = np.mean(MODELS["one"].predict(moved, verbose=0).argmax(-1) == LABELS)
    assert found["conv"].robustness.robust_accuracy == (own,)
    assert own < found["conv"].accuracy.mean

    soft = keras.Sequential([model, keras.layers.Softmax()])
    vectors = keras.Sequential([keras.Input((64,)), keras.layers.Reshape((8, 8, 1)), soft])
    moved = attack(vectors, IMAGES.reshape(60, 64), LABELS, from_logits=False)
    np.testing.assert_array_equal(vectors.predict(moved, verbose=0).argmax(-1) == LABELS, right)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: report.AutoAttack(0.0), r"AutoAttack: expected epsilon > 0, got 0.0\."),
    (lambda: report.AutoAttack(0.1, low=1.0), r"AutoAttack: expected low < high, got 1.0 and 1.0"),
    (lambda: report.AutoAttack(0.1)(MODELS["one"], IMAGES[0, 0, 0, 0], LABELS), r"\(examples, features\), got \(\)"),
    (lambda: report.AutoAttack(0.1)(MODELS["one"], IMAGES, LABELS[:3]), r"AutoAttack: expected one integer label"),
    (lambda: report.AutoAttack(0.1)(MODELS["one"], IMAGES, LABELS + 0.5), r"one integer label .* got float64 of shape"),
])  # fmt: skip
def test_bad_attacks_raise_a_clear_error(make, message):
    pytest.importorskip("art")
    with pytest.raises(ValueError, match=message):
        make()


def test_the_page_shows_shifts_and_the_audit(tmp_path):
    found = report.evaluate(
        {"a <b>": MODELS["one"], "two": MODELS["two"]}, (IMAGES, LABELS), corruptions=["blur"],
        members=(IMAGES[:30], LABELS[:30]), non_members=(IMAGES[30:], LABELS[30:]), shadow_models=[network(3)],
    )  # fmt: skip
    text = found.save(tmp_path / "page.html").read_text()
    assert "Do they hold when inputs get worse?" in text and "Do they give away their training data?" in text
    audit = found["two"].membership
    low, high = audit.true_positive_rate_interval
    assert f"<td>{audit.true_positive_rate:.3f} ({low:.3f} to {high:.3f})</td>" in text
    assert "30 members, 30 others, 1 shadow model." in text
    assert "a &lt;b&gt;" in text and "<b>" not in text
    plain = report.evaluate(MODELS["one"], (IMAGES, LABELS)).save(tmp_path / "plain.html").read_text()
    assert "give away" not in plain and "get worse" not in plain


@pytest.mark.parametrize(("arguments", "message"), [
    ({"corruptions": ["fog"]}, r"report.evaluate: expected corruptions of 'noise', 'blur', 'contrast', or"),
    ({"corruptions": {"cut": lambda x: x[:3]}}, r"inputs from the corruption 'cut', got \(3, 8, 8, 1\)"),
    ({"attack": 0.1}, r"expected attack to be ProjectedGradient\(...\), AutoAttack\(...\) or a function, got float"),
    ({"attack": lambda m, x, y: x[:3]}, r"inputs from the attack, got \(3, 8, 8, 1\)"),
])  # fmt: skip
def test_bad_arguments_raise_a_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        report.evaluate(MODELS["one"], (IMAGES, LABELS), **arguments)


@pytest.mark.parametrize(("arguments", "message"), [
    ((IMAGES[0, 0], "noise", 1), r"data.corrupt: expected images"),
    ((IMAGES, "fog", 1), r"expected kind to be one of 'noise', 'blur', 'contrast'"),
    ((IMAGES, "noise", 6), r"expected severity in 1\.\.5, got 6"),
])  # fmt: skip
def test_bad_corruptions_raise_a_clear_error(arguments, message):
    with pytest.raises(ValueError, match=message):
        data.corrupt(*arguments)
