"""Recipes that distil text transformers into smaller ones: DistilBERT, TinyBERT, MiniLM, as ready distillers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import keras

from keras_distill import adapters, losses
from keras_distill._checks import integer
from keras_distill.distiller import Distiller
from keras_distill.terms import FeatureDistillation, LogitsDistillation

BLOCK = "backbone/transformer_layer_{}"
EMBEDDINGS = "backbone/embeddings_dropout"
MASK = "backbone/transformer_layer_0:padding_mask"


def every_other(teacher_blocks: int, student_blocks: int) -> list[int]:
    """Return for each student block the last teacher block of the part that it replaces.

    Args:
        teacher_blocks: >= student_blocks, number of the teacher's blocks.
        student_blocks: >= 1, number of the student's blocks.

    Returns:
        Numbers from 0, the last one the teacher's last.

    Example:
        >>> every_other(12, 4)
        [2, 5, 8, 11]
    """
    count = integer("every_other", "student_blocks", student_blocks, low=1)
    total = integer("every_other", "teacher_blocks", teacher_blocks, low=count)
    return [(index + 1) * total // count - 1 for index in range(count)]


def distilbert(
    teacher: keras.Model,
    student: keras.Model,
    *,
    teacher_blocks: int,
    student_blocks: int,
    temperature: float = 2.0,
    ignored_label: int = -1,
    block: str = BLOCK,
    mask: str | None = MASK,
) -> Distiller:
    """Return a distiller of masked language models by soft targets, labels and hidden-state direction (DistilBERT).

    Start the student from every other block of the teacher, ``students.from_teacher(teacher, depth=0.5).model``: this
    is the most important part of the recipe. Train on ``data.mask_tokens``; both models give logits (batch, tokens,
    vocabulary). ``compile`` it with ``SparseCategoricalCrossentropy(from_logits=True, ignore_class=-1)``.

    Formula: (5 * temperature**2 * KL + 2 * masked_language_model + 1 * mean(1 - cos(last hidden states))) / 8, the
    first two over chosen tokens, the third over tokens that are not padding.

    Args:
        teacher: a trained masked language model.
        student: a smaller one, with hidden states of the same width.
        teacher_blocks: number of the teacher's transformer blocks.
        student_blocks: number of the student's blocks.
        temperature: > 0, no unit.
        ignored_label: label of tokens that were not chosen.
        block: path of a block with ``{}`` for its number, from 0.
        mask: tap that is true at tokens; None uses Keras' own masks.

    Returns:
        A ``Distiller``, not compiled.

    Raises:
        ValueError: if a layer does not exist or a number is out of bounds.

    Example:
        >>> callable(distilbert)  # see the guide "BERT to a small model"
        True

    Reference:
        Sanh, Debut, Chaumond, Wolf, "DistilBERT, a distilled version of BERT", 2019, arXiv:1910.01108, sections 2, 3.
        Differs: divided by the sum of the weights, which the learning rate can compensate.
    """
    last = [block.format(integer("distilbert", "blocks", n, low=1) - 1) for n in (teacher_blocks, student_blocks)]
    terms = [
        LogitsDistillation(temperature=temperature, ignore_label=ignored_label, name="soft_masked_tokens"),
        FeatureDistillation(
            losses.HiddenStates("cosine"), last[0], last[1], mask_layer_name=mask, name="hidden_direction"
        ),
    ]
    # Shares of 8: the labels have 2, and of the other 6 the soft targets 5 and the hidden states 1.
    return Distiller(teacher, student, terms, [5.0 / 6.0, 1.0 / 6.0], student_loss_weight=2.0 / 8.0)


class TinyBert(NamedTuple):
    """The two stages of TinyBERT on one pair of models.

    Attributes:
        intermediate: distils hidden states and attention, without labels, first on general text, then on the task's.
        prediction: distils the task's logits by soft cross-entropy at temperature 1.
    """

    intermediate: Distiller
    prediction: Distiller


def tinybert(
    teacher: keras.Model,
    student: keras.Model,
    *,
    teacher_blocks: int,
    student_blocks: int,
    block: str = BLOCK,
    embeddings: str = EMBEDDINGS,
    mask: str | None = MASK,
) -> TinyBert:
    """Return the two stages that teach a narrow student its teacher's layers, then its answers (TinyBERT).

    Choose it when the student is narrower than its teacher, so that no weights can be copied. Fit ``intermediate`` on
    unlabelled general text with the pre-trained teacher; then rebuild the stages with the fine-tuned teacher, and fit
    ``intermediate`` and then ``prediction`` on the task's texts and those of ``data.augment_tokens``. Both models must
    have the same number of attention heads.

    Formula: sum over blocks of MSE(attention scores) + MSE(hidden states behind a linear map), and MSE of embeddings;
    then cross-entropy to the teacher's distribution.

    Args:
        teacher: a trained model.
        student: a smaller one; its weights are trained in place, by both stages.
        teacher_blocks: number of the teacher's transformer blocks.
        student_blocks: number of the student's blocks; block i learns from the last of its part, see ``every_other``.
        block: path of a block with ``{}`` for its number, from 0.
        embeddings: path of the embeddings.
        mask: tap that is true at tokens; None uses Keras' own masks.

    Returns:
        The two distillers, not compiled; neither needs labels.

    Raises:
        ValueError: if a layer does not exist, or a number is out of bounds.

    Example:
        >>> callable(tinybert)  # see the guide "BERT to a small model"
        True

    Reference:
        Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", 2020, arXiv:1909.10351, eq. 5-11.
        Differs: nothing.
    """
    pairs = list(enumerate(every_other(teacher_blocks, student_blocks)))
    layers = [(embeddings, embeddings), *((block.format(t), block.format(s)) for s, t in pairs)]
    terms = [
        FeatureDistillation(losses.HiddenStates(), *names, adapter="auto", mask_layer_name=mask) for names in layers
    ]
    for s, t in pairs:
        sides = [_parts(block.format(index), ("query", "key")) for index in (t, s)]
        scores = {"adapter": adapters.AttentionScores(), "teacher_adapter": adapters.AttentionScores()}
        terms.append(_feature_term(losses.AttentionMaps(), sides[0], sides[1], mask, **scores))
    soft = LogitsDistillation(temperature=1.0, loss="categorical_crossentropy")
    return TinyBert(
        Distiller(teacher, student, terms, student_loss_weight=0.0, name="tinybert_intermediate"),
        Distiller(teacher, student, [soft], student_loss_weight=0.0, name="tinybert_prediction"),
    )


def minilm(
    teacher: keras.Model,
    student: keras.Model,
    *,
    teacher_blocks: int,
    student_blocks: int,
    num_relation_heads: int = 12,
    block: str = BLOCK,
    mask: str | None = MASK,
) -> Distiller:
    """Return a distiller of the last block's self-attention relations (MiniLM, version 2).

    Choose it when widths and heads differ and no layer mapping is wanted; it needs neither labels nor copied weights.

    Args:
        teacher: a trained model.
        student: a smaller one.
        teacher_blocks: number of the teacher's transformer blocks.
        student_blocks: number of the student's blocks.
        num_relation_heads: >= 1, a divisor of both widths.
        block: path of a block with ``{}`` for its number, from 0.
        mask: tap that is true at tokens; None uses Keras' own masks.

    Returns:
        A ``Distiller``, not compiled.

    Raises:
        ValueError: if a layer does not exist, or a number is out of bounds.

    Example:
        >>> callable(minilm)  # see the guide "BERT to a small model"
        True

    Reference:
        Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation", 2021, arXiv:2012.15828, eq. 5 to 7.
        Differs: nothing.
    """
    counts = [integer("minilm", "blocks", count, low=1) - 1 for count in (teacher_blocks, student_blocks)]
    sides = [_parts(block.format(index), ("query", "key", "value")) for index in counts]
    term = _feature_term(losses.SelfAttentionRelation(num_relation_heads), sides[0], sides[1], mask)
    return Distiller(teacher, student, [term], student_loss_weight=0.0)


def _feature_term(loss: Any, teacher: list[str], student: list[str], mask: str | None, **more: Any) -> Any:
    return FeatureDistillation(loss, teacher, student, mask_layer_name=mask, **more)  # type: ignore[arg-type]


def _parts(block: str, parts: Sequence[str]) -> list[str]:
    return [f"{block}/self_attention_layer/{part}" for part in parts]
