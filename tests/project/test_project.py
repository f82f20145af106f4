"""The project around the package: its metadata, its two commands, and their isolation from active environments."""

import configparser
import importlib.metadata
import importlib.util
import os
import pathlib
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import time
import tomllib
import zipfile

import pytest
import yaml

import keras_distill

ROOT = pathlib.Path(__file__).parents[2]
needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture(scope="module")
def facts():
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def make(folder, *arguments, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(
        ["make", *arguments], cwd=folder, env=clean | environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def project(tmp_path):
    """The files that make reads, without the package."""
    for name in ("Makefile", "setup.cfg", "pyproject.toml", ".ci/make_venv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def pretend_installed(project, extra):
    (project / ".venv").mkdir()
    for stamp in (".made", f".installed-{extra}"):
        (project / ".venv" / stamp).touch()
        future = time.time() + 10
        os.utime(project / ".venv" / stamp, (future, future))


def test_the_package_metadata_are_as_promised(facts):
    assert facts["metadata"]["name"] == "keras-distill" and facts["metadata"]["license"] == "Apache-2.0"
    assert facts["options"]["python_requires"] == ">=3.11"
    required = facts["options"]["install_requires"].split()
    assert "keras>=3.12" in required and "tensorflow>=2.18" in required
    assert "keras-distill = keras_distill.cli:main" in facts["options.entry_points"]["console_scripts"]
    extras = facts["options.extras_require"]
    for library in ("scikit-learn", "tensorflow-datasets", "matplotlib", "rich"):
        assert library in extras["demo"] and library not in facts["options"]["install_requires"]
    assert {"demo", "serving", "test", "calibration"} <= set(extras)


def test_the_licence_is_apache_2():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0, January 2004" in text
    assert re.search(r"9\. Accepting Warranty or Additional Liability", text) and "END OF TERMS" in text


def test_typed_and_versioned(facts):
    assert (ROOT / "keras_distill" / "py.typed").is_file()
    assert facts["options.package_data"]["keras_distill"] == "py.typed"
    assert facts["metadata"]["version"] == "attr: keras_distill.__version__"
    try:
        assert importlib.metadata.version("keras-distill") == keras_distill.__version__
    except importlib.metadata.PackageNotFoundError:
        assert str(ROOT) in sys.path or os.environ.get("PYTHONPATH")  # used from the checkout, not installed


def test_the_linters_run_the_documented_rules():
    tools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert {"E", "F", "W", "I", "N", "D", "UP", "B", "S101", "T20", "RUF"} <= set(tools["ruff"]["lint"]["select"])
    assert "--doctest-modules" in tools["pytest"]["ini_options"]["addopts"]
    assert "keras_distill" in tools["pytest"]["ini_options"]["testpaths"]


@needs_make
@pytest.mark.parametrize(
    ("target", "extra"), [("demo", "demo"), ("test", "test"), ("lint", "lint"), ("docs", "docs"), ("bench", "test")]
)
def test_without_an_environment_one_is_created_before_the_command(target, extra, project):
    steps = make(project, "-n", target)
    made, filled = steps.index("bash .ci/make_venv .venv"), steps.index(f"--editable '.[{extra}]'")
    ran = steps.rindex(".venv/bin/python -m ")
    assert made < filled < ran


@needs_make
@pytest.mark.parametrize(("target", "extra"), [("demo", "demo"), ("test", "test"), ("lint", "lint")])
def test_the_second_run_creates_and_installs_nothing(target, extra, project):
    pretend_installed(project, extra)
    steps = make(project, "-n", target)
    assert "make_venv" not in steps and "install" not in steps.replace(f".installed-{extra}", "")
    assert ".venv/bin/python -m " in steps


@needs_make
def test_new_facts_are_installed_again(project):
    pretend_installed(project, "test")
    future = time.time() + 100
    os.utime(project / "setup.cfg", (future, future))
    steps = make(project, "-n", "test")
    assert "--editable '.[test]'" in steps and "make_venv" not in steps


@needs_make
def test_an_interrupted_installation_is_repeated(project):
    pretend_installed(project, "demo")
    assert "--editable '.[test]'" in make(project, "-n", "test")


@needs_make
def test_the_active_environment_is_ignored_and_the_package_index_is_kept(project):
    active = {
        "PYTHONPATH": "/elsewhere",
        "PYTHONHOME": "/elsewhere",
        "VIRTUAL_ENV": "/elsewhere",
        "CONDA_PREFIX": "/elsewhere",
        "PIP_TARGET": "/elsewhere",
        "PIP_PREFIX": "/elsewhere",
        "PIP_REQUIRE_VIRTUALENV": "1",
        "PYTEST_ADDOPTS": "--elsewhere",
    }
    kept = {"PIP_INDEX_URL": "https://index.example/simple", "PIP_FIND_LINKS": "/wheels"}
    other = {"KERAS_BACKEND": "jax", "PIP_USER": "1"}
    shown = make(project, "--eval=show: ; @env", "show", **active, **kept, **other).splitlines()
    seen = dict(line.split("=", 1) for line in shown if "=" in line)
    assert not set(active) & set(seen)
    assert kept.items() <= seen.items()
    assert seen["KERAS_BACKEND"] == "tensorflow" and seen["PIP_USER"] == "0"


@pytest.mark.slow
def test_the_environment_is_created_whatever_is_active_and_a_working_one_is_kept(project):
    broken = project / "broken"
    broken.mkdir()
    for name in ("python3.11", "python3"):  # an active environment whose Python does not run
        (broken / name).write_text("#!/bin/sh\nexit 1\n")
        (broken / name).chmod(0o755)
    base = str(pathlib.Path(os.path.realpath(sys.executable)).parent)
    environment = os.environ | {"PATH": f"{broken}:{base}:{os.environ['PATH']}", "VIRTUAL_ENV": str(broken)}
    run = ["bash", ".ci/make_venv", "env"]
    subprocess.run(run, cwd=project, env=environment, check=True, timeout=120)
    python = project / "env" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "--version"], check=True, capture_output=True)
    (project / "env" / "mine").touch()
    subprocess.run(run, cwd=project, env=environment, check=True, timeout=120)
    assert (project / "env" / "mine").exists()
    python.unlink()  # as after an interrupted run
    subprocess.run(run, cwd=project, env=environment, check=True, timeout=120)
    subprocess.run([python, "-c", "import sys; sys.exit(sys.prefix == sys.base_prefix)"], check=True)


@pytest.mark.slow
def test_without_a_suitable_python_the_reason_is_printed(project):
    empty = project / "empty"
    empty.mkdir()
    for tool in ("bash", "rm", "dirname"):
        (empty / tool).symlink_to(shutil.which(tool))
    script = (project / ".ci" / "make_venv").read_text().replace("/usr/local/bin /usr/bin", "")
    (project / ".ci" / "make_venv").write_text(script)
    done = subprocess.run(
        ["bash", ".ci/make_venv", "env"], cwd=project, env={"PATH": str(empty)}, capture_output=True, text=True
    )
    assert done.returncode == 1 and "install python3.11 and python3.11-venv" in done.stderr
    assert not (project / "env").exists()


def test_ci_runs_lint_tests_site_and_package_and_fails_if_one_fails(tmp_path):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "make").write_text('#!/bin/sh\necho "$1" >> made\ntest "$1" != "$FAILING"\n')
    for name in ("python3.11", "chromium", "apt-get"):
        (tools / name).write_text("#!/bin/sh\nexit 0\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    for failing, code in (("lint", 1), ("test", 1), ("docs", 1), ("package", 1), ("nothing", 0)):
        (tmp_path / "made").unlink(missing_ok=True)
        environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "FAILING": failing}
        done = subprocess.run(["bash", ".ci/run"], cwd=tmp_path, env=environment)
        assert done.returncode == code, failing
        assert (tmp_path / "made").read_text().split() == ["lint", "test", "docs", "package"]


def test_unwanted_and_missing_files_of_a_package_are_named(tmp_path):
    check = importlib.util.spec_from_file_location("check_package", ROOT / ".ci" / "check_package.py")
    module = importlib.util.module_from_spec(check)
    check.loader.exec_module(module)
    (tmp_path / "keras_distill").mkdir()
    for name in ("a.py", "b.py"):
        (tmp_path / "keras_distill" / name).touch()
    with zipfile.ZipFile(tmp_path / "k-1-py3-none-any.whl", "w") as wheel:
        for name in ("keras_distill/a.py", "tests/t.py", "k-1.dist-info/licenses/LICENSE", "keras_distill/py.typed"):
            wheel.writestr(name, "")
    with tarfile.open(tmp_path / "k-1.tar.gz", "w:gz") as source:
        for name in ("a.py", "b.py"):
            source.add(tmp_path / "keras_distill" / name, f"k-1/keras_distill/{name}")
        source.add(tmp_path / "keras_distill" / "a.py", "k-1/tests/t.py")
    assert module.faults(tmp_path, tmp_path / "keras_distill") == [
        "wheel: keras_distill/b.py is missing.",
        "wheel: entry_points.txt is missing.",
        "wheel: tests/t.py should not be there.",
        "source: LICENSE is missing.",
        "source: README.md is missing.",
        "source: tests/t.py should not be there.",
    ]


def test_the_workflow_and_the_issue_forms_fit_their_schemas():
    pytest.importorskip("check_jsonschema", reason="needs the extra test")
    for schema, files in (
        ("vendor.github-workflows", (ROOT / ".github" / "workflows").glob("*.yml")),
        ("vendor.github-issue-forms", (ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml")),
    ):
        command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema, *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflow_runs_what_ci_runs_on_every_python_that_is_promised(facts):
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    promised = re.findall(r"Python :: (3\.\d+)", facts["metadata"]["classifiers"])
    newest = workflow["jobs"]["newest"]
    assert newest["strategy"]["matrix"]["python"] == promised
    assert {"run": "bash .ci/run"} in newest["steps"]
    oldest = dict(re.findall(r"^(\w+)==([\d.]+)$", (ROOT / ".ci" / "oldest.txt").read_text(), re.MULTILINE))
    for library, bound in re.findall(r"^(\w+)>=([\d.]+)", facts["options"]["install_requires"].strip(), re.MULTILINE):
        assert oldest[library].startswith(f"{bound}."), library


def test_every_extra_that_users_install_has_a_use_that_is_checked_before_a_release(facts):
    check = runpy.run_path(str(ROOT / ".ci" / "check_extras.py"))
    assert set(check["USES"]) == set(check["extras"]())
    assert check["TOOLS"] <= set(facts["options.extras_require"])
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert "python .ci/check_extras.py dist" in workflow["jobs"]["extras"]["steps"][-1]["run"]


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == keras_distill.__version__ and citation["license"] == "Apache-2.0"
    released = re.findall(r"^## (\d\S*) - (\S+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert released[0] == (citation["version"], str(citation["date-released"])), "the newest entry of CHANGELOG.md"
    assert {"cff-version", "title", "authors", "message", "date-released"} <= set(citation)
