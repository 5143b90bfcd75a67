"""OpenAI's images API: by OpenAI's own client, unmodified, against a real server."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from PIL import Image
from starlette.testclient import TestClient

from kdrt.serve.service import ImageService
from kdrt.serve.settings import ModelSettings, ServiceSettings
from tests.support.serving import image_of, png, running, until, value_of, waiting_model

PROMPT = "a red circle"
EXTRA = {"seed": 7, "steps": 3}


@pytest.fixture(scope="module")
def url(service: ImageService) -> Iterator[str]:
    with running(service) as url:
        yield f"{url}/v1"


@pytest.fixture(scope="module")
def api(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none is needed", max_retries=0) as client:
        yield client


def alone(service: ImageService, **fields: Any) -> Image.Image:
    """What a call of the pipeline makes."""
    return service.model().pipe(PROMPT, **{**EXTRA, **fields}).images[0]


def same(encoded: str | None, image: Image.Image) -> bool:
    assert encoded is not None
    return image_of(encoded).tobytes() == image.tobytes()


def square(colour: str = "blue") -> Image.Image:
    return Image.new("RGB", (64, 64), colour)


def test_models(api: openai.OpenAI) -> None:
    (model,) = api.models.list()
    assert (model.id, model.object, model.owned_by) == ("demo", "model", "kdrt")
    assert api.models.retrieve("demo").id == "demo"
    with pytest.raises(openai.NotFoundError, match="no model 'dall-e-3' is served"):
        api.models.retrieve("dall-e-3")


def test_an_image_is_the_one_that_a_call_makes(api: openai.OpenAI, service: ImageService) -> None:
    answer = api.images.generate(prompt=PROMPT, model="demo", size="64x64", extra_body=EXTRA)
    assert (answer.size, answer.output_format, answer.background) == ("64x64", "png", "opaque")
    assert answer.data is not None
    (image,) = answer.data
    assert same(image.b64_json, alone(service))
    assert answer._request_id


def test_fields_of_the_request_go_through(api: openai.OpenAI, service: ImageService) -> None:
    extra = {
        "seed": 9,
        "num_inference_steps": 2,
        "guidance_scale": 2.5,
        "negative_prompt": "a star",
        "sampler": "euler_ancestral",
        "schedule": "exponential",
    }
    answer = api.images.generate(prompt=PROMPT, size="64x96", extra_body=extra)
    assert answer.data is not None
    expected = alone(
        service,
        seed=9,
        steps=2,
        guidance_scale=2.5,
        negative_prompt="a star",
        sampler="euler_ancestral",
        schedule="exponential",
        width=64,
        height=96,
    )
    assert same(answer.data[0].b64_json, expected)


def test_several_images(api: openai.OpenAI) -> None:
    answer = api.images.generate(prompt=PROMPT, n=3, extra_body=EXTRA)
    assert answer.data is not None
    assert [image.model_extra for image in answer.data] == [{"seed": n} for n in (7, 8, 9)]
    assert len({image.b64_json for image in answer.data}) == 3


@pytest.mark.parametrize("kind", ["png", "webp", "jpeg"])
def test_formats(api: openai.OpenAI, kind: Any) -> None:
    answer = api.images.generate(prompt=PROMPT, output_format=kind, extra_body=EXTRA)
    assert answer.output_format == kind
    assert answer.data is not None
    assert image_of(answer.data[0].b64_json or "").format == kind.upper()


def test_compression(api: openai.OpenAI) -> None:
    sizes = []
    for compression in (100, 0):
        answer = api.images.generate(
            prompt=PROMPT,
            output_format="webp",
            output_compression=compression,
            extra_body=EXTRA,
        )
        assert answer.data is not None
        sizes.append(len(answer.data[0].b64_json or ""))
    assert sizes[0] > sizes[1]


@pytest.mark.parametrize(("steps", "asked", "sent"), [(9, 0, 0), (9, 2, 2), (9, 3, 3), (2, 3, 1)])
def test_a_stream_shows_the_image_as_it_becomes(
    api: openai.OpenAI, service: ImageService, steps: int, asked: int, sent: int
) -> None:
    stream = api.images.generate(
        prompt=PROMPT,
        stream=True,
        partial_images=asked,
        extra_body={"seed": 7, "steps": steps},
    )
    *partial, completed = list(stream)
    assert [event.type for event in partial] == ["image_generation.partial_image"] * sent
    for number, event in enumerate(partial):
        assert event.type == "image_generation.partial_image"
        assert event.partial_image_index == number
        assert image_of(event.b64_json).size == (64, 64)
    assert completed.type == "image_generation.completed"
    assert (completed.size, completed.output_format) == ("64x64", "png")
    assert same(completed.b64_json, alone(service, steps=steps))
    assert len({event.b64_json for event in (*partial, completed)}) == sent + 1


def test_an_asynchronous_client(url: str, service: ImageService) -> None:
    async def main() -> list[str]:
        async with openai.AsyncOpenAI(base_url=url, api_key="x", max_retries=0) as client:
            whole = await client.images.generate(prompt=PROMPT, extra_body=EXTRA)
            stream = await client.images.generate(
                prompt=PROMPT, stream=True, partial_images=1, extra_body=EXTRA
            )
            events = [event async for event in stream]
            assert whole.data is not None
            return [whole.data[0].b64_json or "", events[-1].b64_json]

    first, second = asyncio.run(main())
    assert same(first, alone(service))
    assert same(second, alone(service))


def test_an_edit_begins_with_the_image(api: openai.OpenAI, service: ImageService) -> None:
    answer = api.images.edit(
        image=("blue.png", png(square())), prompt=PROMPT, extra_body={**EXTRA, "strength": 0.5}
    )
    assert answer.data is not None
    assert same(answer.data[0].b64_json, alone(service, image=square(), strength=0.5))


def transparent_left() -> Image.Image:
    mask = square().convert("RGBA")
    mask.paste((0, 0, 0, 0), (0, 0, 32, 64))
    return mask


def white_left() -> Image.Image:
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    return mask


@pytest.mark.parametrize("mask", [transparent_left(), white_left()], ids=["alpha", "white"])
def test_an_edit_repaints_what_the_mask_says(
    api: openai.OpenAI, service: ImageService, mask: Image.Image
) -> None:
    answer = api.images.edit(
        image=("blue.png", png(square())),
        mask=("mask.png", png(mask)),
        prompt=PROMPT,
        extra_body=EXTRA,
    )
    assert answer.data is not None
    expected = alone(service, image=square(), mask_image=white_left())
    assert same(answer.data[0].b64_json, expected)
    assert image_of(answer.data[0].b64_json or "").getpixel((63, 0)) == (0, 0, 255)


def test_an_edit_takes_a_list_of_one(api: openai.OpenAI, service: ImageService) -> None:
    answer = api.images.edit(image=[("a.png", png(square()))], prompt=PROMPT, extra_body=EXTRA)
    assert answer.data is not None
    assert same(answer.data[0].b64_json, alone(service, image=square()))
    two = [("a.png", png(square())), ("b.png", png(square()))]
    with pytest.raises(openai.BadRequestError, match="one image is edited at a time") as error:
        api.images.edit(image=two, prompt=PROMPT, extra_body=EXTRA)
    assert error.value.param == "image"


def test_an_edit_can_be_streamed(api: openai.OpenAI, service: ImageService) -> None:
    stream = api.images.edit(
        image=("a.png", png(square())),
        prompt=PROMPT,
        stream=True,
        partial_images=1,
        extra_body={**EXTRA, "strength": 1.0},
    )
    partial, completed = list(stream)
    assert partial.type == "image_edit.partial_image"
    assert completed.type == "image_edit.completed"
    assert same(completed.b64_json, alone(service, image=square(), strength=1.0))


def test_an_edit_without_a_size_has_that_of_the_image_or_what_is_allowed(
    api: openai.OpenAI,
) -> None:
    for given, made in (((64, 96), "64x96"), ((66, 97), "64x96"), ((400, 100), "256x64")):
        answer = api.images.edit(
            image=("a.png", png(Image.new("RGB", given))), prompt=PROMPT, extra_body={"steps": 2}
        )
        assert answer.size == made


@pytest.mark.parametrize(
    ("fields", "param", "said"),
    [
        ({"response_format": "url"}, "response_format", "must be 'b64_json'"),
        ({"quality": "hd"}, "quality", "quality should be 'auto' or 'standard', not 'hd'"),
        ({"background": "transparent"}, "background", "background should be 'auto' or 'opaque'"),
        ({"style": "natural"}, "style", "style should be 'vivid'"),
        ({"output_format": "svg"}, "output_format", "'png', 'jpeg' or 'webp'"),
        ({"output_compression": 50}, "output_compression", "PNG has no quality"),
        ({"size": "big"}, "size", "WIDTHxHEIGHT"),
        ({"size": ""}, "size", "WIDTHxHEIGHT"),
        ({"size": "1x1"}, "size", "at least 8x8"),
        ({"size": "66x64"}, None, "multiple of 4"),
        ({"size": "1024x1024"}, "size", "this server makes 16384"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 5}, "n", "these are 5 images"),
        ({"n": 2, "stream": True}, "n", "a stream is about one image"),
        ({"partial_images": 2}, "partial_images", "send stream true"),
        ({"partial_images": 4, "stream": True}, "partial_images", "less than or equal to 3"),
        ({"model": "gpt-image-1"}, "model", "no model 'gpt-image-1' is served"),
        ({"extra_body": {"cfg": 7}}, "cfg", "there is no field 'cfg'"),
        ({"extra_body": {"steps": 61}}, "steps", "this server makes 60"),
        ({"extra_body": {"steps": 3, "num_inference_steps": 4}}, "steps", "differ"),
        ({"extra_body": {"lora": "style"}}, "lora", "no LoRA 'style' is registered"),
        ({"extra_body": {"lora": {"style": 0.5}}}, "lora", "no LoRA 'style' is registered"),
        ({"extra_body": {"sampler": "k_diffusion.sample_heun"}}, "sampler", "use kdrt's own"),
    ],
)
def test_what_is_not_done_here_is_refused_by_name(
    api: openai.OpenAI, fields: dict[str, Any], param: str | None, said: str
) -> None:
    with pytest.raises((openai.BadRequestError, openai.NotFoundError), match=said) as error:
        api.images.generate(prompt=PROMPT, **fields)
    assert error.value.param == param
    assert error.value.type == "invalid_request_error"
    assert error.value.code


def test_what_asks_for_nothing_is_taken(api: openai.OpenAI) -> None:
    api.images.generate(
        prompt=PROMPT,
        model="demo",
        n=1,
        size="auto",
        quality="auto",
        background="auto",
        moderation="auto",
        style="vivid",
        output_format="png",
        output_compression=100,
        response_format="b64_json",
        partial_images=0,
        stream=False,
        user="somebody",
        safety_identifier="somebody",
        extra_body={"steps": 1},
    )
    api.images.edit(
        image=("a.png", png(square())),
        prompt=PROMPT,
        input_fidelity="low",
        quality="auto",
        background="auto",
        size="auto",
        response_format="b64_json",
        user="somebody",
        extra_body={"steps": 2},
    )


@pytest.mark.parametrize(
    ("files", "data", "param"),
    [
        ({"image": ("a.png", b"no image")}, {}, "image"),
        ({"image": ("a.png", png(square())), "mask": ("m.png", b"no image")}, {}, "mask"),
        ({"image": ("a.png", png(square())), "other": ("b.png", b"x")}, {}, "other"),
        ({"mask": ("a.png", png(square()))}, {}, "image"),
        ({"mask": ("a.png", png(square()))}, {"image": "http://a/b.png"}, "image"),
        ({"image": ("a.png", png(square()))}, {"steps": "many"}, "steps"),
        ({"image": ("a.png", png(square()))}, {"steps": "61"}, "steps"),
        ({"image": ("a.png", png(square()))}, {"lora[style]": "0.5"}, "lora"),
        ({"image": ("a.png", png(square()))}, {"nonsense": "1"}, "nonsense"),
    ],
)
def test_a_form_that_is_wrong_is_refused_by_name(
    client: TestClient, files: dict[str, Any], data: dict[str, str], param: str
) -> None:
    answer = client.post("/v1/images/edits", data={"prompt": PROMPT, **data}, files=files)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_only_forms_are_edited(client: TestClient) -> None:
    assert client.post("/v1/images/edits", json={"prompt": PROMPT}).status_code == 415
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = client.post("/v1/images/edits", content=b"no form", headers=headers)
    assert answer.status_code == 400


def test_a_full_queue_says_when_to_come_again(api: openai.OpenAI, service: ImageService) -> None:
    def ask() -> None:
        api.images.generate(prompt=PROMPT, n=4, extra_body={"steps": 1})

    with waiting_model(service):
        first = threading.Thread(target=ask)
        first.start()
        until(lambda: service.model().queue.waiting == 4)
        with pytest.raises(openai.RateLimitError, match="4 images wait already") as error:
            api.images.generate(prompt=PROMPT, extra_body={"steps": 1})
    first.join()
    assert int(error.value.response.headers["retry-after"]) >= 1
    assert error.value.code == "queue_full"
    assert value_of(service, "kdrt_errors_total", kind="queue_full") == 1


@pytest.fixture(scope="module")
def hurried(demo_bundle: Path) -> Iterator[ImageService]:
    """A service that cancels what is not made within a hundredth of a second."""
    settings = ServiceSettings(deadline=0.01, warmup=(), threads=1)
    service = ImageService([ModelSettings(bundle=str(demo_bundle))], settings)
    service.load()
    yield service
    service.close()


def test_what_is_late_is_an_error_that_is_not_tried_again(hurried: ImageService) -> None:
    def late() -> float:
        return value_of(hurried, "kdrt_errors_total", kind="deadline_exceeded")

    with running(hurried) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="x") as client:
        with waiting_model(hurried):
            stream = client.images.generate(prompt=PROMPT, stream=True)
            time.sleep(0.05)
        with pytest.raises(openai.APIError, match=r"not made within 0\.01 s"):
            list(stream)
        assert late() == 1
        errors: list[openai.InternalServerError] = []

        def ask() -> None:
            with pytest.raises(openai.InternalServerError) as error:
                client.images.generate(prompt=PROMPT)
            errors.append(error.value)

        with waiting_model(hurried):
            asking = threading.Thread(target=ask)
            asking.start()
            until(lambda: hurried.model().queue.waiting == 1)
            time.sleep(0.05)
        asking.join()
    assert (errors[0].status_code, errors[0].code) == (504, "deadline_exceeded")
    assert late() == 2  # and the client would have tried again twice


def test_the_image_says_how_it_was_made(api: openai.OpenAI) -> None:
    answer = api.images.generate(prompt=PROMPT, extra_body=EXTRA)
    assert answer.data is not None
    data = base64.b64decode(answer.data[0].b64_json or "")
    text = Image.open(io.BytesIO(data)).info["parameters"]
    assert text.startswith(f"{PROMPT}\nSteps: 3, Sampler: DPM++ 2M,")
