"""``keras-distill export``: convert a student to a file for serving or a device, and check it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from keras_distill._checks import error
from keras_distill.cli._comparison import add_comparison, comparison_data, from_logits, numbers

_ENDINGS = {"litert": ".tflite", "onnx": ".onnx", "openvino": ".xml"}


def add_parser(commands: Any) -> None:
    """Add the command.

    Args:
        commands: what ``ArgumentParser.add_subparsers`` returned.
    """
    parser = commands.add_parser(
        "export",
        help="turn a .keras student into a SavedModel, LiteRT, ONNX or OpenVINO file, checked against it",
        description="Loads a .keras file in safe mode, exports it, runs the export in its own runtime and compares. "
        "An export that disagrees with the student is not kept.",
        allow_abbrev=False,
    )
    parser.add_argument("student", help="a .keras file")
    parser.add_argument("--to", required=True, choices=["saved_model", *_ENDINGS], help="format")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="base path of the model (saved_model), or output directory"
    )
    parser.add_argument("--version", type=int, metavar="N", help="version of the SavedModel (the next one)")
    add_comparison(parser)
    parser.add_argument("--labels", metavar="A,B,C", help="class names, separated by commas")
    parser.add_argument("--temperature", type=float, metavar="T", help="calibration temperature inside the SavedModel")
    parser.add_argument("--uncertainty", action="store_true", help="serve entropy and confidence")
    parser.add_argument("--image", action="store_true", help="add a signature that takes JPEG or PNG files")
    parser.add_argument("--image-scale", type=float, default=1 / 255, metavar="X", help="factor of the pixels (1/255)")
    parser.add_argument("--text", action="store_true", help="add a signature of one text per example")
    parser.add_argument("--examples", action="store_true", help="add a signature of serialized tf.train.Example")
    parser.add_argument("--warmup", metavar="1,32", help="batch sizes of warm-up requests, separated by commas")
    parser.add_argument(
        "--serving-files", action="store_true", help="write models.config, docker-compose.yml, ... beside DIR"
    )
    parser.add_argument("--quantize", choices=["float16", "dynamic", "int8"], help="precision of LiteRT")
    parser.add_argument("--tolerance", type=float, metavar="X", help="largest allowed difference of probabilities")
    parser.add_argument(
        "--min-agreement", type=float, metavar="X", help="smallest fraction of equal classes (not saved_model)"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Run ``keras-distill export``.

    Args:
        options: the parsed arguments.

    Raises:
        ValueError: if an option does not fit the format, the file does not load, or the export disagrees.
    """
    from keras_distill import export

    served = ("version", "labels", "temperature", "uncertainty", "image", "text", "examples", "warmup", "serving_files")
    wrong = (
        [name for name in served if getattr(options, name)]
        if options.to != "saved_model"
        else [name for name in ("min_agreement",) if getattr(options, name) is not None]
    )
    wrong += ["quantize"] if options.quantize and options.to != "litert" else []
    if wrong:
        raise error("export", f"options that --to {options.to} knows", f"--{wrong[0].replace('_', '-')}")
    student = export.load_student(options.student)
    arrays, truth, train = comparison_data("export", options)
    common: dict[str, Any] = dict(
        check_inputs=arrays,
        check_labels=truth,
        from_logits=from_logits(options),
        task=options.task,
        tolerance=options.tolerance,
        card=export.ModelCard(data=_data_card(options), command="keras-distill " + " ".join(sys.argv[1:])),
    )
    if options.to == "saved_model":
        labels = options.labels.split(",") if options.labels is not None else None
        exported = export.saved_model(
            student,
            options.out,
            options.version,
            labels=labels,
            temperature=options.temperature,
            uncertainty=options.uncertainty,
            image=export.ImageBytes(scale=options.image_scale) if options.image else None,
            text=True if options.text else None,
            examples=options.examples,
            warmup_batch_sizes=numbers("export", "--warmup", options.warmup),
            **common,
        )
        if options.serving_files:
            export.serving_files(options.out)
    else:
        path = Path(options.out) / (Path(options.student).stem + _ENDINGS[options.to])
        common["min_agreement"] = options.min_agreement
        if options.to == "litert":
            if options.quantize == "int8" and train is None:
                got = f"{options.data}, which has no training split" if options.data is not None else "neither"
                raise error("export", "--data or --inputs for --quantize int8", got, "It is calibrated on real inputs")
            data = train if options.quantize == "int8" else None
            exported = export.litert(student, path, options.quantize, representative_data=data, **common)
        else:
            exported = (export.onnx if options.to == "onnx" else export.openvino)(student, path, **common)
    sys.stdout.write(_summary(exported))


def _data_card(options: argparse.Namespace) -> Any:
    if options.data is None:
        return None
    from keras_distill import data

    loaded = data.load(options.data)
    return {"name": loaded.name, "fingerprint": loaded.fingerprint, "compared_on": "test"}


def _summary(exported: Any) -> str:
    parts = [f"{exported.path}: {exported.format}, {exported.size_bytes:,} bytes"]
    parts.append(
        f"compared on {exported.num_examples} examples: largest difference {exported.max_difference:.3g} "
        f"(allowed {exported.tolerance:g})"
        + (f", same class for {exported.agreement:.2%}" if exported.agreement is not None else "")
    )
    if exported.accuracy is not None:
        parts.append(
            f"accuracy {exported.accuracy:.4f} (student {exported.student_accuracy:.4f}), "
            f"ECE {exported.ece:.4f} (student {exported.student_ece:.4f})"
        )
    for size, times in exported.latency_ms.items():
        parts.append(f"latency at batch {size}, ms: median {times['median']:.3f}, p99 {times['p99']:.3f}")
    return "\n".join(parts) + "\n"
