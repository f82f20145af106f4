"""Distil a network into a soft decision tree: every prediction is one path of filters that can be visualised.

Run: python examples/mnist_tree.py  (5 CPU minutes; --smoke: scikit-learn's digits, under a minute)

Writes mnist_tree.svg (the upper levels with their filters), mnist_tree.html (teacher and tree side by side, example by
example) and a SavedModel that serves the path with each prediction, and prints the path of one image.
Accuracies over several seeds are in benchmarks/results/explain.json.
"""

import argparse
import pathlib

import keras
import numpy as np

from keras_distill import Distiller, LogitsDistillation, data, export, report, students


def teacher_network(shape: tuple[int, ...], classes: int, width: int) -> keras.Model:
    """Two convolutions and a hidden layer; logits."""
    return keras.Sequential(
        [
            keras.Input(shape),
            keras.layers.Conv2D(width, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(width, 3, strides=2, padding="same", activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(8 * width, activation="relu"),
            keras.layers.Dense(classes),
        ]
    )


def trained(model: keras.Model, examples: data.Examples, epochs: int, rate: float, batch_size: int) -> keras.Model:
    """Train with Adam and a cosine decay."""
    steps = epochs * max(1, len(examples) // batch_size)
    optimizer = keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(rate, steps))
    model.compile(optimizer, keras.losses.SparseCategoricalCrossentropy(from_logits=True), steps_per_execution=10)
    model.fit(examples.inputs, examples.labels, batch_size=batch_size, epochs=epochs, verbose=0)
    return model


def accuracy(model: keras.Model, examples: data.Examples) -> float:
    """In percent."""
    answers = model.predict(examples.inputs, batch_size=1000, verbose=0).argmax(-1)
    return 100 * float(np.mean(answers == examples.labels))


def main() -> None:
    """Train a teacher, a tree on labels and a distilled tree; visualise the last one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smoke", action="store_true", help="digits, a shallow tree, few epochs")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("mnist_tree_output"))
    arguments = parser.parse_args()
    smoke = arguments.smoke
    source = data.load("digits" if smoke else "mnist")
    train, test = source.train.take(640 if smoke else 60_000), source.test
    depth, epochs, width, batch, rate = (3, 4, 8, 32, 1e-2) if smoke else (8, 16, 16, 64, 3e-3)
    few = train.take(320 if smoke else 1000)  # labelled images; the teacher labels the rest

    keras.utils.set_random_seed(0)
    shape = train.inputs.shape[1:]
    first = trained(teacher_network(shape, 10, width), train, 3, 2e-3, batch)
    second = trained(teacher_network(shape, 10, width), train, 3, 2e-3, batch)  # for the ceiling
    labelled = trained(students.SoftDecisionTree(depth, 10, loss="mixture"), few, epochs if smoke else 60, rate, batch)
    tree = students.SoftDecisionTree(depth, 10, loss="mixture")
    distiller = Distiller(first, tree, LogitsDistillation(temperature=2.0), student_loss_weight=0.0)
    trained(distiller, train, epochs, rate, batch)
    print(f"teacher {accuracy(first, test):.2f}%, {first.count_params()} parameters")
    print(f"tree from {len(few)} labels {accuracy(labelled, test):.2f}%")
    print(f"tree from the teacher's answers to {len(train)} images {accuracy(tree, test):.2f}%")

    path = tree.explain(test.inputs[:1])[0]
    print(f"\nthe first test image is a {test.labels[0]}; the tree says {path.prediction}:")
    for node, right, probability in zip(path.nodes, path.directions, path.probabilities, strict=True):
        print(f"  node {node:3d}: {'right' if right else 'left ':5} with probability {probability:.3f}")
    print(f"  leaf {path.leaf}: reached with probability {path.path_probability:.3f}")

    arguments.out.mkdir(parents=True, exist_ok=True)
    print("drawn:", tree.draw(arguments.out / "mnist_tree.svg"))
    served = export.saved_model(tree.with_path(), arguments.out / "tree", task=tree.served_tasks)
    print("served with its path:", served.path)
    page = report.evaluate(
        {"teacher": [first, second], "tree": tree},
        (test.inputs, test.labels),
        reference="teacher",
        explain=True,
        title="A teacher and its tree",
    ).save(arguments.out / "mnist_tree.html")
    print("page:", page)


if __name__ == "__main__":
    main()
