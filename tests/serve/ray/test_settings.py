"""An application from the arguments in a cluster's file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from kdrt.errors import InvalidRequestError
from kdrt.serve.limits import RequestLimits
from kdrt.serve.ray.settings import Application, RaySettings, application_of
from kdrt.serve.settings import (
    RELOAD_SECONDS,
    ModelSettings,
    ServerSettings,
    ServiceSettings,
)

KEY = "0123456789abcdef0123"


def test_names_alone_are_the_server_of_one_process() -> None:
    assert application_of({"bundles": ["demo"], "host": "127.0.0.1"}) == Application(
        models=[ModelSettings(bundle="demo")],
        service=ServiceSettings(reload=RELOAD_SECONDS),
        server=ServerSettings(),
        ray=RaySettings(),
    )


def test_every_part_is_reached(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(KEY)
    given = application_of(
        {
            "bundles": ["demo", {"bundle": "/bundles/sdxl", "loras": {"style": "style.st"}}],
            "host": "0.0.0.0",
            "api_key_file": str(keys),
            "max_body": 2,
            "max_pixels": 4096,
            "warmup": ["96x64"],
            "max_rows": 4,
            "reload": False,
            "min_replicas": 0,
            "max_replicas": 3,
            "num_gpus": 0.5,
            "models_per_replica": 1,
        }
    )
    assert given.models[1] == ModelSettings(
        bundle="/bundles/sdxl", loras={"style": Path("style.st")}
    )
    assert given.service == ServiceSettings(
        limits=RequestLimits(pixels=4096), warmup=((64, 96),), max_rows=4
    )
    assert given.server.max_body == 2 * 2**20
    assert given.ray == RaySettings(
        min_replicas=0, max_replicas=3, num_gpus=0.5, models_per_replica=1
    )
    travelled = pickle.loads(pickle.dumps(given))
    assert travelled.server.keys is not None
    assert travelled.server.keys.open(KEY)
    assert not travelled.server.keys.open(KEY[:-1] + "x")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "bundles must be a list"),
        ({"bundles": "demo"}, "bundles must be a list"),
        ({"bundles": [7]}, "must be a mapping"),
        ({"bundles": [{"bundle": "demo", "lora": {}}]}, "each of bundles is"),
        ({"max_replica": 2}, "unknown argument 'max_replica'.*did you mean 'max_replicas'"),
        ({"host": "0.0.0.0"}, "who need a key"),
        ({"host": None}, "host must be text"),
        ({"host": 7}, "host must be text"),
        ({"warmup": "64x64"}, "warmup must be a list of sizes"),
        ({"warmup": ["big"]}, "warmup must be a list of sizes"),
        ({"min_replicas": 2, "max_replicas": 1}, "max_replicas must be"),
        ({"num_gpus": -1}, "num_gpus must be at least 0"),
        ({"num_gpus": 1.5}, "num_gpus must be a whole number"),
        ({"models_per_replica": 0}, "models_per_replica must be"),
        ({"max_body": 0}, "max_body must be"),
        ({"reload": 2}, "reload must be"),
    ],
)
def test_wrong_arguments_are_one_sentence(given: dict[str, Any], said: str) -> None:
    with pytest.raises(InvalidRequestError, match=said):
        application_of({"bundles": ["demo"], "host": "127.0.0.1", **given} if given else {})


def test_keys_are_needed_unless_only_the_machine_can_connect() -> None:
    with pytest.raises(InvalidRequestError, match="who need a key"):
        application_of({"bundles": ["demo"]})


def test_replicas_of_a_machine_share_its_cores() -> None:
    assert RaySettings(num_cpus=2.5).threads(None) == 2
    assert RaySettings(num_cpus=0.5).threads(None) == 1
    assert RaySettings(num_cpus=2.5).threads(4) == 4
    assert RaySettings(num_gpus=1).threads(None) is None
