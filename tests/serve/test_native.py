"""``/v1/generate``."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from PIL import Image
from starlette.testclient import TestClient

import kdrt
from kdrt.request.schema import request_schema
from kdrt.serve.limits import RequestLimits
from kdrt.serve.service import ImageService
from tests.support.serving import events_of, image_of, png

PATH = "/v1/generate"
SHORT: dict[str, Any] = {"prompt": "a red circle", "seed": 7, "steps": 2}


def made(client: TestClient, **fields: Any) -> dict[str, Any]:
    answer = client.post(PATH, json={**SHORT, **fields})
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(client: TestClient, **fields: Any) -> dict[str, Any]:
    answer = client.post(PATH, json={**SHORT, **fields})
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]


def data_url(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(png(image)).decode()


def test_an_image_is_the_one_that_a_call_makes(client: TestClient, service: ImageService) -> None:
    answer = made(client)
    (image,) = answer["images"]
    alone = service.model().pipe("a red circle", seed=7, steps=2)
    assert image_of(image["image"]).tobytes() == alone.images[0].tobytes()
    assert image["infotext"] == str(alone.infotexts[0])
    assert (image["seed"], image["nsfw"]) == (7, False)
    assert (answer["model"], answer["in_flight"], answer["warnings"]) == ("demo", True, [])


def test_an_image_carries_the_text_that_says_how_it_was_made(client: TestClient) -> None:
    (image,) = made(client)["images"]
    assert image_of(image["image"]).info["parameters"] == image["infotext"]


def test_several_prompts_make_several_images(client: TestClient) -> None:
    answer = made(client, prompt=["a red circle", "a star"], seed=[7, 9])
    assert [image["seed"] for image in answer["images"]] == [7, 9]
    assert answer["images"][0]["image"] == made(client)["images"][0]["image"]


@pytest.mark.parametrize(("kind", "format"), [("png", "PNG"), ("jpeg", "JPEG"), ("webp", "WEBP")])
def test_formats(client: TestClient, kind: str, format: str) -> None:
    (image,) = made(client, output_format=kind)["images"]
    assert image_of(image["image"]).format == format


def test_quality_makes_files_smaller(client: TestClient) -> None:
    best, worst = (
        len(made(client, output_format="jpeg", quality=quality)["images"][0]["image"])
        for quality in (100, 1)
    )
    assert worst < best


def test_an_image_to_begin_with_and_a_mask(client: TestClient, service: ImageService) -> None:
    start = Image.new("RGB", (64, 64), "blue")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    (image,) = made(client, image=data_url(start), mask_image=data_url(mask))["images"]
    alone = service.model().pipe("a red circle", image=start, mask_image=mask, seed=7, steps=2)
    assert image_of(image["image"]).tobytes() == alone.images[0].tobytes()
    assert image_of(image["image"]).getpixel((63, 0)) == (0, 0, 255)


def test_lists_of_json_are_pairs_of_a_request(client: TestClient, service: ImageService) -> None:
    fields = {"guidance_interval": [0.3, 5.4], "original_size": [64, 64], "sigmas": [10, 1, 0]}
    (image,) = made(client, **fields)["images"]
    alone = service.model().pipe(
        "a red circle",
        seed=7,
        guidance_interval=(0.3, 5.4),
        original_size=(64, 64),
        sigmas=(10, 1, 0),
    )
    assert image_of(image["image"]).tobytes() == alone.images[0].tobytes()


@pytest.mark.filterwarnings("ignore::kdrt.TruncationWarning")
def test_a_prompt_that_was_cut_is_told(client: TestClient) -> None:
    (warning,) = made(client, prompt="a red circle " * 30)["warnings"]
    assert "too long" in warning


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"stps": 3}, "stps", "there is no field 'stps'; did you mean 'steps'?"),
        ({"steps": 0}, "steps", "greater than or equal to 1, not 0"),
        ({"steps": "many"}, "steps", "should be a valid integer, not 'many'"),
        ({"steps": True}, "steps", "should be a valid integer"),
        ({"steps": 61}, "steps", "this server makes 60"),
        ({"width": 10_000}, "size", "10000x64"),
        ({"images_per_prompt": 5}, "images_per_prompt", "these are 5 images"),
        ({"sampler": "nonsense"}, None, "unknown sampler 'nonsense'"),
        ({"sampler": "k_diffusion.sample_heun"}, "sampler", "use kdrt's own"),
        ({"prompt": None}, None, "there is no prompt"),
        ({"prompt": {}}, "prompt", "should be a valid string"),
        ({"output_format": "gif"}, "output_format", "'png', 'jpeg' or 'webp'"),
        ({"image": "https://example.org/a.png"}, "image", "addresses are not fetched"),
        ({"image": "file:///etc/passwd"}, "image", "addresses are not fetched"),
        ({"image": "/etc/passwd"}, "image", "must be base64"),
        ({"image": "%%%"}, "image", "must be base64"),
        ({"mask_image": "AAAA"}, "mask_image", "it is no image"),
        ({"lora": {"style": 1}}, "lora", "no LoRA 'style' is registered"),
        ({"model": None, "lora": {}, "latents": [1]}, "latents", "there is no field 'latents'"),
        ({"deadline": 0}, "deadline", "greater than 0"),
        ({"sampler_options": {"eta": "x"}, "sampler": "euler_ancestral"}, None, "eta"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    client: TestClient, fields: dict[str, Any], field: str | None, said: str
) -> None:
    error = refused(client, **fields)
    assert said in error["message"]
    assert error["param"] == field
    assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b'{"prompt": "a", "seed": NaN}', b"[" * 5000, b"\xff"]
)
def test_a_body_that_is_no_request(client: TestClient, body: bytes) -> None:
    answer = client.post(PATH, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_request"


def test_half_a_character_is_refused(client: TestClient) -> None:
    body = rb'{"prompt": "\ud800", "steps": 1}'
    answer = client.post(PATH, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400


def test_only_json_is_read(client: TestClient) -> None:
    answer = client.post(PATH, content=b"{}", headers={"content-type": "text/plain"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")


def test_a_stream_tells_every_step_and_ends_with_the_answer(client: TestClient) -> None:
    answer = client.post(PATH, json={**SHORT, "steps": 3, "stream": True})
    assert answer.headers["content-type"].startswith("text/event-stream")
    names, data = zip(*events_of(answer.text), strict=True)
    assert names == ("accepted", "step", "step", "step", "result")
    assert data[0] == {"model": "demo", "steps": 3}
    assert [(each["image"], each["step"], each["steps"]) for each in data[1:4]] == [
        (0, 1, 3),
        (0, 2, 3),
        (0, 3, 3),
    ]
    sigmas = [each["sigma"] for each in data[1:4]]
    assert sigmas == sorted(sigmas, reverse=True)
    assert image_of(data[1]["preview"]).size == (16, 16)
    assert data[4] == made(client, steps=3)


def test_a_stream_tells_the_steps_of_both_passes(client: TestClient) -> None:
    hires = {"steps": 3, "hires_scale": 1.5, "hires_steps": 2, "stream": True}
    _, *steps, (name, result) = events_of(client.post(PATH, json={**SHORT, **hires}).text)
    assert [(data["step"], data["steps"]) for _, data in steps] == [(n, 5) for n in range(1, 6)]
    assert name == "result"
    assert result["in_flight"]
    assert image_of(result["images"][0]["image"]).size == (96, 96)


@pytest.mark.parametrize(("every", "steps"), [(0, []), (1, [1, 2, 3, 4]), (2, [2, 4]), (3, [3])])
def test_previews_come_as_often_as_asked_for(
    client: TestClient, every: int, steps: list[int]
) -> None:
    fields = {"steps": 4, "stream": True, "preview_every": every}
    events = events_of(client.post(PATH, json={**SHORT, **fields}).text)
    assert [data["step"] for _, data in events if "preview" in data] == steps


def test_a_stream_of_several_images_says_which(client: TestClient) -> None:
    fields = {"images_per_prompt": 2, "stream": True}
    events = events_of(client.post(PATH, json={**SHORT, **fields}).text)
    assert sorted(data["image"] for name, data in events if name == "step") == [0, 0, 1, 1]


def test_a_stream_that_is_refused_is_refused_before_it_begins(client: TestClient) -> None:
    assert refused(client, stream=True, steps=61)["code"] == "limit_exceeded"


def test_the_schema_is_that_of_a_request(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    body = paths[PATH]["post"]["requestBody"]["content"]["application/json"]["schema"]
    fields = request_schema()["properties"]
    assert {"steps", "seed", "sampler", "guidance_scale"} <= fields.keys()
    # The framework leaves out defaults of null, and writes whole numbers as floats.
    assert {name: body["properties"][name]["description"] for name in fields} == {
        name: field["description"] for name, field in fields.items()
    }
    assert body["properties"]["steps"]["maximum"] == fields["steps"]["maximum"]
    assert body["properties"]["sampler"]["default"] == fields["sampler"]["default"]
    assert body["additionalProperties"] is False


def test_regions_have_masks_in_base64(client: TestClient, service: ImageService) -> None:
    mask = Image.new("L", (96, 96))
    mask.paste(255, (0, 0, 48, 96))
    region = {"prompt": "a star", "mask": data_url(mask)}
    answer = made(client, regions=[region], region_base_weight=0)
    regions = [kdrt.Region("a star", mask)]
    alone = service.model().pipe(
        "a red circle", seed=7, steps=2, regions=regions, region_base_weight=0
    )
    assert image_of(answer["images"][0]["image"]).tobytes() == alone.images[0].tobytes()
    assert answer["unet_rows"] == 3 * 2
    assert "weigth" in refused(client, regions=[{**region, "weigth": 1}])["message"]
    assert "mask of region 1" in refused(client, regions=[{**region, "mask": "?"}])["message"]


def test_masks_of_regions_are_bounded_before_they_are_decoded(client: TestClient) -> None:
    most = RequestLimits().input_pixels
    # Few bytes in a file, and together more pixels than one image may have.
    wide = data_url(Image.new("1", (2**14, most // 2**14)))
    regions = [{"prompt": "a star", "mask": wide}] * 2
    told = refused(client, regions=regions)["message"]
    assert f"the images of regions have more than {most} pixels together" in told
    told = refused(client, regions=[{"prompt": "a star", "mask": "?"}] * 9)["message"]
    assert told == "these are 9 regions, and an image has at most 8"


def test_words_are_taken_in_any_case(client: TestClient) -> None:
    image = made(client, guidance_method="APG", prompt_weighting="A1111")["images"][0]
    assert image == made(client, guidance_method="apg", prompt_weighting="a1111")["images"][0]
    assert "guidance_method" in refused(client, guidance_method="apgg")["message"]
    assert "cfg_zero_star" in refused(client, guidance_method="apgg")["message"]


def test_images_for_ip_adapters_come_in_base64(client: TestClient) -> None:
    picture = data_url(Image.new("RGB", (8, 8)))
    for value in (picture, [picture], {"face": [[picture, picture]]}):
        message = refused(client, ip_adapter_image=value)["message"]
        assert "has no UNet with ip-adapter" in message
    for wrong in ("?", {"face": ["?"]}):
        assert "ip_adapter_image" in refused(client, ip_adapter_image=wrong)["message"]
    masks = {"ip_adapter_image": picture, "ip_adapter_masks": {"face": "?"}}
    assert "ip_adapter_masks" in refused(client, **masks)["message"]
