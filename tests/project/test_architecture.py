"""The architecture: imports go downwards, every public name is documented, importing the package is cheap."""

import ast
import contextlib
import dataclasses
import importlib
import inspect
import io
import pathlib
import pkgutil
import re
import subprocess
import sys

import keras
import pytest
from importlinter.cli import lint_imports

import keras_distill
from benchmarks import mutation
from keras_distill.losses._base import FeatureTwin, LogitsTwin

ROOT = pathlib.Path(__file__).parents[2]
PACKAGE = ROOT / "keras_distill"
FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted(
    f"keras_distill.{room.name}" for room in pkgutil.iter_modules([str(PACKAGE)]) if not room.name.startswith("_")
)


def public():
    """Every public name: (module, name, object)."""
    for room in ["keras_distill", *ROOMS]:
        module = importlib.import_module(room)
        for name in getattr(module, "__all__", []):
            yield room, name, getattr(module, name, None)


PUBLIC = list(public())


def test_imports_go_downwards_and_third_party_libraries_are_imported_by_one_module(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        code = lint_imports(no_cache=True, no_logo=True)
    assert code == 0, text.getvalue()


EXTRAS = {"matplotlib", "tensorflow_datasets", "sklearn", "scipy", "rich", "ray", "onnx", "onnxruntime", "tf2onnx"}
EXTRAS |= {"openvino", "keras_hub", "grpc"}


@pytest.fixture(scope="module")
def fresh():
    """In a separate process: the modules loaded by importing the package, then each submodule, then an error."""
    code = f"""
import sys, keras, tensorflow
before = set(sys.modules)
import keras_distill as kd
print("extras:", *({EXTRAS} & set(sys.modules)) - before)
print("rooms:", *[room for room in ("cli", "export", "report", "data") if f"keras_distill.{{room}}" in sys.modules])
rooms = sys.argv[1:]
print(all(getattr(kd, room) is sys.modules[f"keras_distill.{{room}}"] and room in dir(kd) for room in rooms))
kd.no_such_room
"""
    rooms = [room.removeprefix("keras_distill.") for room in ROOMS]
    assert {"callbacks", "export", "heads", "losses", "report", "taps", "teachers"} <= set(rooms)
    command = [sys.executable, "-c", code, *rooms]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


@pytest.mark.slow
def test_importing_the_package_loads_no_extra(fresh):
    assert fresh.stdout.splitlines()[0] == "extras:", fresh.stderr


def test_every_module_is_an_attribute_that_is_imported_on_first_access(fresh):
    assert fresh.stdout.splitlines()[1:] == ["rooms:", "True"], fresh.stderr
    assert "module 'keras_distill' has no attribute 'no_such_room'" in fresh.stderr


def test_every_module_states_its_public_names():
    for room in ["keras_distill", *ROOMS]:
        module = importlib.import_module(room)
        names = module.__all__
        assert len(set(names)) == len(names), room
        missing = [name for name in names if not hasattr(module, name)]
        assert not missing, room


def open_file(file):
    """Whether no part of its path is private: what a wing such as losses/_logits defines, its room lists."""
    return not any(part.startswith("_") for part in file.relative_to(PACKAGE).parts)


def test_every_public_definition_of_a_single_file_module_is_in_its_all():
    for file in filter(open_file, FILES):
        module = importlib.import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
        defined = {
            node.name
            for node in ast.parse(file.read_text(encoding="utf-8")).body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_")
        }
        assert defined <= set(module.__all__), file


def test_no_file_reaches_into_keras_or_outgrows_its_reader():
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith("keras.src")], file
        assert len(text.splitlines()) <= (250 if "regimes" in file.parts else 400), file


def importers():
    """For each module of the package: the modules that import it."""
    modules = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in FILES}
    users = {name: set() for name in modules}
    for user, file in modules.items():
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in modules:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    users[inner if inner in modules else node.module].add(user)
    return {modules[name]: {modules[user] for user in found} for name, found in users.items()}


def test_a_private_module_with_one_caller_states_why_it_is_separate():
    for file, users in importers().items():
        caller = next(iter(users)) if len(users) == 1 else None
        if caller is None or not file.name.startswith("_") or "__init__.py" in (file.name, caller.name):
            continue
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
        assert f"Kept apart from ``{caller.name}``" in text, f"{file}: merge it into {caller.name}, or say why not"


def test_every_module_that_is_mutated_has_its_tests():
    for module in mutation.modules():
        assert all((ROOT / each).exists() for each in mutation.tests_of(module).split()), module


def arguments(thing):
    """The names of the arguments a caller gives, None where Python cannot say."""
    try:
        parameters = inspect.signature(thing).parameters.values()
    except (TypeError, ValueError):
        return None
    return [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD) and p.name != "self"]


def documented():
    """The public names that have a docstring; constants have none."""
    return [entry for entry in PUBLIC if inspect.isclass(entry[2]) or inspect.isroutine(entry[2])]


def test_every_public_name_is_documented():
    for room, name, thing in documented():
        check_docstring(f"{room}.{name}", thing)


def check_docstring(path, thing):
    text = inspect.getdoc(thing)
    assert text and thing.__doc__, f"{path} has no docstring of its own"
    assert text.splitlines()[0].endswith("."), f"{path}: the first line is a sentence"
    ends = "Returns|Raises|Yields|Example|Reference" + ("" if dataclasses.is_dataclass(thing) else "|Attributes")
    described = re.split(rf"^(?:{ends}):", text, flags=re.MULTILINE)[0]
    own = "__init__" in vars(thing) if inspect.isclass(thing) else True
    for argument in (arguments(thing) or []) if own and "win of ``" not in text else []:
        found = re.search(rf"^ *\*{{0,2}}{argument}(, \w+)*:", described, re.MULTILINE)
        assert found or argument == "name", f"{path} does not describe {argument}"


def test_a_loss_function_has_every_section():
    for room, name, thing in PUBLIC:
        if room != "keras_distill.losses" or not inspect.isfunction(thing):
            continue
        if any(argument.startswith("student_") for argument in arguments(thing)):
            text = inspect.getdoc(thing)
            for section in ("Formula", "Args", "Returns", "Example", "Reference"):
                assert re.search(rf"^{section}:", text, re.MULTILINE), f"{name}: {section}"
            assert "Differs" in text.split("Reference:")[1], name
            kinds = {p.kind for p in inspect.signature(thing).parameters.values()}
            assert kinds == {inspect.Parameter.KEYWORD_ONLY}, name


def test_saved_objects_load_without_custom_objects():
    saved = (
        keras.losses.Loss,
        keras.metrics.Metric,
        keras.layers.Layer,
        keras.optimizers.schedules.LearningRateSchedule,
    )
    for _, name, thing in PUBLIC:
        if not inspect.isclass(thing) or not issubclass(thing, saved) or inspect.isabstract(thing):
            continue
        if "get_config" in vars(thing) or issubclass(thing, (LogitsTwin, FeatureTwin)):
            assert keras.saving.get_registered_name(thing).startswith("keras_distill>"), f"{name} is not registered"


def test_the_version_is_one_number():
    assert re.fullmatch(r"\d+\.\d+\.\d+", keras_distill.__version__)
