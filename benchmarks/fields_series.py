"""Does one student keep an ensemble's probabilities on short labelled series? Three sets of the UCR archive.

The teacher is the mean of five small fully convolutional networks (Wang et al. 2017: three layers over time, each with
batch normalisation, and the mean over time; an eighth of the paper's filters). The student is one of them in size. It
learns the teacher's predictions at temperature 1 for the training series and for twenty augmented copies of each
(scaled by 1 +- 0.1, shifted in time, with noise), which need no label; the members were trained on such copies with
their series' labels. The publisher's split, last epoch. Shift, noise and epochs were chosen by training one member on
one half of the training series and evaluating it on the other. Training sets hold 67, 50 and 36 series, so spreads are
wide. The quick version takes one set and one seed.
"""

from __future__ import annotations

import zipfile
from typing import Any

from benchmarks import _harness, _resume

# isort: split
import keras
import numpy as np

from keras_distill import Distiller, LogitsDistillation, metrics, teachers

CLAIM = "One student of an ensemble of five closes 60 % of the gap in NLL between a member and the ensemble on series."
SETTINGS = {  # data set: largest shift as a share of the length, standard deviation of the noise, epochs
    "ItalyPowerDemand": (0.1, 0.1, 20),
    "GunPoint": (0.05, 0.02, 60),
    "ArrowHead": (0.05, 0.02, 60),
}
NAMES = tuple(SETTINGS)


def series(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Training and test series (rows, steps, 1), standardised one by one, with their class ids."""
    found: list[Any] = []
    with zipfile.ZipFile(_harness.DATA / "time_series_ucr" / "ucr_uea.zip") as archive:
        for part in ("TRAIN", "TEST"):
            text = archive.read(f"{name}/{name}_{part}.ts").decode()
            rows = [line.rsplit(":", 1) for line in text.split("@data")[1].split()]
            values = np.array([row[0].split(",") for row in rows], "float32")
            values = (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)
            found += [values[..., None], np.array([row[1] for row in rows])]
    kinds = np.unique(found[1])
    return found[0], np.searchsorted(kinds, found[1]), found[2], np.searchsorted(kinds, found[3])


def augmented(x: np.ndarray, copies: int, seed: int, largest: float, noise: float) -> np.ndarray:
    """The series themselves, and copies that are scaled, shifted and noisy."""
    rng, made = np.random.default_rng(seed), [x]
    for _ in range(copies):
        shift = rng.integers(-int(largest * x.shape[1]), int(largest * x.shape[1]) + 1, len(x))
        rolled = np.stack([np.roll(row, by, axis=0) for row, by in zip(x, shift, strict=True)])
        made.append(rolled * (1 + 0.1 * rng.normal(size=(len(x), 1, 1))) + noise * rng.normal(size=x.shape))
    return np.concatenate(made).astype("float32")


def network(steps: int, classes: int, seed: int) -> keras.Model:
    """Three convolutions over time, each with batch normalisation, and the mean over time; logits."""
    keras.utils.set_random_seed(seed)
    model = keras.Sequential([keras.Input((steps, 1))])
    for filters, width in ((16, 8), (32, 5), (16, 3)):
        model.add(keras.layers.Conv1D(filters, width, padding="same"))
        model.add(keras.layers.BatchNormalization(momentum=0.9))
        model.add(keras.layers.ReLU())
    model.add(keras.layers.GlobalAveragePooling1D())
    model.add(keras.layers.Dense(classes))
    return model


def trained(model: Any, x: np.ndarray, y: np.ndarray, epochs: int) -> Any:
    """Train with Adam and a cosine decay."""
    rate = keras.optimizers.schedules.CosineDecay(3e-3, epochs * -(-len(x) // 32))
    model.compile(
        keras.optimizers.Adam(rate), keras.losses.SparseCategoricalCrossentropy(from_logits=True), jit_compile=False
    )
    model.fit(x, y, batch_size=32, epochs=epochs, verbose=0)
    return model


def one_seed(name: str, seed: int, copies: int, epochs: int | None) -> dict[str, float]:
    """Train the ensemble and the student; return accuracy and NLL on the test series."""
    x, y, x_test, y_test = series(name)
    largest, noise, chosen = SETTINGS[name]
    epochs = epochs or chosen
    rows, labels = augmented(x, copies, seed, largest, noise), np.tile(y, copies + 1)
    shape = x.shape[1], int(y.max()) + 1
    members = [trained(network(*shape, 100 * seed + m), rows, labels, epochs) for m in range(5)]
    ensemble = teachers.Ensemble(members)
    student = network(*shape, 100 * seed + 50)
    trained(Distiller(ensemble, student, LogitsDistillation(temperature=1.0), student_loss_weight=0.0), rows, labels,
            epochs)  # fmt: skip
    told = {"ensemble": ensemble, "student": student}
    logits = {who: np.asarray(model.predict(x_test, batch_size=512, verbose=0)) for who, model in told.items()}
    alone = [np.asarray(member.predict(x_test, batch_size=512, verbose=0)) for member in members]
    found: dict[str, float] = {}
    for who, several in (("member", alone), *((who, [each]) for who, each in logits.items())):
        nll = [metrics.negative_log_likelihood(y_test, each, from_logits=True) for each in several]
        found[f"nll_{who}"] = float(np.mean(nll))
        found[f"accuracy_{who}"] = 100 * float(np.mean([(each.argmax(-1) == y_test).mean() for each in several]))
    return found


def main() -> None:
    """Run the data sets and evaluate the means."""
    which = {"nargs": "+", "choices": NAMES, "default": None, "help": "which sets"}
    options = _harness.arguments(__doc__ or "", sets=which, seeds={"type": int, "default": None})
    report = _harness.Report("fields_series", CLAIM, options)
    copies, epochs, seeds = (20, None, 3) if options.full else (2, 2, 1)
    seeds = options.seeds or seeds
    run = _resume.Runs(options.out / f"fields_series.{'full' if options.full else 'quick'}.runs.json")
    for name in options.sets or (NAMES if options.full else NAMES[:1]):
        found = [run(f"{name} {seed}", lambda n=name, s=seed: one_seed(n, s, copies, epochs)) for seed in range(seeds)]
        mean, spread = ({key: float(of([each[key] for each in found])) for key in found[0]} for of in (np.mean, np.std))
        report.add({"model": name, "seeds": seeds}, {"mean": mean, "spread": spread})
        closed = (mean["nll_member"] - mean["nll_student"]) / (mean["nll_member"] - mean["nll_ensemble"])
        report.verdict(f"{name}: gap in NLL closed (of the means)", closed, at_least=0.6)
    report.write()
    run.finish()


if __name__ == "__main__":
    main()
