"""The model as Triton runs it: its own parser reads the configuration, and a stand-in for the
backend's module calls the program that was written."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import kdrt
from kdrt.bundle import open_bundle
from kdrt.errors import OutOfMemoryError
from kdrt.request.fields import FIELDS
from kdrt.serve.triton.repository import write_repository
from tests.support.fake_triton import (
    InferenceRequest,
    InferenceResponse,
    Sender,
    TritonError,
    backend_utils,
)
from tests.support.serving import until, value_of, waiting_model

STEPS = 6


@pytest.fixture(scope="module")
def repository(demo_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    parameters = {"threads": "1", "max_pixels": "16384"}
    target = tmp_path_factory.mktemp("models")
    return write_repository(open_bundle(demo_bundle), target, parameters=parameters)


@pytest.fixture(scope="module")
def config(repository: Path) -> Any:
    """``config.pbtxt`` as the server reads it."""
    pb2 = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import text_format

    text = (repository / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, pb2.ModelConfig())


@pytest.fixture(scope="module")
def model(repository: Path, config: Any) -> Iterator[Any]:
    """The loaded model."""
    with loaded(repository, config) as made:
        yield made


@contextmanager
def loaded(repository: Path, config: Any) -> Iterator[Any]:
    """A model that is loaded within the block."""
    from google.protobuf import json_format

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "triton_python_backend_utils", backend_utils())
        spec = importlib.util.spec_from_file_location("model", repository / "1" / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        made = module.TritonPythonModel()
        made.initialize(
            {
                "model_config": json_format.MessageToJson(config, preserving_proto_field_name=True),
                "model_repository": str(repository),
                "model_version": "1",
                "model_instance_kind": "MODEL",
            }
        )
        yield made
        made.finalize()


def inputs_of(**fields: Any) -> dict[str, NDArray[Any]]:
    """Tensors as a client sends them."""
    dtypes = {str: np.object_, int: np.int64, float: np.float64, bool: np.bool_}
    return {
        name: value
        if isinstance(value, np.ndarray)
        else np.array([value.encode() if isinstance(value, str) else value], dtypes[type(value)])
        for name, value in fields.items()
    }


def asked(model: Any, **fields: Any) -> InferenceRequest:
    request = InferenceRequest(inputs_of(**fields))
    assert model.execute([request]) is None
    request.reuse_memory()
    return request


def failed(response: InferenceResponse) -> tuple[str, str]:
    assert response.error is not None
    return response.error.code, response.error.message


def test_the_server_reads_the_configuration(config: Any) -> None:
    assert (config.name, config.backend, config.max_batch_size) == ("demo", "python", 0)
    assert config.model_transaction_policy.decoupled
    (group,) = config.instance_group
    assert (group.count, group.Kind.Name(group.kind)) == (1, "KIND_MODEL")
    assert [each.name for each in config.input if not each.optional] == ["prompt"]
    assert all(each.name in FIELDS for each in config.input)
    kinds = {each.name: each.DESCRIPTOR.fields_by_name["data_type"] for each in config.input}
    names = {
        each.name: kinds[each.name].enum_type.values_by_number[each.data_type].name
        for each in config.input
    }
    given = ("negative_prompt", "seed", "steps", "guidance_scale", "width", "sampler", "image")
    assert [names[name] for name in given] == [
        *("TYPE_STRING", "TYPE_INT64", "TYPE_INT64", "TYPE_FP64", "TYPE_INT64", "TYPE_STRING"),
        "TYPE_UINT8",
    ]
    assert config.parameters["max_pixels"].string_value == "16384"


def test_requests_share_and_are_the_images_made_alone(
    model: Any, config: Any, demo_bundle: Path
) -> None:
    crowd: list[dict[str, Any]] = [
        {"prompt": "a red circle", "seed": 7, "steps": STEPS},
        {"prompt": "a blue square", "seed": 8, "steps": STEPS, "sampler": "dpmpp_2m"},
        {"prompt": "a star", "seed": 9, "steps": STEPS, "guidance_scale": 1.0},
    ]
    service = model._service
    before = value_of(service, "kdrt_tick_images_sum", model="demo")
    ticks = value_of(service, "kdrt_tick_images_count", model="demo")
    with waiting_model(service):
        requests = [asked(model, **fields) for fields in crowd]
        until(lambda: service.model().queue.waiting == len(crowd))
    answers = [request.sender.answer() for request in requests]
    images = value_of(service, "kdrt_tick_images_sum", model="demo") - before
    assert images == len(crowd) * STEPS
    assert value_of(service, "kdrt_tick_images_count", model="demo") - ticks < images
    with kdrt.load(demo_bundle, threads=1) as pipe:
        for fields, answer in zip(crowd, answers, strict=True):
            assert answer.error is None
            described = {each.name: list(each.dims) for each in config.output}
            assert {name: array.ndim for name, array in answer.outputs.items()} == {
                name: len(dims) for name, dims in described.items()
            }
            alone = pipe(**fields)
            pixels = np.asarray(alone.images[0], np.int16)
            assert np.abs(answer.outputs["images"][0].astype(np.int16) - pixels).max() <= 1
            assert answer.outputs["images"].dtype == np.uint8
            assert answer.outputs["seeds"].tolist() == [fields["seed"]]
            (text,) = answer.outputs["infotexts"]
            assert text.decode() == str(alone.infotexts[0])


def test_an_image_to_begin_with(model: Any) -> None:
    image = np.full((64, 96, 3), (200, 30, 30), np.uint8)
    fields = {"prompt": "a red circle", "steps": 2, "strength": 0.5, "images_per_prompt": 2}
    answer = asked(model, image=image, **fields).sender.answer()
    assert answer.error is None
    assert answer.outputs["images"].shape == (2, 64, 96, 3)
    # The memory of the input is not the request's: it was used again at once.
    assert answer.outputs["images"][..., 0].mean() > 100


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"prompt": "x", "steps": 0}, "steps"),
        ({"prompt": "x", "sampler": "nothing"}, "unknown sampler 'nothing'"),
        ({"prompt": "x", "width": 512, "height": 512}, "this server makes 16384"),
        ({"prompt": "x", "mask_image": np.zeros((4, 4, 3), np.uint8)}, "mask_image must be uint8"),
        ({"prompt": np.array([b"a", b"b"], np.object_)}, "prompt must be one value, not 2"),
        ({"prompt": np.array([b"\xff"], np.object_)}, "prompt must be text in UTF-8"),
    ],
)
def test_wrong_requests_are_one_sentence(model: Any, fields: dict[str, Any], said: str) -> None:
    code, message = failed(asked(model, **fields).sender.answer())
    assert code == TritonError.INVALID_ARG
    assert said in message


def test_what_is_made_is_sent_before_it_ends(
    repository: Path, config: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_made = threading.Semaphore(0)
    logged: list[str] = []
    with loaded(repository, config) as model:
        program = type(model).execute.__globals__
        tensors_of = program["tensors_of"]

        def slowly(result: Any) -> Any:
            is_made.release()
            time.sleep(0.2)
            return tensors_of(result)

        monkeypatch.setitem(program, "tensors_of", slowly)
        monkeypatch.setattr(program["pb_utils"].Logger, "log_error", logged.append)
        sent, unsent = (InferenceRequest(inputs_of(prompt="x", steps=1)) for _ in range(2))
        unsent.sender = Unreachable()
        model.execute([sent, unsent])
        assert is_made.acquire(timeout=60)
        assert is_made.acquire(timeout=60)
    assert sent.sender.is_final.is_set()
    assert sent.sender.answer().error is None
    assert logged == ["an answer could not be sent: ConnectionError('the server has gone')"]


class Unreachable(Sender):
    """A sender that cannot send."""

    def send(self, response: InferenceResponse, flags: int = 0) -> None:
        raise ConnectionError("the server has gone")


def test_what_the_server_is_to_blame_for_is_logged(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(request: Any) -> None:
        raise OutOfMemoryError("12 bytes are missing")

    logged: list[str] = []
    monkeypatch.setattr(
        type(model).execute.__globals__["pb_utils"].Logger, "log_error", logged.append
    )
    monkeypatch.setattr(model._service, "submit", fail)
    code, said = failed(asked(model, prompt="x").sender.answer())
    assert code == TritonError.UNAVAILABLE
    assert "12 bytes" not in said
    assert logged == ["a request failed: OutOfMemoryError('12 bytes are missing')"]


def test_a_client_that_has_gone_ends_its_request(model: Any) -> None:
    with waiting_model(model._service):
        request = asked(model, prompt="x", steps=50)
        request.sender.is_gone = True
        # It ends at the next step, which comes when the model goes on.
        until(lambda: model._service.model().queue.waiting == 1)
    code, _ = failed(request.sender.answer())
    assert code == TritonError.CANCELLED
