"""Damaged and hostile files raise a clear error: nothing is executed, unpickled, or written outside."""

import io
import json
import os
import random
import re
import stat
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import keras
import numpy as np
import pytest

from keras_distill import Distiller, LogitsDistillation, export

ROOT = Path(__file__).parents[2]
FUZZ_SECONDS = float(os.environ.get("KERAS_DISTILL_FUZZ_SECONDS", "12"))


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "student.keras"
    keras.utils.set_random_seed(0)
    keras.Sequential(
        [
            keras.Input((4,), name="x"),
            keras.layers.Dense(3, "relu"),
            keras.layers.BatchNormalization(),
            keras.layers.Dense(2),
        ]
    ).save(path)
    return path


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def test_a_good_file_loads(good):
    loaded = export.load_student(good)
    x = np.ones((2, 4), "float32")
    np.testing.assert_array_equal(loaded(x), keras.saving.load_model(good)(x))
    assert not loaded.compiled


def test_a_saved_distiller_gives_its_student(tmp_path):
    make = lambda: keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])  # noqa: E731
    distiller = Distiller(make(), make(), LogitsDistillation())
    distiller.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    distiller.fit(np.ones((4, 4), "float32"), np.zeros(4), verbose=0)
    distiller.save(tmp_path / "d.keras")
    x = np.ones((2, 4), "float32")
    np.testing.assert_array_equal(export.load_student(tmp_path / "d.keras")(x), distiller.student(x))


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"not a zip", b"PK\x05\x06" + b"\0" * 18, b"\x80\x04\x95" + b"c__builtin__\neval\n" * 3],
    ids=["empty", "two bytes", "text", "empty zip", "pickle"],
)
def test_a_file_that_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "s.keras").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"load_student: expected a \.keras archive as keras\.Model\.save writes it, got"
    ):
        export.load_student(tmp_path / "s.keras")


def test_wrong_file_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected a path that ends in \.keras"):
        export.load_student(tmp_path / "s.pkl")
    with pytest.raises(ValueError, match=r"expected a \.keras file, got nothing at"):
        export.load_student(tmp_path / "s.keras")


@pytest.mark.parametrize("name", ["../out.txt", "/tmp/keras_distill_out.txt", "a/../../out.txt", "a\\..\\out.txt"])
def test_archive_members_that_point_outside_are_refused(good, tmp_path, name):
    (tmp_path / "in").mkdir()
    path = write(tmp_path / "in" / "s.keras", {**members(good), name: b"x"})
    with pytest.raises(ValueError, match="which points out of its directory"):
        export.load_student(path)
    assert not (tmp_path / "out.txt").exists() and not Path("/tmp/keras_distill_out.txt").exists()


def test_links_are_refused(good, tmp_path):
    path = write(tmp_path / "s.keras", members(good))
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("assets/link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(ValueError, match="which is a link"):
        export.load_student(path)


def test_a_decompression_bomb_is_refused_before_it_unpacks(good, tmp_path):
    path = write(tmp_path / "s.keras", {**members(good), "assets/zeros": bytes(2**26)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 2**17
    start = time.perf_counter()
    with pytest.raises(ValueError, match="bytes when unpacked"):
        export.load_student(path)
    assert time.perf_counter() - start < 1
    with pytest.raises(ValueError, match="bytes when unpacked"):
        export.load_student(good, most_bytes=100)


HUGE = """
import resource, sys
from keras_distill import export
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    export.load_student(sys.argv[1])
except ValueError as problem:
    print(problem)
print("MB", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_a_huge_layer_is_refused_before_its_weights_are_allocated(good, tmp_path):
    content = members(good)
    config = json.loads(content["config.json"])
    config["config"]["layers"][1]["config"]["units"] = 400_000_000  # 6.4 GB of kernel
    path = write(tmp_path / "s.keras", {**content, "config.json": json.dumps(config)})
    done = subprocess.run([sys.executable, "-c", HUGE, path], capture_output=True, text=True, cwd=ROOT, timeout=300)
    said, size = done.stdout.splitlines()
    assert re.fullmatch(
        r"load_student: expected a model whose weights take at most 67108864 bytes, got .*s\.keras, "
        r"whose configuration asks for 6400000000 bytes or more\. "
        r"Allow more with most_weight_bytes if you trust the file\.",
        said,
    ), done.stdout + done.stderr
    assert int(size.split()[1]) < 300
    with pytest.raises(ValueError, match="at most 100 bytes"):
        export.load_student(good, most_weight_bytes=100)
    assert export.load_student(good, most_weight_bytes=1000).count_params() == 35


def layer(module, class_name, config, registered_name=None):
    return {"module": module, "class_name": class_name, "config": config, "registered_name": registered_name}


def hostile_configs(target):
    """Configurations that would execute code, read files or write ``target`` if they were trusted."""
    code = f"__import__('pathlib').Path({str(target)!r}).touch()"
    inner = [
        layer("builtins", "exec", {"source": code}),
        layer("builtins", "eval", {"expression": code}),
        layer("os", "system", {"command": f"touch {target}"}),
        layer("subprocess", "Popen", {"args": ["touch", str(target)]}),
        layer("keras.utils", "get_file", {"fname": str(target), "origin": "file:///etc/passwd"}),
        layer("keras.saving", "load_model", {"filepath": str(target)}),
        layer("keras.layers", "TFSMLayer", {"filepath": str(target.parent)}),
        layer(
            "keras.layers",
            "Lambda",
            {"name": "l", "function": {"class_name": "__lambda__", "config": {"code": "4wEAAAA="}}},
        ),
        layer("keras.layers", "Lambda", {"name": "l", "function": layer("builtins", "function", "exec", "function")}),
        layer("keras.layers", "Dense", {"units": 2, "activation": layer("os", "function", "system", "function")}),
        layer("keras.layers", "Dense", {"units": 2, "kernel_initializer": layer("os", "system", {"command": "true"})}),
        layer("keras_distill.export._capi", "main", {"library": "x", "saved_model": "y"}),
    ]
    for bad in inner:
        yield bad
        yield layer("keras", "Sequential", {"name": "m", "layers": [bad], "build_input_shape": [None, 4]})


def test_hostile_configurations_run_nothing(good, tmp_path):
    target = tmp_path / "made_by_the_attack"
    content = members(good)
    for position, config in enumerate(hostile_configs(target)):
        path = write(tmp_path / f"{position}.keras", {**content, "config.json": json.dumps(config)})
        with pytest.raises(ValueError, match="load_student: expected"):
            export.load_student(path)
        assert not target.exists(), config


def mutate(rng, content):
    """One random damage to an archive: bytes of the file, of a member, or the JSON of its configuration."""
    kind = rng.randrange(4)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, data in content.items():
            data = bytearray(data)
            if kind == 1 and rng.random() < 0.5 and data:  # damaged before packing: checksums are correct
                for _ in range(rng.randrange(1, 8)):
                    data[rng.randrange(len(data))] = rng.randrange(256)
            if kind == 2 and name.endswith(".json"):
                data = json.dumps(damage(rng, json.loads(bytes(data)))).encode()
            if kind == 3 and rng.random() < 0.4:
                data = data[: rng.randrange(len(data) + 1)]
            archive.writestr(name, bytes(data))
    out = bytearray(stream.getvalue())
    if kind == 0:
        if rng.random() < 0.3:
            return bytes(out[: rng.randrange(len(out))])
        for _ in range(rng.randrange(1, 20)):
            out[rng.randrange(len(out))] = rng.randrange(256)
    return bytes(out)


def damage(rng, value):
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        if rng.random() < 0.1:
            return {k: v for k, v in value.items() if k != key}
        return {**value, key: damage(rng, value[key])}
    if isinstance(value, list) and value and rng.random() < 0.85:
        position = rng.randrange(len(value))
        return [damage(rng, item) if i == position else item for i, item in enumerate(value)]
    return rng.choice([None, True, -1, 0, 7, 1.5, "", "x", "../../x", [], {}, [[]], {"class_name": "x"}, value])


@pytest.mark.slow
def test_fuzzed_archives_load_or_raise_a_clear_error(good, tmp_path):
    """Bounded in time, not in cases; the case number is the seed, so a failure can be repeated."""
    content = members(good)
    folder = tmp_path / "in"
    folder.mkdir()
    loaded = refused = case = 0
    end = time.monotonic() + FUZZ_SECONDS
    while time.monotonic() < end:
        (folder / "s.keras").write_bytes(mutate(random.Random(case), content))
        try:
            model = export.load_student(folder / "s.keras")
        except ValueError as problem:
            refused += 1
            assert str(problem).startswith("load_student: expected"), case
        else:
            loaded += 1
            assert isinstance(model, keras.Model), case
        assert [p.name for p in folder.iterdir()] == ["s.keras"], case
        case += 1
    assert [p.name for p in tmp_path.iterdir()] == ["in"]
    assert refused > 5, (case, loaded, refused)


@pytest.mark.slow
def test_fuzzed_cards_and_parity_files(tmp_path):
    """The JSON and NPZ files that an export reads back are read, or refused with a clear error."""
    from keras_distill.export._card import read_card
    from keras_distill.export._serve_check import read_parity

    student = keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(3)])
    path = export.saved_model(student, tmp_path).path
    files = {
        path / "distillation.json": lambda: read_card("owner", path),
        path / "assets.extra" / "parity_check.npz": lambda: read_parity(path),
    }
    for file, read in files.items():
        good = file.read_bytes()
        read()
        refused = 0
        end = time.monotonic() + FUZZ_SECONDS / 4
        case = 0
        while time.monotonic() < end:
            rng = random.Random(case)
            bad = bytearray(good)
            if rng.random() < 0.3:
                bad = bad[: rng.randrange(len(bad))]
            else:
                for _ in range(rng.randrange(1, 10)):
                    bad[rng.randrange(len(bad))] = rng.randrange(256)
            file.write_bytes(bytes(bad))
            try:
                read()
            except ValueError as problem:
                refused += 1
                assert ": expected a " in str(problem), case
            case += 1
        file.write_bytes(good)
        assert refused > 5, (file.name, case, refused)
