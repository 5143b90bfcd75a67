"""The peers: which there are, what they need, and what they cannot do."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest

from kdrt.pipeline.pipeline import Pipeline
from kdrt_bench import peers
from kdrt_bench.errors import PeerUnavailableError
from kdrt_bench.jobs import ImageWorkload
from kdrt_bench.peers import find_peer
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
