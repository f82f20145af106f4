"""A teacher that was run once: its outputs are read from disk and matched to their examples."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_distill._checks import error
from keras_distill.teachers._base import StoredTeacherError, Teacher, refuse_gradient, silent
from keras_distill.teachers._combine import Combine, Stochastic
from keras_distill.teachers._ensemble import combine_rule
from keras_distill.teachers._gate import LearnedGate
from keras_distill.teachers._members import Members
from keras_distill.teachers.store import _files as files
from keras_distill.teachers.store import _format as layout
from keras_distill.teachers.store._attach import SAME_EXAMPLES, attached, rows
from keras_distill.teachers.store._views import Augment

_INPUTS, _STORED = "inputs", "stored_teacher"
_looked_at: set[tuple[Any, ...]] = set()  # files whose records this process has checked


@keras.saving.register_keras_serializable(package="keras_distill")
class Stored(Teacher):
    """Serves the outputs that ``label`` wrote: ``distiller.fit(stored.attach(dataset))`` never runs the teacher.

    A distiller with a stored teacher trains on ``attach(dataset)`` and predicts on plain inputs. Validation data needs
    a separate store with the same settings, attached by that store.

    Args:
        path: the directory that ``label`` wrote.
        combine: for a store of an ensemble's members, another rule than the one it was labelled with, as in
            ``Ensemble``. Label once, and try every rule.
        layout: the manifest's description of the outputs; only for loading a saved distiller without its store.
        **kwargs: passed on to ``keras.Model`` (``name``).

    Raises:
        StoredTeacherError: if there is no store, it is incomplete, or a file is missing or has the wrong size.

    Example:
        >>> import keras, numpy as np, tempfile, tensorflow as tf
        >>> from keras_distill import teachers
        >>> model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
        >>> dataset = tf.data.Dataset.from_tensor_slices(np.eye(4, 2, dtype="float32")).batch(2)
        >>> stored = teachers.label(model, dataset, tempfile.mkdtemp(), dtype="float32", progress=False)
        >>> x = next(iter(stored.attach(dataset)))
        >>> bool(np.all(stored(x) == model(np.eye(4, 2)[:2])))
        True
    """

    def __init__(
        self,
        path: str | Path,
        combine: str | Combine | None = None,
        layout: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.directory = str(path)
        manifest = layout or self._open()
        kept = {key: manifest[key] for key in ("outputs", "template", "inputs", "options")}
        object.__setattr__(self, "_layout", kept)  # plain data, not to be tracked by Keras
        self.combine = None if combine is None else combine_rule("Stored", combine)
        self.gate = None
        if self.combine is not None:
            outputs = kept["template"]["outputs"]
            if "members" not in outputs:
                got = "a store without members"
                raise files.stored_error("a store of an ensemble's members for combine=...", got, owner="Stored")
            if isinstance(self.combine, Stochastic):
                self.draws = keras.random.SeedGenerator(self.combine.seed)
            if isinstance(self.combine, LearnedGate):
                if self.combine.scores is not None:
                    raise error("Stored", "a gate on the members' outputs (scores=None)", "one on the inputs")
                spec = self.specs[outputs["members"]]
                self.gate = self.combine.make_layer(spec.shape[0])
                self.gate.build((None, spec.shape[0] * spec.shape[-1]))

    def _open(self) -> dict[str, Any]:
        path = Path(self.directory)
        manifest = files.read_manifest(path)
        if not manifest["complete"]:
            done = len(files.find_shards(path))
            advice = "Run the same label() again: it goes on from there"
            raise files.stored_error(f"a complete store at {path}", f"one with {done} finished shards", advice)
        for index, shard in enumerate(manifest["shards"]):
            file = path / shard["file"]
            size = file.stat().st_size if file.exists() else "no file"
            if size != shard["bytes"]:
                advice = f"Run keras-distill store verify {path}, then store repair"
                raise files.stored_error(f"{shard['bytes']} bytes in {file}", size, advice)
            _check_records(file, index, shard, manifest)
        return manifest

    @property
    def runs(self) -> bool:
        """False: the answers come with the data."""
        return False

    @property
    def specs(self) -> list[layout.OutputSpec]:
        """How each output is stored."""
        return [layout.OutputSpec.from_config(each) for each in self._layout["outputs"]]

    @property
    def num_examples(self) -> int:
        """Number of examples stored, each in ``num_views`` views."""
        return int(files.read_manifest(Path(self.directory))["count"]) // self.num_views

    @property
    def num_views(self) -> int:
        """Number of stored views of each example."""
        return int(self._layout["options"]["num_views"])

    @property
    def bytes_per_example(self) -> int:
        """Bytes on disk for one example and view, its 8-byte fingerprint included."""
        return layout.row_bytes(self.specs)

    @property
    def divergence(self) -> dict[str, float]:
        """The error of keeping ``top_k`` classes: output to mean KL from exact to stored answers, in nats.

        Measured at temperature 1 with the remaining mass shared equally; empty for a store of all classes.
        """
        return dict(files.read_manifest(Path(self.directory)).get("divergence", {}))

    # ------------------------------------------------------------------------------------- what the Distiller calls

    def split(self, x: Any) -> tuple[Any, Any]:
        """Separate what ``attach`` joined; plain inputs have nothing for the teacher."""
        if isinstance(x, dict) and set(x) == {_INPUTS, _STORED}:
            return x[_INPUTS], x[_STORED]
        return x, None

    def listen(
        self, teacher_x: Any, taps: Sequence[str] = (), *, differentiable: bool = False
    ) -> tuple[Any, dict[str, Any]]:
        """Decode the stored outputs; see ``Teacher.listen``."""
        refuse_gradient(self, differentiable)
        if teacher_x is None:
            advice = "Train on stored.attach(dataset); label validation data into a store of its own"
            raise files.stored_error("inputs that carry the teacher's outputs", "plain inputs", advice)
        template, specs = self._layout["template"], self.specs
        missing = [name for name in taps if name not in template["features"]]
        if missing:
            advice = f"Stored: {', '.join(template['features']) or 'none'}. Label with features=[...]"
            raise files.stored_error("stored features", missing[0], advice)

        def build(node: Any) -> Any:
            if "members" in node:
                spread = silent(specs[node["spread"]].decode(teacher_x)) if "spread" in node else None
                rule = self.combine or _stored_rule(node["combine"])
                return self._members(silent(specs[node["members"]].decode(teacher_x)), rule, spread)
            if "dict" in node:
                return {key: build(each) for key, each in node["dict"].items()}
            if "list" in node:
                return [build(each) for each in node["list"]]
            if "tuple" in node:
                return tuple(build(each) for each in node["tuple"])
            return silent(specs[node["tensor"]].decode(teacher_x))

        tapped = {name: silent(specs[template["features"][name]].decode(teacher_x)) for name in taps}
        return build(template["outputs"]), tapped

    def _members(self, members: Any, rule: Combine, spread: Any) -> Members:
        if isinstance(rule, Stochastic):
            drawn = rule.draw(members.shape[1], self.draws)
            members = tf.gather(members, drawn[None], axis=1)
        gate_inputs = rule.inputs(members, None) if isinstance(rule, LearnedGate) else None
        return Members(members, rule, spread, gate_inputs)

    @property
    def trainable_parts(self) -> list[keras.layers.Layer]:
        """The learned gate, if any."""
        return [] if self.gate is None else [self.gate]

    @property
    def seed_generators(self) -> list[keras.random.SeedGenerator]:
        """The random source of a stochastic rule."""
        return [self.draws] if isinstance(self.combine, Stochastic) else []

    # ------------------------------------------------------------------------------------- data

    def attach(
        self,
        dataset: tf.data.Dataset,
        *,
        augment: Augment | None = None,
        view: int | None = None,
        views_together: bool = False,
    ) -> tf.data.Dataset:
        """Return the dataset with the teacher's outputs attached to each example, for ``distiller.fit``.

        The examples must come in the order in which they were labelled, unbatched or, much faster, batched (any fixed
        batch size). Shuffle, repeat and prefetch afterwards: ``attach(batches).unbatch().shuffle(n)``. Every example is
        compared with the fingerprint of the one that was labelled; the first that differs stops the iteration with an
        error that names it.

        Args:
            dataset: as for ``label``: x, (x, y) or (x, y, sample_weight).
            augment: for a store of several views, the function given to ``label``.
            view: one of the stored views; None iterates over all of them, one after another, in each epoch.
            views_together: True reads each example once in an epoch and puts all of its views into one batch, which
                grows accordingly; for unbatched examples, the views follow each other.

        Returns:
            A dataset with ``{"inputs": x, "stored_teacher": ...}`` in place of x.

        Raises:
            StoredTeacherError: if the number of examples or the first of them does not fit, or a file is damaged.
        """
        return attached(self, self._open(), dataset, augment, view, views_together)

    def check(self, dataset: tf.data.Dataset, *, augment: Augment | None = None) -> None:
        """Read the whole dataset once, and raise ``StoredTeacherError`` at the first example that differs.

        Args:
            dataset: as for ``attach``.
            augment: as for ``attach``.
        """
        try:
            for _ in attached(self, self._open(), dataset, augment, None):
                pass
        except tf.errors.OpError as problem:
            raise self.translate(problem) from None

    def compare_first(self, fingerprints: np.ndarray, row: int = 0) -> None:
        """Raise ``StoredTeacherError`` unless the examples from ``row`` on have these fingerprints."""
        try:
            stored = next(iter(rows(self, self._open(), row, len(fingerprints), len(fingerprints)))).numpy()
        except tf.errors.OpError as problem:
            raise self.translate(problem) from None
        found = np.ascontiguousarray(stored[:, :8]).view("int64").ravel()
        wrong = np.flatnonzero(found != fingerprints[: len(found)])
        if len(wrong):
            raise self._differs(int(wrong[0]))

    def translate(self, problem: Exception) -> Exception:
        """Return the ``StoredTeacherError`` behind a TensorFlow error, or that error itself."""
        text = str(problem)
        compared = re.search(re.escape(SAME_EXAMPLES) + r"\D+(\d+)\D+([01 ]+)", text)
        if compared is not None:
            first, flags = int(compared[1]), compared[2].split()
            if "0" in flags:
                return self._differs(first + flags.index("0"))
            return self._unpaired(first + len(flags), "uneven")
        found = re.search(r"Stored\.attach: example (\d+) of the dataset (\w+)", text)
        if found is not None:
            return self._unpaired(int(found[1]), found[2])
        if isinstance(problem, (tf.errors.DataLossError, tf.errors.NotFoundError)) or "shard-" in text:
            advice = f"Run keras-distill store verify {self.directory}, then store repair"
            got = re.sub(r"^\{\{.*\}\} | *\[Op:.*$", "", text.splitlines()[0])  # without node names
            return files.stored_error(f"readable shards in {self.directory}", got, advice)
        return problem

    def _unpaired(self, index: int, what: str) -> StoredTeacherError:
        """Return the error for an example ("surplus") or a row ("missing", "uneven") that has no partner."""
        count = self.num_examples
        expected, got = f"{count} examples", f"{index}"
        advice = f"The first missing one is number {index}"
        if what == "surplus" or index >= count:
            got, advice = "more", f"The first surplus one is number {index}: label the dataset that you train on"
        elif what == "uneven":
            expected, got = f"{expected} in batches of one size", f"a batch that ends before example {index}"
            advice += "; batches of different sizes need attach() before batching"
        return files.stored_error(expected, got, advice, "Stored.attach")

    def _differs(self, index: int) -> StoredTeacherError:
        advice = "Attach before shuffling and augmenting, and use the dataset that was labelled"
        got = "another one: the dataset was changed, reordered or augmented, or lacks an example"
        return files.stored_error(f"example {index} to be the one that was labelled", got, advice, "Stored.attach")

    def get_config(self) -> dict[str, Any]:
        """Return the arguments of the constructor."""
        combine = None if self.combine is None else keras.saving.serialize_keras_object(self.combine)
        return {"name": self.name, "path": self.directory, "combine": combine, "layout": self._layout}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Stored:
        """Rebuild the teacher from ``get_config``; the store itself need not exist."""
        combine = keras.saving.deserialize_keras_object(config["combine"], custom_objects)
        return cls(**{**config, "combine": combine})


def _check_records(file: Path, index: int, entry: dict[str, Any], manifest: dict[str, Any]) -> None:
    """Check the lengths of a file's records once per version of the file, before TensorFlow relies on them."""
    stat = file.stat()
    version = (str(file.resolve()), stat.st_size, stat.st_mtime_ns, stat.st_ino, manifest["digest"])
    if version in _looked_at:
        return
    what = files.wrong_records(file, index, entry, manifest)
    if what is not None:
        advice = f"Run keras-distill store verify {file.parent}, then store repair"
        raise files.stored_error(f"{file} as the manifest describes it", what, advice)
    _looked_at.add(version)


def _stored_rule(config: dict[str, Any]) -> Combine:
    """Make the rule that a manifest names; refuse anything that is not a rule."""
    try:
        rule = keras.saving.deserialize_keras_object(config, safe_mode=True)
    except Exception as problem:  # whatever the named constructor raises
        raise files.stored_error("a rule to combine the stored members", f"{type(problem).__name__}") from problem
    if not isinstance(rule, Combine):
        raise files.stored_error("a rule to combine the stored members", type(rule).__name__)
    return rule
