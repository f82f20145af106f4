"""A term that contrasts each example with a memory of all the others."""

from __future__ import annotations

from typing import Any

import keras
from keras import ops

from keras_distill import adapters, losses, taps, teachers
from keras_distill._checks import error, integer, number
from keras_distill._typing import Structure, Tensor
from keras_distill.terms._base import DistillationLoss


@keras.saving.register_keras_serializable(package="keras_distill")
class ContrastiveMemory(DistillationLoss):
    """Contrast of each example with others from a memory of the whole training set (CRD with a memory bank).

    Choose it over ``losses.ContrastiveRepresentation`` where batches are small and examples have stable indices, which
    a ``teachers.Indexed`` teacher supplies. It holds two embeddings, trained with the student, and two memories of
    num_examples * units numbers, saved with the distiller. It supports one replica only. The usual weight is 0.8.

    Formula: ``losses.contrastive_noise`` of the student's embeddings against the teacher's memory plus the reverse;
    then memory_i = unit(momentum * memory_i + (1 - momentum) * embedding_i) on both sides.

    Args:
        num_examples: >= 1, size of the training set; indices are below it.
        teacher_layer_name: the teacher's tap, usually the penultimate vector.
        student_layer_name: the student's tap.
        units: >= 1, width of the embeddings.
        num_negatives: >= 1, drawn anew in each step for each example; the paper's 16384 need memory for batch * 16384 *
            units numbers.
        contrast_temperature: > 0.
        momentum: 0 to 1, share of an example's old embedding that is kept.
        seed: seed of the negatives and of the initial memories.
        name: shown in logs and error messages.
        **kwargs: as for ``keras.layers.Layer``.

    Raises:
        ValueError: if a number is out of bounds, the teacher gives no index, or a layer is unknown.

    Example:
        >>> term = ContrastiveMemory(50_000, "pooled", "pooled")
        >>> term.teacher_taps
        ['pooled', ':index']

    Reference:
        Tian, Krishnan, Isola, "Contrastive Representation Distillation", ICLR 2020, arXiv:1910.10699.
        Differs: negatives are drawn from all other examples, including those of the same class. ``evaluate`` writes
        nothing and always uses the same negatives; unseen data have no index, so compile with
        ``evaluate_distillation=False``.
    """

    needs_shapes = True

    def __init__(
        self,
        num_examples: int,
        teacher_layer_name: str,
        student_layer_name: str,
        units: int = 128,
        num_negatives: int = 1024,
        contrast_temperature: float = 0.07,
        momentum: float = 0.5,
        seed: int = 0,
        name: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(name=name, **kwargs)
        owner = type(self).__name__
        for side, layer in (("teacher", teacher_layer_name), ("student", student_layer_name)):
            if not isinstance(layer, str):
                raise error(owner, f"{side}_layer_name to be the name of one layer", layer)
        self.num_examples = integer(owner, "num_examples", num_examples, low=2)
        self.num_negatives = integer(owner, "num_negatives", num_negatives, low=1)
        self.contrast_temperature = number(owner, "contrast_temperature", contrast_temperature, above=0.0)
        self.teacher_layer_name = [teacher_layer_name, teachers.Indexed.index_name]
        self.student_layer_name = student_layer_name
        self.seed = integer(owner, "seed", seed, low=0)
        self.embed_teacher, self.embed_student = (adapters.Embedding(units) for _ in "ts")
        self.memory_of_teacher, self.memory_of_student = (
            adapters.MemoryBank(self.num_examples, units, momentum=momentum, seed=self.seed + side) for side in (0, 1)
        )
        self._negatives = keras.random.SeedGenerator(self.seed)

    def validate_model_compatibility(self, teacher: Any, student: keras.Model) -> None:
        """Raise ``ValueError`` if the teacher gives no index or the student's layer does not exist."""
        if not isinstance(teacher, teachers.Indexed):
            got = type(teacher).__name__
            raise error(type(self).__name__, "a teacher that gives indices", got, "Give teachers.Indexed(teacher)")
        taps.Taps(student, self.student_taps, owner=f"{type(self).__name__} (student)")

    def validate_outputs(self, teacher_outputs: Structure, student_outputs: Structure) -> None:
        """Accept everything: any two shapes can be embedded."""

    def build_from(self, teacher_outputs: Structure, student_outputs: Structure) -> None:
        """Create the embeddings from the sizes of the layers."""
        self._build_shapes(tuple(teacher_outputs[0].shape), tuple(student_outputs.shape))

    def _build_shapes(self, teacher_shape: tuple, student_shape: tuple) -> None:
        self.embed_teacher.build(teacher_shape)
        self.embed_student.build(student_shape)
        object.__setattr__(self, "_shapes", (teacher_shape, student_shape))
        self.built = True

    def get_build_config(self) -> dict[str, Any] | None:
        """Return the sizes from which the embeddings are rebuilt."""
        return {"shapes": [[None, *shape[1:]] for shape in self._shapes]} if self.built else None

    def build_from_config(self, config: dict[str, Any]) -> None:
        """Make the embeddings."""
        self._build_shapes(*(tuple(shape) for shape in config["shapes"]))

    def _candidates(self, index: Any, training: bool) -> Any:
        """Return (batch, 1 + num_negatives) indices: each example's own, then others."""
        shape = (ops.shape(index)[0], self.num_negatives)
        seed = self._negatives if training else self.seed
        drawn = keras.random.randint(shape, 0, self.num_examples - 1, dtype="int32", seed=seed)
        others = drawn + ops.cast(drawn >= index[:, None], "int32")  # uniform over all other examples
        return ops.concatenate([index[:, None], others], axis=1)

    def values(
        self,
        teacher_outputs: Structure,
        student_outputs: Structure,
        *,
        labels: Structure = None,
        mask: Tensor = None,
        training: bool = True,
    ) -> Any:
        """Return the loss of each example, (batch,), and update the memories if training."""
        features, index = teacher_outputs
        teacher, student = self.embed_teacher(ops.stop_gradient(features)), self.embed_student(student_outputs)
        candidates = self._candidates(index, training)
        total = 0.0
        for anchors, own, other in (
            (student, self.memory_of_student, self.memory_of_teacher),
            (teacher, self.memory_of_teacher, self.memory_of_student),
        ):
            remembered = other.candidates(candidates)
            scores = ops.einsum("bd,bkd->bk", anchors, remembered) / self.contrast_temperature
            total = total + losses.contrastive_noise(
                anchors=anchors,
                candidates=remembered,
                num_examples=self.num_examples,
                normalizer=own.normalizer(scores, training=training),
                contrast_temperature=self.contrast_temperature,
            )
        if training:
            self.memory_of_student.update(student, index)
            self.memory_of_teacher.update(teacher, index)
        return total

    def get_config(self) -> dict[str, Any]:
        """Return what ``from_config`` needs to rebuild this term."""
        return {
            **super().get_config(),
            "num_examples": self.num_examples,
            "teacher_layer_name": self.teacher_layer_name[0],
            "student_layer_name": self.student_layer_name,
            "units": self.embed_student.units,
            "num_negatives": self.num_negatives,
            "contrast_temperature": self.contrast_temperature,
            "momentum": self.memory_of_student.momentum,
            "seed": self.seed,
        }
