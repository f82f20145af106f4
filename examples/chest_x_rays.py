"""Distil an ensemble into one small model that abstains where it is uncertain (chest X-rays).

Run: python examples/chest_x_rays.py  (PneumoniaMNIST under $KERAS_DISTILL_DATA; --smoke: scikit-learn's digits)

One network learns from the mean prediction of five. A temperature is fitted on validation images. Then each model
predicts only where it is most certain: the error rate of its predictions falls as it abstains more often. This is not a
medical device.
"""

import argparse

import keras
import numpy as np
from keras import layers

from keras_distill import Distiller, LogitsDistillation, calibration, data, metrics, teachers


def network(shape, classes, width, seed):
    """A small CNN."""
    keras.utils.set_random_seed(seed)
    stack = [keras.Input(shape)]
    for filters in (width, 2 * width):
        stack += [layers.Conv2D(filters, 3, 2, "same", use_bias=False), layers.BatchNormalization(momentum=0.9)]
        stack += [layers.ReLU()]
    return keras.Sequential([*stack, layers.Flatten(), layers.Dropout(0.3), layers.Dense(classes)])


def judged(name, logits, labels):
    """Print accuracy, calibration and risk at several coverages; return the area under the risk-coverage curve."""
    wrong = logits.argmax(1) != labels
    uncertainty = np.asarray(metrics.uncertainty_score(logits, from_logits=True))
    order = np.argsort(uncertainty, kind="stable")
    risks = [100 * wrong[order[: int(part * len(order))]].mean() for part in (1.0, 0.8, 0.5)]
    ece = metrics.expected_calibration_error(labels, logits, from_logits=True)
    nll = metrics.negative_log_likelihood(labels, logits, from_logits=True)
    area = np.mean(np.cumsum(wrong[order]) / np.arange(1, len(order) + 1))
    print(f"{name:22} errors {risks[0]:5.2f} %, at 80 % coverage {risks[1]:5.2f} %, at 50 % {risks[2]:5.2f} %; "
          f"NLL {nll:.3f}, ECE {ece:.3f}, AURC {area:.4f}")  # fmt: skip
    return area


def main():
    """Train, and print each model's selective risk."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="digits, few epochs")
    smoke = parser.parse_args().smoke
    source = data.load("digits" if smoke else "pneumoniamnist")
    train, validation, test = source.train.take(640 if smoke else 10_000), source.validation, source.test
    shape, classes, epochs = train.inputs.shape[1:], source.num_classes, 2 if smoke else 12
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def fit(model, seed):
        keras.utils.set_random_seed(seed)
        model.compile(keras.optimizers.Adam(2e-3), loss, jit_compile=False)
        model.fit(train.inputs, train.labels, batch_size=64, epochs=epochs, verbose=0)
        return model

    members = [fit(network(shape, classes, 16, seed), seed) for seed in range(2 if smoke else 5)]
    ensemble = teachers.Ensemble(members)
    alone = fit(network(shape, classes, 8, 50), 50)
    student = network(shape, classes, 8, 50)
    fit(Distiller(ensemble, student, LogitsDistillation(2.0), student_loss_weight=0.1), 50)
    print(f"{len(members)} members of {members[0].count_params()} parameters, a student of {student.count_params()}")
    for name, model in (("ensemble", ensemble), ("student alone", alone), ("student distilled", student)):
        logits = [model.predict(each.inputs, batch_size=512, verbose=0) for each in (validation, test)]
        scaler = calibration.TemperatureScaler().fit(logits[0], validation.labels)
        judged(f"{name}, T={scaler.temperature:.2f}", logits[1] / scaler.temperature, test.labels)


if __name__ == "__main__":
    main()
