"""Puts the last ``make demo`` into the README, as table, record and picture: python docs/demo.py [demo_output]."""

import pathlib
import sys

from keras_distill import report

ROOT = pathlib.Path(__file__).parents[1]
RECORD, PICTURE = ROOT / "docs" / "demo.json", ROOT / "docs" / "demo.png"
START, END = "<!-- demo: made by docs/demo.py -->\n", "<!-- end of demo -->"


def text(result):
    """Return the README's words and numbers for a report."""
    header, rows = report.table(result)
    lines = ["| " + " | ".join(header) + " |", "|---" + "|---:" * (len(header) - 1) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    facts = result.environment
    where = f"{facts['machine']}; Python {facts['python']}, keras {facts['keras']}, tensorflow {facts['tensorflow']}"
    lines += ["", f"{result.notes[0]} `make demo`, {facts['date'][:10]}, {where}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    output = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "demo_output")
    RECORD.write_text((output / "report.json").read_text(encoding="utf-8"), encoding="utf-8")
    result = report.Report.from_json(RECORD.read_text(encoding="utf-8"))
    report.reliability_diagram({entry.name: entry.reliability for entry in result.entries}).savefig(PICTURE, dpi=110)
    readme = ROOT / "README.md"
    before, rest = readme.read_text(encoding="utf-8").split(START)
    readme.write_text(before + START + text(result) + END + rest.split(END)[1], encoding="utf-8")
