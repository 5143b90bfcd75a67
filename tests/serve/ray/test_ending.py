"""How an application ends: the front drains before its route goes. No cluster is needed."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from kdrt.serve.ray.cluster import serve_on_ray
from kdrt.serve.ray.settings import Application
from kdrt.serve.settings import ModelSettings, ServerSettings
from tests.support.serving import client_of, until

pytest.importorskip("ray", reason="ray is an extra")

from ray.exceptions import ActorUnavailableError

from kdrt.serve.ray.app import Front


def call(function: Callable[..., object]) -> SimpleNamespace:
    """A method of a deployment's handle: what ``remote`` returns calls ``function``."""
    return SimpleNamespace(remote=lambda: SimpleNamespace(result=function))


def test_a_front_that_drains_sends_clients_away_for_a_while(demo_bundle: Path) -> None:
    images = SimpleNamespace(is_warm=call(lambda: True))
    front = Front(Application(models=[ModelSettings(bundle=str(demo_bundle))]), images)
    client = client_of(front.__serve_build_asgi_app__())
    until(lambda: client.get("/readyz").status_code == 200)
    asyncio.run(front.drain())
    assert client.get("/readyz").status_code == 503
    answer = client.post("/v1/generate", json={"prompt": "a red circle"})
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0


@pytest.mark.parametrize("is_there", [True, False])
def test_the_front_drains_before_ray_deletes_it(
    monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    happened: list[str] = []

    def drain(timeout_s: float) -> None:
        happened.append("drain")
        assert timeout_s > 7
        if not is_there:
            raise ActorUnavailableError("gone", b"1" * 16)

    def nothing(*_: object, **__: object) -> None:
        """Neither a cluster nor an application is started."""

    monkeypatch.setattr("kdrt.serve.ray.cluster._start_serve", nothing)
    monkeypatch.setattr("ray.init", nothing)
    monkeypatch.setattr("ray.shutdown", nothing)
    monkeypatch.setattr("ray.serve.run", nothing)
    monkeypatch.setattr("ray.serve.status", lambda: SimpleNamespace(applications={}))
    monkeypatch.setattr("ray.serve.get_app_handle", lambda _: SimpleNamespace(drain=call(drain)))
    monkeypatch.setattr("ray.serve.delete", lambda _: happened.append("delete"))
    application = Application(models=[ModelSettings(bundle="demo")], server=ServerSettings(grace=7))
    serve_on_ray(application, "auto", lambda _: signal.raise_signal(signal.SIGTERM))
    assert happened == ["drain", "delete"]
