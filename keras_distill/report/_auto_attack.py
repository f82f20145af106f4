"""AutoAttack, which does not rely on gradients alone, by the adversarial-robustness-toolbox."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
from keras import ops

from keras_distill._checks import error, integer, number, optional

_OWNER = "AutoAttack"


class AutoAttack:
    """Gradients of two losses with adaptive step sizes, then random squares without gradients (AutoAttack).

    Choose it as ``attack`` of ``evaluate`` beside ``regimes.ProjectedGradient``: a model with vanishing gradients looks
    robust to the latter, but not to squares. Each attack is tried only on the examples that are still classified
    correctly, so the accuracy is that under the worst of them. It is slow; 200 examples give a first estimate. It
    needs ``keras-distill[robust]``.

    Args:
        epsilon: > 0, largest change of a value, in the unit of the inputs.
        num_steps: >= 1, steps of each of the two gradient attacks.
        num_restarts: >= 1, random starts of each attack.
        num_queries: >= 1, squares tried on each image at each start.
        low: smallest allowed input value.
        high: largest allowed input value, above ``low``.
        seed: >= 0, seed of starts and squares.

    Raises:
        ValueError: if an argument is out of bounds; when called, if the inputs are neither images nor vectors,
            or the toolbox is not installed.

    Example:
        >>> str(AutoAttack(0.1))
        'AutoAttack, epsilon 0.1'

    Reference:
        Croce, Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free Attacks",
        ICML 2020, arXiv:2003.01690. Differs: the attacks of the toolbox are APGD with cross-entropy, APGD with the
        ratio of logits (from three classes on) and Square (images only); it has no FAB and no targeted APGD.
    """

    def __init__(
        self,
        epsilon: float,
        num_steps: int = 100,
        num_restarts: int = 1,
        num_queries: int = 1000,
        *,
        low: float = 0.0,
        high: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.epsilon = number(_OWNER, "epsilon", epsilon, above=0.0, advice="It is in the unit of the inputs")
        self.num_steps = integer(_OWNER, "num_steps", num_steps, low=1)
        self.num_restarts = integer(_OWNER, "num_restarts", num_restarts, low=1)
        self.num_queries = integer(_OWNER, "num_queries", num_queries, low=1)
        self.low, self.high = number(_OWNER, "low", low), number(_OWNER, "high", high)
        if self.low >= self.high:
            raise error(_OWNER, "low < high", f"{self.low} and {self.high}")
        self.seed = integer(_OWNER, "seed", seed, low=0)

    def __str__(self) -> str:
        """Return a description of the attack, for a report."""
        return f"AutoAttack, epsilon {self.epsilon:g}"

    def __call__(
        self, model: keras.Model, x: Any, labels: Any, *, from_logits: bool = True, batch_size: int = 256
    ) -> np.ndarray:
        """Return attacked inputs; equal seeds give equal results.

        Args:
            model: outputs (examples, classes); it runs in inference mode.
            x: (examples, height, width, channels) or (examples, features), float.
            labels: (examples,), integer.
            from_logits: whether the model outputs logits or probabilities.
            batch_size: >= 1.

        Returns:
            Array of the shape of ``x``, float32.

        Raises:
            ValueError: if inputs are neither images nor vectors, or there is not one integer label for each,
                or the toolbox is not installed.
        """
        with optional(_OWNER, "adversarial-robustness-toolbox", "robust"):
            from art.attacks.evasion import AutoAttack as Attacks
            from art.attacks.evasion import AutoProjectedGradientDescent, SquareAttack
            from art.estimators.classification import TensorFlowV2Classifier
        from keras_distill.regimes._attacks import labelled_examples

        if np.ndim(x) not in (2, 4):
            raise error(_OWNER, "(examples, height, width, channels) or (examples, features)", f"{np.shape(x)}")
        x, labels = labelled_examples(_OWNER, x, labels)

        def logits(inputs: Any, training: bool = False) -> Any:
            outputs = ops.cast(model(inputs, training=False), "float32")
            return outputs if from_logits else ops.log(ops.maximum(outputs, 1e-38))

        num_classes = int(logits(x[:1]).shape[-1])
        known = TensorFlowV2Classifier(
            logits, num_classes, x.shape[1:], clip_values=(self.low, self.high),
            loss_object=keras.losses.CategoricalCrossentropy(from_logits=True),
        )  # fmt: skip
        kinds = ["cross_entropy", "difference_logits_ratio"][: 2 if num_classes > 2 else 1]
        settings = {"eps": self.epsilon, "batch_size": batch_size, "verbose": False}
        attacks: list[Any] = [
            AutoProjectedGradientDescent(
                known, eps_step=2 * self.epsilon, max_iter=self.num_steps, nb_random_init=self.num_restarts,
                loss_type=kind, **settings,
            )
            for kind in kinds
        ]  # fmt: skip
        if x.ndim == 4:
            height, width = x.shape[1:3]
            # The first square must be smaller than the image.
            share = min(0.8, (min(height, width) - 1) ** 2 / (height * width))
            squares = {"max_iter": self.num_queries, "nb_restarts": self.num_restarts, "p_init": share}
            attacks.append(SquareAttack(known, **squares, **settings))
        before = np.random.get_state()
        np.random.seed(self.seed)
        try:
            found = Attacks(known, eps=self.epsilon, attacks=attacks, batch_size=batch_size)
            return np.asarray(found.generate(x, keras.utils.to_categorical(labels, num_classes)), "float32")
        finally:
            np.random.set_state(before)
