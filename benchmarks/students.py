"""Small models from their teachers: built, factorised, quantised, each distilled and not, on real data.

The Fashion-MNIST rows have one teacher, a residual network of 152k parameters trained on 30000 labelled images:

- ``few``: a quarter of its parameters, built from it or random, with its predictions or with labels alone (2000 images,
  8 epochs); and with its predictions for 20000 unlabelled images (2 epochs). The channels are chosen by magnitude, by
  activation and at random.
- ``low_rank``: a third of its parameters by low rank, untrained, and after 2 epochs on its predictions; and three
  factorisations of each kernel at a third.
- ``bits``: weights of 4 and 3 bits, rounded only, and trained for one epoch on its predictions for 20000 images.
- ``side``: built, low rank and int8 at a quarter of its size, with 2000 and with 20000 labels, with and without its
  predictions, and with its predictions for unlabelled images. Each builder has its own number of epochs, since an int8
  step costs four of the others'; within a builder all columns but the first have the same.
- ``cifar10`` and ``sst2``: see ``_students_more.py``.

Adam's learning rate has a cosine decay. Its initial value, the temperature (4 for ``few``, ``low_rank`` and
``cifar10``, else 2) and the weight of labels next to predictions were chosen on 10000 separate training images of
Fashion-MNIST (``--held-out``, one or two seeds); ``side`` and ``sst2`` are not tuned. The last epoch is reported. Rows
are run one by one (``--rows few,bits``), and each writes a separate report, ``students_<row>.json``. A killed run
resumes where it stopped. Without ``--full`` there are no verdicts.
"""

from __future__ import annotations

from benchmarks import _harness
from benchmarks._resume import Runs

# isort: split
import functools
from collections.abc import Callable

import keras
import numpy as np

from benchmarks import _kernels, _students_more
from benchmarks._students import Answers, Training, accuracy, folder, plain, predict, random_weights, residual
from keras_distill import data, students
from keras_distill.data import Examples

CLAIM = (
    "A student initialised from its teacher and distilled is better than a random one or one trained on labels alone."
)
FEW, MANY = 2000, 20000


class Fashion:
    """The images, the teacher and its predictions, created once for all rows.

    Args:
        full: all images and epochs.
        held_out: evaluate on 10000 separate training images, to choose settings.
    """

    def __init__(self, full: bool, held_out: bool = False) -> None:
        loaded = data.load("fashion_mnist")
        few, many = (FEW, MANY) if full else (128, 512)
        self.full = full
        self.few, self.many = loaded.train.take(few), loaded.train.take(many)
        test = Examples(loaded.train.inputs[50000:], loaded.train.labels[50000:]) if held_out else loaded.test
        self.test = test if full else test.take(500)
        path = folder(full) / "fashion_mnist.keras"
        if not path.exists():
            keras.utils.set_random_seed(0)
            teacher = residual((28, 28, 1))
            seen = loaded.train.take(30000 if full else many)
            Training(teacher, plain(seen), len(seen), 6 if full else 1).run(0, teacher.get_weights()).save(path)
        self.teacher = keras.saving.load_model(path)
        self.size = self.teacher.count_params()
        self.classes = predict(self.teacher, self.test.inputs).argmax(-1)
        self.top = 100 * float((self.classes == self.test.labels).mean())

    @functools.cached_property
    def few_answers(self) -> Answers:
        """The teacher's predictions for the labelled images."""
        return Answers(self.teacher, self.few, folder(self.full) / "few")

    @functools.cached_property
    def many_answers(self) -> Answers:
        """The teacher's predictions for all images."""
        return Answers(self.teacher, self.many, folder(self.full) / "many")

    def taught(
        self,
        model: keras.Model,
        answers: Answers,
        epochs: int,
        rate: float,
        temperature: float = 2.0,
        labels: float = 0.0,
    ) -> Training:
        """A student trained on predictions, and on labels with the given weight."""
        return Training(model, answers.examples, answers.count, epochs, rate, answers.teacher, labels, temperature)

    def alone(self, model: keras.Model, many: bool, epochs: int, rate: float = 1e-3) -> Training:
        """A student trained on labels."""
        examples = self.many if many else self.few
        return Training(model, plain(examples), len(examples), epochs, rate)

    def judged(self, model: keras.Model) -> list[float]:
        """Accuracy on the test images and agreement with the teacher, in percent."""
        found = predict(model, self.test.inputs).argmax(-1)
        return [100 * float((found == wanted).mean()) for wanted in (self.test.labels, self.classes)]


class Table:
    """Runs methods over seeds, and keeps their results.

    Args:
        runs: of the row.
        report: of the row.
        seeds: how many.
    """

    def __init__(self, runs: Runs, report: _harness.Report, seeds: int) -> None:
        self.runs, self.report, self.seeds = runs, report, seeds
        self.mean: dict[str, float] = {}
        self.agreement: dict[str, float] = {}

    def way(self, name: str, make: Callable[[], Callable[[int], list[float]]], **settings: object) -> None:
        """Run one method for all seeds; ``make``, called only if a run is missing, returns a function of the seed."""
        once = functools.cache(make)
        found = np.array([self.runs(f"{name} {seed}", lambda s=seed: once()(s)) for seed in range(self.seeds)])
        self.mean[name], self.agreement[name] = found.mean(0).tolist()
        figures = {"accuracy": self.mean[name], "spread": float(found[:, 0].std()), "agreement": self.agreement[name]}
        self.report.add({"way": name, **settings, "seeds": self.seeds}, figures)


def few(task: Fashion, table: Table) -> None:
    """A quarter of the parameters with few labels."""
    built = students.from_teacher(task.teacher, budget=students.Budget(parameters=task.size // 4))
    model, start = built.model, built.model.get_weights()

    def way(training: Training, random: bool) -> Callable[[int], list[float]]:
        return lambda seed: task.judged(training.run(seed, random_weights(model, seed) if random else start))

    size = {"parameters": built.cost.parameters, "macs": built.cost.macs}
    for name, random in (("built", False), ("random", True)):
        distilled = functools.partial(task.taught, model, task.few_answers, 8, 4e-3, 4.0)
        unlabelled = functools.partial(task.taught, model, task.many_answers, 2, 2e-3, 4.0)
        table.way(f"{name}, distilled", lambda r=random, d=distilled: way(d(), r), **size)
        table.way(f"{name}, labels", lambda r=random: way(task.alone(model, False, 8, 4e-3), r), **size)
        table.way(f"{name}, unlabelled", lambda r=random, u=unlabelled: way(u(), r), **size)

    def chosen(score: str, seed: int) -> list[np.ndarray]:
        other = students.from_teacher(
            task.teacher,
            budget=students.Budget(parameters=task.size // 4),
            score=score,
            data=task.few.inputs[:512],
            seed=seed,
        )
        return other.model.get_weights()

    def by(score: str) -> Callable[[int], list[float]]:
        training = task.taught(model, task.few_answers, 8, 4e-3, 4.0)
        return lambda seed: task.judged(training.run(seed, chosen(score, seed)))

    for score in ("activation", "random"):
        table.way(f"built by {score}, distilled", lambda score=score: by(score), **size)
    mean, verdict = table.mean, table.report.verdict
    chance = mean["built by random, distilled"]
    for score, value in (
        ("magnitude", mean["built, distilled"]),
        ("activation", mean["built by activation, distilled"]),
    ):
        verdict(f"channels by {score}, points over channels at random", value - chance, at_least=0.0)
    verdict("parameters over the teacher's", built.cost.parameters / task.size, at_most=0.25)
    verdict("budget used", built.cost.parameters / (task.size // 4), at_least=0.98)
    verdict(
        "built and distilled, points over random and labels",
        mean["built, distilled"] - mean["random, labels"],
        at_least=5.0,
    )
    verdict(
        "built and distilled, points over built and labels",
        mean["built, distilled"] - mean["built, labels"],
        at_least=1.0,
    )
    verdict(
        "pictures without labels, points over 2000 labels",
        mean["built, unlabelled"] - mean["built, labels"],
        at_least=1.0,
    )


def low_rank(task: Fashion, table: Table) -> None:
    """A third of the parameters by low rank."""
    built = students.factorize(task.teacher, task.few.inputs[:512], budget=students.Budget(parameters=task.size // 3))
    start = built.model.get_weights()
    untrained = table.runs("untrained", lambda: accuracy(built.model, task.test))
    table.report.add({"way": "untrained", "parameters": built.cost.parameters}, {"accuracy": untrained})

    def make() -> Callable[[int], list[float]]:
        training = task.taught(built.model, task.many_answers, 2, 2e-3, 4.0)
        return lambda seed: task.judged(training.run(seed, start))

    table.way("distilled, 2 epochs", make, parameters=built.cost.parameters)
    shapes = table.runs(
        "shapes", lambda: _kernels.compare(task.teacher, task.few.inputs[:512], lambda m: accuracy(m, task.test))
    )
    for name, right in shapes.items():
        table.report.add({"way": f"each 3 x 3 kernel at a third: {name}, untrained"}, {"accuracy": right})
    verdict = table.report.verdict
    verdict("parameters over the teacher's", built.cost.parameters / task.size, at_most=1 / 3)
    verdict("untrained, percent right", untrained, at_least=85.0)
    verdict("points below the teacher after 2 epochs", task.top - table.mean["distilled, 2 epochs"], at_most=0.5)


def bits(task: Fashion, table: Table) -> None:
    """Weights of 4 and 3 bits."""
    rounded = {}
    for count in (4, 3):
        model = students.quantization_aware(task.teacher, count, None)
        start = model.get_weights()
        rounded[count] = table.runs(f"int{count} rounded", lambda m=model: task.judged(m))
        figures = dict(zip(("accuracy", "agreement"), rounded[count], strict=True))
        table.report.add({"way": f"int{count}, rounded"}, figures)

        def make(model: keras.Model = model, start: list = start) -> Callable[[int], list[float]]:
            training = task.taught(model, task.many_answers, 1, 5e-4)
            return lambda seed: task.judged(training.run(seed, start))

        table.way(f"int{count}, distilled", make)
    verdict = table.report.verdict
    verdict("int4, points below the float model", task.top - table.mean["int4, distilled"], at_most=0.5)
    verdict("int4, percent of agreement with the float model", table.agreement["int4, distilled"], at_least=97.5)
    verdict("int3, points over rounding", table.mean["int3, distilled"] - rounded[3][0], at_least=5.0)


def side(task: Fashion, table: Table) -> None:
    """Three builders at a quarter of the size, three amounts of data, with and without the teacher."""
    quarter = students.Budget(parameters=task.size // 4)
    sample = task.few.inputs[:512]
    makers = {  # the builder, epochs with few and with many images, and Adam's learning rate
        "built": (lambda: students.from_teacher(task.teacher, budget=quarter).model, 8, 4, 1e-3),
        "low rank": (lambda: students.factorize(task.teacher, sample, budget=quarter).model, 4, 2, 1e-3),
        "int8": (lambda: students.quantization_aware(task.teacher, 8, 8, data=sample), 3, 1, 2e-4),
    }
    for name, (make, short, long, rate) in makers.items():
        model = make()
        start = model.get_weights()
        ways = {
            "2000 labels": lambda m=model, e=short, r=rate: task.alone(m, False, e, r),
            "2000 labels, distilled": lambda m=model, e=short, r=rate: task.taught(
                m, task.few_answers, e, r, labels=0.1
            ),
            "20000 labels": lambda m=model, e=long, r=rate: task.alone(m, True, e, r),
            "20000 labels, distilled": lambda m=model, e=long, r=rate: task.taught(
                m, task.many_answers, e, r, labels=0.1
            ),
            "20000 without labels": lambda m=model, e=long, r=rate: task.taught(m, task.many_answers, e, r),
        }
        untrained = table.runs(f"{name} untrained", lambda m=model: task.judged(m))
        table.report.add({"way": f"{name}, untrained"}, dict(zip(("accuracy", "agreement"), untrained, strict=True)))
        for way, prepare in ways.items():

            def ready(prepare: Callable[[], Training] = prepare, start: list = start) -> Callable[[int], list[float]]:
                training = prepare()
                return lambda seed: task.judged(training.run(seed, start))

            epochs = short if way.startswith("2000 ") else long
            table.way(f"{name}, {way}", ready, epochs=epochs)
    gains = {
        (name, supply): table.mean[f"{name}, {supply}, distilled"] - table.mean[f"{name}, {supply}"]
        for name in makers
        for supply in ("2000 labels", "20000 labels")
    }
    for (name, supply), gain in gains.items():
        table.report.add({"way": f"{name}, {supply}"}, {"gain of distillation, points": gain})
    verdict = table.report.verdict
    verdict(
        "built, 20000 labels and 4 epochs: points gained by distillation", gains["built", "20000 labels"], at_least=0.0
    )


FASHION = {"few": few, "low_rank": low_rank, "bits": bits, "side": side}
OTHERS = {"cifar10": _students_more.cifar10, "sst2": _students_more.sst2}


def main() -> None:
    """Run the requested rows."""
    rows = ",".join([*FASHION, *OTHERS])
    options = _harness.arguments(
        __doc__,
        rows={"default": rows, "help": f"of {rows}"},
        seeds={"type": int, "default": 5},
        held_out={"action": "store_true", "help": "judge the Fashion-MNIST rows on training pictures kept aside"},
    )
    chosen = options.rows.split(",")
    unknown = set(chosen) - {*FASHION, *OTHERS}
    if unknown:
        raise SystemExit(f"--rows: expected some of {rows}, got {', '.join(sorted(unknown))}")
    task = Fashion(options.full, options.held_out) if set(chosen) & set(FASHION) else None
    for row in chosen:
        report = _harness.Report(f"students_{row}", CLAIM, options)
        runs = Runs(folder(options.full, options.held_out) / f"{row}.runs.json")
        table = Table(runs, report, options.seeds)
        if row in FASHION:
            report.add({"way": "teacher", "parameters": task.size}, {"accuracy": task.top})
            FASHION[row](task, table)
        else:
            OTHERS[row](options.full, table)
        report.write()


if __name__ == "__main__":
    main()
