"""``keras-distill env`` and ``--version``: the output for a bug report."""

import importlib.metadata

import keras
import numpy as np
import pytest

import keras_distill
from keras_distill.cli import _env, main


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"keras-distill {keras_distill.__version__}\n"


def test_it_names_the_versions_in_use_and_the_devices(capsys):
    assert main(["env"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["keras_distill"] == keras_distill.__version__
    assert (shown["keras"], shown["numpy"]) == (keras.__version__, np.__version__)
    assert shown["tensorflow"] == importlib.metadata.version("tensorflow")
    assert "cpu" in shown["devices"].lower()


def test_an_extra_is_installed_only_if_everything_it_includes_is():
    lines = [
        "keras>=3.12",
        "numpy>=1; extra == 'small'",
        'no-such-library[x]>=2 ; extra == "big"',
        'keras-distill[small,big]; extra == "both"',
        'keras-distill[both]; extra == "all"',
    ]
    assert dict(_env._extras(lambda name: lines)) == {
        "[all]": "missing no-such-library",
        "[big]": "missing no-such-library",
        "[both]": "missing no-such-library",
        "[small]": "installed",
    }


def test_a_checkout_that_is_not_installed_says_so():
    def requires(name):
        raise importlib.metadata.PackageNotFoundError(name)

    assert _env._extras(requires) == [("extras", "unknown: keras-distill is not installed, only found on the path")]
