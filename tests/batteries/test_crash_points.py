"""Everything that writes files, killed before each file operation and with each operation failing: all or nothing.

Backups and stored predictions have their own tests.
"""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, LogitsDistillation, regimes, teachers
from keras_distill.callbacks import Backup
from keras_distill.cli._output import move, output_folder
from keras_distill.export._staging import staged_files, staged_version, versions
from tests.batteries import test_regimes as battery
from tests.faults import contents
from tests.models import batch, mlp, replicas
from tests.report.test_hostile_text import made

CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
FILES = {"saved_model.pb": b"graph" * 9, "variables/variables.index": b"weights" * 9}
FAILURES = ["disk full", "forbidden"]


def visible(folder):
    """The files that readers see: no hidden names."""
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


def test_a_version_is_served_complete_or_not_at_all(tmp_path, faults):
    export_version(tmp_path / "model")
    states = faults.crash_points(tmp_path / "model", lambda: export_version(tmp_path / "model"))
    assert len(states) >= 3
    for state in states:
        there = versions(state)
        assert there in ([1], [1, 2]) and all(whole_version(state, str(number)) for number in there)
        export_version(state)
        assert whole_version(state, str(there[-1] + 1))


def test_a_file_is_replaced_atomically_and_after_its_card(tmp_path, faults):
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
def test_an_export_that_fails_on_disk_raises_a_clear_error_and_keeps_existing_files(tmp_path, faults, kind, act):
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
            act(folder)  # and again, now that the disk works

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
        again = (state / name).read_bytes()  # figures on a page have random names
        assert again == after if name.endswith(".json") else again.endswith(b"</html>\n")


def gathered(folder, calls):
    buffer = teachers.PolicyBuffer(folder, capacity=10)
    for number in range(len(buffer.states) // 5 if len(buffer) else 0, calls):
        buffer.add(np.full((5, 2), number), np.full((5, 3), number))
    return buffer


def test_a_policy_buffer_keeps_finished_calls_and_hides_partial_ones(tmp_path, faults):
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


RESULTS = {"serving/digits": b"served", "student.keras": b"student", "report.html": b"report"}


def demonstrate(folder, ending=b"new"):
    """The file operations of ``keras-distill demo`` and ``shrink``, without the training."""
    with output_folder("demo", str(folder)) as (out, aside):
        (aside / "serving" / "digits").mkdir(parents=True)
        for name, content in RESULTS.items():
            path = aside / name / "saved_model.pb" if name.startswith("serving") else aside / name
            path.write_bytes(content + ending)
        for name in RESULTS:
            move(aside, out, name)


def test_a_commands_results_are_complete_and_leftovers_of_a_kill_are_removed(tmp_path, faults):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_bytes(b"mine")
    demonstrate(tmp_path / "out", b"old")
    states = faults.crash_points(tmp_path / "out", lambda: demonstrate(tmp_path / "out"))
    assert len(states) >= 6
    for state in states:
        found = {path: each for path, each in visible(state).items() if each is not None}
        assert found.pop("mine.txt") == b"mine"
        assert found.pop("serving/digits/saved_model.pb", b"servednew") in (b"servedold", b"servednew")
        assert all(each in (RESULTS[path] + b"old", RESULTS[path] + b"new") for path, each in found.items())
        assert set(found) == {"student.keras", "report.html"}
        demonstrate(state)
        assert not [path for path in state.iterdir() if path.name.startswith(".")]
        assert (state / "serving/digits/saved_model.pb").read_bytes() == b"servednew"


@pytest.mark.parametrize("kind", FAILURES)
def test_a_command_that_fails_on_disk_leaves_no_temporary_files(tmp_path, faults, kind):
    def failing(number):
        folder = tmp_path / str(number)
        folder.mkdir()
        try:
            demonstrate(folder)
        except (ValueError, OSError) as problem:  # the command turns the second kind into its own message
            said = "demo: expected a folder that can be written to" if isinstance(problem, ValueError) else "injected"
            assert said in str(problem)
            demonstrate(folder)
        assert not [path for path in folder.iterdir() if path.name.startswith(".")]

    assert faults.each_failure(kind, failing) >= 3


def test_unfinished_files_of_a_live_run_are_kept(tmp_path):
    with output_folder("demo", str(tmp_path)) as (_, aside):
        (aside / "half").write_bytes(b"half")
        demonstrate(tmp_path)
        assert (aside / "half").read_bytes() == b"half"


def test_folds_resume_from_crash_points(tmp_path, faults):
    x, y = batch(12)[0], np.arange(12) % 4

    def run(folder):
        def teacher():
            made = mlp(4, 4, seed=1)
            made.compile(keras.optimizers.SGD(0.1), CROSS_ENTROPY, run_eagerly=True)
            return made

        asked = {"batch_size": 12, "verbose": 0, "shuffle": False}
        return regimes.cross_fit(teacher, (x, y), 2, fit_arguments=asked, directory=folder).answers

    expected = []
    states = faults.crash_points(tmp_path / "runs", lambda: expected.append(run(tmp_path / "runs")))
    assert len(states) >= 8
    for state in states[len(states) // 3 :: len(states) // 3][:2]:
        np.testing.assert_array_equal(run(state), expected[0])


def test_a_peer_reads_the_others_weights_complete_or_not_at_all(tmp_path, faults):
    weights = [np.arange(6.0), np.ones((2, 3))]

    def show(folder):
        exchange = regimes.PeerExchange(folder, 0, 2, timeout_seconds=0.01)
        exchange.show(5, weights)
        exchange.forget(5)

    regimes.PeerExchange(tmp_path / "peers", 0, 2).show(0, weights)
    states = faults.crash_points(tmp_path / "peers", lambda: show(tmp_path / "peers"))
    assert len(states) >= 4
    for state in states:
        reader = regimes.PeerExchange(state, 1, 2, timeout_seconds=0.01)
        if any(path.name.endswith("5.npz") for path in state.iterdir() if not path.name.startswith(".")):
            for one, two in zip(reader.see(5, 0), weights, strict=True):
                np.testing.assert_array_equal(one, two)
        else:
            with pytest.raises(ValueError, match="the weights of worker 0 at step 5"):
                reader.see(5, 0)
        show(state)
        assert set(visible(state)) == {"worker-0-step-000000005.npz"}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "name"), list(enumerate(battery.MADE)))
def test_every_regime_resumes_from_a_crash_point(tmp_path, faults, number, name):
    """Each at another point of its run, from the first sixth on; ``test_backup.py`` tests all points of one run."""
    expected = []

    def run(folder):
        return battery.run(name, callbacks=[Backup(folder)], run_eagerly=True).get_weights()

    states = faults.crash_points(tmp_path / "runs", lambda: expected.extend(run(tmp_path / "runs")))
    assert len(states) > 12
    for ours, theirs in zip(run(states[(1 + number % 5) * len(states) // 6]), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def chain(folder):
    models = [mlp(8, 4, seed=1), [mlp(6, 4, seed=2)], mlp(4, 4, seed=3)]
    return regimes.AssistantChain(*models, directory=folder, store_answers=True)


def stages(folder):
    teacher, student = mlp(8, 4, seed=1), mlp(4, 4, seed=2)
    terms = [LogitsDistillation(temperature) for temperature in (4.0, 1.0)]
    return regimes.Stages([regimes.Stage(Distiller(teacher, student, term)) for term in terms], directory=folder)


@pytest.mark.slow
@pytest.mark.parametrize("make", [chain, stages])
def test_chains_and_stages_resume_from_crash_points(tmp_path, faults, make):
    x, y = batch(8)

    def run(folder):
        made = make(folder)
        made.compile(keras.optimizers.SGD(0.1, momentum=0.9), CROSS_ENTROPY, run_eagerly=True)
        made.fit(x, y, batch_size=8, epochs=1, shuffle=False, verbose=0)
        return made.student.get_weights()

    expected = []
    states = faults.crash_points(tmp_path / "runs", lambda: expected.extend(run(tmp_path / "runs")))
    assert len(states) > 12
    for state in states[len(states) // 4 :: len(states) // 2]:
        for ours, theirs in zip(run(state), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_generations_resume_from_every_crash_point(tmp_path, faults):
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
def test_training_resumes_from_crash_points_in_every_mode(tmp_path, faults, how):
    """As ``tests/callbacks/test_backup.py`` does for eager training, at a few of the crash points."""
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
