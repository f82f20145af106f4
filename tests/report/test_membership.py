"""The membership audit: values equal scikit-learn's and ART's; only a model that memorises is recognised."""

import types

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import log_softmax
from sklearn.metrics import roc_auc_score, roc_curve

from keras_distill import report

RNG = np.random.default_rng(3)


def linear(weights, name="linear"):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(4, use_bias=False)], name=name)
    model.set_weights([np.asarray(weights, "float32")])
    return model


def examples(count, lean=0.0):
    """Inputs that point towards their label, so that the identity's loss is lower on them."""
    labels = RNG.integers(0, 4, count)
    inputs = RNG.normal(size=(count, 4)) + lean * np.eye(4)[labels]
    return np.round(inputs, 3).astype("float32"), labels


MEMBERS, OTHERS = examples(400, 0.8), examples(300)


def losses(model, pair):
    outputs = model.predict(pair[0], verbose=0).astype("float64")
    return -log_softmax(outputs, axis=-1)[np.arange(len(pair[1])), pair[1]]


def by_sklearn(inside, outside):
    truth, scores = np.repeat([1, 0], [len(inside), len(outside)]), np.concatenate([inside, outside])
    accused, found, _ = roc_curve(truth, scores, drop_intermediate=False)
    return roc_auc_score(truth, scores), (found - accused).max(), found[accused <= 0.01].max()


def numbers(found):
    return found.auc, found.advantage, found.true_positive_rate


@pytest.mark.parametrize("num_shadows", [0, 1, 3])
def test_the_numbers_are_those_of_scikit_learn(num_shadows):
    model = linear(np.eye(4))
    shadows = [linear(RNG.normal(size=(4, 4)), f"shadow_{i}") for i in range(num_shadows)]
    hard = [np.mean([losses(each, pair) for each in shadows] or [[0.0]], axis=0) for pair in (MEMBERS, OTHERS)]
    expected = by_sklearn(hard[0] - losses(model, MEMBERS), hard[1] - losses(model, OTHERS))
    found = report.membership(model, MEMBERS, OTHERS, shadows, num_resamples=50)
    assert numbers(found) == pytest.approx(expected, abs=1e-6)
    assert (found.num_members, found.num_non_members, found.num_shadow_models) == (400, 300, num_shadows)
    assert num_shadows or found.auc > 0.6


def test_the_numbers_are_those_of_the_attack_of_art(monkeypatch):
    """ART's black-box attack learns how a loss tells a member; on examples of one class nothing else is told it.

    ART is in no extra, because its releases bound the versions of others: ``pip install --no-deps
    adversarial-robustness-toolbox`` runs this test.
    """
    pytest.importorskip("art")
    from art.attacks.inference.membership_inference import MembershipInferenceBlackBox
    from art.estimators.classification import TensorFlowV2Classifier
    from art.metrics.privacy.worst_case_mia_score import get_roc_for_fpr

    names_of_keras_2 = types.SimpleNamespace(NONE="none")
    monkeypatch.setattr(tf.keras.losses, "Reduction", names_of_keras_2, raising=False)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model = linear(np.eye(4))
    inside, outside = ((x[y == 2], y[y == 2]) for x, y in (MEMBERS, OTHERS))
    classifier = TensorFlowV2Classifier(model, nb_classes=4, input_shape=(4,), loss_object=loss)
    attack = MembershipInferenceBlackBox(classifier, input_type="loss", attack_model_type="lr")
    attack.fit(*inside, *outside)
    believed = np.concatenate([attack.infer(*each, probabilities=True)[:, -1] for each in (inside, outside)])
    truth = np.repeat([1, 0], [len(inside[1]), len(outside[1])])
    accused, found, _ = roc_curve(truth, believed, drop_intermediate=False)
    ours = report.membership(model, inside, outside, num_resamples=5)
    ((_, few, _),) = get_roc_for_fpr(believed, truth, targeted_fpr=0.01)
    expected = roc_auc_score(truth, believed), (found - accused).max(), few
    assert numbers(ours) == pytest.approx(expected, abs=1e-6) and ours.auc > 0.6


def test_ties_count_half():
    flat = linear(np.zeros((4, 4)))
    found = report.membership(flat, MEMBERS, OTHERS, num_resamples=10)
    assert numbers(found) == (0.5, 0.0, 0.0)
    assert found.auc_interval == (0.5, 0.5)


def test_a_model_that_never_saw_the_members_has_an_auc_of_one_half():
    one, two = examples(4000, 0.8), examples(4000, 0.8)
    found = report.membership(linear(np.eye(4)), one, two)
    assert found.auc == pytest.approx(0.5, abs=0.02)
    assert found.auc_interval[0] < 0.5 < found.auc_interval[1]
    # The deviation of an AUC without signal is sqrt((m + n + 1) / (12 m n)) (Mann and Whitney).
    width = 2 * 1.96 * np.sqrt(8001 / (12 * 4000 * 4000))
    assert found.auc_interval[1] - found.auc_interval[0] == pytest.approx(width, rel=0.15)


def test_shadow_models_strengthen_the_attack_on_hard_examples():
    """A memorising model lowers each member's loss slightly, whereas the difficulty of examples varies much more."""
    inputs = RNG.normal(0, 5, (800, 4)).astype("float32")
    inputs[:400, 3] = 1.0  # the mark of a member, which only the memorising model reads
    inputs[400:, 3] = 0.0
    labels = np.zeros(800, int)
    weights = np.diag([1.0, 1.0, 1.0, 0.0])
    memoriser = weights.copy()
    memoriser[3, 0] = 0.5
    members, others = (inputs[:400], labels[:400]), (inputs[400:], labels[400:])
    plain = report.membership(linear(memoriser), members, others, num_resamples=10)
    found = report.membership(linear(memoriser), members, others, [linear(weights)], num_resamples=10)
    assert plain.auc < 0.6 and found.auc > 0.95 and found.auc > plain.auc


def test_evaluate_keeps_the_audit_in_its_report():
    models = {"first": linear(np.eye(4), "a"), "second": [linear(-np.eye(4), "b"), linear(np.eye(4), "c")]}
    shadow = [linear(0.5 * np.eye(4), "shadow")]
    found = report.evaluate(models, OTHERS, members=MEMBERS, non_members=OTHERS, shadow_models=shadow)
    for name in models:
        model = models[name][0] if isinstance(models[name], list) else models[name]
        assert found[name].membership == report.membership(model, MEMBERS, OTHERS, shadow)
    rows = dict((row[0], row[1:]) for row in report.table(found)[1])
    assert [cell[:6] for cell in rows["membership AUC ↓"]] == [f"{found[name].membership.auc:.3f} " for name in models]
    again = report.Report.from_json(found.to_json())
    assert again["second"].membership == found["second"].membership
    with pytest.raises(ValueError, match="auc"):
        report.Report.from_json(found.to_json().replace('"auc": ', '"auc": 7'))


def test_probabilities_are_logits_after_a_softmax():
    logits = linear(np.eye(4))
    probabilities = keras.Sequential([logits, keras.layers.Softmax()])
    one = report.membership(logits, MEMBERS, OTHERS, num_resamples=5)
    two = report.membership(probabilities, MEMBERS, OTHERS, from_logits=False, num_resamples=5)
    assert numbers(two) == pytest.approx(numbers(one), abs=0.01)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"members": (np.concatenate([MEMBERS[0], OTHERS[0][:2]]), np.concatenate([MEMBERS[1], OTHERS[1][:2]]))},
     r"report.evaluate: expected members and non_members that do not overlap, got 2 examples in both\. Remove dup"),
    ({"non_members": None}, r"expected members and non_members together, got no non_members\."),
    ({"members": None}, r"expected members and non_members together, got no members\."),
    ({"members": None, "non_members": None, "shadow_models": [linear(np.eye(4))]},
     r"expected members and non_members with shadow_models, got neither\."),
    ({"members": (MEMBERS[0], MEMBERS[1] + 4)}, r"expected labels in 0\.\.3, got 4\.\.7\."),
    ({"members": (np.full_like(MEMBERS[0], np.nan), MEMBERS[1])}, r"expected finite losses of 'a', got NaN or infin"),
])  # fmt: skip
def test_bad_data_sets_raise_a_clear_error(arguments, message):
    arguments = {"members": MEMBERS, "non_members": OTHERS, **arguments}
    with pytest.raises(ValueError, match=message):
        report.evaluate({"a": linear(np.eye(4), "a")}, OTHERS, **arguments)
