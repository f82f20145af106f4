"""If an optional package is missing, a clear error names the extra that installs it, before any work."""

import ast
import configparser
import pathlib
import re
import sys

import keras
import numpy as np
import pytest

from keras_distill import calibration, cli, data, explain, export, metrics, regimes, report, students, teachers

ROOT = pathlib.Path(__file__).parents[2]
#: A package's first module, where it is not the package's name.
MODULES = {
    "adversarial-robustness-toolbox": "art",
    "ai-edge-litert": "ai_edge_litert",
    "ai-edge-quantizer": "ai_edge_quantizer",
    "dp-accounting": "dp_accounting",
    "interpret-core": "interpret",
    "scikit-learn": "sklearn",
    "tensorflow-datasets": "tensorflow_datasets",
    "tensorflow-serving-api": "tensorflow_serving",
}
X = np.random.default_rng(0).normal(size=(40, 3)).astype("float32")


def model(**options):
    return keras.Sequential([keras.Input((3,)), keras.layers.Dense(2, name="only", **options)])


def boxes(found):
    return report.detection({"a": [found]}, np.array([[[0.0, 0.0, 0.5, 0.5, 0]]]), ["cell"])


def an_onnx_file(path):
    (path / "m.onnx").write_bytes(b"a model")
    return path / "m.onnx"


def a_litert_file(path):
    (path / "m.tflite").write_bytes(b"a model")
    return path / "m.tflite"


def surrogate(kind, **options):
    return lambda path: explain.surrogate(model(), X, kind, **options)


def votes(path):
    two = [lambda x: np.eye(2)[np.zeros(len(x), int)]] * 20
    return regimes.PrivateVotes(two, answer_noise=2.0).label(X, max_epsilon=8.0, delta=1e-5)


def demo(path):
    """The command prints its message without the owner, which its name already states."""
    assert cli.main(["demo", "--out", str(path / "demo")]) == 2


def a_tree():
    tree = students.SoftDecisionTree(1, 2)
    tree.build((None, 3))
    return tree


def few_bits(path):
    return export.litert(students.quantization_aware(model(), 4, None), path / "m.tflite")


#: (package, its extra, calls that end at the import)
WAYS = [
    ("adversarial-robustness-toolbox", "robust", [lambda path: report.AutoAttack(0.1)(model(), X, X[:, 0] > 0)]),
    ("ai-edge-litert", "litert", [
        lambda path: export.litert(model(), path / "m.tflite"),
        lambda path: teachers.from_litert(a_litert_file(path)),
        lambda path: students.sparsity(model()),
    ]),
    ("ai-edge-quantizer", "quantization", [few_bits]),
    ("dp-accounting", "privacy", [votes]),
    ("gymnasium", "policies", [lambda path: regimes.policy_return(model(), "CartPole-v1", episodes=2)]),
    ("interpret-core", "explain", [surrogate("additive")]),
    ("jiwer", "sequences", [lambda path: metrics.word_error_rate(["a"], ["b"])]),
    ("matplotlib", "demo", [lambda path: report.confusion_matrices({"m": [[9, 1], [2, 8]]}, ["cat", "dog"])]),
    ("matplotlib", "explain", [lambda path: a_tree().draw(path / "tree.svg")]),
    ("onnx", "onnx", [lambda path: teachers.from_onnx(an_onnx_file(path))]),
    ("onnxruntime", "onnx", [
        lambda path: export.onnx(model(), path / "m.onnx"),
        lambda path: teachers.from_onnx(an_onnx_file(path)),
    ]),
    ("openvino", "openvino", [lambda path: export.openvino(model(), path / "m.xml")]),
    ("pycocotools", "detection", [lambda path: boxes([[0.0, 0.0, 0.5, 0.5, 0, 0.9]])]),
    ("ray", "ray", [lambda path: teachers.label_with_ray(model, lambda: None, path / "store")]),
    ("rich", "demo", [demo]),
    ("scikit-learn", "explain", [
        surrogate("tree"), surrogate("rules"), surrogate("linear"), surrogate("additive", engine="splines"),
        lambda path: explain.concept_direction(model(), "only", X + 3, X, X, 1),
    ]),
    ("scikit-learn", "calibration", [lambda path: calibration.IsotonicCalibrator().fit([[1.0, 2.0]], [0])]),
    ("scikit-learn", "demo", [lambda path: data.load("digits")]),
    ("scipy", "calibration", [
        lambda path: calibration.TemperatureScaler().fit([[1.0, 2.0]], [0]),
        lambda path: calibration.VectorScaler().fit([[1.0, 2.0]], [0]),
    ]),
    ("scipy", "explain", [lambda path: explain.spearman(X, X)]),
    ("seqeval", "sequences", [lambda path: metrics.span_f1([["B-A"]], [["B-A"]])]),
    ("shap", "explain", [lambda path: explain.local_surrogate(model(), X[0], X, method="kernel_shap")]),
    ("tensorflow-datasets", "demo", [lambda path: data.load("mnist")]),
    ("tensorflow-serving-api", "serving", [
        lambda path: export.saved_model(model(), path / "m", warmup_batch_sizes=(1,)),
    ]),
    ("tf2onnx", "onnx", [lambda path: export.onnx(model(), path / "m.onnx")]),
]  # fmt: skip
CALLS = [(package, extra, call) for package, extra, calls in WAYS for call in calls]


@pytest.mark.parametrize(("package", "extra", "call"), CALLS, ids=[f"{name}-{extra}" for name, extra, _ in CALLS])
def test_a_missing_package_is_named_with_the_extra_that_installs_it(package, extra, call, tmp_path, monkeypatch, capfd):
    root = MODULES.get(package, package)
    for module in [each for each in sys.modules if each == root or each.startswith(f"{root}.")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, root, None)
    message = rf"expected {package} to be installed, got .*{root}.* Run: pip install 'keras-distill\[{extra}\]'"
    if call is demo:
        call(tmp_path)
        assert re.search(rf"^keras-distill demo: {message}\.$", capfd.readouterr().err, re.MULTILINE)
    else:
        with pytest.raises(ValueError, match=rf"^[\w. ()'/]+: {message}") as caught:
            call(tmp_path)
        assert isinstance(caught.value, ImportError)  # the exceptions that users could catch before
    assert {each.read_bytes() for each in tmp_path.iterdir()} <= {b"a model"}  # nothing was written


def late_imports(node, function=None, around=None):
    """Imports of other packages in functions: (statement, the call of ``optional`` around it or None, the function)."""
    if function is not None and isinstance(node, (ast.Import, ast.ImportFrom)):
        yield node, around, function
    if isinstance(node, ast.FunctionDef):
        function, around = node, None
    if isinstance(node, ast.With):
        calls = [item.context_expr for item in node.items if isinstance(item.context_expr, ast.Call)]
        around = next((call for call in calls if ast.unparse(call.func) == "optional"), around)
    for child in ast.iter_child_nodes(node):
        yield from late_imports(child, function, around)


def test_every_late_import_of_another_package_names_its_extra_and_is_tested():
    facts = configparser.ConfigParser()
    facts.read(ROOT / "setup.cfg")
    asked = {
        extra: {re.split(r"[\[><= ]", line.strip())[0] for line in text.splitlines()}
        for extra, text in facts["options.extras_require"].items()
    }
    for extra, packages in asked.items():  # an extra within an extra
        for inner in re.findall(r"keras-distill\[([\w,]+)\]", facts["options.extras_require"][extra]):
            packages.update(*(asked[each] for each in inner.split(",")))
    always = {*sys.stdlib_module_names, "google", "keras", "keras_distill", "numpy", "tensorflow"}
    tried = {(package, extra) for package, extra, _ in CALLS}
    found = set()
    for file in (ROOT / "keras_distill").rglob("*.py"):
        for node, call, function in late_imports(ast.parse(file.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
            roots = {name.split(".")[0] for name in names if not getattr(node, "level", 0)} - always
            if not roots:
                continue
            without = roots == {"rich"} and file.name == "_progress.py"  # no bar is shown
            drawn = roots == {"matplotlib"} and "_panels(" in ast.unparse(function)  # a figure exists already
            if call is None and (without or drawn):
                continue
            assert call is not None, f"{file}: import {names} in `with optional(...)`"
            package, extra = (each.value for each in call.args[1:3])
            assert roots == {MODULES.get(package, package)}, f"{file}: {names} is not {package}"
            assert package in asked[extra], f"{file}: the extra {extra} does not ask for {package}"
            found.add((package, extra))
    assert found == tried
