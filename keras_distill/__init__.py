"""Knowledge distillation for Keras 3 on TensorFlow: correct, calibrated, served."""

import importlib
import pkgutil
from typing import Any

from keras_distill.distiller import Distiller
from keras_distill.terms import DistillationLoss, FeatureDistillation, LogitsDistillation
from keras_distill.training import NonFiniteLossError

__version__ = "0.1.0"

__all__ = ["DistillationLoss", "Distiller", "FeatureDistillation", "LogitsDistillation", "NonFiniteLossError"]


def _rooms() -> list[str]:
    return [room.name for room in pkgutil.iter_modules(__path__) if not room.name.startswith("_")]


def __getattr__(name: str) -> Any:
    """Import a room when it is first touched: ``keras_distill.export`` needs no import of its own."""
    if name.startswith("_") or name not in _rooms():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(f"{__name__}.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_rooms()})
