"""The files that start TensorFlow Serving parse with the official message types and contain the given settings."""

import http.server
import re
import subprocess
import sys
import threading

import kubernetes_validate
import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format, wrappers_pb2
from tensorflow_serving.config import model_server_config_pb2

from keras_distill import export


@pytest.fixture
def model(tmp_path):
    for version in ("1", "2", "10", "draft"):
        (tmp_path / "serving" / "digits_Student" / version).mkdir(parents=True)
    return tmp_path / "serving" / "digits_Student"


def batching_parameters():
    """The message tensorflow.serving.BatchingParameters, which tensorflow-serving-api does not ship.

    Facts of tensorflow_serving/servables/tensorflow/session_bundle_config.proto: field names, numbers and types.
    """
    pool = descriptor_pool.DescriptorPool()
    wrappers = descriptor_pb2.FileDescriptorProto()
    wrappers_pb2.DESCRIPTOR.CopyToProto(wrappers)
    pool.Add(wrappers)
    file = descriptor_pb2.FileDescriptorProto(
        name="session_bundle_config.proto", package="tensorflow.serving", syntax="proto3", dependency=[wrappers.name]
    )
    message = file.message_type.add(name="BatchingParameters")
    field = descriptor_pb2.FieldDescriptorProto
    for number, name in enumerate(
        ["max_batch_size", "batch_timeout_micros", "max_enqueued_batches", "num_batch_threads"], 1
    ):
        message.field.add(
            name=name, number=number, type=field.TYPE_MESSAGE, label=1, type_name=".google.protobuf.Int64Value"
        )
    message.field.add(name="allowed_batch_sizes", number=6, type=field.TYPE_INT64, label=3)
    message.field.add(name="pad_variable_length_inputs", number=7, type=field.TYPE_BOOL, label=1)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.serving.BatchingParameters"))


def test_models_config_parses_with_the_official_message(model):
    files = export.serving_files(model)
    parsed = text_format.Parse(files["models.config"].read_text(), model_server_config_pb2.ModelServerConfig())
    (config,) = parsed.model_config_list.config
    assert (config.name, config.base_path) == ("digits_Student", "/models/digits_Student")
    assert config.model_platform == "tensorflow"
    assert dict(config.version_labels) == {"stable": 2, "canary": 10}
    assert list(config.model_version_policy.specific.versions) == [2, 10]


def test_labels_are_those_given_by_the_user(model):
    files = export.serving_files(model, labels={"stable": 10})
    parsed = text_format.Parse(files["models.config"].read_text(), model_server_config_pb2.ModelServerConfig())
    (config,) = parsed.model_config_list.config
    assert dict(config.version_labels) == {"stable": 10}
    assert list(config.model_version_policy.specific.versions) == [10]


def test_batching_parameters_parse_with_the_official_message(model):
    files = export.serving_files(model, max_batch_size=64, batch_timeout_micros=500, num_batch_threads=2)
    parsed = text_format.Parse(files["batching_parameters.txt"].read_text(), batching_parameters()())
    assert parsed.max_batch_size.value == 64
    assert parsed.batch_timeout_micros.value == 500
    assert parsed.num_batch_threads.value == 2
    assert parsed.max_enqueued_batches.value == 100


def test_compose_file(model):
    files = export.serving_files(model, image="tensorflow/serving:2.19.0")
    compose = yaml.safe_load(files["docker-compose.yml"].read_text())
    assert set(compose) == {"services"}
    (service,) = compose["services"].values()
    # Keys and types of the Compose specification's service object.
    kinds = dict(image=str, command=list, ports=list, volumes=list, healthcheck=dict, restart=str)
    assert {key: type(value) for key, value in service.items()} == kinds
    assert service["image"] == "tensorflow/serving:2.19.0"
    assert service["ports"] == ["8500:8500", "8501:8501"]
    assert set(service["healthcheck"]) == {"test", "interval", "timeout", "retries", "start_period"}
    mounts = {}
    for volume in service["volumes"]:
        source, target, mode = volume.split(":")
        assert mode == "ro"
        assert (files["docker-compose.yml"].parent / source).exists()  # relative to the compose file
        mounts[target] = source
    assert mounts["/models/digits_Student"] == "./digits_Student"
    for argument in service["command"]:
        flag, value = argument.split("=")
        assert flag.startswith("--")
        if value.startswith("/"):
            assert value in mounts
    assert "--allow_version_labels_for_unavailable_models=true" in service["command"]


def test_serving_files_elsewhere_refer_to_the_model(model, tmp_path):
    files = export.serving_files(model, tmp_path / "deploy" / "prod")
    compose = yaml.safe_load(files["docker-compose.yml"].read_text())
    source = compose["services"]["serving"]["volumes"][0].split(":")[0]
    assert (files["docker-compose.yml"].parent / source).resolve() == model.resolve()


def test_kubernetes_manifest(model):
    files = export.serving_files(model)
    documents = list(yaml.safe_load_all(files["kubernetes.yaml"].read_text()))
    config, deployment, service = documents
    assert [d["kind"] for d in documents] == ["ConfigMap", "Deployment", "Service"]
    for name in ("models.config", "batching_parameters.txt"):
        assert config["data"][name] == files[name].read_text()
    for document in documents:
        assert re.fullmatch(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?", document["metadata"]["name"])
    template = deployment["spec"]["template"]
    labels = template["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == labels == service["spec"]["selector"]
    (container,) = template["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": 8500, "rest": 8501}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == set(ports)
    probe = container["readinessProbe"]["httpGet"]
    assert probe == {"path": "/v1/models/digits_Student/metadata", "port": "rest"}
    volumes = {volume["name"]: volume for volume in template["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == set(volumes)
    assert volumes["config"]["configMap"]["name"] == config["metadata"]["name"]


def check_compose(path):
    """Output of check-jsonschema for a file, with the Compose specification's schema that it includes."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_compose_file_fits_the_schema_of_the_specification(model, tmp_path):
    path = export.serving_files(model)["docker-compose.yml"]
    done = check_compose(path)
    assert done.returncode == 0, done.stdout
    misspelt = tmp_path / "compose.yml"
    misspelt.write_text(path.read_text().replace("    healthcheck:", "    health_check:"))
    done = check_compose(misspelt)
    assert done.returncode == 1 and "'health_check' was unexpected" in done.stdout  # the schema detects errors


def test_kubernetes_manifest_fits_the_schemas_of_the_api(model):
    documents = list(yaml.safe_load_all(export.serving_files(model)["kubernetes.yaml"].read_text()))
    for version in ("1.28", "1.33", kubernetes_validate.latest_version()):
        for document in documents:
            kubernetes_validate.validate(document, version, strict=True)  # strict: no unknown key
    container = documents[1]["spec"]["template"]["spec"]["containers"][0]
    container["readinessProbe"]["httpGet"]["port"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(documents[1], "1.33", strict=True)


@pytest.mark.parametrize(("status", "code"), [(200, 0), (404, 1)])
def test_the_health_check_really_queries_the_server(model, status, code):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/v1/models/digits_Student/metadata" else 500)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    compose = yaml.safe_load(export.serving_files(model)["docker-compose.yml"].read_text())
    kind, *command = compose["services"]["serving"]["healthcheck"]["test"]
    assert kind == "CMD"
    command[-1] = command[-1].replace("/8501", f"/{server.server_port}")
    try:
        assert subprocess.run(command, timeout=20).returncode == code
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(labels={"stable": 3}), r"expected labels\['stable'\] to be one of the versions \[1, 2, 10\], got 3"),
        (dict(labels={'a" }': 1}), r"expected labels of letters, digits, '\.', '_' and '-', got a\""),
        (dict(labels={}), "expected at least one label, got {}"),
        (dict(max_batch_size=0), "expected max_batch_size to be an integer >= 1, got 0"),
        (dict(batch_timeout_micros=1.5), "expected batch_timeout_micros to be an integer >= 0, got 1.5"),
        (dict(image="x\ny: z"), "expected image to be a container image name"),
    ],
)
def test_bad_arguments(model, change, message):
    with pytest.raises(ValueError, match=message):
        export.serving_files(model, **change)
    assert not (model.parent / "models.config").exists()


def test_missing_versions_and_invalid_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"expected a directory with a numbered version, got .*nothing\. Use export"):
        export.serving_files(tmp_path / "nothing")
    strange = tmp_path / 'a"b'
    (strange / "1").mkdir(parents=True)
    with pytest.raises(ValueError, match="expected a directory name of letters, digits"):
        export.serving_files(strange)
