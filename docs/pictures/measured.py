"""Pictures drawn from benchmarks/results: ``python -m docs.pictures.measured [name ...]``."""

import json

from matplotlib import pyplot as plt

from docs.pictures import GREEN, OTHER, OURS, ROOT, WARM, bars, draw


def results(name):
    """Return the kept results of a benchmark."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))["results"]


def domains():
    """Accuracy on the domains with and without labels."""
    rows = [row for row in results("domains") if "seeds" in row]
    figure, axis = plt.subplots(figsize=(6, 2.4))
    names = {"plain": "distilled alone", "mmd": "distilled, with MMD"}
    labels = [f"{names.get(row['model'], row['model'])}, {where}" for where in ("target", "source") for row in rows]
    values = [row["mean"][where] for where in ("target", "source") for row in rows]
    bars(axis, labels, values, "accuracy, %", [WARM, OURS] * 2, "{:.1f}")
    return figure


def features():
    """Time of a step with a named layer, for both packages."""
    rows = [row for row in results("features") if row.get("terms") == "layer" and row["steps_per_execution"] == 1]
    figure, axis = plt.subplots(figsize=(6, 2.2))
    labels = [f"{row['model']}, {who}" for row in rows for who in ("keras.distillation", "keras_distill")]
    values = [row[key] for row in rows for key in ("builtin_ms", "ours_ms")]
    bars(axis, labels, values, "milliseconds per step", [OTHER, OURS] * len(rows), "{:.0f}")
    return figure


def foreign_teachers():
    """Latency of one row: the trees with two interfaces, and their student."""
    row = next(row for row in results("foreign_teachers") if row.get("seconds for rows") == 1)
    names = ["predict_proba", "Booster.predict", "student"]
    figure, axis = plt.subplots(figsize=(6, 1.9))
    bars(axis, names, [1e6 * row[name] for name in names], "microseconds for one row", [OTHER, OTHER, OURS], "{:.0f}")
    return figure


def scale_out():
    """Step time against batch size, classes, teachers and terms."""
    figure, axis = plt.subplots(figsize=(6, 3.4))
    for curve, color in (("batch", OURS), ("classes", WARM), ("teachers", GREEN), ("terms", OTHER)):
        rows = [row for row in results("scaling") if row.get("curve") == curve and "milliseconds" in row]
        first = rows[0]
        xs = [row[curve] / first[curve] for row in rows]
        axis.plot(xs, [row["milliseconds"] / first["milliseconds"] for row in rows], "o-", color=color, label=curve)
    limit = axis.get_xlim()[1]
    axis.plot([1, limit], [1, limit], ":", color=OTHER, label="proportional")
    axis.set(xscale="log", yscale="log", xlabel="factor of growth", ylabel="step time, relative to the first point")
    axis.legend(frameon=False)
    return figure


def serve():
    """Latency and size of one student in each runtime."""
    rows = [row for row in results("serving") if row.get("data") == "fashion_mnist" and "runtime" in row]
    rows = [row for row in rows if "1" in row.get("latency_ms", {})]
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), sharey=True)
    names = [row["runtime"] for row in rows]
    bars(left, names, [row["latency_ms"]["1"]["median"] for row in rows], "milliseconds, batch of 1", OURS, "{:.2f}")
    bars(right, names, [row["size_bytes"] / 1024 for row in rows], "KiB on disk", GREEN, "{:.0f}")
    right.invert_yaxis()
    figure.tight_layout()
    return figure


def several_teachers():
    """NLL of one model, of an ensemble of ten and of one student of the ensemble."""
    found = {row["model"]: row for row in results("uncertainty_fashion_mnist") if "mean" in row}
    names = {"single": "one model", "ensemble": "ensemble of ten", "EnD": "student of the ensemble"}
    figure, axis = plt.subplots(figsize=(6, 1.9))
    values = [found[key]["mean"]["nll"] for key in names]
    for place, (value, color) in enumerate(zip(values, (OTHER, OTHER, OURS), strict=True)):
        axis.plot(value, place, "o", color=color, markersize=9)
        axis.annotate(f"{value:.3f}", (value, place), (9, -4), textcoords="offset points")
    axis.set(xlabel="NLL on Fashion-MNIST, nats", xlim=(0.415, 0.455), ylim=(2.5, -0.5))
    axis.set_yticks(range(3), names.values())
    axis.grid(axis="x", color="#e3e6e9")
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    return figure


def stored_teacher():
    """Duration of an epoch without a teacher, with stored predictions and with a live teacher."""
    rows = {
        row["program"]: row["seconds"]
        for row in results("stored_teacher")
        if row.get("pair") == "wide student" and row.get("clock") == "wall" and row.get("what") == "epoch"
    }
    names = {"student": "student alone", "stored": "stored teacher", "stored top 5": "stored, 5 classes"}
    names |= {"live": "live teacher", "builtin": "keras.distillation"}
    figure, axis = plt.subplots(figsize=(6, 2.4))
    colors = [OTHER, OURS, OURS, WARM, OTHER]
    bars(axis, list(names.values()), [rows[key] for key in names], "seconds per epoch", colors, "{:.1f}")
    return figure


def uncertainty():
    """AUROC of detecting out-of-distribution images."""
    found = {row["model"]: row for row in results("uncertainty_fashion_mnist") if "mean" in row}
    names = {"single": "one model", "EnD": "EnD", "EnD2": "EnD²", "EnD2+AUX": "EnD² + auxiliary images"}
    names |= {"Proxy": "proxy targets", "ensemble": "ensemble of ten"}
    figure, axis = plt.subplots(figsize=(6, 2.6))
    values = [found[key]["mean"]["auroc_kmnist_test"] for key in names]
    bars(axis, list(names.values()), values, "AUROC: Fashion-MNIST or KMNIST?", [OTHER, *[OURS] * 4, OTHER], "{:.2f}")
    axis.set_xlim(0.5, 1.02)
    return figure


if __name__ == "__main__":
    draw([domains, features, foreign_teachers, scale_out, serve, several_teachers, stored_teacher, uncertainty])
