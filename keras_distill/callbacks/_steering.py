"""The numbers of a distiller that callbacks control, by their names in the logs."""

from __future__ import annotations

import sys
from typing import Any

import keras

from keras_distill._checks import error, nearest
from keras_distill.settings import Setting
from keras_distill.terms import DistillationLoss
from keras_distill.training import Trainer


def as_distiller(owner: str, model: Any) -> Trainer:
    """Return ``model`` if it has numbers to control, else raise."""
    if not isinstance(model, Trainer):
        raise error(owner, "to be passed to the fit of a keras_distill.Distiller", type(model).__name__)
    return model


def find_term(owner: str, distiller: Trainer, term: Any) -> int:
    """Return the index of a term given by index, by name or as the object itself."""
    terms = list(distiller.distillation_losses)
    names = [getattr(each, "name", type(each).__name__) for each in terms]
    if isinstance(term, str):
        if names.count(term) != 1:
            advice = "Give the index or the term itself" if term in names else f"Nearest: {nearest(term, names)}"
            raise error(owner, "term to name one of the distiller's terms", repr(term), advice)
        return names.index(term)
    if isinstance(term, int) and not isinstance(term, bool):
        if not 0 <= term < len(terms):
            raise error(owner, f"term to be an index from 0 to {len(terms) - 1}", term)
        return term
    for index, each in enumerate(terms):
        if each is term:
            return index
    raise error(owner, "term to be one of the distiller's terms: its index, its name or itself", term)


def temperatures(owner: str, distiller: Trainer, term: Any = None) -> dict[str, Setting]:
    """Return the temperatures of one term, or of all, by log name: plain "temperature" where there is only one."""
    every = {id(each) for each in _temperatures_of(distiller.distillation_losses)}
    chosen = distiller.distillation_losses
    if term is not None:
        chosen = [chosen[find_term(owner, distiller, term)]]
    wanted = {id(each) for each in _temperatures_of(chosen)}
    found = {name: setting for name, setting in distiller.settings.items() if id(setting) in wanted}
    if not found:
        which = "a term" if term is None else f"term {term!r}"
        raise error(owner, f"{which} with a temperature to control", "none", "LogitsDistillation has one")
    return {"temperature": next(iter(found.values()))} if len(every) == 1 else found


def _temperatures_of(terms: Any) -> list[Setting]:
    own = [term for term in terms if isinstance(term, DistillationLoss)]
    return [setting for term in own for name, setting in term.settings.items() if name.startswith("temperature")]


def distillation_weights(owner: str, distiller: Trainer, term: Any = None) -> dict[str, Setting]:
    """Return the weight of one term, or of all, by log name."""
    settings = distiller.settings
    found = {name: settings[name] for name in settings if name.startswith("distillation_loss_weight")}
    if not found:
        raise error(owner, "a model with a distillation_loss_weight to control", ", ".join(settings) or "none")
    if term is None:
        return found
    name = list(found)[find_term(owner, distiller, term)]
    return {name: found[name]}


def student_weight(distiller: Trainer) -> dict[str, Setting]:
    """Return the share of the supervised loss, by log name."""
    return {"student_loss_weight": distiller.settings["student_loss_weight"]}


def plain(value: Any) -> Any:
    """Return a scalar array or tensor as a Python number, anything else unchanged."""
    if keras.ops.is_tensor(value) or hasattr(value, "dtype"):
        array = keras.ops.convert_to_numpy(value)
        return array.item() if array.size == 1 else array
    return value


def say(text: str) -> None:
    """Print a line for ``verbose=1``."""
    sys.stdout.write(f"\n{text}\n")
