"""Labelling on many machines: Ray Data distributes shards over a pool of teachers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from keras_distill._checks import error, integer, optional
from keras_distill._model_files import load_model
from keras_distill.teachers.store import _files as files
from keras_distill.teachers.store._label import clear
from keras_distill.teachers.store._labeller import Labeller
from keras_distill.teachers.store._progress import progress_bar
from keras_distill.teachers.store._stored import Stored
from keras_distill.teachers.store._views import Augment

_DEFAULTS: dict[str, Any] = {
    "top_k": None,
    "dtype": "float16",
    "features": [],
    "members": True,
    "num_views": 1,
    "seed": 0,
    "examples_per_shard": None,
}


def label_with_ray(
    make_teacher: Callable[[], keras.Model] | str,
    make_dataset: Callable[[], tf.data.Dataset],
    path: str | Path,
    *,
    num_workers: int = 2,
    num_cpus: float = 1.0,
    num_gpus: float = 0.0,
    augment: Augment | None = None,
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> Stored:
    """Run ``label`` on a Ray cluster: a pool of processes, each with its own teacher, writes the shards.

    A worker that dies is replaced, and another writes its shard; a repeated call resumes where it stopped. The store
    has the bytes that ``label`` would write, as far as the machines compute alike. Needs ``pip install
    keras-distill[ray]``, a directory that all machines share, and a dataset that can skip to a shard cheaply.

    Args:
        make_teacher: function that makes the teacher in each worker, or the path of a saved ``.keras`` model.
        make_dataset: function that makes the dataset in each worker, as for ``label``.
        path: the store, on storage that all workers see.
        num_workers: number of teachers that run in parallel.
        num_cpus: CPUs reserved for each worker.
        num_gpus: GPUs reserved for each worker.
        augment: as for ``label``.
        overwrite: as for ``label``.
        progress: as for ``label``.
        **options: ``top_k``, ``dtype``, ``features``, ``members``, ``num_views``, ``seed``, ``examples_per_shard``,
            as for ``label``.

    Returns:
        The finished store.

    Raises:
        ValueError: as for ``label``, or if Ray is not installed.
        StoredTeacherError: as for ``label``.
    """
    with optional("label_with_ray", "ray", "ray", otherwise="use label(..., shard=(i, n))"):
        import ray.data
    integer("label_with_ray", "num_workers", num_workers, low=1)
    unknown = set(options) - set(_DEFAULTS)
    if unknown:
        raise error("label_with_ray", f"options among {', '.join(_DEFAULTS)}", sorted(unknown))
    settings = {**_DEFAULTS, **options, "features": list(options.get("features", []))}
    path = Path(path).resolve()
    with files.writing(path, (0, 1)):
        if overwrite:
            clear(path)
        files.remove_leftovers(path, alone=True)
        work = Labeller(_made(make_teacher), make_dataset(), augment, **settings)
        if not work.begin(path)["complete"]:
            count = work.num_shards()
            done = files.find_shards(path)
            missing = [{"shard": index} for index in range(count) if index not in done]
            arguments = {"make_teacher": make_teacher, "make_dataset": make_dataset, "augment": augment,
                         "settings": settings, "path": str(path)}  # fmt: skip
            context = ray.data.DataContext.get_current()
            shown, context.enable_progress_bars = context.enable_progress_bars, False
            try:
                written = ray.data.from_items(missing, override_num_blocks=max(1, len(missing))).map_batches(
                    _Worker,
                    fn_constructor_kwargs=arguments,
                    batch_size=1,
                    compute=ray.data.ActorPoolStrategy(
                        size=min(num_workers, max(1, len(missing))), max_tasks_in_flight_per_actor=1
                    ),
                    num_cpus=num_cpus,
                    num_gpus=num_gpus,
                )
                with progress_bar(f"labelling {path.name}", None, progress) as advance:
                    for row in written.iter_rows() if missing else ():
                        advance(int(row["count"]))
            finally:
                context.enable_progress_bars = shown
            work.complete(path, count)
        return Stored(path)


def _made(make_teacher: Any) -> keras.Model:
    return load_model("label_with_ray", Path(make_teacher)) if isinstance(make_teacher, str) else make_teacher()


class _Worker:
    """One teacher in one process, which writes the shards it is given."""

    def __init__(self, make_teacher: Any, make_dataset: Any, augment: Any, settings: dict[str, Any], path: str) -> None:
        self.path = Path(path)
        self.work = Labeller(_made(make_teacher), make_dataset(), augment, **settings)
        self.work.fit_to(self.path, files.read_manifest(self.path, "label"))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        counts = []
        for index in batch["shard"]:
            there = files.find_shards(self.path).get(int(index))  # written just before an earlier worker died
            counts.append(there.header()["count"] if there else self.work.write_one(self.path, int(index)))
        return {"shard": batch["shard"], "count": counts}
