"""The files in ``deploy/``: what they name is there. None of what they are for runs here."""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from kdrt import cli
from kdrt.serve.app import create_app
from kdrt.serve.ray.settings import application_of
from kdrt.serve.service import ImageService
from kdrt.serve.settings import ModelSettings

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
KEY = "0123456789abcdef0123"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def documents(name: str) -> list[dict[str, Any]]:
    text = (DEPLOY / "kubernetes" / name).read_text(encoding="utf-8")
    return list(yaml.safe_load_all(text))


@pytest.fixture(scope="module")
def dockerfile() -> list[tuple[str, str]]:
    """The instructions of the last stage, and their arguments in one line."""
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    found: list[tuple[str, str]] = []
    for line in filter(str.strip, joined.splitlines()):
        word, rest = line.split(maxsplit=1)
        found = [] if word == "FROM" else found
        found.append((word, " ".join(rest.split())))
    return found


@pytest.fixture(scope="module")
def paths(demo_bundle: Path) -> set[str]:
    """Of the application."""
    service = ImageService([ModelSettings(bundle=str(demo_bundle))])
    return set(create_app(service).openapi()["paths"])


def serve_options() -> set[str]:
    group: Any = typer.main.get_command(cli.app)
    return {name for parameter in group.commands["serve"].params for name in parameter.opts}


def test_the_container_runs_the_server_as_nobody_special(
    dockerfile: list[tuple[str, str]], paths: set[str]
) -> None:
    said = dict(dockerfile)
    assert int(said["USER"]) >= 10_000
    (program, command, *words) = json.loads(said["ENTRYPOINT"])
    assert (program, command) == ("kdrt", "serve")
    options = {word for word in words if word.startswith("--")}
    assert options <= serve_options()
    assert "--api-key-file" in options
    address = re.search(r"http://127\.0\.0\.1:(\d+)(/\w+)", said["HEALTHCHECK"])
    assert address is not None
    assert address[2] in paths
    assert address[1] == words[words.index("--port") + 1] == said["EXPOSE"]
    assert not [word for word, rest in dockerfile if re.search("(?i)password|token|key=", rest)]


def test_the_container_is_made_of_what_is_here() -> None:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {line[1:] for line in ignore if line.startswith("!")}
    copied = {
        word
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE)
        for word in line.split()
    }
    assert copied == sent
    assert all((ROOT / place).exists() for place in copied)
    extras = set(re.findall(r'extras="([a-z,]+)\$', text))
    assert {extra for each in extras for extra in each.split(",")} <= set(
        PROJECT["optional-dependencies"]
    )
    (base,) = re.findall(r"^ARG BASE=(\S+)$", text, re.MULTILINE)
    assert re.fullmatch(r"python:3\.11-slim-\w+", base), "the version that the tests run with"


def containers(pod: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Those of a pod's template, after a look at what holds for every pod."""
    spec = pod["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["automountServiceAccountToken"] is False
    volumes = {volume["name"] for volume in spec["volumes"]}
    for container in spec["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert "memory" in container["resources"]["limits"]
        yield container


def test_the_deployment_names_what_is_there(paths: set[str]) -> None:
    deployment, service = documents("deployment.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels
    (container,) = containers(deployment["spec"]["template"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert asked["path"] in paths
        assert asked["port"] in ports
    assert service["spec"]["ports"][0]["targetPort"] in ports
    args = container["args"]
    assert {word for word in args if word.startswith("--")} <= serve_options()
    grace = int(args[args.index("--grace") + 1])
    assert deployment["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > grace


def test_the_ray_service_is_an_application(tmp_path: Path) -> None:
    (manifest,) = documents("rayservice.yaml")
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayService")
    config = yaml.safe_load(manifest["spec"]["serveConfigV2"])
    (application,) = config["applications"]
    module, function = application["import_path"].split(":")
    source = ROOT / f"{module.replace('.', '/')}.py"
    defined = {node.name for node in ast.parse(source.read_text()).body if hasattr(node, "name")}
    assert function in defined
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    wanted = application_of({**application["args"], "api_key_file": str(keys)})
    assert wanted.server.host == config["http_options"]["host"]
    assert wanted.server.keys is not None
    cluster = manifest["spec"]["rayClusterConfig"]
    (worker,) = cluster["workerGroupSpecs"]
    assert wanted.ray.max_replicas == worker["maxReplicas"]
    mounted = []
    for group in (cluster["headGroupSpec"], worker):
        (container,) = containers(group["template"])
        mounted = [mount["mountPath"] for mount in container["volumeMounts"]]
        assert application["args"]["api_key_file"] in mounted
    assert container["resources"]["limits"]["nvidia.com/gpu"] == wanted.ray.num_gpus
    assert wanted.models[0].bundle.startswith(tuple(mounted))
