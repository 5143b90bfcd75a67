"""What ONNX Runtime is asked for on CUDA. Nothing here runs on a GPU: sessions are recorded."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnxruntime
import pytest
import torch

from kdrt_engines import EngineSpec, EngineUnavailableError, TensorSpec
from kdrt_engines.onnxruntime.config import OrtConfig
from kdrt_engines.onnxruntime.engine import OrtEngine

SPEC = EngineSpec((TensorSpec("x", "float16", ("B",)),), (TensorSpec("y", "float16", ("B",)),))
STREAM: Any = SimpleNamespace(cuda_stream=4242)


class Binding:
    def bind_input(self, *arguments: object) -> None: ...

    def bind_output(self, *arguments: object) -> None: ...


class Session:
    """Records how it is made and run."""

    made: list[Session]
    used: str | None = None

    def __init__(self, path: str, options: object, providers: list[tuple[str, dict[str, str]]]):
        self.providers = providers
        self.runs: list[Any] = []
        self.made.append(self)

    def get_providers(self) -> list[str]:
        return [self.used] if self.used else [name for name, _ in self.providers]

    def get_inputs(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(name="x")]

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, io: Binding, options: Any) -> None:
        self.runs.append(options)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> type[Session]:
    everything = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: everything)
    recorded = type("Recorded", (Session,), {"made": []})
    monkeypatch.setattr(onnxruntime, "InferenceSession", recorded)
    return recorded


def engine(provider: str, **options: Any) -> OrtEngine:
    # The memory may lie anywhere: it is only its address that is handed over.
    config = OrtConfig(provider, torch.device("cpu"), stream=STREAM, **options)
    return OrtEngine(Path("unet.onnx"), SPEC, config)


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_cuda_runs_on_our_stream(session: type[Session], cuda_graphs: bool) -> None:
    engine("CUDAExecutionProvider", cuda_graphs=cuda_graphs)
    ((name, options),) = session.made[0].providers
    assert name == "CUDAExecutionProvider"
    assert options == {
        "device_id": "0",
        "user_compute_stream": "4242",
        "enable_cuda_graph": str(int(cuda_graphs)),
    }


def test_tensorrt_has_cuda_behind_it_and_keeps_what_it_builds(
    session: type[Session], tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    engine("TensorrtExecutionProvider", cuda_graphs=True, engine_cache=cache)
    (name, options), (behind, rest) = session.made[0].providers
    assert (name, behind) == ("TensorrtExecutionProvider", "CUDAExecutionProvider")
    assert options["user_compute_stream"] == rest["user_compute_stream"] == "4242"
    assert options["trt_cuda_graph_enable"] == "True"
    assert options["trt_fp16_enable"] == "True", "the network is in half precision"
    assert options["trt_engine_cache_enable"] == "True"
    assert options["trt_engine_cache_path"] == str(cache)
    assert cache.is_dir()
    assert rest["enable_cuda_graph"] == "0", "only one of the two captures"


def test_a_run_does_not_wait_and_every_binding_has_a_cuda_graph(session: type[Session]) -> None:
    made = engine("CUDAExecutionProvider", cuda_graphs=True)
    for binding in (made.bind(B=1), made.bind(B=2)):
        binding.run()
        binding.run()
    runs = session.made[0].runs
    entries = [
        (
            options.get_run_config_entry("disable_synchronize_execution_providers"),
            options.get_run_config_entry("gpu_graph_id"),
        )
        for options in runs
    ]
    assert entries == [("1", "1"), ("1", "1"), ("1", "2"), ("1", "2")]


def test_it_is_not_for_others_to_capture(session: type[Session]) -> None:
    made = engine("CUDAExecutionProvider")
    assert not made.capturable
    assert made.stream is STREAM
    again = made.with_weights({})
    assert again.stream is STREAM
    assert session.made[1].providers == session.made[0].providers


def test_a_provider_that_is_dropped_is_an_error(session: type[Session]) -> None:
    session.used = "CPUExecutionProvider"
    with pytest.raises(EngineUnavailableError, match="dropped CUDAExecutionProvider"):
        engine("CUDAExecutionProvider")


def test_the_cpu_has_no_options(session: type[Session]) -> None:
    made = OrtEngine(Path("unet.onnx"), SPEC)
    assert session.made[0].providers == [("CPUExecutionProvider", {})]
    made.bind(B=1).run()
    assert session.made[0].runs == [None]
    assert torch.device("cpu") == made.device
