"""Write the list of what each extra installs, with licence and reason, into its page: python docs/extras.py."""

import configparser
import importlib.metadata
import pathlib
import re

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs" / "start" / "extras.md"
START, END = "<!-- extras: python docs/extras.py -->\n", "<!-- end of extras -->\n"

# Why an extra is there; a new one needs a line here.
REASONS = {
    "demo": "the demo, real data sets, figures, the command line's tables",
    "calibration": "fitting temperatures and isotonic curves",
    "serving": "warm-up requests and clients of TensorFlow Serving",
    "litert": "phones and small devices",
    "onnx": "ONNX files, written and read",
    "openvino": "Intel machines",
    "edge": "the three runtimes above",
    "ray": "labelling and searching on many machines",
    "text": "pre-trained text models",
    "sequences": "span F1 and word error rates as the field quotes them",
    "ranking": "Keras' own ranking losses and metrics",
    "policies": "environments for policy distillation",
    "tables": "tabular teachers and baselines",
    "privacy": "privacy accounting",
    "robust": "AutoAttack in a report",
    "explain": "attributions and surrogates",
    "search": "searching students and settings",
    "detection": "average precision of detectors by COCO's own evaluator",
    "spacy": "spaCy's English pipeline as a teacher of parts of speech and entities",
    "quantization": "four-bit LiteRT files",
    "test": "the package's own tests",
    "docs": "this site",
    "bench": "the benchmarks",
    "release": "building and checking the wheel",
    "lint": "the linters, in exact versions",
}


def requirements():
    """Return {extra: [requirement, ...]} from setup.cfg, and what is always needed under ""."""
    facts = configparser.ConfigParser()
    facts.read(ROOT / "setup.cfg")
    lists = {"": facts["options"]["install_requires"], **facts["options.extras_require"]}
    return {
        extra: [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
        for extra, text in lists.items()
    }


def name_of(requirement):
    """Return the distribution's name in a requirement."""
    return re.match(r"[\w.-]+", requirement).group()


def licence(requirement):
    """Return the licence that the installed distribution states, or "not installed here"."""
    try:
        facts = importlib.metadata.metadata(name_of(requirement))
    except importlib.metadata.PackageNotFoundError:
        return "not installed here"
    stated = facts.get("License-Expression") or ""
    classified = [
        line.rpartition(" :: ")[2] for line in facts.get_all("Classifier", []) if line.startswith("License ::")
    ]
    free_text = (facts.get("License") or "").strip().splitlines()
    found = stated or ", ".join(classified) or (free_text[0] if free_text else "") or "not stated"
    return found if len(found) < 60 else found[:57] + "..."


def table():
    """Return the list as Markdown."""
    rows = ["| extra | why | installs (licence) |", "|---|---|---|"]
    for extra, needed in requirements().items():
        shown = ", ".join(
            f"`{name_of(each)}`" + ("" if each.startswith("keras-distill[") else f" ({licence(each)})")
            for each in needed
        )
        merged = [each for each in needed if each.startswith("keras-distill[")]
        for each in merged:
            shown = shown.replace(
                "`keras-distill`", "the extras " + re.search(r"\[(.*)\]", each).group(1).replace(",", ", "), 1
            )
        rows.append(f"| {f'`{extra}`' if extra else 'none'} | {REASONS.get(extra, 'always needed')} | {shown} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    before, rest = PAGE.read_text(encoding="utf-8").split(START)
    PAGE.write_text(before + START + "\n" + table() + "\n" + END + rest.split(END)[1], encoding="utf-8")
