"""Which formats can be written here: the tests of exports share it."""

import keras
import pytest

from keras_distill.export._edge import LEAST_KERAS, keras_writes
from keras_distill.export._runtimes import runtime_package


def too_old_for(kind):
    """Return why this Keras cannot write a format; None where it can."""
    if keras_writes(kind):
        return None
    least = ".".join(map(str, LEAST_KERAS[kind]))
    return f"keras-distill[{kind}] asks for Keras {least} or newer; this is {keras.__version__}"


def needs_to_write(kind):
    """Skip where the extra of a format is not installed, or Keras is older than that extra asks for."""
    try:
        runtime_package("tests", kind)
    except ImportError as problem:
        pytest.skip(str(problem))
    reason = too_old_for(kind)
    if reason:
        pytest.skip(reason)
