"""Record what each example prints with --smoke, for the gallery: python docs/outputs.py [name ...]."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).parents[1]
OUTPUTS = ROOT / "docs" / "outputs"


def record(script):
    """Run an example in an empty folder and write its output, with its command on top."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3", "KERAS_BACKEND": "tensorflow"}
    command = [sys.executable, str(script), "--smoke"]
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=900)
    if done.returncode:
        sys.stderr.write(f"{script.name}: failed\n{done.stderr[-2000:]}\n")
        return False
    text = re.sub(r"\x1b\[[0-9;]*m|.*\r", "", done.stdout).strip().replace(str(ROOT) + os.sep, "")
    OUTPUTS.mkdir(exist_ok=True)
    path = OUTPUTS / f"{script.stem}.txt"
    path.write_text(f"$ python examples/{script.name} --smoke\n{text}\n", encoding="utf-8")
    return True


if __name__ == "__main__":
    scripts = sorted(path for path in (ROOT / "examples").glob("*.py") if '"--smoke"' in path.read_text("utf-8"))
    wanted = [path for path in scripts if path.stem in sys.argv[1:]] if sys.argv[1:] else scripts
    new = [path for path in wanted if sys.argv[1:] or not (OUTPUTS / f"{path.stem}.txt").exists()]
    sys.exit(not all([record(path) for path in new]))
