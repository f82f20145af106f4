"""The soft decision tree against a float64 twin in NumPy and the recorded values of the algorithm reference."""

import keras
import numpy as np
import pytest
from scipy.special import expit, log_softmax, logsumexp, softmax

from keras_distill import Distiller, LogitsDistillation, students
from tests.models import batches

ROW, J, K = np.arange(4)[:, None], np.arange(5)[None], np.arange(6)[None]
FS = np.sin(0.3 * (ROW + 1) * (K + 1))
KERNEL = np.sin(0.1 * (np.arange(3)[:, None] + 1) * (K + 1))
BIAS = 0.1 * np.arange(3)
LEAVES = np.cos(0.5 * ROW + 0.3 * J)
SOFT = softmax(3 * np.cos(0.5 + 0.9 * ROW - 1.1 * J) / 2, axis=-1)
HARD = np.eye(5)[[0, 2, 1, 4]]


def twin(x, kernel, bias, leaves, depth):
    """Leaf probabilities and log-distributions, one leaf and one level at a time."""
    right = expit(x @ kernel.T + bias)
    paths = np.ones((len(x), 2**depth))
    for leaf in range(2**depth):
        node = 0
        for level in range(depth):
            bit = (leaf >> (depth - level - 1)) & 1
            paths[:, leaf] *= right[:, node] if bit else 1 - right[:, node]
            node = 2 * node + 1 + bit
    return paths, log_softmax(leaves, axis=-1), right


def recorded_tree(**settings):
    tree = students.SoftDecisionTree(2, 5, **settings)
    tree.build((None, 6))
    for variable, value in ((tree.kernel, KERNEL), (tree.bias, BIAS), (tree.leaves, LEAVES)):
        variable.assign(value)
    return tree


@pytest.mark.parametrize(
    ("kind", "targets", "recorded"),
    [
        ("leafwise", HARD, 1.6000454394),
        ("mixture", HARD, 1.5986376847),
        ("leafwise", SOFT, 1.5993325218),
        ("mixture", SOFT, 1.5976389647),
    ],
)
def test_losses_of_the_reference_and_of_the_twin(kind, targets, recorded):
    scores = FS @ KERNEL.T + BIAS
    got = np.asarray(students.soft_tree_loss(scores=scores, leaf_logits=LEAVES, targets=targets, kind=kind))
    assert got.mean() == pytest.approx(recorded, abs=1e-10)
    paths, leaves, _ = twin(FS, KERNEL, BIAS, LEAVES, 2)
    answers = paths @ leaves if kind == "leafwise" else np.log(paths @ np.exp(leaves))
    np.testing.assert_allclose(got, -(targets * answers).sum(-1), rtol=1e-12)
    # In training, cross-entropy from logits plus add_loss gives the same value.
    tree = recorded_tree(loss=kind, penalty=0.0)
    output = np.asarray(tree(FS, training=True), "float64")
    total = -(targets * log_softmax(output, axis=-1)).sum(-1).mean() + sum(float(each) for each in tree.losses)
    assert total == pytest.approx(recorded, abs=1e-6)


def test_the_penalty_and_the_shares_of_the_nodes():
    tree = recorded_tree(loss="mixture")
    tree(FS, training=True)
    assert float(tree.losses[0]) == pytest.approx(0.1478301784, abs=1e-6)
    _, _, right = twin(FS, KERNEL, BIAS, LEAVES, 2)
    shares = tree.shares
    assert shares[2] == pytest.approx(0.58595, abs=1e-5)
    np.testing.assert_allclose([shares[4] / shares[1], shares[6] / shares[2]], [0.51740, 0.75701], atol=1e-5)
    # The next batch: the root forgets at once, a node of level 1 keeps half.
    other = FS[::-1] * 0.5
    tree(other, training=True)
    _, _, after = twin(other, KERNEL, BIAS, LEAVES, 2)
    assert tree.shares[2] == pytest.approx(after[:, 0].mean(), abs=1e-6)
    both = [(np.mean(r[:, 0] * r[:, 2]), np.mean(r[:, 0])) for r in (right, after)]
    moving = (both[0][0] / 2 + both[1][0]) / (both[0][1] / 2 + both[1][1])
    assert tree.shares[6] / tree.shares[2] == pytest.approx(moving, abs=1e-6)
    before = tree.shares
    tree(FS, training=False)
    np.testing.assert_array_equal(tree.shares, before)


def random_tree(depth=4, sizes=(6, 6, 1), classes=3, **settings):
    tree = students.SoftDecisionTree(depth, classes, **settings)
    tree.build((None, *sizes))
    rng = np.random.default_rng(0)
    tree.set_weights([rng.normal(size=w.shape) * (0.3 if w.ndim > 1 else 0.1) for w in tree.get_weights()])
    return tree, rng.normal(size=(20, *sizes)).astype("float32")


@pytest.mark.parametrize("inference", ["greatest_path", "mean"])
def test_predictions_and_paths_equal_the_numpy_twins(inference):
    tree, x = random_tree(inference=inference)
    beta = np.exp(tree.log_inverse_temperature.numpy())
    flat = x.reshape(20, -1)
    paths, leaves, right = twin(
        flat, tree.kernel.numpy() * beta[:, None], tree.bias.numpy() * beta, tree.leaves.numpy(), 4
    )
    np.testing.assert_allclose(tree.path_probabilities(x), paths, rtol=2e-5, atol=1e-7)
    best = paths.argmax(-1)
    expected = leaves[best] if inference == "greatest_path" else logsumexp(np.log(paths)[..., None] + leaves, axis=1)
    np.testing.assert_allclose(tree(x), expected, rtol=1e-5, atol=1e-5)
    explained = tree.explain(x, batch_size=7)
    np.testing.assert_array_equal(explained.leaf, best)
    np.testing.assert_allclose(explained.path_probability, paths.max(-1), rtol=2e-5)
    for i, path in enumerate(explained):
        node = 0
        for level in range(4):
            assert path.nodes[level] == node
            np.testing.assert_array_equal(path.filters[level], tree.kernel.numpy()[node].reshape(6, 6, 1))
            p = right[i, node] if path.directions[level] else 1 - right[i, node]
            assert path.probabilities[level] == pytest.approx(p, rel=1e-4)
            node = 2 * node + 1 + path.directions[level]
        np.testing.assert_allclose(path.distribution, softmax(tree.leaves.numpy()[best[i]]), rtol=1e-5)
    shares = tree.shares_of(x)
    np.testing.assert_allclose(shares[15:], np.bincount(best, minlength=16) / 20)
    np.testing.assert_allclose(shares[:15], [shares[2 * i + 1] + shares[2 * i + 2] for i in range(15)])


def test_saturated_nodes_stay_finite_and_their_gradient_too():
    tree, x = random_tree(loss="mixture")
    import tensorflow as tf

    with tf.GradientTape() as tape:
        out = tree(1e4 * x, training=True)
        loss = tf.reduce_mean(-out[:, 0]) + sum(tree.losses)
    assert all(np.isfinite(g.numpy()).all() for g in tape.gradient(loss, tree.trainable_weights))
    assert np.isfinite(out.numpy()).all()


def test_xla_agrees():
    import tensorflow as tf

    tree, x = random_tree()
    eager = tree(x, training=True), tree(x)
    compiled = tf.function(lambda t: (tree(t, training=True), tree(t)), jit_compile=True)(x)
    for one, other in zip(eager, compiled, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def test_it_learns_alone_and_in_a_distiller_and_is_saved(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(512, 2)).astype("float32")
    y = (x[:, 0] * x[:, 1] > 0).astype("int32")  # no single decision separates the classes
    teacher = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2)])
    tree = students.SoftDecisionTree(3, 2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    tree.compile(keras.optimizers.Adam(0.08), loss, jit_compile=False)
    tree.fit(batches(x, y, size=64), epochs=20, verbose=0)
    assert np.mean(tree.predict(x, verbose=0).argmax(-1) == y) > 0.95
    tree.save(tmp_path / "tree.keras")
    loaded = keras.models.load_model(tmp_path / "tree.keras")
    np.testing.assert_array_equal(loaded(x), tree(x))
    np.testing.assert_array_equal(loaded.shares, tree.shares)
    student = students.SoftDecisionTree(2, 2)
    distiller = Distiller(teacher, student, LogitsDistillation(temperature=1.0), student_loss_weight=0.0)
    distiller.compile(keras.optimizers.Adam(0.05), jit_compile=False)
    distiller.fit(batches(x, size=64), epochs=10, verbose=0)
    agreed = student.predict(x, verbose=0).argmax(-1) == teacher.predict(x, verbose=0).argmax(-1)
    assert agreed.mean() > 0.9


def test_the_path_is_an_output_that_can_be_served(tmp_path):
    from keras_distill import export

    tree, x = random_tree()
    model = tree.with_path()
    outputs = {name: np.asarray(value) for name, value in model(x).items()}
    explained = tree.explain(x)
    np.testing.assert_array_equal(outputs["logits"], tree(x))
    np.testing.assert_array_equal(outputs["leaf"][:, 0], explained.leaf)
    for name in ("nodes", "directions"):
        np.testing.assert_array_equal(outputs[name], getattr(explained, name))
    np.testing.assert_allclose(outputs["probabilities"], explained.probabilities, rtol=1e-5)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x)["nodes"], outputs["nodes"])
    folder = export.saved_model(model, tmp_path / "served", task=tree.served_tasks)
    import tensorflow as tf

    served = tf.saved_model.load(str(folder)).signatures["serving_default"]
    answer = served(**{next(iter(served.structured_input_signature[1])): tf.constant(x)})
    np.testing.assert_array_equal(answer["nodes_values"], outputs["nodes"])
    np.testing.assert_array_equal(answer["leaf_values"], outputs["leaf"])
    np.testing.assert_allclose(answer["logits_logits"], outputs["logits"], rtol=1e-5)


def test_rules_describe_the_tree():
    tree, x = random_tree(depth=2, sizes=(3,), classes=2)
    names = ["age", "hours", "gain"]
    rules = tree.to_rules(0.0, feature_names=names, class_names=["no", "yes"], data=x)
    assert sum(rule.share for rule in rules) == pytest.approx(1.0)
    for row in x:
        holds = [
            all(eval(c.replace("^", "**"), {}, dict(zip(names, map(float, row), strict=True))) for c in rule.conditions)
            for rule in rules
        ]
        assert sum(holds) == 1  # the rules are a partition of the inputs
    one_column = tree.to_rules(1.0, feature_names=names)
    assert all(condition.count("*") == 1 for rule in one_column for condition in rule.conditions)
    assert str(rules[0]).startswith("if ") and " then " in str(rules[0])


def test_it_is_drawn(tmp_path):
    tree, x = random_tree()
    written = tree.draw(tmp_path / "tree.svg", data=x, class_names=["a", "b", "c"]).read_text()
    assert "100% here" in written and written.count("<image") == 15  # one picture per inner node
    table, _ = random_tree(depth=2, sizes=(3,))
    text = table.draw(tmp_path / "table.svg", feature_names=["age", "hours", "gain"]).read_text()
    assert text.count("<!-- hours -->") == 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 0}, r"SoftDecisionTree: expected depth to be an integer >= 1, got 0\."),
        ({"depth": 13}, r"SoftDecisionTree: expected depth <= 12, got 13\. A tree of depth 13 has 8192 leaves\."),
        ({"classes": 1}, r"expected classes to be an integer >= 2, got 1\. A single class leaves nothing to decide\."),
        ({"loss": "hinge"}, r"expected loss to be one of 'leafwise', 'mixture', got hinge"),
        ({"inference": "best"}, r"expected inference to be one of 'greatest_path', 'mean', got best"),
        ({"penalty": -1.0}, r"expected penalty >= 0, got -1\.0"),
        ({"inverse_temperature": 0.0}, r"expected inverse_temperature > 0, got 0\.0"),
    ],
)
def test_bad_arguments_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        students.SoftDecisionTree(**{"depth": 2, "classes": 3, **settings})


def test_bad_inputs_are_refused():
    tree, x = random_tree()
    with pytest.raises(ValueError, match=r"SoftDecisionTree.explain: expected at least one example"):
        tree.explain(x[:0])
    with pytest.raises(ValueError, match=r"SoftDecisionTree.explain: expected numbers, got texts"):
        tree.explain(np.array(["a text"]))
    with pytest.raises(ValueError, match=r"expected inputs of shape \(examples, 6, 6, 1\)"):
        tree.explain(x[..., 0])
    with pytest.raises(ValueError, match=r"expected a tree over a table.*Use draw\(\) for images"):
        tree.to_rules()
    with pytest.raises(ValueError, match="one that has not seen an input"):
        students.SoftDecisionTree(2, 2).to_rules()
    with pytest.raises(ValueError, match="expected numbers, got texts"):
        students.SoftDecisionTree(2, 2)(np.array([["a text"]]))
