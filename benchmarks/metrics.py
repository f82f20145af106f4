"""An update of the calibration error over 100,000 x 1,000 outputs, compared with the time to read them once.

The bound is TensorFlow's fastest way to read the same tensor on the same cores: the row-wise maximum. Both run
alternately as compiled functions on an existing tensor. Memory is the process's resident size over many updates.
"""

from __future__ import annotations

import os
import resource

from benchmarks import _harness

# isort: split
import tensorflow as tf

from keras_distill import metrics

CLAIM = (
    "An ExpectedCalibrationError update with 100,000 x 1,000 probabilities takes at most twice as long as reading them "
    "once, and the process does not grow with the number of updates."
)
MIB = 2**20


def resident_bytes() -> int:
    """The current resident size of the process."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Measure times alternately, then memory."""
    options = _harness.arguments(
        __doc__,
        rows={"type": int, "default": 100_000},
        classes={"type": int, "default": 1000},
        rounds={"type": int, "default": 15},
    )
    report = _harness.Report("metrics", CLAIM, options)
    generator = tf.random.Generator.from_seed(0)
    logits = generator.normal((options.rows, options.classes)) * 3
    probabilities = tf.nn.softmax(logits)
    labels = tf.argmax(logits + generator.normal(logits.shape) * 3, axis=-1, output_type=tf.int32)
    bytes_read = options.rows * options.classes * 4

    made = {
        "ece": metrics.ExpectedCalibrationError(),
        "ece logits": metrics.ExpectedCalibrationError(from_logits=True),
        "nll logits": metrics.NegativeLogLikelihood(from_logits=True),
        "brier": metrics.BrierScore(),
        "adaptive ece": metrics.AdaptiveCalibrationError(),
        "aurc": metrics.AreaUnderRiskCoverage(),
        "top 1 agreement": metrics.TopKAgreement(),
    }

    def updating(name: str, metric: tf.Module):
        outputs = logits if "logits" in name else probabilities
        truth = logits if "agreement" in name else labels
        step = tf.function(metric.update_state, reduce_retracing=True)

        def run() -> int:
            step(truth, outputs)
            return 1

        return run

    read = tf.function(lambda: tf.reduce_max(tf.reduce_max(probabilities, axis=-1)))

    def reading() -> int:
        read().numpy()
        return 1

    samples = _harness.paired(
        {"read": reading, **{name: updating(name, metric) for name, metric in made.items()}}, rounds=options.rounds
    )
    bound = samples.seconds("read")
    setting = {"rows": options.rows, "classes": options.classes}
    report.add(
        setting, {"program": "read", "ms": bound.median * 1e3, "gib_per_second": bytes_read / bound.median / 2**30}
    )
    for name in made:
        ratio = samples.ratio(name, "read")
        report.add(
            setting,
            {
                "program": name,
                "ms": samples.seconds(name).median * 1e3,
                "over_read": [ratio.median, ratio.low, ratio.high],
            },
            f"{name:18}{samples.seconds(name).median * 1e3:9.1f} ms   {ratio} x one read",
        )

    before, peak = resident_bytes(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    run = updating("ece", made["ece"])
    for _ in range(50):
        run()
    grown = (resident_bytes() - before) / MIB
    peak_grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - peak) / MIB
    state = sum(v.numpy().nbytes for v in made["ece"].variables)
    report.add(
        setting, {"program": "memory", "grown_mib": grown, "peak_grown_mib": peak_grown, "ece_state_bytes": state}
    )
    report.verdict("ECE update / reading its input once", samples.ratio("ece", "read").median, at_most=2.0)
    report.verdict("resident MiB gained by 50 more updates of 381 MiB each", max(grown, peak_grown), at_most=16.0)
    report.write()


if __name__ == "__main__":
    main()
