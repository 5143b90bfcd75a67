"""What keeps an application from starting on Ray is told in one sentence; no cluster is needed."""

from __future__ import annotations

from typing import Any

import pytest

from kdrt.errors import KdrtError
from kdrt.serve.ray.cluster import serve_on_ray
from kdrt.serve.ray.settings import Application
from kdrt.serve.settings import ModelSettings

pytest.importorskip("ray", reason="ray is an extra")

from ray.exceptions import AuthenticationError, RaySystemError
from ray.serve.exceptions import RayServeException

APPLICATION = Application(models=[ModelSettings(bundle="demo")])


def raises(error: Exception) -> Any:
    def function(*_: object, **__: object) -> None:
        raise error

    return function


def refused() -> str:
    with pytest.raises(KdrtError) as caught:
        serve_on_ray(APPLICATION, "auto", print)
    return str(caught.value)


def test_a_cluster_that_lets_nobody_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray.init", raises(AuthenticationError("no token")))
    assert refused().startswith("cannot connect to the Ray cluster auto: no token")


@pytest.mark.parametrize(
    "error", [RaySystemError("it broke"), RayServeException("it broke"), ValueError("it\nbroke")]
)
def test_a_cluster_that_goes_away_hides_no_error(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr("kdrt.serve.ray.cluster._start_serve", lambda host, port: None)
    monkeypatch.setattr("ray.init", lambda **_: None)
    monkeypatch.setattr("ray.shutdown", lambda: None)
    monkeypatch.setattr("ray.serve.run", raises(error))
    monkeypatch.setattr("ray.serve.status", raises(RaySystemError("it has gone")))
    said = refused()
    assert said.startswith("Ray does not start the application: ")
    assert said.endswith("it broke")
