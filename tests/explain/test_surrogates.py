"""Surrogates against scikit-learn, closed forms, and their exports."""

import keras
import numpy as np
import pytest
from sklearn.tree import DecisionTreeClassifier

from keras_distill import explain, teachers

RNG = np.random.default_rng(0)
X = RNG.normal(size=(1200, 4)).astype("float32")
NAMES = ["age", "hours", "gain", "loss"]


def boxes():
    """A teacher whose decision region is a box: 1 where age > 0.5 and hours < 1."""
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(2, activation="sigmoid"), keras.layers.Dense(2)],
    )
    first = np.zeros((4, 2))
    first[0, 0], first[1, 1] = 60, -60
    model.set_weights([np.array(w) for w in [first, [-30, 60], [[-10, 10], [-10, 10]], [15, -15]]])
    return model


def linear():
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    model.set_weights([np.array(w) for w in [np.arange(12).reshape(4, 3) % 5 - 2.0, [0.1, -0.2, 0.1]]])
    return model


def answers(teacher, x=X):
    return np.asarray(teacher(x)).argmax(-1)


@pytest.mark.parametrize("samples", [0, 2000])
def test_a_tree_equals_scikit_learns_and_its_exports_agree_with_it(samples, tmp_path):
    teacher = boxes()
    found = explain.surrogate(
        teacher, X, "tree", size=8, samples=samples, feature_names=NAMES, class_names=["no", "yes"]
    )
    assert found.fidelity.value > 0.98 > found.fidelity.floor
    assert found.fidelity.low < found.fidelity.value < found.fidelity.high
    assert found.sampled_fidelity.value > 0.97
    fresh = RNG.normal(size=(500, 4)).astype("float32")
    scores = found.predict(fresh)
    # scikit-learn's tree, the Keras model, the saved model, the rules and the code agree.
    probabilities = found.fitted.model.predict_proba(fresh)
    np.testing.assert_allclose(np.exp(scores), probabilities, atol=2e-6)
    model = found.to_model()
    on_bounds = np.repeat(found.fitted.model.tree_.threshold[:, None].astype("float32"), 4, 1)
    for rows in (fresh, on_bounds):
        np.testing.assert_array_equal(model(rows).numpy().argmax(-1), found.fitted.model.predict(rows))
    model.save(tmp_path / "tree.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "tree.keras")(fresh), model(fresh))
    scope = {}
    exec(found.to_code("decide"), scope)
    assert [scope["decide"](list(map(float, row))) for row in fresh] == scores.argmax(-1).tolist()
    rules = found.rules()
    assert sum(rule.share for rule in rules) == pytest.approx(1.0)
    for row, score in zip(fresh[:50], scores, strict=False):
        holds = [rule for rule in rules if _holds(rule, row)]
        assert len(holds) == 1 and holds[0].answer == ["no", "yes"][score.argmax()]


def _holds(rule, row):
    return all(eval(each, {}, dict(zip(NAMES, map(float, row), strict=True))) for each in rule.conditions)


def test_a_served_tree(tmp_path):
    from keras_distill import export

    model = explain.surrogate(boxes(), X, size=8).to_model()
    exported = export.saved_model(model, tmp_path / "tree", check_inputs=X[:50], from_logits=True)
    assert exported.max_difference < 1e-5


def test_rules_are_an_ordered_list():
    found = explain.surrogate(boxes(), X, "rules", size=6, feature_names=NAMES)
    assert found.fidelity.value > 0.95 and found.size <= 6
    rules = found.rules()
    assert rules[-1].conditions == () and all(rule.conditions for rule in rules[:-1])
    for row, score in zip(X[:60], found.predict(X), strict=False):
        first = next(rule for rule in rules if _holds(rule, row))
        assert first.answer == f"class {score.argmax()}"
    scope = {}
    exec(found.to_code(), scope)
    assert [scope["predict"](row) for row in X[:60]] == found.predict(X[:60]).argmax(-1).tolist()


def test_a_linear_teacher_is_reproduced_exactly_and_its_curve_rises():
    teacher = linear()
    found = explain.surrogate(teacher, X, "linear", feature_names=NAMES)
    assert found.fidelity.value > 0.99
    kernel = teacher.get_weights()[0]
    expected = kernel - kernel.mean(1, keepdims=True)
    got = np.array([list(row.values()) for row in found.coefficients().values()])
    assert np.abs(got - expected).max() < 0.15  # the ridge and the floor at -15 have a small effect
    np.testing.assert_array_equal(found.to_model()(X).numpy().argmax(-1), found.predict(X).argmax(-1))
    curve = found.curve((1, 2, 4))
    assert [size for size, _, _ in curve] == [1, 2, 4]
    assert curve[0][1].value < curve[1][1].value < curve[2][1].value


def test_more_leaves_are_more_faithful():
    curve = explain.surrogate(linear(), X, "tree", size=4).curve((2, 8, 64))
    values = [held.value for _, held, _ in curve]
    assert values[0] < values[1] < values[2]
    flat = explain.surrogate(linear(), X, "tree", size=64, max_depth=3)
    assert flat.size <= 8 and all(len(rule.conditions) <= 3 for rule in flat.rules())


@pytest.mark.parametrize("engine", ["ebm", "splines"])
def test_an_additive_surrogate_fits_a_teacher_that_a_linear_one_cannot(engine):
    model = keras.Sequential([keras.Input((4,)), keras.layers.Lambda(lambda t: t * t), keras.layers.Dense(2)])
    model.set_weights(
        [np.array([[1, -1], [1, -1], [0, 0], [0, 0]]), np.array([-2, 2])]
    )  # inside or outside of a circle
    additive = explain.surrogate(model, X, "additive", engine=engine)
    line = explain.surrogate(model, X, "linear")
    assert additive.fidelity.value > 0.95 > 0.8 > line.fidelity.value


def test_sampled_rows_cover_sparse_regions():
    thin = X.copy()
    thin[:, 0] = np.where(thin[:, 0] > 0.9, 0.6, -abs(thin[:, 0]))  # few rows are near the boundary
    one, other = (explain.surrogate(boxes(), thin[:150], size=8, samples=s).sampled_fidelity.value for s in (0, 3000))
    assert other >= one


def test_an_audit_finds_where_teacher_and_outcomes_differ():
    outcomes = ((X[:, 0] > 0.5) & (X[:, 1] < 1) & ~(X[:, 2] > 1)).astype(int)  # the teacher does not use gain
    found = explain.audit(boxes(), X, outcomes, feature_names=NAMES, class_names=["no", "yes"])
    truth = np.mean(answers(boxes()) != outcomes)
    assert found.low <= truth <= found.high and truth > 0.02
    assert found.changes[("no", "yes")] > 0.8 * found.differ
    assert found.where[0].answer == "differ" and any("gain > " in each for each in found.where[0].conditions)
    assert "the two differ on" in str(found)
    same = explain.audit(boxes(), X, answers(boxes()))
    assert same.differ == 0 and same.where == ()


def test_local_surrogates_of_a_linear_teacher_are_its_weights_and_its_shapley_values():
    teacher = linear()
    lime = explain.local_surrogate(teachers.Ensemble([teacher], combine=teachers.MeanLogits()), X[0], X[:50], target=1)
    np.testing.assert_allclose(lime.contributions, teacher.get_weights()[0][:, 1], atol=1e-2)
    assert lime.fidelity > 0.999
    before = np.random.get_state()[1]
    shap = explain.local_surrogate(teacher, X[0], X[:50], target=1, method="kernel_shap", samples=100)
    np.testing.assert_array_equal(np.random.get_state()[1], before)
    expected = teacher.get_weights()[0][:, 1] * (X[0] - X[:50].mean(0))
    np.testing.assert_allclose(shap.contributions, expected, atol=1e-4)
    total = float(teacher(X[:1])[0, 1])
    assert shap.contributions.sum() + shap.intercept == pytest.approx(total, abs=1e-4)


def test_ensemble_teachers_need_no_gradients_and_one_unit_counts_as_two_classes():
    one = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    found = explain.surrogate(one, X, "tree", size=16, class_names=["no", "yes"])
    positive = (one(X).numpy()[:, 0] > 0).astype(int)
    oracle = DecisionTreeClassifier(max_leaf_nodes=16, random_state=0).fit(X, positive).score(X, positive)
    assert (found.predict(X).argmax(-1) == positive).mean() > oracle - 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: explain.surrogate(linear(), X, "forest"), "explain.surrogate: expected kind to be one of 'tree'"),
        (lambda: explain.surrogate(linear(), X[:0]), "expected at least one example"),
        (lambda: explain.surrogate(linear(), X[:5]), "expected at least eight examples, got 5"),
        (
            lambda: explain.surrogate(linear(), np.repeat(X[:1], 50, 0)),
            "at least two different answers, got a single",
        ),
        (lambda: explain.surrogate(linear(), np.array([["a text"]])), "expected images or other numeric inputs, got t"),
        (lambda: explain.surrogate(linear(), X[:, :, None]), "expected a table of shape .* Use students.SoftDecisionT"),
        (lambda: explain.surrogate(linear(), X, feature_names=["a"]), "expected 4 feature_names, got 1"),
        (lambda: explain.surrogate(linear(), X, samples=-1), "expected samples to be an integer >= 0, got -1"),
        (lambda: explain.surrogate(linear(), X, max_depth=0), "expected max_depth to be an integer >= 1, got 0"),
        (lambda: explain.surrogate(linear(), X, size=1), "expected size to be an integer >= 2, got 1"),
        (lambda: explain.surrogate(linear(), X, "rules", size=4).to_model(), "expected a surrogate of kind 'tree' or"),
        (lambda: explain.surrogate(linear(), X, "linear").rules(), "expected a surrogate of kind 'tree' or 'rules'"),
        (lambda: explain.audit(linear(), X, np.zeros(3, int)), "expected at least eight rows with an outcome each"),
        (lambda: explain.audit(linear(), X, np.zeros(1200, int)), "at least two classes among the outcomes, got a si"),
        (lambda: explain.audit(linear(), X, np.full(1200, 3)), "expected outcomes from 0 to 2"),
        (lambda: explain.local_surrogate(linear(), X[0, :2], X), "expected a row of 4 columns"),
        (lambda: explain.local_surrogate(linear(), X[0], X, method="anchors"), "expected method to be one of 'lime'"),
    ],
)
def test_unsupported_teachers_and_rows_raise_a_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()
