"""Further signatures for serialized ``tf.train.Example``, encoded images and text, on the student's own graph."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill._checks import choice, error, number
from keras_distill.export._heads import Head
from keras_distill.export._inputs import Inputs

#: Method names that TensorFlow Serving's Classify and Regress calls expect.
METHODS = {"classify": "tensorflow/serving/classify", "regress": "tensorflow/serving/regress"}
_TEXTS = ("one", "two words", "na\u00efve caf\u00e9 \u4f60\u597d", "a longer text with several more words in it")


@dataclasses.dataclass(frozen=True)
class ImageBytes:
    """Converts an encoded image (JPEG, PNG, BMP or the first frame of a GIF) to the student's input.

    The graph decodes, resizes to the student's height and width, and computes ``(pixel * scale - mean) / std``, for
    pixels from 0 to 255. Clients therefore send the file as it is; a file that cannot be decoded is an error of its
    request.

    Args:
        scale: factor of the pixels; 1/255 gives 0 to 1.
        mean: subtracted then; a number, or one per channel.
        std: divided by last; a number, or one per channel; not 0.
        resize: ``"bilinear"``, ``"bicubic"``, ``"nearest"`` or ``"area"``.
        antialias: whether shrinking averages over all pixels, as PIL does, instead of sampling.

    Raises:
        ValueError: if a value is out of range.

    Example:
        >>> import numpy as np
        >>> ImageBytes(scale=0.5).normalise(np.array([[[2.0]]])).tolist()
        [[[1.0]]]
    """

    scale: float = 1.0 / 255.0
    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 1.0
    resize: str = "bilinear"
    antialias: bool = True

    def __post_init__(self) -> None:
        number("ImageBytes", "scale", self.scale)
        for value in np.ravel(self.mean):
            number("ImageBytes", "mean", float(value))
        for value in np.ravel(self.std):
            number("ImageBytes", "std", float(value), above=0)
        choice("ImageBytes", "resize", self.resize, ("bilinear", "bicubic", "nearest", "area"))

    def normalise(self, pixels: Any) -> Any:
        """Apply scale, mean and std.

        Args:
            pixels: (..., channels), 0 to 255, array or tensor.

        Returns:
            The same shape.
        """
        scale, mean, std = np.float32(self.scale), np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return (pixels * scale - mean) / std

    def decode(self, encoded: tf.Tensor, height: int, width: int, channels: int) -> tf.Tensor:
        """Decode, resize and normalise a batch, inside the graph.

        Args:
            encoded: (batch,), strings.
            height: height of the result.
            width: width of the result.
            channels: 1 or 3.

        Returns:
            (batch, height, width, channels), float32.
        """

        def one(content: tf.Tensor) -> tf.Tensor:
            image = tf.io.decode_image(content, channels=channels, expand_animations=False)
            image.set_shape((None, None, channels))
            return tf.image.resize(image, (height, width), method=self.resize, antialias=self.antialias)

        spec = tf.TensorSpec((height, width, channels), tf.float32)
        return self.normalise(tf.map_fn(one, encoded, fn_output_signature=spec))


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """A further signature, with inputs to check it on.

    Args:
        name: name of the signature.
        function: maps one string tensor to a dictionary of tensors.
        spec: spec of its input.
        examples: strings to check it on.
        student_inputs: the student's inputs for the same examples.
    """

    name: str
    function: Callable[[tf.Tensor], dict[str, tf.Tensor]]
    spec: keras.InputSpec
    examples: np.ndarray
    student_inputs: list[np.ndarray]


def image_endpoint(owner: str, image: Any, inputs: Inputs, serve: Callable[..., dict[str, tf.Tensor]]) -> Endpoint:
    """Make the signature ``image_bytes``, from encoded images to the outputs of ``serving_default``.

    Args:
        owner: name shown in the error message.
        image: an ``ImageBytes``.
        inputs: the student's inputs.
        serve: the function behind ``serving_default``.

    Returns:
        The endpoint; it is checked on random images, encoded as PNG.

    Raises:
        ValueError: if the student does not take one image of known height, width and 1 or 3 channels.
    """
    if not isinstance(image, ImageBytes):
        raise error(owner, "image to be an ImageBytes", image, "Use image=export.ImageBytes(scale=1 / 255)")
    spec = inputs.specs[0]
    shape = tuple(spec.shape[1:])
    squeezed = len(shape) == 2  # (height, width): a greyscale image without a channel axis
    full = (*shape, 1) if squeezed else shape
    if len(inputs.specs) != 1 or len(full) != 3 or None in full or full[-1] not in (1, 3):
        raise error(
            owner,
            "a student that takes one image of known height and width with 1 or 3 channels, for image",
            [tuple(s.shape) for s in inputs.specs],
        )

    def function(encoded: tf.Tensor) -> dict[str, tf.Tensor]:
        decoded = image.decode(encoded, *full)
        return serve(tf.cast(tf.squeeze(decoded, -1) if squeezed else decoded, spec.dtype))

    pixels = np.random.default_rng(0).integers(0, 256, (4, *full), dtype=np.uint8)
    encoded = np.array([tf.io.encode_png(picture).numpy() for picture in pixels], dtype=object)
    normalised = np.asarray(image.normalise(pixels.astype(np.float32)))
    normalised = (normalised[..., 0] if squeezed else normalised).astype(spec.dtype)
    name = "image_bytes"
    return Endpoint(name, function, keras.InputSpec(shape=(None,), dtype="string", name=name), encoded, [normalised])


def text_endpoint(owner: str, text: Any, inputs: Inputs, serve: Callable[..., dict[str, tf.Tensor]]) -> Endpoint:
    """Make the signature ``text``, from one string per example to the outputs of ``serving_default``.

    Args:
        owner: name shown in the error message.
        text: a layer or function from strings (batch,) to the student's input, or True for a student that takes
            strings.
        inputs: the student's inputs.
        serve: the function behind ``serving_default``.

    Returns:
        The endpoint.

    Raises:
        ValueError: if ``text`` is True and the student does not take strings, or if its result does not fit the
            student.
    """
    if text is True:
        spec = inputs.specs[0]
        if len(inputs.specs) != 1 or spec.dtype != "string" or len(spec.shape) > 2 or spec.shape[1:] not in ((), (1,)):
            raise error(
                owner,
                "text to be the preprocessing layer of a student that does not take one string",
                True,
                "Pass text=<a keras.layers.TextVectorization, or any function of a (batch,) string tensor>",
            )
        prepare: Callable[[tf.Tensor], Any] = (lambda x: x) if len(spec.shape) == 1 else (lambda x: x[:, tf.newaxis])
    elif callable(text):
        prepare = text
    else:
        raise error(owner, "text to be True, a layer or a function", text)

    def function(texts: tf.Tensor) -> dict[str, tf.Tensor]:
        leaves = keras.tree.flatten(prepare(texts))
        return serve(*[tf.cast(leaf, spec.dtype) for leaf, spec in zip(leaves, inputs.specs, strict=True)])

    examples = np.array([sample.encode() for sample in _TEXTS], dtype=object)
    prepared = [np.asarray(leaf) for leaf in keras.tree.flatten(prepare(tf.constant(examples)))]
    packed = inputs.flatten(owner, inputs.pack(prepared) if len(prepared) == len(inputs.specs) else prepared)
    return Endpoint("text", function, keras.InputSpec(shape=(None,), dtype="string", name="text"), examples, packed)


def example_endpoint(
    owner: str, inputs: Inputs, heads: list[Head], serve: Callable[..., dict[str, tf.Tensor]], arrays: list[np.ndarray]
) -> Endpoint:
    """Make ``classify`` or ``regress``, which take serialized ``tf.train.Example``, one feature per student input.

    ``classify`` returns ``classes`` (class names, or the index as text) and ``scores``, most probable first, as
    TensorFlow Serving's Classify call requires; ``regress`` returns ``outputs``.

    Args:
        owner: name shown in the error message.
        inputs: the student's inputs.
        heads: interpretation of its outputs; exactly one.
        serve: the function behind ``serving_default``.
        arrays: student inputs to check it on.

    Returns:
        The endpoint.

    Raises:
        ValueError: if the student has several outputs, or dimensions that an Example cannot hold.
    """
    if len(heads) != 1:
        raise error(owner, "a student with one output for examples=True", f"{len(heads)} outputs")
    features = {}
    for name, spec in zip(inputs.names, inputs.specs, strict=True):
        shape = tuple(spec.shape[1:])
        dtype = tf.string if spec.dtype == "string" else tf.float32 if "float" in spec.dtype else tf.int64
        if None not in shape:
            features[name] = tf.io.FixedLenFeature(shape, dtype)
        elif shape[0] is None and None not in shape[1:]:
            features[name] = tf.io.FixedLenSequenceFeature(shape[1:], dtype, allow_missing=True)
        else:
            raise error(owner, "at most one unknown dimension, right after the batch, for examples=True", shape)
    head = heads[0]

    def function(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
        parsed = tf.io.parse_example(serialized, features)
        out = serve(*[tf.cast(parsed[n], s.dtype) for n, s in zip(inputs.names, inputs.specs, strict=True)])
        if head.task == "regression":
            return {"outputs": out["values"]}
        if head.labels is not None:
            return {"classes": tf.identity(out["labels"]), "scores": tf.identity(out["scores"])}
        probabilities = out["probabilities"]
        if head.task == "binary" and probabilities.shape[-1] == 1:
            probabilities = tf.concat([1.0 - probabilities, probabilities], axis=-1)
        scores, order = tf.math.top_k(probabilities, k=probabilities.shape[-1])
        return {"classes": tf.strings.as_string(order), "scores": scores}

    count = min(4, len(arrays[0]))
    chosen = [array[:count] for array in arrays]
    serialized = [serialize_example(dict(zip(inputs.names, row, strict=True))) for row in zip(*chosen, strict=True)]
    name = "regress" if head.task == "regression" else "classify"
    spec = keras.InputSpec(shape=(None,), dtype="string", name="inputs")
    return Endpoint(name, function, spec, np.array(serialized, dtype=object), chosen)


def serialize_example(values: dict[str, np.ndarray]) -> bytes:
    """Serialize one example as ``tf.train.Example``.

    Args:
        values: an array per feature; text as ``str`` or ``bytes``.

    Returns:
        The serialized proto.
    """
    features = {}
    for name, value in values.items():
        flat = np.ravel(value)
        if flat.dtype.kind in "OUS":
            texts = [text.encode() if isinstance(text, str) else bytes(text) for text in flat.tolist()]
            features[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=texts))
        elif flat.dtype.kind == "f":
            features[name] = tf.train.Feature(float_list=tf.train.FloatList(value=flat))
        else:
            features[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=flat.astype(np.int64)))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def check_endpoint(
    owner: str, endpoint: Endpoint, served: dict[str, np.ndarray], expected: dict[str, np.ndarray]
) -> None:
    """Compare a further signature with ``serving_default`` on the same examples.

    Args:
        owner: name shown in the error message.
        endpoint: the signature.
        served: its outputs.
        expected: outputs of ``serving_default`` for ``endpoint.student_inputs``.

    Raises:
        ValueError: if they differ by more than 1e-4.
    """
    if endpoint.name == "regress":
        pairs = [(served["outputs"], expected["values"])]
    elif endpoint.name == "classify":
        probabilities = expected["probabilities"]
        if served["scores"].shape[-1] == 2 and probabilities.shape[-1] == 1:
            probabilities = np.concatenate([1 - probabilities, probabilities], axis=-1)
        pairs = [(served["scores"], -np.sort(-probabilities, axis=-1))]
    else:
        pairs = [(served[n], v) for n, v in expected.items() if n in served and v.dtype.kind == "f"]
    for got, wanted in pairs:
        difference = float(np.abs(got - wanted).max()) if got.shape == wanted.shape else float("inf")
        if not difference <= 1e-4 * max(1.0, float(np.abs(wanted).max())):
            raise error(
                owner, f"signature '{endpoint.name}' to agree with serving_default", f"a difference of {difference:.3g}"
            )
