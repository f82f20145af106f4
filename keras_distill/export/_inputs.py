"""A student's inputs: named specs, example inputs, batches; the same for every export format."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from keras_distill._checks import error

#: Length of an unknown dimension in generated inputs.
UNKNOWN_LENGTH = 32
_NUMBERED = re.compile(r"^(input_layer|keras_tensor)_\d+$")
_DENSE = "Let the student take texts (TextVectorization inside), or pad to a length and mask: a request is dense arrays"


@dataclass(frozen=True)
class Inputs:
    """The inputs of a student: its structure, and one name and spec per leaf.

    Args:
        structure: the student's input structure, with an int per leaf (its position).
        names: the unique name of each leaf, as in the served signature.
        specs: ``keras.InputSpec`` of each leaf; the batch dimension is None.
    """

    structure: Any
    names: tuple[str, ...]
    specs: tuple[keras.InputSpec, ...]

    def pack(self, leaves: Any) -> Any:
        """Put flat ``leaves`` into the student's input structure.

        Args:
            leaves: one value per name, in order.

        Returns:
            The structure to call the student with.
        """
        return keras.tree.pack_sequence_as(self.structure, list(leaves))

    def flatten(self, owner: str, inputs: Any, argument: str = "check_inputs") -> list[np.ndarray]:
        """Convert inputs, as the student takes them, to one array per name, with the dtype of its spec.

        Args:
            owner: name shown in the error message.
            inputs: array, or structure of arrays, or dictionary by input name.
            argument: the argument's name.

        Returns:
            Arrays in the order of ``names``.

        Raises:
            ValueError: if the number of leaves, a rank or a dimension does not fit, or there are no examples.
        """
        if isinstance(inputs, dict) and set(inputs) == set(self.names):
            leaves = [inputs[name] for name in self.names]
        elif keras.tree.is_nested(self.structure) or (isinstance(inputs, dict) and len(inputs) == 1):
            leaves = keras.tree.flatten(inputs)
        else:
            leaves = [inputs]
        if len(leaves) != len(self.names):
            raise error(owner, f"{argument} with {len(self.names)} arrays ({', '.join(self.names)})", len(leaves))
        out = []
        for name, spec, leaf in zip(self.names, self.specs, leaves, strict=True):
            if hasattr(leaf, "dense_shape") or hasattr(leaf, "row_splits"):
                raise error(owner, f"{argument} as dense arrays for input '{name}'", type(leaf).__name__, _DENSE)
            try:
                array = _as_array(leaf, spec.dtype)
            except (TypeError, ValueError) as problem:
                got = f"{type(leaf).__name__} ({problem})"
                raise error(owner, f"{argument} of {spec.dtype} for input '{name}'", got) from problem
            fits = array.ndim == len(spec.shape) and all(
                s is None or s == d for s, d in zip(spec.shape, array.shape, strict=False)
            )
            if not fits or not len(array):
                raise error(owner, f"{argument} of shape {tuple(spec.shape)} for input '{name}'", array.shape)
            out.append(array)
        if len({len(array) for array in out}) != 1:
            raise error(owner, f"{argument} with equally many examples each", [len(array) for array in out])
        return out

    def random(self, count: int = 8, seed: int = 0) -> list[np.ndarray]:
        """Generate inputs that fit the specs: normal floats, 0 or 1 for integers, short texts for strings.

        Args:
            count: number of examples.
            seed: seed of the generator.

        Returns:
            Arrays in the order of ``names``.
        """
        rng = np.random.default_rng(seed)
        out = []
        for spec in self.specs:
            shape = (count, *(UNKNOWN_LENGTH if d is None else d for d in spec.shape[1:]))
            if spec.dtype == "string":
                texts = np.array(["one", "two words", "na\u00efve caf\u00e9"], dtype=object)
                out.append(texts[rng.integers(0, len(texts), shape)])
            elif "float" in spec.dtype:
                out.append(_as_array(rng.normal(size=shape), spec.dtype))
            else:
                out.append(_as_array(rng.integers(0, 2, shape), spec.dtype))
        return out


def _as_array(leaf: Any, dtype: str) -> np.ndarray:
    if dtype == "string":
        leaf = leaf.numpy() if hasattr(leaf, "numpy") else leaf
        return np.asarray(leaf, dtype=object)
    array = keras.ops.convert_to_numpy(leaf) if keras.ops.is_tensor(leaf) else np.asarray(leaf)
    return array.astype(keras.backend.standardize_dtype(dtype)) if str(array.dtype) != dtype else array


def batches(arrays: list[np.ndarray], size: int) -> Iterator[list[np.ndarray]]:
    """Yield consecutive slices of ``arrays`` of at most ``size`` examples.

    Args:
        arrays: equally long arrays.
        size: largest number of examples per slice.

    Yields:
        Lists of arrays.
    """
    for start in range(0, len(arrays[0]), size):
        yield [array[start : start + size] for array in arrays]


def describe_inputs(owner: str, student: keras.Model, input_signature: Any, check_inputs: Any) -> Inputs:
    """Find names, shapes and dtypes of the student's inputs; only the batch dimension becomes unknown.

    Args:
        owner: name shown in the error message.
        student: a built model.
        input_signature: structure of ``keras.InputSpec`` that overrides the model's, or None.
        check_inputs: example inputs, used if the model does not know its inputs (subclassed models), or None.

    Returns:
        The description.

    Raises:
        ValueError: if neither the model nor the arguments define the inputs.
    """
    source = input_signature
    if source is None:
        try:
            source = student.inputs[0] if isinstance(student, keras.Sequential) else student.input
        except (AttributeError, ValueError, TypeError):
            source = None
    if source is None and check_inputs is not None:
        source = keras.tree.map_structure(_spec_of_example, check_inputs)
    if source is None:
        raise error(
            owner,
            "check_inputs or input_signature for a model that does not know its input shape",
            f"neither for '{student.name}'",
            "Pass check_inputs=<a batch of real inputs>",
        )
    leaves = keras.tree.flatten_with_path(source)
    names: list[str] = []
    specs = []
    for path, leaf in leaves:
        name = _leaf_name(path, leaf)
        kind = next((kind for kind in ("ragged", "sparse") if getattr(leaf, kind, False)), None)
        if kind is not None:
            raise error(owner, "a student with dense inputs", f"the {kind} input '{name}' of '{student.name}'", _DENSE)
        # Keras numbers the inputs within a process; an identical model built later must be served under the same name.
        name = _NUMBERED.sub(r"\1", name)
        candidates = [name, *(f"{name}_{count}" for count in range(1, len(leaves) + 1))]
        name = next(each for each in candidates if each not in names)
        names.append(name)
        specs.append(keras.InputSpec(shape=(None, *leaf.shape[1:]), dtype=str(leaf.dtype), name=name))
    structure = keras.tree.pack_sequence_as(source, list(range(len(leaves))))
    return Inputs(structure, tuple(names), tuple(specs))


def _spec_of_example(leaf: Any) -> Any:
    if hasattr(leaf, "dense_shape") or hasattr(leaf, "row_splits"):
        return keras.KerasTensor((None,), ragged=hasattr(leaf, "row_splits"), sparse=hasattr(leaf, "dense_shape"))
    array = np.asarray(leaf)
    dtype = str(array.dtype) if array.dtype.kind in "fiub" else "string"
    dtype = {"float64": "float32"}.get(dtype, dtype)
    return keras.InputSpec(shape=(None, *array.shape[1:]), dtype=dtype)


def _leaf_name(path: tuple[Any, ...], leaf: Any) -> str:
    keys = [part for part in path if isinstance(part, str)]
    name = "_".join(keys) or getattr(leaf, "name", None) or "_".join(["inputs", *map(str, path)])
    name = re.sub(r"\W", "_", name, flags=re.ASCII)
    return name if not name[0].isdigit() else f"input_{name}"
