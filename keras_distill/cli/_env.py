"""``keras-distill env``: the facts about a machine for a bug report."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
import sys
from typing import Any

_DISTRIBUTION = "keras-distill"
_ALWAYS = ("keras", "tensorflow", "numpy")


def add_parser(commands: Any) -> None:
    """Add the command.

    Args:
        commands: what ``ArgumentParser.add_subparsers`` returned.
    """
    command = commands.add_parser(
        "env",
        help="print versions, devices and which extras are installed, for bug reports",
        description="Prints versions, devices and which extras are installed. Paste it into a bug report.",
        allow_abbrev=False,
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run ``keras-distill env``: one line per fact.

    Args:
        options: the parsed arguments.
    """
    for name, value in [*_facts(), *_extras(importlib.metadata.requires)]:
        sys.stdout.write(f"{name:<15}{value}\n")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _facts() -> list[tuple[str, str]]:
    """Return versions, the system and the devices."""
    import keras

    import keras_distill

    devices = keras.distribution.list_devices()
    versions = [(name, _version(name) or "not installed as a distribution") for name in _ALWAYS]
    return [
        ("keras_distill", keras_distill.__version__),
        ("python", platform.python_version()),
        *versions,
        ("backend", keras.backend.backend()),
        ("float policy", keras.config.dtype_policy().name),
        ("system", f"{platform.system()} {platform.machine()}"),
        ("processors", str(os.cpu_count())),
        ("devices", ", ".join(devices) or "none"),
    ]


def _extras(requires: Any) -> list[tuple[str, str]]:
    """Return each extra with its missing packages; ``requires`` returns a distribution's requirements."""
    try:
        lines = requires(_DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError:
        return [("extras", f"unknown: {_DISTRIBUTION} is not installed, only found on the path")]
    needed: dict[str, set[str]] = {}
    for line in lines:
        extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)['\"]", line)
        if extra:
            inner = re.match(rf"{_DISTRIBUTION}\[([^]]*)\]", line)
            names = {f"[{name.strip()}]" for name in inner.group(1).split(",")} if inner else _name(line)
            needed.setdefault(extra.group(1), set()).update(names)
    return [(f"[{extra}]", _state(_flat(extra, needed))) for extra in sorted(needed)]


def _name(requirement: str) -> set[str]:
    found = re.match(r"[\w.-]+", requirement)
    return {found.group()} if found else set()


def _flat(extra: str, needed: dict[str, set[str]], seen: frozenset[str] = frozenset()) -> set[str]:
    """Return the distributions that an extra needs, including those of nested extras."""
    found: set[str] = set()
    for name in needed.get(extra, ()):
        inner = name.strip("[]")
        if name == inner:
            found.add(name)
        elif inner not in seen:
            found |= _flat(inner, needed, seen | {extra})
    return found


def _state(names: set[str]) -> str:
    missing = sorted(name for name in names if _version(name) is None)
    return "installed" if not missing else f"missing {', '.join(missing)}"
