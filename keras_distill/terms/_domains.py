"""Terms that make a student's features alike in two domains, by their statistics or through an adversary."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import choice, error, integer, number
from keras_distill._typing import Structure, Tensor
from keras_distill.terms._base import DistillationLoss, field_of
from keras_distill.terms._reversal import Ramp, ReversesGradient, against


class _DomainTerm(DistillationLoss):
    """Base: compares the student's features of one domain with those of another; the teacher is not used."""

    num_domains = 2

    def __init__(self, student_layer_name: str | None, domain: str, name: str | None, **kwargs: Any) -> None:
        super().__init__(name=name, **kwargs)
        if student_layer_name is not None and not isinstance(student_layer_name, str):
            raise error(type(self).__name__, "student_layer_name to be one tap or None", student_layer_name)
        self.student_layer_name = student_layer_name
        self.domain = str(domain)

    def validate_outputs(self, teacher_outputs: Structure, student_outputs: Structure) -> None:
        """Raise ``ValueError`` if the student gives several tensors."""
        if keras.tree.is_nested(student_outputs):
            got = f"{len(keras.tree.flatten(student_outputs))}"
            raise error(type(self).__name__, "one tensor of the student", got, "Give student_layer_name")

    def check_fields(self, fields: dict[str, Any]) -> None:
        """Raise ``ValueError`` unless there are examples of at least two domains."""
        owner, last = type(self).__name__, self.num_domains - 1
        if self.domain not in fields:
            return  # the first step raises
        found = np.unique(np.asarray(fields[self.domain]))
        advice = "Number the domains from 0, as data.domains does"
        if found.dtype.kind not in "iufb":
            raise error(owner, f"numbers from 0 to {last} in the field {self.domain!r}", "text", advice)
        if np.sum((found >= 0) & (found <= last)) < 2:
            got = f"only {', '.join(f'{each:g}' for each in found[:5])}"
            raise error(owner, f"at least two of the domains 0 to {last} in the field {self.domain!r}", got, advice)

    def _rows(self, student_outputs: Structure, batch: Any) -> tuple[Any, Any]:
        """Return the features, (batch, channels), averaged over positions, and each example's domain, (batch,)."""
        domain = ops.reshape(ops.cast(field_of(type(self).__name__, batch, self.domain), "int32"), (-1,))
        features = ops.cast(student_outputs, "float32")
        if len(features.shape) > 2:
            features = ops.mean(features, axis=tuple(range(1, len(features.shape) - 1)))
        return features, domain

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to rebuild this term."""
        return {**super().get_config(), "student_layer_name": self.student_layer_name, "domain": self.domain}


@keras.saving.register_keras_serializable(package="keras_distill")
class DomainAlignment(_DomainTerm):
    """Makes the student's features of a source and a target domain alike by their statistics (CORAL, MMD).

    Choose it when the student must work in a domain without labels: batches mix both domains, labels of the target have
    a ``sample_weight`` of 0, and the teacher answers for both. "coral" matches covariances, is cheap and has only its
    weight to tune; "mmd" compares whole distributions by kernels. Where the two domains differ by more than their
    statistics, ``DomainAdversary`` is stronger and harder to train.

    The domain is a field of the batch that no model takes: ``{"image": x, "domain": d}`` with d = 0 for the source and
    1 for the target; examples with other values are ignored.

    Formula: "coral": ||Cov_source - Cov_target||_F**2 / (4 channels**2), covariances with n - 1; "mmd": mean k(s, s') +
    mean k(t, t') - 2 mean k(s, t) over all pairs, k the mean over bandwidths b of exp(-||x - y||**2 / (b m)), m the
    mean squared distance of all pairs of the batch, through which no gradient flows.

    Args:
        kind: "coral" or "mmd".
        student_layer_name: the tap whose features are aligned; positions are averaged. None: the student's output.
        domain: name of the field.
        bandwidths: > 0, bandwidths of the kernels for "mmd", in units of the batch's mean squared distance.
        name: shown in logs and error messages.
        **kwargs: as for ``keras.layers.Layer``.

    Raises:
        ValueError: if an option is unknown or, in the first step, the batch has no such field.

    Example:
        >>> import numpy as np
        >>> from keras_distill.training import Batch
        >>> features, domain = np.array([[0.0], [2.0], [0.0], [4.0]]), np.array([0, 0, 1, 1])
        >>> term = DomainAlignment("coral")
        >>> float(term.compute_loss(None, features, batch=Batch({"domain": domain})))  # variances 2 and 8: 36 / 4
        9.0

    Reference:
        Sun, Saenko, "Deep CORAL", ECCV 2016 workshops, arXiv:1607.01719, eq. 1; Long et al., "Learning Transferable
        Features with Deep Adaptation Networks", ICML 2015, arXiv:1502.02791.
        Differs: the kernels' weights are equal; the biased estimate, over all pairs.
    """

    def __init__(
        self,
        kind: str = "coral",
        student_layer_name: str | None = None,
        domain: str = "domain",
        bandwidths: Sequence[float] = (0.25, 0.5, 1.0, 2.0, 4.0),
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(student_layer_name, domain, name, **kwargs)
        owner = type(self).__name__
        self.kind = choice(owner, "kind", kind, ("coral", "mmd"))
        self.bandwidths = [number(owner, "each of bandwidths", each, above=0.0) for each in bandwidths]
        if not self.bandwidths:
            raise error(owner, "at least one of bandwidths", "none")

    def values(
        self,
        teacher_outputs: Structure,
        student_outputs: Structure,
        *,
        labels: Structure = None,
        mask: Tensor = None,
        training: bool = True,
        batch: Any = None,
    ) -> Any:
        """Return the loss of the batch, a scalar; 0 where a domain has fewer than two examples."""
        features, domain = self._rows(student_outputs, batch)
        source, target = (ops.cast(ops.equal(domain, each), "float32") for each in (0, 1))
        enough = ops.logical_and(ops.sum(source) > 1.5, ops.sum(target) > 1.5)
        value = self._coral(features, source, target) if self.kind == "coral" else self._mmd(features, source, target)
        return ops.where(enough, value, 0.0)

    def _coral(self, features: Tensor, source: Any, target: Any) -> Any:
        gap = _covariance(features, source) - _covariance(features, target)
        return ops.sum(ops.square(gap)) / (4.0 * features.shape[-1] ** 2)

    def _mmd(self, features: Tensor, source: Any, target: Any) -> Any:
        either = source + target
        apart = ops.sum(ops.square(features[:, None] - features[None]), axis=-1)
        pairs = either[:, None] * either[None]
        scale = ops.stop_gradient(ops.sum(apart * pairs) / ops.maximum(ops.sum(pairs) - ops.sum(either), 1.0))
        scale = ops.maximum(scale, 1e-12)
        kernel = ops.mean(ops.stack([ops.exp(-apart / (each * scale)) for each in self.bandwidths]), axis=0)
        # Weights +1/n of the source and -1/m of the target: the three means of the formula in one product.
        sides = source / ops.maximum(ops.sum(source), 1.0) - target / ops.maximum(ops.sum(target), 1.0)
        return ops.sum(kernel * sides[:, None] * sides[None])

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to rebuild this term."""
        return {**super().get_config(), "kind": self.kind, "bandwidths": self.bandwidths}


def _covariance(features: Tensor, weight: Tensor) -> Any:
    """Return the covariance of the rows with weight 1, (channels, channels)."""
    count = ops.maximum(ops.sum(weight), 2.0)
    centred = (features - ops.sum(features * weight[:, None], axis=0) / count) * weight[:, None]
    return ops.matmul(ops.transpose(centred), centred) / (count - 1.0)


@keras.saving.register_keras_serializable(package="keras_distill")
class DomainRamp(Ramp):
    """The adversary's strength: height * (2 / (1 + exp(-10 p)) - 1), p the part of ``ramp_steps`` that is done (DANN).

    Args:
        height: the strength at the end.
        ramp_steps: >= 1, optimizer steps.
    """

    def _risen(self, done: Any) -> Any:
        return 2.0 / (1.0 + ops.exp(-10.0 * done)) - 1.0


@keras.saving.register_keras_serializable(package="keras_distill")
class DomainAdversary(ReversesGradient, _DomainTerm):
    """Trains a small network to tell the domains apart, and the student's features to prevent that (DANN).

    One backward pass trains both: the gradient from the network to the student is reversed and scaled by a strength
    that rises from 0, so that the adversary can learn first. ``logs`` get ``reversal_strength``.

    Formula: cross-entropy of the domain, per example; the student's gradient is that times -strength, with strength =
    reversal_strength * (2 / (1 + exp(-10 p)) - 1), p = step / ramp_steps up to 1.

    Args:
        student_layer_name: the tap whose features are to be alike; positions are averaged. None: the student's output.
        domain: name of the field of the batch, 0 to num_domains - 1; examples with other values are ignored.
        num_domains: >= 2.
        hidden_units: >= 1, width of the network.
        reversal_strength: >= 0, strength at the end of the ramp. May be assigned at any time, which ends the ramp.
        ramp_steps: >= 0, optimizer steps until full strength; 0: full strength at once.
        name: shown in logs and error messages.
        **kwargs: as for ``keras.layers.Layer``.

    Raises:
        ValueError: if a number is out of range or, in the first step, the batch has no such field.

    Example:
        >>> term = DomainAdversary("embedding", ramp_steps=500)
        >>> round(float(term.settings["reversal_strength"].schedule(50)), 4)  # p = 0.1: 2 / (1 + exp(-1)) - 1
        0.4621

    Reference:
        Ganin, Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", ICML 2015, arXiv:1409.7495.
        Differs: the ramp has its own number of steps.
    """

    needs_shapes = True

    def __init__(
        self,
        student_layer_name: str | None = None,
        domain: str = "domain",
        num_domains: int = 2,
        hidden_units: int = 64,
        reversal_strength: float = 1.0,
        ramp_steps: int = 1000,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(student_layer_name, domain, name, **kwargs)
        owner = type(self).__name__
        self.num_domains = integer(owner, "num_domains", num_domains, low=2)
        self.hidden_units = integer(owner, "hidden_units", hidden_units, low=1)
        self._set_reversal(reversal_strength, ramp_steps, DomainRamp)
        self.hidden = keras.layers.Dense(self.hidden_units, activation="relu", dtype="float32", name="hidden")
        self.head = keras.layers.Dense(self.num_domains, dtype="float32", name="head")

    def build_from(self, teacher_outputs: Structure, student_outputs: Structure) -> None:
        """Make the adversary's variables."""
        self._make(int(student_outputs.shape[-1]))

    def _make(self, channels: int) -> None:
        self._strength.create(self, "reversal_strength")
        self.hidden.build((None, channels))
        self.head.build((None, self.hidden_units))
        self.built = True

    def get_build_config(self) -> dict[str, Any] | None:
        """Return what ``build_from_config`` needs to rebuild the network before its weights are loaded."""
        return {"channels": self.hidden.kernel.shape[0]} if self.hidden.built else None

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Make the adversary's variables."""
        self._make(config["channels"])

    def values(
        self,
        teacher_outputs: Structure,
        student_outputs: Structure,
        *,
        labels: Structure = None,
        mask: Tensor = None,
        training: bool = True,
        batch: Any = None,
    ) -> Any:
        """Return the adversary's cross-entropy for each example; 0 for a domain out of range."""
        features, domain = self._rows(student_outputs, batch)
        logits = self.head(self.hidden(against(features, self._strength.tensor)))
        known = ops.logical_and(domain >= 0, domain < self.num_domains)
        inside = ops.where(known, domain, 0)
        picked = ops.one_hot(inside, self.num_domains) * ops.log_softmax(logits, axis=-1)
        return ops.where(known, -ops.sum(picked, axis=-1), 0.0)

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to rebuild this term."""
        return {**super().get_config(), "num_domains": self.num_domains, "hidden_units": self.hidden_units}
