"""Results of single runs, kept in a file next to the report, so that a killed benchmark resumes where it stopped."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any


class Runs:
    """Keeps the result of each run.

    Args:
        path: of the JSON file; deleted by ``finish``.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path
        self.known: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}

    def __call__(self, name: str, run: Callable[[], Any]) -> Any:
        """Return the result of the run of this name, after running it if it has not been run before."""
        if name not in self.known:
            self.known[name] = run()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            aside = self.path.with_suffix(".tmp")
            aside.write_text(json.dumps(self.known))
            aside.replace(self.path)
            print(name, self.known[name], flush=True)
        return self.known[name]

    def model(self, name: str, model: Any, train: Callable[[Any], Any]) -> Any:
        """Return `model` with its trained weights, after training it in place if it has not been trained before.

        Args:
            name: of the file of weights, next to that of the results.
            model: just built, with the layers that it had when it was trained.
            train: called with the model.
        """
        path = self.path.with_name(f"{self.path.stem}_{name}.weights.h5")
        if path.exists():
            model.load_weights(path)
        else:
            train(model)
            path.parent.mkdir(parents=True, exist_ok=True)
            model.save_weights(aside := path.with_name(f"aside_{path.name}"))
            aside.replace(path)
            print("trained", name, flush=True)
        return model

    def finish(self) -> None:
        """Delete the files: the report is written."""
        self.path.unlink(missing_ok=True)
        for path in self.path.parent.glob(f"{self.path.stem}_*.weights.h5"):
            path.unlink()
