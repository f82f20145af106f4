"""Small models for CIFAR-10 (a tenth of the file size, a quarter of the latency) and for SST-2 (half the blocks)."""

from __future__ import annotations

import itertools
from typing import Any

import keras
import keras_hub
import numpy as np
import tensorflow as tf

from benchmarks._students import Answers, Training, accuracy, folder, litert_times, plain, random_weights, residual
from keras_distill import data, students

WORDS, TOKENS = 6000, 36


def cifar10(full: bool, table: Any) -> None:
    """Built with 3 tenths of the parameters, distilled on unlabelled images, then trained in int8.

    CIFAR-10 here is recompressed as JPEG. The teacher learns from 30000 labelled images for 8 epochs. The student
    learns the teacher's predictions for 40000 images: 4 epochs in float, 1 with fake quantisers; learning rate and
    temperature are those chosen on Fashion-MNIST. Files are LiteRT; latencies are for one image on one thread.
    """
    loaded = data.load("cifar10_jpeg")
    labelled, pictures = (loaded.train.take(count) for count in ((30000, 40000) if full else (128, 256)))
    test = loaded.test if full else loaded.test.take(300)
    path = folder(full) / "cifar10.keras"
    if not path.exists():
        keras.utils.set_random_seed(0)
        teacher = residual((32, 32, 3))
        Training(teacher, plain(labelled), len(labelled), 8 if full else 1).run(0, teacher.get_weights()).save(path)
    teacher = keras.saving.load_model(path)
    answers = Answers(teacher, pictures, folder(full) / "cifar10_answers")
    top = table.runs("teacher", lambda: accuracy(teacher, test))
    table.report.add({"way": "teacher", "parameters": teacher.count_params()}, {"accuracy": top})
    size = int(0.3 * teacher.count_params())
    built = students.from_teacher(teacher, budget=students.Budget(parameters=size))
    start = built.model.get_weights()
    training = Training(built.model, answers.examples, answers.count, 4, 2e-3, answers.teacher, 0.0, 4.0)
    kept: dict[str, float] = {}

    def run(seed: int) -> list[float]:
        floating = accuracy(training.run(seed, start), test)
        student = students.quantization_aware(built.model, data=pictures.inputs[:512])
        last = Training(student, answers.examples, answers.count, 1, 5e-4, answers.teacher, 0.0)
        last.run(seed, student.get_weights())
        kept.update(_files(teacher, student, test.inputs[:1]))
        return [accuracy(student, test), floating, kept["size"], kept["speed"]]

    found = np.array([table.runs(f"student {seed}", lambda s=seed: run(s)) for seed in range(table.seeds)])
    mean = found.mean(0).tolist()
    settings = {"way": "built and int8", "parameters": built.cost.parameters, "seeds": table.seeds}
    names = ("accuracy", "accuracy before int8", "teacher's file over its file", "teacher's time over its time")
    table.report.add(settings, {**dict(zip(names, mean, strict=True)), "spread": float(found[:, 0].std())})
    table.report.verdict("times smaller file", mean[2], at_least=10.0)
    table.report.verdict("times faster", mean[3], at_least=4.0)
    table.report.verdict("points lost", top - mean[0], at_most=2.0)


def _files(teacher: keras.Model, student: keras.Model, picture: np.ndarray) -> dict[str, float]:
    """How many times smaller and faster the student's int8 file is than the teacher's float file."""
    from keras_distill import export

    path = folder(True) / "teacher.tflite"
    export.litert(teacher, path, latency_batch_sizes=())
    contents = {"teacher": path.read_bytes(), "student": students.quantized_litert("students", student)}
    samples = litert_times(contents, picture, rounds=25)
    size = len(contents["teacher"]) / len(contents["student"])
    return {"size": size, "speed": samples.ratio("teacher", "student").median}


def classifier(blocks: int) -> keras.Model:
    """A keras-hub BERT without pre-training, and a linear head on the mean over the words."""
    backbone = keras_hub.models.BertBackbone(
        vocabulary_size=WORDS + 1,
        num_layers=blocks,
        num_heads=4,
        hidden_dim=64,
        intermediate_dim=128,
        max_sequence_length=TOKENS,
        name="backbone",
    )
    inputs = {name: keras.Input((TOKENS,), dtype="int32", name=name) for name in backbone.input}
    states = backbone(inputs)["sequence_output"]
    pooled = keras.layers.GlobalAveragePooling1D()(states, mask=inputs["padding_mask"])
    return keras.Model(inputs, keras.layers.Dense(2)(keras.layers.Dropout(0.3)(pooled)))


def sst2(full: bool, table: Any) -> None:
    """Half the blocks of a transformer, copied or random, and 2 epochs on the teacher's predictions.

    The teacher learns from the 6920 sentences for 6 epochs. It has no pre-training, because nothing can be downloaded
    here.
    """
    loaded = data.load("sst2")
    count, tests = (len(loaded.train), len(loaded.test)) if full else (128, 64)
    words = keras.layers.TextVectorization(WORDS)
    words.adapt(loaded.train.inputs[:count])
    x, test = (
        data.tokens(list(part.inputs[:most]), words, length=TOKENS, empty="keep")
        for part, most in ((loaded.train, count), (loaded.test, tests))
    )
    y, test_y = loaded.train.labels[:count], loaded.test.labels[:tests]
    source = tf.data.Dataset.from_tensor_slices((x, y))

    def right(model: keras.Model) -> float:
        return 100 * float((model.predict(test, batch_size=256, verbose=0).argmax(-1) == test_y).mean())

    keras.utils.set_random_seed(0)
    teacher = classifier(4)
    path = folder(full) / "sst2.weights.h5"
    if not path.exists():
        Training(teacher, source, count, 6 if full else 1, 5e-4).run(0, teacher.get_weights()).save_weights(path)
    teacher.load_weights(path)
    top = table.runs("teacher", lambda: right(teacher))
    table.report.add({"way": "teacher", "blocks": 4}, {"accuracy": top})
    half = students.from_teacher(teacher, depth=0.5).model
    start = half.get_weights()
    training = Training(half, source, count, 2, 5e-4, teacher, 0.1)
    found: dict[str, list[float]] = {"copied": [], "random": []}
    for seed, way in itertools.product(range(table.seeds), found):
        weights = start if way == "copied" else random_weights(half, seed)
        found[way].append(table.runs(f"{way} {seed}", lambda w=weights, s=seed: right(training.run(s, w))))
    for way, values in found.items():
        figures = {"accuracy": float(np.mean(values)), "spread": float(np.std(values))}
        table.report.add({"way": f"{way}, distilled", "blocks": 2, "seeds": table.seeds}, figures)
    copied, random = (float(np.mean(values)) for values in found.values())
    table.report.verdict("percent of the teacher's accuracy retained", 100 * copied / top, at_least=98.0)
    table.report.verdict("points over a random start", copied - random, at_least=0.0)
