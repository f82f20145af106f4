"""Untrusted stores: their paths stay inside, their JSON executes nothing, damage is an error."""

import json
import random
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import teachers
from keras_distill.teachers.store import _files as files
from tests.batteries.test_loading_hostile_files import FUZZ_SECONDS, damage, layer

X = np.arange(48, dtype="float32").reshape(12, 4) / 48


def batches():
    options = tf.data.Options()
    options.autotune.enabled = False
    return tf.data.Dataset.from_tensor_slices(X).batch(4).with_options(options)


def network(seed):
    keras.utils.set_random_seed(seed)
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A store of an ensemble in three shards, as bytes by file name."""
    path = tmp_path_factory.mktemp("good")
    teachers.label(teachers.Ensemble([network(0), network(1)]), batches(), path, examples_per_shard=4, progress=False)
    return {file.name: file.read_bytes() for file in path.iterdir()}


@pytest.fixture
def store(good, tmp_path):
    return write(tmp_path / "store", good)


def write(path, content):
    path.mkdir()
    for name, data in content.items():
        (path / name).write_bytes(data)
    return path


def rewritten(path, change):
    """Change the manifest as an attacker would: with a matching digest."""
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    files.write_manifest(path, manifest)


def use(path):
    """All functions that read a store."""
    teachers.verify(path)
    stored = teachers.Stored(path)
    stored.check(batches())
    for x in stored.attach(batches()):
        stored(x)


def shard_file(name):
    def change(manifest):
        manifest["shards"][1]["file"] = name

    return change


def test_a_good_store_is_read(store):
    use(store)


@pytest.mark.parametrize("shape", ["../{}", "../../etc/passwd", "/etc/passwd", "sub/{}", "./{}", "{}\0", "", "..", "x"])
def test_names_that_point_outside_are_refused_and_nothing_outside_is_read_or_removed(store, shape):
    name = sorted(file.name for file in store.glob("shard-*"))[1]
    outside = store.parent / name
    outside.write_bytes(b"mine")
    rewritten(store, shard_file(shape.format(name)))
    for act in (
        teachers.Stored,
        teachers.verify,
        lambda path: teachers.repair(network(0), batches(), path, progress=False),
        lambda path: teachers.label(network(0), batches(), path, progress=False),
    ):
        with pytest.raises(teachers.StoredTeacherError, match=r"manifest\.json as label\(\) writes it, got file name"):
            act(store)
    assert outside.read_bytes() == b"mine"


def test_a_link_out_of_the_store_is_refused_and_one_inside_is_not(store):
    file = sorted(store.glob("shard-*"))[1]
    outside = store.parent / "elsewhere"
    outside.write_bytes(file.read_bytes())
    file.unlink()
    file.symlink_to(outside)
    for act in (teachers.Stored, teachers.verify, lambda path: teachers.repair(network(0), batches(), path)):
        with pytest.raises(teachers.StoredTeacherError, match=f"got {file.name}, a link out of it. Copy the file"):
            act(store)
    assert outside.is_file()
    file.unlink()
    outside.rename(store / "kept")
    file.symlink_to(store / "kept")
    use(store)


def test_a_manifest_cannot_make_code_run(store, tmp_path):
    target = tmp_path / "made_by_the_attack"
    for config in (
        layer("subprocess", "Popen", {"args": ["touch", str(target)]}),
        layer("os", "system", {"command": f"touch {target}"}),
        layer("keras.layers", "Lambda", {"function": {"class_name": "__lambda__", "config": {"code": "4wEAAAA="}}}),
        layer("keras.utils", "get_file", {"fname": str(target), "origin": "file:///etc/passwd"}),
        layer("keras.layers", "Dense", {"units": 2}),
        {"class_name": "function", "config": "eval"},
        {},
    ):
        rewritten(store, lambda manifest, config=config: manifest["template"]["outputs"].update(combine=config))
        with pytest.raises(teachers.StoredTeacherError, match="expected a rule to combine the stored members, got "):
            use(store)
        assert not target.exists()


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("outputs", []),
        ("outputs", [{"name": "output", "shape": [2**40], "dtype": "float32", "top_k": None, "by_row": True}]),
        ("outputs", [{"name": "output", "shape": [3], "dtype": "object", "top_k": None, "by_row": True}]),
        ("template", {"outputs": {"tensor": 7}, "features": {}}),
        ("template", {"outputs": {"tensor": True}, "features": {}}),
        ("row_bytes", 10**9),
        ("rows_per_block", 0),
        ("shards", {}),
        ("count", 13),
        ("options", {}),
    ],
)
def test_invalid_manifest_entries_are_named(store, part, value):
    rewritten(store, lambda manifest: manifest.update({part: value}))
    with pytest.raises(
        teachers.StoredTeacherError, match=rf"got {part} that no label\(\) writes\. Label again, and check"
    ):
        teachers.Stored(store)


def test_a_manifest_nested_too_deeply_is_refused(store):
    node = {"tensor": 0}
    for _ in range(200):
        node = {"list": [node]}
    rewritten(store, lambda manifest: manifest["template"].update(outputs=node))
    with pytest.raises(teachers.StoredTeacherError, match="got template that no label"):
        teachers.Stored(store)
    (store / "manifest.json").write_text("[" * 100_000)
    with pytest.raises(teachers.StoredTeacherError, match="expected a readable"):
        teachers.Stored(store)


def mutate(rng, path):
    """One random damage: bytes of a file, its length, or a manifest with a matching digest."""
    file = rng.choice(sorted(path.iterdir()))
    if rng.random() < 0.5:

        def change(manifest):
            damaged = damage(rng, dict(manifest))
            manifest.update(damaged if isinstance(damaged, dict) else {})

        rewritten(path, change)
        return
    data = bytearray(file.read_bytes())
    if data and rng.random() < 0.7:
        for _ in range(rng.randrange(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    else:
        data = data[: rng.randrange(len(data) + 1)]
    file.write_bytes(bytes(data))


@pytest.mark.slow
def test_fuzzed_stores_are_read_or_raise_a_clear_error(good, tmp_path):
    """Bounded in time, not in cases; the case number is the seed, so a failure can be repeated."""
    read = refused = case = 0
    end = time.monotonic() + FUZZ_SECONDS
    while time.monotonic() < end:
        path = write(tmp_path / str(case), good)
        mutate(random.Random(case), path)
        try:
            use(path)
        except teachers.StoredTeacherError as problem:
            refused += 1
            assert "expected" in str(problem), case
        else:
            read += 1
        case += 1
    assert refused > 5, (case, read, refused)
