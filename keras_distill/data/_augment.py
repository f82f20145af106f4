"""Repeatable random views of images, shared by both models, from Keras' preprocessing layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill._checks import error, integer, number

_OWNER = "data.augment"


class _Given(keras.random.SeedGenerator):
    """A seed generator that starts from a tensor, so that a layer repeats its draws for the same example and view."""

    def __init__(self, seed: tf.Tensor) -> None:  # without the base class's variable, because no state is kept
        self._given, self._count = tf.cast(seed, tf.int32), 0

    def next(self, ordered: bool = True) -> tf.Tensor:
        """Return a new seed at each call."""
        self._count += 1
        return self._given + tf.constant([0, 7919 * self._count], tf.int32)


class Augment:
    """A random view of an example, the same for the same seed; made by ``data.augment``, see there.

    Args:
        layers: see ``augment``.
        student_size: see ``augment``.
        teacher_size: see ``augment``.
        student_preprocess: see ``augment``.
        teacher_preprocess: see ``augment``.
    """

    def __init__(
        self,
        layers: Sequence[keras.layers.Layer],
        student_size: tuple[int, int] | None = None,
        teacher_size: tuple[int, int] | None = None,
        student_preprocess: Callable[[Any], Any] | None = None,
        teacher_preprocess: Callable[[Any], Any] | None = None,
    ) -> None:
        self.layers = list(layers)
        self.two_views = teacher_size is not None or teacher_preprocess is not None
        self._views = {"student": (student_size, student_preprocess), "teacher": (teacher_size, teacher_preprocess)}
        for layer in self.layers:
            if not isinstance(layer, keras.layers.Layer):
                raise error(_OWNER, "Keras' preprocessing layers", layer)
            _check_repeats(layer)
        for role, (size, function) in self._views.items():
            if size is not None:
                for length in size:
                    integer(_OWNER, f"{role}_size", length, low=1)
            if function is not None and not callable(function):
                raise error(_OWNER, f"{role}_preprocess to be a function or None", function)

    def __call__(self, x: Any, seed: Any) -> Any:
        """Return the view of one example for a seed.

        Args:
            x: one image, (height, width, channels), float.
            seed: (2,), integer.

        Returns:
            The image for both models, or ``{"student": ..., "teacher": ...}``.
        """
        return self._both(self._seen(x, None, seed)[0])

    def pair(self, x: Any, y: Any, seed: Any) -> tuple[Any, Any]:
        """Return the view of one example and of its label map, which is transformed with it.

        Args:
            x: as in ``__call__``.
            y: (height, width), integer class ids.
            seed: as in ``__call__``.

        Returns:
            The view, and the label map at the student's size.
        """
        x, y = self._seen(x, y, seed)
        size = self._views["student"][0]
        if size is not None:
            y = tf.image.resize(y[..., None], size, method="nearest")[..., 0]
        return self._both(x), y

    def live(self, dataset: tf.data.Dataset, seed: int = 0, masks: bool = False) -> tf.data.Dataset:
        """Return a dataset with a new view of each example in each epoch, reproducible by the seed.

        Batch afterwards, because examples come one by one.

        Args:
            dataset: x, (x, y) or (x, y, sample_weight), not batched.
            seed: of the views.
            masks: whether y is a label map, which is transformed with the image.

        Returns:
            A dataset of the same structure.
        """
        spec = dataset.element_spec
        image = keras.tree.flatten(spec[0] if isinstance(spec, tuple) else spec)[0]
        if image.shape.rank != 3:
            advice = "Call it before .batch()"
            raise error("Augment.live", "images (height, width, channels), one by one", f"{image.shape}", advice)
        draws = tf.data.Dataset.random(integer("Augment.live", "seed", seed, low=0), rerandomize_each_iteration=True)
        seeds = draws.map(_pair_of)

        @tf.autograph.experimental.do_not_convert
        def view(element: Any, seed: tf.Tensor) -> Any:
            if not isinstance(element, tuple):
                return self(element, seed)
            if masks:
                return (*self.pair(element[0], element[1], seed), *element[2:])
            return (self(element[0], seed), *element[1:])

        return tf.data.Dataset.zip((dataset, seeds)).map(view, num_parallel_calls=2)

    def _seen(self, x: Any, y: Any, seed: Any) -> tuple[Any, Any]:
        x = tf.cast(x, tf.float32)[None]
        label = None if y is None else tf.cast(y, tf.float32)[None, ..., None]
        for index, layer in enumerate(self.layers):
            draws = _Given(tf.cast(seed, tf.int32) + tf.constant([104729 * index, 0], tf.int32))
            if not hasattr(layer, "get_random_transformation"):
                x = layer(x)
                continue
            drawn = layer.get_random_transformation(x, training=True, seed=draws)
            x = layer.transform_images(x, drawn, training=True)
            if label is not None:
                label = layer.transform_segmentation_masks(label, drawn, training=True)
        return x[0], None if label is None else tf.cast(tf.round(label[0, ..., 0]), y.dtype)

    def _both(self, x: Any) -> Any:
        views = {}
        for role, (size, function) in self._views.items():
            seen = x if size is None else tf.image.resize(x, size, antialias=True)
            views[role] = seen if function is None else function(seen)
        return views if self.two_views else views["student"]


@tf.autograph.experimental.do_not_convert
def _pair_of(draw: tf.Tensor) -> tf.Tensor:
    """Return a random 64-bit number as the (2,) seed of a stateless operation."""
    return tf.bitcast(draw, tf.int32)


def _check_repeats(layer: keras.layers.Layer) -> None:
    """Raise ``ValueError`` for a layer that draws from its own state, which makes its views unrepeatable."""
    if not hasattr(layer, "get_random_transformation"):
        return
    probe = tf.constant(np.random.default_rng(0).uniform(size=(1, 16, 16, 3)).astype("float32"))
    seen = []
    for _ in range(3):
        drawn = layer.get_random_transformation(probe, training=True, seed=_Given(tf.constant([3, 5])))
        seen.append(np.asarray(layer.transform_images(probe, drawn, training=True)))
    if not all(np.array_equal(seen[0], each) for each in seen[1:]):
        advice = "Give its component layers, such as RandomBrightness and RandomContrast"
        raise error(_OWNER, "layers whose views are repeatable by a seed", type(layer).__name__, advice)


def augment(
    layers: Sequence[keras.layers.Layer],
    *,
    student_size: tuple[int, int] | None = None,
    teacher_size: tuple[int, int] | None = None,
    student_preprocess: Callable[[Any], Any] | None = None,
    teacher_preprocess: Callable[[Any], Any] | None = None,
) -> Augment:
    """Make a random augmentation with views shared by both models (function matching, fast knowledge distillation).

    ``augment(...).live(dataset)`` gives each epoch new views; teacher and student see the same pixels, because one
    batch goes to both. The same object is the ``augment`` of ``teachers.label`` and of ``Stored.attach``: a view is a
    function of the store's seed, so that crops, flips and colours take no storage and are reproduced exactly.

    With ``teacher_size`` or ``teacher_preprocess`` a view is ``{"student": ..., "teacher": ...}``, made from one
    augmented image: give the distiller ``teachers.Preprocessed(teacher, data.teacher_view, data.student_view)``.

    Args:
        layers: Keras' image preprocessing layers, in order: RandomFlip, RandomCrop, RandomTranslation, ...
        student_size: (height, width) of the student's view, after the layers; None leaves the size unchanged.
        teacher_size: the same for the teacher.
        student_preprocess: function of the student's view, such as
            ``keras.applications.mobilenet_v3.preprocess_input``; images of ``data.images`` are 0..1, while those
            functions expect 0..255.
        teacher_preprocess: the same for the teacher.

    Returns:
        An ``Augment``.

    Raises:
        ValueError: if a layer draws from its own state (RandomColorJitter, RandAugment), or an option is wrong.

    Example:
        >>> import keras, numpy as np, tensorflow as tf
        >>> views = augment([keras.layers.RandomFlip("horizontal"), keras.layers.RandomCrop(4, 4)])
        >>> image = np.arange(75.0, dtype="float32").reshape(5, 5, 3)
        >>> bool(np.all(views(image, [1, 2]) == views(image, [1, 2]))), views(image, [1, 2]).shape
        (True, TensorShape([4, 4, 3]))

    Reference:
        Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", CVPR 2022, arXiv:2106.05237;
        Shen, Xing, "A Fast Knowledge Distillation Framework for Visual Recognition", ECCV 2022, arXiv:2112.01528.
        Differs: views are stored as a seed.
    """
    return Augment(layers, student_size, teacher_size, student_preprocess, teacher_preprocess)


@keras.saving.register_keras_serializable(package="keras_distill")
def student_view(inputs: Any) -> Any:
    """Return the student's view of a batch that ``augment`` made.

    Args:
        inputs: ``{"student": ..., "teacher": ...}``.
    """
    return inputs["student"]


@keras.saving.register_keras_serializable(package="keras_distill")
def teacher_view(inputs: Any) -> Any:
    """Return the teacher's view of a batch that ``augment`` made.

    Args:
        inputs: ``{"student": ..., "teacher": ...}``.
    """
    return inputs["teacher"]


def mix(
    dataset: tf.data.Dataset,
    *,
    num_classes: int | None = None,
    mixup: float = 0.2,
    cutmix: float = 0.0,
    seed: int = 0,
) -> tf.data.Dataset:
    """Mix the images of each batch in pairs (Mixup, CutMix), to be answered by a live teacher.

    The teacher sees the mixed batch, so its answers are recomputed, never interpolated. Labels become the mixture of
    two one-hot vectors. With both numbers above 0, each batch uses one of the two methods at random.

    Args:
        dataset: batches of x or (x, y), x (batch, height, width, channels), y integer class ids.
        num_classes: number of classes of the labels; None if there are no labels.
        mixup: >= 0; the mixing share is drawn from Beta(mixup, mixup) for each pair; 0 turns it off.
        cutmix: >= 0; the area of the pasted box is drawn from Beta(cutmix, cutmix) for each batch; 0 turns it off.
        seed: seed of the pairs and shares; each epoch draws anew, reproducibly.

    Returns:
        A dataset of batches of the same structure, labels (batch, num_classes) float32.

    Raises:
        ValueError: if the batch holds stored answers of a teacher, labels come without ``num_classes``, or a number is
            out of range.

    Example:
        >>> import numpy as np, tensorflow as tf
        >>> batches = tf.data.Dataset.from_tensor_slices((np.ones((4, 2, 2, 1), "float32"), [0, 1, 1, 0])).batch(4)
        >>> x, y = next(iter(mix(batches, num_classes=2, mixup=1.0)))
        >>> y.shape, y.numpy().sum(1).round(4).tolist()
        (TensorShape([4, 2]), [1.0, 1.0, 1.0, 1.0])

    Reference:
        Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv:1710.09412; Yun et al., "CutMix",
        ICCV 2019, arXiv:1905.04899. Differs: nothing.
    """
    owner = "data.mix"
    mixup = number(owner, "mixup", mixup, low=0.0)
    cutmix = number(owner, "cutmix", cutmix, low=0.0)
    spec = dataset.element_spec
    x_spec = spec[0] if isinstance(spec, tuple) else spec
    if isinstance(x_spec, dict) and "stored_teacher" in x_spec:
        advice = "Use a live teacher: stored answers of two images are not those of their mixture"
        raise error(owner, "images", "the answers of a stored teacher beside them", advice)
    if keras.tree.is_nested(x_spec) or x_spec.shape.rank != 4:
        raise error(owner, "batches of images (batch, height, width, channels)", str(x_spec), "Call it after .batch()")
    if isinstance(spec, tuple) and len(spec) > 1 and num_classes is None:
        raise error(owner, "num_classes for the labels", "None")
    if isinstance(spec, tuple) and len(spec) > 2:
        raise error(owner, "x or (x, y)", "sample weights as well")
    if mixup == cutmix == 0.0:
        raise error(owner, "mixup or cutmix above 0", "both 0")
    draws = tf.data.Dataset.random(integer(owner, "seed", seed, low=0), rerandomize_each_iteration=True)

    @tf.autograph.experimental.do_not_convert
    def mixed(element: Any, draw: tf.Tensor) -> Any:
        x, y = element if isinstance(element, tuple) else (element, None)
        x = tf.cast(x, tf.float32)
        key = tf.bitcast(draw, tf.int32)
        count = tf.shape(x)[0]
        order = tf.argsort(tf.random.stateless_uniform([count], key))
        by_box = tf.random.stateless_uniform([], key + 1) < 0.5 if mixup and cutmix else tf.constant(cutmix > 0)
        # Both methods are cheap, so both are computed instead of branching on a tensor.
        share = _beta(mixup or 1.0, [count], key + 2)
        box, kept = _box(tf.shape(x)[1], tf.shape(x)[2], _beta(cutmix or 1.0, [], key + 3), key + 4)
        other = tf.gather(x, order)
        pasted = tf.where(box[None, ..., None], other, x)
        blended = share[:, None, None, None] * x + (1.0 - share)[:, None, None, None] * other
        x = tf.where(by_box, pasted, blended)
        if y is None:
            return x
        share = tf.where(by_box, tf.fill([count], kept), share)[:, None]
        ids = tf.one_hot(tf.reshape(y, [-1]), num_classes or 0)
        return x, share * ids + (1.0 - share) * tf.gather(ids, order)

    return tf.data.Dataset.zip((dataset, draws)).map(mixed)


def _beta(concentration: float, shape: list[Any], key: tf.Tensor) -> tf.Tensor:
    """Draw from Beta(concentration, concentration)."""
    one, two = (tf.random.stateless_gamma(shape, key + tf.constant([0, i]), alpha=concentration) for i in (101, 202))
    return tf.math.divide_no_nan(one, one + two) + tf.where(one + two > 0.0, 0.0, 0.5)


def _box(height: tf.Tensor, width: tf.Tensor, share: tf.Tensor, key: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return the mask of a pasted box of about ``1 - share`` of the area, (height, width) bool, and the share kept."""
    side = tf.sqrt(1.0 - share)
    centre = tf.random.stateless_uniform([2], key)
    inside = []
    for axis, length in enumerate((height, width)):
        size = tf.cast(length, tf.float32)
        low, high = (centre[axis] - side / 2) * size, (centre[axis] + side / 2) * size
        position = tf.range(length)
        inside.append((position >= tf.cast(tf.round(low), tf.int32)) & (position < tf.cast(tf.round(high), tf.int32)))
    box = inside[0][:, None] & inside[1][None]
    return box, 1.0 - tf.reduce_mean(tf.cast(box, tf.float32))
