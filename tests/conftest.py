"""Set up TensorFlow once, before any test uses it."""

import contextlib
import ctypes
import gc
import os
import signal

# Started in the background, pytest would pass "ignore Ctrl-C" on to the processes that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Read by TensorFlow, OpenMP and Keras when they are first imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
if "PYTEST_XDIST_WORKER" in os.environ:  # several workers share the cores: one thread each
    for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"):
        os.environ.setdefault(_name, "1")

import pytest


def pytest_configure(config):
    """Set TensorFlow up, except in the process that only distributes tests: the workers would wait for its import."""
    if "PYTEST_XDIST_WORKER" in os.environ or not config.getoption("numprocesses", None):
        set_up_tensorflow()


def set_up_tensorflow():
    """Import it, and configure threads and devices before anything uses it."""
    import keras
    import tensorflow as tf

    if "PYTEST_XDIST_WORKER" in os.environ:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(2)
    # Two logical CPUs, so that the distribution tests can compare 1 replica with 2.
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
    )
    keras_fit = keras.Model.fit

    def fit(self, *args, **kwargs):
        """``fit`` of Keras' own models, whose optimizer is built before: else TensorFlow traces the first step twice.

        What is tested is not touched: ``Distiller`` and the regimes build their optimizers by themselves.
        """
        plain = type(self) in (keras.Model, keras.Sequential) or type(self).__name__ == "Functional"
        if plain and self.built and not tf.distribute.has_strategy() and self._distribute_strategy is None:
            optimizer = getattr(self, "optimizer", None)
            if optimizer is not None and not optimizer.built and self.trainable_variables:
                optimizer.build(self.trainable_variables)
        return keras_fit(self, *args, **kwargs)

    keras.Model.fit = fit


_trim = None
with contextlib.suppress(OSError, AttributeError):  # another C library
    _trim = ctypes.CDLL("libc.so.6").malloc_trim


@pytest.fixture
def faults(monkeypatch, tmp_path_factory):
    """Interrupt operations on files; see ``tests/faults.py``."""
    from tests.faults import Faults

    return Faults(monkeypatch, tmp_path_factory.mktemp("crash_points"))


@pytest.fixture(autouse=True)
def seed():
    """Every test starts from the same random state and precision, whatever ran before it."""
    import keras

    keras.config.set_dtype_policy("float32")
    keras.utils.set_random_seed(1234)
    return 1234


@pytest.fixture(autouse=True, scope="module")
def fresh_names():
    """Free the graphs of the previous file; layer names count from zero again."""
    import keras

    yield
    keras.backend.clear_session()
    gc.collect()  # graphs and models refer to themselves
    if _trim is not None:
        _trim(0)  # return freed memory to the system


# With tests of half a minute and more. They go first, so that no worker waits for one of them at the end.
LONG = ("tests/batteries/test_faults.py", "tests/batteries/test_keras_suite.py", "tests/teachers/store/", "tests/cli/")


def pytest_collection_modifyitems(items):
    """Put the files with long tests first, and leave out the doctests of formats that this Keras cannot write."""
    items.sort(key=lambda item: not item.nodeid.startswith(LONG))
    from tests.formats import LEAST_KERAS, too_old_for  # not before the devices are set

    for item in items:
        kind = item.name.removeprefix("keras_distill.export._edge.")
        reason = too_old_for(kind) if kind in LEAST_KERAS else None
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))
