"""Images on disk: order, labels, masks and boxes as written; every bad file is named."""

import json

import numpy as np
import pytest
import tensorflow as tf

from keras_distill import data


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tf.io.encode_png(np.asarray(array, "uint8")).numpy())


def picture(value, size=(4, 6), channels=3):
    return np.full((*size, channels), value)


@pytest.fixture
def folder(tmp_path):
    """Two classes with two images each, masks and boxes."""
    for index, name in enumerate(("cat/b", "cat/a", "dog/d", "dog/c")):
        write(tmp_path / "images" / f"{name}.png", picture(index + 1))
        write(tmp_path / "masks" / f"{name.split('/')[1]}.png", picture(index, channels=1))
    boxes = {"a": [[0, 0, 3, 4, 1]], "b": [], "c": [[1, 1, 2, 2, 0], [0, 0, 6, 4, 2]], "d": [[5, 3, 6, 4, 0]]}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    return tmp_path


def test_classes_are_folders_in_alphabetical_order(folder):
    dataset = data.images(folder / "images", batch_size=3)
    x, y = (np.concatenate(each) for each in zip(*dataset.as_numpy_iterator(), strict=True))
    assert dataset.class_names == ["cat", "dog"] and y.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(x[:, 0, 0, 0] * 255, [2, 1, 4, 3], atol=1e-5)
    again = data.images(folder / "images", batch_size=None, shuffle_seed=3)
    orders = [[round(float(x[0, 0, 0]) * 255) for x, _ in again] for _ in range(4)]
    assert len({tuple(order) for order in orders}) > 1 and all(sorted(order) == [1, 2, 3, 4] for order in orders)
    twin = data.images(folder / "images", batch_size=None, shuffle_seed=3)
    assert [[round(float(x[0, 0, 0]) * 255) for x, _ in twin] for _ in range(4)] == orders


def test_masks_and_boxes_belong_to_their_images(folder):
    x, masks = next(iter(data.images(folder / "images", masks=folder / "masks", image_size=(8, 12))))
    np.testing.assert_array_equal(masks[:, 0, 0], np.round(x[:, 0, 0, 0] * 255) - 1)
    assert masks.shape == (4, 8, 12) and masks.dtype == tf.int32
    _, boxes = next(iter(data.images(folder / "images", boxes=folder / "boxes.json")))
    np.testing.assert_allclose(boxes[0], [[0, 0, 0.5, 1, 1], [-1] * 5])
    np.testing.assert_allclose(boxes[2], [[1 / 6, 0.25, 1 / 3, 0.5, 0], [0, 0, 1, 1, 2]], rtol=1e-6)
    assert (boxes[1].numpy() == -1).all()


def damage(name):
    """Return a function that breaks one thing in the folder and then reads it."""

    def make(folder):
        images, target = folder / "images", folder / "images/dog/c.png"
        options = {}
        if name == "empty":
            target.write_bytes(b"")
        elif name == "truncated":
            target.write_bytes(target.read_bytes()[:40])
        elif name == "sizes":
            write(target, picture(0, (4, 7)))
        elif name == "channels":
            write(target, picture(0, channels=1))
        elif name == "stray":
            write(images / "stray.png", picture(0))
        elif name == "mask size":
            write(folder / "masks/c.png", picture(0, (4, 7), 1))
            options["masks"] = folder / "masks"
        elif name == "void":
            write(folder / "masks/c.png", picture(9, channels=1))
            options |= {"masks": folder / "masks", "ignore_label": 9}
        elif name == "no mask":
            (folder / "masks/c.png").unlink()
            options["masks"] = folder / "masks"
        else:
            boxes = json.loads((folder / "boxes.json").read_text())
            boxes["c"] = {"outside": [[0, 0, 7, 4, 0]], "no area": [[2, 1, 2, 3, 0]]}.get(name)
            if name == "no boxes":
                del boxes["c"]
            options["boxes"] = boxes
        data.images(images, **options)

    return make


BAD = {
    "empty": "an image, got the empty file .*c.png",
    "truncated": "an image, got the damaged file .*c.png",
    "sizes": r"images of one size, got .* and \(4, 7\) in .*c.png. Give image_size",
    "channels": "images with one number of channels, got 3 in .*a.png and 1 in .*c.png. Give num_channels=3",
    "stray": "each image in the folder of its class, got .*stray.png",
    "mask size": r"a mask of its image's size, got \(4, 7\) in .*masks/c.png",
    "void": "a mask with a pixel that is not void, got only 9 in .*masks/c.png",
    "no mask": "a mask of .*c.png, got none named c",
    "outside": r"boxes inside of 6 x 4 pixels, got \[0.0, 0.0, 7.0, 4.0\] of .*c.png",
    "no area": r"boxes with an area, got \[2.0, 1.0, 2.0, 3.0\] of .*c.png",
    "no boxes": r"the boxes of .*c.png, got none in boxes. An image without objects has \[\]",
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_and_nothing_is_lost(folder, name):
    before = sorted(folder.rglob("*"))
    with pytest.raises(ValueError, match=f"data.images: expected {BAD[name]}"):
        damage(name)(folder)
    assert set(before) - {folder / "masks/c.png"} <= set(folder.rglob("*"))


def test_a_missing_folder_or_invalid_image_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"expected a folder of images or one of .*digits.* got nothing at .*nowhere"):
        data.images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"expected images .*, got none in"):
        data.images(tmp_path)
    with pytest.raises(ValueError, match="num_channels to be one of None, 1, 3, 4"):
        data.images("digits", num_channels=2)


def test_domains_take_turns_and_the_target_has_no_label():
    source = tf.data.Dataset.from_tensor_slices((np.zeros((2, 1, 1, 1), "float32"), [3, 4]))
    target = tf.data.Dataset.from_tensor_slices(np.ones((3, 1, 1, 1), "float32"))
    joined = data.domains(mnist=source, usps=target)
    rows = [(int(x["image"][0, 0, 0]), int(x["domain"]), int(y)) for x, y in joined]
    assert rows == [(0, 0, 3), (1, 1, -1), (0, 0, 4), (1, 1, -1), (0, 0, 3), (1, 1, -1)]
    assert joined.domain_names == ("mnist", "usps") and int(joined.cardinality()) == 6
    with pytest.raises(ValueError, match=r"at least two domains, by name, got \['mnist'\]"):
        data.domains(mnist=source)
    with pytest.raises(ValueError, match="images of one shape in all domains"):
        data.domains(a=source, b=tf.data.Dataset.from_tensor_slices(np.ones((3, 2, 1, 1), "float32")))
