"""DE's experts: the formula in NumPy, the gate, and a distiller that is saved and resumed."""

import keras
import numpy as np
import pytest

from keras_distill import Distiller, adapters, terms
from tests.models import batches


def test_the_mixture_is_the_formula_and_the_gate_sees_the_teacher():
    keras.utils.set_random_seed(0)
    layer = adapters.ExpertMixture(4, num_experts=3)
    rng = np.random.default_rng(0)
    student, teacher = (rng.normal(size=(6, n)).astype("float32") for n in (2, 4))
    got = layer([student, teacher])
    gate = teacher @ layer.gate.kernel.numpy() + layer.gate.bias.numpy()
    told = []
    for inner, outer in zip(layer.inner, layer.outer, strict=True):
        hidden = np.maximum(student @ inner.kernel.numpy() + inner.bias.numpy(), 0)
        assert hidden.shape == (6, 3)  # (2 + 4) // 2
        told.append(hidden @ outer.kernel.numpy() + outer.bias.numpy())
    np.testing.assert_allclose(got, np.stack(told)[gate.argmax(1), np.arange(6)], rtol=1e-5, atol=1e-6)
    layer.gate_temperature = 1e6  # an even mixture
    np.testing.assert_allclose(layer([student, teacher], training=True), np.mean(told, 0), atol=1e-4)
    layer.gate_temperature = 1e-6  # one expert, sampled from the gate's probabilities
    picked = np.zeros(3)
    p = np.exp(gate[0]) / np.exp(gate[0]).sum()
    many = layer([np.repeat(student[:1], 4000, 0), np.repeat(teacher[:1], 4000, 0)], training=True).numpy()
    picked = np.array([np.isclose(many, np.array(told)[m, 0], atol=1e-5).all(1).mean() for m in range(3)])
    np.testing.assert_allclose(picked, p, atol=0.03)


def test_a_distiller_with_experts_learns_and_resumes_after_saving(tmp_path):
    def tower(units):
        user = keras.Input((1,), dtype="int32")
        embedded = keras.layers.Flatten(name="user")(keras.layers.Embedding(20, units, name=f"table_{units}")(user))
        return keras.Model(user, keras.layers.Dense(5)(embedded))

    keras.utils.set_random_seed(1)
    teacher, student = tower(8), tower(2)
    teacher.get_layer("table_8").set_weights([np.random.default_rng(0).normal(size=(20, 8))])
    term = terms.ExpertDistillation("user", "user", num_experts=2)
    distiller = Distiller(teacher, student, term, student_loss_weight=0.0)
    distiller.compile(keras.optimizers.Adam(0.05), jit_compile=False)
    x, y = np.arange(20)[:, None].astype("int32"), np.zeros((20, 1), "int32")
    history = distiller.fit(batches(x, y, size=20), epochs=30, verbose=0).history["distillation_loss"]
    assert history[-1] < 0.6 * history[0]
    distiller.save(tmp_path / "d.keras")
    again = keras.models.load_model(tmp_path / "d.keras")
    curves = [each.fit(x, y, epochs=2, batch_size=20, verbose=0).history for each in (distiller, again)]
    assert curves[0] == curves[1]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: adapters.ExpertMixture(0), "ExpertMixture: expected units to be an integer >= 1, got 0."),
        (lambda: terms.ExpertDistillation("a", "b", num_experts=0), "expected num_experts to be an integer >= 1"),
        (lambda: terms.ExpertDistillation("a", None), "expected student_layer_name to be the name of one layer"),
    ],
)
def test_bad_input_raises_a_clear_error(make, words):
    with pytest.raises(ValueError) as caught:
        make()
    assert words in str(caught.value)
