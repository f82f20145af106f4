"""Unusual arguments for every public loss and metric function: a value or one of our errors, never a traceback.

Every argument takes every unusual value once, and every temperature. Float64 definitions are compared in
``test_properties``.
"""

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_distill import losses, metrics


def normal(*shape, scale=1.0, dtype="float32"):
    return (scale * np.random.default_rng(len(shape)).normal(size=shape)).astype(dtype)


STRANGE = {
    "None": lambda: None,
    "text": lambda: "abc",
    "texts": lambda: np.array([["a", "b", "c"], ["a", "b", "c"]]),
    "no example": lambda: normal(0, 3),
    "one example": lambda: normal(1, 3),
    "one class": lambda: normal(2, 1),
    "a number": lambda: 1.0,
    "a row": lambda: normal(3),
    "NaN": lambda: np.full((2, 3), np.nan, "float32"),
    "infinities": lambda: np.array([[np.inf, 0, 1], [-np.inf, 0, 1]], "float32"),
    "float64": lambda: normal(2, 3, dtype="float64"),
    "float16": lambda: normal(2, 3, dtype="float16"),
    "integers": lambda: np.ones((2, 3), "int32"),
    "booleans": lambda: np.ones((2, 3), bool),
    "a tf.Variable": lambda: tf.Variable(normal(2, 3)),
    "a keras.Variable": lambda: keras.Variable(normal(2, 3)),
    "lists": lambda: [[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]],
    "another width": lambda: normal(2, 4),
    "another length": lambda: normal(3, 3),
    "another rank": lambda: normal(2, 3, 3),
    "huge numbers": lambda: normal(2, 3, scale=1e30),
    "a dictionary": lambda: {"a": normal(2, 3)},
    "ragged rows": lambda: [[1.0], [1.0, 2.0]],
}
TEMPERATURES = [0.0, -1.0, 1e30, 1e-30, float("nan"), float("inf"), "x", None, True, [1.0, 2.0]]


def functions(module):
    name = module.__name__.removeprefix("keras_distill.")
    for each in module.__all__:
        function = getattr(module, each)
        if inspect.isfunction(function):
            yield pytest.param(function, id=f"{name}.{each}")


def usual(function):
    """Typical arguments: two examples, three classes."""
    arguments = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD:
            labels = name in ("labels", "y_true")
            arguments[name] = np.array([0, 1]) if labels else 2.0 if name == "temperature" else normal(2, 3)
    return arguments


def answer(function, **given):
    """What is wrong with the answer to unusual arguments: nothing if it is a value or one of our errors."""
    try:
        tf.nest.map_structure(np.asarray, function(**{**usual(function), **given}))
    except ValueError as problem:
        return None if ": expected " in str(problem) else str(problem)
    except Exception as problem:
        return f"{type(problem).__name__}: {problem}"
    return None


@pytest.mark.parametrize("function", [*functions(losses), *functions(metrics)])
def test_an_unusual_argument_gives_a_value_or_a_clear_error(function):
    tried = [(name, kind) for name in usual(function) for kind in STRANGE]
    found = {f"{name} = {kind}": answer(function, **{name: STRANGE[kind]()}) for name, kind in tried}
    if "temperature" in inspect.signature(function).parameters:
        found |= {f"temperature = {each!r}": answer(function, temperature=each) for each in TEMPERATURES}
    assert {case: problem for case, problem in found.items() if problem} == {}
