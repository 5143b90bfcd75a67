"""Control images over HTTP."""

from __future__ import annotations

import base64
from typing import Any

import pydantic
import pytest
from PIL import Image
from starlette.testclient import TestClient

from kdrt.request.controls import MAX_CONTROLS
from kdrt.serve.control_images import ControlBodies, read_controls
from kdrt.serve.errors import LimitError, RequestError
from kdrt.serve.limits import RequestLimits
from tests.support.serving import png

BODIES: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(ControlBodies)
LIMITS = RequestLimits(images=2, input_pixels=64 * 64)


def encoded(grey: int, side: int = 16) -> str:
    return base64.b64encode(png(Image.new("L", (side, side), grey))).decode()


def read(value: Any) -> Any:
    return read_controls(BODIES.validate_python(value), LIMITS)


def test_one_and_several() -> None:
    (one,) = read({"image": encoded(7), "name": "canny", "scale": 0.5, "end": 0.6})
    assert (one.name, one.scale, one.start, one.end, one.process) == ("canny", 0.5, 0, 0.6, None)
    assert one.image.getpixel((0, 0)) == 7
    (several,) = read([{"image": [encoded(1), encoded(2)], "process": "invert"}])
    assert [image.getpixel((0, 0)) for image in several.image] == [1, 2]


def test_limits() -> None:
    with pytest.raises(LimitError, match="65x65 pixels"):
        read({"image": encoded(1, 65)})
    with pytest.raises(LimitError, match=f"{MAX_CONTROLS + 1} controls"):
        read([{"image": encoded(1)}] * (MAX_CONTROLS + 1))
    with pytest.raises(LimitError, match="17 images"):
        read({"image": [encoded(1)] * (2 * MAX_CONTROLS + 1)})
    many = {"image": [encoded(1, 64), encoded(1, 1)]}
    with pytest.raises(LimitError, match="images of control have more than 4096 pixels together"):
        read([many])
    with pytest.raises(LimitError, match="4096 pixels together"):
        read([{"image": encoded(1, 64)}] * 2)
    with pytest.raises(RequestError, match="addresses are not fetched"):
        read({"image": "https://somewhere/a.png"})


@pytest.mark.parametrize(
    ("control", "message"),
    [
        ({"image": encoded(7), "scal": 1}, "there is no field 'control.0.scal'"),
        ({"image": encoded(7), "end": 2}, "control should be less than or equal to 1, not 2"),
        ("a.png", "control should be a valid array"),
        ({"image": encoded(7)}, "'demo' has no UNet with control"),
    ],
)
def test_what_is_refused(client: TestClient, control: Any, message: str) -> None:
    body = {"prompt": "a", "steps": 1, "control": control}
    answer = client.post("/v1/generate", json=body)
    assert answer.status_code == 400, answer.text
    assert message in answer.json()["error"]["message"]
