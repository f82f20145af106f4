"""Everything that writes, killed before each operation on a file, and refused each of them: whole or not at all.

Backups and stores of teachers have tests of their own, where they live.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, LogitsDistillation, regimes, teachers
from keras_distill.callbacks import Backup
from keras_distill.export._staging import staged_files, staged_version, versions
from tests.faults import contents
from tests.models import batch, mlp, replicas
from tests.report.test_hostile_text import made

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
FILES = {"saved_model.pb": b"graph" * 9, "variables/variables.index": b"weights" * 9}
FAILURES = ["disk full", "forbidden"]


def visible(folder):
    """What readers look at: no hidden name."""
    found = contents(folder)
    return {path: each for path, each in found.items() if not any(part.startswith(".") for part in path.split("/"))}


def export_version(folder):
    with staged_version("export.test", folder, None) as (aside, _):
        for name, content in FILES.items():
            (aside / name).parent.mkdir(exist_ok=True)
            (aside / name).write_bytes(content)


def export_file(folder, content=b"new" * 20):
    with staged_files("export.test", folder / "student.onnx", ".onnx") as path:
        path.write_bytes(content)
        (path.parent / "MODEL_CARD.md").write_bytes(content[::-1])


def whole_version(folder, number):
    return {str(path.relative_to(folder / number)): path.read_bytes()
            for path in sorted((folder / number).rglob("*")) if path.is_file()} == FILES  # fmt: skip


def test_a_version_is_served_whole_or_not_at_all(tmp_path, faults):
    export_version(tmp_path / "model")
    states = faults.crash_points(tmp_path / "model", lambda: export_version(tmp_path / "model"))
    assert len(states) >= 3
    for state in states:
        there = versions(state)
        assert there in ([1], [1, 2]) and all(whole_version(state, str(number)) for number in there)
        export_version(state)
        assert whole_version(state, str(there[-1] + 1))


def test_a_file_is_replaced_whole_and_comes_after_its_card(tmp_path, faults):
    (tmp_path / "out").mkdir()
    export_file(tmp_path / "out", b"old" * 20)
    states = faults.crash_points(tmp_path / "out", lambda: export_file(tmp_path / "out"))
    assert len(states) >= 4
    for state in states:
        assert (state / "student.onnx").read_bytes() in (b"old" * 20, b"new" * 20)
        export_file(state)
        assert visible(state) == {"student.onnx": b"new" * 20, "MODEL_CARD.md": (b"new" * 20)[::-1]}


@pytest.mark.parametrize("kind", FAILURES)
@pytest.mark.parametrize("act", [export_version, export_file])
def test_an_export_that_the_disk_refuses_is_one_sentence_and_leaves_what_was_there(tmp_path, faults, kind, act):
    said = []

    def failing(number):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "note.txt").write_bytes(b"mine")
        try:
            act(folder)
        except ValueError as problem:
            said.append(str(problem))
            assert set(visible(folder)) <= {"note.txt", "MODEL_CARD.md"}
            assert (folder / "note.txt").read_bytes() == b"mine"
            act(folder)  # and again, now that there is room

    count = faults.each_failure(kind, failing)
    assert count >= 2 and said and all(text.startswith("export.test: expected") for text in said)


@pytest.mark.parametrize("name", ["report.json", "report.html"])
def test_a_report_is_the_old_one_or_the_new_one(tmp_path, faults, name):
    folder = tmp_path / "reports"
    folder.mkdir()
    old, new = made("old"), made("new")
    old.save(folder / name)
    before = (folder / name).read_bytes()
    states = faults.crash_points(folder, lambda: new.save(folder / name))
    after = (folder / name).read_bytes()
    assert len(states) >= 4 and before != after
    for state in states:
        assert visible(state) in ({name: before}, {name: after})
        new.save(state / name)
        assert set(visible(state)) == {name}
        again = (state / name).read_bytes()  # the figures of a page have random names
        assert again == after if name.endswith(".json") else again.endswith(b"</html>\n")


def gathered(folder, calls):
    buffer = teachers.PolicyBuffer(folder, capacity=10)
    for number in range(len(buffer.states) // 5 if len(buffer) else 0, calls):
        buffer.add(np.full((5, 2), number), np.full((5, 3), number))
    return buffer


def test_a_policy_buffer_loses_no_finished_call_and_shows_no_half_one(tmp_path, faults):
    gathered(tmp_path / "buffer", 1)
    states = faults.crash_points(tmp_path / "buffer", lambda: gathered(tmp_path / "buffer", 2))
    assert len(states) >= 6
    for state in states:
        there = teachers.PolicyBuffer(state, capacity=10)
        assert len(there) in (5, 10)
        after = gathered(state, 2)
        np.testing.assert_array_equal(after.states[:, 0], np.repeat([0, 1], 5))
        np.testing.assert_array_equal(after.values[:, 0], np.repeat([0, 1], 5))

    def failing(number):
        folder = tmp_path / f"failing-{number}"
        try:
            gathered(folder, 2)
        except ValueError as problem:
            assert str(problem).startswith("PolicyBuffer: expected to write")
            np.testing.assert_array_equal(gathered(folder, 2).states[:, 0], np.repeat([0, 1], 5))

    assert faults.each_failure("disk full", failing, every=2) >= 4


@pytest.mark.slow
def test_generations_go_on_from_every_crash_point(tmp_path, faults):
    x, y = batch(8)

    def run(folder):
        born = regimes.BornAgain(lambda: mlp(4, 4, seed=5), 1, directory=folder, seed=3)
        born.compile(keras.optimizers.SGD(0.1), CROSS_ENTROPY, run_eagerly=True)
        born.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
        return born.student.get_weights()

    expected = run(tmp_path / "expected")
    states = faults.crash_points(tmp_path / "runs", lambda: run(tmp_path / "runs"))
    assert len(states) > 10
    for state in states[:: max(1, len(states) // 8)]:
        for ours, theirs in zip(run(state), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["xla", "mixed precision", "two replicas", "mutual learning"])
def test_training_goes_on_from_crash_points_however_it_is_run(tmp_path, faults, how):
    """As ``tests/callbacks/test_backup.py`` has it for eager training, at a few of the crash points."""
    if how == "mixed precision":
        keras.config.set_dtype_policy("mixed_float16")
    data = tf.data.Dataset.from_tensor_slices(batch(16)).batch(8)

    def run(folder):
        keras.utils.set_random_seed(0)
        with replicas(2 if how == "two replicas" else 1).scope():
            learners = [mlp(5, 4, seed=seed) for seed in (2, 3)]
            if how == "mutual learning":
                trained = regimes.MutualLearning(learners)
            else:
                trained = Distiller(mlp(8, 4, seed=1), learners[0], LogitsDistillation(2.0))
            trained.compile(keras.optimizers.SGD(0.05, momentum=0.9), CROSS_ENTROPY, jit_compile=how == "xla")
        trained.fit(data, epochs=3, verbose=0, callbacks=[Backup(folder)])
        return trained.get_weights()

    expected = run(tmp_path / "expected")
    states = faults.crash_points(tmp_path / "backups", lambda: run(tmp_path / "backups"))
    assert len(states) > 12
    for state in states[len(states) // 4 :: len(states) // 4]:
        for ours, theirs in zip(run(state), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
