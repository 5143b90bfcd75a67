"""``kdrt serve --ray``: what it is given is checked before a cluster is started."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from kdrt.serve.ray.settings import Application, RaySettings
from tests.support.command_line import Cli


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Application, str | None]]:
    """The applications that were started, on which cluster; Ray is there, or seems to be."""
    found: list[tuple[Application, str | None]] = []

    def record(
        application: Application, address: str | None, announce: Callable[[str], object]
    ) -> None:
        found.append((application, address))
        announce("http://127.0.0.1:1234")

    monkeypatch.setitem(sys.modules, "ray", type(sys)("ray"))
    sys.modules["ray"].__spec__ = ModuleSpec("ray", None)
    monkeypatch.setattr("kdrt.serve.ray.cluster.serve_on_ray", record)
    monkeypatch.setattr("kdrt.serve.log.start_logging", lambda form: None)
    return found


def test_what_is_given_reaches_the_cluster(
    cli: Cli,
    demo: str,
    demo_bundle: Path,
    started: list[tuple[Application, str | None]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(demo_bundle.parent)
    outcome = cli(
        *("serve", "./demo", "--ray", "--ray-address", "auto", "--max-waiting", "7"),
        *("--min-replicas", "0", "--max-replicas", "3", "--num-gpus", "0.5", "--num-cpus", "2"),
        *("--models-per-replica", "1", "--log-format", "json"),
    )
    assert outcome.code == 0, outcome.err
    assert "demo on http://127.0.0.1:1234, made on Ray" in outcome.out
    ((application, address),) = started
    assert address == "auto"
    # Its processes have a folder of their own.
    assert [Path(model.bundle) for model in application.models] == [demo_bundle]
    assert application.service.max_waiting == 7
    assert application.log == "json"
    assert application.ray == RaySettings(
        min_replicas=0, max_replicas=3, num_gpus=0.5, num_cpus=2.0, models_per_replica=1
    )


def test_the_defaults(cli: Cli, demo: str, started: list[tuple[Application, str | None]]) -> None:
    assert cli("serve", demo, "--ray", "--min-replicas", "2", "--num-gpus", "0").code == 0
    ((application, address),) = started
    assert address is None
    assert [model.bundle for model in application.models] == ["demo"]
    assert application.ray == RaySettings(min_replicas=2, max_replicas=2)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--min-replicas", "2"], "--min-replicas is for a Ray cluster: add --ray"),
        (["--ray-address", "auto", "--num-cpus", "1"], "--ray-address, --num-cpus is for a Ray"),
        (["--ray", "--workers", "2"], "--workers and --devices are for this process"),
        (["--ray", "--memory", "2"], "on Ray it is --models-per-replica"),
        (["--ray", "--port", "0"], "give one as --port"),
        (["--ray", "--min-replicas", "-1"], "min_replicas must be"),
        (["--ray", "--min-replicas", "3", "--max-replicas", "2"], "max_replicas must be"),
        (["--ray", "--num-gpus", "-1"], "num_gpus must be at least 0"),
        (["--ray", "--num-cpus", "nan"], "num_cpus"),
    ],
)
def test_wrong_values_are_one_sentence(
    cli: Cli,
    demo: str,
    started: list[tuple[Application, str | None]],
    arguments: list[str],
    said: str,
) -> None:
    assert said in cli("serve", demo, *arguments).refusal()
    assert started == []


def test_without_ray_it_says_what_to_install(
    cli: Cli, demo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from importlib.util import find_spec

    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if name == "ray" else find_spec(name)
    )
    assert "pip install 'kdrt[ray]'" in cli("serve", demo, "--ray").refusal()
