"""data.load: the right examples, reproducible splits, and clear errors if files are missing."""

import dataclasses
import gzip
import os
import pathlib

import numpy as np
import pytest
from sklearn.datasets import load_digits

from keras_distill import data

FILES = pathlib.Path(os.environ.get("KERAS_DISTILL_DATA") or pathlib.Path(__file__).parents[3] / "shared" / "data")


def needs(name):
    return pytest.mark.skipif(not (FILES / name).is_dir(), reason=f"needs the original files: {FILES / name}")


def rows(images, labels):
    return sorted(
        (int(label), np.asarray(image, "float64").ravel().tobytes())
        for image, label in zip(images, labels, strict=True)
    )


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


def test_digits_are_all_of_scikit_learns_each_once(digits):
    bunch = load_digits()
    parts = [digits.train, digits.validation, digits.test]
    assert [len(part) for part in parts] == [1000, 297, 500]
    images = np.concatenate([part.inputs for part in parts]) * 16
    labels = np.concatenate([part.labels for part in parts])
    assert rows(images, labels) == rows(bunch.images, bunch.target)


def test_digits_are_images_between_0_and_1(digits):
    assert digits.train.inputs.dtype == "float32" and digits.train.labels.dtype == "int32"
    assert (digits.train.inputs.min(), digits.train.inputs.max()) == (0.0, 1.0)
    assert digits.class_names == tuple("0123456789") and digits.num_classes == 10


def test_every_split_has_every_class_in_about_its_share(digits):
    for part in digits.splits.values():
        share = np.bincount(part.labels, minlength=10) / len(part)
        assert share.min() > 0.05 and share.max() < 0.15


def test_loading_twice_gives_the_same_fingerprint_and_one_pixel_another(digits):
    assert data.load("digits").fingerprint == digits.fingerprint
    changed = digits.test.inputs.copy()
    changed[3, 4, 4, 0] += 1 / 16
    splits = dict(digits.splits, test=data.Examples(changed, digits.test.labels))
    assert dataclasses.replace(digits, splits=splits).fingerprint != digits.fingerprint


def test_the_fingerprint_of_texts_depends_on_where_each_ends():
    def of(*texts):
        examples = data.Examples(np.array(texts, dtype=object), np.zeros(2, "int32"))
        return data.Data("texts", {"test": examples}, ("a",), "here").fingerprint

    assert of("ab", "c") == of("ab", "c")
    assert of("ab", "c") != of("a", "bc")


def test_batches_are_the_examples_in_order(digits):
    batches = list(digits.test.dataset(64).as_numpy_iterator())
    assert [len(labels) for _, labels in batches] == [64] * 7 + [52]
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), digits.test.inputs)
    np.testing.assert_array_equal(np.concatenate([y for _, y in batches]), digits.test.labels)


def test_shuffling_is_reproducible_and_new_each_epoch(digits):
    few = digits.test.take(50)

    def epochs(seed):
        dataset = few.dataset(16, shuffle_seed=seed)
        return [np.concatenate([x for x, _ in dataset.as_numpy_iterator()]) for _ in range(2)]

    first, second = epochs(7)
    again, _ = epochs(7)
    other, _ = epochs(8)
    np.testing.assert_array_equal(first, again)
    assert (first != second).any() and (first != other).any()
    assert rows(first, np.zeros(50)) == rows(few.inputs, np.zeros(50))


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"data\.load: expected the name of a data set \(nearest: 'digits'.*got 'digit'"
    ):
        data.load("digit")
    with pytest.raises(ValueError, match=r"nearest: .*'fashion_mnist'"):
        data.load("fashion-mnist")
    with pytest.raises(ValueError, match=r"got '\['digits'\]'|got \['digits'\]|got \"\['digits'\]\""):
        data.load(["digits"])


def test_a_missing_split_names_the_existing_ones(digits):
    only_test = dataclasses.replace(digits, splits={"test": digits.test})
    with pytest.raises(ValueError, match=r"Data\('digits'\): expected a split among 'test', got 'train'"):
        _ = only_test.train


def test_a_batch_size_below_one_is_refused(digits):
    with pytest.raises(ValueError, match=r"Examples\.dataset: expected batch_size to be an integer >= 1, got 0"):
        digits.test.dataset(0)


@pytest.fixture
def nothing_here(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_DISTILL_DATA", str(tmp_path / "files"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    return tmp_path


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_nothing_is_downloaded_without_permission(name, nothing_here):
    with pytest.raises(ValueError, match=rf"data\.load\('{name}'\): expected a prepared copy.*--download") as failure:
        data.load(name)
    assert "\n" not in str(failure.value)
    assert not (nothing_here / "tfds" / name).exists()


@pytest.mark.parametrize("name", ["kmnist_test", "notmnist_test", "cifar10_jpeg", "clinc_oos", "sst2"])
def test_missing_files_are_named_with_what_to_do(name, nothing_here):
    with pytest.raises(ValueError, match=rf"data\.load\('{name}'\): expected the file .*Set KERAS_DISTILL_DATA"):
        data.load(name)


def test_files_with_another_checksum_than_the_publishers_are_refused(nothing_here):
    folder = nothing_here / "files" / "fashion_mnist"
    folder.mkdir(parents=True)
    for stem in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (folder / f"{stem}-ubyte.gz").write_bytes(gzip.compress(b"not these"))
    with pytest.raises(
        ValueError, match=r"got NonMatchingChecksumError: .*wrong checksum\. Check the publisher's files"
    ):
        data.load("fashion_mnist")
    assert not list((nothing_here / "tfds").rglob("*.tfrecord*"))


def test_a_test_set_in_mnists_file_format_is_read(nothing_here):
    folder = nothing_here / "files" / "notmnist_test"
    folder.mkdir(parents=True)
    pixels = np.arange(3 * 784, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)
    header = np.array([2051, 3, 28, 28], ">u4").tobytes()
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes()))
    header = np.array([2049, 3], ">u4").tobytes()
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(header + bytes([4, 0, 9])))
    loaded = data.load("notmnist_test")
    np.testing.assert_array_equal(np.rint(loaded.test.inputs[..., 0] * 255), pixels)
    assert [loaded.class_names[i] for i in loaded.test.labels] == ["E", "A", "J"]


@pytest.mark.slow
@needs("mnist")
@needs("fashion_mnist")
def test_tfds_builds_the_real_data_sets_from_the_original_files_and_keeps_them_apart(tmp_path, monkeypatch):
    mnist = pytest.importorskip("tensorflow_datasets.image_classification.mnist")
    monkeypatch.setenv("KERAS_DISTILL_DATA", str(FILES))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    # The checksums of the complete files are verified; only a tenth of their images is written.
    assert (mnist._TRAIN_EXAMPLES, mnist._TEST_EXAMPLES) == (60_000, 10_000)
    monkeypatch.setattr(mnist, "_TRAIN_EXAMPLES", 6000)
    monkeypatch.setattr(mnist, "_TEST_EXAMPLES", 1000)
    for name in ("fashion_mnist", "mnist"):
        loaded = data.load(name)
        raw = gzip.decompress((FILES / name / "t10k-images-idx3-ubyte.gz").read_bytes())
        images = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 28, 28)[:1000]
        raw = gzip.decompress((FILES / name / "t10k-labels-idx1-ubyte.gz").read_bytes())
        labels = np.frombuffer(raw, np.uint8, offset=8)[:1000]
        got = np.rint(loaded.test.inputs[..., 0] * 255).astype("uint8")
        assert rows(got, loaded.test.labels) == rows(images, labels)
        assert len(loaded.train) == 6000 - 5000 and len(loaded.validation) == 5000
    assert loaded.source == "tensorflow-datasets mnist/3.0.1"
    monkeypatch.setenv("KERAS_DISTILL_DATA", str(tmp_path / "nothing"))
    assert data.load("mnist").fingerprint == loaded.fingerprint  # the prepared copy is enough


@needs("clinc_oos")
def test_clinc_oos_has_150_intents_and_out_of_scope_queries(monkeypatch):
    monkeypatch.setenv("KERAS_DISTILL_DATA", str(FILES))
    loaded = data.load("clinc_oos")
    assert loaded.num_classes == 150
    np.testing.assert_array_equal(np.bincount(loaded.train.labels), np.full(150, 100))
    assert set(loaded.splits["out_of_scope"].labels) == {-1}


@needs("sst2")
def test_sst2_has_the_published_counts(monkeypatch):
    monkeypatch.setenv("KERAS_DISTILL_DATA", str(FILES))
    loaded = data.load("sst2")
    counts = {name: np.bincount(part.labels).tolist() for name, part in loaded.splits.items()}
    assert counts == {"train": [3310, 3610], "validation": [428, 444], "test": [912, 909]}
