"""Write saved_distiller_0.1.keras and its expected outputs. Run by hand, with the version in the file's name."""

from pathlib import Path

import keras
import numpy as np

import keras_distill as kd
from keras_distill import adapters, losses, schedules

HERE = Path(__file__).parent


def model(units, seed):
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((5,), name="features")
    hidden = keras.layers.Dense(units, activation="relu", name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(3, name="logits")(hidden))


def data():
    rng = np.random.default_rng(7)
    return rng.normal(size=(12, 5)).astype("float32"), rng.integers(0, 3, 12)


def distiller():
    terms = [
        kd.LogitsDistillation(schedules.Linear(4.0, 2.0, 6), losses.DecoupledSoftTargets(non_target_weight=2.0)),
        kd.LogitsDistillation(2.0, losses.ClassCorrelation(), standardize=True),
        kd.LogitsDistillation(1.0, losses.TopKSoftTargets(k=2)),
        kd.LogitsDistillation(1.5, "mse"),
        kd.LogitsDistillation(3.0, losses.TrustWeighted(losses.JensenShannon())),
        kd.FeatureDistillation(losses.HintMatching("mae"), "hidden", "hidden", adapter="auto"),
        kd.FeatureDistillation(
            losses.CorrelationCongruence(teacher_gradient=True), "hidden", "hidden", adapter=adapters.Embedding(4),
            teacher_adapter=adapters.Embedding(4),
        ),
        kd.FeatureDistillation(losses.RelationalDistance(), "hidden", "hidden"),
    ]  # fmt: skip
    weights = [schedules.WarmUp(0.1, 4), 0.1, 0.2, 0.3, 1.0, 0.4, 0.5, 0.6]
    made = kd.Distiller(model(7, 1), model(4, 2), terms, weights, student_loss_weight=0.25)
    made.compile(
        keras.optimizers.Adam(0.01),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return made


def answers(made):
    """Return the loaded distiller's predictions, evaluation, and the losses of two more steps."""
    x, y = data()
    found = {"predictions": made.predict(x, verbose=0)}
    for name, value in made.evaluate(x, y, batch_size=12, return_dict=True, verbose=0).items():
        found[f"evaluate_{name}"] = np.asarray(value)
    history = made.fit(x, y, batch_size=12, epochs=2, shuffle=False, verbose=0).history
    found.update({f"fit_{name}": np.asarray(value) for name, value in history.items()})
    return found


if __name__ == "__main__":
    made = distiller()
    made.fit(*data(), batch_size=12, epochs=2, verbose=0)
    made.save(HERE / "saved_distiller_0.1.keras")
    np.savez_compressed(HERE / "saved_distiller_0.1.npz", **answers(made))
