"""A copy of a model with the same weights, for the snapshot of a student and for the average of several models."""

from __future__ import annotations

import keras

from keras_distill._checks import error


def copied(owner: str, model: keras.Model) -> keras.Model:
    """Return a copy of a model, with its weights.

    Args:
        owner: name shown in the error message.
        model: a built model. A model of keras-hub is made from its own configuration, which ties its output to its
            embedding again; ``keras.models.clone_model`` would give it a second table.

    Returns:
        A built model.

    Raises:
        ValueError: if a copy has other weights, as of a plain model with an embedding tied to its output.
    """
    of_a_task = type(model).__module__.startswith("keras_hub.")
    copy = type(model).from_config(model.get_config()) if of_a_task else keras.models.clone_model(model)
    if not copy.built:
        copy.build(model.input_shape)
    if [weight.shape for weight in copy.weights] != [weight.shape for weight in model.weights]:
        got = f"{model.name!r}, whose copy has {len(copy.weights)} weights instead of {len(model.weights)}"
        advice = "A layer that another layer also holds cannot be copied; give the model a class with a get_config"
        raise error(owner, "a model that keras.models.clone_model can copy", got, advice)
    copy.set_weights(model.get_weights())
    return copy
