"""Augmentation: a seed determines a view; both models see the same pixels; stored predictions equal live ones."""

import tempfile

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import Distiller, FeatureDistillation, data, teachers
from tests.models import replicas

SIZE = 12


def views(**options):
    layers = [
        keras.layers.RandomFlip("horizontal"),
        keras.layers.RandomTranslation(0.2, 0.2, fill_mode="constant"),
        keras.layers.RandomCrop(8, 8),
        keras.layers.RandomBrightness(0.2, value_range=(0, 1)),
    ]
    return data.augment(layers, **options)


def pictures(count=6):
    return np.random.default_rng(0).uniform(size=(count, SIZE, SIZE, 3)).astype("float32")


def network(seed=0):
    init = keras.initializers.GlorotUniform(seed=seed)
    return keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Flatten(), keras.layers.Dense(4, kernel_initializer=init)]
    )


def test_a_seed_determines_a_view_and_epochs_differ_reproducibly():
    view, x = views(), pictures(1)[0]
    np.testing.assert_array_equal(view(x, [1, 2]), tf.function(view)(x, tf.constant([1, 2])))
    assert not np.array_equal(view(x, [1, 2]), view(x, [1, 3]))
    dataset = tf.data.Dataset.from_tensor_slices((pictures(), np.arange(6)))
    live, twin = (view.live(dataset, seed=4) for _ in range(2))
    epochs, again = ([np.stack([x for x, _ in each]) for _ in range(2)] for each in (live, twin))
    np.testing.assert_array_equal(epochs, again)
    assert not np.array_equal(*epochs)


def test_stored_views_are_the_live_ones_and_cost_no_bytes():
    teacher, view = network(), views()
    dataset = tf.data.Dataset.from_tensor_slices(pictures()).batch(4)

    def run(folder):
        options = {"augment": view, "num_views": 3, "seed": 5, "dtype": "float32", "progress": False}
        return teachers.label(teacher, dataset, folder, **options)

    with tempfile.TemporaryDirectory() as folder:
        stored = run(folder)
        seen = []
        for x in stored.attach(dataset, augment=view):
            np.testing.assert_allclose(stored(x), teacher(stored.split(x)[0]), atol=1e-6)
            seen.append(stored.split(x)[0])
        seen = np.concatenate(seen)
        assert len(seen) == 18 and not np.array_equal(seen[:6], seen[6:12])
        assert stored.bytes_per_example == 8 + 4 * 4  # a fingerprint and four logits: the view is its seed


def test_all_views_of_an_image_come_from_one_read():
    """Each view is compared with the fingerprint of the labelled one, so the views are the same."""
    teacher, reads = network(), []
    numbered = pictures()
    numbered[..., 0] = np.arange(6)[:, None, None]

    def crop(image, seed):
        return tf.image.stateless_random_crop(image, (8, 8, 3), seed)

    def read(index):
        reads.append(int(index))
        return numbered[index]

    indices = tf.data.Dataset.range(6)
    source = indices.map(lambda i: tf.ensure_shape(tf.numpy_function(read, [i], tf.float32), (SIZE, SIZE, 3)))
    with tempfile.TemporaryDirectory() as folder:
        options = {"augment": crop, "num_views": 2, "seed": 5, "dtype": "float32", "progress": False}
        stored = teachers.label(teacher, source.batch(4), folder, **options)
        by_view, by_picture = [0, 1, 2, 3, 0, 1, 2, 3], [0, 0, 1, 1, 2, 2, 3, 3]
        unknown = source.batch(4).filter(lambda x: True)
        for given, order, length in ((source.batch(4), by_view, 2), (source, by_picture, 12), (unknown, by_view, -2)):
            attached = stored.attach(given, augment=crop, views_together=True)
            assert int(attached.cardinality()) == length
            reads.clear()
            together = list(attached.batch(8) if given is source else attached)
            assert sorted(reads) == list(range(6))
            for x in together:
                np.testing.assert_allclose(stored(x), teacher(stored.split(x)[0]), atol=1e-6)
            assert np.asarray(stored.split(together[0])[0])[:, 0, 0, 0].tolist() == order
        with pytest.raises(ValueError, match="expected view=None with views_together=True, got 1"):
            stored.attach(source, augment=crop, view=1, views_together=True)


@pytest.mark.parametrize("count", [1, 2])
def test_teacher_and_student_see_the_same_pixels_on_every_replica(count):
    """Both models return their pixels, normalised: a difference of exactly 0 shows that they are the same."""
    with replicas(count).scope():
        inputs = keras.Input((8, 8, 3))
        mirror, student = (
            keras.Model(inputs, keras.layers.LayerNormalization(scale=False)(keras.layers.Flatten()(inputs)))
            for _ in range(2)
        )
        distiller = Distiller(mirror, student, FeatureDistillation("mse"), student_loss_weight=0.0)
        distiller.compile(keras.optimizers.SGD(0.1))
    dataset = data.mix(views().live(tf.data.Dataset.from_tensor_slices(pictures(8))).batch(4), mixup=0.4, cutmix=1.0)
    assert distiller.fit(dataset, epochs=2, verbose=0).history["distillation_loss"] == [0.0, 0.0]


def test_two_views_come_from_one_augmented_image():
    view = views(student_size=(4, 4), teacher_preprocess=lambda image: 2.0 * image - 1.0)
    seen = view(pictures(1)[0], [3, 4])
    whole = views()(pictures(1)[0], [3, 4])
    np.testing.assert_allclose(seen["teacher"], 2 * whole - 1, atol=1e-6)
    np.testing.assert_allclose(seen["student"], tf.image.resize(whole, (4, 4), antialias=True), atol=1e-6)
    teacher = teachers.Preprocessed(network(), data.teacher_view, data.student_view)
    batch = {key: value[None] for key, value in seen.items()}
    np.testing.assert_array_equal(teacher.split(batch)[0], batch["student"])
    np.testing.assert_array_equal(teacher(batch), network()(batch["teacher"]))


def test_maps_of_labels_move_with_their_images():
    labels = np.random.default_rng(1).integers(0, 5, (4, SIZE, SIZE)).astype("int32")
    images = np.repeat(labels[..., None] / 5.0, 3, -1).astype("float32")
    layers = [keras.layers.RandomFlip(), keras.layers.RandomCrop(8, 8)]
    dataset = tf.data.Dataset.from_tensor_slices((images, labels))
    for x, y in data.augment(layers).live(dataset, masks=True):
        np.testing.assert_array_equal(np.round(x[..., 0] * 5), y)


def test_mixed_images_agree_with_their_mixed_labels():
    """Each image is constant, so that its mean shows the share of each class."""
    x = np.repeat(np.arange(4.0, dtype="float32"), 8 * 8).reshape(4, 8, 8, 1)
    dataset = tf.data.Dataset.from_tensor_slices((x, np.arange(4))).batch(4)
    for options in ({"mixup": 0.8}, {"mixup": 0.0, "cutmix": 1.0}, {"mixup": 0.5, "cutmix": 1.0}):
        mixed = data.mix(dataset, num_classes=4, **options)
        shares = []
        for _ in range(6):
            for images, labels in mixed:
                np.testing.assert_allclose(images.numpy().mean((1, 2, 3)), labels.numpy() @ np.arange(4.0), atol=1e-5)
                np.testing.assert_allclose(labels.numpy().sum(1), 1.0, atol=1e-6)
                shares.append(labels.numpy().max(1))
                if options["mixup"] == 0.0:
                    assert set(np.unique(images)) <= set(np.arange(4.0))
        assert np.std(shares) > 0.01


BAD = [
    (lambda ds: data.augment(["flip"]), "data.augment: expected Keras' preprocessing layers, got 'flip'|got flip"),
    (
        lambda ds: data.augment([keras.layers.RandomColorJitter(value_range=(0, 1), brightness_factor=0.5)]),
        "layers whose views are repeatable by a seed, got RandomColorJitter",
    ),
    (lambda ds: data.augment([], student_size=(0, 4)), "student_size to be an integer >= 1"),
    (lambda ds: data.augment([], teacher_preprocess=3), "teacher_preprocess to be a function or None"),
    (lambda ds: views().live(ds.batch(2)), r"images \(height, width, channels\), one by one.*before .batch"),
    (lambda ds: data.mix(ds), "batches of images .* Call it after .batch"),
    (lambda ds: data.mix(ds.batch(2)), "data.mix: expected num_classes for the labels, got None"),
    (lambda ds: data.mix(ds.batch(2), num_classes=4, mixup=0.0), "mixup or cutmix above 0, got both 0"),
    (lambda ds: data.mix(ds.batch(2), num_classes=4, mixup=-1.0), "mixup >= 0, got -1.0"),
    (
        lambda ds: data.mix(ds.batch(2).map(lambda x, y: {"inputs": x, "stored_teacher": x})),
        "expected images, got the answers of a stored teacher beside them",
    ),
]


@pytest.mark.parametrize(("make", "text"), BAD, ids=[str(i) for i in range(len(BAD))])
def test_bad_input_raises_a_clear_error(make, text):
    dataset = tf.data.Dataset.from_tensor_slices((pictures(4), np.arange(4)))
    with pytest.raises(ValueError, match=text):
        make(dataset)
