"""More named image sets: USPS digits, chest X-rays, street scenes, cells with boxes, nuclei."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

import numpy as np
import tensorflow as tf

from keras_distill._checks import error
from keras_distill.data import _named
from keras_distill.data._images import checked_boxes

_CAMVID = ("sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist")
VOID = 11  # in the maps of "camvid"


def _load_usps(name: str, download: bool) -> _named.Data:
    """USPS digits, 16 x 16: a target domain for MNIST."""
    with np.load(_named._file(name, "usps.npz")) as stored:
        arrays = {key: stored[key] for key in stored.files}
    train, test = ((_pick(arrays, part, "x"), _pick(arrays, part, "y")) for part in ("train", "test"))
    labels = train[1].astype("int32")
    images = _named._images(train[0])
    splits = _named._cut(name, images, labels, {"train": len(labels) - 1000, "validation": 1000})
    splits["test"] = _named.Examples(_named._images(test[0]), test[1].astype("int32"))
    return _named.Data(name, splits, _named._DIGITS, str(_named._folder(name)))


def _pick(arrays: dict[str, np.ndarray], part: str, kind: str) -> np.ndarray:
    """Return the images ("x") or the labels ("y") of a part, under any of their names in the file."""
    for key, array in arrays.items():
        if part in key and (array.ndim > 1) == (kind == "x"):
            return array
    raise error("data.load", f"{part} images and labels", f"{list(arrays)}")


def _load_pneumoniamnist(name: str, download: bool) -> _named.Data:
    """Chest X-rays, 28 x 28: normal or pneumonia."""
    with np.load(_named._file(name, "pneumoniamnist.npz")) as stored:
        splits = {
            split: _named.Examples(
                _named._images(stored[f"{key}_images"]), stored[f"{key}_labels"].reshape(-1).astype("int32")
            )
            for split, key in (("train", "train"), ("validation", "val"), ("test", "test"))
        }
    return _named.Data(name, splits, ("normal", "pneumonia"), str(_named._folder(name)))


def _decoded(archive: zipfile.ZipFile, member: str, channels: int) -> np.ndarray:
    return tf.io.decode_image(archive.read(member), channels=channels, expand_animations=False).numpy()


def _load_camvid(name: str, download: bool) -> _named.Data:
    """Street scenes, 180 x 240, with a map of 11 classes each; 11 is void."""
    splits = {}
    with zipfile.ZipFile(_named._file("camvid_240", "camvid_240x180.zip")) as archive:
        members = archive.namelist()
        for split, folder in (("train", "train"), ("validation", "val"), ("test", "test")):
            stems = sorted(m.split("/")[1].rsplit(".", 1)[0] for m in members if m.startswith(f"{folder}/"))
            images = np.stack([_decoded(archive, f"{folder}/{stem}.jpg", 3) for stem in stems])
            maps = np.stack([_decoded(archive, f"{folder}annot/{stem}.png", 1)[..., 0] for stem in stems])
            splits[split] = _named.Examples(_named._images(images), maps.astype("int32"))
    return _named.Data(name, splits, _CAMVID, str(_named._folder("camvid_240")))


def _load_nuclei(name: str, download: bool) -> _named.Data:
    """Microscope images, the central 256 x 256 pixels, with a map: 0 background, 1 nucleus."""
    with zipfile.ZipFile(_named._file("nuclei_dsb2018_256", "nuclei_256.zip")) as archive:
        stems = sorted(m[len("images/") : -4] for m in archive.namelist() if m.startswith("images/") and m[-1] != "/")
        images = np.stack([_centre(_decoded(archive, f"images/{stem}.jpg", 3)) for stem in stems])
        maps = []
        for stem in stems:
            pixels = tf.io.decode_png(archive.read(f"labels/{stem}.png"), channels=1, dtype=tf.uint16).numpy()
            maps.append(_centre(pixels)[..., 0] > 0)
    sizes = {"train": len(stems) - 200, "validation": 64, "test": 136}
    splits = _named._cut(name, _named._images(images), np.stack(maps).astype("int32"), sizes)
    return _named.Data(name, splits, ("background", "nucleus"), str(_named._folder("nuclei_dsb2018_256")))


def _centre(image: np.ndarray, size: int = 256) -> np.ndarray:
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


def _load_bccd(name: str, download: bool) -> _named.Data:
    """Blood cells, 240 x 320; labels are boxes (boxes, 5): corners in 0..1 and class, padded with -1."""
    classes = ("RBC", "WBC", "Platelets")
    with zipfile.ZipFile(_named._file("bccd_320", "bccd_320x240.zip")) as archive:
        table = json.loads(io.BytesIO(archive.read("annotations.json")).read())
        most = max(len(each["boxes"]) for each in table.values())
        splits: dict[str, Any] = {}
        for split, key in (("train", "train"), ("validation", "val"), ("test", "test")):
            stems = sorted(stem for stem, each in table.items() if each["split"] == key)
            images = np.stack([_decoded(archive, f"images/{stem}.jpg", 3) for stem in stems])
            boxes = np.full((len(stems), most, 5), -1.0, "float32")
            for index, stem in enumerate(stems):
                # A few of the publisher's boxes have no area.
                rows = [[*box[1:], classes.index(box[0])] for box in table[stem]["boxes"] if box[3] > box[1]]
                rows = [row for row in rows if row[3] > row[1]]
                boxes[index, : len(rows)] = checked_boxes(f"data.load({name!r})", stem, rows, 240, 320)
            splits[split] = _named.Examples(_named._images(images), boxes)
    return _named.Data(name, splits, classes, str(_named._folder("bccd_320")))


_named._LOADERS.update(
    usps=_load_usps, pneumoniamnist=_load_pneumoniamnist, camvid=_load_camvid, nuclei=_load_nuclei, bccd=_load_bccd
)
