"""Images on disk as ``tf.data``: folders of classes, masks beside images, boxes in JSON; every file is checked."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill._checks import choice, error, integer
from keras_distill._typing import Tensor
from keras_distill.data import _named

_OWNER = "data.images"
_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".gif"}


def images(
    path_or_name: str | os.PathLike[str],
    *,
    split: str | None = None,
    image_size: tuple[int, int] | None = None,
    num_channels: int | None = None,
    masks: str | os.PathLike[str] | None = None,
    boxes: str | os.PathLike[str] | Mapping[str, Any] | None = None,
    ignore_label: int | None = None,
    batch_size: int | None = 32,
    shuffle_seed: int | None = None,
    verify: bool = True,
) -> tf.data.Dataset:
    """Read images with their classes, masks or boxes as a deterministic ``tf.data.Dataset``.

    A folder of folders gives (image, class id), with classes in alphabetical order. A plain folder gives images only;
    with ``masks``, (image, map of class ids); with ``boxes``, (image, boxes). A name from ``data.names()`` gives that
    set. Images are float32 in 0..1, channels last, in the order of their file names.

    Args:
        path_or_name: a folder, or a name that ``data.load`` knows.
        split: a subfolder of the folder (``"train"``), or a split of the named set ("train" if None).
        image_size: (height, width) to resize to, bilinearly (masks: nearest); None: all files must have one size.
        num_channels: 1, 3 or 4 to convert to; None: all files must have the same number.
        masks: a folder with a mask for each image, of the same name up to the extension; its pixels are class ids.
        boxes: a dict, or a JSON file with one, from file name (without extension) to a list of [x_min, y_min, x_max,
            y_max, class id], in pixels. The dataset gives (boxes, 5), corners in 0..1, padded with -1.
        ignore_label: the id of void pixels: a mask that holds nothing else is refused.
        batch_size: examples per batch; None leaves them unbatched, for ``augment(...).live``.
        shuffle_seed: shuffle anew in each epoch, reproducibly; None keeps the order.
        verify: whether to decode every file once at the start, so that a damaged one is found immediately; False for
            large sets that were verified before.

    Returns:
        The dataset; its attributes ``class_names`` and ``files`` list its classes and files.

    Raises:
        ValueError: naming the file that is empty, damaged, of another size, without a mask, or whose boxes are wrong.

    Example:
        >>> images("digits", batch_size=4, split="test").element_spec[0].shape
        TensorShape([None, 8, 8, 1])
    """
    choice(_OWNER, "num_channels", num_channels, (None, 1, 3, 4))
    if batch_size is not None:
        integer(_OWNER, "batch_size", batch_size, low=1)
    folder = Path(path_or_name)
    if not folder.is_dir() and str(path_or_name) in _named.names():
        found = _of_name(str(path_or_name), split or "train", image_size)
    else:
        folder = folder / split if split is not None else folder
        if masks is not None and boxes is not None:
            raise error(_OWNER, "masks or boxes", "both")
        found = _of_folder(folder, image_size, num_channels, masks, boxes, ignore_label, verify)
    dataset, class_names, files = found
    options = tf.data.Options()
    options.autotune.enabled = False  # its thread delays the end of the last epoch by seconds
    if shuffle_seed is not None:
        dataset = dataset.shuffle(max(1, len(files)), seed=shuffle_seed, reshuffle_each_iteration=True)
    if files:
        dataset = dataset.map(_decoder(files, image_size, num_channels, masks), num_parallel_calls=2)
    if batch_size is not None:
        dataset = dataset.batch(batch_size)
    dataset = dataset.prefetch(2).with_options(options)
    dataset.class_names, dataset.files = class_names, files
    return dataset


def _of_name(name: str, split: str, image_size: tuple[int, int] | None) -> tuple[tf.data.Dataset, list[str], list[str]]:
    loaded = _named.load(name)
    examples = getattr(loaded, split) if split in ("train", "validation", "test") else loaded._split(split)
    if examples.inputs.ndim != 4:
        raise error(_OWNER, "the name of a set of images", repr(name))
    dataset = tf.data.Dataset.from_tensor_slices((examples.inputs, examples.labels))
    if image_size is not None:
        dataset = dataset.map(lambda x, y: (tf.image.resize(x, image_size), _map_at(y, image_size)))
    return dataset, list(loaded.class_names), []


def _map_at(y: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
    """Resize a label map; leave other labels unchanged."""
    return tf.image.resize(y[..., None], size, method="nearest")[..., 0] if y.shape.rank == 2 and y.shape[1] != 5 else y


def _of_folder(
    folder: Path,
    image_size: tuple[int, int] | None,
    num_channels: int | None,
    masks: Any,
    boxes: Tensor,
    ignore_label: int | None,
    verify: bool,
) -> tuple[tf.data.Dataset, list[str], list[str]]:
    """Return a dataset of (path, label, mask or boxes), class names, and the files."""
    if not folder.is_dir():
        names = ", ".join(_named.names())
        raise error(_OWNER, f"a folder of images or one of {names}", f"nothing at {folder}")
    classes = sorted(each.name for each in folder.iterdir() if each.is_dir() and not each.name.startswith("."))
    plain = masks is not None or boxes is not None or not classes
    paths = sorted(each for each in folder.rglob("*") if each.suffix.lower() in _ENDINGS and each.is_file())
    if not paths:
        raise error(_OWNER, f"images ({', '.join(sorted(_ENDINGS))})", f"none in {folder}")
    shapes = _shapes(paths, image_size, num_channels) if verify or boxes is not None else {}
    files = [str(path) for path in paths]
    if masks is not None:
        labels: Any = [str(each) for each in _masks_of(paths, Path(masks), shapes, ignore_label)]
    elif boxes is not None:
        labels = _boxes_of(paths, boxes, shapes)
    elif plain:
        return tf.data.Dataset.from_tensor_slices(files), [], files
    else:
        stray = next((path for path in paths if path.parent == folder), None)
        if stray is not None:
            raise error(_OWNER, "each image in the folder of its class", f"{stray} beside folders", "Move or remove it")
        labels = np.array([classes.index(path.relative_to(folder).parts[0]) for path in paths], "int32")
    return tf.data.Dataset.from_tensor_slices((files, labels)), [] if plain else classes, files


def _decoder(files: list[str], image_size: Any, num_channels: int | None, masks: Any) -> Any:
    """Return a function that decodes an image, and a mask, from a path."""
    channels = num_channels or int(_read(Path(files[0])).shape[-1])

    def read(path: tf.Tensor, channels: int) -> tf.Tensor:
        image = tf.io.decode_image(tf.io.read_file(path), channels=channels, expand_animations=False)
        return tf.ensure_shape(image, (None, None, channels))

    shape = tuple(image_size or _read(Path(files[0])).shape[:2])

    def decode(path: tf.Tensor, label: Any = None) -> Any:
        image = tf.cast(read(path, channels), tf.float32) / 255.0
        image = tf.image.resize(image, image_size) if image_size is not None else image
        image = tf.ensure_shape(image, (*shape, channels))
        if masks is not None:
            label = tf.cast(read(label, 1), tf.int32)
            label = tf.image.resize(label, image_size, method="nearest") if image_size is not None else label
            label = tf.ensure_shape(label[..., 0], shape)
        return image if label is None else (image, label)

    return decode


def _read(path: Path) -> np.ndarray:
    """Decode a file without conversion, or raise the error that names it."""
    data = path.read_bytes()
    if not data:
        raise error(_OWNER, "an image", f"the empty file {path}", "Remove it or fetch it again")
    try:
        image = tf.io.decode_image(data, expand_animations=False).numpy()
    except tf.errors.OpError as problem:
        first = problem.message.splitlines()[0][:100]
        raise error(_OWNER, "an image", f"the damaged file {path}: {first}", "Remove it or fetch it again") from None
    if 0 in image.shape:
        raise error(_OWNER, "an image with pixels", f"{image.shape} in {path}")
    return image


def _shapes(paths: list[Path], image_size: Any, num_channels: int | None) -> dict[Path, tuple[int, ...]]:
    """Decode every file once and return the shapes; sizes and channels must agree unless they are converted."""
    with ThreadPoolExecutor(2) as pool:
        shapes = dict(zip(paths, pool.map(lambda path: _read(path).shape, paths), strict=True))
    first = paths[0]
    for path, shape in shapes.items():
        if image_size is None and shape[:2] != shapes[first][:2]:
            got = f"{shapes[first][:2]} in {first} and {shape[:2]} in {path}"
            raise error(_OWNER, "images of one size", got, "Give image_size=(height, width)")
        if num_channels is None and shape[2] != shapes[first][2]:
            got = f"{shapes[first][2]} in {first} and {shape[2]} in {path}"
            raise error(_OWNER, "images with one number of channels", got, "Give num_channels=3")
    return shapes


def _masks_of(paths: list[Path], folder: Path, shapes: Any, ignore_label: int | None) -> list[Path]:
    """Return the mask of each image, verified if the images were."""
    if not folder.is_dir():
        raise error(_OWNER, "a folder of masks", f"nothing at {folder}")
    by_stem = {each.stem: each for each in sorted(folder.rglob("*")) if each.suffix.lower() in _ENDINGS}
    found = []
    for path in paths:
        if path.stem not in by_stem:
            raise error(_OWNER, f"a mask of {path}", f"none named {path.stem} in {folder}")
        mask = by_stem[path.stem]
        if shapes:
            pixels = _read(mask)
            if pixels.shape[:2] != shapes[path][:2]:
                got = f"{pixels.shape[:2]} in {mask} for {shapes[path][:2]} in {path}"
                raise error(_OWNER, "a mask of its image's size", got)
            if ignore_label is not None and (pixels[..., 0] == ignore_label).all():
                raise error(_OWNER, "a mask with a pixel that is not void", f"only {ignore_label} in {mask}")
        found.append(mask)
    return found


def _boxes_of(paths: list[Path], boxes: Tensor, shapes: dict[Path, tuple[int, ...]]) -> np.ndarray:
    """Return (images, boxes, 5), corners in 0..1 and class ids, padded with -1."""
    source = "boxes" if isinstance(boxes, Mapping) else str(boxes)
    table = boxes if isinstance(boxes, Mapping) else json.loads(Path(boxes).read_text())
    rows = []
    for path in paths:
        if path.stem not in table:
            raise error(_OWNER, f"the boxes of {path}", f"none in {source}", "An image without objects has []")
        height, width = shapes[path][:2]
        rows.append(checked_boxes(_OWNER, str(path), table[path.stem], height, width))
    out = np.full((len(rows), max(1, *(len(row) for row in rows)), 5), -1.0, "float32")
    for index, row in enumerate(rows):
        out[index, : len(row)] = row
    return out


def checked_boxes(owner: str, file: str, boxes: Tensor, height: int, width: int) -> np.ndarray:
    """Return one image's boxes with corners in 0..1, or raise the error that names the file and the box.

    Args:
        owner: name shown in the error message.
        file: file of the image.
        boxes: (boxes, 5): x_min, y_min, x_max, y_max in pixels, class id.
        height: height of the image in pixels.
        width: width of the image in pixels.

    Returns:
        (boxes, 5), float32.
    """
    array = np.asarray(boxes, "float64").reshape(-1, 5) if np.size(boxes) else np.zeros((0, 5))
    for box in array:
        corners = [float(each) for each in box[:4]]
        if box[0] < 0 or box[1] < 0 or box[2] > width or box[3] > height or not np.isfinite(box).all():
            raise error(owner, f"boxes inside of {width} x {height} pixels", f"{corners} of {file}")
        if box[2] <= box[0] or box[3] <= box[1]:
            raise error(owner, "boxes with an area", f"{corners} of {file}", "x_min, y_min, x_max, y_max")
    return (array / [width, height, width, height, 1.0]).astype("float32")


def domains(**datasets: tf.data.Dataset) -> tf.data.Dataset:
    """Join data sets of several domains and label each example with its domain.

    Examples alternate between domains; shorter sets repeat until the longest ends. Examples without a label get -1:
    compile with ``keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)``, not with a weight of
    0, which would also remove them from the terms.

    Args:
        **datasets: by name, at least two, not batched: x, or (x, y) with integer y. The first is domain 0, the source.

    Returns:
        A dataset of ``({"image": x, "domain": number}, y)``, not batched; its attribute ``domain_names`` lists the
        names in order.

    Raises:
        ValueError: if there is only one domain, or images differ in shape.

    Example:
        >>> import numpy as np, tensorflow as tf
        >>> source = tf.data.Dataset.from_tensor_slices((np.zeros((2, 1, 1, 1), "float32"), [3, 4]))
        >>> target = tf.data.Dataset.from_tensor_slices(np.ones((3, 1, 1, 1), "float32"))
        >>> [(int(x["domain"]), int(y)) for x, y in domains(mnist=source, usps=target)][:4]
        [(0, 3), (1, -1), (0, 4), (1, -1)]
    """
    owner = "data.domains"
    if len(datasets) < 2:
        raise error(owner, "at least two domains, by name", f"{list(datasets) or 'none'}")
    made, shapes = [], {}
    for number, (name, dataset) in enumerate(datasets.items()):
        spec = dataset.element_spec
        shapes[name] = tuple((spec[0] if isinstance(spec, tuple) else spec).shape)

        def say(x: Any, y: Any = None, number: int = number) -> Any:
            label = tf.constant(-1, tf.int32) if y is None else tf.cast(y, tf.int32)
            return {"image": tf.cast(x, tf.float32), "domain": tf.constant(number, tf.int32)}, label

        made.append(dataset.map(say))
    if len(set(shapes.values())) > 1:
        raise error(owner, "images of one shape in all domains", f"{shapes}", "Resize with data.images(image_size=...)")
    longest = max(int(each.cardinality()) for each in made)
    if longest < 0:
        raise error(owner, "data sets whose length is known", "one whose cardinality is not")
    turns = [each.repeat().take(longest) for each in made]
    joined = tf.data.Dataset.zip(tuple(turns)).flat_map(
        lambda *each: tf.data.Dataset.from_tensor_slices(tf.nest.map_structure(lambda *leaf: tf.stack(leaf), *each))
    )
    joined = joined.apply(tf.data.experimental.assert_cardinality(longest * len(made)))
    joined.domain_names = tuple(datasets)
    return joined
