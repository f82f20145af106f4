"""The commands ``keras-distill export`` and ``keras-distill serve-check``; ``cli`` calls ``add_parsers``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from keras_distill._checks import error

_ENDINGS = {"litert": ".tflite", "onnx": ".onnx", "openvino": ".xml"}


def add_parsers(subparsers: Any) -> None:
    """Add both commands.

    Args:
        subparsers: what ``ArgumentParser.add_subparsers`` gave; each command sets ``run``, a function of the options.
    """
    _add_export(subparsers)
    _add_serve_check(subparsers)


def _add_export(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "export",
        help="turn a .keras student into a SavedModel, LiteRT, ONNX or OpenVINO file, checked against it",
        description="Loads a .keras file in safe mode, exports it, runs the export in its own runtime and compares. "
        "An export that disagrees with the student is not kept.",
        allow_abbrev=False,
    )
    parser.add_argument("student", help="a .keras file")
    parser.add_argument("--to", required=True, choices=["saved_model", *_ENDINGS], help="format")
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="base path of the model (saved_model), or where the file goes"
    )
    parser.add_argument("--version", type=int, metavar="N", help="of the SavedModel (the next one)")
    _add_check_arguments(parser)
    parser.add_argument("--labels", metavar="A,B,C", help="class names, separated by commas")
    parser.add_argument("--temperature", type=float, metavar="T", help="calibration temperature inside the SavedModel")
    parser.add_argument("--uncertainty", action="store_true", help="serve entropy and confidence")
    parser.add_argument("--image", action="store_true", help="add a signature that takes JPEG or PNG files")
    parser.add_argument(
        "--image-scale", type=float, default=1 / 255, metavar="X", help="pixels are multiplied by (1/255)"
    )
    parser.add_argument("--text", action="store_true", help="add a signature of one text per example")
    parser.add_argument("--examples", action="store_true", help="add a signature of serialized tf.train.Example")
    parser.add_argument("--warmup", metavar="1,32", help="batch sizes of warm-up requests, separated by commas")
    parser.add_argument(
        "--serving-files", action="store_true", help="write models.config, docker-compose.yml, ... beside DIR"
    )
    parser.add_argument("--quantize", choices=["float16", "dynamic", "int8"], help="precision of LiteRT")
    parser.add_argument("--tolerance", type=float, metavar="X", help="largest difference of probabilities allowed")
    parser.add_argument(
        "--min-agreement", type=float, metavar="X", help="least fraction of equal classes (not saved_model)"
    )
    parser.set_defaults(run=run_export)


def _add_serve_check(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "serve-check",
        help="load a SavedModel as TensorFlow Serving does; show signatures, latency and parity",
        description="Loads the SavedModel through TensorFlow's C API in a process without Python TensorFlow, compares "
        "its answers with the student's, replays its warm-up requests and times it.",
        allow_abbrev=False,
    )
    parser.add_argument("directory", metavar="DIR", help="a version directory, or the model's base path")
    parser.add_argument("--student", metavar="FILE", help="the .keras file to compare with")
    _add_check_arguments(parser)
    parser.add_argument("--tolerance", type=float, metavar="X", help="largest difference allowed (1e-4 in float32)")
    parser.add_argument("--batch-sizes", default="1,32", metavar="1,32", help="what is timed, separated by commas")
    parser.add_argument("--repeats", type=int, default=100, metavar="N", help="timed calls for each (100)")
    parser.set_defaults(run=run_serve_check)


def _add_check_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--data", metavar="NAME", help="compare on the test split of this set of keras_distill.data")
    group.add_argument(
        "--inputs", metavar="FILE", help="compare on an .npy array, or an .npz by input name, 'labels' among them"
    )
    kind = parser.add_mutually_exclusive_group()
    kind.add_argument("--logits", action="store_true", help="the student gives logits")
    kind.add_argument("--probabilities", action="store_true", help="the student gives probabilities")
    parser.add_argument("--task", choices=["classification", "binary", "regression"], help="what the output is")


def run_export(options: argparse.Namespace) -> None:
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
    arrays, truth, train = _check_data("export", options)
    common: dict[str, Any] = dict(
        check_inputs=arrays,
        check_labels=truth,
        from_logits=_from_logits(options),
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
            warmup_batch_sizes=_numbers("export", "--warmup", options.warmup),
            **common,
        )
        if options.serving_files:
            export.serving_files(options.out)
    else:
        path = Path(options.out) / (Path(options.student).stem + _ENDINGS[options.to])
        common["min_agreement"] = options.min_agreement
        if options.to == "litert":
            if options.quantize == "int8" and train is None:
                raise error(
                    "export", "--data or --inputs for --quantize int8", "neither", "It is calibrated on real inputs"
                )
            data = train if options.quantize == "int8" else None
            exported = export.litert(student, path, options.quantize, representative_data=data, **common)
        else:
            exported = (export.onnx if options.to == "onnx" else export.openvino)(student, path, **common)
    sys.stdout.write(_summary(exported))


def run_serve_check(options: argparse.Namespace) -> None:
    """Run ``keras-distill serve-check``.

    Args:
        options: the parsed arguments.

    Raises:
        ValueError: if the SavedModel does not load, does not answer, or disagrees with the student.
    """
    from keras_distill import export

    arrays, truth, _ = _check_data("serve-check", options)
    student = export.load_student(options.student) if options.student is not None else None
    checked = export.serve_check(
        options.directory,
        student=student,
        check_inputs=arrays,
        check_labels=truth,
        from_logits=_from_logits(options),
        task=options.task,
        tolerance=options.tolerance,
        batch_sizes=_numbers("serve-check", "--batch-sizes", options.batch_sizes),
        repeats=options.repeats,
    )
    sys.stdout.write(checked.text())


def _from_logits(options: argparse.Namespace) -> bool | None:
    return True if options.logits else False if options.probabilities else None


def _numbers(owner: str, option: str, text: str | None) -> list[int]:
    if not text:
        return []
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as problem:
        raise error(owner, f"numbers separated by commas for {option}", text) from problem


def _check_data(owner: str, options: argparse.Namespace) -> tuple[Any, Any, Any]:
    """Return inputs and labels to compare on, and inputs to calibrate int8 on."""
    if options.data is not None:
        from keras_distill import data

        loaded = data.load(options.data)
        return loaded.test.inputs, loaded.test.labels, loaded.train.inputs
    if options.inputs is None:
        return None, None, None
    from keras_distill.export._load import read_arrays

    path = Path(options.inputs)
    arrays = read_arrays(owner, path, "an .npy or .npz file of plain arrays for --inputs")
    truth = arrays.pop("labels", None)
    if not arrays:
        raise error(owner, "an array per input in the file of --inputs", f"{path} without one")
    inputs = next(iter(arrays.values())) if len(arrays) == 1 else arrays
    return inputs, truth, inputs


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
