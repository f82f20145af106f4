"""Students that estimate their uncertainty: a head per member, an uncertainty head, its split for serving."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill import metrics
from keras_distill._checks import choice, error, integer, number
from keras_distill.students._heads import MemberHeads

_PACKAGE = "keras_distill"
_SOURCES = ("members", "dirichlet", "evidence", "gaussian", "mixture", "normal_inverse_gamma")


def _last_dense(owner: str, student: keras.Model) -> keras.layers.Dense:
    """Return the dense layer that produces the only output of a functional model."""
    if not isinstance(student, keras.Model) or not getattr(student, "outputs", None) or len(student.outputs) != 1:
        raise error(owner, "a Functional or Sequential model with one output", type(student).__name__)
    last = student.outputs[0]._keras_history.operation if not isinstance(student, keras.Sequential) else None
    last = student.layers[-1] if last is None else last
    if not isinstance(last, keras.layers.Dense) or last.activation is not keras.activations.linear:
        raise error(owner, "a model that ends in a Dense layer without activation", type(last).__name__)
    return last


def _structure(student: keras.Model) -> Any:
    return student.inputs[0] if isinstance(student, keras.Sequential) else student.input


def hydra(student: keras.Model, num_members: int, *, noise: float = 0.05, seed: int = 0) -> keras.Model:
    """Add one head per member of an ensemble to a student's body (Hydra), each a noisy copy of the student's own head.

    Choose it with ``losses.MemberSoftTargets`` to keep an ensemble's members apart in one model. First train the
    student on the ensemble's mean, then this model on the members (the paper's second phase).

    Args:
        student: a Functional or Sequential model that ends in a ``Dense`` layer of logits. Its other layers are shared
            with the result, not copied.
        num_members: number of heads.
        noise: >= 0, standard deviation of the noise added to each copy's kernel, relative to that of the kernel itself.
        seed: seed of the noise.

    Returns:
        A model with output (batch, num_members, classes).

    Raises:
        ValueError: if the student does not end in a ``Dense`` layer without activation.

    Example:
        >>> import numpy as np
        >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(3)])
        >>> heads = hydra(student, 5, noise=0.0)
        >>> x = np.ones((2, 4))
        >>> heads.output_shape, bool(np.allclose(heads(x)[:, 4], student(x)))
        ((None, 5, 3), True)

    Reference:
        Tran et al., "Hydra: Preserving Ensemble Diversity for Model Distillation", 2020, arXiv:2001.04694, section 3.
        Differs: the heads are the last layer only.
    """
    count = integer("hydra", "num_members", num_members, low=1)
    noise = number("hydra", "noise", noise, low=0.0)
    dense = _last_dense("hydra", student)
    heads = MemberHeads(count, dense.units, dtype=dense.dtype_policy, name="member_heads")
    model = keras.Model(_structure(student), heads(dense.input), name=f"{student.name}_hydra")
    kernel = keras.ops.convert_to_numpy(dense.kernel).astype("float32")
    drawn = np.random.default_rng(seed).normal(size=(count, *kernel.shape)) * noise * kernel.std()
    heads.kernel.assign(kernel + drawn)
    if dense.use_bias:
        heads.bias.assign(np.repeat(keras.ops.convert_to_numpy(dense.bias).astype("float32")[None], count, axis=0))
    return model


def with_uncertainty_head(student: keras.Model, num_kinds: int = 2) -> keras.Model:
    """Let a student also predict its teacher's uncertainty (uncertainty labels), by a softplus head on its features.

    Choose it with ``terms.UncertaintyDistillation``. Compile the distiller with ``loss={"logits": ...}``.

    Args:
        student: a Functional or Sequential model that ends in a ``Dense`` layer of logits; its layers are shared.
        num_kinds: number of uncertainties, one for each of the term's ``kinds``.

    Returns:
        A model with the outputs ``"logits"`` and ``"uncertainty"``, (batch, num_kinds), nats, >= 0.

    Raises:
        ValueError: if the student does not end in a ``Dense`` layer without activation.

    Example:
        >>> student = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8), keras.layers.Dense(3)])
        >>> with_uncertainty_head(student, 2).output["uncertainty"].shape
        (None, 2)

    Reference:
        Vadera, Jalaian, Marlin, "Generalized Bayesian Posterior Expectation Distillation for Deep Neural Networks",
        UAI 2020, arXiv:2005.08110. Differs: nothing.
    """
    count = integer("with_uncertainty_head", "num_kinds", num_kinds, low=1)
    dense = _last_dense("with_uncertainty_head", student)
    head = keras.layers.Dense(count, activation="softplus", dtype="float32", name="uncertainty")
    outputs = {"logits": student.outputs[0], "uncertainty": head(dense.input)}
    return keras.Model(_structure(student), outputs, name=f"{student.name}_unsure")


@keras.saving.register_keras_serializable(package=_PACKAGE)
class UncertaintySplit(keras.layers.Layer):
    """Converts a student's outputs to its prediction, and its uncertainty split into data and knowledge.

    Args:
        source: meaning of the outputs: "members", (batch, members, classes) logits; "dirichlet", logarithms of
            concentrations, to which ``offset`` is added; "evidence", softplus of the outputs, as in
            ``losses.Evidential``; "gaussian", "mixture", "normal_inverse_gamma", regressions by the heads of this
            package.
        offset: >= 0, for "dirichlet": 0 after ``losses.DirichletDistillation``, 1 after ``losses.ProxyDirichlet``.
        outputs: number of values that a "mixture" predicts.
        **kwargs: as for ``keras.layers.Layer``.

    Raises:
        ValueError: if an argument is out of bounds.
    """

    def __init__(self, source: str, offset: float = 0.0, outputs: int = 1, **kwargs: Any) -> None:
        super().__init__(**{"dtype": "float32", "trainable": False, **kwargs})
        self.source = choice("UncertaintySplit", "source", source, _SOURCES)
        self.offset = number("UncertaintySplit", "offset", offset, low=0.0)
        self.outputs = integer("UncertaintySplit", "outputs", outputs, low=1)

    def build(self, input_shape: Any) -> None:
        """Do nothing: there are no weights."""
        self.built = True

    def call(self, x: Any) -> dict[str, Any]:
        """Return the prediction and its uncertainties; see ``with_uncertainties``."""
        if self.source in ("gaussian", "mixture", "normal_inverse_gamma"):
            parts = self._regression(x)
            return {"mean": parts.mean, "total": parts.total, "data": parts.data, "knowledge": parts.knowledge}
        if self.source == "members":
            probabilities = ops.mean(ops.softmax(x, axis=-1), axis=1)
            found = metrics.ensemble_uncertainty(ops.moveaxis(x, 1, -2), from_logits=True)
        else:
            evidence = (
                ops.softplus(x) + 1.0 if self.source == "evidence" else ops.exp(ops.minimum(x, 30.0)) + self.offset
            )
            probabilities = evidence / ops.sum(evidence, axis=-1, keepdims=True)
            found = metrics.dirichlet_uncertainty(evidence)
        split = {kind: getattr(found, kind) for kind in ("total", "data", "knowledge")}
        return {"probabilities": probabilities, **split}

    def _regression(self, x: Any) -> metrics.VarianceParts:
        if self.source == "normal_inverse_gamma":
            return metrics.normal_inverse_gamma_uncertainty(x)
        if self.source == "gaussian":
            means, logs = (ops.expand_dims(each, -2) for each in ops.split(x, 2, axis=-1))
            return metrics.mixture_uncertainty(means, logs)
        parts = ops.reshape(x, (*ops.shape(x)[:-1], 3, -1, self.outputs))
        return metrics.mixture_uncertainty(parts[..., 1, :, :], parts[..., 2, :, :], weight_logits=parts[..., 0, :, :])

    def get_config(self) -> dict[str, Any]:
        """Return the configuration."""
        own = {"source": self.source, "offset": self.offset, "outputs": self.outputs}
        return {**super().get_config(), **own}


def with_uncertainties(student: keras.Model, source: str, *, offset: float = 0.0, outputs: int = 1) -> keras.Model:
    """Let a trained student return its prediction and its uncertainty, in data and in knowledge, for serving.

    Args:
        student: a Functional or Sequential model with one output, trained by the loss that fits ``source``.
        source: "members", "dirichlet", "evidence", "gaussian", "mixture" or "normal_inverse_gamma"; see
            ``UncertaintySplit``.
        offset: for "dirichlet", added to the concentrations: 1 after ``losses.ProxyDirichlet``.
        outputs: number of values that a "mixture" predicts.

    Returns:
        A model that shares the student's layers, with the outputs ``"probabilities"``, or ``"mean"`` for regressions,
        ``"total"``, ``"data"`` and ``"knowledge"``: nats (batch,), or variances (batch, outputs).

    Raises:
        ValueError: if the student has several outputs, or an argument is out of its bounds.

    Example:
        >>> import numpy as np
        >>> student = keras.Sequential([keras.Input((2,)), keras.layers.Activation("linear")])
        >>> said = with_uncertainties(student, "dirichlet")(np.log([[1.0, 1.0]]))  # Dirichlet(1, 1)
        >>> {name: np.round(value[0], 4).tolist() for name, value in said.items() if name != "knowledge"}
        {'probabilities': [0.5, 0.5], 'total': 0.6930999755859375, 'data': 0.5}
    """
    owner = "with_uncertainties"
    if not isinstance(student, keras.Model) or not getattr(student, "outputs", None) or len(student.outputs) != 1:
        raise error(owner, "a Functional or Sequential model with one output", type(student).__name__)
    split = UncertaintySplit(source, offset, outputs, name="uncertainty_split")
    return keras.Model(_structure(student), split(student.outputs[0]), name=f"{student.name}_with_uncertainties")
