"""The shell commands for stored predictions."""

import argparse
import zipfile

import keras
import numpy as np
import pytest

from keras_distill import data, teachers
from keras_distill.cli import _label, _store, main


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.keras"
    keras.utils.set_random_seed(0)
    keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(10)]).save(path)
    return path


def run(*arguments):
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command", required=True)
    _label.add_parser(commands)
    _store.add_parser(commands)
    options = parser.parse_args([str(each) for each in arguments])
    options.run(options)


def test_label_verify_and_repair_from_the_shell(saved, tmp_path, capsys):
    store, source = tmp_path / "store", ("--teacher", saved, "--data", "digits")
    run("label", *source, "--out", store, "--examples-per-shard", 256, "--shard", "0/2")
    assert "other parts are still missing" in capsys.readouterr().out
    run("label", *source, "--out", store, "--examples-per-shard", 256)
    assert "1000 examples, 28 bytes each" in capsys.readouterr().out
    stored = teachers.Stored(store)
    batch = next(iter(stored.attach(data.load("digits").train.dataset(50))))
    expected = keras.saving.load_model(saved)(batch[0]["inputs"])
    np.testing.assert_allclose(stored(batch[0]), expected, atol=2e-3)
    run("store", "verify", store)
    assert "4 shards, all unchanged" in capsys.readouterr().out

    sorted(store.glob("shard-*"))[1].unlink()
    with pytest.raises(teachers.StoredTeacherError, match="an unchanged store, got 1 damaged files"):
        run("store", "verify", store)
    assert "missing" in capsys.readouterr().out
    run("store", "repair", store, *source)
    assert "repaired shard-000001" in capsys.readouterr().out
    assert teachers.verify(store) == []
    with pytest.raises(ValueError, match="expected --shard I/N, such as 0/4, got half"):
        run("label", *source, "--out", store, "--shard", "half")


@pytest.mark.parametrize("damage", ["flipped", "outside", "nothing"])
def test_a_damaged_or_hostile_teacher_file_gives_a_clear_error_and_exit_code_2(saved, tmp_path, capsys, damage):
    file = tmp_path / "teacher.keras"
    content = bytearray(saved.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    if damage != "nothing":
        file.write_bytes(bytes(content))
    if damage == "outside":
        with zipfile.ZipFile(file, "a") as archive:
            archive.writestr("../../outside", b"x")
    store = tmp_path / "store"
    for command in (["label", "--out", store], ["store", "repair", store]):
        if command[0] == "store":
            run("label", "--teacher", saved, "--data", "digits", "--out", store)
            next(iter(sorted(store.glob("shard-*")))).write_bytes(b"")
            capsys.readouterr()
        code = main([str(each) for each in [*command, "--teacher", file, "--data", "digits"]])
        said = capsys.readouterr().err
        assert code == 2 and said.count("\n") == 1
        owner = " ".join(each for each in command if each in ("label", "store", "repair"))
        assert f"{owner}: expected a .keras " in said, said
    assert not (tmp_path.parent / "outside").exists()
