"""A tagger with a CRF as a teacher of taggers without one, through its marginals."""

from __future__ import annotations

import keras

from keras_distill import adapters
from keras_distill._checks import error


def crf_marginals(model: keras.Model) -> keras.Model:
    """Return a model that gives the log-marginals of a CRF tagger, token by token, as logits (CRF teacher).

    A student with a softmax per token learns from them by ``LogitsDistillation``: its soft targets carry the CRF's
    knowledge of neighbouring tags, at no inference cost. The weights are shared with ``model``.

    Args:
        model: a trained model that ends in ``adapters.LinearChainCrf``.

    Returns:
        A model with the same inputs; (batch, tokens, tags), with the mask of the potentials passed on.

    Raises:
        ValueError: if the model does not give potentials (batch, tokens, tags, tags).

    Example:
        >>> scores = keras.Input((6, 3))
        >>> tagger = keras.Model(scores, adapters.LinearChainCrf(3)(scores))
        >>> crf_marginals(tagger).output_shape
        (None, 6, 3)

    Reference:
        Wang et al., "Structure-Level Knowledge Distillation For Multilingual Sequence Labeling", ACL 2020,
        arXiv:2004.03846, section 4.2 (posterior distillation). Differs: nothing.
    """
    shapes = [tuple(each.shape) for each in getattr(model, "outputs", None) or []]
    if len(shapes) != 1 or len(shapes[0]) != 4 or shapes[0][2] != shapes[0][3]:
        advice = "End the model in adapters.LinearChainCrf"
        raise error("crf_marginals", "a model that gives potentials (batch, tokens, tags, tags)", f"{shapes}", advice)
    return keras.Model(model.inputs, adapters.CrfMarginals(name="marginals")(model.output))
