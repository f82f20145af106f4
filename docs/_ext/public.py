"""The public names of the package and their pages, read from every module's ``__all__``."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from typing import Any

import keras_distill

PACKAGE = "keras_distill"


@dataclasses.dataclass(frozen=True)
class Entry:
    """One public object: the shortest path that imports it, its page, and other paths to the same object."""

    room: str
    name: str
    thing: Any
    page: str
    aliases: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """What a user writes to reach it."""
        return f"{self.room}.{self.name}"

    @property
    def summary(self) -> str:
        """The first sentence of the docstring; empty for a constant."""
        described = inspect.isclass(self.thing) or inspect.isroutine(self.thing)
        return (inspect.getdoc(self.thing) or "").partition("\n")[0] if described else ""


def rooms() -> list[str]:
    """Return the package and every module of it that has a list of public names."""
    found = [PACKAGE]
    for room in sorted(module.name for module in pkgutil.iter_modules(keras_distill.__path__)):
        if not room.startswith("_") and hasattr(importlib.import_module(f"{PACKAGE}.{room}"), "__all__"):
            found.append(f"{PACKAGE}.{room}")
    return found


def short(room: str) -> str:
    """Return the module's own name: ``losses``; for the package itself, ``keras_distill``."""
    return room.rpartition(".")[2]


def entries() -> list[Entry]:
    """Return every public object once, at its shortest path; modules themselves are no entries."""
    paths: dict[int, list[tuple[str, str]]] = {}
    things: dict[int, Any] = {}
    for room in rooms():
        module = importlib.import_module(room)
        for name in module.__all__:
            thing = getattr(module, name)
            if inspect.ismodule(thing):
                continue
            # Equal constants may be one object; a class or a function with two names has one page.
            key = id(thing) if inspect.isclass(thing) or inspect.isroutine(thing) else hash((room, name))
            paths.setdefault(key, []).append((room, name))
            things[key] = thing
    found, taken = [], set()
    for key, places in paths.items():
        (room, name), *others = sorted(places, key=lambda place: (place[0].count("."), place))
        page = f"reference/{short(room)}/{name}"
        if page.lower() in taken:  # a file system that ignores case: ``hint`` and ``Hint``
            page += "-class"
        taken.add(page.lower())
        found.append(Entry(room, name, things[key], page, tuple(f"{room}.{name}" for room, name in others)))
    return sorted(found, key=lambda entry: (entry.room, entry.name.lower(), entry.name))


def links() -> dict[str, tuple[str, str]]:
    """Return (page, anchor) by the names in texts: the full path, ``losses.Hint``, and ``Hint`` if it is unique."""
    found: dict[str, tuple[str, str]] = {}
    bare: dict[str, list[Entry]] = {}
    for entry in entries():
        target = (entry.page, entry.path)
        for path in (entry.path, *entry.aliases):
            found[path] = found[path.removeprefix(f"{PACKAGE}.")] = target
        bare.setdefault(entry.name, []).append(entry)
    for name, owners in bare.items():
        if len(owners) == 1 and (len(name) > 6 or name[0].isupper()):
            found.setdefault(name, (owners[0].page, owners[0].path))
    return found
