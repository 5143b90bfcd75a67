"""The peers: which there are, what they need, and what they cannot do."""

from __future__ import annotations

import inspect
import warnings
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

from kdrt.backends.fallback import FallbackWarning, warn_of_fallback
from kdrt.errors import (
    EngineRejectedError,
    EngineUnavailableError,
    InvalidRequestError,
    KdrtError,
)
from kdrt.pipeline.pipeline import Pipeline
from kdrt_bench import peers
from kdrt_bench.errors import PeerUnavailableError
from kdrt_bench.jobs import ImageWorkload
from kdrt_bench.peers import find_peer, info_of
from kdrt_bench.peers.diffusers_pipeline import DiffusersPipeline
from kdrt_bench.peers.own import Kdrt
from kdrt_bench.stages import StageClock
from kdrt_export.report import Silent
from kdrt_export.scheduler import scheduler_facts


def test_a_peer_that_is_not_installed_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        peers, "find_spec", lambda module: None if module == "openvino" else find_spec(module)
    )
    with pytest.raises(PeerUnavailableError, match="pip install openvino"):
        find_peer("openvino")


def test_a_peer_that_cannot_sample_a_continuous_model_says_so() -> None:
    """diffusers' EDM schedulers take no noise levels; on others' the image would be wrong."""
    scheduler = scheduler_facts({"_class_name": "EDMEulerScheduler"}, Silent())
    bundle: Any = SimpleNamespace(manifest=SimpleNamespace(scheduler=scheduler))
    job: Any = SimpleNamespace(model=None, threads=1)
    with pytest.raises(PeerUnavailableError, match="leave 'diffusers' out of --vs"):
        DiffusersPipeline(job, bundle, {}).generator(ImageWorkload(), StageClock())


def test_a_graph_level_is_an_argument_of_the_pipeline() -> None:
    peer = Kdrt.__new__(Kdrt)
    peer.options = {"cuda_graph": "loop"}
    bound = inspect.signature(Pipeline).bind_partial(**peer.pipeline_options())
    assert bound.arguments == {"cuda_graph": "loop"}


def test_kdrt_with_one_of_its_engines_is_a_peer() -> None:
    exact, lossy = info_of("kdrt:openvino"), info_of("kdrt:openvino:bf16")
    assert exact.options == {"engine": "openvino"}
    assert lossy.options == {"engine": "openvino:bf16"}
    assert (exact.lossy, lossy.lossy) == (False, True)
    assert "openvino:bf16" in lossy.title
    assert not info_of("kdrt").options


def test_an_engine_or_peer_that_there_is_not_is_named() -> None:
    with pytest.raises(InvalidRequestError, match="magic"):
        info_of("kdrt:magic")
    with pytest.raises(PeerUnavailableError, match=r"no peer 'magic'.*kdrt:ENGINE"):
        info_of("magic")


def _own(bundle: Any = None, **options: str) -> Kdrt:
    job: Any = SimpleNamespace(model=None, threads=1)
    return Kdrt(job, bundle, options)


@pytest.mark.parametrize(
    ("engine", "error", "unavailable"),
    [
        ("torch", EngineUnavailableError("there is none"), True),
        ("tensorrt", EngineRejectedError("there is none", "missing"), True),
        ("tensorrt", EngineRejectedError("there is none of use", "damaged"), False),
        (None, EngineUnavailableError("there is none"), False),
    ],
)
def test_only_an_engine_that_was_asked_for_may_be_missing(
    monkeypatch: pytest.MonkeyPatch, engine: str | None, error: Exception, unavailable: bool
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("kdrt_bench.peers.own.load_engines", missing)
    with warnings.catch_warnings():
        peer = _own(**({} if engine is None else {"engine": engine}))
        with pytest.raises(KdrtError, match="there is none") as caught:
            peer.engine("unet")
    assert isinstance(caught.value, PeerUnavailableError) is unavailable


def test_what_runs_on_another_engine_is_no_figure_of_this_one() -> None:
    with warnings.catch_warnings():
        _own(engine="inductor")
        with pytest.raises(FallbackWarning, match="unet runs on torch: too large"):
            warn_of_fallback("unet", "torch", ValueError("too large"))
