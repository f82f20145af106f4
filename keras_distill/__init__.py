"""Knowledge distillation for Keras 3 on TensorFlow: correct, calibrated, served."""

import importlib
import os
import pkgutil
import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

__all__ = ["DistillationLoss", "Distiller", "FeatureDistillation", "LogitsDistillation", "NonFiniteLossError"]

_HOMES = {
    "DistillationLoss": "terms",
    "Distiller": "distiller",
    "FeatureDistillation": "terms",
    "LogitsDistillation": "terms",
    "NonFiniteLossError": "training",
}


def _is_command() -> bool:
    """Return whether this process is the command ``keras-distill``, which imports Keras only where it needs it."""
    started = getattr(sys, "orig_argv", [])
    module = started[started.index("-m") + 1 :][:1] if "-m" in started else []
    return module == [__name__] or os.path.basename(next(iter(sys.argv), "")) in ("keras-distill", "keras-distill.exe")


# Imported eagerly, so that importing the package registers with Keras everything that a saved distiller needs.
if TYPE_CHECKING or not _is_command():
    from keras_distill.distiller import Distiller
    from keras_distill.terms import DistillationLoss, FeatureDistillation, LogitsDistillation
    from keras_distill.training import NonFiniteLossError


def _rooms() -> list[str]:
    return [room.name for room in pkgutil.iter_modules(__path__) if not room.name.startswith("_")]


def __getattr__(name: str) -> Any:
    """Import a subpackage on first access, so that ``keras_distill.export`` needs no import of its own."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name.startswith("_") or name not in _rooms():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_rooms()})
