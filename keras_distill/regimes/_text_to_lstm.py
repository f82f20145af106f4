"""A recipe that distils a text transformer's logits into a bidirectional LSTM."""

from __future__ import annotations

import keras

from keras_distill import losses
from keras_distill._checks import error, integer
from keras_distill.distiller import Distiller
from keras_distill.terms import LogitsDistillation


def bert_to_bilstm(
    teacher: keras.Model,
    *,
    vocabulary_size: int,
    num_classes: int,
    embedding_width: int = 100,
    width: int = 100,
    student_loss_weight: float = 0.0,
) -> Distiller:
    """Return a distiller from a transformer's logits to one bidirectional LSTM (BERT to BiLSTM).

    Choose it for a student with a small fraction of the latency. Train it on augmented or unlabelled text, because the
    labelled texts alone are too few. The student takes the teacher's inputs but reads only ``token_ids``; id 0 is
    padding.

    Formula: mean squared difference of logits, and a share of the labels' cross-entropy.

    Args:
        teacher: a trained classifier with an input ``token_ids``.
        vocabulary_size: >= 2, ids of tokens.
        num_classes: >= 2.
        embedding_width: >= 1.
        width: >= 1, units in each direction.
        student_loss_weight: 0 to 1, share of the labels.

    Returns:
        A ``Distiller``, not compiled; ``distiller.student`` is the BiLSTM.

    Raises:
        ValueError: if the teacher has no such input, or a number is out of bounds.

    Example:
        >>> ids = keras.Input((6,), dtype="int32", name="token_ids")
        >>> words = keras.layers.Embedding(20, 4)(ids)
        >>> teacher = keras.Model({"token_ids": ids}, keras.layers.Dense(2)(keras.layers.Flatten()(words)))
        >>> bert_to_bilstm(teacher, vocabulary_size=20, num_classes=2, width=8).student.output_shape
        (None, 2)

    Reference:
        Tang et al., "Distilling Task-Specific Knowledge from BERT into Simple Neural Networks", 2019, arXiv:1903.12136.
        Differs: nothing.
    """
    owner = "bert_to_bilstm"
    structure = getattr(teacher, "_inputs_struct", None)
    inputs = structure if isinstance(structure, dict) else {}
    if "token_ids" not in inputs:
        raise error(owner, "a teacher with a dictionary of inputs that has 'token_ids'", f"{sorted(inputs)}")
    own = {name: keras.Input(each.shape[1:], dtype=each.dtype, name=name) for name, each in inputs.items()}
    sizes = {"vocabulary_size": vocabulary_size, "num_classes": num_classes}
    for name, value in sizes.items():
        integer(owner, name, value, low=2)
    words = keras.layers.Embedding(vocabulary_size, embedding_width, mask_zero=True)(own["token_ids"])
    states = keras.layers.Bidirectional(keras.layers.LSTM(width))(words)
    hidden = keras.layers.Dense(width, activation="relu")(states)
    student = keras.Model(own, keras.layers.Dense(num_classes)(hidden), name="bilstm")
    return Distiller(
        teacher,
        student,
        LogitsDistillation(temperature=1.0, loss=losses.LogitMatching()),
        student_loss_weight=student_loss_weight,
    )
