"""A faster copy of a teacher, in bfloat16 or compiled by XLA, that leaves the user's model unchanged."""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill._checks import choice, error
from keras_distill.teachers._base import Single, Teacher, silent
from keras_distill.teachers._members import entropy, log_probabilities

_DTYPES = ("mixed_bfloat16", "mixed_float16", "bfloat16", "float16", "float32")


@keras.saving.register_keras_serializable(package="keras_distill")
class Fast(Single):
    """A faster copy of a teacher: lower precision, or its own XLA compilation, or both.

    Whether it is faster depends on the machine: bfloat16 is faster on GPUs, TPUs and CPUs with AMX or AVX512-BF16, and
    slower on others. Time it (``benchmarks/stored_teacher.py`` does), and check ``agreement``. The output layers stay
    in float32, so that the logits keep their precision.

    Args:
        model: a built Functional or Sequential model, possibly nested. It is copied, and not changed.
        dtype: a Keras dtype policy: ``"mixed_bfloat16"``, ``"mixed_float16"``, ``"bfloat16"``, ``"float16"`` or
            ``"float32"`` (a plain copy).
        jit_compile: True compiles the teacher with XLA, independently of the student.
        **kwargs: passed on to ``keras.Model`` (``name``).

    Raises:
        ValueError: if the model is not built or cannot be cloned.

    Example:
        >>> import keras, numpy as np
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
        >>> fast = Fast(model)
        >>> model.layers[0].compute_dtype, fast.model.layers[0].compute_dtype, fast.model.layers[1].compute_dtype
        ('float32', 'bfloat16', 'float32')
    """

    def __init__(
        self, model: keras.Model, dtype: str = "mixed_bfloat16", jit_compile: bool = False, **kwargs: Any
    ) -> None:
        choice("Fast", "dtype", dtype, _DTYPES)
        if not isinstance(model, keras.Model) or isinstance(model, Teacher):
            raise error("Fast", "a keras.Model", type(model).__name__, "Wrap the models of an ensemble one by one")
        if not model.built or not (isinstance(model, keras.Sequential) or getattr(model, "outputs", None)):
            raise error("Fast", "a built Functional or Sequential model", f"{type(model).__name__} {model.name!r}")
        super().__init__(in_precision(model, dtype), **kwargs)
        self.precision = dtype
        self.jit_compile_teacher = bool(jit_compile)
        object.__setattr__(self, "_runs", {})  # one compiled function per set of taps; not to be tracked by Keras

    def listen(
        self, teacher_x: Any, taps: Sequence[str] = (), *, differentiable: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        """Run the copy once; see ``Teacher.listen``. Outputs and taps are float32."""
        names = tuple(taps)
        key = (names, differentiable)
        if key not in self._runs:
            run: Callable[..., Any] = functools.partial(super().listen, taps=names, differentiable=differentiable)
            self._runs[key] = tf.function(run, jit_compile=True, autograph=False) if self.jit_compile_teacher else run
        outputs, tapped = self._runs[key](teacher_x)
        wide = [keras.tree.map_structure(lambda t: keras.ops.cast(t, "float32"), each) for each in (outputs, tapped)]
        return silent(wide[0], differentiable), silent(wide[1], differentiable)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {**super().get_config(), "dtype": self.precision, "jit_compile": self.jit_compile_teacher}


def in_precision(model: keras.Model, dtype: str) -> keras.Model:
    """Return a copy of a model, weights included, that computes in another precision except in its output layers.

    Args:
        model: a built Functional or Sequential model.
        dtype: name of a Keras dtype policy.

    Returns:
        A new model of the same class.
    """
    if isinstance(model, keras.Sequential):
        heads = {id(model.layers[-1])}
    else:
        heads = {id(tensor._keras_history.operation) for tensor in model.outputs}
    policy = keras.saving.serialize_keras_object(keras.dtype_policies.get(dtype))
    default = keras.config.dtype_policy()

    def clone(layer: keras.layers.Layer) -> keras.layers.Layer:
        if isinstance(layer, keras.Model):
            if id(layer) in heads:
                return in_precision(layer, dtype)
            return keras.models.clone_model(layer, clone_function=clone)
        config = copy.deepcopy(layer.get_config())
        if id(layer) not in heads and not isinstance(layer, keras.layers.InputLayer):
            config = _with_policy(config, policy)
            keras.config.set_dtype_policy(dtype)  # for layers that create sublayers
        try:
            return layer.__class__.from_config(config)
        finally:
            keras.config.set_dtype_policy(default)

    made = keras.models.clone_model(model, clone_function=clone)
    if not made.built:
        made.build(model.input_shape)
    made.set_weights(model.get_weights())
    return made


def _with_policy(config: Any, policy: Any) -> Any:
    """Replace each floating dtype policy in a layer's configuration."""
    if isinstance(config, dict):
        return {
            key: policy if key == "dtype" and _is_float_policy(value) else _with_policy(value, policy)
            for key, value in config.items()
        }
    return [_with_policy(each, policy) for each in config] if isinstance(config, list) else config


def _is_float_policy(value: Any) -> bool:
    if isinstance(value, dict):
        value = value.get("config", {}).get("name", "")
    return isinstance(value, str) and "float" in value


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How closely one teacher agrees with another over a dataset.

    Attributes:
        top1: fraction of examples with the same most probable class, 0 to 1.
        mean_kl: mean KL divergence from the exact teacher to the other at temperature 1, nats.
        max_probability_gap: largest difference in any probability.
        num_examples: number of examples compared.
    """

    top1: float
    mean_kl: float
    max_probability_gap: float
    num_examples: int


def agreement(teacher: keras.Model, exact: keras.Model, dataset: tf.data.Dataset) -> Agreement:
    """Compare a fast, or otherwise approximate, teacher with the exact one.

    Args:
        teacher: a model or teacher with one output of logits.
        exact: the same.
        dataset: yields x, (x, y) or (x, y, sample_weight), batched; every batch is used.

    Returns:
        The agreement figures.

    Raises:
        ValueError: if the dataset is empty.

    Example:
        >>> import keras, numpy as np, tensorflow as tf
        >>> model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
        >>> dataset = tf.data.Dataset.from_tensor_slices(np.eye(4, dtype="float32")).batch(2)
        >>> agreement(model, model, dataset)
        Agreement(top1=1.0, mean_kl=0.0, max_probability_gap=0.0, num_examples=4)
    """

    @tf.function(reduce_retracing=True, autograph=False)
    def compare(x: Any) -> tuple[tf.Tensor, ...]:
        log_p, log_q = (log_probabilities(model(x, training=False)) for model in (exact, teacher))
        p, q = tf.exp(log_p), tf.exp(log_q)
        cross = -tf.reduce_sum(tf.where(p > 0, p * log_q, 0.0), axis=-1)
        same = tf.equal(tf.argmax(log_p, -1), tf.argmax(log_q, -1))
        return tf.cast(same, tf.float32), cross - entropy(log_p), tf.reduce_max(tf.abs(p - q))

    same, divergence, gaps = [], [], [0.0]
    for element in dataset:
        one, kl, gap = compare(element[0] if isinstance(element, tuple) else element)
        same.append(np.asarray(one).ravel())
        divergence.append(np.asarray(kl, "float64").ravel())
        gaps.append(float(gap))
    if not same:
        raise error("agreement", "at least one batch of data", "an empty dataset")
    every = np.concatenate(same)
    mean_kl = max(0.0, float(np.concatenate(divergence).mean()))
    return Agreement(float(every.mean()), mean_kl, max(gaps), len(every))
