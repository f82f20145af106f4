"""Teachers from other runtimes: SavedModel, ONNX, LiteRT, and any function of arrays. See ``from_callable``."""

from keras_distill.teachers.foreign._open import from_callable, from_litert, from_onnx, from_saved_model
from keras_distill.teachers.foreign._teacher import Foreign

__all__ = ["Foreign", "from_callable", "from_litert", "from_onnx", "from_saved_model"]
