"""Rules that combine several teachers into one, the argument ``combine`` of an ``Ensemble``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_distill._checks import choice, error, number
from keras_distill._typing import Tensor
from keras_distill.teachers._members import Members, entropy, for_rank, log_probabilities, log_sum_exp

_PACKAGE = "keras_distill"


class Combine:
    """Base of the rules. A rule gives each member a weight per example, and says what is weighted.

    Attributes:
        per_member: True if the loss is evaluated for each member and the values are weighted; False if the members'
            distributions are averaged first. For KL and cross-entropy the gradient is the same.
        needs_labels: True if the weights depend on the labels.
        needs_student: True if the weights depend on the student's logits.
        needs_spread: True if every member must report its uncertainty (``MonteCarloDropout``, ``Ensemble``).
    """

    per_member = False
    needs_labels = False
    needs_student = False
    needs_spread = False

    def weights(self, members: Members, temperature: Any, *, labels: Any, student_logits: Tensor) -> Any:
        """Return (batch, members, ...), float32, summing to 1 over the members."""
        raise NotImplementedError(f"{type(self).__name__} must define weights().")

    def checked_weights(self, members: Members, temperature: Any, *, labels: Any, student_logits: Tensor) -> Any:
        """Return ``weights``, after checking that the rule has what it needs."""
        name = type(self).__name__
        if self.needs_labels and labels is None:
            raise error(name, "labels", "None", "Train with (x, y), or use combine='mean_probs'")
        if self.needs_student and student_logits is None:
            raise error(name, "student_logits", "None", "Use combine='mean_probs' where there is no student")
        if self.needs_spread and members.spread is None:
            advice = "Make each member a MonteCarloDropout or an Ensemble"
            raise error(name, "members that report their uncertainty", "plain models", advice)
        if members.num_members == 1:
            return ops.ones(ops.shape(members.members)[:-1], "float32")
        return self.weights(members, temperature, labels=labels, student_logits=student_logits)

    def resolve(self, members: Members, temperature: Any, *, labels: Any = None, student_logits: Tensor = None) -> Any:
        """Return the logits of the weighted mixture of the members' tempered distributions."""
        weights = self.checked_weights(members, temperature, labels=labels, student_logits=student_logits)
        mixture = log_sum_exp(members.log_probs(temperature) + ops.expand_dims(ops.log(weights), -1), axis=1)
        return for_rank(temperature, len(mixture.shape)) * mixture

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Combine:
        """Rebuild the rule from ``get_config``."""
        return cls(**config)


class _Fixed(Combine):
    """A rule with weights given by the user, the same for every example."""

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        name = type(self).__name__
        if weights is not None:
            weights = [number(name, f"weights[{m}]", w, low=0.0) for m, w in enumerate(weights)]
            if not sum(weights) > 0:
                raise error(name, "weights with a positive sum", weights)
        self.fixed = weights

    def weights(self, members: Members, temperature: Any, *, labels: Any, student_logits: Tensor) -> Any:
        """Return the normalised weights, the same for every example; equal ones if none were given."""
        count = members.num_members
        fixed = self.fixed or [1.0] * count
        if len(fixed) != count:
            raise error(type(self).__name__, f"{count} weights, one per member", f"{len(fixed)}")
        normalised = ops.convert_to_tensor([w / sum(fixed) for w in fixed], "float32")
        shape = ops.shape(members.members)[:-1]
        return ops.broadcast_to(ops.reshape(normalised, (1, count, *([1] * (len(shape) - 2)))), shape)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"weights": self.fixed}


@keras.saving.register_keras_serializable(package=_PACKAGE)
class MeanProbs(_Fixed):
    """Average the members' probabilities, then compare once: the predictive mean (Hinton et al. 2015).

    Choose it first: it is what the ensemble itself predicts, and costs one loss whatever the number of members.

    Formula: p = sum_m w_m * softmax(z_m / temperature), w normalised; computed in log space.

    Args:
        weights: one number >= 0 per member, normalised to sum 1; None for equal weights.
    """


@keras.saving.register_keras_serializable(package=_PACKAGE)
class MeanLogits(_Fixed):
    """Average the members' logits: the geometric mean of their probabilities, sharper than ``MeanProbs``.

    Use it for outputs that are not logits, such as regressions.

    Formula: z = sum_m w_m * z_m, w normalised.

    Args:
        weights: one number >= 0 per member, normalised to sum 1; None for equal weights.
    """

    def resolve(self, members: Members, temperature: Any, *, labels: Any = None, student_logits: Tensor = None) -> Any:
        """Return the weighted mean of the logits, which does not depend on the temperature."""
        weights = self.checked_weights(members, temperature, labels=labels, student_logits=student_logits)
        logits = ops.cast(members.members, "float32")
        weighed = ops.expand_dims(weights, -1) * logits
        # A class that a member rules out (-inf) stays ruled out, unless that member has weight 0.
        return ops.sum(ops.where(ops.expand_dims(weights, -1) > 0, weighed, ops.zeros_like(logits)), axis=1)


@keras.saving.register_keras_serializable(package=_PACKAGE)
class MeanLoss(_Fixed):
    """Compare the student with each member and average the losses.

    Same gradient as ``MeanProbs`` for KL and cross-entropy, at the cost of one loss per member; it differs for losses
    that are not linear in the teacher's probabilities (mean squared logits, DIST, decoupled soft targets).

    Formula: sum_m w_m * loss(z_m, student), w normalised.

    Args:
        weights: one number >= 0 per member, normalised to sum 1; None for equal weights.
    """

    per_member = True


@keras.saving.register_keras_serializable(package=_PACKAGE)
class EntropyWeighted(Combine):
    """Weigh each member by how sure it is (EBKD).

    Formula: w_m = (1 - H(p_m) / sum_l H(p_l)) / (members - 1), p = softmax(z), H in nats, per example.

    Reference:
        Kwon et al., "Adaptive knowledge distillation based on entropy", ICASSP 2020.
        Differs: divided by (members - 1), so that the weights sum to 1 whatever the number of members.
    """

    per_member = True

    def weights(self, members: Members, temperature: Any, *, labels: Any, student_logits: Tensor) -> Any:
        """Return the weights; equal ones if every member is certain."""
        unsure = entropy(members.log_probs())
        total = ops.sum(unsure, axis=1, keepdims=True)
        share = ops.where(total > 0, unsure / ops.where(total > 0, total, 1.0), 1.0 / members.num_members)
        return (1.0 - share) / (members.num_members - 1)


@keras.saving.register_keras_serializable(package=_PACKAGE)
class ConfidenceWeighted(Combine):
    """Weigh each member by how well it predicts the label of the example (CA-MKD). Needs labels.

    Formula: w_m = (1 - softmax_m(CE(y, p_m))) / (members - 1), p = softmax(z), per example; sums to 1.

    Reference:
        Zhang, Chen, Wang, "Confidence-aware multi-teacher knowledge distillation", ICASSP 2022.
        Differs: the weights sum to 1; the published code divides the weighted sum by the number of members again.
    """

    per_member = True
    needs_labels = True

    def weights(self, members: Members, temperature: Any, *, labels: Any, student_logits: Tensor) -> Any:
        """Return the weights of each example."""
        log_probs = members.log_probs()
        labels = ops.convert_to_tensor(labels)
        rank = len(log_probs.shape) - 1
        if len(labels.shape) == rank and labels.shape[-1] == log_probs.shape[-1]:
            target = ops.cast(labels, "float32")
        else:
            if len(labels.shape) == rank:
                labels = ops.squeeze(labels, -1)
            target = ops.one_hot(ops.cast(labels, "int32"), log_probs.shape[-1], dtype="float32")
        # log p is bounded below, so that a member that rules out the label (-inf) gets weight 0 instead of NaN.
        bounded = ops.maximum(log_probs, -1e4)
        cross_entropy = -ops.sum(ops.expand_dims(target, 1) * bounded, axis=-1)
        return (1.0 - ops.softmax(cross_entropy, axis=1)) / (members.num_members - 1)


@keras.saving.register_keras_serializable(package=_PACKAGE)
class GradientBased(Combine):
    """Weigh the members so that their gradients at the student's logits agree best (AEKD).

    The weights are the point of the capped simplex where the combined gradient is shortest, so that the student moves
    only where the members do not pull it in opposite directions.

    Formula: argmin_w |sum_m w_m * g_m|**2, g_m = softmax(student / temperature) - softmax(z_m / temperature),
    0 <= w_m <= max(max_weight, 1 / members), sum_m w_m = 1, per example.

    Args:
        max_weight: 0 < max_weight <= 1, no unit: largest weight of a member. 1.0 lets one member decide alone.
        num_iterations: number of exact transfers of weight from one member to another.

    Reference:
        Du et al., "Agree to disagree: adaptive ensemble knowledge distillation in gradient space", NeurIPS 2020.
        Differs: one problem per example instead of one per batch, so that no example's weights depend on the others
        in its batch.
    """

    per_member = True
    needs_student = True

    def __init__(self, max_weight: float = 0.6, num_iterations: int = 100) -> None:
        self.max_weight = number("GradientBased", "max_weight", max_weight, above=0.0, high=1.0)
        self.num_iterations = int(number("GradientBased", "num_iterations", num_iterations, low=1))

    def weights(self, members: Members, temperature: Any, *, labels: Any, student_logits: Tensor) -> Any:
        """Return the weights of each example."""
        student = ops.exp(log_probabilities(ops.stop_gradient(student_logits), temperature))
        gradients = ops.expand_dims(student, 1) - ops.exp(members.log_probs(temperature))
        gradients = ops.moveaxis(gradients, 1, -2)  # (batch, ..., members, classes)
        gram = ops.matmul(gradients, ops.swapaxes(gradients, -1, -2))
        weights = smallest_norm(gram, max(self.max_weight, 1.0 / members.num_members), self.num_iterations)
        return ops.stop_gradient(ops.moveaxis(weights, -1, 1))

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"max_weight": self.max_weight, "num_iterations": self.num_iterations}


def smallest_norm(gram: Any, max_weight: float, num_iterations: int) -> Any:
    """Minimise w' gram w over 0 <= w <= max_weight, sum w = 1, by repeated optimal transfers between two entries.

    Args:
        gram: (..., members, members), float32, positive semi-definite.
        max_weight: at least 1 / members.
        num_iterations: number of transfers.

    Returns:
        (..., members), float32.
    """
    count = gram.shape[-1]
    start = ops.ones_like(gram[..., 0]) / count
    diagonal = ops.diagonal(gram, axis1=-2, axis2=-1)
    # Entry [i, j] describes a transfer of weight from member i to member j.
    curvature = ops.maximum(ops.expand_dims(diagonal, -1) + ops.expand_dims(diagonal, -2) - 2.0 * gram, 1e-12)

    def improve(_: Any, weights: Any) -> Any:
        slope = ops.squeeze(ops.matmul(gram, ops.expand_dims(weights, -1)), -1)
        fall = ops.maximum(ops.expand_dims(slope, -1) - ops.expand_dims(slope, -2), 0.0)
        room = ops.minimum(ops.expand_dims(weights, -1), ops.expand_dims(max_weight - weights, -2))
        step = ops.minimum(fall / curvature, room)
        gain = step * (2.0 * fall - step * curvature)
        best = ops.argmax(ops.reshape(gain, (*ops.shape(gain)[:-2], count * count)), axis=-1)
        chosen = ops.reshape(ops.one_hot(best, count * count, dtype="float32"), ops.shape(gain)) * step
        moved = ops.sum(chosen, axis=-2) - ops.sum(chosen, axis=-1)
        return ops.clip(weights + moved, 0.0, max_weight)

    return ops.fori_loop(0, num_iterations, improve, start)


@keras.saving.register_keras_serializable(package=_PACKAGE)
class UncertaintyWeighted(Combine):
    """Weight each member by its precision: the less it knows about an example, the less it counts.

    Each member must report its uncertainty, as a ``MonteCarloDropout`` or a nested ``Ensemble`` does.

    Formula: w_m proportional to 1 / (u_m + epsilon); u_m = mutual information of member m, nats (its variance for
    regressions, ``spread="variance"``).

    Args:
        epsilon: > 0, added to every member's uncertainty.
        spread: ``"mutual_information"`` for logits, ``"variance"`` for regressions.
    """

    needs_spread = True

    def __init__(self, epsilon: float = 1e-3, spread: str = "mutual_information") -> None:
        self.epsilon = number("UncertaintyWeighted", "epsilon", epsilon, above=0.0)
        self.spread = choice("UncertaintyWeighted", "spread", spread, ("mutual_information", "variance"))

    def weights(self, members: Members, temperature: Any, *, labels: Any, student_logits: Tensor) -> Any:
        """Return the weights of each example."""
        precision = 1.0 / (ops.cast(members.spread, "float32") + self.epsilon)
        return precision / ops.sum(precision, axis=1, keepdims=True)

    def resolve(self, members: Members, temperature: Any, *, labels: Any = None, student_logits: Tensor = None) -> Any:
        """Return the mixture of the distributions, or of the outputs themselves for regressions."""
        if self.spread == "variance":
            weights = self.checked_weights(members, temperature, labels=labels, student_logits=student_logits)
            return ops.sum(ops.expand_dims(weights, -1) * ops.cast(members.members, "float32"), axis=1)
        return super().resolve(members, temperature, labels=labels, student_logits=student_logits)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"epsilon": self.epsilon, "spread": self.spread}


@keras.saving.register_keras_serializable(package=_PACKAGE)
class Stochastic(_Fixed):
    """Use one member per batch, drawn at random: unbiased for ``MeanLoss``, and runs one model instead of all.

    Args:
        weights: one number >= 0 per member, proportional to how often it is drawn; None draws all equally often.
        seed: seed of the draws, for reproducible training.
    """

    def __init__(self, weights: Sequence[float] | None = None, seed: int = 0) -> None:
        super().__init__(weights)
        self.seed = int(number("Stochastic", "seed", seed, low=0))

    def draw(self, count: int, seeds: keras.random.SeedGenerator) -> Any:
        """Return the index of the member to use, a scalar int32 tensor."""
        log_shares = ops.log(ops.convert_to_tensor([self.fixed or [1.0] * count], "float32"))
        return ops.squeeze(keras.random.categorical(log_shares, 1, dtype="int32", seed=seeds))

    def weights(self, members: Members, temperature: Any, *, labels: Any, student_logits: Tensor) -> Any:
        """Return 1 for the drawn member, the only one that the ensemble passes on."""
        return ops.ones(ops.shape(members.members)[:-1], "float32")

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        return {"weights": self.fixed, "seed": self.seed}
