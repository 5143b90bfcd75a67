"""What Ray is asked for, without a cluster."""

from __future__ import annotations

import importlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

pytest.importorskip("ray", reason="ray is an extra")

from ray.serve.schema import ServeDeploySchema

from kdrt.errors import InvalidRequestError
from kdrt.serve.ray.app import Front, build
from kdrt.serve.ray.settings import Application
from kdrt.serve.settings import ModelSettings
from tests.support.serving import until

MANIFEST = Path(__file__).parents[3] / "deploy" / "kubernetes" / "rayservice.yaml"


def deployments(**args: Any) -> tuple[Any, Any]:
    """The front and the replicas."""
    front = build({"bundles": ["demo"], "host": "127.0.0.1", **args})._bound_deployment
    (images,) = (each for each in front.init_args if hasattr(each, "_bound_deployment"))
    return front, images._bound_deployment


def test_a_replica_has_twice_what_fills_an_evaluation() -> None:
    front, images = deployments(num_cpus=2)
    assert (front.name, images.name) == ("front", "images")
    assert (images.num_replicas, images.max_ongoing_requests) == (1, 16)
    assert images.ray_actor_options["num_cpus"] == 2
    _, images = deployments(num_gpus=1)
    assert images.max_ongoing_requests == 32
    assert images.ray_actor_options["num_gpus"] == 1
    _, images = deployments(max_rows=6, grace=7)
    assert images.max_ongoing_requests == 12
    assert images._deployment_config.graceful_shutdown_timeout_s == 7


def test_a_range_of_replicas_is_ray_to_choose_from() -> None:
    _, images = deployments(min_replicas=0, max_replicas=4, max_rows=6)
    scaling = images._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (0, 4)
    assert scaling.target_ongoing_requests == 3


@pytest.mark.parametrize(
    "args", [{"max_rows": 0}, {"max_rows": "8"}, {"num_gpus": 1.5}, {"grace": "30"}]
)
def test_what_ray_would_not_take_is_refused(args: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequestError, match=next(iter(args))):
        deployments(**args)


def test_a_front_that_cannot_load_is_ill(demo_bundle: Path) -> None:
    application = Application(models=[ModelSettings(bundle=str(demo_bundle))])
    front = Front(application, None)  # whose replicas cannot even be asked

    def is_ill() -> bool:
        with suppress(AttributeError):
            front.check_health()
            return False
        return True

    until(is_ill)


def test_ray_reads_the_manifest_and_finds_the_application() -> None:
    manifest = yaml.safe_load(MANIFEST.read_text(encoding="utf-8"))
    config = ServeDeploySchema.model_validate(yaml.safe_load(manifest["spec"]["serveConfigV2"]))
    (application,) = config.applications
    module, name = application.import_path.split(":")
    assert getattr(importlib.import_module(module), name) is build
