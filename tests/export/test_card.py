"""The model card of each export has everything that somebody else needs to rebuild the student."""

import hashlib
import json
import re

import keras
import numpy as np
import pytest

from keras_distill import Distiller, LogitsDistillation, data, export
from tests.formats import needs_to_write


def build(units=3, name="small"):
    return keras.Sequential([keras.Input((4,), name="x"), keras.layers.Dense(units)], name=name)


@pytest.fixture(scope="module")
def distiller():
    keras.utils.set_random_seed(0)
    x = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
    distiller = Distiller(build(name="big"), build(), LogitsDistillation(temperature=3.5), student_loss_weight=0.25)
    distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    distiller.fit(x, np.arange(32) % 3, verbose=0)
    return distiller


@pytest.fixture(scope="module")
def card(distiller):
    examples = data.Examples(np.zeros((5, 4), "float32"), np.zeros(5, "int64"))
    return export.ModelCard(
        distiller=distiller,
        data=data.Data("made-up", {"train": examples, "test": examples}, ("a", "b", "c"), "zeros"),
        metrics={"accuracy": [0.9, 0.92, 0.97], "size": np.float32(0.5)},
        training={"epochs": 3, "seeds": np.arange(3)},
        command="python train.py --seeds 3",
        notes="Not for medical use.",
    )


def fingerprint(model):
    digest = hashlib.sha256()
    for weight in model.get_weights():
        digest.update(f"{weight.shape} {weight.dtype} ".encode() + weight.tobytes())
    return digest.hexdigest()


@pytest.fixture(scope="module")
def written(distiller, card, tmp_path_factory):
    exported = export.saved_model(
        distiller.student, tmp_path_factory.mktemp("m"), card=card, labels=["a", "b", "c"], temperature=1.5
    )
    page = (exported.path / "MODEL_CARD.md").read_text(encoding="utf-8")
    return exported, json.loads((exported.path / "distillation.json").read_text(encoding="utf-8")), page


def test_facts_of_the_student(written, distiller):
    exported, content, _ = written
    student = content["student"]
    assert student["num_parameters"] == 15
    assert student["fingerprint"] == fingerprint(distiller.student)
    assert student["inputs"] == {"x": {"shape": [None, 4], "dtype": "float32"}}
    assert student["outputs"]["outputs"] == {
        "task": "classification",
        "from_logits": True,
        "temperature": 1.5,
        "labels": ["a", "b", "c"],
    }
    assert content["exports"]["1"]["max_difference"] == exported.max_difference
    assert content["libraries"]["keras"] == keras.__version__


def test_the_student_can_be_built_from_the_card(written, distiller):
    rebuilt = keras.saving.deserialize_keras_object(written[1]["student"]["config"])
    assert [w.shape for w in rebuilt.weights] == [w.shape for w in distiller.student.weights]


def test_the_card_states_how_the_student_was_distilled(written, distiller):
    content = written[1]
    assert content["teacher"] == {
        "name": "big",
        "class": "Sequential",
        "num_parameters": 15,
        "fingerprint": fingerprint(distiller.teacher),
    }
    part = content["distillation"]
    assert part["student_loss_weight"] == 0.25 and part["weights"] == [1.0]
    (term,) = [keras.saving.deserialize_keras_object(term) for term in part["terms"]]
    assert type(term) is LogitsDistillation and term.temperature == 3.5
    optimizer = keras.saving.deserialize_keras_object(part["optimizer"])
    assert type(optimizer) is keras.optimizers.Adam
    assert content["training"] == {"epochs": 3, "seeds": [0, 1, 2]}
    assert content["data"]["name"] == "made-up" and len(content["data"]["fingerprint"]) == 64
    assert content["data"]["num_examples"] == {"train": 5, "test": 5}


def test_spread_over_seeds(written):
    accuracy = written[1]["metrics"]["accuracy"]
    assert accuracy["mean"] == pytest.approx(0.93)
    assert accuracy["spread"] == pytest.approx(np.std([0.9, 0.92, 0.97], ddof=1))
    assert written[1]["metrics"]["size"] == 0.5


def test_the_page_agrees_with_the_card(written):
    _, content, page = written
    for part in (
        "# small",
        "Not for medical use.",
        "| accuracy | 0.93 ± 0.036 over 3 runs |",
        "python train.py --seeds 3",
        content["teacher"]["fingerprint"][:16],
        content["student"]["fingerprint"][:16],
        "LogitsDistillation, weight 1.0",
        "classes: a, b, c",
        f"keras {keras.__version__}",
    ):
        assert part in page


def test_a_card_without_metadata_says_so(tmp_path, distiller):
    exported = export.saved_model(distiller.student, tmp_path)
    content = json.loads((exported.path / "distillation.json").read_text())
    assert not {"teacher", "distillation", "data", "metrics", "command"} & set(content)
    assert "Not recorded: pass `card=export.ModelCard(...)`" in (exported.path / "MODEL_CARD.md").read_text()


def test_files_of_one_student_share_a_card(tmp_path, distiller):
    needs_to_write("litert")
    for name, quantize in (("a.tflite", None), ("b.tflite", "float16"), ("a.tflite", None)):
        export.litert(distiller.student, tmp_path / name, quantize, latency_batch_sizes=())
    content = json.loads((tmp_path / "distillation.json").read_text())
    assert sorted(content["exports"]) == ["a.tflite", "b.tflite"]
    assert content["libraries"]["ai-edge-litert"]
    page = (tmp_path / "MODEL_CARD.md").read_text()
    assert "| a.tflite | litert |" in page and "| b.tflite | litert |" in page
    with pytest.raises(ValueError, match=r"expected one student per directory, because its card describes one, got"):
        export.litert(build(), tmp_path / "c.tflite", latency_batch_sizes=())
    assert not (tmp_path / "c.tflite").exists()


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"schema": 1}', '{"schema": 2, "student": {}}', "\x00" * 9, "[" * 9999]
)
def test_a_corrupt_card_is_an_error(tmp_path, distiller, content):
    needs_to_write("litert")
    (tmp_path / "distillation.json").write_text(content)
    with pytest.raises(ValueError, match=r"expected a distillation\.json written by an export, got .*Move it away"):
        export.litert(distiller.student, tmp_path / "c.tflite", latency_batch_sizes=())
    assert [p.name for p in tmp_path.iterdir()] == ["distillation.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(distiller=3), "ModelCard: expected distiller to be a Distiller, got int"),
        (dict(data="digits"), "ModelCard: expected data to be a keras_distill.data.Data or a dictionary, got str"),
        (dict(metrics={"accuracy": "good"}), r"ModelCard: expected metrics\['accuracy'\] to be a number or one number"),
        (dict(metrics={"accuracy": []}), r"ModelCard: expected metrics\['accuracy'\] to be a number"),
        (dict(command=["python"]), "ModelCard: expected command to be text"),
        (dict(training={"x": object()}), "ModelCard: expected training of plain values"),
    ],
)
def test_bad_cards(change, message):
    with pytest.raises(ValueError, match=message):
        export.ModelCard(**change)


def test_a_dictionary_is_refused_as_a_card(tmp_path, distiller):
    with pytest.raises(ValueError, match=r"expected card to be an export.ModelCard, got dict"):
        export.saved_model(distiller.student, tmp_path / "m", card={})
    assert list(tmp_path.iterdir()) == []


def onnx(student, path):
    return export.onnx(student, path, latency_batch_sizes=())


def test_a_card_that_no_export_wrote_or_that_was_edited_is_not_overwritten(tmp_path):
    student = build()
    (tmp_path / "MODEL_CARD.md").write_text("mine")
    with pytest.raises(ValueError, match=r"onnx: expected to write MODEL_CARD\.md beside .*no export wrote"):
        onnx(student, tmp_path / "a.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["MODEL_CARD.md"]
    (tmp_path / "MODEL_CARD.md").unlink()
    onnx(student, tmp_path / "a.onnx")
    onnx(student, tmp_path / "a.onnx")
    page = tmp_path / "MODEL_CARD.md"
    page.write_text(page.read_text() + "Checked by me.")
    with pytest.raises(ValueError, match="which was edited since"):
        onnx(student, tmp_path / "a.onnx")
    assert page.read_text().endswith("Checked by me.")


def test_the_same_file_is_exported_again_after_the_student_was_trained_further(tmp_path):
    onnx(build(), tmp_path / "a.onnx")
    further = build()
    onnx(further, tmp_path / "a.onnx")
    content = json.loads((tmp_path / "distillation.json").read_text())
    assert list(content["exports"]) == ["a.onnx"]
    from keras_distill.export._card import fingerprint

    assert content["student"]["fingerprint"] == fingerprint(further)
    onnx(further, tmp_path / "b.onnx")
    with pytest.raises(ValueError, match=r"one student per directory.*or remove the old files: b\.onnx"):
        onnx(build(), tmp_path / "a.onnx")


def test_inputs_that_keras_numbered_are_served_under_the_name_of_the_first(tmp_path):
    keras.backend.clear_session()
    students = [keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]) for _ in range(3)]
    students[2].set_weights(students[0].get_weights())
    path = export.saved_model(students[0], tmp_path, check_inputs={students[0].inputs[0].name: np.ones((2, 4))}).path
    assert export.serve_check(path, student=students[2], repeats=1, batch_sizes=(1,)).num_examples > 0
    from keras_distill.export._inputs import describe_inputs

    first, _, last = (describe_inputs("test", each, None, None).names for each in students)
    assert first == last and not re.search(r"\d", last[0])
    three = [keras.Input((1,)) for _ in range(3)]
    joined = keras.Model(three, keras.layers.Dense(2)(keras.layers.concatenate(three)))
    names = describe_inputs("test", joined, None, None).names
    assert names == (names[0], f"{names[0]}_1", f"{names[0]}_2") and not re.search(r"\d", names[0])
