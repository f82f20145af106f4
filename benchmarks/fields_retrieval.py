"""Exact nearest neighbours among a million items: memory, time, and agreement with a full sort.

A million synthetic embeddings with 32 dimensions (128 MB) and a query tower are exported as a SavedModel and loaded
again. 64 queries in one batch and single queries are measured in processor time, which other load on the machine hardly
changes; memory is the growth of the process' peak during loading and retrieval. The quick version uses 100,000 items.
"""

from __future__ import annotations

import resource
import tempfile
import time

from benchmarks import _harness

# isort: split
import keras
import numpy as np
import tensorflow as tf

from keras_distill import students

CLAIM = "Exact retrieval for a batch of 64 among a million items takes half a second on one core and less than 600 MB."


def main() -> None:
    """Export, load, retrieve, compare."""
    options = _harness.arguments(__doc__ or "")
    report = _harness.Report("fields_retrieval", CLAIM, options)
    count = 1_000_000 if options.full else 100_000
    rng = np.random.default_rng(0)
    items, queries = (rng.normal(size=(n, 32)).astype("float32") for n in (count, 64))
    inputs = keras.Input((32,))
    model = students.retriever(keras.Model(inputs, keras.layers.Identity()(inputs)), items, k=10)
    folder = tempfile.mkdtemp()
    model.export(folder, verbose=False)
    del model
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded = tf.saved_model.load(folder)
    seconds = {}
    for size in (64, 1):
        batch = tf.constant(queries[:size])
        answer = loaded.serve(batch)
        times = []
        for _ in range(10):
            started = time.process_time()
            answer = loaded.serve(batch)
            times.append(time.process_time() - started)
        seconds[size] = float(np.median(times))
        if size == 64:
            found = np.sort(answer["items"].numpy(), 1)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    exact = np.sort(np.argpartition(-(queries @ items.T), 10, axis=1)[:, :10], 1)
    agreement = float(np.mean(found == exact))
    report.add(
        {"items": count, "units": 32},
        {
            "seconds_batch_of_64": seconds[64],
            "seconds_one_query": seconds[1],
            "grown_mb": grown,
            "agreement": agreement,
        },
    )
    report.verdict("processor seconds for a batch of 64", seconds[64], at_most=0.5)
    report.verdict("megabytes beside the program", grown, at_most=600.0)
    report.verdict("share of equal items", agreement, at_least=1.0)
    report.write()


if __name__ == "__main__":
    main()
