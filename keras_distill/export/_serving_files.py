"""Writes the files that start TensorFlow Serving on an exported student with one command."""

from __future__ import annotations

import json
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path

from keras_distill._checks import error, integer
from keras_distill.export._staging import make_directory, versions

_OWNER = "serving_files"
_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
_GRPC_PORT = 8500
_REST_PORT = 8501


def serving_files(
    directory: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    labels: Mapping[str, int] | None = None,
    max_batch_size: int = 32,
    batch_timeout_micros: int = 1000,
    num_batch_threads: int = 4,
    max_enqueued_batches: int = 100,
    image: str = "tensorflow/serving:latest",
) -> dict[str, Path]:
    """Write the files that run the official ``tensorflow/serving`` image on ``directory``.

    ``models.config`` (ModelServerConfig with version labels), ``batching_parameters.txt`` (BatchingParameters),
    ``docker-compose.yml`` and ``kubernetes.yaml`` (ConfigMap, Deployment with readiness probe, Service). The probes
    request the model's metadata, because TensorFlow Serving answers a status request with 200 even while it is loading.
    Clients address a version by its label, so promoting a canary only changes ``models.config``, which the server
    rereads every 30 seconds.

    Args:
        directory: base path of the model, with a numbered version; its last part is the model's name.
        out: output directory; None: the parent of ``directory``. Existing files of these names are replaced.
        labels: version by label. None: the newest version is ``stable``; with two or more, the newest is ``canary`` and
            the previous one ``stable``.
        max_batch_size: largest number of examples that the server combines into one batch.
        batch_timeout_micros: how long it waits to fill a batch, in microseconds.
        num_batch_threads: number of batches computed in parallel, usually the number of cores.
        max_enqueued_batches: requests beyond these are refused instead of waiting.
        image: container image; pin the tag you tested.

    Returns:
        Path by file name.

    Raises:
        ValueError: if there is no version, a label names one that does not exist, or a number is out of range.
    """
    base = Path(directory).resolve()
    known = versions(base)
    if not known:
        raise error(_OWNER, "a directory with a numbered version", str(directory), "Use export.saved_model first")
    name = base.name
    if not _NAME.fullmatch(name):
        raise error(_OWNER, "a directory name of letters, digits, '.', '_' and '-'", name)
    if labels is None:
        labels = {"stable": known[-1]} if len(known) == 1 else {"stable": known[-2], "canary": known[-1]}
    for label, version in labels.items():
        if not isinstance(label, str) or not _NAME.fullmatch(label):
            raise error(_OWNER, "labels of letters, digits, '.', '_' and '-'", label)
        if integer(_OWNER, f"labels[{label!r}]", version, low=1) not in known:
            raise error(_OWNER, f"labels[{label!r}] to be one of the versions {known}", version)
    if not labels:
        raise error(_OWNER, "at least one label", dict(labels))
    numbers = {
        "max_batch_size": integer(_OWNER, "max_batch_size", max_batch_size, low=1),
        "batch_timeout_micros": integer(_OWNER, "batch_timeout_micros", batch_timeout_micros, low=0),
        "num_batch_threads": integer(_OWNER, "num_batch_threads", num_batch_threads, low=1),
        "max_enqueued_batches": integer(_OWNER, "max_enqueued_batches", max_enqueued_batches, low=1),
    }
    if not isinstance(image, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*", image):
        raise error(_OWNER, "image to be a container image name", image)
    target, _ = make_directory(_OWNER, base.parent if out is None else out)
    source = os.path.relpath(base, target.resolve())
    config = _models_config(name, labels)
    batching = "".join(f"{key} {{ value: {value} }}\n" for key, value in numbers.items())
    contents = {
        "models.config": config,
        "batching_parameters.txt": batching,
        "docker-compose.yml": _compose(name, source, image),
        "kubernetes.yaml": _kubernetes(name, config, batching, image),
    }
    written = {}
    for file_name, content in contents.items():
        aside = target / f".writing-{uuid.uuid4().hex}"
        aside.write_text(content, encoding="utf-8")
        os.replace(aside, target / file_name)
        written[file_name] = target / file_name
    return written


def _arguments() -> list[str]:
    return [
        "--model_config_file=/config/models.config",
        "--model_config_file_poll_wait_seconds=30",
        "--allow_version_labels_for_unavailable_models=true",
        "--enable_batching=true",
        "--batching_parameters_file=/config/batching_parameters.txt",
    ]


def _models_config(name: str, labels: Mapping[str, int]) -> str:
    served = sorted(set(labels.values()))
    lines = [
        "model_config_list {",
        "  config {",
        f'    name: "{name}"',
        f'    base_path: "/models/{name}"',
        '    model_platform: "tensorflow"',
        "    model_version_policy { specific { " + " ".join(f"versions: {v}" for v in served) + " } }",
        *[f'    version_labels {{ key: "{label}" value: {version} }}' for label, version in labels.items()],
        "  }",
        "}",
    ]
    return "\n".join(lines) + "\n"


def _compose(name: str, source: str, image: str) -> str:
    # The image has neither curl nor wget, so bash sends the request.
    probe = (
        f"exec 3<>/dev/tcp/127.0.0.1/{_REST_PORT} && "
        f"printf 'GET /v1/models/{name}/metadata HTTP/1.0\\r\\n\\r\\n' >&3 && head -n 1 <&3 | grep -q ' 200 '"
    )
    source = source if source.startswith(("/", "..")) else f"./{source}"
    lines = [
        "# Start with:  docker compose up",
        "# The same without Compose, for the newest version only, in three lines:",
        f"#   docker run --rm -p {_REST_PORT}:{_REST_PORT} -p {_GRPC_PORT}:{_GRPC_PORT} \\",
        f'#     -v "$PWD/{source.removeprefix("./")}:/models/{name}:ro" -e MODEL_NAME={name} \\',
        f"#     {image}",
        "services:",
        "  serving:",
        f"    image: {json.dumps(image)}",
        "    command:",
        *[f"      - {json.dumps(argument)}" for argument in _arguments()],
        "    ports:",
        f'      - "{_GRPC_PORT}:{_GRPC_PORT}"  # gRPC',
        f'      - "{_REST_PORT}:{_REST_PORT}"  # REST',
        "    volumes:",
        f"      - {json.dumps(f'{source}:/models/{name}:ro')}",
        '      - "./models.config:/config/models.config:ro"',
        '      - "./batching_parameters.txt:/config/batching_parameters.txt:ro"',
        "    healthcheck:",
        f"      test: {json.dumps(['CMD', 'bash', '-c', probe])}",
        "      interval: 10s",
        "      timeout: 5s",
        "      retries: 6",
        "      start_period: 20s",
        "    restart: unless-stopped",
    ]
    return "\n".join(lines) + "\n"


def _kubernetes(name: str, config: str, batching: str, image: str) -> str:
    label = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50]
    indented = "\n".join(f"    {line}" for line in config.splitlines())
    batching_indented = "\n".join(f"    {line}" for line in batching.splitlines())
    arguments = "\n".join(f"            - {json.dumps(argument)}" for argument in _arguments())
    return f"""\
# Start with:  kubectl apply -f kubernetes.yaml
# The volume claim "models" must hold {name}/<version>/, as export.saved_model writes it.
apiVersion: v1
kind: ConfigMap
metadata:
  name: {label}-serving
data:
  models.config: |
{indented}
  batching_parameters.txt: |
{batching_indented}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {label}-serving
  labels:
    app: {label}-serving
spec:
  replicas: 1
  selector:
    matchLabels:
      app: {label}-serving
  template:
    metadata:
      labels:
        app: {label}-serving
    spec:
      containers:
        - name: serving
          image: {json.dumps(image)}
          args:
{arguments}
          ports:
            - name: grpc
              containerPort: {_GRPC_PORT}
            - name: rest
              containerPort: {_REST_PORT}
          readinessProbe:
            httpGet:
              path: /v1/models/{name}/metadata
              port: rest
            periodSeconds: 5
            timeoutSeconds: 5
            failureThreshold: 3
          livenessProbe:
            tcpSocket:
              port: grpc
            initialDelaySeconds: 60
            periodSeconds: 20
          resources:
            requests:
              cpu: "1"
              memory: 512Mi
            limits:
              memory: 2Gi
          securityContext:
            allowPrivilegeEscalation: false
          volumeMounts:
            - name: models
              mountPath: /models
              readOnly: true
            - name: config
              mountPath: /config
              readOnly: true
      volumes:
        - name: models
          persistentVolumeClaim:
            claimName: models
            readOnly: true
        - name: config
          configMap:
            name: {label}-serving
---
apiVersion: v1
kind: Service
metadata:
  name: {label}-serving
spec:
  selector:
    app: {label}-serving
  ports:
    - name: grpc
      port: {_GRPC_PORT}
      targetPort: grpc
    - name: rest
      port: {_REST_PORT}
      targetPort: rest
"""
