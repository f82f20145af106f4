"""Explain an income classifier with a tree, rules and a linear model, and compare its predictions with the outcomes.

Run: python examples/adult_rules.py  (1 CPU minute; --smoke: scikit-learn's breast cancer table, under a minute)

The adult census from ../shared/data or $KERAS_DISTILL_DATA. Prints the fidelity of each surrogate with its interval,
the curve of size against fidelity, the rules, the tree as plain Python, an audit (distill and compare), and a local
explanation of one prediction. A surrogate describes what the teacher does, not whether it is right.
"""

import argparse
import lzma
import os
import pathlib

import keras
import numpy as np

from keras_distill import explain

ADULT = (
    "age workclass fnlwgt education education_num marital_status occupation relationship race sex capital_gain "
    "capital_loss hours_per_week country"
).split()


def adult() -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """Rows, labels, names of the columns and of the classes; categories become 0-1 columns of the frequent values."""
    beside = pathlib.Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = pathlib.Path(os.environ.get("KERAS_DISTILL_DATA") or beside) / "adult_census"
    text = lzma.decompress((folder / "adult.data.xz").read_bytes()).decode()
    rows = np.array([[cell.strip() for cell in line.split(",")] for line in text.splitlines() if line.count(",") == 14])
    columns, names = [], []
    for name, values in zip(ADULT, rows.T, strict=False):
        if name in ("fnlwgt", "education"):  # a sampling weight; the same as education_num
            continue
        if values[0].lstrip("-").isdigit():
            columns.append(values.astype("float32"))
            names.append(name)
            continue
        kinds, counts = np.unique(values, return_counts=True)
        for kind in kinds[counts > 300]:
            columns.append((values == kind).astype("float32"))
            names.append(f"{name}_{kind}".replace("-", "_").replace("?", "unknown"))
    return np.stack(columns, 1), (rows[:, 14] == ">50K").astype("int32"), names, ["up to 50K", "above 50K"]


def breast_cancer() -> tuple[np.ndarray, np.ndarray, list[str], list[str]]:
    """scikit-learn's bundled table."""
    from sklearn.datasets import load_breast_cancer

    loaded = load_breast_cancer()
    names = [name.replace(" ", "_") for name in loaded.feature_names]
    return loaded.data.astype("float32"), loaded.target.astype("int32"), names, ["malignant", "benign"]


def main() -> None:
    """Train a teacher on half of the rows and explain it on the other half."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="a small table")
    smoke = parser.parse_args().smoke
    x, y, columns, classes = breast_cancer() if smoke else adult()
    order = np.random.default_rng(0).permutation(len(x))
    known, rest = order[: len(x) // 2], order[len(x) // 2 :]

    keras.utils.set_random_seed(0)
    normal = keras.layers.Normalization()
    normal.adapt(x[known])
    hidden = [keras.layers.Dense(64, activation="relu") for _ in range(2)]
    teacher = keras.Sequential([keras.Input((x.shape[1],)), normal, *hidden, keras.layers.Dense(2)])
    teacher.compile(keras.optimizers.Adam(2e-3), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    teacher.fit(x[known], y[known], batch_size=64 if smoke else 256, epochs=8, verbose=0)
    right = teacher.predict(x[rest], batch_size=1024, verbose=0).argmax(-1) == y[rest]
    print(f"teacher: {100 * right.mean():.1f}% right on rows it has not seen")

    names = {"feature_names": columns, "class_names": classes}
    made = {}
    for kind, size in (("tree", 32), ("rules", 12), ("linear", 12), ("additive", 12)):
        made[kind] = explain.surrogate(teacher, x[rest], kind, size=size, samples=2000, **names)
        print(made[kind])
    print("\nwhat being readable costs (leaves: fidelity held out, sampled):")
    for size, held, sampled in made["tree"].curve((2, 4, 8, 16, 32)):
        print(f"  {size:3d}: {held.value:.3f} [{held.low:.3f}, {held.high:.3f}], {sampled.value:.3f}")
    print("\nthe rules, the first that holds counts:")
    print(*made["rules"].rules(), sep="\n")
    small = explain.surrogate(teacher, x[rest], "tree", size=4, **names)
    print("\nfour leaves as Python:\n" + small.to_code("answer"))
    model = made["tree"].to_model()  # a Keras model: export.saved_model serves it
    same = np.asarray(model(x[rest])).argmax(-1) == made["tree"].predict(x[rest]).argmax(-1)
    print(f"the tree as a Keras model gives the same answer on {100 * same.mean():.1f}% of the rows")
    print("\nwhere teacher and outcomes part:")
    print(explain.audit(teacher, x[rest], y[rest], **names))
    one = explain.local_surrogate(teacher, x[rest][0], x[rest][:100])
    strongest = np.argsort(-np.abs(one.contributions * x[rest][:100].std(0)))[:5]
    print(f"\nwhy '{classes[one.target]}' for the first row (local fidelity {one.fidelity:.2f}):")
    for column in strongest:
        print(f"  {columns[column]} = {x[rest][0][column]:.4g}: slope {one.contributions[column]:+.3g}")


if __name__ == "__main__":
    main()
