"""``kdrt serve``: what it is given is checked before anything is loaded."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

from kdrt.cli.serve import serve
from kdrt.serve.limits import RequestLimits
from kdrt.serve.service import ImageService
from kdrt.serve.settings import ServerSettings, ServiceSettings
from kdrt.serve.workers.specs import WorkerSpec
from tests.support.command_line import Cli


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--host", "0.0.0.0"], "others than this machine may connect, who need a key"),
        (["--port", "70000"], "port must be at most 65535"),
        (["--max-waiting", "0"], "max_waiting must be a whole number of at least 1"),
        (["--max-pixels", "0"], "max_pixels must be"),
        (["--max-body", "0"], "--max-body must be"),
        (["--deadline", "0"], "deadline must be seconds above 0"),
        (["--deadline", "nan"], "deadline"),
        (["--grace", "-1"], "grace must be seconds"),
        (["--warmup", "big"], "--warmup takes"),
        (["--warmup", "64x64", "--no-warmup"], "exclude each other"),
        (["--lora", "style"], "--lora takes a name and a file"),
        (["--lora", "=style.safetensors"], "--lora takes a name and a file"),
        (["--lora", "other:style=a.safetensors"], "--lora takes a name and a file"),
        (["--lora", "style=nothing.safetensors"], "nothing.safetensors"),
        (["--lora", "a=b.safetensors", "--lora", "demo:a=c.safetensors"], "names 'a' twice"),
        (["--api-key-file", "nothing"], "cannot read keys from nothing"),
        (["--log-format", "xml"], "--log-format"),
        (["--memory", "0"], "--memory takes GB above 0 and up to 100000"),
        (["--memory", "nan"], "--memory takes GB"),
        (["--memory", "0.001"], "needs at least"),
        (["--workers", "0"], "workers must be a whole number of at least 1"),
        (["--workers", "2", "--devices", "0,1"], "exclude each other"),
        (["--devices", "0,,1"], "--devices takes GPUs with commas between them"),
        (["--devices", "0,0"], "name none twice"),
    ],
)
def test_wrong_values_are_one_sentence(
    cli: Cli, demo: str, arguments: list[str], said: str
) -> None:
    assert said in cli("serve", demo, *arguments).refusal()


def test_an_unknown_bundle_is_refused(cli: Cli, home: Path) -> None:
    assert "there is no bundle 'nothing'" in cli("serve", "nothing").refusal()


def test_the_defaults_are_those_of_the_service() -> None:
    given = {
        name: parameter.default for name, parameter in inspect.signature(serve).parameters.items()
    }
    limits, server, service = RequestLimits(), ServerSettings(), ServiceSettings()
    assert (given["max_pixels"], given["max_steps"]) == (limits.pixels, limits.steps)
    assert (given["max_images"], given["max_prompt"]) == (limits.images, limits.prompt)
    assert (given["host"], given["port"]) == (server.host, server.port)
    assert (given["max_body"] * 2**20, given["grace"]) == (server.max_body, server.grace)
    assert (given["max_waiting"], given["deadline"]) == (service.max_waiting, service.deadline)


def test_what_is_given_reaches_the_server(
    cli: Cli, demo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served: list[tuple[ImageService, ServerSettings]] = []

    def record(service: ImageService, settings: ServerSettings, announce: Any) -> None:
        served.append((service, settings))
        announce("http://127.0.0.1:1234")

    monkeypatch.setattr("kdrt.serve.server.serve", record)
    monkeypatch.setattr("kdrt.serve.log.start_logging", lambda form: None)
    keys = tmp_path / "keys"
    keys.write_text("0123456789abcdef\n")
    outcome = cli(
        *("serve", demo, "--host", "0.0.0.0", "--port", "0", "--api-key-file", keys),
        *("--max-waiting", "7", "--max-steps", "30", "--warmup", "48x32", "--deadline", "9"),
        *("--max-rows", "4", "--threads", "1", "--grace", "2", "--max-body", "3"),
        *("--memory", "0.5", "--no-reload"),
    )
    assert outcome.code == 0, outcome.err
    assert "demo on http://127.0.0.1:1234" in outcome.out
    ((service, settings),) = served
    assert service.settings.limits == RequestLimits(steps=30)
    assert service.settings.warmup == ((32, 48),)
    assert (service.settings.max_waiting, service.settings.deadline) == (7, 9.0)
    assert (service.settings.max_rows, service.settings.threads) == (4, 1)
    assert (service.settings.memory, service.settings.reload) == (500_000_000, None)
    assert (settings.host, settings.port, settings.grace) == ("0.0.0.0", 0, 2.0)
    assert settings.max_body == 3 * 2**20
    assert settings.keys is not None
    assert settings.keys.open("0123456789abcdef")


def test_workers_get_their_share_of_the_machine(
    cli: Cli, demo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[WorkerSpec] = []
    monkeypatch.setattr("kdrt.serve.server.serve", lambda *given: None)
    monkeypatch.setattr("kdrt.serve.log.start_logging", lambda form: None)
    monkeypatch.setattr("kdrt.serve.workers.pool.WorkerPool", made.extend)
    outcome = cli("serve", demo, "--workers", "2", "--threads", "3", "--log-format", "json")
    assert outcome.code == 0, outcome.err
    assert [spec.name for spec in made] == ["0", "1"]
    start = made[1].start
    assert (start.settings.threads, start.needs_gpu, start.log) == (3, False, "json")
    assert [model.bundle for model in start.models] == [demo]


def test_a_missing_package_is_named(cli: Cli, demo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'kdrt[serve]'" in cli("serve", demo).refusal()
