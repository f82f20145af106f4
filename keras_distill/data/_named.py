"""Real data sets by name, as arrays with fixed splits: ``data.load("digits")``.

Nothing is downloaded unless asked for. ``"digits"`` comes with scikit-learn. ``"mnist"`` and ``"fashion_mnist"`` come
from tensorflow-datasets: its prepared copy if there is one, else built by tensorflow-datasets from the publisher's
original files under ``$KERAS_DISTILL_DATA`` (default: ``../shared/data`` beside the repository), else downloaded if
``download=True``. The other names are read from files under ``$KERAS_DISTILL_DATA``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import hashlib
import io
import json
import os
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill._checks import error, integer, nearest, optional

_LETTERS = tuple("ABCDEFGHIJ")
_DIGITS = tuple("0123456789")


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and their labels, example by example.

    Args:
        inputs: (examples, ...): images float32 in 0..1, channels last; or texts, an array of ``str``.
        labels: (examples,), int32 class ids.

    Example:
        >>> examples = Examples(np.zeros((5, 2)), np.arange(5))
        >>> len(examples), len(examples.take(3))
        (5, 3)
    """

    inputs: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, count: int) -> Examples:
        """Return the first ``count`` examples, always the same ones.

        Args:
            count: number of examples; all of them if there are fewer.

        Returns:
            Those examples; they share memory with this object.
        """
        return Examples(self.inputs[:count], self.labels[:count])

    def dataset(self, batch_size: int, *, shuffle_seed: int | None = None) -> tf.data.Dataset:
        """Return the examples as batches ``(inputs, labels)``.

        Args:
            batch_size: examples per batch; the last batch may be smaller.
            shuffle_seed: shuffle anew in each epoch, reproducibly; None keeps the order.

        Returns:
            A ``tf.data.Dataset`` that prefetches.

        Example:
            >>> examples = Examples(np.zeros((5, 2), "float32"), np.arange(5))
            >>> [labels.numpy().tolist() for _, labels in examples.dataset(2)]
            [[0, 1], [2, 3], [4]]
        """
        integer("Examples.dataset", "batch_size", batch_size, low=1)
        dataset = tf.data.Dataset.from_tensor_slices((self.inputs, self.labels))
        if shuffle_seed is not None:
            dataset = dataset.shuffle(max(1, len(self)), seed=shuffle_seed, reshuffle_each_iteration=True)
        return dataset.batch(batch_size).prefetch(2)


@dataclasses.dataclass(frozen=True, eq=False)
class Data:
    """A data set: its splits, its classes and where it came from.

    Args:
        name: as given to ``load``.
        splits: examples by split name; ``"test"`` always, ``"train"`` and ``"validation"`` mostly.
        class_names: one per class id.
        source: where the bytes came from, one line.
    """

    name: str
    splits: Mapping[str, Examples]
    class_names: tuple[str, ...]
    source: str

    def _split(self, name: str) -> Examples:
        if name not in self.splits:
            raise error(f"Data({self.name!r})", f"a split among {', '.join(map(repr, self.splits))}", repr(name))
        return self.splits[name]

    @property
    def train(self) -> Examples:
        """The examples for training."""
        return self._split("train")

    @property
    def validation(self) -> Examples:
        """The examples for choosing settings: never trained on, never reported."""
        return self._split("validation")

    @property
    def test(self) -> Examples:
        """The examples for reported results."""
        return self._split("test")

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.class_names)

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of every split's name, shape, dtype and bytes: equal fingerprints mean equal data."""
        digest = hashlib.sha256()
        for name, examples in self.splits.items():
            for array in (examples.inputs, examples.labels):
                digest.update(f"{name} {array.shape} {array.dtype} ".encode())
                is_text = array.dtype == object
                digest.update("\0".join(array).encode() if is_text else np.ascontiguousarray(array).data)
        return digest.hexdigest()


def names() -> tuple[str, ...]:
    """Return every name that ``load`` knows.

    Returns:
        The names, sorted.
    """
    return tuple(sorted(_LOADERS))


def load(name: str, *, download: bool = False) -> Data:
    """Load a data set by name.

    Splits are the publisher's; a missing validation split is cut from the training examples by a fixed permutation.
    ``"digits"`` has no published splits: 1000 train, 297 validation, 500 test, again by a fixed permutation, so the
    same writers occur in all three.

    Args:
        name: see ``names()``.
        download: whether tensorflow-datasets may fetch ``"mnist"`` or ``"fashion_mnist"`` from their publisher if this
            machine has no copy.

    Returns:
        The data, in memory.

    Raises:
        ValueError: if the name is unknown, or its files are missing or not the publisher's; the message says what to
            do.

    Example:
        >>> digits = load("digits")
        >>> digits.train.inputs.shape, digits.num_classes
        ((1000, 8, 8, 1), 10)
    """
    if not isinstance(name, str) or name not in _LOADERS:
        raise error("data.load", f"the name of a data set (nearest: {nearest(str(name), _LOADERS)})", repr(name))
    return _LOADERS[name](name, download)


def _folder(name: str) -> pathlib.Path:
    """Return where the original files of a data set are looked for."""
    beside = pathlib.Path(__file__).resolve().parents[3] / "shared" / "data"
    return pathlib.Path(os.environ.get("KERAS_DISTILL_DATA") or beside) / name


def _file(name: str, filename: str) -> pathlib.Path:
    path = _folder(name) / filename
    if not path.is_file():
        advice = f"Set KERAS_DISTILL_DATA to the folder that holds {name}/{filename}"
        raise error(f"data.load({name!r})", f"the file {path}", "nothing there", advice)
    return path


def _cut(name: str, inputs: np.ndarray, labels: np.ndarray, sizes: Mapping[str, int]) -> dict[str, Examples]:
    """Split the examples into the given sizes by a fixed permutation."""
    order = np.random.default_rng(20150309).permutation(len(labels))
    splits, start = {}, 0
    for split, size in sizes.items():
        chosen = order[start : start + size]
        splits[split] = Examples(inputs[chosen], labels[chosen])
        start += size
    return splits


def _images(array: np.ndarray, greatest: float = 255.0) -> np.ndarray:
    """Return pixels as float32 in 0..1, with a channel axis."""
    scaled = np.asarray(array, "float32") / np.float32(greatest)
    return scaled if scaled.ndim == 4 else scaled[..., np.newaxis]


def _load_digits(name: str, download: bool) -> Data:
    with optional(f"data.load({name!r})", "scikit-learn", "demo"):
        from sklearn.datasets import load_digits
    bunch = load_digits()
    images, labels = _images(bunch.images, 16.0), bunch.target.astype("int32")
    splits = _cut(name, images, labels, {"train": 1000, "validation": 297, "test": 500})
    return Data(name, splits, _DIGITS, "scikit-learn load_digits (UCI handwritten digits, 8x8)")


def _load_tfds(name: str, download: bool) -> Data:
    owner = f"data.load({name!r})"
    with optional(owner, "tensorflow-datasets", "demo"):
        import tensorflow_datasets as tfds
    builder = tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"))
    source = f"tensorflow-datasets {builder.info.full_name}"
    if not builder.is_prepared():
        originals = _folder(name)
        if not originals.is_dir() and not download:
            advice = (
                f"Set KERAS_DISTILL_DATA to a folder that holds {name}/ with the publisher's .gz files, "
                "or allow the download: download=True, --download on the command line"
            )
            raise error(owner, f"a prepared copy in {builder.data_path} or files in {originals}", "none", advice)
        _prepare(tfds, builder, originals if originals.is_dir() else None, owner)
    parts = tfds.as_numpy(builder.as_dataset(batch_size=-1, as_supervised=True))
    images, labels = _images(parts["train"][0]), parts["train"][1].astype("int32")
    splits = _cut(name, images, labels, {"train": len(labels) - 5000, "validation": 5000})
    splits["test"] = Examples(_images(parts["test"][0]), parts["test"][1].astype("int32"))
    return Data(name, splits, tuple(builder.info.features["label"].names), source)


def _prepare(tfds: Any, builder: Any, originals: pathlib.Path | None, owner: str) -> None:
    """Build the tensorflow-datasets copy from the original files if there are any, else by download."""
    try:
        # A separate scratch folder, because tfds names unpacked files only by file name, and MNIST and Fashion-MNIST
        # share their file names.
        with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
            config = tfds.download.DownloadConfig(manual_dir=originals, extract_dir=f"{scratch}/extracted")
            tfds.disable_progress_bar()
            builder.download_and_prepare(download_dir=f"{scratch}/downloads", download_config=config)
    except Exception as failure:  # tfds raises many kinds of errors: wrong checksum, no network, disk full
        reason = (str(failure).splitlines() or [type(failure).__name__])[0].rstrip(":")
        advice = f"Check the publisher's files in {_folder(builder.name)} and that {builder.data_path} can be written"
        raise error(
            owner, "tensorflow-datasets to build the data set", f"{type(failure).__name__}: {reason}", advice
        ) from failure


def _load_idx_test(name: str, download: bool) -> Data:
    """Read a test set in MNIST's file format, for use as out-of-distribution data."""
    arrays = {}
    for kind, header in (("images-idx3", 16), ("labels-idx1", 8)):
        path = _file(name, f"t10k-{kind}-ubyte.gz")
        arrays[kind] = np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=header)
    labels = arrays["labels-idx1"].astype("int32")
    images = _images(arrays["images-idx3"].reshape(len(labels), 28, 28))
    classes = _LETTERS if name == "notmnist_test" else ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")
    return Data(name, {"test": Examples(images, labels)}, classes, str(_folder(name)))


def _load_cifar10_jpeg(name: str, download: bool) -> Data:
    """CIFAR-10 with each image recompressed as JPEG: accuracies are not comparable with published ones."""
    with np.load(_file(name, "cifar10_jpeg_q75.npz")) as stored:
        arrays = {key: stored[key] for key in stored.files}

    def decode(split: str) -> np.ndarray:
        stream, bounds = arrays[f"{split}_jpeg"], arrays[f"{split}_offsets"]
        images = np.empty((len(bounds) - 1, 32, 32, 3), np.uint8)
        for i in range(len(images)):
            encoded = stream[bounds[i] : bounds[i + 1]].tobytes()
            images[i] = tf.io.decode_jpeg(encoded, dct_method="INTEGER_ACCURATE").numpy()
        return images

    labels = arrays["y_train"].astype("int32")
    splits = _cut(name, _images(decode("train")), labels, {"train": 45000, "validation": 5000})
    splits["test"] = Examples(_images(decode("test")), arrays["y_test"].astype("int32"))
    return Data(name, splits, tuple(map(str, arrays["class_names"])), str(_folder(name)))


def _texts(rows: list[tuple[str, int]]) -> Examples:
    texts = np.array([text for text, _ in rows], dtype=object)
    return Examples(texts, np.array([label for _, label in rows], "int32"))


def _load_clinc_oos(name: str, download: bool) -> Data:
    """150 intents; the split ``"out_of_scope"`` holds queries outside all of them, labelled -1."""
    rows = json.loads(_file(name, "data_full.json").read_text())
    classes = tuple(sorted({intent for _, intent in rows["train"]}))
    ids = {intent: i for i, intent in enumerate(classes)} | {"oos": -1}
    order = np.random.default_rng(20150309)
    splits = {}
    for split, key in {"train": "train", "validation": "val", "test": "test", "out_of_scope": "oos_test"}.items():
        part = [(text, ids[intent]) for text, intent in rows[key]]
        splits[split] = _texts([part[i] for i in order.permutation(len(part))])
    return Data(name, splits, classes, str(_folder(name)))


def _load_sst2(name: str, download: bool) -> Data:
    splits = {}
    for split, stem in {"train": "train", "validation": "dev", "test": "test"}.items():
        lines = _file(name, f"{stem}.tsv").read_text(encoding="utf-8").splitlines()
        pairs = [line.rsplit("\t", 1) for line in lines if line.strip()]
        splits[split] = _texts([(text, int(label)) for text, label in pairs])
    return Data(name, splits, ("negative", "positive"), str(_folder(name)))


_LOADERS: dict[str, Callable[[str, bool], Data]] = {
    "digits": _load_digits,
    "mnist": _load_tfds,
    "fashion_mnist": _load_tfds,
    "kmnist_test": _load_idx_test,
    "notmnist_test": _load_idx_test,
    "cifar10_jpeg": _load_cifar10_jpeg,
    "clinc_oos": _load_clinc_oos,
    "sst2": _load_sst2,
}
