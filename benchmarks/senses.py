"""From written to spoken digits: the share of the teacher's accuracy that a student of recordings keeps without labels.

Models and pairs are those of ``examples/spoken_and_written.py``: a teacher of 20,000 images (MNIST), a student of
2,700 recordings, each paired with an image of its digit, and the same student trained on labels. Tested on 300 other
recordings. Each recording is also used twice shifted by up to 0.15 s, with an image of its own, at temperature 1, which
was chosen on 400 held-out training recordings. The students' learning rate follows a cosine. Run with
``python -m benchmarks.senses --full --seeds 3``.
"""

from __future__ import annotations

from benchmarks import _harness, _resume

# isort: split
import keras
import numpy as np

from examples import spoken_and_written as shown
from keras_distill import Distiller, LogitsDistillation, data, teachers

CLAIM = "A student of another modality, from pairs without labels, keeps 90% of its teacher's accuracy."


def shifted(waves: np.ndarray, copies: int) -> np.ndarray:
    """The recordings, and copies of them shifted by up to 0.15 s, with silence where nothing was recorded."""
    random, limit = np.random.default_rng(0), int(0.15 * shown.RATE)
    made = [waves]
    for _ in range(copies):
        moved = np.zeros_like(waves)
        for wave, target, by in zip(waves, moved, random.integers(-limit, limit + 1, len(waves)), strict=True):
            target[max(by, 0) : len(wave) + min(by, 0)] = wave[max(-by, 0) : len(wave) - max(by, 0)]
        made.append(moved)
    return np.concatenate(made)


def main() -> None:
    """Train and evaluate."""
    options = _harness.arguments(__doc__, seeds={"type": int, "default": 1})
    kept = _harness.Report("senses", CLAIM, options)
    runs = _resume.Runs(options.out / f"senses_{'full' if options.full else 'quick'}.runs.json")
    (waves, digits), (test_waves, test_digits) = shown.recordings(not options.full)
    written = data.load("mnist" if options.full else "digits")
    copies, epochs = (2, 8) if options.full else (1, 1)
    digits = np.tile(digits, copies + 1)
    sound, test_sound = shown.spectrograms(shifted(waves, copies)), shown.spectrograms(test_waves)
    picture = shown.paired(written.train.inputs, written.train.labels, digits, 0)
    test_picture = shown.paired(written.test.inputs, written.test.labels, test_digits, 1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def pictures_learned(model: keras.Model) -> None:
        some = written.train.take(20_000 if options.full else 960)
        model.compile(keras.optimizers.Adam(3e-3), loss, jit_compile=False)
        model.fit(some.inputs, some.labels, epochs=2, batch_size=64, verbose=0)

    keras.utils.set_random_seed(0)
    network = keras.Sequential([shown.tower(picture.shape[1:], 32), keras.layers.Dense(10)])
    teacher = runs.model("teacher", network, pictures_learned)

    def accuracy(model: keras.Model, x: np.ndarray) -> float:
        return 100 * float(np.mean(model.predict(x, verbose=0).argmax(1) == test_digits))

    def student(way: str, seed: int) -> float:
        keras.utils.set_random_seed(seed)
        model = shown.recogniser(sound.shape[1:], 16)
        settings = {"epochs": epochs, "batch_size": 32, "verbose": 0}
        falling = keras.optimizers.schedules.CosineDecay(3e-3, epochs * -(-len(digits) // 32))
        if way == "labels":
            model.compile(keras.optimizers.Adam(falling), loss, jit_compile=False)
            model.fit(sound, digits, **settings)
            return accuracy(model, test_sound)
        paired_teacher = teachers.Preprocessed(teacher, lambda x: x["picture"], lambda x: x["sound"])
        distiller = Distiller(paired_teacher, model, LogitsDistillation(1.0), student_loss_weight=0.0)
        distiller.compile(keras.optimizers.Adam(falling), jit_compile=False)
        distiller.fit({"picture": picture, "sound": sound}, **settings)
        return accuracy(model, test_sound)

    top = runs("teacher", lambda: accuracy(teacher, test_picture))
    kept.add({"model": "teacher, images"}, {"accuracy": top, "parameters": teacher.count_params()})
    mean = {}
    for way in ("labels", "pairs without labels"):
        each = [runs(f"{way} {seed}", lambda w=way, s=seed: student(w, s)) for seed in range(options.seeds)]
        mean[way] = float(np.mean(each))
        kept.add({"model": f"student, sound, {way}", "seeds": len(each)}, {"accuracy": mean[way], "runs": each})
    share = 100 * mean["pairs without labels"] / top
    kept.verdict("percent of the teacher's accuracy that the student keeps", share, at_least=90.0)
    kept.write()
    runs.finish()


if __name__ == "__main__":
    main()
