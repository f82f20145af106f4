"""Argument checks, and the one error sentence of the package: owner, expected, got, what to do."""

from __future__ import annotations

import contextlib
import difflib
import math
import numbers
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import Any

import numpy as np


def error(owner: str, expected: str, got: Any, advice: str = "") -> ValueError:
    """Build the package's error: ``Owner: expected <expected>, got <got>. <advice>``.

    Args:
        owner: the class or function, named in the message.
        expected: what was expected of which argument.
        got: what was received; shown with ``str`` if it is text, else with ``repr``.
        advice: what to do, one sentence without a full stop at its end; may be empty.

    Returns:
        A ``ValueError`` for the caller to raise.
    """
    shown = got if isinstance(got, str) else repr(got)
    tail = f" {advice}." if advice else ""
    return ValueError(f"{owner}: expected {expected}, got {shown}.{tail}")


class MissingPackageError(ValueError, ImportError):
    """An optional package is not installed: the package's error, which is an ``ImportError`` as well."""


@contextlib.contextmanager
def optional(owner: str, package: str, extra: str, *, otherwise: str = "") -> Iterator[None]:
    """Import an optional package in the body, or raise the error that names the extra that installs it.

    A context and not an import by name, so that import contracts and type checkers see the import.

    Args:
        owner: name shown in the error message.
        package: the package's name on PyPI.
        extra: the extra of this package that asks for it.
        otherwise: what to do instead of installing it, without a full stop at its end; may be empty.

    Yields:
        Nothing; the body holds the import statements.

    Raises:
        MissingPackageError: if the import fails.
    """
    try:
        yield
    except ImportError as problem:
        advice = f"Run: pip install 'keras-distill[{extra}]'" + (f", or {otherwise}" if otherwise else "")
        sentence = error(owner, f"{package} to be installed", str(problem), advice)
        raise MissingPackageError(*sentence.args) from problem


def number(
    owner: str,
    name: str,
    value: Any,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    advice: str = "",
) -> float:
    """Return ``value`` as a finite float within the bounds, or raise the error that names them.

    Args:
        owner: name shown in the error message.
        name: the argument's name.
        value: a real number (bool and NaN are refused).
        low: least value allowed, inclusive.
        high: greatest value allowed, inclusive.
        above: value that must be exceeded, exclusive.
        advice: what to do about it.

    Returns:
        The number as a Python float.

    Raises:
        ValueError: if ``value`` is not a real number, is not finite or lies outside the bounds.
    """
    bounds = []
    if above is not None:
        bounds.append(f"> {above:g}")
    if low is not None:
        bounds.append(f">= {low:g}")
    if high is not None:
        bounds.append(f"<= {high:g}")
    expected = f"{name} {' and '.join(bounds)}" if bounds else f"{name} to be a finite number"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise error(owner, expected, value, advice)
    out = float(value)
    bad = (
        not math.isfinite(out)
        or (above is not None and out <= above)
        or (low is not None and out < low)
        or (high is not None and out > high)
    )
    if bad:
        raise error(owner, expected, out, advice)
    return out


def integer(owner: str, name: str, value: Any, *, low: int, advice: str = "") -> int:
    """Return ``value`` as an int of at least ``low``, or raise the error that says so.

    Args:
        owner: name shown in the error message.
        name: the argument's name.
        value: an integer (bool is refused).
        low: least value allowed, inclusive.
        advice: what to do about it.

    Returns:
        The number as a Python int.

    Raises:
        ValueError: if ``value`` is not an integer or is below ``low``.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < low:
        raise error(owner, f"{name} to be an integer >= {low}", value, advice)
    return int(value)


def choice(owner: str, name: str, value: Any, options: Iterable[Any]) -> Any:
    """Return ``value`` if it is one of ``options``, else raise the error that lists them.

    Args:
        owner: name shown in the error message.
        name: the argument's name.
        value: what the user gave.
        options: what is allowed.

    Returns:
        ``value``.

    Raises:
        ValueError: if ``value`` is not among ``options``.
    """
    known = list(options)
    # An array compares element by element.
    if getattr(value, "shape", ()) != () or value not in known:
        raise error(owner, f"{name} to be one of {', '.join(map(repr, known))}", value)
    return value


def nearest(name: str, known: Iterable[str], count: int = 5) -> str:
    """Return the known names closest to ``name`` as a readable list for an error message.

    Args:
        name: what the user typed.
        known: every name that exists.
        count: how many names to show at most.

    Returns:
        ``"'a', 'b'"``, or ``"none"`` when nothing is known.
    """
    names = list(known)
    lower = {n.lower(): n for n in names}
    close = difflib.get_close_matches(name.lower(), list(lower), n=count, cutoff=0.3)
    picked = [lower[c] for c in close] or names[:count]
    return ", ".join(repr(p) for p in picked) or "none"


def tensor(owner: str, value: Any, convert: Callable[[Any], Any]) -> Any:
    """Return ``convert(value)``, or raise the error that says which numbers were expected.

    Args:
        owner: name shown in the error message.
        value: an array, a tensor, a variable, or nested lists of numbers.
        convert: makes a tensor, such as ``keras.ops.convert_to_tensor``.

    Returns:
        The tensor.

    Raises:
        ValueError: if ``value`` is None, text, a mapping, or rows of different length.
    """
    kind = type(value).__name__
    if value is None or isinstance(value, (str, bytes, Mapping, Set)):
        raise error(owner, "an array or a tensor of numbers", kind)
    try:
        found = convert(value)
    except (TypeError, ValueError) as problem:
        raise error(owner, "an array or a tensor of numbers", kind, "Rows must have one length") from problem
    if "string" in str(found.dtype):
        raise error(owner, "an array or a tensor of numbers", "text", "Use class ids: numbers from 0 on")
    # A tf.Variable is accepted as a tensor but lacks some of its attributes.
    return found.read_value() if callable(getattr(found, "read_value", None)) else found


def with_axes(owner: str, value: Any, expected: str) -> Any:
    """Return a tensor that has at least one axis, or raise the error that says what was expected."""
    if not tuple(value.shape):
        raise error(owner, expected, "a single number")
    return value


def array(owner: str, value: Any, dtype: str = "float64") -> np.ndarray:
    """Return numbers as a NumPy array, or raise the error that says which numbers were expected.

    Args:
        owner: name shown in the error message.
        value: an array, a tensor, a variable, or nested lists of numbers.
        dtype: data type of the result.

    Returns:
        The array.

    Raises:
        ValueError: if ``value`` is None, text, a mapping, or rows of different length.
    """
    expected = "an array or a tensor of numbers"
    if value is None or isinstance(value, (str, bytes, Mapping, Set)):
        raise error(owner, expected, type(value).__name__)
    try:
        found = np.asarray(value)
        if found.dtype.kind in "SU":
            raise error(owner, expected, "text", "Use class ids: numbers from 0 on")
        return found.astype(dtype)
    except (TypeError, ValueError) as problem:
        if ": expected " in str(problem):
            raise
        raise error(owner, expected, type(value).__name__, "Rows must have one length") from problem


# These reorder neighbouring characters, so that a name can display as something it is not.
_DIRECTIONS = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}


def printable(text: Any) -> str:
    """Return text that is safe on any page, figure or terminal: invisible and harmful characters are escaped.

    Control characters, writing-direction marks, lone surrogates and non-characters become Python's numeric escapes;
    line breaks and tabs stay.

    Args:
        text: anything; shown with ``str``.

    Returns:
        The text, valid in UTF-8 and XML.
    """

    def shown(character: str) -> str:
        code = ord(character)
        hidden = unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") and character not in "\n\t"
        if hidden or code in _DIRECTIONS or code == 0xFEFF or code & 0xFFFE == 0xFFFE:
            return f"\\u{code:04x}"
        return character

    return "".join(map(shown, str(text)))
